//! The steps of a quickstart, each measured.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vsync_protocol::tree::{EntryPath, VolumeInfo};

use super::super::GlobalArgs;
use super::super::backup::Making;
use super::super::output;
use super::super::progress::Display;
use super::super::report::{Exit, Failure};
use super::super::session::Session;
use super::super::signal::Stop;
use super::super::spec::{At, Spec};
use super::super::volumes::Place;
use super::target::Target;
use crate::backup::{Options, Source};
use crate::compare;
use crate::config::Quiesce;
use crate::progress::Progress;
use crate::restore::{self, Selection};
use crate::snapshot::Snapshot;

/// How many defects of a step are listed.
const LISTED: usize = 10;

/// What came of a step.
pub(super) struct Step {
    pub(super) verb: &'static str,
    /// Bytes that the volume has, or that were compared.
    pub(super) bytes: u64,
    pub(super) duration: Duration,
    pub(super) note: String,
    pub(super) defects: Vec<String>,
    pub(super) exit: Exit,
    /// More for programs.
    facts: Value,
}

impl Step {
    /// Bytes in a second; `None` if it was over too soon to tell.
    pub(super) fn speed(&self) -> Option<u64> {
        let seconds = self.duration.as_secs_f64();
        (seconds > 0.001 && self.bytes > 0).then(|| (self.bytes as f64 / seconds) as u64)
    }

    pub(super) fn json(&self) -> Value {
        let mut json = json!({
            "step": self.verb,
            "bytes": self.bytes,
            "duration": self.duration.as_secs_f64(),
            "mib_per_second": self.speed().map(|speed| speed as f64 / f64::from(1 << 20)),
            "defects": self.defects,
        });
        if let (Some(json), Some(facts)) = (json.as_object_mut(), self.facts.as_object()) {
            json.extend(facts.clone());
        }
        json
    }
}

/// What the steps have in common.
pub(super) struct Steps<'a> {
    pub(super) global: &'a GlobalArgs,
    pub(super) session: &'a Session,
    pub(super) target: &'a Target,
}

impl Steps<'_> {
    /// Backs the volume up; the snapshot is read back from the server, as a restore would.
    pub(super) fn backup(&self) -> Result<(Step, Snapshot), Failure> {
        let (session, target) = (self.session, self.target);
        let options = Options {
            volume: target.name.clone(),
            info: self.info(),
            tags: vec!["quickstart=yes".into()],
            profile: None,
        };
        let progress = watched()?;
        let making = Making { global: self.global, session, verb: "backing up", progress: &progress };
        let report = making.run(Source::Directory(&target.path), &options, None)?;
        let sent = output::size(report.upload.bytes);
        let step = Step {
            verb: "backed up",
            bytes: report.totals.bytes,
            duration: report.duration,
            note: format!("{} entries, {} read, {sent} sent", report.totals.entries, output::size(progress.read.get())),
            defects: listed(
                report.defects.iter().map(|(path, reason)| format!("{path}: {reason}")),
                report.defect_count,
            ),
            exit: if report.defect_count == 0 { Exit::Exact } else { Exit::Defects },
            facts: json!({
                "entries": report.totals.entries,
                "bytes_read": progress.read.get(),
                "data_added_packed": report.upload.bytes,
                "snapshot_id": report.snapshot.to_string(),
            }),
        };
        let spec = Spec {
            volume: Some(target.name.clone()),
            at: At::Id(report.snapshot.to_string()),
            path: EntryPath::root(),
        };
        Ok((step, session.find(&spec, None)?))
    }

    fn info(&self) -> VolumeInfo {
        match &self.target.volume {
            Some(volume) => Place::Volume(self.target.path.clone(), volume.clone()).info(Quiesce::None),
            None => Place::Directory(self.target.path.clone()).info(Quiesce::None),
        }
    }

    pub(super) fn restore(&self, snapshot: &Snapshot, to: &Target) -> Result<Step, Failure> {
        let vault = self.session.vault(snapshot)?;
        let options =
            restore::Options { selection: Selection::new(EntryPath::root(), &[], &[])?, dry_run: false, records: None };
        let progress = watched()?;
        let display = Display::start(self.global, "restoring", &progress);
        let outcome = restore::run(&self.session.remote, &vault, snapshot, &to.path, &options, &progress);
        drop(display);
        let report = outcome?;
        let damaged = report.damaged.iter().map(|(path, reason)| format!("{path}: {reason}"));
        let problems = damaged.chain(report.unrestored.iter().map(ToString::to_string));
        let count = (report.damaged.len() + report.unrestored.len()) as u64;
        Ok(Step {
            verb: "restored",
            bytes: report.bytes,
            duration: report.duration,
            note: format!("into {}", to.shown()),
            defects: listed(problems, count),
            exit: match (report.damaged.is_empty(), count) {
                (false, _) => Exit::Damage,
                (true, 0) => Exit::Exact,
                (true, _) => Exit::Defects,
            },
            facts: json!({
                "entries": report.entries,
                "files_restored": report.files_restored,
                "files_skipped": report.files_unchanged,
                "bytes_fetched": report.bytes_fetched,
            }),
        })
    }

    /// A difference in a volume that nobody else writes to is damage; in the user's own,
    /// somebody may have written since.
    pub(super) fn compare(&self, to: &Target) -> Result<Step, Failure> {
        let begun = Instant::now();
        let found = compare::compare(&self.target.path, &to.path)?;
        let differences = found.differences.iter().map(|(path, what)| format!("{}: {what} differs", path.display()));
        let same = found.difference_count == 0;
        Ok(Step {
            verb: "compared",
            bytes: found.bytes,
            duration: begun.elapsed(),
            note: match same {
                true => format!("{} entries, equal in content and metadata", found.entries),
                false => format!("{} differences in {} entries", found.difference_count, found.entries),
            },
            defects: listed(differences, found.difference_count),
            exit: match (same, self.target.ours) {
                (true, _) => Exit::Exact,
                (false, true) => Exit::Damage,
                (false, false) => Exit::Defects,
            },
            facts: json!({ "entries": found.entries, "differences": found.difference_count }),
        })
    }
}

/// Counters of a step that stops when somebody asks.
fn watched() -> Result<Arc<Progress>, Failure> {
    let progress = Arc::new(Progress::default());
    Stop::install()?.cancels(progress.clone());
    Ok(progress)
}

fn listed(all: impl Iterator<Item = String>, count: u64) -> Vec<String> {
    let mut listed: Vec<String> = all.take(LISTED).collect();
    let more = count.saturating_sub(listed.len() as u64);
    if more > 0 {
        listed.push(format!("{more} more"));
    }
    listed
}
