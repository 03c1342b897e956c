//! What agents tell a server of their work.
//!
//! A job says nothing that the server has to believe: it is for people who look after
//! backups. Texts in it come from agents and end up on terminals and pages, so they are
//! short, one line, and without characters that steer a terminal.

use minicbor::{Decode, Encode};

use super::plain::is_plain;
use crate::id::{JobId, MachineName, SnapshotId, VolumeName};
use crate::limits::{MAX_JOB_MESSAGE, MAX_JOB_VERSION};

/// What an agent does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum JobKind {
    /// Makes a snapshot.
    #[n(0)]
    Backup,
    /// Brings one back.
    #[n(1)]
    Restore,
    /// Checks some.
    #[n(2)]
    Verify,
}

impl JobKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Backup, Self::Restore, Self::Verify];

    /// The kind in a word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Restore => "restore",
            Self::Verify => "verify",
        }
    }
}

/// How a job ended. Later ones are graver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum Outcome {
    /// Everything was done.
    #[n(0)]
    Success,
    /// Done, with defects that were listed.
    #[n(1)]
    Defects,
    /// Stopped by a person, or never ended as far as the server knows.
    #[n(2)]
    Interrupted,
    /// Nothing came of it.
    #[n(3)]
    Failed,
}

impl Outcome {
    /// The outcome in a word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Defects => "defects",
            Self::Interrupted => "interrupted",
            Self::Failed => "failed",
        }
    }
}

/// The class of a failure in a word, by the agent's exit code.
#[must_use]
pub const fn reason(code: u8) -> &'static str {
    match code {
        0 => "none",
        2 => "usage",
        3 => "defects",
        10 => "unreachable",
        11 => "not-found",
        12 => "not-authorised",
        13 => "damage",
        14 => "rolled-back",
        20 => "hook",
        21 => "no-space",
        22 => "container",
        130 => "interrupted",
        _ => "failed",
    }
}

/// What an agent begins to do.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct JobStart {
    /// Chosen by the agent at random.
    #[n(0)]
    pub id: JobId,
    /// What it is.
    #[n(1)]
    pub kind: JobKind,
    /// The volume.
    #[n(2)]
    pub volume: VolumeName,
    /// The machine whose volume it is; none: the asking one.
    #[n(3)]
    pub source: Option<MachineName>,
    /// The agent's program version.
    #[n(4)]
    pub version: String,
}

/// What came of a job.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct JobResult {
    /// How it ended.
    #[n(0)]
    pub outcome: Outcome,
    /// The agent's exit code.
    #[n(1)]
    #[cbor(default, skip_if = "is_zero_byte")]
    pub code: u8,
    /// What failed, in one line; empty if nothing did.
    #[n(2)]
    #[cbor(default, skip_if = "String::is_empty")]
    pub message: String,
    /// Bytes read from the volume; when restoring, bytes received from the server.
    #[n(3)]
    #[cbor(default, skip_if = "is_zero")]
    pub read: u64,
    /// Bytes sent to the server; when restoring, bytes written.
    #[n(4)]
    #[cbor(default, skip_if = "is_zero")]
    pub sent: u64,
    /// Bytes that the store grew by.
    #[n(5)]
    #[cbor(default, skip_if = "is_zero")]
    pub stored: u64,
    /// Bytes of content in the volume.
    #[n(6)]
    #[cbor(default, skip_if = "is_zero")]
    pub size: u64,
    /// Files and everything else with a name in it.
    #[n(7)]
    #[cbor(default, skip_if = "is_zero")]
    pub files: u64,
    /// Entries that are not exact.
    #[n(8)]
    #[cbor(default, skip_if = "is_zero")]
    pub defects: u64,
    /// Milliseconds that the agent worked on it.
    #[n(9)]
    #[cbor(default, skip_if = "is_zero")]
    pub duration: u64,
    /// Milliseconds for which applications were paused or stopped for it; none if they were not.
    #[n(10)]
    pub held: Option<u64>,
    /// The snapshot that was made, restored or checked.
    #[n(11)]
    pub snapshot: Option<SnapshotId>,
}

impl JobResult {
    /// A result without any figures.
    #[must_use]
    pub const fn new(outcome: Outcome) -> Self {
        Self {
            outcome,
            code: 0,
            message: String::new(),
            read: 0,
            sent: 0,
            stored: 0,
            size: 0,
            files: 0,
            defects: 0,
            duration: 0,
            held: None,
            snapshot: None,
        }
    }

