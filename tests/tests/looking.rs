//! Looking at backups: what is in them, what differs, whether they are whole.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::Value;
use vsync_tests::{Damage, Output, Place, Realm, Server, Tree, Volume, Vsync, assert_same};

/// A volume, a server that runs, and a client.
struct Bed {
    data: Volume,
    realm: Realm,
    server: Server,
}

impl Bed {
    fn new(fill: impl Fn(&Volume)) -> Self {
        let data = Volume::new(11);
        fill(&data);
        let realm =
            Realm::new().server("annex2").directory("data", data.path()).client("production2", &["data"]).build();
        let server = realm.serve("annex2");
        let bed = Self { data, realm, server };
        bed.backup();
        bed
    }

    fn client(&self) -> Vsync {
        self.realm.vsync("production2")
    }

    fn run(&self, line: &str) -> Output {
        self.client().run(line.split(' '))
    }

    fn backup(&self) {
        self.run("backup data").success();
    }
}

fn texts<'a>(values: impl IntoIterator<Item = &'a Value>, key: &str) -> Vec<String> {
    values.into_iter().map(|value| value[key].as_str().expect("text").to_owned()).collect()
}

#[test]
fn ls_shows_a_directory_a_file_or_everything() {
    let bed = Bed::new(|data| {
        data.zoo().many("many", 3000, 100);
    });
    let root = bed.run("ls latest").success();
    let shown: Vec<&str> = root.stdout().lines().collect();
    assert!(shown.contains(&"small") && shown.contains(&"many") && !shown.contains(&"many/000"), "{shown:?}");
    let inner = bed.run("ls data:many/007").success();
    assert_eq!(inner.stdout().lines().count(), 100);
    assert!(inner.stdout().starts_with("many/007/000700\n"));
    bed.run("ls data:small --long").success().stdout_contains("-rw").stdout_contains(" small\n");
    bed.run("ls data:modes --long").success().stdout_contains("-rwsr-sr-x  1000  2000 ");
    bed.run("ls data:names").success().stdout_contains("names/new\\nline\n").stdout_contains("not \\xff\\xfe text");
    bed.run("ls data:nowhere").code(11).stderr_contains("has no nowhere");

    let all = bed.run("ls latest --recursive --json").success().json_lines();
    let tree = Tree::read(bed.data.path());
    assert_eq!(all.len(), tree.paths().count() - 1, "every entry but the volume itself");
    let text = all.iter().find(|node| node["path"] == "text").unwrap();
    assert_eq!((&text["struct_type"], &text["name"]), (&"node".into(), &"text".into()));
    assert_eq!((&text["type"], &text["size"]), (&"file".into(), &(2 << 20).into()));
}

#[test]
fn dump_brings_back_bytes_and_archives() {
    let bed = Bed::new(|data| {
        data.zoo();
    });
    for file in ["small", "random", "sparse", "empty", "links/hard", "modes/none"] {
        let dumped = bed.run(&format!("dump latest:{file}")).success();
        assert!(dumped.stdout_bytes() == fs::read(bed.data.path().join(file)).unwrap(), "{file}");
    }
    bed.run("dump data:nowhere").code(11);
    bed.run("dump data:links/broken").code(2).stderr_contains("symbolic link");

    let archive = bed.realm.machine("production2").join("data.tar");
    bed.run("dump data -o data.tar").success().stderr_contains("special/socket is a socket");
    let there = vsync_tests::scratch();
    let status = Command::new("tar")
        .args(["--extract", "--same-owner", "--same-permissions", "--acls", "--xattrs", "--xattrs-include=*", "--file"])
        .args([archive.as_path(), "--directory".as_ref(), there.path()])
        .status()
        .unwrap();
    assert!(status.success());
    // What no archive holds.
    bed.data.remove("special/socket");
    for tree in [bed.data.path(), there.path()] {
        Volume::at(tree, 0).mode("", 0o755).mtime("", 1, 0).mtime("special", 1, 0);
    }
    assert_same(&Tree::read(bed.data.path()), &Tree::read(there.path()));

    let part = bed.run("dump data:names").success();
    let mut tar = Command::new("tar").arg("-t").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut tar.stdin.take().unwrap(), part.stdout_bytes()).unwrap();
    let listing = String::from_utf8(tar.wait_with_output().unwrap().stdout).unwrap();
    assert!(listing.starts_with("names/\n") && listing.lines().count() == 6, "{listing}");
}

