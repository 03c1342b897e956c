//! A web server and a mail server that take news, and what was delivered to them.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long the servers may take to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// Both servers; gone with the guard.
#[derive(Debug)]
pub struct Sinks {
    process: Child,
    directory: tempfile::TempDir,
    http: u16,
    smtp: u16,
    https: u16,
}

impl Sinks {
    /// Starts them.
    ///
    /// # Panics
    /// If they do not start.
    #[must_use]
    #[track_caller]
    pub fn start() -> Self {
        let directory = crate::scratch();
        let python = std::env::var_os("VSYNC_TEST_PYTHON").expect("VSYNC_TEST_PYTHON, which tests/run sets");
        let process = Command::new(python)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/sinks.py"))
            .arg(directory.path())
            .stdin(Stdio::null())
            .spawn()
            .expect("Python starts");
        let mut sinks = Self { process, directory, http: 0, smtp: 0, https: 0 };
        let started = Instant::now();
        let ports = loop {
            if let Ok(ports) = std::fs::read_to_string(sinks.directory.path().join("ports")) {
                break ports;
            }
            assert!(started.elapsed() < PATIENCE, "the sinks do not start");
            std::thread::sleep(Duration::from_millis(50));
        };
        let mut ports = ports.split_whitespace().map(|port| port.parse().expect("a port"));
        for place in [&mut sinks.http, &mut sinks.smtp, &mut sinks.https] {
            *place = ports.next().expect("a port");
        }
        sinks
    }

    /// The web server's URL of `path`.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.http)
    }

    /// The same over TLS, with a certificate of [`Self::ca`].
    #[must_use]
    pub fn https_url(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}/{path}", self.https)
    }

    /// The mail server, which wants STARTTLS, and the login `vsync` with the password `let me in`.
    #[must_use]
    pub fn smtp(&self) -> String {
        format!("smtp://vsync@localhost:{}", self.smtp)
    }

    /// The certificate of the authority of the mail server and of the web server with TLS.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// From now on both servers refuse everything, or take it again.
    ///
    /// # Panics
    /// If that cannot be told to them.
    #[track_caller]
    pub fn refuse(&self, refuse: bool) {
        let file = self.directory.path().join("refuse");
        if refuse {
            std::fs::write(file, "").expect("a file");
        } else {
            std::fs::remove_file(file).expect("the file");
        }
    }

    /// All that was delivered so far.
    #[must_use]
    pub fn deliveries(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.directory.path().join("deliveries")).unwrap_or_default();
        // The last line may be half written.
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for a delivery of which `is_it` is true, and returns it.
    ///
    /// # Panics
    /// If none comes within `patience`.
    #[track_caller]
    pub fn wait_for(&self, patience: Duration, is_it: impl Fn(&Value) -> bool) -> Value {
        let started = Instant::now();
        loop {
            let deliveries = self.deliveries();
            if let Some(found) = deliveries.iter().find(|delivery| is_it(delivery)) {
                return found.clone();
            }
            assert!(started.elapsed() < patience, "not delivered; there are {deliveries:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Sinks {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
