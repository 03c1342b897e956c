//! A store whose file system goes away, takes no writes or has no room for another file, and a store that was copied
//! while it was at work (F05, F07, R09).

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vsync_tests::power::Mounted;
use vsync_tests::{Output, Realm, Server, Site, Tree, Volume, asked, assert_same, scratch, shell};

/// A realm whose store is a file system of its own.
struct Bed {
    data: Volume,
    realm: Realm,
    image: tempfile::TempPath,
}

impl Bed {
    /// With further words for `mkfs.ext4`.
    fn new(seed: u64, words: &[&str]) -> Self {
        let data = Volume::new(seed);
        let realm = Realm::new().server("store").client("host", &["data"]).directory("data", data.path()).build();
        let image = tempfile::Builder::new().prefix("vsync-test-disk-").tempfile().unwrap().into_temp_path();
        File::create(&image).unwrap().set_len(4 << 30).unwrap();
        shell::run("mkfs.ext4", [&["-q", "-F", "-m", "0"], words, &[image.to_str().unwrap()]].concat());
        fs::create_dir_all(realm.store("store")).unwrap();
        Self { data, realm, image }
    }

    fn mount(&self) -> Mounted {
        Mounted::new(&self.image, &self.realm.store("store"))
    }

    fn backup(&self) -> Output {
        self.realm.vsync("host").run(["backup", "data"])
    }

    fn restores_to(&self, expected: &Tree) {
        let there = scratch();
        self.realm.vsync("host").run(["restore", "data", "--to-path", there.path().to_str().unwrap()]).success();
        assert_same(expected, &Tree::read(there.path()));
    }
}

/// An end that a user can understand, and no success.
#[track_caller]
fn refused(output: &Output) {
    assert!(output.status().is_some_and(|code| code != 0), "no failure, or a crash: {output}");
    let text = output.stderr();
    assert!(text.contains("error: ") && !text.contains("panicked"), "{output}");
}

/// What the kernel has when a disk was pulled out: ext4 refuses all that is not in memory. The program that asks for that
/// waits for its end of input, so that it takes no time to begin.
struct Plug(Child);

impl Plug {
    fn of(mounted: &Path) -> Self {
        let shut_down = "import fcntl, os, struct, sys\n\
                         disk = os.open(sys.argv[1], os.O_RDONLY)\n\
                         print('ready', flush=True)\n\
                         sys.stdin.read()\n\
                         fcntl.ioctl(disk, 0x8004587d, struct.pack('I', 2))";
        let mut python = Command::new("python3");
        python.args(["-c", shut_down]).arg(mounted).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut python = python.spawn().expect("python3: run with `tests/run`");
        let mut ready = [0; 6];
        python.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        Self(python)
    }

    fn pull(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success(), "the disk cannot be pulled out");
    }
}

/// F05: the disk goes away in the middle of a backup, at another instant each time.
#[test]
fn a_disk_that_is_pulled_out_takes_nothing_along_that_was_acknowledged() {
    let bed = Bed::new(1, &[]);
    bed.data.random("large", 4 << 20).many("many", 40, 3000);
    let store = bed.realm.store("store");
    let mut disk = bed.mount();
    let mut server = bed.realm.serve("store");
    bed.backup().success();
    let (mut kept, mut cut) = (Tree::read(bed.data.path()), 0);
    for round in 0..asked("VSYNC_TEST_ROUNDS", 5) {
        // Of another seed, so that none of it is there.
        let _ = Volume::at(bed.data.path(), 100 + round).random("large", 24 << 20);
        let tree = Tree::read(bed.data.path());
        let vsync = bed.realm.vsync("host").with(["--patience", "3"]).limit(Duration::from_secs(240));
        // Slow enough for the disk to go first, in all rounds but a few.
        let plug = Plug::of(&store);
        let running = vsync.spawn(["backup", "data", "--limit-upload", "8MiB"]);
        std::thread::sleep(Duration::from_millis(50 + round % 20 * 100));
        plug.pull();
        let done = running.wait();
        println!("round {round}: {:?} after {:?}", done.status(), done.elapsed());
        let exact = done.status() == Some(0);
        if !exact {
            refused(&done);
            cut += 1;
        }
        assert!(!server.log().contains("panicked"), "{}", server.log());
        // Whatever state it is in, it can be ended; and the disk comes back.
        server.kill();
        drop(disk);
        disk = bed.mount();
        server = bed.realm.serve("store");
        if exact {
            kept = tree.clone();
        }
        let there = scratch();
        bed.realm.vsync("host").run(["restore", "data", "--to-path", there.path().to_str().unwrap()]).success();
        let found = Tree::read(there.path());
        // Committed, and the answer was lost.
        assert!(kept.differences(&found).is_empty() || !exact && tree.differences(&found).is_empty(), "round {round}");
        bed.backup().success();
        kept = tree;
    }
    assert!(cut > 0, "every backup had ended before");
    bed.realm.vsync("store").run(["server", "scrub"]).success();
    server.stop().success();
}

