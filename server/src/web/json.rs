//! An overview as JSON, for the status page, for programs, and for `vsync status --json`.
//! Times are RFC 3339, durations seconds, sizes bytes; fields are only ever added.

use jiff::Timestamp;
use serde_json::{Value, json};
use vsync_protocol::wire::job::reason;
use vsync_protocol::wire::overview::{Chore, LastDone, LastFailure, Size};
use vsync_protocol::wire::{JobRecord, Overview, Standing};

use crate::catalog::Day;

/// How the server is.
#[must_use]
pub fn server_json(overview: &Overview) -> Value {
    let Overview { server, space, damaged, frozen, collection, scrub, unread, .. } = overview;
    json!({
        "version": server.version,
        "time": time(server.now),
        "snapshots_count": server.snapshots,
        "blobs": server.blobs,
        "packs": server.packs,
        "total_size": server.bytes,
        "space": space,
        "free": server.free,
        "dedup_ratio": overview.dedup_ratio(),
        "read_only": server.read_only,
        "warnings": server.warnings,
        "damaged_blobs": damaged,
        "clock_frozen": frozen,
        "collection": chore(collection, "removed_bytes"),
        "scrub": chore(scrub, "packs"),
        "longest_unread": seconds(*unread),
    })
}

fn chore(chore: &Chore, amount: &str) -> Value {
    json!({
        "running": chore.running,
        "time": chore.last.map(time),
        amount: chore.amount,
        "failure": chore.failure,
    })
}

/// How a volume stands at the server's time `now`, in milliseconds since 1970.
#[must_use]
pub fn volume_json(standing: &Standing, now: i64) -> Value {
    let last = standing.last;
    let result = standing.result.as_ref();
    let previous = standing.trend.iter().rev().nth(1);
    json!({
        "volume": standing.volume.as_str(),
        "hostname": standing.source.as_str(),
        "declared": standing.declared,
        "snapshots_count": standing.snapshots,
        "snapshot": last.map(|last| last.id.to_string()),
        "time": last.map(|last| time(last.at)),
        "age": standing.age(now).map(|age| age / 1000),
        "partial": last.is_some_and(|last| last.partial),
        "max_age": standing.max_age.map(|most| most / 1000),
        "overdue": standing.is_overdue(now),
        "due": standing.due.map(time),
        "running_since": standing.running.map(time),
        "total_size": result.map(|result| result.size),
        "previous_size": previous.map(|size| size.bytes),
        "data_added": result.map(|result| result.stored),
        "bytes_read": result.map(|result| result.read),
        "bytes_sent": result.map(|result| result.sent),
        "files": result.map(|result| result.files),
        "defects": result.map(|result| result.defects),
        "duration": result.map(|result| seconds(result.duration)),
        "held": result.and_then(|result| result.held).map(seconds),
        "failures": standing.failures,
        "failure": standing.failure.as_ref().map(failure),
        "verified": standing.verified.as_ref().map(done),
        "restored": standing.restored.as_ref().map(done),
        "sizes": standing.trend.iter().map(size).collect::<Vec<_>>(),
    })
}

fn failure(failure: &LastFailure) -> Value {
    json!({
        "time": time(failure.at),
        "outcome": failure.outcome.as_str(),
        "reason": reason(failure.code),
        "code": failure.code,
        "message": failure.message,
    })
}

fn done(done: &LastDone) -> Value {
    json!({
        "time": time(done.at),
        "outcome": done.outcome.as_str(),
        "hostname": done.machine.as_str(),
        "duration": seconds(done.duration),
    })
}

fn size(size: &Size) -> Value {
    json!({ "time": time(size.at), "total_size": size.bytes, "data_added": size.stored })
}

/// A job. Outcome `running` stands for one that is under way.
pub(super) fn job_json(job: &JobRecord) -> Value {
    let result = job.result.as_ref();
    let failed = result.filter(|result| result.code > 0 || !result.message.is_empty());
    json!({
        "id": job.id.to_string(),
        "kind": job.kind.as_str(),
        "hostname": job.machine.as_str(),
        "source": job.source.as_str(),
        "volume": job.volume.as_str(),
        "version": job.version,
        "start": time(job.started),
        "end": job.ended.map(time),
        "outcome": result.map_or("running", |result| result.outcome.as_str()),
        "reason": failed.map(|result| reason(result.code)),
        "code": failed.map(|result| result.code),
        "message": failed.map(|result| result.message.as_str()),
        "total_size": result.map(|result| result.size),
        "data_added": result.map(|result| result.stored),
        "bytes_read": result.map(|result| result.read),
        "bytes_sent": result.map(|result| result.sent),
        "files": result.map(|result| result.files),
        "defects": result.map(|result| result.defects),
        "duration": result.map(|result| seconds(result.duration)),
        "held": result.and_then(|result| result.held).map(seconds),
        "snapshot": result.and_then(|result| result.snapshot).map(|id| id.to_string()),
    })
}

/// What happened to a volume on one day, in UTC.
pub(super) fn day_json(day: &Day) -> Value {
    let date = Timestamp::from_millisecond(day.begins).map(|at| at.strftime("%Y-%m-%d").to_string());
    json!({
        "date": date.unwrap_or_default(),
        "snapshots": day.snapshots,
        "good": day.good,
        "failed": day.failed,
        "total_size": day.size,
        "data_added": day.stored,
        "bytes_read": day.read,
        "duration": seconds(day.duration),
    })
}

/// A moment of the server's clock; a moment beyond all calendars is the first of 1970.
fn time(millis: i64) -> String {
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::UNIX_EPOCH).to_string()
}

fn seconds(millis: u64) -> f64 {
    millis as f64 / 1000.0
}
