//! Work that goes on in the background does not go faster than it may, and can be called off.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;

/// The work was called off.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("called off")]
pub struct Stopped;

/// Calls work off. Clones belong together.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<(Mutex<bool>, Condvar)>);

impl Stop {
    /// Calls the work off.
    pub fn stop(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }

    /// Waits for `time`.
    ///
    /// # Errors
    /// At once when the work is called off.
    pub fn wait(&self, time: Duration) -> Result<(), Stopped> {
        let stopped = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.0.1.wait_timeout_while(stopped, time, |stopped| !*stopped);
        let stopped = *waited.unwrap_or_else(PoisonError::into_inner).0;
        if stopped { Err(Stopped) } else { Ok(()) }
    }
}

/// Bytes that may be read or written in the background.
#[derive(Debug, Default)]
pub struct Throttle {
    stop: Stop,
    /// Bytes a second; none: as many as there are.
    rate: Option<u64>,
    /// When the bytes spent so far are paid for.
    paid: Mutex<Option<Instant>>,
}

impl Throttle {
    /// At most `rate` bytes a second, or any number; called off by `stop`.
    #[must_use]
    pub const fn new(rate: Option<u64>, stop: Stop) -> Self {
        Self { stop, rate, paid: Mutex::new(None) }
    }

    /// Whether to go on.
    ///
    /// # Errors
    /// When the work is called off.
    pub fn check(&self) -> Result<(), Stopped> {
        self.stop.wait(Duration::ZERO)
    }

    /// Waits as long as `bytes` that were just read or written cost.
    ///
    /// # Errors
    /// When the work is called off.
    pub fn spend(&self, bytes: u64) -> Result<(), Stopped> {
        let Some(rate) = self.rate.filter(|&rate| rate > 0) else { return Ok(()) };
        let cost = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let now = Instant::now();
        let wait = {
            let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
            // Time in which nothing was done is not saved up.
            let until = paid.map_or(now, |paid| paid.max(now)) + cost;
            *paid = Some(until);
            until - now
        };
        self.stop.wait(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_cost_time() {
        let throttle = Throttle::new(Some(1_000_000), Stop::default());
        let begun = Instant::now();
        (0..10).for_each(|_| throttle.spend(10_000).unwrap());
        assert!(begun.elapsed() >= Duration::from_millis(95));
        assert_eq!(Throttle::default().spend(u64::MAX), Ok(()));
    }

    #[test]
    fn a_stop_ends_waiting() {
        let stop = Stop::default();
        let throttle = Throttle::new(Some(1), stop.clone());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| throttle.spend(1_000_000));
            stop.stop();
            assert_eq!(waiting.join().unwrap(), Err(Stopped));
        });
        assert_eq!(throttle.check(), Err(Stopped));
    }
}
