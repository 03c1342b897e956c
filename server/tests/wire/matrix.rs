//! Every verb of the protocol asked by every kind of machine (A03, A05).

use vsync_protocol::id::{Cid, JobId, SnapshotId};
use vsync_protocol::manifest::snapshot_id;
use vsync_protocol::wire::{
    Cids, GcOrder, JobKind, JobListing, JobResult, JobStart, Listing, Outcome, PlanRequest, RefusalCode, Reply,
    Request, VERSION, encode_message,
};
use vsync_server::Member;

use crate::bed::{ADMIN, Bed, Client, PRODUCTION, REALM, STRANGER, WRITER, key, public, refused, root, tree};

/// Keys of a machine that is itself a server, and of one that backs up a volume of the same name.
const ANNEX: u8 = 20;
const OTHER: u8 = 21;

/// Those who may connect, in the order of the table's columns.
const ROLES: [(&str, u8); 5] =
    [("writer", WRITER), ("source", PRODUCTION), ("server", ANNEX), ("other source", OTHER), ("administrator", ADMIN)];

/// What each of [`ROLES`] is answered: the reply's name, or that of the refusal's code.
type Row = (&'static str, [&'static str; ROLES.len()]);

const NO: &str = "NotAuthorised";

const JOB: JobId = JobId::from_bytes([8; 16]);

/// The snapshot that these ask about is young, whole and of "source".
const TABLE: [Row; 25] = [
    ("Hello", ["Hello"; 5]),
    ("Open", ["Opened"; 5]),
    ("Have", ["Have"; 5]),
    ("Flush", ["Flushed"; 5]),
    ("Commit", ["BadManifest", "Committed", "BadManifest", "BadManifest", "BadManifest"]),
    ("Snapshots", ["Snapshots 0", "Snapshots 1", "Snapshots 1", "Snapshots 1", "Snapshots 1"]),
    ("Fetch", [NO, "Fetching", "Fetching", "Fetching", "Fetching"]),
    ("Log", ["Log"; 5]),
    ("Status", ["Status"; 5]),
    ("Damaged", ["Checked"; 5]),
    ("Registry", ["Registry"; 5]),
    ("Holds", [NO, "Have", "Have", "Have", "Have"]),
    ("Forget", [NO, NO, NO, NO, "Protected"]),
    ("Undelete", [NO, NO, NO, NO, "Done"]),
    ("Pin", [NO, NO, NO, NO, "Done"]),
    ("Unpin", [NO, NO, NO, NO, "Done"]),
    ("Plan", [NO, NO, NO, NO, "Plan"]),
    ("ConfirmClock", [NO, NO, NO, NO, "Clock"]),
    ("BeginJob", ["Noted"; 5]),
    ("EndJob", ["NoJob"; 5]),
    ("Jobs", ["Jobs"; 5]),
    ("Overview", ["Overview"; 5]),
    ("Collect", [NO, NO, NO, NO, "Collected"]),
    ("Scrub", [NO, NO, NO, NO, "Scrubbed"]),
    ("Release", [NO, NO, NO, NO, "NoSnapshot"]),
];

/// The table's name of a request. A new verb does not compile until it has one, and has no
/// place in the table until somebody has decided who may ask it.
const fn verb(request: &Request) -> &'static str {
    match request {
        Request::Hello { .. } => "Hello",
        Request::Open { .. } => "Open",
        Request::Have { .. } => "Have",
        Request::Flush { .. } => "Flush",
        Request::Commit { .. } => "Commit",
        Request::Snapshots(_) => "Snapshots",
        Request::Fetch { .. } => "Fetch",
        Request::Log { .. } => "Log",
        Request::Status => "Status",
        Request::Damaged { .. } => "Damaged",
        Request::Registry => "Registry",
        Request::Holds { .. } => "Holds",
        Request::Forget { .. } => "Forget",
        Request::Undelete { .. } => "Undelete",
        Request::Pin { .. } => "Pin",
        Request::Unpin { .. } => "Unpin",
        Request::Plan(_) => "Plan",
        Request::ConfirmClock { .. } => "ConfirmClock",
        Request::BeginJob(_) => "BeginJob",
        Request::EndJob { .. } => "EndJob",
        Request::Jobs(_) => "Jobs",
        Request::Overview => "Overview",
        Request::Collect(_) => "Collect",
        Request::Scrub { .. } => "Scrub",
        Request::Release { .. } => "Release",
    }
}

