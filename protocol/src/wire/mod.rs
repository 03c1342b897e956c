//! What agent and server say to each other, over QUIC with ALPN [`ALPN`].
//!
//! Each request opens a bidirectional stream, sends one message and finishes; the reply is
//! one message, after [`Reply::Fetching`] followed by frames. A message is
//! `length u32 ‖ CBOR`, a frame `length u32 ‖ cid 32 ‖ blob`; integers are little-endian.
//! Uploads flow on unidirectional streams that begin with an [`UploadHead`].

pub mod cids;
pub mod job;
pub mod message;
pub mod overview;
pub mod plain;
pub mod spki;
pub mod upkeep;

pub use cids::{Answers, Cids};
pub use job::{JobKind, JobListing, JobRecord, JobResult, JobStart, Outcome};
pub use message::{
    Listing, PlanReport, PlanRequest, Refusal, RefusalCode, Reply, Request, ServerStatus, SnapshotRecord,
};
pub use overview::{Overview, Standing};
pub use upkeep::{Affected, GcOrder, GcReport, ScrubReport};

use crate::encode_into;
use crate::id::Cid;
use crate::limits::{MAX_BLOB_LEN, MAX_MESSAGE_LEN, MAX_UPLOAD_STREAMS};

/// The protocol's name in the TLS handshake.
pub const ALPN: &[u8] = b"vsync/1";

/// Highest protocol version spoken, sent in [`Request::Hello`].
pub const VERSION: u32 = 1;

/// Name that a client puts into the TLS handshake; servers are told apart by their keys.
pub const SERVER_NAME: &str = "vsync";

/// Bytes in front of a message.
pub const MESSAGE_HEAD_LEN: usize = 4;

/// Encodes a message with its length in front.
#[must_use]
pub fn encode_message<T: minicbor::Encode<()>>(message: &T) -> Vec<u8> {
    let mut bytes = vec![0; MESSAGE_HEAD_LEN];
    encode_into(message, &mut bytes);
    let len = (bytes.len() - MESSAGE_HEAD_LEN) as u32;
    bytes[..MESSAGE_HEAD_LEN].copy_from_slice(&len.to_le_bytes());
    bytes
}

/// Length of the message that follows `head`; `None` when it is over [`MAX_MESSAGE_LEN`].
#[must_use]
pub fn message_len(head: [u8; MESSAGE_HEAD_LEN]) -> Option<usize> {
    Some(u32::from_le_bytes(head) as usize).filter(|&len| len <= MAX_MESSAGE_LEN)
}

/// Bytes in front of a blob in a frame.
pub const FRAME_HEAD_LEN: usize = 4 + Cid::LEN;

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    /// Bytes of the blob that follows. 0 in a reply to `Fetch`: the server does not have it.
    pub len: usize,
    /// The blob's name.
    pub cid: Cid,
}

impl FrameHead {
    /// The head's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; FRAME_HEAD_LEN] {
        let mut bytes = [0; FRAME_HEAD_LEN];
        bytes[..4].copy_from_slice(&(self.len as u32).to_le_bytes());
        bytes[4..].copy_from_slice(self.cid.as_bytes());
        bytes
    }

    /// Reads a head; `None` when the blob would be longer than any may be.
    #[must_use]
    pub fn decode(bytes: &[u8; FRAME_HEAD_LEN]) -> Option<Self> {
        let (len, cid) = bytes.split_first_chunk::<4>()?;
        let len = u32::from_le_bytes(*len) as usize;
        (len <= MAX_BLOB_LEN).then_some(Self { len, cid: Cid::from_slice(cid)? })
    }
}

/// Bytes at the start of an upload stream.
pub const UPLOAD_HEAD_LEN: usize = 8;

/// Starts an upload stream: `session u32 ‖ stream u32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UploadHead {
    /// The session, as the reply to `Open` named it.
    pub session: u32,
    /// Which of the session's streams this is, from 0, below [`MAX_UPLOAD_STREAMS`].
    pub stream: u32,
}

