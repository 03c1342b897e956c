//! How a server sums up what agents told it, and what it knows of itself.

use minicbor::{Decode, Encode};

use super::job::{JobResult, Outcome, is_zero};
use super::message::{ServerStatus, is_false};
use crate::id::{MachineName, SnapshotId, VolumeName};

/// A moment in a volume's growth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Size {
    /// When its backup began, in milliseconds since 1970 by the server's clock.
    #[n(0)]
    pub at: i64,
    /// Bytes of content in the volume.
    #[n(1)]
    pub bytes: u64,
    /// Bytes that the store grew by.
    #[n(2)]
    pub stored: u64,
}

/// The last snapshot of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct LastGood {
    /// The snapshot.
    #[n(0)]
    pub id: SnapshotId,
    /// The state of the volume that it holds is of this time or later: when its backup
    /// began, or, if that is not known any more, when it was received. Milliseconds since
    /// 1970 by the server's clock.
    #[n(1)]
    pub at: i64,
    /// Whether it was made with defects.
    #[n(2)]
    #[cbor(default, skip_if = "is_false")]
    pub partial: bool,
}

/// The last time that something failed.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct LastFailure {
    /// When it ended, in milliseconds since 1970 by the server's clock.
    #[n(0)]
    pub at: i64,
    /// How.
    #[n(1)]
    pub outcome: Outcome,
    /// The agent's exit code.
    #[n(2)]
    pub code: u8,
    /// Why, in one line.
    #[n(3)]
    pub message: String,
}

/// The last time that something was done with a volume's snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct LastDone {
    /// When it ended, in milliseconds since 1970 by the server's clock.
    #[n(0)]
    pub at: i64,
    /// How.
    #[n(1)]
    pub outcome: Outcome,
    /// By which machine.
    #[n(2)]
    pub machine: MachineName,
    /// Milliseconds that it took.
    #[n(3)]
    pub duration: u64,
}

/// How a volume of a machine stands on a server.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Standing {
    /// The machine.
    #[n(0)]
    pub source: MachineName,
    /// The volume.
    #[n(1)]
    pub volume: VolumeName,
    /// Whether the configuration says that it is backed up to this server.
    #[n(2)]
    #[cbor(default, skip_if = "is_false")]
    pub declared: bool,
    /// Snapshots that are not forgotten.
    #[n(3)]
    pub snapshots: u64,
    /// The last of them.
    #[n(4)]
    pub last: Option<LastGood>,
    /// What the last good backup came to; none if its record is gone.
    #[n(5)]
    pub result: Option<JobResult>,
    /// Sizes, oldest first; the last is that of the last good backup.
    #[n(6)]
    #[cbor(default, skip_if = "Vec::is_empty")]
    pub trend: Vec<Size>,
    /// Backups that failed since the last good one.
    #[n(7)]
    #[cbor(default, skip_if = "is_zero")]
    pub failures: u64,
    /// The last of those.
    #[n(8)]
    pub failure: Option<LastFailure>,
    /// Since when a backup is under way, if one is.
    #[n(9)]
    pub running: Option<i64>,
    /// The last time that its snapshots were verified.
    #[n(10)]
    pub verified: Option<LastDone>,
    /// The last time that one of them was restored.
    #[n(11)]
    pub restored: Option<LastDone>,
    /// Milliseconds that the last snapshot may be old; none: any age.
    #[n(12)]
    pub max_age: Option<u64>,
    /// When the next backup is due, in milliseconds since 1970; none if nobody planned one.
    #[n(13)]
    pub due: Option<i64>,
}

impl Standing {
    /// Milliseconds that the last snapshot is old at `now`.
    #[must_use]
    pub fn age(&self, now: i64) -> Option<u64> {
        // A clock that was set back makes no snapshot younger than new.
        self.last.map(|last| u64::try_from(now.saturating_sub(last.at)).unwrap_or(0))
    }

    /// Whether it must be backed up and is not, or not lately.
    #[must_use]
    pub fn is_overdue(&self, now: i64) -> bool {
        match (self.age(now), self.max_age) {
            _ if !self.declared => false,
            (None, _) => true,
            (Some(age), Some(most)) => age > most,
            (Some(_), None) => false,
        }
    }
}

/// How far something is that the server does by itself from time to time.
#[derive(Clone, Debug, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct Chore {
    /// Whether it is under way.
    #[n(0)]
    #[cbor(default, skip_if = "is_false")]
    pub running: bool,
    /// When it last ended, in milliseconds since 1970 by the server's clock.
    #[n(1)]
    pub last: Option<i64>,
    /// What it came to: bytes that garbage collection removed, packs that scrub read.
    #[n(2)]
    #[cbor(default, skip_if = "is_zero")]
    pub amount: u64,
    /// Why it failed, if it did.
    #[n(3)]
    pub failure: Option<String>,
}

/// Everything that somebody who looks after backups wants to see at a glance.
#[derive(Clone, Debug, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct Overview {
    /// The server.
    #[n(0)]
    pub server: ServerStatus,
    /// The size of the store's file system in bytes.
    #[n(1)]
    pub space: u64,
    /// Blobs that are damaged and that no backup has brought again.
    #[n(2)]
    #[cbor(default, skip_if = "is_zero")]
    pub damaged: u64,
    /// Why the server's clock is not believed, if it is not.
    #[n(3)]
    pub frozen: Option<String>,
    /// Garbage collection.
    #[n(4)]
    #[cbor(default)]
    pub collection: Chore,
    /// Reading everything again.
    #[n(5)]
    #[cbor(default)]
    pub scrub: Chore,
    /// Milliseconds of the server's uptime since the pack that was read again longest ago was.
    #[n(6)]
    #[cbor(default, skip_if = "is_zero")]
    pub unread: u64,
    /// Bytes of content in all snapshots whose size is known.
    #[n(7)]
    #[cbor(default, skip_if = "is_zero")]
    pub content: u64,
    /// The volumes, those first that the configuration names.
    #[n(8)]
    #[cbor(default, skip_if = "Vec::is_empty")]
    pub volumes: Vec<Standing>,
}

impl Overview {
    /// How often each stored byte is used on average; none while nothing is stored.
    #[must_use]
    pub fn dedup_ratio(&self) -> Option<f64> {
        (self.server.bytes > 0 && self.content > 0).then(|| self.content as f64 / self.server.bytes as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_declared_volume_is_overdue_when_it_is_too_old_or_was_never_backed_up() {
        let mut standing = Standing {
            source: "one".parse().unwrap(),
            volume: "data".parse().unwrap(),
            declared: true,
            snapshots: 0,
            last: None,
            result: None,
            trend: Vec::new(),
            failures: 0,
            failure: None,
            running: None,
            verified: None,
            restored: None,
            max_age: Some(1000),
            due: None,
        };
        assert!(standing.is_overdue(0));
        standing.last = Some(LastGood { id: SnapshotId::from_bytes([0; 16]), at: 5000, partial: false });
        assert!(!standing.is_overdue(6000) && standing.is_overdue(6001));
        assert_eq!(standing.age(4000), Some(0), "a clock that was set back");
        standing.declared = false;
        assert!(!standing.is_overdue(i64::MAX));
    }
}
