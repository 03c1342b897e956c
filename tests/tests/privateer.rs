//! Moving over from privateer: its configuration, and what its server has stored.

use std::fs;
use std::path::Path;

use serde_json::Value;
use vsync_tests::{Realm, Server, Tree, Volume, Vsync, assert_same, scratch};

/// What privateer's documentation shows, its example, and what its users have.
const EXAMPLES: [&str; 3] = [
    include_str!("../../agent/src/config/privateer/documented.json"),
    include_str!("../../agent/src/config/privateer/complex.json"),
    include_str!("../../agent/src/config/privateer/montagu.json"),
];

#[test]
fn every_example_becomes_a_configuration_that_checks() {
    for (number, example) in EXAMPLES.iter().enumerate() {
        let home = scratch();
        fs::write(home.path().join("privateer.json"), example).unwrap();
        let vsync = Vsync::at(home.path());
        let printed = vsync.run(["config", "import", "privateer.json", "--realm", "moved", "--output", "-"]).success();
        assert!(!home.path().join("vsync.toml").exists(), "{number}");
        let imported = vsync.run(["config", "import", "privateer.json", "--realm", "moved", "--json"]).success().json();
        assert_eq!(printed.stdout(), fs::read_to_string(home.path().join("vsync.toml")).unwrap(), "{number}");
        for warning in imported["warnings"].as_array().unwrap() {
            let line = format!("warning: {}: ", warning["at"].as_str().unwrap());
            assert!(printed.stderr().contains(&line), "{number}: {warning}");
        }
        let checked = vsync.run(["config", "check", "--json"]).success().json();
        let json: Value = serde_json::from_str(example).unwrap();
        let names = |list: &Value| -> Vec<String> {
            list.as_array()
                .unwrap()
                .iter()
                .map(|it| it["name"].as_str().unwrap_or_else(|| it.as_str().unwrap()).into())
                .collect()
        };
        for kind in ["servers", "clients"] {
            let of = |list: &Value| list.as_array().unwrap().iter().map(|it| it["name"].clone()).collect::<Vec<_>>();
            assert_eq!(checked[kind].as_array().unwrap(), &of(&json[kind]), "{number}");
        }
        assert_eq!(checked["realm"], "moved");
        let backed_up = names(&checked["volumes"]);
        assert!(names(&json["volumes"]).iter().all(|volume| backed_up.contains(volume)), "{number}: {backed_up:?}");
        vsync.run(["config", "import", "privateer.json"]).code(1).stderr_contains("nothing was overwritten");
    }
}

