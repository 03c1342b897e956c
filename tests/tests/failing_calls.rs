//! F01 to F04: the n-th system call of a kind fails, for n = 1, 2, 3 and so on until there is no n-th: writes and
//! syncs of the server's log, catalog and packs, opens, reads, renames; the agent's, when it backs up and restores.
//! Whatever is acknowledged is there, whatever is said to be exact is exact, reads go on, and a fresh start finds
//! a store that is right.
//!
//! The default tries some of the numbers, `VSYNC_FAULTS=all` every one. `strace` makes the calls fail.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vsync_tests::site::Summary;
use vsync_tests::{Output, Site, Tree, assert_same, scratch};

/// The numbers to try.
fn numbers() -> Box<dyn Iterator<Item = u64>> {
    if std::env::var("VSYNC_FAULTS").is_ok_and(|wanted| wanted == "all") {
        return Box::new(1..);
    }
    let mut at = 0;
    Box::new(std::iter::from_fn(move || {
        at += 1 + at / 2;
        Some(at)
    }))
}

fn fired(log: &Path) -> bool {
    fs::read_to_string(log).is_ok_and(|log| log.contains("(INJECTED)"))
}

/// What libraries below cannot report: that there is no randomness, and that a thread of theirs cannot be woken.
const BEYOND_US: [&str; 2] = ["could not initialize ThreadRng", "failed to wake I/O driver"];

fn sane(done: &Output) {
    let beyond_us = BEYOND_US.iter().any(|words| done.stderr().contains(words));
    assert!(beyond_us || !done.stderr().contains("panicked"), "{done}");
}

/// A running server one of whose calls is going to fail.
struct Trap {
    strace: Child,
    files: tempfile::TempDir,
}

