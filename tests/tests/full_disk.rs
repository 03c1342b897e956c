//! F06: another program fills the store's disk to its last byte. Nothing is lost, what must be done to make space can
//! be done, and with space everything goes on.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use vsync_tests::power::Mounted;
use vsync_tests::{Realm, Tree, Volume, assert_same, scratch, shell};

/// Takes all the space that there is below `directory`.
fn fill(directory: &Path) {
    let path = directory.join("filler");
    let mut len = 0_u64;
    for step in (12..32).rev().map(|shift| 1_u64 << shift) {
        let grow = (len + step).to_string();
        if shell::attempt(Command::new("fallocate").args(["-l", &grow]).arg(&path)).is_ok() {
            len += step;
        }
    }
    // What is left of the last block of other files is out of reach anyway.
    let mut file = OpenOptions::new().append(true).open(&path).unwrap();
    while file.write_all(&[1; 512]).is_ok() {}
    assert!(File::create(directory.join("one more")).and_then(|mut file| file.write_all(&[1; 4096])).is_err());
}

#[test]
fn a_full_disk_can_be_emptied() {
    let images = scratch();
    let image = images.path().join("disk");
    File::create(&image).unwrap().set_len(1600 << 20).unwrap();
    shell::run("mkfs.ext4", ["-q", "-m", "0", image.to_str().unwrap()]);
    let data = Volume::new(8);
    let toml = "[retention]\nmin-retention = \"1s\"";
    let realm = Realm::new().server("store").client("host", &["data"]).directory("data", data.path()).extra(toml);
    let realm = realm.build();
    fs::create_dir_all(realm.store("store")).unwrap();
    let disk = Mounted::new(&image, &realm.store("store"));
    let mut server = realm.serve("store");
    let (host, office) = (realm.vsync("host"), realm.vsync("store"));
    data.random("large", 4 << 20);
    let first = host.run(["backup", "data", "--json"]).success();
    let first = first.json_lines().pop().unwrap()["snapshot_id"].as_str().unwrap().to_owned();
    data.random("large", 3 << 20);
    host.run(["backup", "data"]).success();
    let kept = Tree::read(data.path());
    assert_eq!(fs::metadata(realm.store("store").join("ballast")).unwrap().len(), 32 << 20);
    std::thread::sleep(std::time::Duration::from_secs(2));

    fill(&realm.store("store"));
    data.random("large", 2 << 20);
    host.run(["backup", "data"]).code(21);
    server.restart();
    host.run(["backup", "data"]).code(21);
    let there = scratch();
    host.run(["restore", "data", "--to-path", there.path().to_str().unwrap()]).success();
    assert_same(&kept, &Tree::read(there.path()));
    office.run(["forget", &first]).success();
    for _ in 0..4 {
        office.run(["server", "gc", "--at-once", "--empty-trash"]).success();
    }
    let status = office.run(["status", "--json"]).success();
    assert!(!status.stdout().contains("takes no writes"), "{status}");

    fs::remove_file(realm.store("store").join("filler")).unwrap();
    host.run(["backup", "data"]).success();
    office.run(["server", "gc"]).success();
    assert_eq!(fs::metadata(realm.store("store").join("ballast")).unwrap().len(), 32 << 20);
    office.run(["server", "scrub"]).success();
    server.stop().success();
    drop(disk);
}
