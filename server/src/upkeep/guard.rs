//! Noticing that a volume has suddenly become another one: emptied by mistake, or encrypted by
//! somebody who wants money for the key.
//!
//! A server without keys sees only which chunks come and go. When most bytes of a snapshot are
//! not in the next one, and that is not usual for this volume, the last snapshot before is
//! pinned, and retention leaves the whole volume alone until an administrator releases it. The
//! pin is an entry of the log, so that a hold survives whatever the catalog does.

use std::collections::{BTreeMap, HashSet};
use std::sync::PoisonError;

use vsync_protocol::blob::BlobKind;
use vsync_protocol::id::{Cid, MachineName, ManifestHash, VolumeName};
use vsync_protocol::limits::MAX_CIDS;
use vsync_protocol::log::LogEntry;
use vsync_protocol::manifest::LogPosition;

use super::mark::{MarkError, Walk, root_of};
use super::retention::{RetentionError, short};
use super::throttle::Throttle;
use crate::archive::{Archive, ArchiveError};
use crate::catalog::{CatalogError, Group, Known};
use crate::pins::CidSet;

/// How a pin of this room is signed; what comes after are the words.
const BY: &str = "guard: ";

/// How a pin is signed that a person made before, and that stays when the hold is released.
const RELEASED: &str = "released by ";

/// A volume with fewer bytes has no habits.
const LEAST: u64 = 1 << 20;

/// So many of a hundred bytes gone is sudden.
const SUDDEN: u64 = 75;

/// So many of a hundred bytes gone in the step before means that this is usual.
const USUAL: u64 = 50;

/// Steps of a volume that are looked at after a start.
const LOOK_BACK: u32 = 8;

/// What the log says of holds.
#[derive(Default)]
pub(crate) struct Holds {
    /// How much of the log was read.
    log: u64,
    held: BTreeMap<ManifestHash, String>,
    /// Snapshots that somebody pinned: they stay pinned when a hold of them is released.
    pinned: HashSet<ManifestHash>,
    /// Snapshots whose hold was released: the step after them is known to be right.
    released: HashSet<ManifestHash>,
    /// The last snapshot of each volume that was looked at, by its place in the log.
    seen: BTreeMap<Group, u64>,
}

/// A volume whose retention is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Which.
    pub group: Group,
    /// Why.
    pub reason: String,
    manifest: ManifestHash,
}

#[cfg(test)]
impl Hold {
    /// A hold that nothing has led to.
    pub(crate) fn for_test(group: Group, reason: &str) -> Self {
        Self { group, reason: reason.to_owned(), manifest: ManifestHash::from_bytes([0; ManifestHash::LEN]) }
    }
}

impl Archive {
    /// Looks at what was committed since the last time, and holds volumes that suddenly changed.
    ///
    /// # Errors
    /// When a tree cannot be read, or the store fails.
    pub fn guard(&self, throttle: &Throttle) -> Result<(), MarkError> {
        for group in self.catalog().groups()? {
            let seen = self.holds()?.seen.get(&group).copied();
            let newest = self.catalog().last_standing(&group, u64::MAX, LOOK_BACK + 1)?;
            let after = match (seen, newest.first(), newest.last()) {
                (Some(seen), _, Some(newest)) if newest.position > seen => seen,
                (None, Some(oldest), _) => oldest.position,
                _ => continue,
            };
            // What is usual shows in the step before the first.
            let mut standing = self.catalog().last_standing(&group, after, 2)?;
            let reached = self.catalog().each_standing_of(&group, after, |known| {
                standing.push(known.clone());
                if standing.len() > 3 {
                    standing.remove(0);
                }
                self.look(&standing, throttle)
            })?;
            self.holds()?.seen.insert(group, reached);
        }
        Ok(())
    }

    /// Looks at the last step of `standing`.
    fn look(&self, standing: &[Known], throttle: &Throttle) -> Result<(), MarkError> {
        let [.., old, new] = standing else { return Ok(()) };
        {
            let holds = self.holds()?;
            if holds.released.contains(&old.hash) || holds.held.contains_key(&old.hash) {
                return Ok(());
            }
        }
        let step = self.step(old, new, throttle)?;
        if !step.is_more_than(SUDDEN) {
            return Ok(());
        }
        // What has no habits yet cannot break them.
        let [.., before, _, _] = standing else { return Ok(()) };
        if self.step(before, old, throttle)?.is_more_than(USUAL) {
            return Ok(());
        }
        let (Group { source, volume }, percent, id) = (&new.group, step.percent(), new.id().short());
        let words = format!("{percent} % of the content of {volume} is not in snapshot {id} of {source}");
        tracing::error!("{words}; retention of it is held until `vsync release {volume}`");
        self.note(|at| {
            let entry = LogEntry::Pin { manifest: old.hash, at, by: format!("{BY}{words}") };
            Ok::<_, ArchiveError>(Some(entry))
        })?;
        Ok(())
    }

