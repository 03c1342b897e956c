//! Telling the server what this command does for a volume, and what came of it.
//!
//! The record is for people: when it cannot be made, the work goes on, and the log says so.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use vsync_protocol::id::{JobId, MachineName, VolumeName};
use vsync_protocol::limits::MAX_JOB_MESSAGE;
use vsync_protocol::wire::plain::plain;
use vsync_protocol::wire::{JobKind, JobResult, JobStart, Outcome};

use super::report::{Exit, Failure};
use super::session::Session;
use crate::backup::Report;
use crate::progress::Progress;
use crate::remote::{Remote, RemoteError};

/// Names the job to a helper container, which does the work of the same one.
pub(super) const VARIABLE: &str = "VSYNC_JOB";

/// A job that the server was told of. Without [`Job::end`], as after a panic, it counts as
/// interrupted.
pub(super) struct Job<'a> {
    remote: &'a Remote,
    id: JobId,
    begun: Instant,
    known: Mutex<SoFar>,
}

struct SoFar {
    result: JobResult,
    progress: Option<Arc<Progress>>,
}

impl<'a> Job<'a> {
    /// Tells the server that work on `volume` begins; of this machine, if no other is named.
    pub(super) fn begin(
        session: &'a Session,
        kind: JobKind,
        volume: &VolumeName,
        source: Option<&MachineName>,
    ) -> Self {
        let id = given().unwrap_or_else(random);
        let start = JobStart {
            id,
            kind,
            volume: volume.clone(),
            source: source.cloned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let remote = &session.remote;
        log_failure(remote, &remote.begin_job(start));
        let known = SoFar { result: JobResult::new(Outcome::Success), progress: None };
        Self { remote, id, begun: Instant::now(), known: Mutex::new(known) }
    }

    /// Its id, for a helper that does its work.
    pub(super) const fn id(&self) -> JobId {
        self.id
    }

    /// Counters that tell, if it fails, how far it had come.
    pub(super) fn watch(&self, progress: &Arc<Progress>) {
        self.lock().progress = Some(Arc::clone(progress));
    }

    /// Adds what is known of its result, such as how long applications were held.
    pub(super) fn note(&self, add: impl FnOnce(&mut JobResult)) {
        add(&mut self.lock().result);
    }

    /// Adds what a backup made, for which so many bytes were read.
    pub(super) fn made(&self, report: &Report, read: u64) {
        self.note(|result| {
            result.read = read;
            // What the server lacked is what was sent, and what the store grew by.
            (result.sent, result.stored) = (report.upload.bytes, report.upload.bytes);
            (result.size, result.files) = (report.totals.bytes, report.totals.entries);
            (result.defects, result.snapshot) = (report.defect_count, Some(report.snapshot));
        });
    }

    /// Tells the server what came of it.
    pub(super) fn end(self, outcome: &Result<Exit, Failure>) {
        self.end_with(outcome.as_ref().map(|exit| (*exit, &[] as &[String])));
    }

    /// The same, with remarks on what went wrong around it.
    pub(super) fn end_with(self, outcome: Result<(Exit, &[String]), &Failure>) {
        let SoFar { mut result, progress } = self.known.into_inner().unwrap_or_else(PoisonError::into_inner);
        result.duration = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        (result.outcome, result.code, result.message) = match outcome {
            Ok((exit, remarks)) => done(exit, remarks),
            Err(failure) => failed(failure),
        };
        if let Some(progress) = progress {
            result.read = result.read.max(progress.read.get()).max(progress.received.get());
            result.files = result.files.max(progress.entries.get());
        }
        log_failure(self.remote, &self.remote.end_job(self.id, result));
    }

    fn lock(&self) -> MutexGuard<'_, SoFar> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of work that was done, with remarks on what went wrong around it.
fn done(exit: Exit, remarks: &[String]) -> (Outcome, u8, String) {
    let (outcome, words) = match exit {
        Exit::Exact => (Outcome::Success, ""),
        Exit::Defects => (Outcome::Defects, ""),
        Exit::Container => (Outcome::Defects, "a container could not be started again"),
        Exit::Hook => (Outcome::Defects, "a command afterwards failed"),
        Exit::Interrupted => (Outcome::Interrupted, ""),
        Exit::Failed
        | Exit::Usage
        | Exit::Unreachable
        | Exit::NotFound
        | Exit::NotAuthorised
        | Exit::Damage
        | Exit::RolledBack
        | Exit::NoSpace => (Outcome::Failed, ""),
    };
    let message = if remarks.is_empty() { words.to_owned() } else { plain(&remarks.join("; "), MAX_JOB_MESSAGE) };
    (outcome, exit as u8, message)
}

fn failed(failure: &Failure) -> (Outcome, u8, String) {
    let outcome = if failure.code == Exit::Interrupted { Outcome::Interrupted } else { Outcome::Failed };
    let words: Vec<&str> = std::iter::once(&failure.heading).chain(&failure.causes).map(String::as_str).collect();
    (outcome, failure.code as u8, plain(&words.join(": "), MAX_JOB_MESSAGE))
}

/// The job that this process was started for as a helper.
fn given() -> Option<JobId> {
    std::env::var(VARIABLE).ok()?.parse().ok()
}

fn random() -> JobId {
    let mut id = [0; JobId::LEN];
    if let Err(error) = getrandom::fill(&mut id) {
        // One that was used before: its record is not changed.
        tracing::warn!("no randomness for a job's id: {error}");
    }
    JobId::from_bytes(id)
}

fn log_failure(remote: &Remote, told: &Result<(), RemoteError>) {
    if let Err(error) = told {
        tracing::warn!("{} has no record of this job: {error}", remote.server());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_becomes_one_plain_line() {
        let failure = Failure {
            causes: vec!["the first\n  cause".to_owned(), "\u{1b}[31mred".to_owned()],
            ..Failure::new(Exit::Hook, "hook failed")
        };
        let (outcome, code, message) = failed(&failure);
        assert_eq!((outcome, code), (Outcome::Failed, 20));
        assert_eq!(message, "hook failed: the first cause: [31mred");
    }

    #[test]
    fn what_a_person_stopped_is_interrupted() {
        let (outcome, code, _) = failed(&Failure::new(Exit::Interrupted, "stopped"));
        assert_eq!((outcome, code), (Outcome::Interrupted, 130));
        assert_eq!(done(Exit::Damage, &[]).0, Outcome::Failed);
    }

    #[test]
    fn what_went_wrong_around_a_snapshot_is_told_and_the_snapshot_counts() {
        assert_eq!(done(Exit::Container, &[]).0, Outcome::Defects);
        let remarks = ["run-after of volume data failed: exit status: 1".to_owned()];
        assert_eq!(done(Exit::Hook, &remarks), (Outcome::Defects, 20, remarks[0].clone()));
    }
}