    /// What is known when a job's end was told as `self` and is told once more: by a helper
    /// and by the command that started it, or by an agent that heard no answer. What went
    /// wrong for either did.
    #[must_use]
    pub fn and(self, later: Self) -> Self {
        let graver = if later.outcome > self.outcome { &later } else { &self };
        let (outcome, code, message) = (graver.outcome, graver.code, graver.message.clone());
        Self {
            outcome,
            code,
            message,
            read: self.read.max(later.read),
            sent: self.sent.max(later.sent),
            stored: self.stored.max(later.stored),
            size: self.size.max(later.size),
            files: self.files.max(later.files),
            defects: self.defects.max(later.defects),
            duration: self.duration.max(later.duration),
            held: self.held.max(later.held),
            snapshot: self.snapshot.or(later.snapshot),
        }
    }
}

/// Not set is left out.
pub(super) const fn is_zero(number: &u64) -> bool {
    *number == 0
}

const fn is_zero_byte(number: &u8) -> bool {
    *number == 0
}

impl JobStart {
    /// Says what is wrong with it, if anything is.
    ///
    /// # Errors
    /// When a text is too long or not fit to be shown.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.version.len() > MAX_JOB_VERSION || !is_plain(&self.version) {
            return Err("the version of a job's program is too long or not plain text");
        }
        Ok(())
    }
}

impl JobResult {
    /// Says what is wrong with it, if anything is.
    ///
    /// # Errors
    /// When a text is too long or not fit to be shown, or a number beyond all reason.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.message.len() > MAX_JOB_MESSAGE || !is_plain(&self.message) {
            return Err("the reason of a job's end is too long or not plain text");
        }
        let numbers = [
            self.read,
            self.sent,
            self.stored,
            self.size,
            self.files,
            self.defects,
            self.duration,
            self.held.unwrap_or(0),
        ];
        if numbers.iter().any(|&number| number > MOST) {
            return Err("a number in a job's result is too large");
        }
        Ok(())
    }
}

/// An exbibyte: no volume has more, and it fits into the signed numbers of a database.
const MOST: u64 = 1 << 60;

/// A job as the server has recorded it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct JobRecord {
    /// Its place in the server's record; later jobs have higher ones.
    #[n(0)]
    pub number: u64,
    /// Its id.
    #[n(1)]
    pub id: JobId,
    /// What it is.
    #[n(2)]
    pub kind: JobKind,
    /// The machine that did it.
    #[n(3)]
    pub machine: MachineName,
    /// The machine whose volume it is.
    #[n(4)]
    pub source: MachineName,
    /// The volume.
    #[n(5)]
    pub volume: VolumeName,
    /// When it began, in milliseconds since 1970 by the server's clock.
    #[n(6)]
    pub started: i64,
    /// When it ended by the same clock; none if it is under way.
    #[n(7)]
    pub ended: Option<i64>,
    /// What came of it; none if it is under way.
    #[n(8)]
    pub result: Option<JobResult>,
    /// The agent's program version.
    #[n(9)]
    pub version: String,
}

/// Which jobs to list, newest first. A machine that only writes is told of its own.
#[derive(Clone, Debug, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct JobListing {
    /// Of this volume only.
    #[n(0)]
    pub volume: Option<VolumeName>,
    /// About this machine's volumes only.
    #[n(1)]
    pub source: Option<MachineName>,
    /// Of this kind only.
    #[n(2)]
    pub kind: Option<JobKind>,
    /// With a lower number than this, to read on after a page.
    #[n(3)]
    pub before: Option<u64>,
    /// At most this many; the server may send fewer, none only at the end.
    #[n(4)]
    pub limit: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_bounded() {
        let result =
            |message: &str, read| JobResult { message: message.into(), read, ..JobResult::new(Outcome::Failed) };
        assert_eq!(result(&"x".repeat(MAX_JOB_MESSAGE), MOST).check(), Ok(()));
        assert!(result(&"x".repeat(MAX_JOB_MESSAGE + 1), 0).check().is_err());
        assert!(result("\u{1b}", 0).check().is_err());
        assert!(result("", MOST + 1).check().is_err());
        let held = JobResult { held: Some(u64::MAX), ..JobResult::new(Outcome::Success) };
        assert!(held.check().is_err());
    }

    #[test]
    fn an_end_told_twice_keeps_what_either_knew() {
        let helper = JobResult {
            read: 10,
            sent: 5,
            snapshot: Some(SnapshotId::from_bytes([1; 16])),
            ..JobResult::new(Outcome::Success)
        };
        let outer = JobResult {
            code: 22,
            message: "db was not started".into(),
            held: Some(70),
            ..JobResult::new(Outcome::Defects)
        };
        let both = helper.clone().and(outer.clone());
        assert_eq!((both.outcome, both.code, both.read, both.held), (Outcome::Defects, 22, 10, Some(70)));
        assert_eq!(both.snapshot, helper.snapshot);
        assert_eq!(both.clone().and(outer), both, "once more changes nothing");
    }
}
