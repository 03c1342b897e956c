//! Docker as tests see it: volumes and containers that disappear with their guards, in the daemon of `tests/run`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::{shell, unique};

/// The image with busybox and vsync.
pub const BASE: &str = "vsync-test/base";
/// The image whose entry point is vsync.
pub const VSYNC: &str = "vsync-test/vsync";
/// The image that `deploy/Dockerfile` makes: vsync and nothing else.
pub const SHIPPED: &str = "vsync-test/shipped";
/// The image with PostgreSQL 15.
pub const POSTGRES: &str = "vsync-test/postgres";

/// How long PostgreSQL may take to start, on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the `docker` command and returns what it prints.
///
/// # Panics
/// If it fails, or no test daemon runs.
#[track_caller]
pub fn docker<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> String {
    assert!(std::env::var_os("DOCKER_HOST").is_some(), "DOCKER_HOST is not set: run the tests with `tests/run`");
    shell::run("docker", arguments)
}

/// A named volume.
#[derive(Debug)]
pub struct DockerVolume {
    name: String,
}

impl DockerVolume {
    /// A new volume of the local driver, with a name of its own that ends in `stem`.
    #[must_use]
    #[track_caller]
    pub fn new(stem: &str) -> Self {
        Self::with(stem, &[])
    }

    /// A new volume with further arguments of `docker volume create`, such as `--label` or `--opt`.
    #[must_use]
    #[track_caller]
    pub fn with(stem: &str, arguments: &[&str]) -> Self {
        let volume = Self::named(&unique(stem));
        docker(["volume", "create"].iter().chain(arguments).chain(&[volume.name.as_str()]));
        volume
    }

    /// A new volume of exactly this name, for tests that tell a story whose volumes have names.
    ///
    /// # Panics
    /// If there is one already: two tests want the same name.
    #[must_use]
    #[track_caller]
    pub fn exactly(name: &str, arguments: &[&str]) -> Self {
        let volume = Self::named(name);
        assert!(!volume.exists(), "there is a volume {name} already");
        docker(["volume", "create"].iter().chain(arguments).chain(&[name]));
        volume
    }

    /// Removes, at the end, a volume that something else makes: the target of a restore.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned() }
    }

    /// Like [`Self::named`], with a name that nothing has yet.
    #[must_use]
    pub fn absent(stem: &str) -> Self {
        Self::named(&unique(stem))
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory on this machine.
    #[must_use]
    #[track_caller]
    pub fn path(&self) -> PathBuf {
        docker(["volume", "inspect", "-f", "{{.Mountpoint}}", &self.name]).into()
    }

    /// Whether it exists.
    #[must_use]
    #[track_caller]
    pub fn exists(&self) -> bool {
        docker(["volume", "ls", "-q"]).lines().any(|name| name == self.name)
    }

    /// `docker volume inspect` of it.
    #[must_use]
    #[track_caller]
    pub fn inspect(&self) -> serde_json::Value {
        let list: serde_json::Value =
            serde_json::from_str(&docker(["volume", "inspect", &self.name])).expect("docker prints JSON");
        list[0].clone()
    }
}

impl Drop for DockerVolume {
    fn drop(&mut self) {
        // It may never have been made, or the test may have removed it.
        drop(shell::attempt(std::process::Command::new("docker").args(["volume", "rm", "-f", &self.name])));
    }
}

/// A container, killed and removed with its guard.
#[derive(Debug)]
pub struct Container {
    name: String,
}

impl Container {
    /// Starts a container in the background: arguments of `docker run`, the image, the command. It has no network
    /// unless the arguments give it one.
    #[must_use]
    #[track_caller]
    pub fn run(stem: &str, arguments: &[&str]) -> Self {
        let container = Self { name: unique(stem) };
        let network: &[&str] = match arguments.iter().any(|argument| argument.starts_with("--net")) {
            true => &[],
            false => &["--network", "none"],
        };
        let words = ["run", "-d", "--name", &container.name];
        docker(words.iter().chain(network).chain(arguments));
        container
    }

    /// Removes, at the end, a container that something else makes, with a name that nothing has yet.
    #[must_use]
    pub fn absent(stem: &str) -> Self {
        Self { name: unique(stem) }
    }

    /// `docker inspect` of it.
    #[must_use]
    #[track_caller]
    pub fn inspect(&self) -> serde_json::Value {
        let list: serde_json::Value =
            serde_json::from_str(&docker(["inspect", &self.name])).expect("docker prints JSON");
        list[0].clone()
    }

    /// Whether it exists.
    #[must_use]
    #[track_caller]
    pub fn exists(&self) -> bool {
        docker(["ps", "-a", "--format", "{{.Names}}"]).lines().any(|name| name == self.name)
    }

