//! When backups are due, and what became of them.
//!
//! - [`Calendar`] says when something comes round; [`next_due`] adds the moments by which machines differ.
//! - [`State`] remembers, through restarts and power cuts, how far each entry of a schedule is.
//! - [`Lock`] keeps two backups of one volume apart.
//!
//! Nothing here runs a backup, or looks at the clock.

mod calendar;
mod lock;
mod state;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use vsync_protocol::id::{MachineName, VolumeName};

pub(crate) use self::calendar::{Calendar, zone};
pub(crate) use self::lock::{Lock, LockError};
pub(crate) use self::state::{Attempt, Retries, State, StateError, Verdict};
use crate::config::Schedule;

/// How long after its time a backup may begin, unless the configuration says otherwise: enough that the machines of a
/// realm, which are all told `02:00`, do not fall upon the server in the same second.
pub(crate) const USUAL_JITTER: Duration = Duration::from_secs(300);

/// A backup begins no later than this part of the time until the next one.
const PART: u32 = 10;

/// How long after its time an entry begins: always the same for a volume of a machine, so that nights can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jitter {
    /// At most this long.
    longest: Duration,
    /// This entry's share of it, of 2^32.
    share: u32,
}

impl Jitter {
    /// The place of `volume` of `machine` in the time up to `longest`.
    #[must_use]
    pub fn new(longest: Duration, machine: &MachineName, volume: &VolumeName) -> Self {
        let hash = blake3::hash(format!("{machine}\n{volume}").as_bytes());
        let share = hash.as_bytes().first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        Self { longest, share }
    }

    /// How long after its time an entry begins that comes again after `gap`.
    fn delay(self, gap: Duration) -> SignedDuration {
        let longest = self.longest.min(gap / PART);
        let millis = longest.as_millis().saturating_mul(u128::from(self.share)) >> 32;
        SignedDuration::from_millis(i64::try_from(millis).unwrap_or(i64::MAX))
    }
}

/// When `schedule` is due next after `after`; none where time ends.
#[must_use]
pub(crate) fn next_due(schedule: &Schedule, after: Timestamp) -> Option<Timestamp> {
    // The one before may be later than `after` by its delay.
    let longest = SignedDuration::try_from(schedule.jitter.longest).unwrap_or(SignedDuration::MAX);
    let mut at = schedule.at.after(after.checked_sub(longest).unwrap_or(Timestamp::MIN))?;
    loop {
        let next = schedule.at.after(at)?;
        let gap = Duration::try_from(next.duration_since(at)).unwrap_or_default();
        let due = at.checked_add(schedule.jitter.delay(gap)).unwrap_or(at);
        if due > after {
            return Some(due);
        }
        at = next;
    }
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::*;

    fn schedule(at: &str, jitter: Duration, machine: &str) -> Schedule {
        let (machine, volume) = (machine.parse().unwrap(), "data".parse().unwrap());
        Schedule {
            jitter: Jitter::new(jitter, &machine, &volume),
            volume,
            server: "annex2".parse().unwrap(),
            at: Calendar::parse(at, TimeZone::UTC).unwrap(),
        }
    }

    #[test]
    fn without_jitter_it_is_due_when_the_calendar_says() {
        let schedule = schedule("02:00", Duration::ZERO, "a");
        let due = next_due(&schedule, "2026-11-20T02:00:00Z".parse().unwrap()).unwrap();
        assert_eq!(due.to_string(), "2026-11-21T02:00:00Z");
    }

    #[test]
    fn machines_begin_at_different_moments_and_each_always_at_the_same() {
        let after: Timestamp = "2026-11-20T12:00:00Z".parse().unwrap();
        let begin = |machine: &str| next_due(&schedule("02:00", USUAL_JITTER, machine), after).unwrap();
        let moments: std::collections::BTreeSet<_> = (0..20).map(|number| begin(&format!("machine{number}"))).collect();
        assert_eq!(moments.len(), 20);
        let (first, last) = ("2026-11-21T02:00:00Z".parse().unwrap(), "2026-11-21T02:05:00Z".parse().unwrap());
        assert!(moments.iter().all(|moment| (first..last).contains(moment)), "{moments:?}");
        assert_eq!(begin("uat"), begin("uat"));
    }

    #[test]
    fn nothing_is_left_out_or_doubled_by_jitter() {
        for (at, jitter) in [("* * * * *", 86_400), ("@hourly", 600), ("17,18 3 * * 1", 300), ("*/7 * * * *", 20)] {
            for machine in ["a", "b", "c"] {
                let schedule = schedule(at, Duration::from_secs(jitter), machine);
                let mut due = next_due(&schedule, "2026-11-20T12:00:30Z".parse().unwrap()).unwrap();
                // The last time of the calendar that is not after it is the one that it belongs to.
                let mut plain = due - SignedDuration::from_hours(8 * 24);
                while let Some(next) = schedule.at.after(plain).filter(|next| *next <= due) {
                    plain = next;
                }
                for _ in 0..50 {
                    let late = due.duration_since(plain);
                    assert!(!late.is_negative() && late < SignedDuration::from_hours(24), "{at}: {late}");
                    let following = schedule.at.after(plain).unwrap();
                    assert!(due < following, "{at}: {due} is not before {following}");
                    assert_eq!(next_due(&schedule, due - SignedDuration::from_nanos(1)), Some(due), "{at}");
                    due = next_due(&schedule, due).unwrap();
                    plain = following;
                }
            }
        }
    }
}