impl UploadHead {
    /// The head's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; UPLOAD_HEAD_LEN] {
        let mut bytes = [0; UPLOAD_HEAD_LEN];
        bytes[..4].copy_from_slice(&self.session.to_le_bytes());
        bytes[4..].copy_from_slice(&self.stream.to_le_bytes());
        bytes
    }

    /// Reads a head; `None` when the stream's number is out of range.
    #[must_use]
    pub fn decode(bytes: [u8; UPLOAD_HEAD_LEN]) -> Option<Self> {
        let half = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Some(Self { session: half(0), stream: half(4) }).filter(|head| head.stream < MAX_UPLOAD_STREAMS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{JobId, LogHead, ManifestHash, RealmId, SnapshotId};
    use crate::log::{GENESIS, LogEntry, Receipt};
    use crate::manifest::LogPosition;
    use crate::plan::{Fate, Keep, Lapse, Rule, Verdict};

    /// The session that `docs/protocol.md` shows, byte by byte.
    #[test]
    fn golden_session() {
        let (realm, cid) = (RealmId::from_bytes([1; 16]), Cid::of(b"blob"));
        let (volume, manifest) = ("data".parse().unwrap(), ManifestHash::from_bytes([2; 32]));
        let log = LogPosition { index: 1, head: LogHead::from_bytes([3; 32]) };
        let receipt = Receipt { realm, manifest, log, at: 1_795_000_000_000, signature: [4; 64] };
        let id = SnapshotId::from_bytes([2; 16]);
        let gone = Fate::Forget(vec![Lapse::TooOld, Lapse::Beyond(Rule::Last)]);
        let kept = Fate::Keep(vec![Keep::Pinned, Keep::Rule(Rule::Daily)]);
        let verdicts = [gone, kept].map(|fate| Verdict { id, fate }).to_vec();
        let plan = PlanReport { frozen: None, verdicts, forgotten: 1, bytes: 4096 };
        let job = JobId::from_bytes([5; 16]);
        let (start, result, record) = recorded(job, id);
        let overview = summed_up(&record, id);
        let request = |request: Request| encode_message(&request);
        let reply = |reply: Reply| encode_message(&reply);
        let found = [
            ("Hello", request(Request::Hello { version: VERSION, realm })),
            (
                "Hello reply",
                reply(Reply::Hello {
                    version: 1,
                    now: 1_795_000_000_000,
                    log: LogPosition { index: 0, head: GENESIS },
                }),
            ),
            ("Open", request(Request::Open { volume })),
            ("Opened, first snapshot", reply(Reply::Opened { session: 1, last: None })),
            ("Opened, later snapshot", reply(Reply::Opened { session: 1, last: Some((7, manifest)) })),
            ("Have", request(Request::Have { session: 1, cids: Cids::new(vec![cid]) })),
            ("Have reply, no", reply(Reply::Have([false].into_iter().collect()))),
            ("upload stream head", UploadHead { session: 1, stream: 0 }.encode().to_vec()),
            ("frame head", FrameHead { len: 4, cid }.encode().to_vec()),
            ("Flush", request(Request::Flush { session: 1, frames: vec![1, 0, 0, 0] })),
            ("Flushed", reply(Reply::Flushed)),
            ("Commit", request(Request::Commit { session: 1, manifest: b"manifest".to_vec() })),
            ("Missing", reply(Reply::Missing(Cids::new(vec![cid])))),
            ("Committed", reply(Reply::Committed(receipt))),
            (
                "Snapshots",
                request(Request::Snapshots(Listing { volume: "data".parse().ok(), limit: 100, ..Listing::default() })),
            ),
            (
                "Snapshots reply",
                reply(Reply::Snapshots(vec![SnapshotRecord {
                    id: SnapshotId::from_bytes([2; 16]),
                    index: 1,
                    received: 1_795_000_000_000,
                    manifest: b"manifest".to_vec(),
                    pinned: false,
                    forgotten: None,
                }])),
            ),
            ("Fetch", request(Request::Fetch { cids: Cids::new(vec![cid]) })),
            ("Fetching", reply(Reply::Fetching)),
            ("Log", request(Request::Log { from: 0 })),
            ("Log reply", reply(Reply::Log(vec![LogEntry::Commit { manifest, at: 1_795_000_000_000 }]))),
            ("Status", request(Request::Status)),
            ("Damaged", request(Request::Damaged { cid })),
            ("Checked", reply(Reply::Checked { damaged: true })),
            (
                "Refused",
                reply(Reply::Refused(Refusal { code: RefusalCode::NoSession, message: "no session 1 is open".into() })),
            ),
            ("Snapshots, forgotten", request(Request::Snapshots(Listing { forgotten: true, ..Listing::default() }))),
            ("Forget", request(Request::Forget { ids: vec![id] })),
            ("Undelete", request(Request::Undelete { id })),
            ("Pin", request(Request::Pin { id })),
            ("Unpin", request(Request::Unpin { id })),
            ("Done", reply(Reply::Done(log))),
            ("Plan", request(Request::Plan(PlanRequest { volume: "data".parse().ok(), ..PlanRequest::default() }))),
            ("Plan reply", reply(Reply::Plan(Box::new(plan)))),
            ("ConfirmClock", request(Request::ConfirmClock { now: 1_795_000_000_000 })),
            ("BeginJob", request(Request::BeginJob(start))),
            ("EndJob", request(Request::EndJob { id: job, result: result.clone() })),
            ("EndJob, no figures", request(Request::EndJob { id: job, result: JobResult::new(Outcome::Success) })),
            ("Noted", reply(Reply::Noted)),
            ("Jobs", request(Request::Jobs(JobListing { limit: 100, ..JobListing::default() }))),
            ("Jobs reply", reply(Reply::Jobs(vec![record]))),
            ("Overview", request(Request::Overview)),
            ("Overview reply", reply(Reply::Overview(Box::new(overview)))),
            ("Collect", request(Request::Collect(GcOrder { dry_run: true, ..GcOrder::default() }))),
            ("Collected", reply(Reply::Collected(GcReport { round: 3, removed_bytes: 4096, ..GcReport::default() }))),
            ("Scrub", request(Request::Scrub { rate: Some(1 << 20) })),
            ("Scrubbed", reply(Reply::Scrubbed(Box::new(ScrubReport { packs: 7, ..ScrubReport::default() })))),
            ("Release", request(Request::Release { volume: "data".parse().unwrap(), source: None })),
        ];
        crate::testing::assert_golden(&found, include_str!("session.golden"));
    }

    fn recorded(id: JobId, snapshot: SnapshotId) -> (JobStart, JobResult, JobRecord) {
        let [volume, machine] = ["data", "one"];
        let start = JobStart {
            id,
            kind: JobKind::Backup,
            volume: volume.parse().unwrap(),
            source: None,
            version: "0.1.0".into(),
        };
        let result = JobResult {
            code: 3,
            message: "a file changed".into(),
            read: 1,
            sent: 2,
            stored: 3,
            size: 4,
            files: 5,
            defects: 6,
            duration: 7,
            held: Some(8),
            snapshot: Some(snapshot),
            ..JobResult::new(Outcome::Defects)
        };
        let record = JobRecord {
            number: 1,
            id,
            kind: JobKind::Backup,
            machine: machine.parse().unwrap(),
            source: machine.parse().unwrap(),
            volume: volume.parse().unwrap(),
            started: 1_795_000_000_000,
            ended: Some(1_795_000_000_007),
            result: Some(result.clone()),
            version: "0.1.0".into(),
        };
        (start, result, record)
    }

    fn summed_up(record: &JobRecord, id: SnapshotId) -> Overview {
        let done =
            Some(overview::LastDone { at: 2, outcome: Outcome::Success, machine: record.machine.clone(), duration: 3 });
        let standing = Standing {
            source: record.source.clone(),
            volume: record.volume.clone(),
            declared: true,
            snapshots: 1,
            last: Some(overview::LastGood { id, at: 1_795_000_000_000, partial: true }),
            result: record.result.clone(),
            trend: vec![overview::Size { at: 1, bytes: 2, stored: 3 }],
            failures: 1,
            failure: Some(overview::LastFailure { at: 1, outcome: Outcome::Failed, code: 20, message: "hook".into() }),
            running: Some(1),
            verified: done.clone(),
            restored: done,
            max_age: Some(1000),
            due: Some(1_795_000_000_009),
        };
        Overview {
            server: ServerStatus { version: "0.1.0".into(), ..ServerStatus::default() },
            space: 100,
            damaged: 1,
            frozen: Some("leapt".into()),
            collection: overview::Chore { running: true, last: Some(1), amount: 2, failure: Some("stopped".into()) },
            scrub: overview::Chore::default(),
            unread: 3,
            content: 4,
            volumes: vec![standing],
        }
    }

    #[test]
    fn lengths_are_checked_at_the_limit() {
        let head = |len: usize| FrameHead { len, cid: Cid::of(b"x") }.encode();
        assert!(FrameHead::decode(&head(MAX_BLOB_LEN)).is_some());
        assert!(FrameHead::decode(&head(MAX_BLOB_LEN + 1)).is_none());
        assert_eq!(message_len((MAX_MESSAGE_LEN as u32).to_le_bytes()), Some(MAX_MESSAGE_LEN));
        assert_eq!(message_len((MAX_MESSAGE_LEN as u32 + 1).to_le_bytes()), None);
        let upload = UploadHead { session: 3, stream: MAX_UPLOAD_STREAMS - 1 };
        assert_eq!(UploadHead::decode(upload.encode()), Some(upload));
        assert!(UploadHead::decode(UploadHead { session: 3, stream: MAX_UPLOAD_STREAMS }.encode()).is_none());
    }

    #[test]
    fn a_message_begins_with_its_length() {
        let bytes = encode_message(&Request::Status);
        assert_eq!(bytes.len() - 4, message_len([bytes[0], bytes[1], bytes[2], bytes[3]]).unwrap());
        assert_eq!(minicbor::decode::<Request>(&bytes[4..]).unwrap(), Request::Status);
    }
}