    /// A container that uses a volume and does nothing else.
    #[must_use]
    #[track_caller]
    pub fn using(volume: &DockerVolume) -> Self {
        let mount = format!("{}:/data", volume.name());
        Self::run("user", &["-v", &mount, "--stop-timeout", "1", BASE, "sleep", "100000"])
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a program inside.
    #[track_caller]
    pub fn exec(&self, command: &[&str]) -> String {
        docker(["exec", &self.name].iter().chain(command))
    }

    /// `created`, `running`, `paused`, `exited` …
    #[must_use]
    #[track_caller]
    pub fn state(&self) -> String {
        docker(["inspect", "-f", "{{.State.Status}}", &self.name])
    }

    /// Since when it runs: another time after a restart.
    #[must_use]
    #[track_caller]
    pub fn started_at(&self) -> String {
        docker(["inspect", "-f", "{{.State.StartedAt}}", &self.name])
    }

    /// Everything that it has printed.
    #[must_use]
    #[track_caller]
    pub fn logs(&self) -> String {
        shell::run("sh", ["-c", "exec docker logs \"$1\" 2>&1", "sh", &self.name])
    }

    /// `docker stop`, `start`, `pause`, `unpause`, `kill`, `restart`.
    #[track_caller]
    pub fn tell(&self, verb: &str) {
        docker([verb, &self.name]);
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        drop(shell::attempt(std::process::Command::new("docker").args(["rm", "-f", &self.name])));
    }
}

/// PostgreSQL in a container, its cluster at the root of a volume.
#[derive(Debug)]
pub struct Postgres {
    container: Container,
}

impl Postgres {
    /// Starts PostgreSQL on a volume, makes a cluster with checksums if it is empty, and waits until it answers.
    #[must_use]
    #[track_caller]
    pub fn start(volume: &DockerVolume) -> Self {
        Self::start_with(volume, &[], &[])
    }

    /// The same, with further arguments of `docker run` and of the server (`-c name=value`).
    #[must_use]
    #[track_caller]
    pub fn start_with(volume: &DockerVolume, docker: &[&str], server: &[&str]) -> Self {
        let mount = format!("{}:/var/lib/postgresql/data", volume.name());
        let words = ["-v", &mount, "--shm-size", "256m"];
        let arguments: Vec<&str> =
            words.iter().chain(docker).chain(&[POSTGRES, "postgres-entry"]).chain(server).copied().collect();
        let postgres = Self { container: Container::run("postgres", &arguments) };
        postgres.wait();
        postgres
    }

    /// Waits until it answers.
    ///
    /// # Panics
    /// If it does not; with its log.
    #[track_caller]
    pub fn wait(&self) {
        let started = Instant::now();
        let mut ask = std::process::Command::new("docker");
        ask.args(["exec", self.container.name(), "psql", "-Atqc", "select 1", "postgres"]);
        while let Err(failure) = shell::attempt(&mut ask) {
            let waits = started.elapsed() < PATIENCE && self.container.state() == "running";
            assert!(waits, "PostgreSQL does not answer: {failure}\n--- log\n{}", self.container.logs());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The container.
    #[must_use]
    pub fn container(&self) -> &Container {
        &self.container
    }

    /// Runs statements, and returns the rows without headings.
    #[track_caller]
    pub fn psql(&self, sql: &str) -> String {
        self.container.exec(&["psql", "-v", "ON_ERROR_STOP=1", "-Atqc", sql, "postgres"])
    }

    /// Fills the database with pgbench's tables: 100,000 accounts, about 15 MB, for each of `scale`.
    #[track_caller]
    pub fn fill(&self, scale: u32) {
        self.container.exec(&["pgbench", "-q", "-i", "-s", &scale.to_string(), "postgres"]);
    }

    /// Runs so many transactions of pgbench.
    #[track_caller]
    pub fn work(&self, transactions: u32) {
        self.container.exec(&["pgbench", "-n", "-t", &transactions.to_string(), "postgres"]);
    }

    /// Runs so many transactions of pgbench, the same ones for the same `seed`.
    #[track_caller]
    pub fn work_again(&self, transactions: u32, seed: u32) {
        let (transactions, seed) = (transactions.to_string(), format!("--random-seed={seed}"));
        self.container.exec(&["pgbench", "-n", &seed, "-t", &transactions, "postgres"]);
    }

    /// The numbers that pgbench keeps equal: balances of accounts, tellers, branches, and the history's sum.
    ///
    /// # Panics
    /// If they are not equal: transactions were torn.
    #[track_caller]
    pub fn balance(&self) -> i64 {
        let sums = self.psql(
            "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers), \
             (select sum(bbalance) from pgbench_branches), (select coalesce(sum(delta), 0) from pgbench_history)",
        );
        let sums: Vec<i64> = sums.split('|').map(|sum| sum.parse().expect("a number")).collect();
        assert!(sums.iter().all(|sum| *sum == sums[0]), "torn transactions: {sums:?}");
        sums[0]
    }

    /// Checks every table and index against its heap (`pg_amcheck`).
    #[track_caller]
    pub fn check(&self) {
        self.container.exec(&["pg_amcheck", "--install-missing", "--heapallindexed", "postgres"]);
    }

    /// A digest of the rows of a table, in the order of their text.
    #[track_caller]
    pub fn digest(&self, table: &str) -> String {
        self.psql(&format!("select md5(coalesce(string_agg(t::text, chr(10) order by t::text), '')) from {table} t"))
    }

    /// Stops it in order (a fast shutdown), and removes the container.
    #[track_caller]
    pub fn stop(self) {
        self.container.tell("stop");
    }

    /// Kills it, as a power cut would, and removes the container.
    #[track_caller]
    pub fn kill(self) {
        self.container.tell("kill");
    }
}

/// Verifies every page checksum of a stopped cluster, and that it was shut down in order if `clean`.
///
/// # Panics
/// If a page is damaged.
#[track_caller]
pub fn checksums(cluster: &Path, clean: bool) {
    let program = |name: &str| format!("/usr/lib/postgresql/15/bin/{name}");
    let state = shell::run(&program("pg_controldata"), [cluster]);
    let shut_down =
        state.lines().any(|line| line.starts_with("Database cluster state:") && line.ends_with("shut down"));
    assert!(!clean || shut_down, "not shut down in order:\n{state}");
    // The program refuses a cluster that was not shut down; crash recovery needs PostgreSQL itself.
    if shut_down {
        shell::run(&program("pg_checksums"), ["--check".as_ref(), "-D".as_ref(), cluster.as_os_str()]);
    }
}
