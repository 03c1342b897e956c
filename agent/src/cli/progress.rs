//! Showing how far long work has come: a bar on a terminal, lines of JSON for programs.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::{GlobalArgs, output};
use crate::progress::Progress;

/// How often the bar moves, and how often a line of JSON is printed.
const BAR: Duration = Duration::from_millis(100);
const LINE: Duration = Duration::from_secs(1);

/// Shows `progress` until it is dropped.
pub(crate) struct Display {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Display {
    /// Begins to show, if this is a terminal or JSON is wanted.
    pub(crate) fn start(global: &GlobalArgs, verb: &'static str, progress: &Arc<Progress>) -> Self {
        let silent = global.quiet || global.no_progress || (!global.json && !std::io::stderr().is_terminal());
        if silent {
            return Self { stop: None, thread: None };
        }
        let (stop, stopped) = channel();
        let (json, progress) = (global.json, progress.clone());
        let show = move || if json { lines(&progress, &stopped) } else { bar(verb, &progress, &stopped) };
        // Without a thread there is no display, and the work goes on.
        let thread = thread::Builder::new().name("progress".into()).spawn(show).ok();
        Self { stop: Some(stop), thread }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A display that panicked has nothing left to clear away.
            let _ = thread.join();
        }
    }
}

fn bar(verb: &'static str, progress: &Progress, stopped: &Receiver<()>) {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style =
        |template: &str| ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style("{prefix} {spinner} {bytes} {msg} {elapsed}"));
    bar.set_prefix(verb);
    let mut known = false;
    while stopped.recv_timeout(BAR) == Err(RecvTimeoutError::Timeout) {
        let total = progress.total_bytes.get();
        if total > 0 && !known {
            known = true;
            bar.set_length(total);
            bar.set_style(style("{prefix} [{bar:30}] {bytes}/{total_bytes} {msg} {bytes_per_sec} ETA {eta}"));
        }
        bar.set_position(progress.bytes.get());
        bar.set_message(format!("{} entries", progress.entries.get()));
    }
    bar.finish_and_clear();
}

fn lines(progress: &Progress, stopped: &Receiver<()>) {
    let begun = Instant::now();
    while stopped.recv_timeout(LINE) == Err(RecvTimeoutError::Timeout) {
        let (done, total) = (progress.bytes.get(), progress.total_bytes.get());
        let seconds = begun.elapsed().as_secs();
        let mut status = json!({
            "message_type": "status",
            "seconds_elapsed": seconds,
            "files_done": progress.entries.get(),
            "bytes_done": done,
            "error_count": progress.defects.get(),
        });
        if total > 0 {
            status["total_files"] = progress.total_entries.get().into();
            status["total_bytes"] = total.into();
            status["percent_done"] = (done as f64 / total as f64).min(1.0).into();
            if let Some(remaining) = seconds.saturating_mul(total.saturating_sub(done)).checked_div(done) {
                status["seconds_remaining"] = remaining.into();
            }
        }
        if output::json(&status).is_err() {
            return;
        }
    }
}
