//! Servers and schedules in containers of their own: made by one command, back after a crash, and gone with another.

use std::net::{TcpListener, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;
use vsync_tests::docker::{self, docker};
use vsync_tests::{
    Bao, Container, DockerVolume, Output, Realm, Sinks, Tree, Volume, Vsync, assert_same, http, scratch, shell,
};

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
    /// Where the server shows its status.
    status: String,
}

/// A UDP port that nothing uses. The engine's proxy answers from the first address of this machine, whichever was
/// asked.
fn udp_port() -> u16 {
    UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port()
}

/// The same for TCP, with the address.
fn tcp_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    listener.expect("a port").to_string()
}

impl Bed {
    fn new(clients: &[(&str, &str)]) -> Self {
        Self::with(clients, "")
    }

    /// With further tables at the end of the configuration.
    fn with(clients: &[(&str, &str)], extra: &str) -> Self {
        let mut realm = Realm::new().server_at("store", &format!("127.0.0.1:{}", udp_port())).extra(extra);
        let status = tcp_address();
        for (name, volume) in clients {
            let entry = format!("[[clients.schedule]]\nvolume = {volume:?}\nserver = \"store\"\nat = \"* * * * *\"\n");
            realm = realm.client_with(name, &[volume], &format!("schedule-container = \"SCHEDULE-{name}\"\n{entry}"));
        }
        let realm = realm.client("uat", &[]).build();
        let server = Container::absent("server");
        let schedules: Vec<Container> = clients.iter().map(|_| Container::absent("schedule")).collect();
        let store = format!("name = \"store\"\ncontainer = {:?}\nstatus = {status:?}", server.name());
        realm.edit(|toml| {
            let named =
                toml.replace("name = \"test\"", "name = \"test\"\njitter = \"0s\"").replace("name = \"store\"", &store);
            clients
                .iter()
                .zip(&schedules)
                .fold(named, |toml, ((name, _), container)| toml.replace(&format!("SCHEDULE-{name}"), container.name()))
        });
        Self { realm, server, schedules, status }
    }

    fn on(&self, machine: &str) -> Vsync {
        self.realm.vsync(machine)
    }

