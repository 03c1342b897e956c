//! An overview in Prometheus' text format, version 0.0.4.

use std::fmt::{self, Write as _};

use vsync_protocol::wire::overview::Chore;
use vsync_protocol::wire::{JobResult, Outcome, Overview, Standing};

use crate::overview::View;

/// Everything, as Prometheus reads it. Times are seconds since 1970, 0 for never; an age
/// without a snapshot is infinite.
pub(super) fn text(view: &View) -> String {
    let overview = &view.overview;
    let mut metrics = Metrics::default();
    server(&mut metrics, view);
    chore(&mut metrics, ["collection", "removed_bytes"], &overview.collection, "Garbage collection");
    chore(&mut metrics, ["scrub", "packs"], &overview.scrub, "Reading every byte again");
    volumes(&mut metrics, overview);
    held(&mut metrics, view);
    metrics.0
}

fn server(metrics: &mut Metrics, view: &View) {
    let overview = &view.overview;
    let Overview { server, space, damaged, frozen, unread, .. } = overview;
    metrics.family("vsync_build_info", "The server's version.");
    metrics.sample("vsync_build_info", &[("version", &server.version)], 1.0);
    for (name, help, value) in [
        ("vsync_store_writable", "Whether the store takes writes.", flag(server.read_only.is_none())),
        ("vsync_store_bytes", "Bytes of all packs.", server.bytes as f64),
        ("vsync_store_space_bytes", "Size of the store's file system.", *space as f64),
        ("vsync_store_free_bytes", "Free bytes of the store's file system.", server.free as f64),
        ("vsync_store_blobs", "Blobs.", server.blobs as f64),
        ("vsync_store_packs", "Packs.", server.packs as f64),
        ("vsync_store_snapshots", "Snapshots of all volumes.", server.snapshots as f64),
        ("vsync_store_damaged_blobs", "Blobs that are damaged and did not come again.", *damaged as f64),
        ("vsync_clock_frozen", "Whether the server's clock leapt, and retention waits.", flag(frozen.is_some())),
        ("vsync_configured", "Whether the server's vsync.toml is understood.", flag(view.configured)),
        ("vsync_warnings", "What an operator must look at.", server.warnings.len() as f64),
        ("vsync_scrub_longest_unread_seconds", "Uptime since the pack read longest ago was.", seconds(*unread)),
    ] {
        metrics.family(name, help);
        metrics.sample(name, &[], value);
    }
    if let Some(ratio) = overview.dedup_ratio() {
        metrics.family("vsync_dedup_ratio", "Bytes of all snapshots' content by bytes stored.");
        metrics.sample("vsync_dedup_ratio", &[], ratio);
    }
}

fn chore(metrics: &mut Metrics, [name, amount]: [&str; 2], chore: &Chore, what: &str) {
    for (field, help, value) in [
        ("running", "is under way", flag(chore.running)),
        ("failed", "failed the last time", flag(chore.failure.is_some())),
        ("last_timestamp_seconds", "ended at this time", time(chore.last)),
        (amount, "came to this the last time", chore.amount as f64),
    ] {
        let name = format!("vsync_{name}_{field}");
        metrics.family(&name, &format!("{what} {help}."));
        metrics.sample(&name, &[], value);
    }
}

/// How a volume's figure is read off; none leaves the volume out.
type Figure = fn(&Standing, i64) -> Option<f64>;

const FIGURES: [(&str, &str, Figure); 21] = [
    ("backup_declared", "Whether the configuration wants it backed up here.", |it, _| Some(flag(it.declared))),
    (
        "backup_last_success_timestamp_seconds",
        "Time of the state that the last snapshot holds, 0 for never.",
        |it, _| Some(time(it.last.map(|last| last.at))),
    ),
    ("backup_age_seconds", "Age of the last snapshot.", |it, now| Some(it.age(now).map_or(f64::INFINITY, seconds))),
    ("backup_max_age_seconds", "How old it may be.", |it, _| it.max_age.map(seconds)),
    ("backup_overdue", "Whether it is older.", |it, now| Some(flag(it.is_overdue(now)))),
    ("backup_next_due_timestamp_seconds", "When the next backup is due.", |it, _| it.due.map(|due| time(Some(due)))),
    ("backup_consecutive_failures", "Backups that failed since the last good one.", |it, _| Some(it.failures as f64)),
    ("backup_running", "Whether a backup is under way.", |it, _| Some(flag(it.running.is_some()))),
    ("backup_snapshots", "Snapshots.", |it, _| Some(it.snapshots as f64)),
    ("backup_partial", "Whether the last snapshot lacks something.", |it, _| it.last.map(|last| flag(last.partial))),
    ("backup_size_bytes", "Bytes of content at the last backup.", |it, _| of(it, |result| result.size as f64)),
    ("backup_previous_size_bytes", "Bytes of content at the backup before.", |it, _| {
        it.trend.iter().rev().nth(1).map(|size| size.bytes as f64)
    }),
    ("backup_added_bytes", "Bytes that the store grew by at the last backup.", |it, _| of(it, |it| it.stored as f64)),
    ("backup_read_bytes", "Bytes read at the last backup.", |it, _| of(it, |it| it.read as f64)),
    ("backup_files", "Entries at the last backup.", |it, _| of(it, |it| it.files as f64)),
    ("backup_defects", "Entries not exact at the last backup.", |it, _| of(it, |it| it.defects as f64)),
    ("backup_duration_seconds", "How long the last backup took.", |it, _| of(it, |it| seconds(it.duration))),
    ("backup_held_seconds", "How long applications were held for it.", |it, _| {
        it.result.as_ref().and_then(|result| result.held).map(seconds)
    }),
    ("verify_last_timestamp_seconds", "When snapshots were last verified, 0 for never.", |it, _| {
        Some(time(it.verified.as_ref().map(|done| done.at)))
    }),
    ("verify_good", "Whether that found no damage.", |it, _| {
        it.verified.as_ref().map(|done| flag(done.outcome == Outcome::Success))
    }),
    ("restore_last_timestamp_seconds", "When a snapshot was last restored, 0 for never.", |it, _| {
        Some(time(it.restored.as_ref().map(|done| done.at)))
    }),
];

