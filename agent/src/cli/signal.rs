//! SIGINT, SIGTERM and SIGHUP: asked once, work ends at the next good moment; asked twice, at once.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::output;
use super::report::{Exit, Failure};
use crate::progress::Progress;
use crate::quiesce;

/// How long the last words may take: a pipe that nobody reads takes none.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The last words of a process that ends at once.
fn leave_word() {
    let held = quiesce::held_now();
    if held.is_empty() {
        return;
    }
    let (said, heard) = channel();
    let speaker = thread::Builder::new().spawn(move || {
        output::say(format_args!("STILL HELD: {}; `vsync unhold` lets them go on", held.join(", ")));
        let _ = said.send(());
    });
    // Without a thread there are no words, and the sender is gone.
    drop(speaker);
    let _ = heard.recv_timeout(LAST_WORDS);
}

async fn hung_up(hangup: Option<&mut Signal>) {
    match hangup {
        Some(hangup) => drop(hangup.recv().await),
        None => std::future::pending().await,
    }
}

fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // Signal 1 is the lowest bit.
    mask.is_some_and(|mask| mask & 1 == 1)
}

/// Waits, on a runtime, until the process is asked to stop.
pub(crate) async fn asked() {
    match Signals::listen() {
        Ok(mut signals) => signals.next().await,
        Err(error) => {
            tracing::warn!("interruptions will not be noticed: {error}");
            std::future::pending::<()>().await;
        }
    }
}

/// The signals that ask for an end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// A terminal that goes away; whoever used `nohup` wants that not to matter.
    hangup: Option<Signal>,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        let hangup = if ignores_hangup() { None } else { Some(signal(SignalKind::hangup())?) };
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())?, hangup })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            () = hung_up(self.hangup.as_mut()) => {}
        }
    }
}

/// Tells when the process is asked to stop.
pub(crate) struct Stop(Receiver<()>);

impl Stop {
    /// Begins to listen.
    pub(crate) fn install() -> Result<Self, Failure> {
        let (asked, receiver) = channel();
        let (ready, listening) = channel();
        let failed = |error: &std::io::Error| Failure::of(error, Exit::Failed);
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let result = runtime.and_then(|runtime| {
                    runtime.block_on(async {
                        let mut signals = Signals::listen()?;
                        drop(ready.send(Ok(())));
                        let mut times = 0;
                        loop {
                            signals.next().await;
                            times += 1;
                            if times > 1 {
                                leave_word();
                                std::process::exit(i32::from(Exit::Interrupted as u8));
                            }
                            let _ = asked.send(());
                        }
                    })
                });
                let result: Result<(), std::io::Error> = result;
                drop(ready.send(result));
            })
            .map_err(|error| failed(&error))?;
        match listening.recv() {
            Ok(Ok(())) => Ok(Self(receiver)),
            Ok(Err(error)) => Err(failed(&error)),
            Err(_) => Err(Failure::new(Exit::Failed, "cannot listen for signals")),
        }
    }

    /// Waits until somebody asks.
    pub(crate) fn wait(self) {
        // The sender lives as long as the process.
        let _ = self.0.recv();
    }

    /// Cancels `progress` when somebody asks.
    pub(crate) fn cancels(self, progress: Arc<Progress>) {
        let waiter = thread::Builder::new().name("cancel".into()).spawn(move || {
            if self.0.recv().is_ok() {
                // In this order: nothing is held any more once it is let go, and whoever reads
                // the words may have stopped reading.
                progress.cancel();
                quiesce::let_go_of_what_is_read();
                output::say("stopping; once more to stop at once");
            }
        });
        if let Err(error) = waiter {
            tracing::warn!("interruptions will end the process at once: {error}");
        }
    }
}