/// What there is to ask about.
struct Scene {
    bed: Bed,
    manifest: Vec<u8>,
    chunk: Cid,
}

impl Scene {
    async fn new() -> Self {
        let bed = Bed::new();
        for (name, seed) in [("annex", ANNEX), ("other", OTHER)] {
            let member = Member { name: name.parse().unwrap(), may_read: true, may_admin: false };
            bed.members.lock().unwrap().insert(public(&key(seed)), member);
        }
        std::fs::write(bed.registry(), "a registry\n").unwrap();
        let client = bed.open("data").await;
        let blobs = tree(1, 4, 100);
        client.store(&blobs).await;
        let manifest = client.manifest("data", "production", root(&blobs));
        assert!(matches!(client.commit(manifest.clone()).await, Reply::Committed(_)));
        Self { bed, manifest, chunk: Cid::of(&blobs[0]) }
    }

    /// Each verb once, in the order of the table.
    fn requests(&self, session: u32) -> Vec<Request> {
        let id: SnapshotId = snapshot_id(&self.manifest);
        let cids = || Cids::new(vec![self.chunk]);
        vec![
            Request::Hello { version: VERSION, realm: REALM },
            Request::Open { volume: "data".parse().unwrap() },
            Request::Have { session, cids: cids() },
            Request::Flush { session, frames: vec![] },
            Request::Commit { session, manifest: self.manifest.clone() },
            Request::Snapshots(Listing { limit: 10, ..Listing::default() }),
            Request::Fetch { cids: cids() },
            Request::Log { from: 0 },
            Request::Status,
            Request::Damaged { cid: self.chunk },
            Request::Registry,
            Request::Holds { cids: cids() },
            Request::Forget { ids: vec![id] },
            Request::Undelete { id },
            Request::Pin { id },
            Request::Unpin { id },
            Request::Plan(PlanRequest::default()),
            Request::ConfirmClock { now: 0 },
            Request::BeginJob(JobStart {
                id: JOB,
                kind: JobKind::Backup,
                volume: "data".parse().unwrap(),
                source: None,
                version: "0.1.0".to_owned(),
            }),
            Request::EndJob { id: JobId::from_bytes([9; 16]), result: JobResult::new(Outcome::Success) },
            Request::Jobs(JobListing { limit: 10, ..JobListing::default() }),
            Request::Overview,
            Request::Collect(GcOrder { dry_run: true, ..GcOrder::default() }),
            Request::Scrub { rate: None },
            Request::Release { volume: "data".parse().unwrap(), source: None },
        ]
    }

    /// A machine with an open session for a volume named as that of the snapshot.
    async fn client(&self, seed: u8) -> Client {
        let mut client = self.bed.connect(seed).await.unwrap();
        client.hello().await;
        client.open("data").await;
        client
    }
}

/// The name of a reply as the table has it.
fn name(reply: &Reply) -> String {
    match reply {
        Reply::Refused(refusal) => format!("{:?}", refusal.code),
        Reply::Snapshots(list) => format!("Snapshots {}", list.len()),
        reply => {
            let name = format!("{reply:?}");
            name.split(['(', ' ', '{']).next().unwrap().to_owned()
        }
    }
}

#[tokio::test]
async fn every_verb_is_answered_as_the_table_says() {
    let scene = Scene::new().await;
    let asked: Vec<&str> = scene.requests(0).iter().map(verb).collect();
    assert_eq!(asked, TABLE.map(|(verb, _)| verb), "the table has each verb once");
    for (column, (role, seed)) in ROLES.iter().enumerate() {
        for (row, (verb, expected)) in TABLE.iter().enumerate() {
            // Each on a connection of its own, so that none depends on what was asked before.
            let client = scene.client(*seed).await;
            let reply = client.ask(&scene.requests(client.session)[row]).await;
            assert_eq!(name(&reply), expected[column], "{verb} asked by the {role}: {reply:?}");
        }
    }
}

