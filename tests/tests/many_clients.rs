//! Many machines at once.

use std::fs;
use std::path::Path;

use vsync_tests::cgroup::peak_memory;
use vsync_tests::{Place, Realm, Running, Tree, Volume, assert_same};

const CLIENTS: usize = 16;
const COMMON: u64 = 48 << 20;
const OWN: u64 = 2 << 20;

/// Most memory that the server may take with all of them at once.
const SERVER_LIMIT: u64 = 128 << 20;

#[test]
fn what_sixteen_machines_have_in_common_is_kept_once() {
    let volumes: Vec<Volume> = (0..CLIENTS)
        .map(|number| {
            let volume = Volume::new(number as u64);
            volume.random("own/file", OWN).many("own/many", 50, 3000);
            volume
        })
        .collect();
    let common = Volume::new(99);
    common.random("a", COMMON / 2).random("b", COMMON / 2);
    for volume in &volumes {
        for file in ["a", "b"] {
            fs::copy(common.join(file), volume.join(format!("common/{file}"))).expect("a copy");
        }
    }
    let name = |number: usize| format!("data{number}");
    let mut realm = Realm::new().server("annex2");
    for (number, volume) in volumes.iter().enumerate() {
        realm = realm.client(&format!("client{number}"), &[&name(number)]).directory(&name(number), volume.path());
    }
    let realm = realm.build();
    let server = realm.serve("annex2");
    let vsync = |number: usize| realm.vsync(&format!("client{number}"));
    let backups: Vec<Running> =
        (0..CLIENTS).map(|number| vsync(number).spawn(["backup", &name(number), "--json"])).collect();
    for backup in backups {
        backup.wait().success();
    }

    let stored: u64 = packs(&realm.store("annex2"));
    let needed = COMMON + CLIENTS as u64 * OWN;
    assert!(stored >= needed, "{stored} bytes in packs cannot hold {needed}");
    assert!(stored < needed + needed / 10, "{stored} bytes in packs for {needed}");
    let peak = peak_memory(server.process().pid()).expect("the server runs");
    println!("server: {} MiB at most, {stored} bytes in packs for {needed}", peak >> 20);
    assert!(peak < SERVER_LIMIT, "{peak} bytes of memory for {CLIENTS} machines at once");

    let restores: Vec<(tempfile::TempDir, Running)> = (0..CLIENTS)
        .map(|number| {
            let target = vsync_tests::scratch();
            let to = target.path().to_str().expect("a path").to_owned();
            (target, vsync(number).spawn(["restore", &name(number), "--to-path", &to]))
        })
        .collect();
    for ((target, restore), volume) in restores.into_iter().zip(&volumes) {
        restore.wait().success();
        assert_same(&Tree::read(volume.path()), &Tree::read(target.path()));
    }
    let peak = peak_memory(server.process().pid()).expect("the server runs");
    println!("server: {} MiB at most, with all restores at once", peak >> 20);
    assert!(peak < SERVER_LIMIT, "{peak} bytes of memory for {CLIENTS} machines at once");
}

fn packs(store: &Path) -> u64 {
    Place::Pack.files(store).iter().map(|file| file.metadata().expect("a pack").len()).sum()
}
