//! The holds of this process, for somebody who cannot wait for it: a signal must let applications go on at once, even if
//! the work that they are held for hangs on a network that is gone.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::plan::Purpose;
use super::record::Record;
use super::undo;
use crate::docker::{Engine, rescue};

/// What is held now, and through which engine.
static HELD: Mutex<Vec<Held>> = Mutex::new(Vec::new());

struct Held {
    key: u64,
    purpose: Purpose,
    engine: Engine,
    record: Record,
}

/// How long the process may linger.
const WITHIN: Duration = Duration::from_secs(20);

pub(super) fn enter(purpose: Purpose, engine: &Engine, record: &Record) -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let key = NEXT.fetch_add(1, Ordering::Relaxed);
    let held = Held { key, purpose, engine: engine.clone(), record: record.clone() };
    HELD.lock().unwrap_or_else(PoisonError::into_inner).push(held);
    key
}

pub(super) fn leave(key: u64) {
    HELD.lock().unwrap_or_else(PoisonError::into_inner).retain(|held| held.key != key);
}

/// Lets the containers go on that are held for a backup, and waits for that. Nothing will come of the backup any more;
/// whoever holds them still removes the record, and runs the commands that come after. What is held for a restore stays
/// so: the volume is being written.
pub fn let_go_of_what_is_read() {
    let held: Vec<(Engine, Record)> = {
        let all = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        let read = all.iter().filter(|held| held.purpose == Purpose::Backup);
        read.map(|held| (held.engine.clone(), held.record.clone())).collect()
    };
    for (engine, record) in held {
        let what = format!("let the containers of volume {} go on", record.volume);
        rescue::run_now(&engine, &what, WITHIN, async move |engine| {
            for stuck in undo::bring_back(&engine, &record).await {
                tracing::error!("{stuck}");
            }
        });
    }
}

/// The containers that are held now, for a process that is about to leave them so.
#[must_use]
pub fn held_now() -> Vec<String> {
    let all = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    let steps = all.iter().flat_map(|held| &held.record.steps);
    steps.filter(|step| step.action.is_some()).map(|step| step.name.clone()).collect()
}
