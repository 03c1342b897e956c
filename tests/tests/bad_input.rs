//! Whatever people, networks and disks do: an exit status that says which kind of trouble it is, words that name the
//! object and what to do, and never a panic.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use vsync_tests::site::Summary;
use vsync_tests::{Network, Output, Realm, Site, Tree, Volume, assert_same, shell};

/// What is typed, what the exit status must be, and words that the error must have.
type Typed = (&'static [&'static str], i32, &'static [&'static str]);

const TYPED: &[Typed] = &[
    (&["backup", "dta"], 11, &["does not back up dta", "data"]),
    (&["backup", "../data"], 2, &["../data"]),
    (&["backup", "data", "--tag", "novalue"], 2, &["novalue", "KEY=VALUE"]),
    (&["backup", "data", "--server", "stor"], 2, &["no server stor", "store"]),
    (&["backup", "data", "--as", "hosts"], 2, &["hosts", "did you mean `host`"]),
    (&["backup", "--stdin-from-command", "stream"], 2, &["COMMAND"]),
    (&["backup", "--stdin-from-command", "data", "--", "/no/such/program"], 20, &["/no/such/program"]),
    (&["backup", "--stdin-from-command", "data", "--", "false"], 20, &["false failed"]),
    (&["backup", "--nonsense"], 2, &["--nonsense"]),
    (&["restore", "dta", "--to-path", "t"], 11, &["no snapshot of dta", "did you mean data"]),
    (&["restore", "data@latest~18446744073709551615", "--to-path", "t"], 11, &["only 1 snapshots of data"]),
    (&["restore", "data@latest~7", "--to-path", "t"], 11, &["only 1 snapshots of data", "vsync snapshots"]),
    (&["restore", "data@ffffffff", "--to-path", "t"], 11, &["no snapshot ffffffff"]),
    (&["restore", "data@2001-01-01", "--to-path", "t"], 11, &["2001-01-01"]),
    (&["restore", "data:no/such/file", "--to-path", "t"], 11, &["vsync ls"]),
    (&["restore", "data@someday", "--to-path", "t"], 2, &["data@someday", "VOLUME@latest~2"]),
    (&["restore", "data:../etc", "--to-path", "t"], 2, &[".."]),
    (&["restore", "data@latest", "--at", "1h ago", "--to-path", "t"], 11, &["no snapshot of data"]),
    (&["restore", "data@latest~1", "--at", "1h ago", "--to-path", "t"], 2, &["--at"]),
    (&["restore", "data", "--include", "[", "--to-path", "t"], 2, &["["]),
    (&["restore", "data", "--to-path", "vsync.toml"], 1, &["vsync.toml"]),
    (&["restore", "data", "--source", "nobody", "--to-path", "t"], 11, &["data from nobody", "can come from host"]),
    (&["restore", "data", "--source", "hots", "--to-path", "t"], 11, &["data from hots", "did you mean host"]),
    (&["restore", "dta", "--at", "1h ago", "--to-path", "t"], 11, &["no snapshot of dta", "did you mean data"]),
    (&["restore", "dmp", "--to-path", "t"], 11, &["no snapshot of dmp", "did you mean dump"]),
    (&["snapshots", "dta"], 11, &["no snapshot of dta", "did you mean data"]),
    (&["snapshots", "data", "--source", "hots"], 11, &["data from hots", "did you mean host"]),
    (&["snapshots", "unused"], 0, &[]),
    (&["snapshots", "data", "--tag", "a=b"], 0, &[]),
    (&["verify", "dta"], 11, &["no snapshot of dta", "did you mean data"]),
    (&["stats", "dta"], 11, &["no snapshot of dta", "did you mean data"]),
    (&["stats", "data@latest"], 2, &["data@latest"]),
    (&["server", "run"], 2, &["host is a client", "--as NAME"]),
    (&["--config", "/no/vsync.toml", "snapshots"], 1, &["/no/vsync.toml"]),
    (&["--keys", "/no/keys", "snapshots"], 12, &["/no/keys"]),
    (&["--state-dir", "/proc/nowhere", "backup", "data"], 1, &["/proc/nowhere", "--state-dir"]),
    (&["", "x"], 2, &["unrecognized"]),
];

/// The error that `--json` prints, after the checks that all output must pass.
#[track_caller]
fn error_of(output: &Output) -> String {
    assert!(!output.stderr().contains("panicked at"), "{output}");
    let last = output.stderr().lines().last().unwrap_or_default();
    let error: serde_json::Value =
        serde_json::from_str(last).unwrap_or_else(|error| panic!("expected a JSON error ({error}) from {output}"));
    assert_eq!(error["message_type"], "exit_error", "{output}");
    assert_eq!(error["code"].as_i64(), output.status().map(i64::from), "{output}");
    format!("{} to do: {}", error["message"].as_str().unwrap(), error["hint"].as_str().unwrap_or_default())
}

