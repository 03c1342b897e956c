//! An ordinary user backs up and restores what is his, and is told of what is not.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;

use vsync_tests::{Realm, Tree, Volume, Vsync, assert_same, shell};

/// The user, who has no rights but those of every user.
const USER: u32 = 12_321;

/// A realm of that user on one machine, with a server in each command.
fn realm(data: &Volume) -> (Realm, Vsync) {
    let realm = Realm::new().embedded("disk").client("laptop", &["data"]).directory("data", data.path()).build();
    let root = realm.admin().parent().unwrap().to_owned();
    shell::run("chown", ["-R", &format!("{USER}:{USER}"), root.to_str().unwrap()]);
    let user = [format!("--reuid={USER}"), format!("--regid={USER}"), "--clear-groups".into()];
    let vsync = realm.vsync("laptop").through(["setpriv".to_owned()].into_iter().chain(user).chain(["--".to_owned()]));
    (realm, vsync)
}

fn own(volume: &Volume) {
    shell::run("chown", ["-hR", &format!("{USER}:{USER}"), volume.path().to_str().unwrap()]);
}

#[test]
fn a_user_backs_up_and_restores_what_is_his() {
    let data = Volume::new(1);
    data.many("many", 150, 5000).random("large", 20 << 20).symlink("link", "large").link("hard", "large").fifo("fifo");
    data.sparse("sparse", 4 << 20, &[(1 << 20, b"piece")]).xattr("large", "user.note", "mine").acl("large", "u:5:r");
    own(&data);
    data.mode("many", 0o750).mode("large", 0o640).mtime("large", 5, 6);
    let (_realm, vsync) = realm(&data);
    vsync.run(["backup", "data"]).success();

    let there = Volume::new(0);
    own(&there);
    let target = there.path().join("target");
    let restore = ["restore", "data", "--to-path", target.to_str().unwrap()];
    vsync.run(restore).success();
    assert_same(&Tree::read(data.path()), &Tree::read(&target));
    fs::write(target.join("large"), "short").unwrap();
    fs::remove_file(target.join("link")).unwrap();
    vsync.run(restore).success();
    assert_same(&Tree::read(data.path()), &Tree::read(&target));
}

#[test]
fn what_a_user_may_not_read_or_give_away_is_listed() {
    let data = Volume::new(2);
    data.write("mine", "m").write("secret", "s").write("closed/inside", "i").write("foreign", "f");
    own(&data);
    data.owner("secret", 0, 0).mode("secret", 0o600).owner("closed", 0, 0).mode("closed", 0o700);
    data.owner("foreign", 54_321, 54_321).mode("foreign", 0o4755);
    let (_realm, vsync) = realm(&data);
    let backup = vsync.run(["backup", "data"]).code(3).stderr_contains("secret").stderr_contains("closed");
    assert!(backup.stderr().contains("Permission denied") || backup.stderr().contains("permission"), "{backup}");

    let there = Volume::new(0);
    own(&there);
    let target = there.path().join("target");
    let restore = vsync.run(["restore", "data", "--to-path", target.to_str().unwrap()]).code(3);
    let restore = restore.stderr_contains("foreign").stderr_contains("owner");
    assert_eq!(fs::read(target.join("foreign")).unwrap(), b"f", "{restore}");
    assert_eq!(fs::read(target.join("mine")).unwrap(), b"m");
    // A file that did not get its owner must not run with the rights of the one it got.
    let mode = Tree::read(&target).entry("foreign").mode;
    assert_eq!(mode & 0o6000, 0, "{mode:o}");
    assert!(!target.join("secret").exists());
}