#[test]
fn what_cannot_be_converted_is_said_with_its_place() {
    let home = scratch();
    let vsync = Vsync::at(home.path());
    let import = |text: &str| {
        fs::write(home.path().join("p.json"), text).unwrap();
        vsync.run(["config", "import", "p.json"])
    };
    import("{").code(2).stderr_contains("p.json cannot be converted: it is not JSON").stderr_contains("line 1");
    import(r#"{"targets": []}"#).code(2).stderr_contains("first privateer");
    let bad = EXAMPLES[0].replace("[\"data\"]", "[\"date\"]");
    import(&bad).code(2).stderr_contains("clients[0].backup[0]: there is no \"date\" under volumes");
    vsync.run(["config", "import", "none.json"]).code(1).stderr_contains("cannot read none.json");
    assert!(!home.path().join("vsync.toml").exists());
}

/// A server with privateer's data on its disk, and two clients that privateer had.
struct Site {
    realm: Realm,
    _server: Server,
    data: Volume,
    live: Volume,
}

impl Site {
    fn new() -> Self {
        let (data, live) = (Volume::new(1), Volume::new(2));
        let mut number = 1;
        for place in ["production/orderly", "production2/orderly", "production2/outpack"] {
            number += 1;
            let stored = Volume::at(&data.join(place), number);
            stored.many("archive", 60, 4000).write("version", place).settled();
        }
        live.write("version", "live");
        let realm = Realm::new()
            .server("annex2")
            .local(&["own"])
            .client("production2", &["orderly"])
            .client("uat", &[])
            .directory("orderly", live.path())
            .build();
        let server = realm.serve("annex2");
        Self { realm, _server: server, data, live }
    }

    fn on(&self, machine: &str) -> Vsync {
        self.realm.vsync(machine)
    }

    fn import(&self) -> Vec<Value> {
        self.on("annex2").run(["import-privateer", text(self.data.path()), "--json"]).success().json_lines()
    }

    #[track_caller]
    fn restores(&self, words: &[&str], expected: &Path) {
        let target = scratch();
        self.on("uat").run([&["restore", "--to-path", text(target.path())], words].concat()).success();
        assert_same(&Tree::read(expected), &Tree::read(target.path()));
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("what the test bed made")
}

fn done(lines: &[Value]) -> Vec<(String, &str)> {
    let place = |line: &Value| {
        format!(
            "{}/{}",
            line["client"].as_str().expect("what the test bed made"),
            line["volume"].as_str().expect("what the test bed made")
        )
    };
    let lines = lines.iter().filter(|line| line["message_type"] == "import");
    lines.map(|line| (place(line), line["done"].as_str().expect("what the test bed made"))).collect()
}

#[test]
fn what_privateer_stored_becomes_the_first_snapshot_of_each_source() {
    let site = Site::new();
    let planned = site.on("annex2").run(["import-privateer", text(site.data.path()), "--dry-run"]).success();
    planned.stdout_contains("would import production/orderly");
    let places = ["production/orderly", "production2/orderly", "production2/outpack"];
    let all = |word: &'static str| places.map(|place| (place.to_owned(), word)).to_vec();
    assert_eq!(done(&site.import()), all("imported"));
    assert_eq!(done(&site.import()), all("skipped"));

    for place in ["production/orderly", "production2/orderly"] {
        let (client, volume) = place.split_once('/').unwrap();
        site.restores(&[volume, "--source", client], &site.data.join(place));
    }
    // Only one machine had this one, so it need not be named.
    site.restores(&["outpack"], &site.data.join("production2/outpack"));
    site.on("uat").run(["restore", "orderly", "--source", "science", "--to-path", "/nowhere"]).code(11);

    // The machine's own backups come before it, and retention lets it be.
    site.on("production2").run(["backup", "orderly"]).success();
    site.restores(&["orderly", "--source", "production2"], site.live.path());
    site.restores(&["orderly@latest~1", "--source", "production2"], &site.data.join("production2/orderly"));
    site.on("uat").run(["ls", "orderly@latest~2", "--source", "production2"]).code(11);
    let listed = site.on("uat").run(["snapshots", "--json"]).success().json();
    let imported: Vec<&Value> = listed.as_array().unwrap().iter().filter(|row| row["hostname"] == "annex2").collect();
    assert_eq!(imported.len(), 3);
    assert!(imported.iter().all(|row| row["pinned"] == true), "{listed}");
    let tags: Vec<&str> =
        imported.iter().flat_map(|row| row["tags"].as_array().unwrap()).filter_map(Value::as_str).collect();
    assert!(places.iter().all(|place| tags.contains(&format!("privateer={place}").as_str())), "{tags:?}");
}

#[test]
fn only_a_server_can_vouch_for_other_machines() {
    let site = Site::new();
    let refused = site.on("production2").run(["import-privateer", text(site.data.path())]).code(12);
    refused.stderr_contains("cannot vouch for what is production's").stderr_contains("--as NAME");
    // Any machine can write the tag; it counts for nothing.
    let forged = ["backup", "orderly", "--tag", "privateer=production/orderly"];
    site.on("production2").run(forged).success();
    let stolen = ["restore", "orderly", "--source", "production", "--to-path", "/nowhere"];
    site.on("uat").run(stolen).code(11).stderr_contains("no snapshot of orderly");
}

#[test]
fn a_machine_s_own_key_makes_them_its_own_snapshots() {
    let site = Site::new();
    fs::rename(site.data.join("production"), site.data.join("lost+found")).unwrap();
    let lines =
        site.on("production2").run(["import-privateer", text(site.data.path()), "--json"]).success().json_lines();
    assert_eq!(done(&lines).len(), 2);
    let listed = site.on("uat").run(["snapshots", "--json"]).success().json();
    assert!(listed.as_array().unwrap().iter().all(|row| row["hostname"] == "production2"), "{listed}");
    site.restores(&["outpack"], &site.data.join("production2/outpack"));
}

#[test]
fn a_place_that_is_not_privateer_s_and_a_server_that_cannot_write_are_said() {
    let site = Site::new();
    site.data.write("note.txt", "n").write("production2/file", "f").symlink("production2/link", "/etc");
    let odd = site.on("annex2").run(["import-privateer", text(site.data.path())]).code(3);
    let names = ["note.txt", "production2/file", "production2/link"];
    let skipped = |name| format!("skipped: {}", site.data.join(name).display());
    names.into_iter().fold(odd, |odd, name| odd.stderr_contains(&skipped(name)));
    let empty = scratch();
    let nothing = site.on("annex2").run(["import-privateer", text(empty.path())]).code(11);
    nothing.stderr_contains("holds nothing of privateer's").stderr_contains("data_volume");
    site.on("annex2").run(["import-privateer", "./nowhere"]).code(11).stderr_contains("there is no directory");

    let realm = Realm::new().server("bare").client("uat", &[]).build();
    let server = realm.serve("bare");
    let refused = realm.vsync("bare").run(["import-privateer", text(site.data.path())]).code(12);
    refused.stderr_contains("holds no keys to back up with").stderr_contains("role = \"writer\"");
    drop(server);
}
