//! Undoing, from code that cannot wait: `Drop`.
//!
//! A guard is dropped when its future is cancelled or when it fails, on the very thread that drives our connections.
//! So the work is done by another thread, with a runtime and a connection of its own, while the guard waits for it.

use std::thread;
use std::time::Duration;

use tokio::runtime;
use tokio::time::timeout;

use super::engine::Engine;

/// Runs `work` to its end, or until `limit` has passed. `what` names it in the log if it fails.
pub(crate) fn run_now(engine: &Engine, what: &str, limit: Duration, work: impl AsyncFnOnce(Engine) + Send + 'static) {
    let host = engine.host().to_owned();
    let task = move || {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
        let engine = Engine::open(&host).map_err(|error| error.to_string())?;
        let done = runtime.block_on(async { timeout(limit, work(engine)).await });
        done.map_err(|_| format!("no end after {} s", limit.as_secs()))
    };
    let outcome = match thread::Builder::new().name("vsync-rescue".into()).spawn(task) {
        Ok(thread) => thread.join().unwrap_or_else(|_| Err("it panicked".into())),
        Err(error) => Err(error.to_string()),
    };
    if let Err(reason) = outcome {
        tracing::error!("cannot {what}: {reason}; do it by hand");
    }
}
