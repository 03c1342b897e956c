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
