//! C11: keys are made, replaced and let in, and whoever does that is killed before any of its calls. Afterwards the old or
//! the new keys are there, never none, and nobody is locked out for good.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;

use vsync_tests::{Output, Site, Tree, Vsync, assert_same, scratch};

/// Whatever changes something on the disk.
const CALLS: [&str; 5] =
    ["write,writev", "fsync,fdatasync", "rename,renameat,renameat2,linkat", "fchmod,fchmodat,fchown", "mkdir,mkdirat"];

/// Runs a command that dies before the `number`th of these calls, if it comes to that.
fn killed_at(admin: &Vsync, call: &str, number: u64, words: &[&str]) -> Output {
    let (trace, inject) = (format!("trace={call}"), format!("inject={call}:signal=SIGKILL:when={number}"));
    admin.clone().through(["strace", "-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject]).run(words)
}

/// Every kill of a command, and after each what must hold.
fn at_every_call(admin: &Vsync, words: &[&str], mut before: impl FnMut(), mut holds: impl FnMut(&str)) -> u32 {
    let mut kills = 0;
    for call in CALLS {
        for number in 1.. {
            before();
            let output = killed_at(admin, call, number, words);
            let Some(status) = output.status() else {
                holds(&format!("{words:?} killed before the {number}th {call}"));
                kills += 1;
                continue;
            };
            assert_eq!(status, 0, "{output}");
            break;
        }
    }
    println!("{words:?}: {kills} kills");
    kills
}

/// Brings `vsync.pub` to a machine, as a commit to git would.
fn hand_over(site: &Site, machines: &[&str]) {
    for machine in machines {
        fs::copy(site.realm.admin().join("vsync.pub"), site.realm.machine(machine).join("vsync.pub")).unwrap();
    }
}

#[test]
fn a_key_that_is_replaced_is_the_old_one_or_the_new_one() {
    let site = Site::with(1, |realm| realm.client("other", &["data"]));
    site.data.many("many", 5, 2000);
    site.backup();
    let expected = Tree::read(site.data.path());
    let admin = Vsync::at(&site.realm.admin());
    let kills = at_every_call(
        &admin,
        &["keygen", "host", "--rotate"],
        || {},
        |what| {
            hand_over(&site, &["store", "host", "other"]);
            // Everybody else goes on.
            site.realm.vsync("other").run(["snapshots"]).success();
            let done = site.host().run(["backup", "data"]);
            // With the new half of a pair, it is told so, and how to go on.
            assert!(matches!(done.status(), Some(0 | 12)), "{what}: {done}");
            assert!(done.status() == Some(0) || done.stderr().contains("to do:"), "{what}: {done}");
            admin.run(["keygen", "host", "--rotate"]).success();
            hand_over(&site, &["store", "host", "other"]);
            site.realm.configure("host");
            site.backup();
            let there = scratch();
            site.restore(&["data"], there.path());
            assert_same(&expected, &Tree::read(there.path()));
        },
    );
    assert!(kills >= 5, "{kills} kills");
}

#[test]
fn a_machine_that_was_let_in_by_half_is_let_in_by_another_try() {
    let site = Site::new(2);
    site.data.write("file", "text");
    site.backup();
    site.realm.edit(|toml| toml.replacen("[[clients]]", "[[clients]]\nname = \"fresh\"\n\n[[clients]]", 1));
    let admin = Vsync::at(&site.realm.admin());
    let keys = site.realm.admin().parent().unwrap().join("keys/machines");
    let public = site.realm.admin().join("vsync.pub");
    let without = fs::read(&public).unwrap();
    let forgotten = || {
        drop(fs::remove_file(keys.join("fresh.key")));
        fs::write(&public, &without).unwrap();
    };
    let kills = at_every_call(&admin, &["keygen", "fresh"], forgotten, |what| {
        hand_over(&site, &["store"]);
        site.host().run(["snapshots"]).success();
        let again = admin.run(["keygen", "fresh"]).success();
        // What is there by half is not taken for whole.
        if again.stdout().contains("--rotate") || again.stderr().contains("--rotate") {
            admin.run(["keygen", "fresh", "--rotate"]).success();
        }
        hand_over(&site, &["store"]);
        site.realm.configure("fresh");
        let listed = site.realm.vsync("fresh").run(["snapshots", "--json"]).success();
        assert_eq!(listed.json().as_array().unwrap().len(), 1, "{what}: {listed}");
    });
    assert!(kills >= 5, "{kills} kills");
}

#[test]
fn a_realm_is_made_or_is_not() {
    let home = scratch();
    let admin = Vsync::at(home.path());
    let toml = "[realm]\nname = \"r\"\n[[servers]]\nname = \"s\"\ndata = \"/srv/vsync\"\n\
                [keys]\nstore = \"directory\"\npath = \"keys\"\n";
    let empty = || {
        for entry in fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() { fs::remove_dir_all(entry).unwrap() } else { fs::remove_file(entry).unwrap() }
        }
        fs::write(home.path().join("vsync.toml"), toml).unwrap();
    };
    let kills = at_every_call(&admin, &["init"], empty, |what| {
        // Whatever was made is kept, and what is missing is made.
        let again = admin.run(["init"]);
        let made = again.status() == Some(0) || home.path().join("keys/realm.key").exists();
        assert!(made, "{what}: {again}");
        assert!(!again.stderr().contains("panicked"), "{what}: {again}");
        admin.run(["keygen", "--all"]).success();
        admin.run(["config", "check"]).success();
    });
    assert!(kills >= 4, "{kills} kills");
}
