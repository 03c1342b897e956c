//! How far each entry of a schedule is: what was tried last, what succeeded last, and what is due.
//!
//! The file is replaced whole, and durable before anything is done that relies on it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::next_due;
use crate::config::Schedule;
use crate::keys::{Existing, KeyFileError, file};

/// A clock that shows less than this before what was seen was corrected; more, and what was seen was wrong.
const CLOCK_SLACK: SignedDuration = SignedDuration::from_hours(1);

/// How often, and after how long, what failed is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Retries {
    /// Tries altogether, from 1.
    pub tries: u32,
    /// Before the second try.
    pub first: Duration,
}

/// Each pause between tries is this many times the one before.
const GROWTH: u32 = 5;

impl Retries {
    /// How long to wait after so many tries have failed; none: no longer.
    fn after(self, failed: u32) -> Option<Duration> {
        let pause = self.first.saturating_mul(GROWTH.saturating_pow(failed.saturating_sub(1)));
        (failed < self.tries).then_some(pause)
    }
}

/// What is remembered of all entries of one machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    entries: BTreeMap<String, Entry>,
}

/// What is remembered of one entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// All that was due up to here is done with.
    settled: Timestamp,
    /// Tries that failed since then.
    #[serde(default)]
    failed: u32,
    /// When to try again.
    #[serde(default)]
    again: Option<Timestamp>,
    /// The last try.
    #[serde(default)]
    pub last: Option<Attempt>,
    /// When the last try began that made a snapshot.
    #[serde(default)]
    pub last_success: Option<Timestamp>,
}

/// One try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attempt {
    /// When it began.
    pub started: Timestamp,
    /// When it ended.
    pub ended: Timestamp,
    /// What `vsync backup` returned.
    pub code: u8,
    /// What happened, in words.
    pub outcome: String,
    /// The snapshot that was made.
    #[serde(default)]
    pub snapshot: Option<String>,
}

/// What follows from how a try ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// There is a snapshot.
    Done,
    /// There is none, and another try may make one.
    Again,
    /// There is none, and trying again would change nothing.
    Hopeless,
    /// It was called off, by us: it is due as it was.
    CalledOff,
}

/// The state file cannot be used.
#[derive(Debug, Error)]
pub(crate) enum StateError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// It does not hold what was written to it.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// It cannot be written.
    #[error("cannot remember what was backed up")]
    Write(#[from] KeyFileError),
}

impl State {
    /// Reads the state at `path`; none yet is an empty one.
    ///
    /// # Errors
    /// When there is a file that cannot be read or understood.
    pub(crate) fn load(path: &Path) -> Result<Self, StateError> {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            read => read.map_err(|source| StateError::Read { path: path.to_owned(), source })?,
        };
        let damaged =
            |error: serde_json::Error| StateError::Damaged { path: path.to_owned(), reason: error.to_string() };
        serde_json::from_str(&text).map_err(damaged)
    }

    /// Makes it durable at `path`.
    ///
    /// # Errors
    /// When the file system refuses; then the file is as it was.
    pub(crate) fn save(&self, path: &Path) -> Result<(), StateError> {
        let damaged =
            |error: serde_json::Error| StateError::Damaged { path: path.to_owned(), reason: error.to_string() };
        let text = serde_json::to_string_pretty(self).map_err(damaged)?;
        path.parent().map_or(Ok(()), file::create_directory)?;
        Ok(file::write_public(path, &format!("{text}\n"), Existing::Replace)?)
    }

    /// Takes over what the configuration says now. A new entry, or one with another time, waits for its time; those
    /// that are gone are forgotten. Also corrects what a wrong clock had left.
    pub(crate) fn adopt(&mut self, schedule: &[Schedule], now: Timestamp) {
        let mut before = std::mem::take(&mut self.entries);
        for entry in schedule {
            let key = key(entry);
            let mut kept = before.remove(&key).unwrap_or_else(|| Entry::new(now));
            kept.correct(now);
            self.entries.insert(key, kept);
        }
    }

    /// When the entries are due as far as is known now, the first one first.
    ///
    /// Adopts them before: a clock that leapt ahead and came back must not hold up what is due until it is there again.
    pub(crate) fn agenda(&mut self, schedule: &[Schedule], now: Timestamp) -> Vec<(Timestamp, Schedule)> {
        self.adopt(schedule, now);
        let mut due: Vec<_> = schedule.iter().filter_map(|entry| Some((self.due(entry)?, entry.clone()))).collect();
        due.sort_by_key(|(at, _)| *at);
        due
    }

    /// What is remembered of an entry.
    #[must_use]
    pub(crate) fn of(&self, schedule: &Schedule) -> Option<&Entry> {
        self.entries.get(&key(schedule))
    }

    /// When an entry is due, which may be past; none if it is unknown, or never.
    #[must_use]
    pub(crate) fn due(&self, schedule: &Schedule) -> Option<Timestamp> {
        let entry = self.of(schedule)?;
        entry.again.or_else(|| next_due(schedule, entry.settled))
    }

    /// Notes how a try ended.
    pub(crate) fn note(&mut self, schedule: &Schedule, attempt: Attempt, verdict: Verdict, retries: Retries) {
        let entry = self.entries.entry(key(schedule)).or_insert_with(|| Entry::new(attempt.started));
        entry.again = None;
        match verdict {
            Verdict::CalledOff => {}
            Verdict::Done => {
                entry.last_success = Some(attempt.started);
                entry.settle(attempt.started);
            }
            Verdict::Hopeless => entry.settle(attempt.started),
            Verdict::Again => {
                entry.failed += 1;
                let pause = retries.after(entry.failed).and_then(|pause| SignedDuration::try_from(pause).ok());
                match pause.and_then(|pause| attempt.ended.checked_add(pause).ok()) {
                    Some(again) => entry.again = Some(again),
                    None => entry.settle(attempt.started),
                }
            }
        }
        entry.last = Some(attempt);
    }
}