#[track_caller]
fn fails(output: Output, code: i32, words: &[&str]) {
    let output = output.code(code);
    let error = error_of(&output);
    for word in words {
        assert!(error.contains(word), "no {word:?} in the error of {output}");
    }
}

#[test]
fn what_is_typed_wrongly_is_explained() {
    let site = Site::with(1, |realm| realm.client("other", &["unused"]));
    site.data.write("file", "content");
    site.backup();
    // In no configuration.
    site.host().stdin("a stream").run(["backup", "--stdin", "dump"]).success();
    for (words, code, expected) in TYPED {
        let home = vsync_tests::scratch();
        let vsync = site.host().with(["--json"]).env("HOME", home.path());
        let output = vsync.run(*words);
        assert!(!output.stderr().contains("panicked at"), "{output}");
        if *code == 0 {
            let _ = output.success();
        } else {
            fails(output, *code, expected);
        }
    }
    // A command that failed has left no snapshot.
    let listed = site.host().run(["snapshots", "--json"]).success();
    assert_eq!(listed.stdout().matches("short_id").count(), 2, "{listed}");
}

/// A change to the configuration, and the words of the error with the line.
const CONFIGURATIONS: &[(&str, &str, &[&str])] = &[
    ("name = \"host\"", "name = host", &["vsync.toml", "line "]),
    ("name = \"host\"", "name = \"store\"", &["line ", "store"]),
    ("name = \"host\"", "name = \"a b\"", &["line ", "a b"]),
    ("name = \"host\"", "nmae = \"host\"", &["line ", "nmae", "name"]),
    ("backup = [\"data\"]", "backup = [\"data\", \"data\"]", &["line ", "data"]),
    ("backup = [\"data\"]", "backup = \"data\"", &["line "]),
    ("[[volumes]]", "[[volumes]]\nname = \"data\"\n[[volumes]]", &["line ", "data"]),
    ("[[volumes]]", "[[volums]]", &["line ", "volums"]),
    ("store = \"directory\"", "store = \"cupboard\"", &["line ", "cupboard"]),
    ("[realm]", "[realm", &["line 1"]),
];

#[test]
fn a_wrong_configuration_is_an_error_with_its_line() {
    let realm = Realm::new().server("store").client("host", &["data"]).directory("data", Path::new("/srv")).build();
    let good = fs::read_to_string(realm.machine("host").join("vsync.toml")).unwrap();
    for (from, to, words) in CONFIGURATIONS {
        assert!(good.contains(from), "no {from:?} in {good}");
        realm.edit(|_| good.replacen(from, to, 1));
        fails(realm.vsync("host").run(["snapshots", "--json"]), 2, words);
    }
    realm.edit(|_| "\u{0}\u{1}binary".to_owned());
    fails(realm.vsync("host").run(["snapshots", "--json"]), 2, &["line 1"]);
}

#[test]
fn a_server_that_is_not_there_is_unreachable() {
    let mut site = Site::new(2);
    let mut network = Network::new(2);
    site.server.stop().success();
    fails(site.host().run(["backup", "data", "--json"]), 10, &["no answer from store", "(UDP)", "vsync server run"]);
    site.realm.edit(|toml| toml.replace("address = \"127.", "address = \"no.such.host.invalid:1\" # "));
    fails(site.host().run(["backup", "data", "--json"]), 10, &["cannot find store", "no.such.host.invalid:1"]);

    // A firewall that lets no UDP through.
    let far = network.host(1).address().to_string();
    let old = fs::read_to_string(site.realm.machine("host").join("vsync.toml")).unwrap();
    let line = old.lines().find(|line| line.starts_with("address")).unwrap().to_owned();
    site.realm.edit(|toml| toml.replace(&line, &format!("address = \"{far}:10022\"")));
    site.server = vsync_tests::Server::start(site.realm.vsync("store").through(network.host(1).prefix()));
    let host = site.host().through(network.host(2).prefix());
    host.run(["backup", "data"]).success();
    network.host_mut(1).run("iptables", ["-w", "-A", "INPUT", "-p", "udp", "-j", "DROP"]);
    fails(host.run(["backup", "data", "--json"]), 10, &["no answer from store", "(UDP)", "firewall"]);
}

