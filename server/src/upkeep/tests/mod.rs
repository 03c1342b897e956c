//! What upkeep promises, on real stores with clocks of their own.

mod faults;
mod gc;
mod guard;
mod interleave;
mod loss;
mod model;
mod retention;
mod scrub;
mod table;
mod thrash;

use std::sync::Arc;

use vsync_protocol::plan::{Policy, Zone};

use super::{GcOptions, GcReport, Stop, Upkeep};
use crate::testing::{DAY, Store};

const NO_FLOOR: Policy =
    Policy { last: 0, hourly: 0, daily: 0, weekly: 0, monthly: 0, yearly: 0, within: None, floor: 0 };

fn keep(policy: Policy) -> Upkeep {
    Upkeep { policies: Arc::new(move |_| policy), zone: Zone::utc(), ..Upkeep::default() }
}

impl Store {
    fn forget(&self, id: vsync_protocol::id::SnapshotId) {
        self.archive.forget(&keep(NO_FLOOR), id, "test").unwrap();
    }

    fn back_up_all(&self, contents: &[Vec<bytes::Bytes>]) {
        for blobs in contents {
            self.back_up("a", blobs);
        }
    }

    fn collect(&self) -> GcReport {
        self.archive.collect(&GcOptions::default(), &Stop::default()).unwrap()
    }

    fn collect_times(&self, rounds: usize) {
        for _ in 0..rounds {
            self.collect();
        }
    }

    /// Rounds of garbage collection until everything needless is out of the packs.
    fn collect_all(&self) -> u64 {
        let round = |_| {
            self.pass(4 * DAY);
            self.collect().trashed
        };
        (0..6).map(round).sum()
    }
}
