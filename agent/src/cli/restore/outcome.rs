//! What a restore came to, or would come to, and whether all is as it promises.

use std::sync::Arc;

use jiff::Zoned;
use serde_json::{Value, json};
use vsync_protocol::tree::EntryPath;

use super::super::output;
use super::super::progress::Display;
use super::super::report::{Exit, Failure};
use super::super::session::{short, timestamp};
use super::super::time;
use super::{Destination, Work};
use crate::progress::Progress;
use crate::restore::{self, Action, Change, Options, Property, RestoreError, RestoreReport, Selection};

impl Work<'_> {
    pub(super) fn restore(&self, destination: &Destination<'_>) -> Result<Exit, Failure> {
        let vault = self.session.vault(self.snapshot)?;
        let progress = &self.progress;
        if let Some(job) = &self.job {
            job.watch(progress);
        }
        let verb = if self.args.dry_run { "comparing" } else { "restoring" };
        let display = Display::start(self.global, verb, progress);
        let directory = destination.directory;
        let report = restore::run(&self.session.remote, &vault, self.snapshot, directory, &self.options, progress);
        drop(display);
        let report = report?;
        if let Some(job) = &self.job {
            job.note(|result| {
                (result.size, result.files) = (report.bytes, report.entries);
                (result.sent, result.snapshot) = (progress.written.get(), Some(self.snapshot.id));
                let inexact = report.damaged.len() + report.unrestored.len() + report.left.len();
                result.defects = inexact as u64 + self.defects(&report);
            });
        }
        if self.args.dry_run {
            self.show_changes(&report, destination)?;
        }
        let verifies = self.args.verify && !self.args.dry_run;
        // For programs, the summary is the last line; people need not wait for it.
        let early = !verifies || !self.global.json;
        if early {
            self.show(&report, destination.name)?;
        }
        let exit = if verifies { self.verify(destination, &report) } else { Ok(exit_of(&report)) };
        if !early {
            self.show(&report, destination.name)?;
        }
        exit
    }

    /// Compares once more, from the disk: nothing may be left to do.
    fn verify(&self, destination: &Destination<'_>, restored: &RestoreReport) -> Result<Exit, Failure> {
        let vault = self.session.vault(self.snapshot)?;
        let progress = Arc::new(Progress::default());
        let selection = Selection::new(self.options.selection.start(), &self.args.include, &self.args.exclude)?;
        let options = Options { selection, dry_run: true, records: None };
        let display = Display::start(self.global, "verifying", &progress);
        let directory = destination.directory;
        let report = restore::run(&self.session.remote, &vault, self.snapshot, directory, &options, &progress);
        drop(display);
        let report = report?;
        let mut differing = Listing::default();
        for change in restored.unexplained(&report.changes) {
            let change = change.map_err(RestoreError::Deferred)?;
            if self.global.json {
                output::json(&difference(&change))?;
            }
            differing.add(difference_in_words(&change));
        }
        let Some(first) = differing.first.first() else {
            let (entries, files) = (report.entries, report.files_unchanged);
            self.note(&format!("verified: {entries} entries are as in the snapshot; {files} files were read back"));
            return Ok(exit_of(restored));
        };
        let (target, count) = (destination.name, differing.count);
        let heading =
            format!("{target}: {count} entries differ from the snapshot after the restore, the first: {first}");
        if !self.global.json {
            output::print_first("differs", &differing.first, count);
        }
        Err(Failure::new(Exit::Damage, heading)
            .hint("somebody may be writing to it; run the same command again".to_owned()))
    }

    /// What a dry run found to be done: its result, and so on stdout.
    fn show_changes(&self, report: &RestoreReport, destination: &Destination<'_>) -> Result<(), Failure> {
        let (mut deleted, mut changed, mut created) = (Listing::default(), Listing::default(), Listing::default());
        for change in report.changes.iter() {
            let mut change = change.map_err(RestoreError::Deferred)?;
            if change.path.is_root() && !destination.exists {
                change.action = Action::Create;
            }
            if self.global.json {
                output::json(&planned(&change))?;
                continue;
            }
            match &change.action {
                Action::Delete => deleted.add(name(&change.path)),
                Action::Change(properties) => changed.add(format!("{} ({})", name(&change.path), join(properties))),
                Action::Create => created.add(name(&change.path)),
            }
        }
        if self.global.quiet {
            return Ok(());
        }
        for (label, Listing { first, count }) in
            [("would delete", deleted), ("would change", changed), ("would create", created)]
        {
            output::first(label, first, count).iter().try_for_each(output::line)?;
        }
        Ok(())
    }

    fn show(&self, report: &RestoreReport, target: &str) -> Result<(), Failure> {
        if self.global.json {
            return output::json(&self.summary(report, target));
        }
        for (label, list) in [("damaged", &report.damaged), ("left as it is", &report.left)] {
            output::print_first(label, list.iter().map(output::reason), list.len() as u64);
        }
        output::print_first("not restored", &report.unrestored, report.unrestored.len() as u64);
        output::print_first(
            "not exact in the snapshot",
            report.defects.iter().map(output::reason),
            self.defects(report),
        );
        if self.global.quiet {
            return Ok(());
        }
        let body = &self.snapshot.body;
        output::line(format_args!(
            "{} {} of {} from {} ({}) {} {target}: {} in {} entries, {} files {}, {} unchanged, {} deleted, {} {} in {}",
            if self.args.dry_run { "would restore" } else { "restored" },
            short(self.snapshot.id),
            body.volume,
            body.source,
            time::format(timestamp(body.started), &Zoned::now()),
            "into",
            output::size(report.bytes),
            report.entries,
            report.files_restored,
            if self.args.dry_run { "to write" } else { "written" },
            report.files_unchanged,
            report.deleted,
            output::size(report.bytes_fetched),
            if self.args.dry_run { "to fetch" } else { "fetched" },
            output::duration(report.duration),
        ))
    }

    /// How much of what was selected the snapshot has not exactly; of a whole one it lists only the first.
    fn defects(&self, report: &RestoreReport) -> u64 {
        let listed = report.defects.len() as u64;
        if self.options.selection.is_all() { listed.max(self.snapshot.sealed.defects) } else { listed }
    }

    fn summary(&self, report: &RestoreReport, target: &str) -> Value {
        let list = |list: &[(EntryPath, String)]| {
            list.iter().map(|(path, reason)| json!({"path": path.to_string(), "reason": reason})).collect::<Vec<_>>()
        };
        json!({
            "message_type": "summary",
            "snapshot_id": self.snapshot.id.to_string(),
            "target": target,
            "dry_run": self.args.dry_run,
            "total_files": report.entries,
            "files_restored": report.files_restored,
            "files_skipped": report.files_unchanged,
            "files_deleted": report.deleted,
            "total_bytes": report.bytes,
            "bytes_restored": report.bytes_fetched,
            "files_opened": report.files_opened,
            "bytes_read": report.bytes_read,
            "bytes_skipped": report.bytes.saturating_sub(report.bytes_fetched),
            "damaged": list(&report.damaged),
            "left": list(&report.left),
            "defects": list(&report.defects),
            "unrestored": report.unrestored.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "total_duration": report.duration.as_secs_f64(),
        })
    }
}