    fn start_server(&self, network: &str) -> Output {
        self.on("store").run(["server", "start", "--image", docker::SHIPPED, "--network", network])
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
    bed.on("store").run(["server", "status"]).success().stdout_contains("running").stdout_contains("shows its status");
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
    // There is nothing in the image to look with.
    let process = docker(["inspect", "-f", "{{.State.Pid}}", bed.server.name()]);
    let inside = format!("/proc/{process}/root{}", keys.display());
    let seen = shell::run("find", [inside.as_str(), "-type", "f"]);
    assert_eq!(seen, format!("{inside}/machines/store.key"), "its own key and no other");
    assert_eq!(http::get(&bed.status, "health"), "ok\n", "the status is where vsync.toml says");
    let published = &host["PortBindings"][format!("{}/tcp", bed.status.rsplit(':').next().expect("a port"))];
    assert_eq!(published[0]["HostIp"], "127.0.0.1", "and nowhere else");

    // It comes back by itself.
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

#[test]
fn a_command_on_the_machine_that_the_image_does_not_have_is_refused_with_the_way_out() {
    let volume = DockerVolume::new("hooked");
    let bed = Bed::with(
        &[("host", volume.name())],
        &format!("[[volumes]]\nname = {:?}\nrun-before = \"true\"\n", volume.name()),
    );
    let start = |image: &str| bed.on("host").run(["schedule", "start", "--image", image]);
    let said = format!("has no sh, which run-before of {} runs", volume.name());
    let refused = start(docker::SHIPPED).code(1).stderr_contains(&said);
    assert!(refused.stderr().contains("systemd") && refused.stderr().contains("--image"), "{refused}");
    assert!(!bed.schedules[0].exists());
    start(docker::VSYNC).success();
    bed.on("host").run(["schedule", "stop"]).success();
}

#[test]
fn a_server_in_a_container_takes_its_key_from_a_vault_and_tells_people_over_tls() {
    let (home, sinks, bao, data) = (scratch(), Sinks::start(), Bao::start_with_tls(), Volume::new(3));
    data.write("file", "words");
    let server = Container::absent("server");
    let (place, status) = (|name: &str| home.path().join(name), tcp_address());
    let toml = format!(
        "[realm]\nname = \"test\"\n[[servers]]\nname = \"annex\"\naddress = \"127.0.0.1:{port}\"\ndata = {store:?}\n\
         status = {status:?}\ncontainer = {container:?}\n[[clients]]\nname = \"box\"\nbackup = [\"data\"]\n\
         [[volumes]]\nname = \"data\"\npath = {data:?}\n[keys]\nstore = \"vault\"\nurl = {url:?}\n\
         prefix = \"secret/vsync\"\nca = {ca:?}\n[[notify]]\nwebhook = \"$TEST_HOOK\"\n[[notify]]\nping = {ping:?}\n",
        port = udp_port(),
        store = place("store"),
        container = server.name(),
        data = data.path(),
        url = bao.url(),
        ca = bao.ca(),
        ping = sinks.https_url("watchdog"),
    );
    let write = |name: &str, text: &str| -> PathBuf {
        std::fs::write(place(name), text).expect("a file");
        place(name)
    };
    write("vsync.toml", &toml);
    let admin = Vsync::at(home.path()).env("VSYNC_VAULT_TOKEN", bao.root_token());
    admin.run(["init"]).success();
    admin.run(["keygen", "--all"]).success();

    let narrow = bao.token("path \"secret/data/vsync/machines/annex\" { capabilities = [\"read\"] }");
    let annex = Vsync::at(home.path()).with(["--as", "annex"]).env("VSYNC_VAULT_TOKEN_FILE", write("token", &narrow));
    let annex = annex.env("SSL_CERT_FILE", sinks.ca()).env("UNRELATED", "not for the container");
    let start = ["server", "start", "--image", docker::SHIPPED, "--network", "host"];
    annex.run(start).code(2).stderr_contains("TEST_HOOK, which [[notify]] names, is not set");
    let annex = annex.env("TEST_HOOK_FILE", write("hook", &sinks.https_url("hook/s3cret")));
    annex.run(start).success();
    assert_eq!(http::get(&status, "health"), "ok\n");
    let patience = Duration::from_secs(120);
    let told = sinks.wait_for(patience, |delivery| delivery["path"] == "/hook/s3cret");
    assert_eq!(told["body"]["news"][0]["rule"], "never", "{told}");
    sinks.wait_for(patience, |delivery| delivery["path"] == "/watchdog");
    admin.clone().with(["--as", "box"]).run(["backup", "data"]).success();

    let seen = server.inspect()["Config"]["Env"].to_string();
    for secret in ["UNRELATED", "s3cret", &narrow, bao.root_token()] {
        assert!(!seen.contains(secret), "{secret} in {seen}");
    }
    annex.run(["server", "stop"]).success();
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
    let sinks = Sinks::start();
    let hook = format!("[[notify]]\nwebhook = {:?}\n", sinks.url("hook"));
    let bed = Bed::with(&[("production", volumes[0].name()), ("science", volumes[1].name())], &hook);
    let machines = ["production", "science"];
    for (volume, seed) in volumes.iter().zip(1..) {
        let content = Volume::at(&volume.path(), seed);
        content.many("archive", 40, 3000).owner("archive", 70, 70).write("night", "1");
    }
    bed.start_server("host").success();
    for machine in machines {
        let words = ["schedule", "start", "--image", docker::SHIPPED, "--tries", "2", "--retry-after", "5s"];
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

    a_night_without_room(&bed, &sinks, &volumes[0]);

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

/// Somebody is told that a night failed, and told again when that is over.
fn a_night_without_room(bed: &Bed, sinks: &Sinks, volume: &DockerVolume) {
    let about = format!("production/{}", volume.name());
    let told = |event: &str| {
        let is_it =
            |news: &Value| news["event"] == event && news["rule"] == "failing" && news["about"] == about.as_str();
        let brings_it = |it: &Value| it["body"]["news"].as_array().is_some_and(|news| news.iter().any(is_it));
        let found = sinks.wait_for(Duration::from_secs(240), brings_it);
        found["body"]["text"].as_str().expect("a text").to_owned()
    };
    bed.realm.edit(|toml| toml.replace("name = \"production\"", "name = \"production\"\nquota = \"1KiB\""));
    Volume::at(&volume.path(), 9).random("too-much", 200_000);
    let text = told("began");
    assert!(text.contains("could not be backed up") && text.contains("quota"), "{text}");
    bed.realm.edit(|toml| toml.replace("quota = \"1KiB\"\n", ""));
    told("recovered");
}
