//! Sending or receiving no faster than somebody allows.

use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Who was idle may catch up for so long.
const BURST: Duration = Duration::from_millis(200);

/// Bytes a second, at most, in each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// To the server.
    pub upload: Option<NonZeroU64>,
    /// From the server.
    pub download: Option<NonZeroU64>,
}

/// Holds back what would go too fast. Shared by all that goes one way.
#[derive(Debug)]
pub(super) struct Pace(Mutex<Account>);

impl Pace {
    pub(super) fn new(rate: NonZeroU64) -> Self {
        Self(Mutex::new(Account { rate, paid: Instant::now() }))
    }

    /// Takes `bytes`, and returns when what went before them is paid for. So what is larger
    /// than a second's worth goes too, and the next waits for it.
    pub(super) async fn take(&self, bytes: u64) {
        let turn = self.0.lock().unwrap_or_else(PoisonError::into_inner).spend(bytes, Instant::now());
        sleep_until(turn).await;
    }
}

#[derive(Debug)]
struct Account {
    /// Bytes a second.
    rate: NonZeroU64,
    /// When all that went so far will be paid for.
    paid: Instant,
}

impl Account {
    /// When `bytes` that want to go `now` may.
    fn spend(&mut self, bytes: u64, now: Instant) -> Instant {
        let turn = self.paid.max(now.checked_sub(BURST).unwrap_or(now));
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate.get());
        self.paid = turn + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_through_is_what_was_allowed() {
        let begun = Instant::now();
        let mut account = Account { rate: NonZeroU64::new(1_000_000).unwrap(), paid: begun };
        let mut now = begun;
        for number in 0..400 {
            now = now.max(account.spend(10_000, now));
            // Whoever asks late does not lose what others would have had.
            now += Duration::from_micros(number % 7);
        }
        let seconds = (now - begun).as_secs_f64();
        // Four megabytes at one a second; the last of them need not be paid for yet.
        assert!((3.98..4.0).contains(&seconds), "{seconds}");
    }

    #[test]
    fn idle_time_is_not_saved_up() {
        let begun = Instant::now();
        let mut account = Account { rate: NonZeroU64::new(1000).unwrap(), paid: begun };
        let now = begun + Duration::from_secs(3600);
        let turns: Vec<Instant> = (0..20).map(|_| account.spend(100, now)).collect();
        assert_eq!(
            turns.iter().filter(|&&turn| turn <= now).count(),
            3,
            "a fifth of a second's worth, and one on credit"
        );
        assert_eq!(turns[19], now + Duration::from_millis(1700));
        account.spend(u64::MAX, now);
    }
}