/// F05: a store on a file system that is mounted read-only is not begun with, and is none the worse for the attempt.
#[test]
fn a_store_that_cannot_be_written_is_not_served() {
    let bed = Bed::new(2, &[]);
    bed.data.random("file", 300_000);
    let expected = Tree::read(bed.data.path());
    let disk = bed.mount();
    let mut server = bed.realm.serve("store");
    bed.backup().success();
    server.stop().success();
    let store = bed.realm.store("store");
    let remount = |how: &str| shell::run("mount", ["-o", &format!("remount,{how}"), store.to_str().unwrap()]);
    remount("ro");
    let said = *Server::try_start(bed.realm.vsync("store")).expect_err("it serves what it cannot write");
    refused(&said);
    assert!(said.stderr().contains(store.to_str().unwrap()) && said.stderr().contains("ead-only"), "{said}");
    remount("rw");
    let mut server = bed.realm.serve("store");
    bed.restores_to(&expected);
    bed.backup().success();
    server.stop().success();
    drop(disk);
}

/// F07: there is space, and no inode.
#[test]
fn without_inodes_nothing_is_lost_and_with_them_everything_goes_on() {
    let bed = Bed::new(3, &["-N", "400"]);
    let _disk = bed.mount();
    let mut server = bed.realm.serve("store");
    bed.data.random("file", 3 << 20);
    bed.backup().success();
    let kept = Tree::read(bed.data.path());
    // Another program takes them all.
    let others = bed.realm.store("store").join("lost+found");
    let taken = (0..).take_while(|number| File::create(others.join(number.to_string())).is_ok()).count();
    assert!((10..400).contains(&taken), "{taken} inodes were free");
    for version in 0..3 {
        bed.data.random("file", (2 << 20) + version);
        refused(&bed.backup());
        bed.restores_to(&kept);
        server.restart();
        bed.restores_to(&kept);
    }
    (0..taken).for_each(|number| fs::remove_file(others.join(number.to_string())).unwrap());
    bed.backup().success();
    bed.restores_to(&Tree::read(bed.data.path()));
    bed.realm.vsync("store").run(["server", "scrub"]).success();
    server.stop().success();
}

/// R09: copies that `cp` made while backups came in and garbage was collected.
#[test]
fn a_store_copied_while_it_worked_restores_exactly_or_says_why_not() {
    let toml = "[retention]\nkeep-last = 3\nmin-retention = \"1s\"";
    let mut site = Site::with(4, |realm| realm.client("other", &["data"]).extra(toml));
    site.data.many("many", 100, 3000);
    let (copies, mut trees) = (scratch(), Vec::new());
    let copies: Vec<PathBuf> =
        (0..asked("VSYNC_TEST_ROUNDS", 5)).map(|number| copies.path().join(number.to_string())).collect();
    for (version, copy) in (0_u64..).zip(&copies) {
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        let _ = Volume::at(site.data.path(), 100 + version).random("large", 6 << 20);
        trees.push(Tree::read(site.data.path()));
        let mut backup = site.host().spawn(["backup", "data"]);
        let begun = Instant::now();
        // It fails when files go while it looks; what it made then is a copy all the same.
        drop(shell::attempt(Command::new("cp").arg("-a").arg(site.store()).arg(copy)));
        assert!(backup.is_running() || begun.elapsed() < Duration::from_secs(100));
        let _ = backup.wait().success();
        site.realm.vsync("store").run(["server", "gc", "--at-once", "--empty-trash"]).success();
    }
    site.server.stop().success();
    let (mut exact, mut said) = (0, 0);
    for copy in &copies {
        fs::remove_dir_all(site.store()).unwrap();
        fs::rename(copy, site.store()).unwrap();
        let Ok(mut server) = Server::try_start(site.realm.vsync("store")) else {
            said += 1;
            continue;
        };
        // Somebody who has not seen more than the copy holds.
        let state = scratch();
        let other = site.realm.vsync("other").env("VSYNC_STATE_DIR", state.path());
        let listed = other.run(["snapshots", "data", "--json"]).success().json();
        for id in listed.as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap()) {
            let there = scratch();
            let to = there.path().to_str().unwrap();
            let done = other.run(["restore", &format!("data@{id}"), "--to-path", to]);
            if done.status() == Some(0) {
                let found = Tree::read(there.path());
                assert!(trees.iter().any(|tree| tree.differences(&found).is_empty()), "a mixture: {done}");
                exact += 1;
            } else {
                refused(&done);
                said += 1;
            }
        }
        server.stop().success();
    }
    println!("{exact} restored exactly, {said} refused");
    assert!(exact > 0);
}