fn of(standing: &Standing, figure: impl FnOnce(&JobResult) -> f64) -> Option<f64> {
    standing.result.as_ref().map(figure)
}

fn volumes(metrics: &mut Metrics, overview: &Overview) {
    for (name, help, figure) in FIGURES {
        let name = format!("vsync_{name}");
        metrics.family(&name, help);
        for standing in &overview.volumes {
            if let Some(value) = figure(standing, overview.server.now) {
                let labels = [("source", standing.source.as_str()), ("volume", standing.volume.as_str())];
                metrics.sample(&name, &labels, value);
            }
        }
    }
}

/// Volumes that are held, and 0 for the others that there are to show.
fn held(metrics: &mut Metrics, view: &View) {
    let name = "vsync_retention_held";
    metrics.family(name, "Whether retention waits, because the volume suddenly changed.");
    for Standing { source, volume, .. } in &view.overview.volumes {
        let is_held = view.held.iter().any(|hold| hold.group.source == *source && hold.group.volume == *volume);
        metrics.sample(name, &[("source", source.as_str()), ("volume", volume.as_str())], flag(is_held));
    }
}

#[derive(Default)]
struct Metrics(String);

impl Metrics {
    fn family(&mut self, name: &str, help: &str) {
        // Writing into a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} gauge");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", Escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let value = if value == f64::INFINITY { "+Inf".to_owned() } else { value.to_string() };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }
}

/// A label's value. Only three characters mean something in it.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '\\' => f.write_str("\\\\"),
            '"' => f.write_str("\\\""),
            '\n' => f.write_str("\\n"),
            c => f.write_char(c),
        })
    }
}

const fn flag(set: bool) -> f64 {
    if set { 1.0 } else { 0.0 }
}

fn seconds(millis: u64) -> f64 {
    millis as f64 / 1000.0
}

fn time(millis: Option<i64>) -> f64 {
    millis.map_or(0.0, |millis| millis as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut metrics = Metrics::default();
        metrics.sample("m", &[("a", "q\"\\\n}ä"), ("b", "")], f64::INFINITY);
        metrics.sample("m", &[], 1_795_000_000.25);
        assert_eq!(metrics.0, "m{a=\"q\\\"\\\\\\n}ä\",b=\"\"} +Inf\nm 1795000000.25\n");
    }

    #[test]
    fn a_volume_without_a_snapshot_is_infinitely_old() {
        let volume = Standing {
            source: "one".parse().unwrap(),
            volume: "data".parse().unwrap(),
            declared: true,
            snapshots: 0,
            last: None,
            result: None,
            trend: Vec::new(),
            failures: 2,
            failure: None,
            running: None,
            verified: None,
            restored: None,
            max_age: Some(3_600_000),
            due: None,
        };
        let overview = Overview { volumes: vec![volume], ..Overview::default() };
        let text = text(&View { overview, configured: true, held: Vec::new() });
        for line in [
            "vsync_backup_age_seconds{source=\"one\",volume=\"data\"} +Inf",
            "vsync_backup_last_success_timestamp_seconds{source=\"one\",volume=\"data\"} 0",
            "vsync_backup_overdue{source=\"one\",volume=\"data\"} 1",
            "vsync_backup_consecutive_failures{source=\"one\",volume=\"data\"} 2",
            "vsync_store_writable 1",
            "vsync_configured 1",
            "vsync_retention_held{source=\"one\",volume=\"data\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("vsync_backup_size_bytes{"), "what is not known is left out");
    }
}
