//! Giving snapshots up and bringing them back: by policy, and on an administrator's order.
//!
//! To forget is an entry in the log. The data stays until garbage collection has found it
//! needless and days have passed; until then the snapshot can be brought back, which makes
//! everything it needs live again before the log says so.

use thiserror::Error;
use vsync_protocol::id::{MachineName, SnapshotId, VolumeName};
use vsync_protocol::log::LogEntry;
use vsync_protocol::manifest::{LogPosition, SnapshotKind};
use vsync_protocol::plan::{Candidate, Fate, Frozen, Verdict, plan};

use super::Upkeep;
use crate::archive::{Archive, ArchiveError};
use crate::catalog::{CatalogError, Group, Known};

/// Clocks of administrator and server may differ by this many milliseconds.
const CLOCKS_DIFFER: u64 = 3_600_000;

/// Why a snapshot is not forgotten, pinned or brought back.
#[derive(Debug, Error)]
pub enum RetentionError {
    /// There is none.
    #[error("there is no snapshot {}", .0.short())]
    NoSnapshot(SnapshotId),
    /// It was forgotten before.
    #[error("snapshot {} is forgotten; bring it back first with `vsync undelete`", .0.short())]
    Forgotten(SnapshotId),
    /// Somebody pinned it.
    #[error("snapshot {} is pinned; run `vsync unpin` first", .0.short())]
    Pinned(SnapshotId),
    /// It is younger than `min-retention`.
    #[error("snapshot {} is younger than min-retention allows; it can be forgotten later", .0.short())]
    TooYoung(SnapshotId),
    /// Its data was collected.
    #[error("the data of snapshot {} was collected; it cannot be brought back", .0.short())]
    Collected(SnapshotId),
    /// The clock cannot be right.
    #[error(transparent)]
    Frozen(#[from] Frozen),
    /// The administrator's clock does not confirm the server's.
    #[error("the server's clock differs from yours by {0} s; set the one that is wrong")]
    Clock(u64),
    /// Retention of that volume is not held.
    #[error("retention of {0} is not held")]
    NotHeld(VolumeName),
    /// The store failed.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

impl From<CatalogError> for RetentionError {
    fn from(error: CatalogError) -> Self {
        Self::Archive(error.into())
    }
}

/// What policies say of one volume from one machine.
#[derive(Clone, Debug)]
pub struct GroupPlan {
    /// Which.
    pub group: Group,
    /// Each snapshot's fate, newest first; or why there is none.
    pub verdicts: Result<Vec<Verdict>, Frozen>,
}

impl GroupPlan {
    /// The snapshots that would go, each with the reason.
    pub fn forgotten(&self) -> impl Iterator<Item = (SnapshotId, &Fate)> {
        let verdicts = self.verdicts.iter().flatten();
        verdicts.filter(|verdict| matches!(verdict.fate, Fate::Forget(_))).map(|verdict| (verdict.id, &verdict.fate))
    }
}

impl Archive {
    /// What `upkeep` says of every volume, or only of those that are named.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn plan(
        &self,
        upkeep: &Upkeep,
        volume: Option<&VolumeName>,
        source: Option<&MachineName>,
    ) -> Result<Vec<GroupPlan>, ArchiveError> {
        let mut groups = self.catalog().groups()?;
        groups.retain(|group| {
            volume.is_none_or(|volume| group.volume == *volume) && source.is_none_or(|source| group.source == *source)
        });
        groups.into_iter().map(|group| self.plan_group(upkeep, group)).collect()
    }

    fn plan_group(&self, upkeep: &Upkeep, group: Group) -> Result<GroupPlan, ArchiveError> {
        let (mut candidates, confirmed) = (Vec::new(), self.catalog().confirmed()?);
        self.catalog().each_standing_of(&group, 0, |known| {
            candidates.push(candidate(known, confirmed));
            Ok::<_, CatalogError>(())
        })?;
        if self.held()?.iter().any(|hold| hold.group == group) {
            candidates.iter_mut().for_each(|candidate| candidate.pinned = true);
        }
        let (moment, kept) = self.time();
        let policy = (upkeep.policies)(&group.volume);
        let verdicts = plan(&policy, &kept.evidence(&moment), &upkeep.zone, &candidates);
        Ok(GroupPlan { group, verdicts })
    }

    /// Forgets what `upkeep` says. Returns how many snapshots that were, and why nothing was
    /// forgotten where the clock cannot be right.
    ///
    /// # Errors
    /// When the store fails.
    pub fn retain(&self, upkeep: &Upkeep) -> Result<(u64, Option<Frozen>), RetentionError> {
        let (mut forgotten, mut frozen) = (0, None);
        for plan in self.plan(upkeep, None, None)? {
            for (id, fate) in plan.forgotten() {
                match self.forget(upkeep, id, &format!("policy: {fate}")) {
                    Ok(_) => forgotten += 1,
                    // Pinned since the plan was made.
                    Err(RetentionError::Pinned(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            if let Err(why) = plan.verdicts {
                frozen.get_or_insert(why);
            }
        }
        Ok((forgotten, frozen))
    }

    /// Gives the snapshot `id` up for `reason`. Returns where the log stands.
    ///
    /// # Errors
    /// When there is none, it is protected, the clock cannot be right, or the store fails.
    pub fn forget(&self, upkeep: &Upkeep, id: SnapshotId, reason: &str) -> Result<LogPosition, RetentionError> {
        self.note(|at| {
            let Some(known) = self.catalog().known(id)? else {
                // Of one whose manifest is lost there is nothing that anything could protect.
                let lost = self.catalog().lost_manifests()?.into_iter().find(|&lost| SnapshotId::from(lost) == id);
                let manifest = lost.ok_or(RetentionError::NoSnapshot(id))?;
                return Ok(Some(LogEntry::Forget { manifest, at, reason: short(reason) }));
            };
            if known.forgotten {
                return Ok(None);
            }
            if known.pinned {
                return Err(RetentionError::Pinned(id));
            }
            let (moment, kept) = self.time();
            let received = received(&known, self.catalog().confirmed()?);
            kept.evidence(&moment).check(Some(received))?;
            if (upkeep.policies)(&known.group.volume).is_below_floor(moment.now, received) {
                return Err(RetentionError::TooYoung(id));
            }
            Ok(Some(LogEntry::Forget { manifest: known.hash, at, reason: short(reason) }))
        })
    }

    /// Pins the snapshot `id`, or lets policies decide again, by the order of `by`.
    ///
    /// # Errors
    /// When there is none, it is forgotten, or the store fails.
    pub fn pin(&self, id: SnapshotId, pinned: bool, by: &str) -> Result<LogPosition, RetentionError> {
        self.note(|at| {
            let known = self.find(id)?;
            if known.forgotten {
                return Err(RetentionError::Forgotten(id));
            }
            let (manifest, by) = (known.hash, short(by));
            Ok(match (known.pinned, pinned) {
                (false, true) => Some(LogEntry::Pin { manifest, at, by }),
                // It is to stay pinned when the hold is released.
                (true, true) if self.is_only_held(&manifest)? => Some(LogEntry::Pin { manifest, at, by }),
                (true, false) => Some(LogEntry::Unpin { manifest, at, by }),
                _ => None,
            })
        })
    }

    /// Makes the forgotten snapshot `id` one again, by the order of `by`.
    ///
    /// # Errors
    /// When there is none, its data was collected, or the store fails.
    pub fn undelete(&self, id: SnapshotId, by: &str) -> Result<LogPosition, RetentionError> {
        loop {
            let known = self.find(id)?;
            let generation = self.catalog().generation()?;
            if known.forgotten && !self.revive_tree(&known)? {
                return Err(RetentionError::Collected(id));
            }
            let mut removed = false;
            let position = self.note(|at| {
                let known = self.find(id)?;
                // Garbage collection may have undone the revival: then it is repeated.
                removed = known.forgotten && self.catalog().generation()? != generation;
                let entry = LogEntry::Undelete { manifest: known.hash, at, by: short(by) };
                Ok::<_, RetentionError>(Some(entry).filter(|_| known.forgotten && !removed))
            })?;
            if !removed {
                return Ok(position);
            }
        }
    }

    /// Takes the server's clock as right, if it agrees with an administrator's.
    ///
    /// # Errors
    /// When it does not, or the store fails.
    pub fn confirm_clock_with(&self, other: i64) -> Result<LogPosition, RetentionError> {
        let differ = self.time().0.now.abs_diff(other);
        if differ > CLOCKS_DIFFER {
            return Err(RetentionError::Clock(differ / 1000));
        }
        self.confirm_clock()?;
        Ok(self.position())
    }

    fn find(&self, id: SnapshotId) -> Result<Known, RetentionError> {
        self.catalog().known(id)?.ok_or(RetentionError::NoSnapshot(id))
    }
}

/// A text that fits into a log entry.
pub(super) fn short(text: &str) -> String {
    text.chars().take(1000).collect()
}

/// When a snapshot was received, as far as the clock can be believed: not after an
/// administrator confirmed a clock that showed less, with the snapshot here already.
fn received(known: &Known, confirmed: Option<(u64, i64)>) -> i64 {
    match confirmed {
        Some((position, at)) if known.position <= position => known.received.min(at),
        _ => known.received,
    }
}

fn candidate(known: &Known, confirmed: Option<(u64, i64)>) -> Candidate {
    Candidate {
        id: known.id(),
        received: received(known, confirmed),
        sequence: known.sequence,
        pinned: known.pinned,
        partial: known.body().map(|body| body.kind) != Ok(SnapshotKind::Full),
    }
}