#[test]
fn who_may_not_is_told_so() {
    let mut site =
        Site::with(3, |realm| realm.client("other", &["data"]).client_with("writer", &["data"], "role = \"writer\""));
    site.data.write("file", "content");
    site.backup();
    let admin = |words: &[&str]| drop(vsync_tests::Vsync::at(&site.realm.admin()).run(words).success());
    let writer = site.realm.vsync("writer").with(["--json"]);
    fails(writer.run(["restore", "data", "--to-path", "t"]), 12, &["writer", "cannot read any backup"][..1]);

    // A key that the server has not heard of.
    admin(&["keygen", "other", "--rotate"]);
    site.realm.configure("other");
    fails(site.realm.vsync("other").run(["backup", "--json"]), 12, &["store", "keys", "vsync.pub"]);
    // A key that is no longer this machine's.
    admin(&["keygen", "host", "--rotate"]);
    fails(site.host().run(["backup", "--json"]), 12, &["host", "vsync.pub"]);
    site.realm.configure("host");

    // A machine that was removed, on its own side and on the server's.
    let public = site.realm.machine("store").join("vsync.pub");
    fs::copy(site.realm.admin().join("vsync.pub"), &public).unwrap();
    site.backup();
    let all = fs::read_to_string(&public).unwrap();
    let less: String = all.lines().filter(|line| !line.contains(" host ")).map(|line| format!("{line}\n")).collect();
    assert_ne!(all, less, "no line of host in {all}");
    fs::write(&public, &less).unwrap();
    fails(site.host().run(["backup", "--json"]), 12, &["store", "keys"]);
    fs::write(site.realm.machine("host").join("vsync.pub"), &less).unwrap();
    fails(site.host().run(["backup", "--json"]), 12, &["host is locked out"]);

    // Another realm's keys, and another realm's store.
    let foreign = Realm::new().server("store").client("host", &["data"]).build();
    let keys = foreign.admin().parent().unwrap().join("keys");
    fails(site.host().env("VSYNC_KEYS", &keys).run(["backup", "--json"]), 12, &["another realm"]);
    site.server.stop().success();
    let store = site.store();
    foreign.edit(|toml| toml.replace(foreign.store("store").to_str().unwrap(), store.to_str().unwrap()));
    fails(foreign.vsync("store").run(["server", "run", "--json"]), 1, &["belongs to realm"]);
}

#[test]
fn a_store_that_must_not_be_opened_is_left_alone() {
    let mut site = Site::new(4);
    let again = site.realm.vsync("store").with(["--json"]).run(["server", "run", "--listen", "127.0.0.1:0"]);
    fails(again, 1, &["in use by another process"]);
    fails(site.realm.vsync("store").run(["server", "rebuild", "--json"]), 1, &["in use by another process"]);
    site.server.stop().success();
    let version = site.store().join("VERSION");
    let mark = fs::read_to_string(&version).unwrap();
    fs::write(&version, mark.replace("vsync-store 1", "vsync-store 2")).unwrap();
    fails(site.realm.vsync("store").run(["server", "run", "--json"]), 1, &["format 2", "use a newer vsync"]);
    fs::write(&version, "nonsense").unwrap();
    fails(site.realm.vsync("store").run(["server", "run", "--json"]), 1, &["neither empty nor a vsync store"]);
}

/// A small file system, unmounted with its guard.
struct Small(tempfile::TempDir);

impl Small {
    fn new(size: &str) -> Self {
        let small = Self(vsync_tests::scratch());
        let path = small.0.path().to_str().unwrap();
        shell::run("mount", ["-t", "tmpfs", "-o", &format!("size={size}"), "none", path]);
        small
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        shell::run("umount", ["-l", self.0.path().to_str().unwrap()]);
    }
}

