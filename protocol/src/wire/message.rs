//! Requests, replies, refusals.

use minicbor::{Decode, Encode};

use super::cids::{Answers, Cids};
use super::job::{JobListing, JobRecord, JobResult, JobStart};
use super::overview::Overview;
use super::upkeep::{GcOrder, GcReport, ScrubReport};
use crate::id::{Cid, JobId, MachineName, ManifestHash, RealmId, SnapshotId, VolumeName};
use crate::log::{LogEntry, Receipt};
use crate::manifest::LogPosition;
use crate::plan::{Frozen, Verdict};

/// What an agent asks. Every request may be repeated without harm.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Request {
    /// First on every connection.
    #[n(0)]
    Hello {
        /// Highest version the agent speaks.
        #[n(0)]
        version: u32,
        /// The realm it believes to talk to.
        #[n(1)]
        realm: RealmId,
    },
    /// Begins a backup of a volume from the asking machine. One session per connection at
    /// a time: an unfinished one is closed.
    #[n(1)]
    Open {
        /// The volume.
        #[n(0)]
        volume: VolumeName,
    },
    /// Which of these blobs are durable here and whole?
    #[n(2)]
    Have {
        /// The session.
        #[n(0)]
        session: u32,
        /// The blobs.
        #[n(1)]
        cids: Cids,
    },
    /// Answered when everything sent so far is durable.
    #[n(3)]
    Flush {
        /// The session.
        #[n(0)]
        session: u32,
        /// Frames sent on each upload stream, by the streams' numbers.
        #[n(1)]
        frames: Vec<u64>,
    },
    /// Makes a tree a snapshot. Repeating it gives the same receipt.
    #[n(4)]
    Commit {
        /// The session.
        #[n(0)]
        session: u32,
        /// The whole manifest.
        #[n(1)]
        #[cbor(with = "minicbor::bytes")]
        manifest: Vec<u8>,
    },
    /// Lists snapshots, newest first.
    #[n(5)]
    Snapshots(#[n(0)] Listing),
    /// The blobs themselves. For readers.
    #[n(6)]
    Fetch {
        /// The blobs; frames come in any order.
        #[n(0)]
        cids: Cids,
    },
    /// Log entries after the first `from`.
    #[n(7)]
    Log {
        /// How many entries the asker already has.
        #[n(0)]
        from: u64,
    },
    /// How the server is.
    #[n(8)]
    Status,
    /// A fetched blob did not match its name. The server looks at its own copy again and
    /// answers whether it agrees.
    #[n(9)]
    Damaged {
        /// The blob.
        #[n(0)]
        cid: Cid,
    },
    /// `vsync.pub` as the server has it, for a machine that has only the recovery kit and
    /// checks the signature itself.
    #[n(10)]
    Registry,
    /// Which of these blobs are durable here and whole? As `Have`, but outside of a backup,
    /// so that nothing is kept for the asker's sake. For readers.
    #[n(11)]
    Holds {
        /// The blobs.
        #[n(0)]
        cids: Cids,
    },
    /// Gives snapshots up. Their data stays for some days, in which `Undelete` brings them
    /// back. For administrators.
    #[n(12)]
    Forget {
        /// The snapshots, at most [`MAX_VERDICTS`](crate::limits::MAX_VERDICTS).
        #[n(0)]
        ids: Vec<SnapshotId>,
    },
    /// Makes a forgotten snapshot one again. For administrators.
    #[n(13)]
    Undelete {
        /// The snapshot.
        #[n(0)]
        id: SnapshotId,
    },
    /// Keeps a snapshot from any policy. For administrators.
    #[n(14)]
    Pin {
        /// The snapshot.
        #[n(0)]
        id: SnapshotId,
    },
    /// Lets policies decide about a snapshot again. For administrators.
    #[n(15)]
    Unpin {
        /// The snapshot.
        #[n(0)]
        id: SnapshotId,
    },
    /// What would be forgotten, and what that would free; changes nothing. For
    /// administrators.
    #[n(16)]
    Plan(#[n(0)] PlanRequest),
    /// Says that the server's clock is right although it leapt. For administrators.
    #[n(17)]
    ConfirmClock {
        /// The administrator's own clock, milliseconds since 1970; the server's must be near.
        #[n(0)]
        now: i64,
    },
    /// The asking machine begins a job. Repeating it on another connection says that the job
    /// is still under way, whatever the server thought.
    #[n(18)]
    BeginJob(#[n(0)] JobStart),
    /// A job of the asking machine ended. Told twice, it keeps what either knew.
    #[n(19)]
    EndJob {
        /// The job.
        #[n(0)]
        id: JobId,
        /// What came of it.
        #[n(1)]
        result: JobResult,
    },
    /// Lists jobs, newest first.
    #[n(20)]
    Jobs(#[n(0)] JobListing),
    /// How the server is and how every volume stands.
    #[n(21)]
    Overview,
    /// Collects garbage now. Answered when it is done. For administrators.
    #[n(22)]
    Collect(#[n(0)] GcOrder),
    /// Reads every byte of the store again. Answered when it is done. For administrators.
    #[n(23)]
    Scrub {
        /// Bytes a second to read at most.
        #[n(0)]
        rate: Option<u64>,
    },
    /// Says that a volume is right although it suddenly changed, so that retention of it goes
    /// on. For administrators.
    #[n(24)]
    Release {
        /// The volume.
        #[n(0)]
        volume: VolumeName,
        /// From this machine only.
        #[n(1)]
        source: Option<MachineName>,
    },
}

/// What to plan.
#[derive(Clone, Debug, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct PlanRequest {
    /// Of this volume only.
    #[n(0)]
    pub volume: Option<VolumeName>,
    /// From this machine only.
    #[n(1)]
    pub source: Option<MachineName>,
    /// As if exactly these were given up; if there are none, what policies say.
    #[n(2)]
    pub ids: Vec<SnapshotId>,
}

/// What would be forgotten.
#[derive(Clone, Debug, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct PlanReport {
    /// Why nothing would be, if the clock cannot be right.
    #[n(0)]
    pub frozen: Option<Frozen>,
    /// Each snapshot's fate, those to be forgotten first; no more than
    /// [`MAX_VERDICTS`](crate::limits::MAX_VERDICTS).
    #[n(1)]
    pub verdicts: Vec<Verdict>,
    /// How many would be forgotten in all.
    #[n(2)]
    pub forgotten: u64,
    /// Bytes that only they need, which garbage collection would free.
    #[n(3)]
    pub bytes: u64,
}

/// Which snapshots to list.
#[derive(Clone, Debug, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct Listing {
    /// Of this volume only.
    #[n(0)]
    pub volume: Option<VolumeName>,
    /// From this machine only.
    #[n(1)]
    pub source: Option<MachineName>,
    /// Whose id begins with these hexadecimal digits.
    #[n(2)]
    pub prefix: Option<String>,
    /// Older than this log index, to read on after a page.
    #[n(3)]
    pub before: Option<u64>,
    /// At most this many; the server may send fewer, none only at the end.
    #[n(4)]
    pub limit: u32,
    /// The forgotten ones whose data is still there, instead of the others.
    #[n(5)]
    #[cbor(default, skip_if = "is_false")]
    pub forgotten: bool,
}

/// What is not set is left out, as programs did that did not know it.
pub(super) const fn is_false(set: &bool) -> bool {
    !*set
}

/// One snapshot as the server lists it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct SnapshotRecord {
    /// Its id.
    #[n(0)]
    pub id: SnapshotId,
    /// Its place in the log, from 1.
    #[n(1)]
    pub index: u64,
    /// When it was accepted, in milliseconds since 1970 by the server's clock.
    #[n(2)]
    pub received: i64,
    /// The whole manifest.
    #[n(3)]
    #[cbor(with = "minicbor::bytes")]
    pub manifest: Vec<u8>,
    /// Whether it is pinned.
    #[n(4)]
    #[cbor(default, skip_if = "is_false")]
    pub pinned: bool,
    /// When it was forgotten, in milliseconds since 1970 by the server's clock, if it was.
    #[n(5)]
    pub forgotten: Option<i64>,
}

