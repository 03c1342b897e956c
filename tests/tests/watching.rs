//! What a server records of its clients' work, and what it says of every volume.

use rustix::process::Signal;
use serde_json::Value;
use vsync_tests::{Place, Realm, Server, Volume};

/// A realm with one server, its machine `production2` with the volume `data`.
struct Bed {
    data: Volume,
    realm: Realm,
    server: Server,
}

impl Bed {
    fn new(lines: &str) -> Self {
        let data = Volume::new(1);
        data.write("a", "some content");
        let realm = Realm::new()
            .server("annex2")
            .directory_with("data", data.path(), lines)
            .client("production2", &["data"])
            .client("uat", &[])
            .build();
        let server = realm.serve("annex2");
        Self { data, realm, server }
    }

    fn status(&self) -> Value {
        self.realm.vsync("production2").run(["status", "--json"]).success().json()
    }

    fn volume(&self) -> Value {
        self.status()["volumes"][0].clone()
    }

    /// Waits until the server says of the volume what `wanted` asks for.
    fn wait_for(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        for _ in 0..60 {
            let volume = self.volume();
            if wanted(&volume) {
                return volume;
            }
            std::thread::sleep(std::time::Duration::from_secs(2));
        }
        panic!("it never comes to that: {}", self.volume());
    }
}

#[test]
fn status_tells_of_backups_verifications_and_restores() {
    let bed = Bed::new("");
    let client = bed.realm.vsync("production2");
    client.run(["backup", "data"]).success();
    bed.data.write("b", "twice as much of it, and more");
    client.run(["backup", "data"]).success();
    let volume = bed.volume();
    assert_eq!(volume["total_size"], 12 + 29);
    assert_eq!((&volume["previous_size"], &volume["snapshots_count"]), (&12.into(), &2.into()));
    assert!(volume["data_added"].as_u64().unwrap() > 0 && volume["bytes_read"].as_u64().unwrap() >= 29, "{volume}");
    assert_eq!((&volume["verified"], &volume["restored"]), (&Value::Null, &Value::Null));
    assert_eq!((&volume["failures"], &volume["overdue"]), (&0.into(), &false.into()));
    client.run(["verify", "--read-data"]).success();
    let there = vsync_tests::scratch();
    let there = there.path().join("there");
    bed.realm.vsync("uat").run(["restore", "data", "--to-path", there.to_str().unwrap()]).success();
    let volume = bed.volume();
    assert_eq!(
        (&volume["verified"]["outcome"], &volume["verified"]["hostname"]),
        (&"success".into(), &"production2".into())
    );
    assert_eq!(volume["restored"]["hostname"], "uat");
    client.run(["status", "--check", "--quiet"]).success();
}

#[test]
fn failures_before_there_is_a_snapshot_are_recorded_with_their_reason() {
    let bed = Bed::new("");
    let client = bed.realm.vsync("production2");
    client.run(["backup", "data"]).success();
    let (away, here) = (bed.data.path().with_extension("away"), bed.data.path());
    std::fs::rename(here, &away).unwrap();
    client.run(["backup", "data"]).code(11);
    client.run(["backup", "--stdin-from-command", "data", "--", "false"]).code(20);
    std::fs::rename(&away, here).unwrap();
    let volume = bed.volume();
    assert_eq!(volume["failures"], 2, "{volume}");
    assert_eq!((&volume["failure"]["outcome"], &volume["failure"]["reason"]), (&"failed".into(), &"hook".into()));
    assert!(volume["failure"]["message"].as_str().unwrap().contains("false failed"), "{volume}");
    let status = client.run(["status", "--check"]).code(3).stdout_contains("failed 2 times");
    assert!(status.stderr().contains("failing: data of production2: "), "{status}");
    client.run(["status"]).success();
    client.run(["backup", "data"]).success();
    assert_eq!(bed.volume()["failures"], 0);
    client.run(["status", "--check"]).success();
}

