//! One command backs up several volumes, on one connection.

use vsync_tests::{Realm, Tree, Volume, assert_same};

#[test]
fn all_volumes_of_a_machine_are_backed_up_by_one_command() {
    let (one, two, three) = (Volume::new(1), Volume::new(2), Volume::new(3));
    for volume in [&one, &two, &three] {
        volume.random("a", 100_000);
    }
    let realm = Realm::new()
        .server("annex2")
        .directory("one", one.path())
        .directory("two", two.path())
        .directory("three", three.path())
        .client("production2", &["one", "two", "three"])
        .build();
    let _server = realm.serve("annex2");
    let client = realm.vsync("production2");
    // What the first commit adds to the server's log is not taken for a rollback by the second.
    client.run(["backup"]).success();
    client.run(["backup", "three", "one"]).success();
    let there = vsync_tests::scratch();
    for (name, volume) in [("one", &one), ("two", &two), ("three", &three)] {
        let target = there.path().join(name);
        client.run(["restore", name, "--to-path", target.to_str().unwrap()]).success();
        assert_same(&Tree::read(volume.path()), &Tree::read(target));
    }
}

#[test]
fn one_that_fails_hinders_no_other() {
    let (one, two, three) = (Volume::new(1), Volume::new(2), Volume::new(3));
    for volume in [&one, &two, &three] {
        volume.random("a", 100_000);
    }
    let realm = Realm::new()
        .server("annex2")
        .directory("one", &one.path().join("nowhere"))
        .directory_with("two", two.path(), "run-after = \"exit 1\"")
        .directory("three", three.path())
        .client("production2", &["one", "two", "three"])
        .build();
    let _server = realm.serve("annex2");
    let client = realm.vsync("production2");
    let done = client.run(["backup"]).code(11).stderr_contains("one: the directory of one is not there");
    let done = done.stderr_contains("run-after of volume two");
    let _ = done.stderr_contains("1 of 3 volumes were not backed up: one");
    let there = vsync_tests::scratch();
    for (name, volume) in [("two", &two), ("three", &three)] {
        let target = there.path().join(name);
        client.run(["restore", name, "--to-path", target.to_str().unwrap()]).success();
        assert_same(&Tree::read(volume.path()), &Tree::read(target));
    }
    // Of what was made, the gravest remark counts.
    client.run(["backup", "two", "three"]).code(20);
}

#[test]
fn who_stops_the_command_stops_all_of_it() {
    let (one, two) = (Volume::new(1), Volume::new(2));
    let sign = one.path().with_extension("sign");
    let after = format!("run-finally = 'touch {}; sleep 2'", sign.display());
    let realm = Realm::new()
        .server("annex2")
        .directory_with("one", one.path(), &after)
        .directory("two", two.path())
        .client("production2", &["one", "two"])
        .build();
    let _server = realm.serve("annex2");
    let client = realm.vsync("production2");
    let mut running = client.spawn(["backup"]);
    while !sign.exists() {
        assert!(running.is_running(), "{}", running.stderr_so_far());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    running.signal(rustix::process::Signal::TERM);
    let _ = running.wait().code(130).stderr_contains("two was not backed up");
    let listed = client.run(["snapshots", "--json"]).success().json();
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
}