    /// How much of `old` is gone in `new`.
    fn step(&self, old: &Known, new: &Known, throttle: &Throttle) -> Result<Step, MarkError> {
        let (mut before, mut after) = (CidSet::default(), CidSet::default());
        self.each_chunk(new, throttle, |chunk| {
            after.insert(chunk);
            Ok(())
        })?;
        let mut step = Step { gone: 0, of: 0 };
        let mut weigh = |chunks: &mut Vec<Cid>| {
            let entries = self.catalog().entries(chunks)?;
            for (chunk, entry) in chunks.iter().zip(entries) {
                let bytes = entry.map_or(0, |entry| u64::from(entry.len));
                step.of += bytes;
                step.gone += if after.contains(chunk) { 0 } else { bytes };
            }
            chunks.clear();
            Ok::<_, MarkError>(())
        };
        let mut chunks = Vec::new();
        self.each_chunk(old, throttle, |chunk| {
            if before.contains(chunk) {
                return Ok(());
            }
            before.insert(chunk);
            chunks.push(*chunk);
            if chunks.len() < MAX_CIDS { Ok(()) } else { weigh(&mut chunks) }
        })?;
        weigh(&mut chunks)?;
        Ok(step)
    }

    /// Shows `show` the chunks of a snapshot, some of them more than once.
    fn each_chunk(
        &self,
        known: &Known,
        throttle: &Throttle,
        mut show: impl FnMut(&Cid) -> Result<(), MarkError>,
    ) -> Result<(), MarkError> {
        let (mut nodes, mut shown) = (HashSet::new(), Ok(()));
        let mut walk = Walk { archive: self, throttle, snapshot: known.id(), revive: false };
        walk.from(root_of(known)?, |cid, kind| {
            if kind == BlobKind::Chunk && shown.is_ok() {
                shown = show(cid);
            }
            // After an error the rest is of no interest.
            kind != BlobKind::Chunk && shown.is_ok() && nodes.insert(*cid)
        })?;
        shown
    }

    /// Volumes whose retention is held.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn held(&self) -> Result<Vec<Hold>, ArchiveError> {
        let held = self.holds()?.held.clone();
        let mut found = Vec::new();
        for (manifest, reason) in held {
            let Some(known) = self.catalog().known(manifest.into())? else { continue };
            found.push(Hold { group: known.group, reason, manifest });
        }
        Ok(found)
    }

    /// Lets retention of `volume` go on, by the order of `by`.
    ///
    /// # Errors
    /// When nothing of it is held, or the store fails.
    pub fn release(
        &self,
        volume: &VolumeName,
        source: Option<&MachineName>,
        by: &str,
    ) -> Result<LogPosition, RetentionError> {
        let mut held = self.held()?;
        held.retain(|hold| hold.group.volume == *volume && source.is_none_or(|source| hold.group.source == *source));
        if held.is_empty() {
            return Err(RetentionError::NotHeld(volume.clone()));
        }
        for Hold { manifest, .. } in held {
            if self.holds()?.pinned.contains(&manifest) {
                // One entry: between two, retention could forget the snapshot.
                let by = short(&format!("{RELEASED}{by}"));
                self.note(|at| Ok::<_, ArchiveError>(Some(LogEntry::Pin { manifest, at, by })))?;
            } else {
                self.pin(manifest.into(), false, by)?;
            }
        }
        Ok(self.position())
    }

    /// Whether a snapshot is pinned because its volume is held, and by nobody else.
    pub(super) fn is_only_held(&self, manifest: &ManifestHash) -> Result<bool, ArchiveError> {
        let holds = self.holds()?;
        Ok(holds.held.contains_key(manifest) && !holds.pinned.contains(manifest))
    }

    /// What the log says of holds by now.
    fn holds(&self) -> Result<std::sync::MutexGuard<'_, Holds>, ArchiveError> {
        let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        holds.log = self.catalog().each_log_entry(holds.log, |entry| {
            holds.learn(entry);
            Ok::<_, CatalogError>(())
        })?;
        Ok(holds)
    }
}

impl Holds {
    fn learn(&mut self, entry: LogEntry) {
        match entry {
            LogEntry::Pin { manifest, by, .. } => {
                if let Some(words) = by.strip_prefix(BY) {
                    self.held.insert(manifest, words.to_owned());
                } else {
                    self.pinned.insert(manifest);
                }
                if by.starts_with(RELEASED) {
                    self.let_go(manifest);
                }
            }
            LogEntry::Unpin { manifest, .. } | LogEntry::Forget { manifest, .. } => {
                self.pinned.remove(&manifest);
                self.let_go(manifest);
            }
            LogEntry::Commit { .. } | LogEntry::Undelete { .. } => {}
        }
    }

    fn let_go(&mut self, manifest: ManifestHash) {
        if self.held.remove(&manifest).is_some() {
            self.released.insert(manifest);
        }
    }
}

/// What is gone from one snapshot to the next, in bytes.
#[derive(Clone, Copy, Debug)]
struct Step {
    gone: u64,
    of: u64,
}

impl Step {
    fn percent(self) -> u64 {
        self.gone.saturating_mul(100).checked_div(self.of).unwrap_or(0)
    }

    fn is_more_than(self, percent: u64) -> bool {
        self.of >= LEAST && self.percent() > percent
    }
}