#[test]
fn a_dump_replaces_a_file_when_it_is_whole_and_writes_through_devices() {
    let bed = Bed::new(|data| {
        data.random("random", 1 << 20);
    });
    let home = bed.realm.machine("production2");
    let random = fs::read(bed.data.path().join("random")).unwrap();
    fs::write(home.join("out"), "old").unwrap();
    bed.run("dump data:nowhere -o out").code(11);
    assert_eq!(fs::read_to_string(home.join("out")).unwrap(), "old");
    bed.run("dump data:random -o out").success();
    assert!(fs::read(home.join("out")).unwrap() == random);
    let names = fs::read_dir(&home).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|name| name.starts_with("out")).collect::<Vec<_>>(), ["out"]);

    bed.run("dump data:random -o /dev/null").success();
    let pipe = home.join("pipe");
    vsync_tests::shell::run("mkfifo", [pipe.to_str().unwrap()]);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| fs::read(&pipe).unwrap());
        bed.run("dump data:random -o pipe").success();
        assert!(reader.join().unwrap() == random);
    });
}

#[test]
fn a_stream_is_dumped_by_its_name() {
    let bed = Bed::new(|data| {
        data.write("a", "a");
    });
    let bytes = vsync_tests::Rng::new(5).bytes(20 << 20);
    bed.client().stdin(bytes.clone()).run(["backup", "--stdin", "dump"]).success();
    assert!(bed.run("dump dump").success().stdout_bytes() == bytes);
    bed.run("verify --read-data").success();
}

#[test]
fn diff_and_find_tell_what_became_of_files() {
    let bed = Bed::new(|data| {
        data.many("many", 2000, 3000).random("big", 8 << 20).write("gone", "x").write("touched", "t");
    });
    bed.data.write("many/007/000777", "new content").remove("gone").write("more", "yes").mode("touched", 0o600);
    bed.data.patch("big", 5 << 20, [1; 100]);
    bed.backup();
    let diff = bed.run("diff data@latest~1 data").success();
    // A directory's time tells that something in it came or went.
    let changes: Vec<&str> = diff.stdout().lines().take_while(|line| !line.starts_with("from")).collect();
    assert_eq!(changes, ["M    big", "-    gone", "M    many/007/000777", "+    more", "U    touched"]);
    let json = bed.run("diff data@latest~1 data --json").success().json_lines();
    let statistics = json.last().unwrap();
    assert_eq!(statistics["added"]["files"], 1);
    assert!(statistics["added"]["bytes"].as_u64().unwrap() < 4 << 20, "{statistics}");
    assert_eq!(bed.run("diff latest latest").success().stdout().lines().count(), 3);

    let found = bed.run("find gone --json").success().json_lines();
    assert_eq!((found.len(), &found[0]["hits"]), (1, &1.into()));
    let snapshots = bed.run("snapshots --json").success().json();
    let ids = texts(snapshots.as_array().unwrap(), "id");
    assert_eq!(texts(&found, "snapshot"), ids[1..]);
    let found = bed.run("find **/0007* --volume data --json").success().json_lines();
    assert_eq!(texts(&found, "snapshot"), ids);
    assert_eq!(found[0]["hits"], 100);
    assert_eq!(bed.run("find touched --limit 1").success().stdout().lines().count(), 2);
    bed.run("find nothing-like-this").code(11);
}

#[test]
fn verify_names_what_is_damaged() {
    let mut bed = Bed::new(|data| {
        data.many("many", 500, 20_000).random("big", 24 << 20);
    });
    bed.data.write("later", "later");
    bed.backup();
    let whole = bed.run("verify --json").success().json_lines();
    let summary = whole.last().unwrap();
    assert_eq!((&summary["snapshots"], &summary["num_errors"]), (&2.into(), &0.into()));
    assert!(summary["data_blobs"].as_u64().unwrap() > 500 && summary["data_blobs_read"] == 0, "{summary}");
    let all = bed.run("verify --read-data --json").success().json_lines();
    let summary = all.last().unwrap();
    assert!(summary["bytes_read"].as_u64().unwrap() > 24 << 20, "{summary}");
    let some = bed.run("verify data --read-data-subset 20% --json").success().json_lines();
    let read = some.last().unwrap()["data_blobs_read"].as_u64().unwrap();
    assert!((10..300).contains(&read), "{read}");
    bed.run("verify data@latest~1").success().stdout_contains("1 snapshots on annex2");
    bed.run("verify nothing").code(11);

    bed.server.stop().success();
    let store = bed.realm.store("annex2");
    for pack in Place::Pack.files(&store) {
        Damage::FlipBit.apply(&pack, &mut vsync_tests::Rng::new(3));
    }
    bed.server.restart();
    let damaged = bed.run("verify --read-data").code(13).stderr_contains("snapshots are damaged");
    let line = damaged.stderr().lines().find(|line| line.starts_with("damaged: ")).unwrap();
    assert!(line.contains(" of data: ") && line.contains(": blob "), "{line}");
    let file = line.split(" of data: ").nth(1).unwrap().split([':', ' ']).next().unwrap();
    if fs::metadata(bed.data.path().join(file)).unwrap().is_file() {
        bed.run(&format!("dump data:{file}")).code(13).stderr_contains(file).stderr_contains("blob ");
    }
    // The server was told, and knows without reading now.
    bed.run("verify").code(13);
}