#[test]
fn a_full_target_keeps_what_is_complete() {
    let site = Site::new(5);
    site.data.write("a", "old").random("b", 2 << 20);
    site.backup();
    let small = Small::new("12m");
    let target = small.0.path();
    site.restore(&["data"], target);
    let old = fs::read(target.join("b")).unwrap();
    site.data.write("a", "new").random("c", 6 << 20).random("d", 7 << 20).resize("b", 20 << 20);
    site.data.patch("b", 2 << 20, vec![7; 18 << 20]);
    site.backup();
    let expected = Tree::read(site.data.path());
    let full = site.try_restore(&["data"], target);
    let told = full.stderr().to_owned();
    fails(full, 21, &["make room"]);
    let found = Tree::read(target);
    assert!(["old", "new"].contains(&fs::read_to_string(target.join("a")).unwrap().as_str()));
    for name in ["c", "d"].into_iter().filter(|name| target.join(name).exists()) {
        assert_eq!(found.entry(name), expected.entry(name), "{name} is not what its name says");
    }
    // Which of them there was room for is chance. It does not hold the whole of b: that is what it was, or is named.
    // Nor is what else was under way kept quiet about.
    let named: BTreeSet<&str> = told
        .split_once("incomplete: ")
        .and_then(|(_, rest)| rest.split(": ").next())
        .map_or_else(BTreeSet::new, |names| names.split(", ").collect());
    assert!(fs::read(target.join("b")).unwrap() == old || named.contains("b"), "{told}");
    assert!(named.is_subset(&BTreeSet::from(["a", "b"])), "{told}");
    shell::run("mount", ["-o", "remount,size=64m", target.to_str().unwrap()]);
    site.restore(&["data"], target);
    assert_same(&expected, &Tree::read(target));
    // And where there is room for one file alone, and not for all of it, it is changed in part.
    let tight = Small::new("12m");
    site.restore(&["data@latest~1"], tight.0.path());
    let part = ["restore", "data", "--include", "b", "--to-path", tight.0.path().to_str().unwrap()];
    site.host().run(part).code(21).stderr_contains("1 file is incomplete: b").stderr_contains("make room");
    assert!(fs::read(tight.0.path().join("b")).unwrap() != old);
}

#[test]
fn names_cannot_play_with_the_terminal() {
    let site = Site::new(6);
    site.data.write("bad\n\u{1b}[31mname\u{7}", vec![1; 2 << 20]);
    let path = site.data.path().join("bad\n\u{1b}[31mname\u{7}");
    let trace = ["strace", "-f", "-o", "/dev/null", "-e", "inject=pread64,preadv2:error=EIO:when=1+", "-P"];
    let output = site.host().through(trace).through([path]).run(["backup", "data"]).code(3);
    assert!(!output.stderr().contains('\u{1b}') && !output.stderr().contains('\u{7}'), "{output:?}");
    assert!(output.stderr().contains("bad\\n\\u{1b}[31mname"), "{output}");
    // What the snapshot has not exactly, no restore has.
    let there = vsync_tests::scratch();
    let restored = site.host().run(["restore", "data", "--to-path", there.path().to_str().unwrap()]).code(3);
    restored.stderr_contains("not exact in the snapshot: bad\\n\\u{1b}[31mname\\u{7}: ");
}

#[test]
fn what_cannot_be_looked_through_in_a_target_is_named() {
    let site = Site::new(8);
    site.data.write("a", "a");
    site.backup();
    let there = vsync_tests::scratch();
    site.restore(&["data"], there.path());
    let mounted = there.path().join("mounted");
    fs::create_dir(&mounted).unwrap();
    shell::run("mount", ["-t", "tmpfs", "none", mounted.to_str().unwrap()]);
    let restored = site.host().run(["restore", "data", "--to-path", there.path().to_str().unwrap()]);
    shell::run("umount", [mounted.to_str().unwrap()]);
    restored.code(3).stderr_contains("left as it is: mounted: is the mount point of something else");
}

#[test]
fn files_that_do_not_hold_still_are_listed() {
    let site = Site::new(7);
    site.data.many("many", 1500, 3000).random("grows", 30 << 20).random("shrinks", 30 << 20).random("quiet", 4 << 20);
    site.data.fifo("fifo").socket("socket");
    let stop = AtomicBool::new(false);
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                let size = fs::metadata(site.data.path().join("grows")).unwrap().len();
                site.data.patch("grows", size, [7; 5000]);
                site.data.resize("shrinks", (30 << 20) - (round % 2000) * 4096);
                let directory = round % 15;
                let name = format!("many/{directory:03}/{:06}", directory * 100 + round / 15 % 100);
                let _ = fs::remove_file(site.data.path().join(name));
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        std::thread::sleep(Duration::from_millis(50));
        // Between a directory's list and its files there is time for some to go.
        let slow = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "inject=getdents64:delay_exit=50000"];
        let outcome = site.host().through(slow).run(["backup", "data", "--json"]);
        stop.store(true, Ordering::Relaxed);
        outcome
    });
    let outcome = outcome.code(3);
    assert!(!outcome.stderr().contains("panicked at"), "{outcome}");
    let defects = Summary::of(&outcome).0["defects"].to_string();
    assert!(defects.contains("grows") && defects.contains("shrinks"), "{defects}");
    assert!(defects.contains("vanished"), "{defects}");
    let there = vsync_tests::scratch();
    // Not the volume as it was at any moment, and the restore says so.
    site.try_restore(&["data"], there.path()).code(3).stdout_contains("vanished");
    assert_eq!(Tree::read(site.data.path()).entry("quiet"), Tree::read(there.path()).entry("quiet"));
    // The next backup, in peace, is exact.
    site.backup();
    site.restore(&["data"], there.path());
    assert_same(&Tree::read(site.data.path()), &Tree::read(there.path()));
}

