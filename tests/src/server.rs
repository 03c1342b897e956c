//! A server process, ready when it is returned and gone when it is dropped.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::{Output, Running, Vsync};

/// How long a server may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running `vsync server run`.
#[derive(Debug)]
pub struct Server {
    vsync: Vsync,
    running: Option<Running>,
    address: String,
}

impl Server {
    /// Starts the server of the machine that `vsync` runs on, and waits until it listens.
    #[must_use]
    #[track_caller]
    pub fn start(vsync: Vsync) -> Self {
        let mut server = Self { vsync, running: None, address: String::new() };
        server.restart();
        server
    }

    /// The same; when it ends before it listens, what it said.
    ///
    /// # Errors
    /// With all that it printed.
    #[track_caller]
    pub fn try_start(vsync: Vsync) -> Result<Self, Box<Output>> {
        let mut running = vsync.clone().limit(PATIENCE).spawn(["server", "run"]);
        loop {
            let ended = !running.is_running();
            if let Some(address) = listening(&running.stderr_so_far()) {
                return Ok(Self { vsync, running: Some(running), address });
            }
            if ended {
                return Err(Box::new(running.wait()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts it again; one that still runs is asked to stop first.
    ///
    /// # Panics
    /// If it does not say `listening on ADDRESS`.
    #[track_caller]
    pub fn restart(&mut self) {
        if self.running.is_some() {
            self.stop().success();
        }
        let mut running = self.vsync.clone().limit(PATIENCE).spawn(["server", "run"]);
        let line = running.wait_for_stderr("listening on ");
        self.address = listening(&line).unwrap_or_else(|| panic!("no address in {line:?}"));
        self.running = Some(running);
    }

    /// Asks it to stop, as systemd and Docker do (SIGTERM), and waits.
    #[track_caller]
    pub fn stop(&mut self) -> Output {
        let running = self.running.take().expect("a server that runs");
        running.signal(Signal::TERM);
        running.wait_within(PATIENCE)
    }

    /// Kills it as a power cut would, without a moment to tidy up.
    #[track_caller]
    pub fn kill(&mut self) {
        self.running.take().expect("a server that runs").kill().died();
    }

    /// The address that it listens on.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Where it shows its status, `IP:PORT`, if `VSYNC_STATUS_ADDRESS` or the configuration asks for that.
    ///
    /// # Panics
    /// If it does not say so soon.
    #[must_use]
    #[track_caller]
    pub fn status_address(&self) -> String {
        let begun = Instant::now();
        loop {
            let log = self.log();
            if let Some((address, _)) = log.split_once("status at http://").and_then(|(_, rest)| rest.split_once('/')) {
                return address.to_owned();
            }
            assert!(begun.elapsed() < PATIENCE, "it does not say where its status is:\n{log}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The process, for signals, logs and `/proc`.
    ///
    /// # Panics
    /// If it was stopped.
    #[must_use]
    #[track_caller]
    pub fn process(&self) -> &Running {
        self.running.as_ref().expect("a server that runs")
    }

    /// What it has logged since it started, if it still is there.
    #[must_use]
    pub fn log_if_running(&self) -> Option<String> {
        self.running.as_ref().map(Running::stderr_so_far)
    }

    /// What it has logged since it started.
    #[must_use]
    #[track_caller]
    pub fn log(&self) -> String {
        self.process().stderr_so_far()
    }
}

/// The address in a server's words, once it has said it.
fn listening(stderr: &str) -> Option<String> {
    let address = stderr.split("listening on ").nth(1)?.split_once(char::is_whitespace)?.0;
    Some(address.to_owned())
}