#[test]
fn a_backup_that_is_stopped_or_killed_is_interrupted() {
    let bed = Bed::new("");
    let client = bed.realm.vsync("production2");
    let endless = ["backup", "--stdin-from-command", "data", "--", "cat", "/dev/zero"];
    let stopped = client.spawn(endless);
    bed.wait_for(|volume| volume["running_since"].is_string());
    stopped.signal(Signal::TERM);
    stopped.wait().code(130);
    let volume = bed.volume();
    assert_eq!((&volume["running_since"], &volume["failures"]), (&Value::Null, &1.into()));
    assert_eq!(
        (&volume["failure"]["outcome"], &volume["failure"]["reason"]),
        (&"interrupted".into(), &"interrupted".into())
    );
    // Nobody reports this end: the server notices when the connection has been silent for too long.
    let killed = client.spawn(endless);
    bed.wait_for(|volume| volume["running_since"].is_string());
    killed.kill();
    let volume = bed.wait_for(|volume| volume["failures"] == 2);
    assert!(volume["failure"]["message"].as_str().unwrap().contains("never ended"), "{volume}");
}

#[test]
fn a_backup_goes_on_after_its_server_was_started_again() {
    let mut bed = Bed::new("");
    let client = bed.realm.vsync("production2");
    let work = client.spawn(["backup", "--stdin-from-command", "data", "--", "sh", "-c", "sleep 8; echo done"]);
    bed.wait_for(|volume| volume["running_since"].is_string());
    bed.server.restart();
    work.wait().success();
    let volume = bed.volume();
    assert_eq!((&volume["failures"], &volume["total_size"]), (&0.into(), &5.into()), "{volume}");
}

#[test]
fn a_volume_over_its_age_is_overdue() {
    let bed = Bed::new("max-age = \"1s\"");
    let client = bed.realm.vsync("production2");
    client.run(["status", "--check"]).code(3).stdout_contains("NEVER BACKED UP");
    client.run(["backup", "data"]).success();
    bed.wait_for(|volume| volume["overdue"] == true);
    let status = client.run(["status", "--check"]).code(3).stdout_contains("OVERDUE");
    assert!(status.stderr().contains("overdue on annex2: data of production2"), "{status}");
    bed.realm.edit(|toml| toml.replace("max-age = \"1s\"", "max-age = \"1h\""));
    client.run(["status", "--check"]).success();
}

#[test]
fn jobs_survive_a_restart_and_a_rebuilt_catalog() {
    let mut bed = Bed::new("");
    let client = bed.realm.vsync("production2");
    client.run(["backup", "data"]).success();
    client.run(["backup", "--stdin-from-command", "data", "--", "false"]).code(20);
    let before = bed.volume();
    bed.server.stop().success();
    let report = bed.realm.vsync("annex2").run(["server", "rebuild", "--json"]).success().json();
    assert_eq!((&report["jobs"], &report["jobs_lost"]), (&2.into(), &false.into()));
    bed.server = bed.realm.serve("annex2");
    let after = bed.volume();
    for field in ["total_size", "failures", "failure", "time", "sizes"] {
        assert_eq!(after[field], before[field], "{field}");
    }
    bed.server.stop().success();
    std::fs::remove_file(bed.realm.store("annex2").join("catalog.sqlite")).unwrap();
    let rebuilt = bed.realm.vsync("annex2").run(["server", "rebuild"]).success();
    assert!(rebuilt.stderr().contains("the record of earlier jobs could not be read"), "{rebuilt}");
}

/// Two servers; `planned` is to be on both, `elsewhere` on annex2, `free` on any.
fn two_servers() -> (Realm, [Volume; 3]) {
    let volumes = [1, 2, 3].map(Volume::new);
    for volume in &volumes {
        volume.write("file", "some content");
    }
    let plan = |volume: &str, server: &str| {
        format!("[[clients.schedule]]\nvolume = {volume:?}\nserver = {server:?}\nat = \"02:00\"\n")
    };
    let plans = [plan("planned", "annex"), plan("planned", "annex2"), plan("elsewhere", "annex2")].concat();
    let names = ["planned", "elsewhere", "free"];
    let realm =
        names.iter().zip(&volumes).fold(Realm::new().server("annex").server("annex2"), |realm, (name, volume)| {
            realm.directory(name, volume.path())
        });
    (realm.client_with("production2", &names, &plans).build(), volumes)
}

