//! The thread of a running server that looks after its store: retention after commits and
//! daily, garbage collection daily, scrub all the time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vsync_protocol::manifest::LogPosition;

use super::Upkeep;
use super::closure::{Affected, Lacking};
use super::gc::GcOptions;
use super::mark::MarkError;
use super::retention::RetentionError;
use super::throttle::{Stop, Throttle};
use crate::archive::{Archive, ArchiveError, KEEP_TIME};
use crate::words::report;

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;

/// Subjects of notices that are also chores.
pub(crate) const COLLECTION: &str = "collection";
pub(crate) const SCRUB: &str = "scrub";

const DAMAGE: &str = "damage";

/// So long at a time is scrubbed: time, retention and garbage collection wait for their turn on the same thread.
const SLICE: Duration = Duration::from_secs(600);

/// Snapshots that a notice names, at most.
const MAX_NAMED: usize = 20;

/// What an operator must look at, and what is being done, by subject.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notices(Arc<Mutex<Board>>);

#[derive(Debug, Default)]
struct Board {
    notices: BTreeMap<&'static str, String>,
    running: Option<&'static str>,
}

impl Notices {
    fn lock(&self) -> MutexGuard<'_, Board> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, subject: &'static str, notice: Option<String>) {
        let notices = &mut self.lock().notices;
        match notice {
            None => drop(notices.remove(subject)),
            Some(notice) if notices.get(subject) == Some(&notice) => {}
            Some(notice) => {
                tracing::error!("{notice}");
                notices.insert(subject, notice);
            }
        }
    }

    pub(crate) fn all(&self) -> Vec<String> {
        self.lock().notices.values().cloned().collect()
    }

    /// The notice about `subject`.
    pub(crate) fn of(&self, subject: &str) -> Option<String> {
        self.lock().notices.get(subject).cloned()
    }

    /// Whether `subject` is being worked at.
    pub(crate) fn is_running(&self, subject: &str) -> bool {
        self.lock().running == Some(subject)
    }

    fn run(&self, subject: Option<&'static str>) {
        self.lock().running = subject;
    }
}

/// The thread. Dropping it without [`Keeper::end`] leaves it running.
pub(crate) struct Keeper {
    stop: Stop,
    thread: JoinHandle<()>,
}

impl Keeper {
    pub(crate) fn start(archive: Arc<Archive>, upkeep: Upkeep, notices: Notices) -> std::io::Result<Self> {
        let stop = Stop::default();
        let mut work = Work {
            archive,
            upkeep,
            notices,
            stop: stop.clone(),
            decided: None,
            kept_time: 0,
            begun: None,
            checked_catalog: None,
            checked_manifests: None,
            checked_closures: None,
            scrubbed: 0,
        };
        let thread = std::thread::Builder::new().name("vsync-upkeep".to_owned()).spawn(move || work.run())?;
        Ok(Self { stop, thread })
    }

    /// Calls running work off and waits for its end.
    pub(crate) fn end(self) {
        self.stop.stop();
        if self.thread.join().is_err() {
            tracing::error!("the upkeep thread panicked");
        }
    }
}

struct Work {
    archive: Arc<Archive>,
    upkeep: Upkeep,
    notices: Notices,
    stop: Stop,
    /// The log and the uptime when retention last decided.
    decided: Option<(LogPosition, u64)>,
    kept_time: u64,
    /// Uptime of the start, and of the last look at catalog and manifests.
    begun: Option<u64>,
    checked_catalog: Option<u64>,
    checked_manifests: Option<u64>,
    checked_closures: Option<u64>,
    /// Packs of the scrub that is under way.
    scrubbed: u64,
}

impl Work {
    fn run(&mut self) {
        while self.stop.wait(self.upkeep.tick).is_ok() {
            // A store that failed is left as it is until somebody has looked.
            if self.archive.failure().is_none() {
                self.keep_time();
                // Before anything is forgotten because of what it would notice.
                if self.guard() {
                    self.retain();
                }
                self.collect();
            }
            self.scrub();
            self.look_at_itself();
        }
    }

    fn keep_time(&mut self) {
        let uptime = self.archive.time().1.uptime;
        if uptime.saturating_sub(self.kept_time) >= KEEP_TIME {
            self.kept_time = uptime;
            // Space may have come back.
            self.archive.ballast.take();
            let kept = self.archive.keep_time();
            self.notices.set("clock", kept.err().map(|error| format!("time cannot be kept: {}", report(&error))));
        }
    }

    /// Whether all that was committed was looked at.
    fn guard(&self) -> bool {
        let looked = self.archive.guard(&Throttle::new(self.upkeep.rate, self.stop.clone()));
        let failed = match &looked {
            Ok(()) | Err(MarkError::Stopped) => None,
            Err(error) => Some(format!("what changed cannot be judged, so nothing is forgotten: {}", report(error))),
        };
        self.notices.set("guard", failed);
        looked.is_ok()
    }

