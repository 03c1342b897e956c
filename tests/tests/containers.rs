//! Servers and schedules in containers of their own: made by one command, back after a crash, and gone with another.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use serde_json::Value;
use vsync_tests::docker::{self, docker};
use vsync_tests::{Container, DockerVolume, Output, Realm, Tree, Volume, Vsync, assert_same, scratch, shell};

/// A network with a bridge, over which ports can be published; the usual one need not be there.
struct Bridge(String);

impl Bridge {
    fn new() -> Self {
        let name = Container::absent("net").name().to_owned();
        docker(["network", "create", &name]);
        Self(name)
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        drop(shell::attempt(std::process::Command::new("docker").args(["network", "rm", &self.0])));
    }
}

/// A realm whose server, and the schedules of whose machines, run in containers of these names.
struct Bed {
    realm: Realm,
    server: Container,
    schedules: Vec<Container>,
}

impl Bed {
    fn new(clients: &[(&str, &str)]) -> Self {
        // The engine's proxy answers from the first address of this machine, whichever was asked.
        let port = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
        let mut realm = Realm::new().server_at("store", &format!("127.0.0.1:{port}"));
        for (name, volume) in clients {
            let entry = format!("[[clients.schedule]]\nvolume = {volume:?}\nserver = \"store\"\nat = \"* * * * *\"\n");
            realm = realm.client_with(name, &[volume], &format!("schedule-container = \"SCHEDULE-{name}\"\n{entry}"));
        }
        let realm = realm.client("uat", &[]).build();
        let server = Container::absent("server");
        let schedules: Vec<Container> = clients.iter().map(|_| Container::absent("schedule")).collect();
        realm.edit(|toml| {
            let named = toml
                .replace("name = \"test\"", "name = \"test\"\njitter = \"0s\"")
                .replace("name = \"store\"", &format!("name = \"store\"\ncontainer = {:?}", server.name()));
            clients
                .iter()
                .zip(&schedules)
                .fold(named, |toml, ((name, _), container)| toml.replace(&format!("SCHEDULE-{name}"), container.name()))
        });
        Self { realm, server, schedules }
    }

    fn on(&self, machine: &str) -> Vsync {
        self.realm.vsync(machine)
    }

    fn start_server(&self, network: &str) -> Output {
        self.on("store").run(["server", "start", "--image", docker::VSYNC, "--network", network])
    }

    fn snapshots(&self) -> usize {
        self.on("uat").run(["snapshots", "--json"]).success().json().as_array().expect("a list").len()
    }
}

/// Waits until `condition` holds.
#[track_caller]
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(180), "it never came: {what}");
        std::thread::sleep(Duration::from_millis(300));
    }
}

#[test]
fn three_commands_make_a_server_of_a_fresh_machine() {
    let bridge = Bridge::new();
    let volume = DockerVolume::new("data");
    let bed = Bed::new(&[("host", volume.name())]);
    Volume::at(&volume.path(), 1).many("files", 30, 4000);

    bed.on("store").run(["configure", "store"]).success();
    bed.on("store").run(["check"]).code(1).stdout_contains("there is no data directory");
    bed.start_server(&bridge.0).success().stdout_contains("is running");
    bed.on("store").run(["check"]).success();
    bed.on("store").run(["server", "status"]).success().stdout_contains("running").stdout_contains("listening on");
    bed.on("host").run(["check", "--connection"]).success();
    bed.on("host").run(["backup"]).success();
    bed.start_server(&bridge.0).success().stdout_contains("already");

    // What it may, and what it sees.
    let container = bed.server.inspect();
    let host = &container["HostConfig"];
    assert_eq!(host["RestartPolicy"]["Name"], "unless-stopped");
    assert_eq!(
        (&host["LogConfig"]["Type"], &host["LogConfig"]["Config"]["max-size"]),
        (&"json-file".into(), &"10m".into())
    );
    assert_eq!((&host["ReadonlyRootfs"], &host["Privileged"]), (&true.into(), &false.into()));
    assert_eq!(host["CapDrop"], serde_json::json!(["ALL"]));
    assert_eq!(container["Mounts"].as_array().expect("mounts").len(), 3, "{}", container["Mounts"]);
    let keys = bed.realm.admin().with_file_name("keys");
    assert!(keys.join("realm.key").exists() && keys.join("machines/host.key").exists());
    let seen = bed.server.exec(&["find", keys.to_str().expect("a path"), "-type", "f"]);
    assert_eq!(seen, keys.join("machines/store.key").display().to_string(), "its own key and no other");

    // It comes back by itself.
    let process = docker(["inspect", "-f", "{{.State.Pid}}", bed.server.name()]);
    shell::run("kill", ["-KILL", &process]);
    until("a restart", || {
        let status = bed.on("store").run(["server", "status", "--json"]);
        status.status() == Some(0) && status.json()["restarts"] == 1
    });
    until("the server", || bed.on("uat").run(["snapshots"]).status() == Some(0));
    bed.on("host").run(["backup"]).success();

    bed.on("store").run(["server", "stop"]).success().stdout_contains("was stopped and removed");
    assert!(!bed.server.exists());
    bed.on("store").run(["server", "status"]).code(10).stdout_contains("to do: vsync server start");
    bed.on("store").run(["server", "stop"]).success().stdout_contains("does not exist");
    bed.start_server("host").success();
    assert_eq!(bed.snapshots(), 2, "what it stored is on the machine, not in the container");
    let restored = scratch();
    let there = restored.path().join("there");
    bed.on("uat").run(["restore", volume.name(), "--to-path", there.to_str().expect("a path")]).success();
    assert_same(&Tree::read(volume.path()), &Tree::read(there));
}

