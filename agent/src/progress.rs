//! What long work has done so far. The work counts; whoever shows progress looks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of one run, shared between its threads and whoever shows them.
        #[derive(Debug, Default)]
        pub struct Progress {
            $($(#[$doc])* pub $name: Counter,)*
            cancelled: Arc<AtomicBool>,
        }
    };
}

counters! {
    /// Entries dealt with.
    entries,
    /// Bytes of content dealt with, whether read or known.
    bytes,
    /// Entries expected in all, 0 if unknown.
    total_entries,
    /// Bytes expected in all, 0 if unknown.
    total_bytes,
    /// Files opened.
    opened,
    /// Bytes read from files.
    read,
    /// Files taken over unopened.
    unchanged,
    /// Chunks sealed.
    sealed,
    /// Chunks recognised without sealing them.
    recognised,
    /// Bytes received from the server.
    received,
    /// Bytes written to files.
    written,
    /// Entries that are not exact.
    defects,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `amount`.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// Sets the number, for totals that become known.
    pub fn set(&self, amount: u64) {
        self.0.store(amount, Ordering::Relaxed);
    }

    /// The number now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Progress {
    /// Counters of their own for a part of this work: whoever stops one stops both.
    #[must_use]
    pub fn of_a_part(&self) -> Self {
        Self { cancelled: self.cancelled.clone(), ..Self::default() }
    }

    /// Forgets how far the work is: it goes over everything once more. What was read stays counted.
    pub fn go_over_again(&self) {
        [&self.entries, &self.bytes, &self.unchanged, &self.defects].into_iter().for_each(|counter| counter.set(0));
    }

    /// Asks the work to stop at the next good moment.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether the work was asked to stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_stops_the_whole_stops_its_parts_and_those_that_come_after() {
        let whole = Progress::default();
        let (one, other) = (whole.of_a_part(), Progress::default());
        one.read.add(7);
        assert_eq!(whole.read.get(), 0);
        whole.cancel();
        assert!(one.is_cancelled() && whole.of_a_part().is_cancelled() && !other.is_cancelled());
    }
}
