//! What a backup came to: for programs, and, made of that, for people.

use serde_json::{Value, json};
use vsync_protocol::id::MachineName;

use super::GlobalArgs;
use super::output;
use super::quiesce;
use super::report::Failure;
use crate::backup::{Options, Report};
use crate::progress::Progress;
use crate::quiesce::Released;

/// The summary of a backup.
pub(super) fn summary(server: &MachineName, options: &Options, report: &Report, progress: &Progress) -> Value {
    json!({
        "message_type": "summary",
        "snapshot_id": report.snapshot.to_string(),
        "parent": report.parent.map(|id| id.to_string()),
        "volume": options.volume.as_str(),
        "server": server.as_str(),
        "total_files_processed": report.totals.entries,
        "total_bytes_processed": report.totals.bytes,
        "files_unmodified": progress.unchanged.get(),
        "files_opened": progress.opened.get(),
        "bytes_read": progress.read.get(),
        "data_blobs": report.upload.blobs,
        "data_added_packed": report.upload.bytes,
        "total_duration": report.duration.as_secs_f64(),
        "held_seconds": report.held.map_or(0.0, |held| held.as_secs_f64()),
        "held": [],
        "defects": report.defects.iter().map(|(path, reason)| json!({"path": path.to_string(), "reason": reason})).collect::<Vec<_>>(),
        "defect_count": report.defect_count,
    })
}

/// The same, with what was held for it.
pub(super) fn with_held(mut summary: Value, released: &Released) -> Value {
    summary["held_seconds"] = json!(released.held_for.map_or(0.0, |held| held.as_secs_f64()));
    summary["held"] = quiesce::held_json(released);
    summary
}

/// Prints a summary: as it is, or in words.
pub(super) fn show(global: &GlobalArgs, summary: &Value) -> Result<(), Failure> {
    if global.json {
        return output::json(summary);
    }
    let number = |key: &str| summary[key].as_u64().unwrap_or_default();
    let text = |key: &str| summary[key].as_str().unwrap_or_default();
    let defects = summary["defects"].as_array().map(Vec::as_slice).unwrap_or_default();
    let defects = defects.iter().map(|defect| {
        let path = defect["path"].as_str().filter(|path| !path.is_empty()).unwrap_or(".");
        format!("{path}: {}", defect["reason"].as_str().unwrap_or_default())
    });
    output::print_first("not exact", defects, number("defect_count"));
    if global.quiet {
        return Ok(());
    }
    let id = text("snapshot_id");
    let seconds = summary["total_duration"].as_f64().filter(|seconds| *seconds >= 0.0).unwrap_or_default();
    output::line(format_args!(
        "snapshot {} of {} on {}: {} in {} entries, {} read, {} sent in {}",
        id.get(..8).unwrap_or(id),
        text("volume"),
        text("server"),
        output::size(number("total_bytes_processed")),
        number("total_files_processed"),
        output::size(number("bytes_read")),
        output::size(number("data_added_packed")),
        output::duration(std::time::Duration::try_from_secs_f64(seconds).unwrap_or_default()),
    ))
}