#[test]
fn a_volume_that_is_missing_on_one_of_its_servers_is_told_of_and_no_other() {
    let (realm, _volumes) = two_servers();
    let _annex = realm.serve("annex");
    let mut annex2 = realm.serve("annex2");
    let client = realm.vsync("production2");
    client.run(["backup", "planned", "--server", "annex"]).success();
    for volume in ["elsewhere", "free"] {
        client.run(["backup", volume, "--server", "annex2"]).success();
    }
    let status = client.run(["status", "--check", "--quiet"]).code(3);
    assert_eq!(status.stderr().trim(), "never backed up on annex2: planned of production2");
    // Neither what is planned for annex2 alone nor what may be anywhere is missed on annex.
    client.run(["status", "--check", "--server", "annex"]).success();
    client
        .run(["status", "--check", "--server", "annex2"])
        .code(3)
        .stderr_contains("never backed up on annex2: planned");
    client.run(["backup", "planned", "--server", "annex2"]).success();
    client.run(["status", "--check", "--quiet"]).success();

    annex2.stop().success();
    let status = client.run(["status", "--check", "--quiet"]).code(10);
    assert!(status.stderr().starts_with("annex2: "), "{status}");
    assert!(!status.stderr().contains("never backed up"), "nobody knows: {status}");
}

#[test]
fn damage_that_verify_found_is_a_problem() {
    let bed = Bed::new("");
    let client = bed.realm.vsync("production2");
    bed.data.random("large", 3 << 20);
    client.run(["backup", "data"]).success();
    let packs = Place::Pack.files(&bed.realm.store("annex2"));
    let largest = packs.iter().max_by_key(|pack| pack.metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(largest, bytes).unwrap();
    client.run(["verify", "data", "--read-data"]).code(13);
    let status = client.run(["status", "--check", "--quiet"]).code(3);
    status.stderr_contains("damaged on annex2: snapshots of data of production2, says the last `vsync verify`");
}

#[test]
fn what_keeps_a_backup_from_beginning_is_recorded_and_who_waits_for_another_is_not() {
    let bed = Bed::new("");
    let client = bed.realm.vsync("production2");
    let before = |line: &str| {
        let line = format!("backup = [\"data\"]\nrun-before = {line:?}");
        bed.realm.edit(|toml| toml.replacen("backup = [\"data\"]", &line, 1));
    };
    let work = client.spawn(["backup", "--stdin-from-command", "data", "--", "cat", "/dev/zero"]);
    bed.wait_for(|volume| volume["running_since"].is_string());
    client.run(["backup", "data"]).code(1).stderr_contains("another backup of data is running");
    client.run(["backup", "--stdin", "data"]).code(1).stderr_contains("another backup of data is running");
    assert_eq!(bed.volume()["failures"], 0, "{}", bed.volume());
    work.signal(Signal::TERM);
    work.wait().code(130);

    before("exit 3");
    client.run(["backup", "data"]).code(20);
    let volume = bed.volume();
    assert_eq!((&volume["failures"], &volume["failure"]["reason"]), (&2.into(), &"hook".into()), "{volume}");
    assert!(volume["failure"]["message"].as_str().unwrap().contains("run-before of machine production2"), "{volume}");
}

#[test]
fn who_stops_a_command_before_a_backup_calls_it_off() {
    let bed = Bed::new("run-before = \"echo begun; sleep 600\"");
    let mut backup = bed.realm.vsync("production2").spawn(["backup", "data"]);
    backup.wait_for_stderr("begun");
    backup.signal(Signal::TERM);
    backup.wait().code(130).stderr_contains("interrupted; nothing was backed up");
}

#[test]
fn a_snapshot_counts_when_a_command_after_it_fails() {
    let bed = Bed::new("run-after = \"exit 3\"");
    bed.realm.vsync("production2").run(["backup", "data"]).code(20);
    let volume = bed.volume();
    assert_eq!((&volume["total_size"], &volume["failures"]), (&12.into(), &0.into()), "{volume}");
}