#[test]
fn an_unreadable_file_is_listed() {
    let site = Site::new(8);
    site.data.random("bad", 3 << 20).write("good", "good").random("small", 5000);
    for name in ["bad", "small"] {
        let path = site.data.path().join(name);
        let trace = ["strace", "-f", "-o", "/dev/null", "-e", "inject=pread64,preadv2:error=EIO:when=1+", "-P"];
        let output = site.host().through(trace).through([path]).run(["backup", "data"]).code(3);
        assert!(output.stderr().contains(&format!("not exact: {name}: cannot be read")), "{output}");
    }
    let listed = site.host().run(["snapshots"]).success();
    assert!(listed.stdout().contains("partial"), "{listed}");
    // A failure is not remembered as content.
    site.backup();
    let there = vsync_tests::scratch();
    site.restore(&["data"], there.path());
    assert_same(&Tree::read(site.data.path()), &Tree::read(there.path()));
}

#[test]
fn nobody_listens_and_nothing_panics() {
    let site = Site::new(9);
    site.data.write("file", "content");
    site.backup();
    let commands: &[&[&str]] = &[
        &["snapshots"],
        &["--help"],
        &["man"],
        &["completions", "bash"],
        &["backup", "data"],
        &["snapshots", "--json"],
    ];
    for words in commands {
        for (shape, codes) in [
            ("set -o pipefail; \"$@\" | true", &[0][..]),
            ("exec \"$@\" >&-", &[0]),
            ("exec \"$@\" 2>&-", &[0]),
            ("exec \"$@\" 2>/dev/full", &[0]),
            ("exec \"$@\" >/dev/full", &[21, 0, 1]),
        ] {
            let output = site.host().through(["bash", "-c", shape, "bash"]).run(*words);
            assert!(!output.stderr().contains("panicked"), "{shape}: {output}");
            assert!(output.status().is_some_and(|code| codes.contains(&code)), "{shape}: {output}");
        }
    }
}

/// Nobody is told, and yet the exit status is the right one and an interruption is obeyed.
#[test]
fn what_nobody_hears_changes_nothing() {
    let site = Site::new(11);
    site.data.write("file", "content");
    let deaf = ["exec \"$@\" 2>/dev/full", "set -o pipefail; \"$@\" 2>&1 | true"];
    for shape in deaf {
        for (words, code) in [
            (&["restore", "nothing", "--to-path", "t"][..], 11),
            (&["--json", "restore", "nothing", "--to-path", "t"], 11),
            (&["-vv", "backup", "data", "--as", "nobody"], 2),
        ] {
            let output = site.host().through(["bash", "-c", shape, "bash"]).run(words);
            assert_eq!(output.status(), Some(code), "{shape}: {output}");
        }
    }
    // What is backed up has no end.
    let started = site.data.path().join("started");
    let source = format!("touch {}; exec cat /dev/zero", started.display());
    for shape in ["exec \"$@\" 2>/dev/full", "exec \"$@\" 2> >(true)"] {
        let backup = ["backup", "--stdin-from-command", "dump", "--", "sh", "-c", &source];
        let mut running = site.host().through(["bash", "-c", shape, "bash"]).spawn(backup);
        while !started.exists() {
            assert!(running.is_running(), "{shape}: {}", running.stderr_so_far());
            std::thread::sleep(Duration::from_millis(10));
        }
        running.signal(Signal::INT);
        let output = running.wait_within(Duration::from_secs(100));
        assert_eq!(output.status(), Some(130), "{shape}: {output}");
        fs::remove_file(&started).unwrap();
    }
}

#[test]
fn what_is_in_the_way_is_said() {
    let site = Site::new(10);
    // The volume itself is not there, or is no directory.
    fs::remove_dir(site.data.path()).unwrap();
    let path = site.data.path().to_str().unwrap().to_owned();
    fails(site.host().run(["backup", "data", "--json"]), 11, &[&path, "vsync.toml"]);
    fs::write(site.data.path(), "a file").unwrap();
    fails(site.host().run(["backup", "data", "--json"]), 1, &[&path]);
    fs::remove_file(site.data.path()).unwrap();
    fs::create_dir(site.data.path()).unwrap();
    let state = Volume::new(0);
    state.write("state", "a file");
    let vsync = site.host().env("VSYNC_STATE_DIR", state.path().join("state"));
    fails(vsync.run(["backup", "data", "--json"]), 1, &[&state.path().display().to_string()]);
}