/// The numbers of verbs leave no gap, and the one after the last is nobody's: the table is
/// not shorter than the protocol.
#[tokio::test]
async fn the_table_has_as_many_verbs_as_the_protocol() {
    let scene = Scene::new().await;
    let number = |request: &Request| encode_message(request)[4 + 1];
    for (row, request) in scene.requests(0).iter().enumerate() {
        // CBOR: numbers from 24 on take a byte of their own after the head.
        let bytes = encode_message(request);
        assert_eq!(usize::from(if number(request) < 24 { bytes[5] } else { bytes[6] }), row, "{request:?}");
    }
    let client = scene.client(PRODUCTION).await;
    let mut message = vec![0; 4];
    let next = u32::try_from(TABLE.len()).unwrap();
    minicbor::Encoder::new(&mut message).array(2).unwrap().u32(next).unwrap().array(0).unwrap();
    let len = u32::try_from(message.len() - 4).unwrap();
    message[..4].copy_from_slice(&len.to_le_bytes());
    assert_eq!(refused(&client.try_ask(&message).await.unwrap()), Some(RefusalCode::Malformed));
}

#[tokio::test]
async fn whoever_has_not_said_hello_is_answered_nothing() {
    let scene = Scene::new().await;
    for request in scene.requests(1).iter().filter(|request| verb(request) != "Hello") {
        for (role, seed) in ROLES {
            let client = scene.bed.connect(seed).await.unwrap();
            assert_eq!(refused(&client.ask(request).await), Some(RefusalCode::Malformed), "{role}: {request:?}");
        }
    }
}

#[tokio::test]
async fn a_stranger_is_answered_nothing() {
    let scene = Scene::new().await;
    for request in scene.requests(1) {
        // A client learns of the server's judgement of its key with its first use of the connection.
        if let Ok(client) = scene.bed.connect(STRANGER).await {
            assert!(client.try_ask(&encode_message(&request)).await.is_err(), "{request:?}");
        }
    }
}

#[tokio::test]
async fn a_removed_machine_is_answered_nothing() {
    let scene = Scene::new().await;
    for (role, seed) in ROLES {
        let member = scene.bed.members.lock().unwrap().get(&public(&key(seed))).cloned().unwrap();
        for row in 0..TABLE.len() {
            let client = scene.client(seed).await;
            let request = &scene.requests(client.session)[row];
            scene.bed.members.lock().unwrap().remove(&public(&key(seed)));
            // The connection may be closed before the refusal is read.
            if let Ok(reply) = client.try_ask(&encode_message(request)).await {
                assert_eq!(refused(&reply), Some(RefusalCode::NotAuthorised), "{role}: {request:?}");
            }
            scene.bed.members.lock().unwrap().insert(public(&key(seed)), member.clone());
        }
    }
}

/// A05: removed while four streams bring data, a machine commits nothing any more.
#[tokio::test]
async fn a_machine_that_is_removed_while_it_uploads_commits_nothing() {
    let scene = Scene::new().await;
    let client = scene.client(OTHER).await;
    let blobs = tree(7, 200, 50_000);
    let parts: Vec<_> = blobs.chunks(60).map(<[_]>::to_vec).collect();
    let manifest = client.manifest("data", "other", root(&blobs));
    let upload = async {
        for (stream, part) in (0..).zip(&parts) {
            // Whether the server still takes it is up to the moment of removal.
            let _ = client.try_upload(stream, part).await;
        }
    };
    let remove = async {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        scene.bed.members.lock().unwrap().remove(&public(&key(OTHER)));
    };
    tokio::join!(upload, remove);
    let commit = Request::Commit { session: client.session, manifest };
    if let Ok(reply) = client.try_ask(&encode_message(&commit)).await {
        assert_eq!(refused(&reply), Some(RefusalCode::NotAuthorised));
    }
    assert!(client.quic.closed().await.to_string().contains("removed"));
    let reader = scene.client(PRODUCTION).await;
    let listing = Request::Snapshots(Listing { limit: 10, ..Listing::default() });
    assert_eq!(name(&reader.ask(&listing).await), "Snapshots 1");
}
