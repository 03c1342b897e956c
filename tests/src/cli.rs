//! Running vsync as its users do, in a sealed environment.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long a command may take unless [`Vsync::limit`] says otherwise.
const PATIENCE: Duration = Duration::from_secs(300);

/// vsync on one machine: every run sees that machine's directory and nothing of the caller's environment.
#[derive(Clone, Debug)]
pub struct Vsync {
    home: PathBuf,
    prefix: Vec<OsString>,
    first: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    stdin: Vec<u8>,
    limit: Duration,
}

impl Vsync {
    /// vsync with `home` as its working and home directory.
    #[must_use]
    pub fn at(home: &Path) -> Self {
        let vsync = Self {
            home: home.to_owned(),
            prefix: Vec::new(),
            first: Vec::new(),
            env: Vec::new(),
            stdin: Vec::new(),
            limit: PATIENCE,
        };
        // The only variables that a test cannot do without.
        ["DOCKER_HOST"]
            .into_iter()
            .filter_map(|name| Some((name, std::env::var_os(name)?)))
            .fold(vsync, |it, (name, value)| it.env(name, value))
    }

    /// The directory that commands run in.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// With arguments before those of each run, such as `--as NAME`.
    #[must_use]
    pub fn with<S: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.first.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// With an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// With bytes on standard input, which is empty otherwise.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Started by another program: `through(["strace", "-f"])`, `through(host.prefix())`.
    #[must_use]
    pub fn through<S: Into<OsString>>(mut self, prefix: impl IntoIterator<Item = S>) -> Self {
        self.prefix.extend(prefix.into_iter().map(Into::into));
        self
    }

    /// With another time limit than five minutes.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs a command to its end.
    #[must_use = "assert something about it: `.success()` or `.code(n)`"]
    #[track_caller]
    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Output {
        self.spawn(arguments).wait()
    }

    /// Starts a command, to be interrupted or watched.
    #[must_use]
    #[track_caller]
    pub fn spawn<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Running {
        let words: Vec<OsString> = (self.prefix.iter().cloned())
            .chain([crate::bin().into_os_string()])
            .chain(self.first.iter().cloned())
            .chain(arguments.into_iter().map(|argument| argument.as_ref().to_owned()))
            .collect();
        // Files, not pipes: nothing that is printed can block the command, and all of it can be read while it runs.
        let files = crate::scratch();
        let create = |name: &str| fs::File::create(files.path().join(name)).expect("a file for the output");
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(&self.home).env_clear();
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.envs([("LANG", "C.UTF-8"), ("TZ", "UTC"), ("RUST_BACKTRACE", "1")]).env("HOME", &self.home);
        // As root, vsync would keep its state where that of other tests is.
        command.env("VSYNC_STATE_DIR", self.home.join("state"));
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(if self.stdin.is_empty() { Stdio::null() } else { Stdio::piped() });
        command.stdout(create("stdout")).stderr(create("stderr"));
        let shown = words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{shown}: cannot be started: {error}"));
        if let Some(mut pipe) = child.stdin.take() {
            let bytes = self.stdin.clone();
            // A command that stops reading early closes the pipe: that is for the test to judge.
            std::thread::spawn(move || drop(pipe.write_all(&bytes)));
        }
        Running { child, files, shown, started: Instant::now(), limit: self.limit }
    }
}

/// A command that runs; killed if it is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    files: tempfile::TempDir,
    shown: String,
    started: Instant,
    limit: Duration,
}