impl Entry {
    const fn new(now: Timestamp) -> Self {
        Self { settled: now, failed: 0, again: None, last: None, last_success: None }
    }

    /// When the next try of what failed is, if it failed.
    #[must_use]
    pub(crate) const fn again(&self) -> Option<Timestamp> {
        self.again
    }

    fn settle(&mut self, started: Timestamp) {
        (self.settled, self.failed) = (self.settled.max(started), 0);
    }

    /// What lies in the future was noted by a clock that was wrong. Small steps back are usual, and repeat nothing.
    fn correct(&mut self, now: Timestamp) {
        if self.settled.duration_since(now) > CLOCK_SLACK {
            self.settled = now;
        }
        if self.again.is_some_and(|again| again.duration_since(now) > CLOCK_SLACK) {
            self.again = Some(now);
        }
    }
}

/// What makes an entry the same as before.
fn key(schedule: &Schedule) -> String {
    let zone = schedule.at.zone().iana_name().unwrap_or("UTC");
    format!("{} to {} at {} {zone}", schedule.volume, schedule.server, schedule.at)
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::super::{Calendar, Jitter};
    use super::*;

    const RETRIES: Retries = Retries { tries: 3, first: Duration::from_secs(60) };

    fn nightly(at: &str) -> Schedule {
        let volume = "data".parse().unwrap();
        Schedule {
            jitter: Jitter::new(Duration::ZERO, &"m".parse().unwrap(), &volume),
            volume,
            server: "annex2".parse().unwrap(),
            at: Calendar::parse(at, TimeZone::UTC).unwrap(),
        }
    }

    fn time(text: &str) -> Timestamp {
        format!("2026-11-{text}:00Z").parse().unwrap()
    }

    fn attempt(at: &str, code: u8) -> Attempt {
        Attempt { started: time(at), ended: time(at), code, outcome: String::new(), snapshot: None }
    }

    fn begun(schedule: &Schedule, at: &str) -> State {
        let mut state = State::default();
        state.adopt(std::slice::from_ref(schedule), time(at));
        state
    }

    #[test]
    fn a_new_entry_waits_for_its_time() {
        let entry = nightly("02:00");
        assert_eq!(begun(&entry, "20T12:00").due(&entry), Some(time("21T02:00")));
    }

    #[test]
    fn what_was_missed_comes_once() {
        let entry = nightly("02:00");
        let mut state = begun(&entry, "10T12:00");
        // The machine was off for days: the first of many is due, and doing it settles all.
        assert_eq!(state.due(&entry), Some(time("11T02:00")));
        state.note(&entry, attempt("20T08:00", 0), Verdict::Done, RETRIES);
        assert_eq!(state.due(&entry), Some(time("21T02:00")));
        assert_eq!(state.of(&entry).unwrap().last_success, Some(time("20T08:00")));
    }

    #[test]
    fn what_came_round_while_it_ran_is_made_up_for() {
        let entry = nightly("@hourly");
        let mut state = begun(&entry, "20T00:30");
        let long = Attempt { ended: time("20T03:10"), ..attempt("20T01:00", 0) };
        state.note(&entry, long, Verdict::Done, RETRIES);
        assert_eq!(state.due(&entry), Some(time("20T02:00")));
    }

    #[test]
    fn failures_are_tried_again_after_growing_pauses_and_then_wait_for_the_next_time() {
        let entry = nightly("02:00");
        let mut state = begun(&entry, "19T12:00");
        state.note(&entry, attempt("20T02:00", 10), Verdict::Again, RETRIES);
        assert_eq!(state.due(&entry), Some(time("20T02:01")));
        state.note(&entry, attempt("20T02:01", 10), Verdict::Again, RETRIES);
        assert_eq!(state.due(&entry), Some(time("20T02:06")));
        state.note(&entry, attempt("20T02:06", 10), Verdict::Again, RETRIES);
        assert_eq!(state.due(&entry), Some(time("21T02:00")));
        // The count begins anew.
        state.note(&entry, attempt("21T02:00", 10), Verdict::Again, RETRIES);
        assert_eq!(state.due(&entry), Some(time("21T02:01")));
        state.note(&entry, attempt("21T02:01", 0), Verdict::Done, RETRIES);
        assert_eq!(state.due(&entry), Some(time("22T02:00")));
        assert_eq!(state.of(&entry).unwrap().last_success, Some(time("21T02:01")));
    }

    #[test]
    fn what_cannot_succeed_is_not_tried_again_and_what_was_called_off_stays_due() {
        let entry = nightly("02:00");
        let mut state = begun(&entry, "19T12:00");
        state.note(&entry, attempt("20T02:00", 2), Verdict::Hopeless, RETRIES);
        assert_eq!(state.due(&entry), Some(time("21T02:00")));
        state.note(&entry, attempt("21T02:00", 130), Verdict::CalledOff, RETRIES);
        assert_eq!(state.due(&entry), Some(time("21T02:00")));
        assert_eq!(state.of(&entry).unwrap().last.as_ref().unwrap().code, 130);
    }

    #[test]
    fn another_time_begins_anew_and_what_is_gone_is_forgotten() {
        let (entry, other) = (nightly("02:00"), nightly("05:00"));
        let mut state = begun(&entry, "20T01:00");
        state.adopt(std::slice::from_ref(&other), time("20T12:00"));
        assert_eq!(state.due(&other), Some(time("21T05:00")), "05:00 of today was not asked for when it came");
        assert_eq!(state.due(&entry), None);
    }

    #[test]
    fn a_clock_that_was_wrong_does_not_put_backups_off_for_years() {
        let entry = nightly("02:00");
        let mut state = begun(&entry, "20T12:00");
        let future = Attempt { started: "2033-01-01T00:00:00Z".parse().unwrap(), ..attempt("20T12:00", 0) };
        state.note(&entry, future, Verdict::Done, RETRIES);
        state.adopt(std::slice::from_ref(&entry), time("20T12:00"));
        assert_eq!(state.due(&entry), Some(time("21T02:00")));
        // A small step back repeats nothing.
        state.note(&entry, attempt("21T02:00", 0), Verdict::Done, RETRIES);
        state.adopt(std::slice::from_ref(&entry), time("21T01:59"));
        assert_eq!(state.due(&entry), Some(time("22T02:00")));
    }

    #[test]
    fn a_clock_that_leapt_ahead_and_came_back_holds_nothing_up() {
        let entry = nightly("02:00");
        let mut state = begun(&entry, "20T12:00");
        // Nothing ends while the clock is right again: only looking at what is due can notice.
        let leapt = Attempt { started: "2033-01-01T00:00:00Z".parse().unwrap(), ..attempt("20T12:00", 0) };
        let ended = leapt.started;
        state.note(&entry, Attempt { ended, ..leapt }, Verdict::Done, RETRIES);
        let mut next = |now| state.agenda(std::slice::from_ref(&entry), now)[0].0;
        assert!(next(ended) > ended);
        assert_eq!(next(time("20T12:30")), time("21T02:00"));
    }

    #[test]
    fn it_survives_on_disk_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.json");
        assert_eq!(State::load(&path).unwrap(), State::default());
        let entry = nightly("02:00");
        let mut state = begun(&entry, "20T12:00");
        state.note(&entry, attempt("20T13:00", 10), Verdict::Again, RETRIES);
        state.save(&path).unwrap();
        assert_eq!(State::load(&path).unwrap(), state);
        std::fs::write(&path, "{").unwrap();
        assert!(matches!(State::load(&path), Err(StateError::Damaged { .. })));
    }
}
