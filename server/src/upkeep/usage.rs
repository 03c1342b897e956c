//! How much of the store a machine or a volume takes: the bytes of all blobs that its snapshots
//! need, whoever brought them. What two machines share counts for both.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use vsync_protocol::blob::BlobKind;
use vsync_protocol::id::{Cid, MachineName, VolumeName};
use vsync_protocol::limits::MAX_CIDS;
use vsync_protocol::log::LogEntry;

use super::mark::{MarkError, Walk, root_of};
use super::throttle::Throttle;
use crate::archive::{Archive, ArchiveError};
use crate::catalog::{CatalogError, Group};
use crate::pins::CidSet;
use crate::words::{report, size};

/// What a quota is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// All that a machine backs up.
    Machine(MachineName),
    /// A volume, whichever machine it is from.
    Volume(VolumeName),
}

impl Scope {
    fn covers(&self, group: &Group) -> bool {
        match self {
            Self::Machine(name) => group.source == *name,
            Self::Volume(name) => group.volume == *name,
        }
    }
}

/// The quotas that a backup of a volume from a machine is under, in bytes; asked anew each time.
pub type Quotas = Arc<dyn Fn(&MachineName, &VolumeName) -> Vec<(Scope, u64)> + Send + Sync>;

/// What a backup may still bring.
#[derive(Clone, Debug)]
pub(crate) struct Allowance {
    /// Bytes.
    pub(crate) left: u64,
    /// Whose quota that is, and how large.
    pub(crate) words: String,
}

/// What is known of one scope.
#[derive(Default)]
pub(crate) struct Usage {
    /// How much of the log it covers, and the last place in it whose snapshot is counted.
    log: u64,
    position: u64,
    blobs: CidSet,
    bytes: u64,
}

pub(crate) type Usages = HashMap<Scope, Usage>;

/// What was brought for a volume since its last commit. It is kept in memory only: what a
/// restart forgets of it, garbage collection removes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pending {
    bytes: u64,
    /// The round of garbage collection in which the last of it came.
    round: u64,
}

pub(crate) type Pendings = HashMap<Group, Pending>;

/// After so many rounds nothing is left of what no snapshot needs.
const ROUNDS: u64 = 3;

/// How much of what was committed could be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reached {
    All,
    Partly,
}

impl Archive {
    /// The tightest of `quotas`; none when there are none.
    pub(crate) fn allowance(&self, quotas: Vec<(Scope, u64)>) -> Result<Option<Allowance>, MarkError> {
        let mut tightest: Option<Allowance> = None;
        for (scope, quota) in quotas {
            let (used, pending) = (self.used(&scope)?, self.pending(&scope)?);
            // What came of attempts may be as much again: one that was too large must not keep a smaller one out.
            let with_attempts = quota.saturating_mul(2).saturating_sub(used.saturating_add(pending));
            let left = quota.saturating_sub(used).min(with_attempts);
            if tightest.as_ref().is_none_or(|tightest| left < tightest.left) {
                let (what, name) = match &scope {
                    Scope::Machine(name) => ("machine", name.as_str()),
                    Scope::Volume(name) => ("volume", name.as_str()),
                };
                let words = format!(
                    "{what} {name} has a quota of {} here, of which {} are used, and {} came of backups that were not completed",
                    size(quota),
                    size(used),
                    size(pending)
                );
                tightest = Some(Allowance { left, words });
            }
        }
        Ok(tightest)
    }

    /// Bytes of all blobs that the snapshots of `scope` need.
    ///
    /// # Errors
    /// When a tree cannot be read.
    pub fn used(&self, scope: &Scope) -> Result<u64, MarkError> {
        let mut usages = self.usages.lock().unwrap_or_else(PoisonError::into_inner);
        let usage = usages.entry(scope.clone()).or_default();
        let mut removed = false;
        let log = self.catalog().each_log_entry(usage.log, |entry| {
            removed |= matches!(entry, LogEntry::Forget { .. } | LogEntry::Undelete { .. });
            Ok::<_, CatalogError>(())
        })?;
        if removed {
            // What only it needed cannot be told without looking at all others again.
            *usage = Usage::default();
        }
        usage.log = log;
        let counted = self.count(scope, usage);
        let bytes = usage.bytes;
        // What was not reached is looked for again the next time.
        if !matches!(counted, Ok(Reached::All)) {
            *usage = Usage::default();
        }
        counted.map(|_| bytes)
    }

    /// Notes that `bytes` were stored for `group`.
    pub(crate) fn note_pending(&self, group: &Group, bytes: u64) -> Result<(), ArchiveError> {
        let round = self.catalog().round()?;
        let mut pendings = self.pendings.lock().unwrap_or_else(PoisonError::into_inner);
        pendings.retain(|_, pending| pending.round + ROUNDS > round);
        let pending = pendings.entry(group.clone()).or_default();
        *pending = Pending { bytes: pending.bytes.saturating_add(bytes), round };
        Ok(())
    }

    /// Notes that `group` has committed: what it needs is counted with its snapshots.
    pub(crate) fn settle(&self, group: &Group) {
        self.pendings.lock().unwrap_or_else(PoisonError::into_inner).remove(group);
    }

    fn pending(&self, scope: &Scope) -> Result<u64, ArchiveError> {
        let round = self.catalog().round()?;
        let pendings = self.pendings.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = |(group, pending): &(&Group, &Pending)| pending.round + ROUNDS > round && scope.covers(group);
        Ok(pendings.iter().filter(counts).fold(0, |sum: u64, (_, pending)| sum.saturating_add(pending.bytes)))
    }

    /// Counts what was committed since the last time. What lies below a damaged node does not count: a quota must not
    /// keep out the backup that would heal it.
    fn count(&self, scope: &Scope, usage: &mut Usage) -> Result<Reached, MarkError> {
        let throttle = Throttle::default();
        let mut all = Reached::All;
        let reached = self.catalog().each_standing(usage.position, |known| {
            if !scope.covers(&known.group) {
                return Ok(());
            }
            let mut new = Vec::new();
            let mut walk = Walk { archive: self, throttle: &throttle, snapshot: known.id(), revive: false };
            let walked = root_of(known).and_then(|root| {
                walk.from(root, |cid, kind| {
                    let is_new = !usage.blobs.contains(cid);
                    if is_new {
                        usage.blobs.insert(cid);
                        new.push(*cid);
                    }
                    is_new && kind != BlobKind::Chunk
                })
            });
            usage.bytes += self.bytes_of(&new)?;
            match walked {
                Err(error @ (MarkError::Node { .. } | MarkError::Manifest(_) | MarkError::LostManifest(_))) => {
                    tracing::warn!("what is used is counted without what cannot be read: {}", report(&error));
                    all = Reached::Partly;
                    Ok(())
                }
                walked => walked,
            }
        })?;
        usage.position = reached;
        Ok(all)
    }

    /// Bytes of blobs as they are stored.
    pub(super) fn bytes_of(&self, cids: &[Cid]) -> Result<u64, ArchiveError> {
        let mut bytes = 0;
        for cids in cids.chunks(MAX_CIDS) {
            let entries = self.catalog().entries(cids)?;
            bytes += entries.into_iter().flatten().map(|entry| u64::from(entry.len)).sum::<u64>();
        }
        Ok(bytes)
    }
}
