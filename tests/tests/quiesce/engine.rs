//! An engine that restarts while containers are held. It is one of this test alone: others use theirs.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use vsync_tests::docker::{BASE, docker};
use vsync_tests::{Realm, Running, Server, Vsync, shell};

use super::bed::{GATE, until};

/// A second dockerd, without network, with all its files below one directory.
struct Engine {
    home: tempfile::TempDir,
    daemon: Option<Child>,
}

impl Engine {
    fn start() -> Self {
        // Sockets have short paths.
        let home = tempfile::Builder::new().prefix("vq").tempdir_in("/var/tmp").expect("a directory");
        std::fs::write(home.path().join("daemon.json"), "{}").expect("a file");
        let mut engine = Self { home, daemon: None };
        engine.up();
        let archive = engine.path("image.tar");
        docker(["save", "-o", archive.to_str().expect("a path"), BASE]);
        engine.docker(&["load", "-q", "-i", archive.to_str().expect("a path")]);
        engine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn host(&self) -> String {
        format!("unix://{}", self.path("docker.sock").display())
    }

    fn up(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.path("log")).expect("a log");
        let directory = |name: &str| self.path(name).into_os_string();
        let mut command = Command::new("dockerd");
        command.arg("--config-file").arg(directory("daemon.json")).args(["--host", &self.host()]);
        command.arg("--pidfile").arg(directory("pid")).arg("--data-root").arg(directory("data"));
        command.arg("--exec-root").arg(directory("exec")).args(["--bridge", "none", "--iptables=false"]);
        command.args(["--ip6tables=false", "--ip-forward=false", "--ip-masq=false", "--shutdown-timeout", "5"]);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        self.daemon = Some(command.spawn().expect("dockerd"));
        until("the second engine answers", || {
            shell::attempt(Command::new("docker").args(["-H", &self.host(), "version"])).is_ok()
        });
    }

    fn down(&mut self) {
        let mut daemon = self.daemon.take().expect("a daemon");
        let pid = i32::try_from(daemon.id()).ok().and_then(Pid::from_raw).expect("a process");
        kill_process(pid, Signal::TERM).expect("a signal");
        daemon.wait().expect("its end");
    }

    fn docker(&self, words: &[&str]) -> String {
        let host = self.host();
        shell::run("docker", ["-H", &host].iter().chain(words))
    }

    fn state(&self, container: &str) -> String {
        self.docker(&["inspect", "-f", "{{.State.Status}}", container])
    }

    fn run(&self, name: &str, policy: &str, mode: &str, gate: bool) {
        let (policy, mode) = (format!("--restart={policy}"), format!("vsync.quiesce={mode}"));
        let mut words = vec!["run", "-d", "--name", name, "--network", "none", "--stop-timeout", "1", &policy];
        words.extend(["-v", "data:/data", "--label", &mode]);
        words.extend(gate.then_some(["--label", GATE]).into_iter().flatten());
        words.extend([BASE, "sleep", "100000"]);
        self.docker(&words);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.daemon.is_some() {
            let ids =
                shell::attempt(Command::new("docker").args(["-H", &self.host(), "ps", "-aq"])).unwrap_or_default();
            for id in ids.lines() {
                drop(shell::attempt(Command::new("docker").args(["-H", &self.host(), "rm", "-f", id])));
            }
            self.down();
        }
    }
}

struct Bed {
    engine: Engine,
    realm: Realm,
    server: Server,
}

impl Bed {
    fn vsync(&self) -> Vsync {
        self.realm.vsync("host").env("DOCKER_HOST", self.engine.host())
    }

    fn in_the_hold(&self, container: &str, state: &str) -> Running {
        let data: PathBuf = self.engine.docker(&["volume", "inspect", "-f", "{{.Mountpoint}}", "data"]).into();
        let mut running = self.vsync().spawn(["backup", "data"]);
        until("the backup reads ahead", || {
            assert!(running.is_running(), "{}", running.stderr_so_far());
            data.join("ready").exists()
        });
        std::fs::remove_file(data.join("ready")).expect("the sign");
        self.server.process().signal(Signal::STOP);
        std::fs::write(data.join("go"), "").expect("the sign");
        until("it is held", || self.engine.state(container) == state);
        running
    }

    fn restart_engine(&mut self) {
        self.engine.down();
        self.engine.up();
    }

    fn snapshots(&self) -> usize {
        self.vsync().run(["snapshots", "--json"]).success().json().as_array().expect("a list").len()
    }
}

#[test]
fn an_engine_that_restarts_spoils_the_hold_and_leaves_nothing_behind() {
    let realm = Realm::new().server("store").client("host", &["data"]).build();
    let server = realm.serve("store");
    let mut bed = Bed { engine: Engine::start(), realm, server };
    bed.engine.docker(&["volume", "create", "data"]);
    bed.engine.run("a-frozen", "no", "pause", true);
    bed.engine.run("b-always", "always", "pause", false);
    bed.engine.run("c-stopped", "no", "stop", false);

    // vsync lives: it notices.
    let backup = bed.in_the_hold("c-stopped", "exited");
    bed.restart_engine();
    bed.server.process().signal(Signal::CONT);
    let _ = backup.wait().code(1).stderr_contains("did not stand still");
    assert_eq!(bed.snapshots(), 0);
    let states = ["a-frozen", "b-always", "c-stopped"].map(|name| bed.engine.state(name));
    // What was frozen has no policy, and is as an engine leaves such; what was stopped by us is back.
    assert_eq!(states, ["exited", "running", "running"]);

    // vsync is killed, and then the engine restarts.
    bed.engine.docker(&["start", "a-frozen"]);
    bed.in_the_hold("c-stopped", "exited").kill().died();
    bed.server.process().signal(Signal::CONT);
    bed.restart_engine();
    let _ = bed.vsync().run(["unhold"]).success();
    let states = ["a-frozen", "b-always", "c-stopped"].map(|name| bed.engine.state(name));
    assert_eq!(states, ["exited", "running", "running"]);
    let _ = bed.vsync().run(["unhold"]).success().stdout_contains("nothing is held");
}

#[test]
fn an_engine_that_is_away_when_the_hold_ends_is_waited_for() {
    let realm = Realm::new().server("store").client("host", &["data"]).build();
    let server = realm.serve("store");
    let mut bed = Bed { engine: Engine::start(), realm, server };
    bed.engine.docker(&["volume", "create", "data"]);
    bed.engine.run("a-stopped", "no", "stop", true);
    let mut backup = bed.in_the_hold("a-stopped", "exited");
    bed.engine.down();
    bed.server.process().signal(Signal::CONT);
    // Long enough to find nobody there.
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(backup.is_running(), "{}", backup.stderr_so_far());
    bed.engine.up();
    // It stayed stopped all the time.
    let _ = backup.wait().success();
    assert_eq!((bed.engine.state("a-stopped").as_str(), bed.snapshots()), ("running", 1));
}