    /// The catalog weekly, manifests monthly, and each once in the first hour.
    fn look_at_itself(&mut self) {
        let uptime = self.archive.time().1.uptime;
        let begun = *self.begun.get_or_insert(uptime);
        let due = |last: Option<u64>, every: u64| match last {
            Some(last) => uptime.saturating_sub(last) >= every,
            None => uptime.saturating_sub(begun) >= HOUR,
        };
        if due(self.checked_catalog, 7 * DAY) {
            self.checked_catalog = Some(uptime);
            let notice = match self.archive.catalog().check() {
                Ok(None) => None,
                Ok(Some(problem)) => Some(format!("the catalog is damaged ({problem}); run `vsync server repair`")),
                Err(error) => Some(format!("the catalog cannot be checked: {}", report(&error))),
            };
            self.notices.set("catalog", notice);
        }
        if due(self.checked_manifests, 30 * DAY) {
            self.checked_manifests = Some(uptime);
            let notice = match self.archive.check_manifests(self.upkeep.signers.as_ref()) {
                Ok(bad) if bad.is_empty() => None,
                Ok(bad) => Some(format!(
                    "manifests are damaged, or signed by nobody who is known: snapshots {}",
                    bad.iter().map(|id| id.short()).collect::<Vec<_>>().join(", ")
                )),
                Err(error) => Some(format!("manifests cannot be checked: {}", report(&error))),
            };
            self.notices.set("manifests", notice);
        }
        // Backups may have brought back what was lacking.
        let doubtful =
            self.notices.of(DAMAGE).is_some() || self.archive.catalog().damaged().is_ok_and(|blobs| blobs > 0);
        let every = if doubtful { DAY } else { 30 * DAY };
        if due(self.checked_closures, every) {
            self.checked_closures = Some(uptime);
            self.look_for_all();
        }
    }

    /// Whether all is here that snapshots need.
    fn look_for_all(&self) {
        let throttle = Throttle::new(self.upkeep.rate, self.stop.clone());
        let notice = match self.archive.lacking(&throttle) {
            Ok(lacking) if lacking.affected.is_empty() => None,
            Ok(Lacking { blobs, affected }) => Some(damage(blobs, &affected)),
            Err(MarkError::Stopped) => return,
            Err(error) => Some(format!("it cannot be told whether all is here that is needed: {}", report(&error))),
        };
        self.notices.set(DAMAGE, notice);
    }

    fn retain(&mut self) {
        let now = (self.archive.position(), self.archive.time().1.uptime);
        if self.decided.is_some_and(|(log, at)| log == now.0 && now.1.saturating_sub(at) < DAY) {
            return;
        }
        let notice = match self.archive.retain(&self.upkeep) {
            Ok((_, frozen)) => frozen.map(|frozen| frozen.to_string()),
            Err(RetentionError::Frozen(frozen)) => Some(frozen.to_string()),
            Err(error) => Some(format!("retention failed: {}", report(&error))),
        };
        self.notices.set("retention", notice);
        // What it forgot itself is no reason to decide again.
        self.decided = Some((self.archive.position(), now.1));
    }

    fn collect(&self) {
        let Some(every) = self.upkeep.collect_every else { return };
        let due = |last: Option<u64>| {
            let since = self.archive.time().1.uptime.saturating_sub(last.unwrap_or(0));
            u128::from(since) >= every.as_millis()
        };
        let collected = match self.archive.catalog().last_round() {
            Ok(last) if !due(last) => return,
            Ok(_) => {
                self.notices.run(Some(COLLECTION));
                self.archive.collect(&GcOptions { rate: self.upkeep.rate, ..GcOptions::default() }, &self.stop)
            }
            Err(error) => Err(ArchiveError::from(error).into()),
        };
        self.notices.run(None);
        let notice = match collected {
            Ok(report) => {
                tracing::info!("garbage collection: {report:?}");
                None
            }
            Err(MarkError::Stopped) => return,
            Err(error) => Some(format!("garbage collection stopped and removed nothing more: {}", report(&error))),
        };
        self.notices.set(COLLECTION, notice);
    }

    fn scrub(&mut self) {
        let Some(period) = self.upkeep.scrub_every else { return };
        let period = u64::try_from(period.as_millis()).unwrap_or(u64::MAX);
        let throttle = Throttle::new(self.upkeep.rate, self.stop.clone());
        let begun = Instant::now();
        let notice = loop {
            match self.archive.scrub_next(period, &throttle) {
                Ok(None) => break None,
                Err(MarkError::Stopped) => return,
                Ok(Some(found)) => {
                    self.notices.run(Some(SCRUB));
                    self.scrubbed += found.packs;
                    if !found.affected.is_empty() {
                        self.notices.set(DAMAGE, Some(damage(found.lost, &found.affected)));
                    }
                }
                Err(error) => break Some(format!("scrub failed: {}", report(&error))),
            }
            if self.archive.failure().is_some() {
                break None;
            }
            if begun.elapsed() > SLICE {
                return self.notices.run(None);
            }
        };
        self.notices.run(None);
        self.notices.set(SCRUB, notice);
        let packs = std::mem::take(&mut self.scrubbed);
        if packs > 0 {
            self.archive.note_chore(SCRUB, packs);
        }
    }
}

fn damage(blobs: u64, affected: &[Affected]) -> String {
    let names = affected.iter().take(MAX_NAMED).map(|one| format!("{} of {}", one.id.short(), one.volume));
    let (names, more) = (names.collect::<Vec<_>>().join(", "), affected.len().saturating_sub(MAX_NAMED));
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("damage: {blobs} blobs are lost; snapshots {names}{more}")
}
