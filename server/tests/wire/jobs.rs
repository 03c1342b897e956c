//! What agents tell of their work, and what the server makes of it.

use std::time::Duration;

use rusqlite::Connection;
use vsync_protocol::id::JobId;
use vsync_protocol::limits::MAX_JOB_MESSAGE;
use vsync_protocol::wire::{
    JobKind, JobListing, JobRecord, JobResult, JobStart, Outcome, Overview, RefusalCode, Reply, Request, Standing,
};
use vsync_server::{Declared, Trust, rebuild};

use crate::bed::{ADMIN, Bed, Client, PRODUCTION, REALM, WRITER, refused, root, tree};

fn start(id: u8, kind: JobKind, source: Option<&str>) -> Request {
    Request::BeginJob(JobStart {
        id: JobId::from_bytes([id; 16]),
        kind,
        volume: "data".parse().unwrap(),
        source: source.map(|source| source.parse().unwrap()),
        version: "1.2.3".into(),
    })
}

fn backup(id: u8) -> Request {
    start(id, JobKind::Backup, None)
}

fn end(id: u8, result: JobResult) -> Request {
    Request::EndJob { id: JobId::from_bytes([id; 16]), result }
}

fn failed(message: &str) -> JobResult {
    JobResult { code: 20, message: message.into(), ..JobResult::new(Outcome::Failed) }
}

async fn hello(bed: &Bed, seed: u8) -> Client {
    let client = bed.connect(seed).await.unwrap();
    client.hello().await;
    client
}

async fn jobs(client: &Client) -> Vec<JobRecord> {
    match client.ask(&Request::Jobs(JobListing { limit: 100, ..JobListing::default() })).await {
        Reply::Jobs(jobs) => jobs,
        reply => panic!("{reply:?}"),
    }
}

async fn overview(client: &Client) -> Overview {
    match client.ask(&Request::Overview).await {
        Reply::Overview(overview) => *overview,
        reply => panic!("{reply:?}"),
    }
}

async fn standing(client: &Client) -> Standing {
    let [standing] = &overview(client).await.volumes[..] else { panic!("not one volume") };
    standing.clone()
}