/// How a server is.
#[derive(Clone, Debug, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct ServerStatus {
    /// The server's program version.
    #[n(0)]
    pub version: String,
    /// The server's clock, milliseconds since 1970.
    #[n(1)]
    pub now: i64,
    /// Snapshots.
    #[n(2)]
    pub snapshots: u64,
    /// Blobs.
    #[n(3)]
    pub blobs: u64,
    /// Packs.
    #[n(4)]
    pub packs: u64,
    /// Bytes of all packs.
    #[n(5)]
    pub bytes: u64,
    /// Free bytes of the store's file system.
    #[n(6)]
    pub free: u64,
    /// Why the store takes no writes, if it does not.
    #[n(7)]
    pub read_only: Option<String>,
    /// What else an operator must look at: frozen retention, damage, a stopped collection.
    #[n(8)]
    #[cbor(default, skip_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// What a server answers.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Reply {
    /// No, and why.
    #[n(0)]
    Refused(#[n(0)] Refusal),
    /// To `Hello`.
    #[n(1)]
    Hello {
        /// The version both will speak.
        #[n(0)]
        version: u32,
        /// The server's clock, milliseconds since 1970.
        #[n(1)]
        now: i64,
        /// Where its log stands.
        #[n(2)]
        log: LogPosition,
    },
    /// To `Open`.
    #[n(2)]
    Opened {
        /// Names the session on this connection.
        #[n(0)]
        session: u32,
        /// The last snapshot of this volume from this machine: its sequence number and
        /// its manifest.
        #[n(1)]
        last: Option<(u64, ManifestHash)>,
    },
    /// To `Have` and `Holds`.
    #[n(3)]
    Have(#[n(0)] Answers),
    /// To `Flush`: all of it is durable.
    #[n(4)]
    Flushed,
    /// To `Commit`: the snapshot exists.
    #[n(5)]
    Committed(#[n(0)] Receipt),
    /// To `Commit`: refused, because these blobs are not there; send them and try again.
    #[n(6)]
    Missing(#[n(0)] Cids),
    /// To `Snapshots`.
    #[n(7)]
    Snapshots(#[n(0)] Vec<SnapshotRecord>),
    /// To `Fetch`: as many frames follow as blobs were asked for.
    #[n(8)]
    Fetching,
    /// To `Log`: entries in order, as many as fit; none at the end.
    #[n(9)]
    Log(#[n(0)] Vec<LogEntry>),
    /// To `Status`.
    #[n(10)]
    Status(#[n(0)] Box<ServerStatus>),
    /// To `Damaged`: whether the server's copy is indeed not what its name says.
    #[n(11)]
    Checked {
        /// The copy is damaged or gone.
        #[n(0)]
        damaged: bool,
    },
    /// To `Registry`: the file.
    #[n(12)]
    Registry(
        #[n(0)]
        #[cbor(with = "minicbor::bytes")]
        Vec<u8>,
    ),
    /// To `Forget`, `Undelete`, `Pin`, `Unpin`, `Release`, `ConfirmClock`: done, and where the log
    /// stands. What was so already needs no entry.
    #[n(13)]
    Done(#[n(0)] LogPosition),
    /// To `Plan`.
    #[n(14)]
    Plan(#[n(0)] Box<PlanReport>),
    /// To `BeginJob` and `EndJob`.
    #[n(15)]
    Noted,
    /// To `Jobs`: as many as fit; none at the end.
    #[n(16)]
    Jobs(#[n(0)] Vec<JobRecord>),
    /// To `Overview`.
    #[n(17)]
    Overview(#[n(0)] Box<Overview>),
    /// To `Collect`.
    #[n(18)]
    Collected(#[n(0)] GcReport),
    /// To `Scrub`.
    #[n(19)]
    Scrubbed(#[n(0)] Box<ScrubReport>),
}

/// A refusal: a number for programs, words for people.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Refusal {
    /// For programs.
    #[n(0)]
    pub code: RefusalCode,
    /// For people; names the object.
    #[n(1)]
    pub message: String,
}

macro_rules! refusal_codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal,)*) => {
        /// Why a request is refused. Numbers are never reused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
        #[cbor(index_only)]
        pub enum RefusalCode {
            $($(#[$doc])* #[n($code)] $name,)*
        }

        impl RefusalCode {
            /// The number that it has on the wire.
            #[must_use]
            pub const fn number(self) -> u32 {
                match self {
                    $(Self::$name => $code,)*
                }
            }
        }
    };
}

refusal_codes! {
    /// No common protocol version.
    Version = 1,
    /// The server keeps another realm.
    WrongRealm = 2,
    /// The machine may not do that.
    NotAuthorised = 3,
    /// No such session on this connection; open one again.
    NoSession = 4,
    /// The request breaks the protocol or a limit.
    Malformed = 5,
    /// Bytes sent under a name that is not theirs.
    WrongName = 6,
    /// The manifest does not follow the last one of its sequence; somebody else committed.
    OutOfSequence = 7,
    /// The manifest's signature or content is not acceptable.
    BadManifest = 8,
    /// Too little space; the store takes no more data.
    NoSpace = 9,
    /// The store takes no writes since an error; an operator must look.
    ReadOnly = 10,
    /// The server is shutting down; try again later.
    Draining = 11,
    /// The store failed; the server's log says more.
    Store = 12,
    /// There is no such snapshot, or not in that state.
    NoSnapshot = 13,
    /// The snapshot is protected: pinned, or too young to be forgotten.
    Protected = 14,
    /// The snapshot's data is gone.
    Collected = 15,
    /// The clocks of server and administrator disagree.
    Clock = 16,
    /// The machine or the volume has used up its quota.
    Quota = 17,
    /// Something is damaged, so that nothing may be removed.
    Damaged = 18,
    /// The machine has no such job.
    NoJob = 21,
    /// Too many jobs are under way on this connection.
    TooManyJobs = 22,
}
