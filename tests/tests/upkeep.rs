//! What administrators have a running server do, what it refuses by itself, and what `repair` mends.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;

use vsync_tests::{Damage, Place, Realm, Rng, Server, Site, Tree, Volume, assert_same, scratch};

fn snapshots(site: &Site) -> Vec<String> {
    let rows = site.host().run(["snapshots", "data", "--json"]).success().json();
    rows.as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_running_server_collects_and_scrubs_by_order() {
    let site = Site::with(1, |realm| realm.extra("[retention]\nkeep-last = 9\nmin-retention = \"1s\""));
    site.data.random("large", 9 << 20).write("small", "one");
    site.backup();
    site.data.remove("large").write("small", "two");
    site.backup();
    let ids = snapshots(&site);
    std::thread::sleep(std::time::Duration::from_secs(2));
    let office = site.realm.vsync("store");
    let packs = || Place::Pack.files(&site.store()).iter().map(|pack| pack.metadata().unwrap().len()).sum::<u64>();
    let before = packs();
    office.run(["forget", &ids[1]]).success();
    let plan = office.run(["server", "gc", "--dry-run", "--at-once", "--json"]).success().json();
    assert_eq!(plan["dry_run"], true, "{plan}");
    // Blobs stay for two rounds more, for backups that were interrupted.
    for _ in 0..4 {
        office.run(["server", "gc", "--at-once", "--empty-trash", "--json"]).success();
    }
    assert!(packs() < before / 2, "{} of {before} bytes are left", packs());
    office.run(["server", "scrub", "--json"]).success();
    let there = scratch();
    site.restore(&["data"], there.path());
    assert_same(&Tree::read(site.data.path()), &Tree::read(there.path()));
    // Nobody but a server may order that, and an embedded one needs no order.
    site.host().run(["server", "gc"]).code(2);
    let damaged = Place::Pack.files(&site.store()).pop().unwrap();
    Damage::FlipBit.apply(&damaged, &mut Rng::new(1));
    office.run(["server", "scrub"]).code(13).stderr_contains("damage found");
}

#[test]
fn a_quota_refuses_early_and_in_words() {
    let site = Site::with(2, |realm| {
        let other = Volume::new(3);
        other.write("file", "words");
        let realm = realm.client_with("small", &["other"], "quota = \"1MiB\"").directory("other", other.path());
        // The directory must live as long as the site.
        std::mem::forget(other);
        realm
    });
    let small = site.realm.vsync("small");
    small.run(["backup", "other"]).success();
    let toml = fs::read_to_string(site.realm.admin().join("vsync.toml")).unwrap();
    let path = toml.lines().skip_while(|line| *line != "name = \"other\"").find(|line| line.starts_with("path"));
    let other = Volume::at(path.unwrap().split('"').nth(1).unwrap().as_ref(), 4);
    other.random("random", 3 << 20);
    small.run(["backup", "other"]).code(21).stderr_contains("quota");
    // What it has stays, and it may still become smaller.
    other.remove("random").random("random", 300_000);
    small.run(["backup", "other"]).success();
    let site_goes_on = site.backup();
    assert!(site_goes_on.text("snapshot_id").len() == 32);
    site.realm.edit(|toml| toml.replace("1MiB", "100KiB"));
    small.run(["backup", "other"]).code(21).stderr_contains("quota");
    small.run(["restore", "other", "--to-path", scratch().path().join("there").to_str().unwrap()]).success();
    site.realm.edit(|toml| toml.replace("100KiB", "lots"));
    small.run(["config", "check"]).code(2).stderr_contains("is not a size");
    fs::remove_dir_all(other.path()).unwrap();
}

#[test]
fn a_clock_that_leapt_is_confirmed_by_a_command() {
    let site = Site::new(3);
    site.realm.vsync("store").run(["server", "confirm-clock"]).success().stdout_contains("counts as right");
    site.host().run(["server", "confirm-clock"]).code(2);
}

#[test]
fn verify_goes_on_after_a_manifest_that_cannot_be_read() {
    let site = Site::with(4, |realm| realm.client("other", &["data"]));
    site.data.write("file", "one");
    site.backup();
    site.realm.vsync("other").run(["backup", "data"]).success();
    site.data.write("file", "two");
    site.backup();
    site.host().run(["verify"]).success();
    // Whoever loses a machine's line in vsync.pub can tell no more who has signed its snapshots.
    let registry = site.realm.machine("host").join("vsync.pub");
    let text = fs::read_to_string(&registry).unwrap();
    let without: Vec<&str> = text.lines().filter(|line| !line.starts_with("machine other ")).collect();
    assert!(without.len() < text.lines().count(), "{text}");
    fs::write(&registry, without.join("\n") + "\n").unwrap();
    let verified = site.host().run(["verify", "--json"]).code(13);
    assert_eq!(verified.json()["snapshots"], 2, "{verified}");
    assert_eq!(verified.json()["unreadable"].as_array().unwrap().len(), 1, "{verified}");
    site.host().run(["verify"]).code(13).stderr_contains("cannot be read");
}

/// R05: a healthy store stays as it is to the byte; a damaged one loses nothing that can be read.
#[test]
fn repair_mends_log_catalog_and_packs() {
    let mut site = Site::new(5);
    site.data.many("many", 50, 4000).random("one", 2 << 20);
    site.backup();
    site.data.random("two", 1 << 20);
    site.backup();
    let expected = Tree::read(site.data.path());
    let before = snapshots(&site);
    site.server.stop().success();
    let office = site.realm.vsync("store");
    let bytes = |site: &Site| Tree::read(site.store()).without(|path| path.to_str().unwrap().starts_with("catalog"));
    let healthy = bytes(&site);
    office.run(["server", "repair"]).success().stdout_contains("log: whole");
    let differences = healthy.differences(&bytes(&site));
    let changed: Vec<_> = differences.iter().filter(|line| !line.contains("lock") && !line.contains("time")).collect();
    assert!(changed.is_empty(), "{changed:#?}");

    for (seed, place, damage) in [
        (1, Place::Log, Damage::FlipBit),
        (2, Place::Log, Damage::Truncate),
        (3, Place::Log, Damage::Zero),
        (4, Place::Log, Damage::Delete),
        (5, Place::Catalog, Damage::Zero),
        (6, Place::Catalog, Damage::Truncate),
        (7, Place::Manifest, Damage::FlipBit),
        (8, Place::Manifest, Damage::Delete),
        (9, Place::Pack, Damage::Append),
    ] {
        let what = format!("{damage:?} of {place:?}");
        place.damage(&site.store(), damage, seed);
        let repaired = office.run(["server", "repair", "--json"]);
        assert_eq!(repaired.status(), Some(0), "{what}: {repaired}");
        let mut server = Server::start(office.clone());
        assert_eq!(snapshots(&site), before, "{what}");
        let there = scratch();
        site.restore(&["data"], there.path());
        assert_same(&expected, &Tree::read(there.path()));
        server.stop().success();
    }
    // A pack of which a part is gone for good: the rest is saved, and what is lost is named. What was set aside so far
    // may be another copy of it.
    for aside in fs::read_dir(site.store().join("quarantine")).unwrap() {
        fs::remove_file(aside.unwrap().path()).unwrap();
    }
    let pack = Place::Pack.files(&site.store()).into_iter().max_by_key(|pack| pack.metadata().unwrap().len()).unwrap();
    let whole = fs::read(&pack).unwrap();
    let mut damaged = whole.clone();
    // Its blobs are of random content, so that this is inside one.
    damaged[whole.len() / 2] ^= 1;
    fs::write(&pack, damaged).unwrap();
    // Every look says so, not only the first.
    for _ in 0..2 {
        let repaired = office.run(["server", "repair", "--json"]).code(13);
        assert_eq!(repaired.json()["lost_blobs"], 1, "{repaired}");
        assert!(!repaired.json()["affected"].as_array().unwrap().is_empty(), "{repaired}");
        office.run(["server", "scrub"]).code(13).stdout_contains("damaged: ");
    }
    // A copy that was set aside, or that somebody has elsewhere, gives it back.
    fs::write(site.store().join("quarantine/found.pack"), whole).unwrap();
    let repaired = office.run(["server", "repair", "--json"]).success();
    assert_eq!(repaired.json()["lost_blobs"], 0, "{repaired}");
    let _server = Server::start(office.clone());
    let there = scratch();
    site.restore(&["data"], there.path());
    assert_same(&expected, &Tree::read(there.path()));
}

#[test]
fn a_volume_that_is_suddenly_another_one_is_held_until_it_is_released() {
    let data = Volume::new(6);
    let toml = "[retention]\nkeep-last = 1\nmin-retention = \"1s\"";
    let realm = Realm::new().server("store").client("host", &["data"]).directory("data", data.path()).extra(toml);
    let realm = realm.build();
    let mut server = realm.serve("store");
    let host = realm.vsync("host");
    data.random("documents", 3 << 20).write("note", "one");
    for version in ["two", "three"] {
        data.write("note", version);
        host.run(["backup", "data"]).success();
    }
    let clean = Tree::read(data.path());
    // Somebody encrypts everything.
    data.remove("documents").random("documents.encrypted", 3 << 20);
    host.run(["backup", "data"]).success();
    std::thread::sleep(std::time::Duration::from_secs(2));
    // Upkeep looks after a minute.
    let office = realm.vsync("store");
    let begun = std::time::Instant::now();
    let mut status = String::new();
    while !status.contains("is held") && begun.elapsed() < std::time::Duration::from_secs(120) {
        std::thread::sleep(std::time::Duration::from_secs(1));
        status = office.run(["status"]).success().stdout().to_owned();
    }
    assert!(status.contains("vsync release data"), "{status}");
    let count = || host.run(["snapshots", "data", "--json"]).success().json().as_array().unwrap().len();
    assert_eq!(count(), 3, "retention forgets nothing of it");
    // Also after a restart.
    server.restart();
    assert!(office.run(["status"]).success().stdout().contains("is held"));
    let plan = office.run(["forget", "--dry-run", "--json"]).success().json();
    assert_eq!(plan["forgotten"], 0, "{plan}");
    let there = scratch();
    host.run(["restore", "data@latest~1", "--to-path", there.path().to_str().unwrap()]).success();
    assert_same(&clean, &Tree::read(there.path()));
    host.run(["release", "data"]).code(12);
    office.run(["release", "data"]).success();
    office.run(["release", "data"]).code(11).stderr_contains("not held");
    let plan = office.run(["forget", "--dry-run", "--json"]).success().json();
    assert_eq!(plan["forgotten"], 2, "{plan}");
}

#[test]
fn a_snapshot_is_compared_with_what_it_was_made_of() {
    let site = Site::new(7);
    site.data.many("many", 30, 3000).random("large", 3 << 20).sparse("sparse", 9 << 20, &[(4 << 20, b"island")]);
    site.data.link("hard", "large").symlink("link", "large").settled();
    site.backup();
    let compare = |words: &[&str]| site.host().run([&["verify", "--against-source", "--json"], words].concat());
    let same = compare(&[]).success().json();
    assert_eq!((same["files_same"].as_u64(), same["changed_since"].as_u64()), (Some(32), Some(0)), "{same}");
    let some = compare(&["data", "--sample", "40%"]).success().json();
    let (same, left) = (some["files_same"].as_u64().unwrap(), some["files_left_out"].as_u64().unwrap());
    assert!(same + left == 32 && left > 0, "{some}");
    // What changes is no fault.
    site.data.write("new", "words").write("many/000/000003", "other words").remove("many/000/000004");
    let changed = compare(&["data@latest"]).success().json();
    assert_eq!((changed["new_since"].as_u64(), changed["files_same"].as_u64()), (Some(1), Some(30)), "{changed}");
    assert_eq!(changed["changed_since"].as_u64(), Some(2), "{changed}");
    site.host().run(["verify", "--against-source", "--read-data"]).code(2);
    site.host().run(["verify", "--sample", "5%"]).code(2);
    // Only one of all machines has it, and a server machine reads no backups.
    site.realm.vsync("store").run(["verify", "--against-source", "data"]).code(12);
}
