//! One volume, its containers, and the moment in which they are held.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use vsync_tests::docker::{BASE, docker};
use vsync_tests::{Container, DockerVolume, Realm, Running, Server, Vsync};

/// How long anything may take, on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(120);

/// A client with one volume.
pub(crate) struct Bed {
    pub(crate) volume: DockerVolume,
    pub(crate) realm: Realm,
    pub(crate) server: Server,
    begun: String,
}

impl Bed {
    /// With nothing said of the volume.
    pub(crate) fn new(stem: &str) -> Self {
        Self::with(stem, "")
    }

    /// With further lines in the volume's table.
    pub(crate) fn with(stem: &str, lines: &str) -> Self {
        Self::on(DockerVolume::new(stem), lines, "")
    }

    /// With further lines in the tables of the volume and of the client.
    pub(crate) fn on(volume: DockerVolume, lines: &str, client: &str) -> Self {
        let table = format!("[[volumes]]\nname = {:?}\n{lines}\n", volume.name());
        let realm = Realm::new().server("annex2").client_with("production2", &[volume.name()], client);
        let realm = realm.extra(&table).build();
        let server = realm.serve("annex2");
        Self { volume, realm, server, begun: now() }
    }

    pub(crate) fn vsync(&self) -> Vsync {
        self.realm.vsync("production2").limit(PATIENCE)
    }

    /// The words of a backup of the volume.
    pub(crate) fn backup<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        ["backup", self.volume.name()].into_iter().chain(more.iter().copied()).collect()
    }

    /// A container that uses the volume, with further arguments of `docker run`.
    pub(crate) fn user(&self, stem: &str, arguments: &[&str]) -> Container {
        let mount = format!("{}:/data", self.volume.name());
        let words = ["-v", &mount, "--stop-timeout", "1"];
        let words: Vec<&str> = words.iter().chain(arguments).chain(&[BASE, "sleep", "100000"]).copied().collect();
        Container::run(stem, &words)
    }

    /// The number of snapshots.
    pub(crate) fn snapshots(&self) -> usize {
        self.vsync().run(["snapshots", "--json"]).success().json().as_array().expect("a list").len()
    }

    /// Restores the last snapshot, and returns where to.
    pub(crate) fn restored(&self) -> (tempfile::TempDir, PathBuf) {
        let there = vsync_tests::scratch();
        let path = there.path().join("restored");
        let to = path.to_str().expect("a path");
        self.vsync().run(["restore", self.volume.name(), "--to-path", to]).success();
        (there, path)
    }

    /// What was done to a container since the bed was made, such as `pause unpause`.
    pub(crate) fn done_to(&self, container: &Container) -> Vec<String> {
        let filter = format!("container={}", container.name());
        let until = now();
        let words =
            ["events", "--since", &self.begun, "--until", &until, "--filter", &filter, "--format", "{{.Action}}"];
        let acts = ["pause", "unpause", "stop", "start", "restart", "kill", "destroy"];
        let mut done: Vec<String> =
            docker(words).lines().filter(|line| acts.contains(line)).map(str::to_owned).collect();
        // It was made before it was held.
        if done.first().is_some_and(|first| first == "start") {
            done.remove(0);
        }
        done
    }

    /// A file of the volume.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.volume.path().join(name)
    }

    /// Records of holds that are on the disk.
    pub(crate) fn records(&self) -> usize {
        let holds = self.realm.machine("production2").join("state/holds");
        let Ok(entries) = std::fs::read_dir(holds) else { return 0 };
        entries
            .filter(|entry| entry.as_ref().is_ok_and(|it| it.path().extension().is_some_and(|it| it == "json")))
            .count()
    }
}

/// A time in the words of `docker events`.
fn now() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time");
    format!("{}.{:09}", now.as_secs(), now.subsec_nanos())
}

/// Waits until something is so.
#[track_caller]
pub(crate) fn until(what: &str, mut so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < PATIENCE, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The command of a container that stops before the hold until it is let through: it makes `/data/ready`, and waits
/// for `/data/go`.
pub(crate) const GATE: &str =
    "vsync.exec-pre=touch /data/ready; while [ ! -e /data/go ]; do sleep 0.05; done; rm /data/go";

/// A backup that has read ahead, and has not begun to hold. There must be a container with the label [`GATE`].
pub(crate) fn at_the_gate(bed: &Bed, more: &[&str]) -> Running {
    to_the_gate(bed, bed.vsync(), more)
}

/// The same, by a vsync that is started otherwise.
pub(crate) fn to_the_gate(bed: &Bed, vsync: Vsync, more: &[&str]) -> Running {
    let mut running = vsync.spawn(bed.backup(more));
    until("the backup reads ahead", || {
        assert!(running.is_running(), "it ended early: {}", running.stderr_so_far());
        bed.file("ready").exists()
    });
    std::fs::remove_file(bed.file("ready")).expect("the sign");
    running
}

/// Lets a backup that waits at the gate go on.
pub(crate) fn open_the_gate(bed: &Bed) {
    std::fs::write(bed.file("go"), "").expect("the sign");
}

/// A backup that holds `container` and can get no further, as the server stands still. `server_goes_on` ends that.
pub(crate) fn in_the_hold(bed: &Bed, container: &Container, state: &str) -> Running {
    let mut running = at_the_gate(bed, &[]);
    bed.server.process().signal(Signal::STOP);
    open_the_gate(bed);
    until("the container is held", || {
        assert!(running.is_running(), "it ended early: {}", running.stderr_so_far());
        container.state() == state
    });
    running
}

/// Ends what [`in_the_hold`] began.
pub(crate) fn server_goes_on(bed: &Bed) {
    bed.server.process().signal(Signal::CONT);
}