impl Running {
    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    /// Sends a signal.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, signal).unwrap_or_else(|error| panic!("{}: {error}", self.shown));
    }

    /// What it has printed on standard output so far.
    #[must_use]
    pub fn stdout_so_far(&self) -> String {
        self.read("stdout")
    }

    /// What it has printed on standard error so far.
    #[must_use]
    pub fn stderr_so_far(&self) -> String {
        self.read("stderr")
    }

    fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.files.path().join(name)).expect("the output")).into_owned()
    }

    /// Waits until standard error holds a line with `text`, and returns that line.
    ///
    /// # Panics
    /// If the command ends before, or the time is up.
    #[track_caller]
    pub fn wait_for_stderr(&mut self, text: &str) -> String {
        loop {
            let ended = !self.is_running();
            let stderr = self.stderr_so_far();
            let complete = &stderr[..stderr.rfind('\n').map_or(0, |end| end + 1)];
            if let Some(line) = complete.lines().find(|line| line.contains(text)) {
                return line.to_owned();
            }
            assert!(!ended, "{} ended before it printed {text:?}; stderr:\n{stderr}", self.shown);
            let waited = self.started.elapsed();
            assert!(waited < self.limit, "{} did not print {text:?} in {waited:?}; stderr:\n{stderr}", self.shown);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// If the time is up; the command is killed.
    #[must_use = "assert something about it: `.success()` or `.code(n)`"]
    #[track_caller]
    pub fn wait(mut self) -> Output {
        let mut pause = Duration::from_millis(1);
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            if self.started.elapsed() > self.limit {
                self.signal(Signal::KILL);
                let (stdout, stderr) = (self.stdout_so_far(), self.stderr_so_far());
                panic!("{}: killed after {:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}", self.shown, self.limit);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        };
        let elapsed = self.started.elapsed();
        let stdout = fs::read(self.files.path().join("stdout")).expect("the output");
        Output { shown: self.shown.clone(), status, stdout, stderr: self.stderr_so_far(), elapsed }
    }

    /// Waits for the end, at most so long from now.
    #[must_use = "assert something about it: `.success()` or `.code(n)`"]
    #[track_caller]
    pub fn wait_within(mut self, patience: Duration) -> Output {
        self.limit = self.started.elapsed() + patience;
        self.wait()
    }

    /// Kills it as a power cut would, and waits for the end.
    #[track_caller]
    pub fn kill(self) -> Output {
        self.signal(Signal::KILL);
        self.wait_within(PATIENCE)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has usually ended; then both calls fail or return at once.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What a command did.
#[derive(Debug)]
pub struct Output {
    shown: String,
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: String,
    elapsed: Duration,
}

impl Output {
    /// Asserts exit status 0.
    #[track_caller]
    pub fn success(self) -> Self {
        self.code(0)
    }

    /// Asserts an exit status.
    #[track_caller]
    pub fn code(self, expected: i32) -> Self {
        assert!(self.status.code() == Some(expected), "expected exit status {expected} of {self}");
        self
    }

    /// Asserts that a signal ended it.
    #[track_caller]
    pub fn died(self) -> Self {
        assert!(self.status.code().is_none(), "expected death by a signal of {self}");
        self
    }

    /// Asserts that standard output holds `text`.
    #[track_caller]
    pub fn stdout_contains(self, text: &str) -> Self {
        assert!(self.stdout().contains(text), "expected {text:?} in the stdout of {self}");
        self
    }

    /// Asserts that standard error holds `text`.
    #[track_caller]
    pub fn stderr_contains(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "expected {text:?} in the stderr of {self}");
        self
    }

    /// Standard output.
    ///
    /// # Panics
    /// If it is not UTF-8.
    #[must_use]
    #[track_caller]
    pub fn stdout(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("text on stdout")
    }

    /// Standard output as bytes.
    #[must_use]
    pub fn stdout_bytes(&self) -> &[u8] {
        &self.stdout
    }

    /// Standard error.
    #[must_use]
    pub fn stderr(&self) -> &str {
        &self.stderr
    }

    /// Standard output as one JSON value.
    #[must_use]
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("expected JSON ({error}) from {self}"))
    }

    /// Standard output as one JSON value in each line.
    #[must_use]
    #[track_caller]
    pub fn json_lines(&self) -> Vec<serde_json::Value> {
        let parse = |line: &str| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("expected JSON ({error}) in {line:?} from {self}"))
        };
        self.stdout().lines().map(parse).collect()
    }

    /// The last JSON value on standard output, which sums up what a backup or restore did; those before it tell how
    /// far it was.
    #[must_use]
    #[track_caller]
    pub fn summary(&self) -> serde_json::Value {
        let last = self.json_lines().pop();
        let summary = last.filter(|value| value["message_type"] == "summary");
        summary.unwrap_or_else(|| panic!("expected a summary as the last line of {self}"))
    }

    /// The exit status; `None` after a signal.
    #[must_use]
    pub fn status(&self) -> Option<i32> {
        self.status.code()
    }

    /// How long it took.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let stdout = String::from_utf8_lossy(&self.stdout);
        write!(f, "{}\n--- {}\n--- stdout\n{stdout}\n--- stderr\n{}", self.shown, self.status, self.stderr)
    }
}