/// Waits until the server has noticed that a connection is gone.
async fn outcome(client: &Client, wanted: Outcome) -> JobRecord {
    for _ in 0..600 {
        let listed = jobs(client).await;
        if listed[0].result.as_ref().is_some_and(|result| result.outcome == wanted) {
            return listed[0].clone();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it never becomes {wanted:?}: {:?}", jobs(client).await);
}

async fn commit(client: &mut Client, seed: u8) {
    let blobs = tree(seed, 4, 100);
    client.open("data").await;
    client.store(&blobs).await;
    let manifest = client.manifest("data", "production", root(&blobs));
    assert!(matches!(client.commit(manifest).await, Reply::Committed(_)));
}

#[tokio::test]
async fn a_job_is_recorded_from_its_beginning_to_its_end() {
    let bed = Bed::new();
    let client = hello(&bed, PRODUCTION).await;
    assert_eq!(client.ask(&backup(1)).await, Reply::Noted);
    let [job] = &jobs(&client).await[..] else { panic!("not one job") };
    assert_eq!(
        (job.machine.as_str(), job.source.as_str(), job.version.as_str()),
        ("production", "production", "1.2.3")
    );
    assert_eq!((job.ended, job.result.clone()), (None, None));
    let result = JobResult { read: 7, sent: 6, stored: 5, size: 4, held: Some(3), ..JobResult::new(Outcome::Success) };
    for _ in 0..2 {
        assert_eq!(client.ask(&end(1, result.clone())).await, Reply::Noted, "it may be told twice");
        let [job] = &jobs(&client).await[..] else { panic!("not one job") };
        assert_eq!(job.result, Some(result.clone()));
        assert!(job.ended.unwrap() >= job.started);
    }
    assert_eq!(client.ask(&backup(1)).await, Reply::Noted, "a beginning that comes late");
    assert_eq!(jobs(&client).await[0].result, Some(result), "brings nothing back");
}

#[tokio::test]
async fn a_job_whose_connection_is_gone_is_interrupted_until_its_machine_says_otherwise() {
    let bed = Bed::new();
    let (client, watcher) = (hello(&bed, PRODUCTION).await, hello(&bed, ADMIN).await);
    assert_eq!(client.ask(&backup(1)).await, Reply::Noted);
    assert!(standing_of_undeclared(&watcher).await.is_none(), "no snapshot, and nobody declares it");
    client.quic.close(0_u32.into(), b"");
    let lost = outcome(&watcher, Outcome::Interrupted).await;
    assert!(lost.result.unwrap().message.contains("never ended"));
    // It comes back, and the old connection's end no longer counts.
    let again = hello(&bed, PRODUCTION).await;
    assert_eq!(again.ask(&backup(1)).await, Reply::Noted);
    assert_eq!(jobs(&watcher).await[0].result, None);
    let other = hello(&bed, PRODUCTION).await;
    assert_eq!(other.ask(&backup(1)).await, Reply::Noted);
    again.quic.close(0_u32.into(), b"");
    assert_eq!(other.ask(&backup(2)).await, Reply::Noted);
    other.quic.close(0_u32.into(), b"");
    outcome(&watcher, Outcome::Interrupted).await;
    // Its word replaces what the server only supposed.
    let last = hello(&bed, PRODUCTION).await;
    assert_eq!(last.ask(&end(2, failed("it was a hook"))).await, Reply::Noted);
    let result = jobs(&watcher).await[0].result.clone().unwrap();
    assert_eq!((result.outcome, result.message.as_str()), (Outcome::Failed, "it was a hook"));
}

async fn standing_of_undeclared(client: &Client) -> Option<Standing> {
    overview(client).await.volumes.into_iter().next()
}

#[tokio::test]
async fn jobs_that_a_killed_server_left_open_are_interrupted_at_its_next_start() {
    let mut bed = Bed::new();
    let client = hello(&bed, PRODUCTION).await;
    assert_eq!(client.ask(&backup(1)).await, Reply::Noted);
    bed.kill().await;
    bed.start().unwrap();
    let client = hello(&bed, PRODUCTION).await;
    outcome(&client, Outcome::Interrupted).await;
}

#[tokio::test]
async fn a_machine_speaks_of_its_own_jobs_only() {
    let bed = Bed::new();
    let (reader, writer) = (hello(&bed, PRODUCTION).await, hello(&bed, WRITER).await);
    assert_eq!(reader.ask(&backup(1)).await, Reply::Noted);
    assert_eq!(refused(&writer.ask(&end(1, failed("mine"))).await), Some(RefusalCode::NoJob));
    assert_eq!(writer.ask(&backup(1)).await, Reply::Noted, "ids are each machine's own");
    assert_eq!(jobs(&writer).await.len(), 1);
    assert_eq!(jobs(&reader).await.len(), 2);
    for request in [
        start(2, JobKind::Backup, Some("production")),
        start(2, JobKind::Restore, None),
        start(2, JobKind::Verify, Some("production")),
    ] {
        assert_eq!(refused(&writer.ask(&request).await), Some(RefusalCode::NotAuthorised), "{request:?}");
    }
    assert_eq!(reader.ask(&start(3, JobKind::Verify, Some("writer"))).await, Reply::Noted);
}

#[tokio::test]
async fn texts_and_numbers_that_are_not_fit_to_be_shown_are_refused() {
    let bed = Bed::new();
    let client = hello(&bed, PRODUCTION).await;
    assert_eq!(client.ask(&backup(1)).await, Reply::Noted);
    for bad in [
        failed("two\nlines"),
        failed("\u{1b}[2J"),
        failed("\u{202e}"),
        failed(&"x".repeat(MAX_JOB_MESSAGE + 1)),
        JobResult { size: u64::MAX, ..failed("") },
        JobResult { held: Some(u64::MAX), ..failed("") },
    ] {
        assert_eq!(refused(&client.ask(&end(1, bad.clone())).await), Some(RefusalCode::Malformed), "{bad:?}");
    }
    let Request::BeginJob(good) = backup(2) else { panic!() };
    for version in ["\u{7}".to_owned(), "9".repeat(65)] {
        let bad = Request::BeginJob(JobStart { version, ..good.clone() });
        assert_eq!(refused(&client.ask(&bad).await), Some(RefusalCode::Malformed));
    }
    assert_eq!(jobs(&client).await.len(), 1);
    assert_eq!(jobs(&client).await[0].result, None);
}

#[tokio::test]
async fn failures_count_until_a_backup_succeeds() {
    let bed = Bed::new();
    let mut client = hello(&bed, PRODUCTION).await;
    for id in 1..=2 {
        client.ask(&backup(id)).await;
        client.ask(&end(id, failed(&format!("number {id}")))).await;
    }
    assert_eq!(overview(&client).await.volumes, vec![], "a volume that nobody declares and that has no snapshot");
    client.ask(&backup(3)).await;
    assert!(standing_of_undeclared(&client).await.is_none());
    commit(&mut client, 1).await;
    let snapshots = standing(&client).await;
    assert_eq!((snapshots.failures, snapshots.running.is_some()), (0, true), "the snapshot is there, heard of or not");
    client.ask(&end(3, JobResult { size: 100, stored: 10, ..JobResult::new(Outcome::Success) })).await;
    client.ask(&backup(4)).await;
    client.ask(&end(4, failed("the hook failed"))).await;
    let now = standing(&client).await;
    assert_eq!((now.failures, now.snapshots, now.running), (1, 1, None));
    let failure = now.failure.unwrap();
    assert_eq!((failure.code, failure.message.as_str()), (20, "the hook failed"));
    assert_eq!((now.trend.len(), now.trend[0].bytes, now.result.unwrap().stored), (1, 100, 10));
}

#[tokio::test]
async fn declared_volumes_are_shown_before_anybody_backed_them_up() {
    let mut bed = Bed::idle();
    bed.declared = vec![Declared {
        source: "production".parse().unwrap(),
        volume: "data".parse().unwrap(),
        max_age: Duration::from_secs(3600),
        due: Some(7),
    }];
    bed.start().unwrap();
    let mut client = hello(&bed, PRODUCTION).await;
    let before = overview(&client).await;
    let [never] = &before.volumes[..] else { panic!("not one volume") };
    assert!(never.declared && never.is_overdue(before.server.now) && never.last.is_none());
    assert_eq!((never.max_age, never.due), (Some(3_600_000), Some(7)));
    assert!(overview(&hello(&bed, WRITER).await).await.volumes.is_empty(), "it is another machine's");
    commit(&mut client, 1).await;
    let after = overview(&client).await;
    let [standing] = &after.volumes[..] else { panic!("not one volume") };
    assert!(!standing.is_overdue(after.server.now) && standing.is_overdue(after.server.now + 3_700_000));
    assert!(after.space > 0 && after.space >= after.server.free);
}

#[tokio::test]
async fn a_rebuilt_catalog_keeps_the_jobs_that_the_old_one_can_still_tell() {
    let mut bed = Bed::new();
    let client = hello(&bed, PRODUCTION).await;
    for id in 1..=3 {
        client.ask(&backup(id)).await;
        client.ask(&end(id, failed(&format!("number {id}")))).await;
    }
    let before = jobs(&client).await;
    bed.stop().await;
    let report = rebuild(&bed.data(), REALM, Trust::Tables).unwrap();
    assert_eq!((report.jobs.jobs, report.jobs.lost), (3, false));
    bed.start().unwrap();
    assert_eq!(jobs(&hello(&bed, PRODUCTION).await).await, before);
    bed.stop().await;
    // One row that no server wrote: what stands before it is kept, and the loss is told.
    let catalog = Connection::open(bed.data().join("catalog.sqlite")).unwrap();
    catalog.execute("UPDATE jobs SET machine = 'no/name' WHERE number = 2", []).unwrap();
    drop(catalog);
    let report = rebuild(&bed.data(), REALM, Trust::Tables).unwrap();
    assert_eq!((report.jobs.jobs, report.jobs.lost), (1, true));
    std::fs::write(bed.data().join("catalog.sqlite"), "no database").unwrap();
    let report = rebuild(&bed.data(), REALM, Trust::Tables).unwrap();
    assert_eq!((report.jobs.jobs, report.jobs.lost), (0, true));
}