/// The first of many, in words, and how many there are.
#[derive(Default)]
struct Listing {
    first: Vec<String>,
    count: u64,
}

impl Listing {
    fn add(&mut self, words: String) {
        self.count += 1;
        if self.first.len() < output::SHOWN {
            self.first.push(words);
        }
    }
}

/// A path for people; the target itself is a dot.
fn name(path: &EntryPath) -> String {
    if path.is_root() { ".".to_owned() } else { path.to_string() }
}

fn join(properties: &[Property]) -> String {
    properties.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// As `vsync diff` has a change.
fn planned(change: &Change) -> Value {
    let (modifier, properties) = match &change.action {
        Action::Create => ("+", &[][..]),
        Action::Delete => ("-", &[][..]),
        Action::Change(properties) => (modifier(properties), &properties[..]),
    };
    json!({
        "message_type": "change",
        "path": change.path.to_string(),
        "modifier": modifier,
        "differs": properties.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

fn modifier(properties: &[Property]) -> &'static str {
    if properties.iter().any(|property| matches!(property, Property::Kind | Property::HardLinks)) {
        "T"
    } else if properties.contains(&Property::Content) {
        "M"
    } else {
        "U"
    }
}

fn difference(change: &Change) -> Value {
    let mut line = planned(change);
    line["message_type"] = "difference".into();
    line
}

fn difference_in_words(change: &Change) -> String {
    let path = name(&change.path);
    match &change.action {
        Action::Create => format!("{path} (missing)"),
        Action::Delete => format!("{path} (not in the snapshot)"),
        Action::Change(properties) => format!("{path} ({})", join(properties)),
    }
}

fn exit_of(report: &RestoreReport) -> Exit {
    if !report.damaged.is_empty() {
        Exit::Damage
    } else if report.is_exact() {
        Exit::Exact
    } else {
        Exit::Defects
    }
}