#[test]
fn what_a_reader_may_ask_a_writer_may_not() {
    let data = Volume::new(1);
    data.write("a", "a");
    let realm = Realm::new()
        .server("annex2")
        .directory("data", data.path())
        .client_with("production2", &["data"], "role = \"writer\"")
        .client("uat", &[])
        .build();
    let _server = realm.serve("annex2");
    let writer = realm.vsync("production2");
    writer.run(["backup", "data"]).success();
    for line in ["ls latest", "dump latest:a", "find a", "verify", "stats"] {
        writer.run(line.split(' ')).code(12);
    }
    writer.run(["status"]).success().stdout_contains("data    production2  annex2");
    for line in ["ls latest", "dump latest:a", "find a", "verify --read-data", "stats"] {
        realm.vsync("uat").run(line.split(' ')).success();
    }
}

#[test]
fn status_is_loud_about_what_was_never_backed_up() {
    let data = Volume::new(1);
    data.random("a", 3 << 20);
    let realm = Realm::new()
        .server("annex2")
        .directory("data", data.path())
        .client("production2", &["data", "forgotten"])
        .build();
    let mut server = realm.serve("annex2");
    let client = realm.vsync("production2");
    client.run(["backup", "data"]).success();
    let status = client.run(["status"]).success().stdout_contains("NEVER BACKED UP").stdout_contains("✓ annex2");
    assert!(status.stderr().contains("never backed up: forgotten of production2"), "{status}");
    let json = client.run(["status", "--json"]).success().json();
    assert_eq!((&json["servers"][0]["reachable"], &json["servers"][0]["read_only"]), (&true.into(), &Value::Null));
    assert_eq!(json["volumes"][0]["total_size"], 3 << 20);
    assert!(json["volumes"][0]["age"].as_u64().unwrap() < 300);
    assert_eq!(json["volumes"][1]["snapshot"], Value::Null);

    data.write("b", "b");
    client.run(["backup", "data"]).success();
    client.run(["stats"]).success().stdout_contains("data    production2          2").stdout_contains("stored: 3.0");
    let stats = client.run(["stats", "data", "--json"]).success().json();
    assert_eq!((&stats["volumes"][0]["snapshots_count"], &stats["snapshots_count"]), (&2.into(), &2.into()));
    assert_eq!(stats["volumes"][0]["total_size"], (3 << 20) + 1);
    client.run(["stats", "nothing"]).code(11);

    server.stop().success();
    let json = client.run(["status", "--json"]).code(10).json();
    assert_eq!(json["servers"][0]["reachable"], false);
}

#[test]
fn check_says_what_is_wrong_with_a_connection() {
    let mut bed = Bed::new(|data| {
        data.write("a", "a");
    });
    let good = bed.run("check --connection").success();
    for words in ["each side knows the other's key", "clock agrees", "history continues", "it takes backups"] {
        assert!(good.stdout().contains(words), "{words}: {good}");
    }
    assert!(good.stdout().contains("data is the directory"), "{good}");
    bed.realm.vsync("annex2").run(["check", "--connection"]).success().stdout_contains("UDP socket buffers");

    bed.server.stop().success();
    bed.run("check --connection").code(1).stdout_contains("nothing listens on UDP");
    bed.server.restart();

    // A client whose key the server does not know.
    Vsync::at(&bed.realm.admin()).run(["keygen", "production2", "--rotate"]).success();
    bed.realm.configure("production2");
    bed.run("check --connection").code(1).stdout_contains("do not accept each other's keys");
}