impl Trap {
    /// `only` are files to which the calls must go; none: any.
    fn set(server: u32, call: &str, error: &str, number: u64, only: &[String]) -> Self {
        let files = scratch();
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-p", &server.to_string(), "-o"]).arg(files.path().join("log"));
        strace.args(["-e", &format!("trace={call}"), "-e", &format!("inject={call}:error={error}:when={number}")]);
        strace.args(only.iter().flat_map(|path| ["-P", path.as_str()]));
        let stderr = fs::File::create(files.path().join("stderr")).unwrap();
        let strace = strace.stdin(Stdio::null()).stderr(stderr).spawn().expect("strace: run with `tests/run`");
        let begun = Instant::now();
        let traced = |task: fs::DirEntry| {
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            !status.contains("TracerPid:\t0\n")
        };
        while !fs::read_dir(format!("/proc/{server}/task")).unwrap().all(|task| traced(task.unwrap())) {
            assert!(begun.elapsed() < Duration::from_secs(30), "strace does not attach");
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { strace, files }
    }

    /// Takes it away; tells whether it was sprung.
    fn spring(mut self) -> bool {
        let _ = Command::new("kill").arg(self.strace.id().to_string()).status();
        let _ = self.strace.wait();
        fired(&self.files.path().join("log"))
    }
}

impl Drop for Trap {
    fn drop(&mut self) {
        drop(self.strace.kill());
        drop(self.strace.wait());
    }
}

fn listed(site: &Site) -> Vec<String> {
    let rows = site.host().run(["snapshots", "--json"]).success().json();
    rows.as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn whichever_call_of_the_server_fails_nothing_acknowledged_is_lost() {
    let mut site = Site::new(1);
    site.data.many("many", 20, 3000).random("random", 300_000);
    let store = site.store().canonicalize().unwrap();
    let file = |name: &str| vec![store.join(name).to_str().unwrap().to_owned()];
    let tmp = |room: &str| (0..4).flat_map(|at| file(&format!("{room}/tmp/{at}"))).collect::<Vec<_>>();
    let cases: Vec<(&str, &str, Vec<String>)> = vec![
        ("write,writev", "ENOSPC", tmp("packs")),
        ("write,writev", "EIO", tmp("packs")),
        ("write,writev", "ENOSPC", tmp("manifests")),
        ("write", "ENOSPC", file("log/chain.log")),
        ("write", "EIO", file("log/chain.log")),
        ("fdatasync,fsync", "EIO", Vec::new()),
        ("fdatasync,fsync", "ENOSPC", Vec::new()),
        ("pwrite64", "ENOSPC", Vec::new()),
        ("pwrite64", "EIO", Vec::new()),
        ("pread64", "EIO", Vec::new()),
        ("rename,renameat,renameat2", "EIO", Vec::new()),
        ("openat", "EMFILE", Vec::new()),
        ("openat", "ENOSPC", Vec::new()),
        ("unlink,unlinkat", "EIO", Vec::new()),
    ];
    let target = scratch();
    let mut acknowledged = vec![site.backup().text("snapshot_id").to_owned()];
    let mut counts = BTreeMap::new();
    for (call, error, only) in cases {
        for number in numbers() {
            let what = format!("{call} fails with {error} at {number} on {only:?}");
            site.data.random("random", 200_000 + acknowledged.len() as u64).write("number", what.as_bytes());
            let tree = Tree::read(site.data.path());
            let trap = Trap::set(site.server.process().pid(), call, error, number, &only);
            let done = site.host().limit(Duration::from_secs(60)).run(["backup", "data", "--json"]);
            let sprung = trap.spring();
            sane(&done);
            assert!(!site.server.log().contains("panicked"), "{what}: {}", site.server.log());
            let exact = done.status() == Some(0);
            if exact {
                acknowledged.push(Summary::of(&done).text("snapshot_id").to_owned());
            }
            // A store that takes no more writes still gives what it has.
            let last = acknowledged.last().unwrap();
            site.restore(&[&format!("data@{last}")], target.path());
            if exact {
                assert_same(&tree, &Tree::read(target.path()));
            }
            site.server.kill();
            site.server.restart();
            let standing = listed(&site);
            for id in &acknowledged {
                assert!(standing.contains(id), "{what}: {id} was acknowledged and is gone");
            }
            assert!(standing.len() <= acknowledged.len() + 1, "{what}: {standing:?}");
            if standing.len() > acknowledged.len() {
                // Committed, and the answer was lost: it must be what the volume was.
                site.restore(&[&format!("data@{}", standing[0])], target.path());
                assert_same(&tree, &Tree::read(target.path()));
                acknowledged.push(standing[0].clone());
            }
            if !sprung {
                assert!(exact, "{what}: {done}");
                println!("{call}, {error}, {only:?}: none at {number}");
                break;
            }
            *counts.entry((call, error)).or_insert(0_u32) += 1;
        }
    }
    site.host().run(["verify", "--read-data"]).success();
    site.server.stop().success();
    site.realm.vsync("store").run(["server", "scrub"]).success();
    println!("{counts:#?}");
    assert!(counts.len() >= 12, "{counts:?}");
}

/// Runs a command of the agent one of whose calls fails.
fn failing(site: &Site, call: &str, error: &str, number: u64, words: &[&str]) -> (Output, bool) {
    let files = scratch();
    let log = files.path().join("log");
    let inject = format!("inject={call}:error={error}:when={number}");
    let trace = format!("trace={call}");
    let prefix = ["strace", "-f", "-qq", "-o", log.to_str().unwrap(), "-e", &trace, "-e", &inject];
    let done = site.host().through(prefix).limit(Duration::from_secs(60)).run(words);
    sane(&done);
    (done, fired(&log))
}

#[test]
fn whichever_call_of_a_backup_fails_it_is_exact_or_says_that_it_is_not() {
    let site = Site::new(2);
    site.data.many("many", 20, 3000).random("random", 300_000);
    let target = scratch();
    let mut counts = BTreeMap::new();
    for (call, error) in [
        ("openat,openat2", "EIO"),
        ("openat,openat2", "EMFILE"),
        ("pread64,preadv2", "EIO"),
        ("pwrite64", "ENOSPC"),
        ("fdatasync,fsync", "EIO"),
        ("rename,renameat,renameat2", "ENOSPC"),
        ("statx", "EIO"),
        ("getdents64", "EIO"),
    ] {
        for number in numbers() {
            let what = format!("{call} fails with {error} at {number}");
            site.data.random("random", 200_000 + number).write("number", what.as_bytes());
            let (done, sprung) = failing(&site, call, error, number, &["backup", "data", "--json"]);
            let before = listed(&site);
            if done.status() == Some(0) {
                let id = Summary::of(&done).text("snapshot_id").to_owned();
                assert_eq!(before.first(), Some(&id), "{what}");
                site.restore(&[&format!("data@{id}")], target.path());
                assert_same(&Tree::read(site.data.path()), &Tree::read(target.path()));
            } else {
                assert!(sprung, "{what}: {done}");
            }
            site.backup();
            if !sprung {
                println!("{call}, {error}: none at {number}");
                break;
            }
            *counts.entry((call, error)).or_insert(0_u32) += 1;
        }
    }
    site.host().run(["verify", "--read-data"]).success();
    println!("{counts:#?}");
    assert!(counts.len() >= 7, "{counts:?}");
}

#[test]
fn whichever_call_of_a_restore_fails_it_is_exact_or_says_that_it_is_not() {
    let site = Site::new(3);
    site.data.many("many", 20, 3000).random("random", 300_000).symlink("link", "random").directory("empty");
    site.backup();
    let expected = Tree::read(site.data.path());
    let mut counts = BTreeMap::new();
    for (call, error) in [
        ("openat,openat2", "EMFILE"),
        ("openat,openat2", "EIO"),
        ("pwrite64", "ENOSPC"),
        ("pwrite64", "EIO"),
        ("ftruncate,fallocate", "ENOSPC"),
        ("mkdirat,mkdir", "ENOSPC"),
        ("fchmod,fchmodat,fchown,fchownat", "EIO"),
        ("utimensat", "EIO"),
        ("linkat,symlinkat", "EDQUOT"),
        ("renameat2,renameat,rename", "EIO"),
        ("fdatasync,fsync,syncfs", "EIO"),
    ] {
        for number in numbers() {
            let target = scratch();
            let there = target.path().join("there");
            let words = ["restore", "data", "--to-path", there.to_str().unwrap()];
            let (done, sprung) = failing(&site, call, error, number, &words);
            let what = format!("{call} fails with {error} at {number}: {done}");
            if done.status() == Some(0) {
                assert!(expected.differences(&Tree::read(&there)).is_empty(), "said to be exact: {what}");
            } else {
                assert!(sprung, "{what}");
            }
            // Whatever was left: the same command once more makes it right.
            site.host().run(words).success();
            assert_same(&expected, &Tree::read(&there));
            if !sprung {
                println!("{call}, {error}: none at {number}");
                break;
            }
            *counts.entry((call, error)).or_insert(0_u32) += 1;
        }
    }
    println!("{counts:#?}");
    assert!(counts.len() >= 6, "{counts:?}");
}

/// Longer than the moments in which a file may change again unnoticed.
const SETTLED: Duration = Duration::from_millis(3200);

#[test]
fn a_file_that_could_not_be_read_to_its_end_is_read_by_the_next_backup() {
    let site = Site::new(4);
    site.data.random("large", 3 << 20).random("other", 3 << 20);
    std::thread::sleep(SETTLED);
    let files = scratch();
    let (log, large) = (files.path().join("log"), site.data.join("large"));
    let (log, large) = (log.to_str().unwrap(), large.to_str().unwrap());
    let inject = "inject=pread64,preadv2:error=EIO:when=1";
    let strace = ["strace", "-f", "-qq", "-o", log, "-e", "trace=pread64,preadv2", "-e", inject, "-P", large];
    let done = site.host().through(strace).run(["backup", "data"]).code(3).stderr_contains("the rest is zeros");
    assert!(fired(Path::new(log)), "{done}");
    // Its times have not changed, and neither has anything else.
    let second = site.backup();
    assert_eq!(second.number("files_opened"), 1, "{second:?}");
    let target = scratch();
    site.restore(&["data"], target.path());
    assert_same(&Tree::read(site.data.path()), &Tree::read(target.path()));
}
