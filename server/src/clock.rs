//! The server's clocks: what time it is, and how long the server has been there, which no
//! change of the first can alter.

use std::fmt;
use std::fs;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use vsync_protocol::plan::Clock as Evidence;

/// What the clocks show at one instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Milliseconds since 1970.
    pub now: i64,
    /// Milliseconds since the machine started, sleep included.
    pub steady: u64,
    /// Names the machine's start: `steady` of different ones cannot be compared.
    pub boot: String,
}

/// A source of moments. Cheap to clone.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Moment + Send + Sync>);

impl Clock {
    /// The machine's clocks.
    #[must_use]
    pub fn system() -> Self {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        Self::of(move || Moment { now: now(), steady: steady(), boot: boot.clone() })
    }

    /// Clocks that show what `look` says.
    pub fn of(look: impl Fn() -> Moment + Send + Sync + 'static) -> Self {
        Self(Arc::new(look))
    }

    /// What the clocks show.
    #[must_use]
    pub fn look(&self) -> Moment {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn steady() -> u64 {
    let since = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let millis = since.tv_sec.saturating_mul(1000).saturating_add(since.tv_nsec / 1_000_000);
    u64::try_from(millis).unwrap_or_default()
}

/// What is kept of the clocks from one start to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// What the clock showed when it was last believed.
    pub seen: i64,
    /// Milliseconds that have passed since then, as far as is known.
    pub passed: u64,
    /// Milliseconds for which the store has been in use, or could have been.
    pub uptime: u64,
    /// The machine's start when this was kept.
    pub boot: String,
    /// The steady clock when this was kept.
    pub steady: u64,
}

impl Kept {
    /// The first time that a store is opened: there is nothing to compare the clock with.
    #[must_use]
    pub fn begin(moment: &Moment) -> Self {
        Self { seen: moment.now, passed: 0, uptime: 0, boot: moment.boot.clone(), steady: moment.steady }
    }

    /// The same at a later `moment`. The time in between counts if the machine was not
    /// started anew, for only then is it known. A clock that can be right is believed.
    #[must_use]
    pub fn advance(&self, moment: &Moment) -> Self {
        let same = !self.boot.is_empty() && self.boot == moment.boot;
        let passed = if same { moment.steady.saturating_sub(self.steady) } else { 0 };
        let mut next = Self {
            seen: self.seen,
            passed: self.passed.saturating_add(passed),
            uptime: self.uptime.saturating_add(passed),
            boot: moment.boot.clone(),
            steady: moment.steady,
        };
        if next.evidence(moment).check(None).is_ok() {
            (next.seen, next.passed) = (moment.now, 0);
        }
        next
    }

    /// What speaks for or against the clock at `moment`.
    #[must_use]
    pub const fn evidence(&self, moment: &Moment) -> Evidence {
        Evidence { now: moment.now, seen: Some(self.seen), passed: self.passed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    fn at(hours: i64, steady: u64, boot: &str) -> Moment {
        Moment { now: hours * HOUR as i64, steady: steady * HOUR, boot: boot.to_owned() }
    }

    #[test]
    fn time_counts_while_the_machine_runs() {
        let kept = Kept::begin(&at(1000, 5, "a"));
        // The server was down for 50 hours, the machine was not.
        let later = kept.advance(&at(1050, 55, "a"));
        assert_eq!((later.seen, later.passed, later.uptime), (1050 * HOUR as i64, 0, 50 * HOUR));
        // A new start of the machine, an hour off, and 2 hours into it.
        let started = later.advance(&at(1051, 0, "b"));
        assert_eq!((started.uptime, started.seen), (50 * HOUR, 1051 * HOUR as i64));
        assert_eq!(started.advance(&at(1053, 2, "b")).uptime, 52 * HOUR);
    }

    #[test]
    fn a_leap_is_not_believed_and_does_not_count() {
        let kept = Kept::begin(&at(1000, 5, "a"));
        let leapt = kept.advance(&at(2000, 6, "a"));
        assert_eq!((leapt.seen, leapt.passed, leapt.uptime), (1000 * HOUR as i64, HOUR, HOUR));
        assert!(leapt.evidence(&at(2000, 6, "a")).check(None).is_err());
        // Nor a machine that was off for long, nor a clock that goes back.
        assert!(kept.advance(&at(1030, 0, "b")).evidence(&at(1030, 0, "b")).check(None).is_err());
        assert_eq!(leapt.advance(&at(900, 7, "a")).seen, 1000 * HOUR as i64);
        // Right again, it is believed again.
        assert_eq!(leapt.advance(&at(1003, 8, "a")).seen, 1003 * HOUR as i64);
    }
}