#[test]
fn a_start_that_fails_says_why_and_leaves_nothing_behind() {
    let bed = Bed::new(&[]);
    let data = bed.realm.store("store");
    std::fs::create_dir_all(&data).expect("a directory");
    std::fs::write(data.join("something"), "else").expect("a file");
    let failed = bed.start_server("host").code(1);
    failed.stderr_contains("did not come to work, and was removed again. It said:").stderr_contains("error: ");
    assert!(!bed.server.exists());

    std::fs::remove_file(data.join("something")).expect("a file");
    shell::run("chown", ["1234", data.to_str().expect("a path")]);
    bed.start_server("host").code(1).stderr_contains("belongs to user 1234").stderr_contains("to do: chown -R 0 ");
    shell::run("chown", ["0", data.to_str().expect("a path")]);

    // A container of that name that is not ours is left alone.
    docker(["run", "-d", "--network", "none", "--name", bed.server.name(), docker::BASE, "sleep", "100000"]);
    bed.start_server("host").code(1).stderr_contains("that vsync did not make");
    bed.on("store").run(["server", "stop"]).code(1).stderr_contains("that vsync did not make");
    assert_eq!(bed.server.state(), "running");

    bed.on("uat").run(["server", "start"]).code(2).stderr_contains("uat is a client");
    bed.on("uat").run(["schedule", "start"]).code(2).stderr_contains("uat has no schedule");
}

/// What `vsync schedule status` says of the only entry.
fn entry(vsync: &Vsync) -> (bool, Value) {
    let status = vsync.run(["schedule", "status", "--json"]);
    let status = status.json();
    (status["running"] == true, status["entries"][0].clone())
}

#[test]
fn every_night_each_machine_backs_up_and_a_server_that_was_away_is_made_up_for() {
    let volumes = [DockerVolume::new("orderly"), DockerVolume::new("outpack")];
    let bed = Bed::new(&[("production", volumes[0].name()), ("science", volumes[1].name())]);
    let machines = ["production", "science"];
    for (volume, seed) in volumes.iter().zip(1..) {
        let content = Volume::at(&volume.path(), seed);
        content.many("archive", 40, 3000).owner("archive", 70, 70).write("night", "1");
    }
    bed.start_server("host").success();
    for machine in machines {
        let words = ["schedule", "start", "--image", docker::VSYNC, "--tries", "2", "--retry-after", "5s"];
        bed.on(machine).run(words).success().stdout_contains("is running");
    }
    for machine in machines {
        until("a first night", || entry(&bed.on(machine)).1["last_exit_code"] == 0);
        let (running, first) = entry(&bed.on(machine));
        assert!(running && first["next"].is_string() && first["last_snapshot"].is_string(), "{first}");
    }
    // The volumes are there to be read, and a restore into one is not kept from it.
    let mounts = bed.schedules[0].inspect()["Mounts"].clone();
    let inside = format!("/vsync/volumes/{}", volumes[0].name());
    let mount = mounts.as_array().expect("mounts").iter().find(|mount| mount["Destination"] == inside.as_str());
    assert_eq!(mount.expect("the volume")["RW"], false);

    // A night in which the server is away.
    bed.on("store").run(["server", "stop"]).success();
    for (volume, seed) in volumes.iter().zip(3..) {
        Volume::at(&volume.path(), seed).write("night", "2").random("new", 100_000);
    }
    for machine in machines {
        until("a failure", || entry(&bed.on(machine)).1["last_exit_code"] == 10);
        bed.on(machine).run(["schedule", "status"]).code(3).stdout_contains("FAILED");
    }
    let before = machines.map(|machine| entry(&bed.on(machine)).1["last_success"].clone());
    bed.start_server("host").success();
    for ((machine, volume), before) in machines.iter().zip(&volumes).zip(before) {
        until("a recovery", || {
            let status = entry(&bed.on(machine)).1;
            status["last_exit_code"] == 0 && status["last_success"].as_str() > before.as_str()
        });
        let copy = DockerVolume::absent("copy");
        bed.on("uat").run(["restore", volume.name(), "--to-volume", copy.name()]).success();
        assert_same(&Tree::read(volume.path()), &Tree::read(copy.path()));
    }
    bed.on("production").run(["restore", volumes[0].name()]).success();

    for machine in machines {
        bed.on(machine).run(["schedule", "stop"]).success().stdout_contains("was stopped and removed");
        assert!(!entry(&bed.on(machine)).0);
    }
}
