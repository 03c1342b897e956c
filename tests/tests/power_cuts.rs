//! D01, D02, D03, D05, D06: the power goes at every flush of the disk, and between; whatever the disk had not been told to
//! flush is lost, torn, or comes in another order. Every promise that was made before holds after it.
//!
//! All is real: processes, ext4, SQLite, the kernel's own idea of when to flush. `VSYNC_CUTS` is how many instants
//! are tried (the default suits a test run), or `all`; `VSYNC_TEST_SEED` chooses what is lost.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use vsync_protocol::blob::Header;
use vsync_protocol::id::{Cid, RealmId};
use vsync_protocol::manifest::Manifest;
use vsync_protocol::wire::Listing;
use vsync_server::Reserve;
use vsync_server::archive::Archive;
use vsync_server::catalog::State;
use vsync_server::upkeep::throttle::Stop;
use vsync_tests::power::{Event, Loss, Mounted, Recorded, Replay};
use vsync_tests::site::Summary;
use vsync_tests::{Realm, Rng, Server, Volume, scratch, shell};

const NO_RESERVE: Reserve = Reserve { bytes: 0, percent: 0 };

/// When something was asked for, and when it was said to be done: counts of events.
#[derive(Clone, Copy, Debug)]
struct Span {
    asked: usize,
    done: usize,
}

/// What was promised.
#[derive(Debug, Default)]
struct Promises {
    committed: BTreeMap<String, Span>,
    forgotten: BTreeMap<String, Span>,
}

/// A store's life on a disk that remembers.
struct Life {
    realm: Realm,
    data: Volume,
    disk: Recorded,
    server: Option<Server>,
    promises: Promises,
}

impl Life {
    fn backup(&mut self) -> String {
        let asked = self.disk.now();
        let done = self.realm.vsync("host").run(["backup", "data", "--json"]).success();
        let id = Summary::of(&done).text("snapshot_id").to_owned();
        self.promises.committed.insert(id.clone(), Span { asked, done: self.disk.now() });
        id
    }

    fn forget(&mut self, id: &str) {
        let asked = self.disk.now();
        self.realm.vsync("store").run(["forget", id]).success();
        self.promises.forgotten.insert(id.to_owned(), Span { asked, done: self.disk.now() });
    }

    fn collect(&self) {
        for _ in 0..3 {
            self.realm.vsync("store").run(["server", "gc", "--at-once", "--empty-trash"]).success();
        }
    }

    fn server(&mut self) -> &mut Server {
        self.server.as_mut().unwrap()
    }
}

/// Copies an image, holes as holes.
fn copy(from: &Path, to: &Path) {
    shell::run("cp", ["--sparse=always".as_ref(), from.as_os_str(), to.as_os_str()]);
}

/// Everything that a store does, and what of it was acknowledged when.
fn live(image: &Path, seed: u64) -> (Vec<Event>, Promises) {
    // More than the server keeps in reserve; nearly all of it is a hole.
    shell::run("truncate", ["-s", "4G", image.to_str().unwrap()]);
    let eager = "lazy_itable_init=0,lazy_journal_init=0";
    shell::run("mkfs.ext4", ["-qF", "-m0", "-N4096", "-Jsize=4", "-E", eager, image.to_str().unwrap()]);
    let pristine = image.with_extension("pristine");
    copy(image, &pristine);
    let data = Volume::new(seed);
    let toml = "[retention]\nkeep-last = 100\nmin-retention = \"1s\"";
    let realm = Realm::new().server("store").client("host", &["data"]).directory("data", data.path()).extra(toml);
    let realm = realm.build();
    let store = realm.store("store");
    fs::create_dir_all(&store).unwrap();
    let disk = Recorded::mount(image, &store);
    let server = Some(realm.serve("store"));
    let mut life = Life { realm, data, disk, server, promises: Promises::default() };
    life.data.many("many", 60, 3000).random("one", 700_000).text("two", 400_000);
    let first = life.backup();
    life.data.random("one", 800_000).write("small", "words");
    let second = life.backup();
    life.data.remove("two").random("three", 300_000);
    life.backup();
    std::thread::sleep(std::time::Duration::from_secs(2));
    life.forget(&first);
    life.collect();
    // What was collected comes again.
    life.data.text("two", 400_000);
    life.backup();
    life.server().kill();
    life.server().restart();
    life.forget(&second);
    life.data.random("four", 200_000);
    life.backup();
    life.collect();
    life.realm.vsync("store").run(["server", "scrub"]).success();
    life.server().stop().success();
    life.realm.vsync("store").run(["server", "rebuild"]).success();
    life.server().restart();
    life.data.write("last", "words");
    life.backup();
    life.server().stop().success();
    let Life { realm, disk, promises, .. } = life;
    let events = disk.finish();
    drop(realm);
    fs::rename(pristine, image).unwrap();
    (events, promises)
}

/// The store as it is after a cut: everything that must hold.
fn check(at: &Path, cut: usize, promises: &Promises, what: &str) {
    let before = |spans: &BTreeMap<String, Span>, when: fn(&Span) -> usize| -> BTreeSet<String> {
        spans.iter().filter(|(_, span)| when(span) <= cut).map(|(id, _)| id.clone()).collect()
    };
    let acknowledged = before(&promises.committed, |span| span.done);
    let Some(realm) = realm_of(at) else {
        assert!(acknowledged.is_empty(), "{what}: there is no store");
        return;
    };
    let archive = Archive::open(at, realm, NO_RESERVE).unwrap_or_else(|error| panic!("{what}: {error:?}"));
    let listing = Listing { limit: u32::MAX, ..Listing::default() };
    let records = archive.catalog().snapshots(&listing, usize::MAX).unwrap();
    let standing: BTreeSet<String> = records.iter().map(|record| record.id.to_string()).collect();
    // I1: what was acknowledged is there, unless it was to be forgotten. I2: nothing else is, but what was under way.
    let maybe_gone = before(&promises.forgotten, |span| span.asked);
    for id in acknowledged.difference(&maybe_gone) {
        assert!(standing.contains(id), "{what}: {id} was acknowledged and is gone");
    }
    for id in before(&promises.forgotten, |span| span.done) {
        assert!(!standing.contains(&id), "{what}: {id} was forgotten and is there");
    }
    let begun = before(&promises.committed, |span| span.asked);
    assert!(standing.is_subset(&begun), "{what}: snapshots from nowhere");
    let mut read = HashMap::new();
    for record in &records {
        let root = Manifest::parse(&record.manifest).unwrap().body.root;
        read_tree(&archive, root, &mut read, what);
    }
    // I3: what is said to be here is here, whoever needs it.
    let mut after = None;
    loop {
        let rows = archive.catalog().survey(after, 10_000).unwrap();
        let Some(last) = rows.last() else { break };
        after = Some(last.cid);
        assert!(rows.iter().all(|row| row.state != State::Corrupt), "{what}: damage");
        for row in rows.iter().filter(|row| row.state == State::Live && !read.contains_key(&row.cid)) {
            drop(read_blob(&archive, row.cid, what));
        }
    }
    archive.close();
}

/// The realm that the store at `at` says it is of; none when it is not yet one.
fn realm_of(at: &Path) -> Option<RealmId> {
    let mark = fs::read_to_string(at.join("VERSION")).ok()?;
    mark.lines().find_map(|line| line.strip_prefix("realm "))?.parse().ok()
}

fn read_blob(archive: &Archive, cid: Cid, what: &str) -> Vec<u8> {
    let location = archive.catalog().locate(&[cid]).unwrap()[0].unwrap_or_else(|| panic!("{what}: {cid} is absent"));
    archive.read(cid, &location).unwrap().unwrap_or_else(|| panic!("{what}: {cid} is damaged")).to_vec()
}

fn read_tree(archive: &Archive, node: Cid, read: &mut HashMap<Cid, ()>, what: &str) {
    if read.insert(node, ()).is_none() {
        let blob = read_blob(archive, node, what);
        Header::parse(&blob).unwrap().refs().for_each(|child| read_tree(archive, child, read, what));
    }
}

/// The instants to try: every flush, and as many others; or a choice of `count`.
fn instants(events: &[Event], rng: &mut Rng) -> Vec<usize> {
    let flushes = events.iter().enumerate().filter(|(_, event)| matches!(event, Event::Flush)).map(|(at, _)| at);
    // Before the disk has taken the flush, and after.
    let mut all: BTreeSet<usize> = flushes.flat_map(|at| [at, at + 1]).collect();
    let wanted = std::env::var("VSYNC_CUTS").unwrap_or_else(|_| "120".to_owned());
    let between = if wanted == "all" { all.len() } else { all.len() / 4 };
    for _ in 0..between {
        all.insert(usize::try_from(rng.below(events.len() as u64 + 1)).unwrap());
    }
    let mut chosen: Vec<usize> = all.into_iter().collect();
    if let Ok(count) = wanted.parse::<usize>() {
        while chosen.len() > count {
            chosen.remove(usize::try_from(rng.below(chosen.len() as u64)).unwrap());
        }
    }
    chosen
}

struct Bench {
    /// In memory: each cut is a file system of its own.
    room: tempfile::TempDir,
    at: tempfile::TempDir,
    counts: BTreeMap<&'static str, usize>,
}

impl Bench {
    fn image(&self) -> PathBuf {
        self.room.path().join("cut")
    }

    fn check(&mut self, kind: &'static str, cut: usize, promises: &Promises, what: &str) {
        let mounted = Mounted::new(&self.image(), self.at.path());
        check(self.at.path(), cut, promises, what);
        drop(mounted);
        *self.counts.entry(kind).or_default() += 1;
    }

    /// D06: the power goes again while the store comes back, as deep as that.
    fn check_recovery(&mut self, depth: usize, cut: usize, promises: &Promises, rng: &mut Rng, what: &str) {
        let durable = self.room.path().join(format!("recovered-{depth}"));
        copy(&self.image(), &durable);
        let pristine = self.room.path().join(format!("before-{depth}"));
        copy(&durable, &pristine);
        let disk = Recorded::mount(&durable, self.at.path());
        check(self.at.path(), cut, promises, what);
        let events = disk.finish();
        let mut replay = Replay::new(pristine, &events);
        let mut again: Vec<usize> =
            (0..3).map(|_| usize::try_from(rng.below(events.len() as u64 + 1)).unwrap()).collect();
        again.sort_unstable();
        for at in again {
            replay.go_to(at);
            replay.cut(Loss::Some(rng), &self.image());
            let what = format!("{what}, and again after {at} of {} events", events.len());
            self.check("cut again while coming back", cut, promises, &what);
            if depth < 3 && rng.below(3) == 0 {
                replay.cut(Loss::Some(rng), &self.image());
                self.check_recovery(depth + 1, cut, promises, rng, &what);
            }
        }
    }
}

#[test]
fn whenever_the_power_goes_everything_that_was_acknowledged_is_there() {
    let seed = vsync_tests::asked("VSYNC_TEST_SEED", 20_261_120);
    let mut rng = Rng::new(seed);
    let room = tempfile::Builder::new().prefix("vsync-test-").tempdir_in("/dev/shm").unwrap();
    let image = room.path().join("disk");
    let (events, promises) = live(&image, seed);
    let flushes = events.iter().filter(|event| matches!(event, Event::Flush)).count();
    println!("{} writes and {flushes} flushes, {promises:#?}", events.len() - flushes);
    assert!(flushes > 100 && promises.committed.len() == 6, "{flushes} flushes");
    let mut bench = Bench { room, at: scratch(), counts: BTreeMap::new() };
    let mut replay = Replay::new(image, &events);
    for cut in instants(&events, &mut rng) {
        replay.go_to(cut);
        let what = |loss: &str| format!("seed {seed}, cut after {cut} of {} events, {loss}", events.len());
        replay.cut(Loss::All, &bench.image());
        bench.check("nothing unflushed kept", cut, &promises, &what("nothing unflushed kept"));
        if replay.pending() == 0 {
            continue;
        }
        replay.cut(Loss::Nothing, &bench.image());
        bench.check("everything kept", cut, &promises, &what("everything kept"));
        replay.cut(Loss::Some(&mut rng), &bench.image());
        bench.check("some lost, torn, reordered", cut, &promises, &what("some lost"));
        if rng.below(10) == 0 {
            replay.cut(Loss::Some(&mut rng), &bench.image());
            bench.check_recovery(1, cut, &promises, &mut rng, &what("some lost"));
        }
    }
    println!("{:#?}", bench.counts);
    assert!(bench.counts.values().sum::<usize>() > 100 && bench.counts.len() == 4, "{:?}", bench.counts);
}

/// What was found after a disk had lied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Found {
    /// No file system, or no store in it.
    Nothing,
    /// The store is refused, or cannot be looked through.
    Refused,
    /// Something is missing, and the scrub names whatever needs it.
    Named,
    /// All that is listed is whole.
    Whole,
}

/// Nobody can keep what such a disk loses; nobody is to be told that it is there either.
fn judge(at: &Path, what: &str) -> Found {
    let Some(realm) = realm_of(at) else { return Found::Nothing };
    let Ok(archive) = Archive::open(at, realm, NO_RESERVE) else { return Found::Refused };
    let Ok(report) = archive.scrub(None, &Stop::default()) else { return Found::Refused };
    let listing = Listing { limit: u32::MAX, ..Listing::default() };
    let Ok(records) = archive.catalog().snapshots(&listing, usize::MAX) else { return Found::Refused };
    let named: BTreeSet<String> =
        report.affected.iter().map(|one| one.id).chain(report.bad_manifests).map(|id| id.to_string()).collect();
    let mut all = true;
    for record in &records {
        let manifest = Manifest::parse(&record.manifest);
        let whole = manifest.is_ok_and(|manifest| is_whole(&archive, manifest.body.root, &mut HashMap::new()));
        let id = record.id.to_string();
        assert!(whole || named.contains(&id), "{what}: {id} is not whole, and the scrub does not say so: {named:?}");
        all &= whole;
    }
    archive.close();
    if all { Found::Whole } else { Found::Named }
}

fn is_whole(archive: &Archive, node: Cid, read: &mut HashMap<Cid, bool>) -> bool {
    if let Some(&whole) = read.get(&node) {
        return whole;
    }
    let location = archive.catalog().locate(&[node]).ok().and_then(|found| found[0]);
    let blob = location.and_then(|location| archive.read(node, &location).ok().flatten());
    let header = blob.as_deref().and_then(|blob| Header::parse(blob).ok());
    let whole = header.is_some_and(|header| header.refs().all(|child| is_whole(archive, child, read)));
    read.insert(node, whole);
    whole
}

/// D05: a disk that takes flushes for done without doing them loses what it likes. A scrub names what that was.
#[test]
fn what_a_disk_loses_that_ignores_flushes_is_named() {
    let seed = vsync_tests::asked("VSYNC_TEST_SEED", 20_261_128);
    let mut rng = Rng::new(seed);
    let room = tempfile::Builder::new().prefix("vsync-test-").tempdir_in("/dev/shm").unwrap();
    let image = room.path().join("disk");
    let (events, promises) = live(&image, seed);
    let tries = match std::env::var("VSYNC_CUTS").as_deref() {
        Ok("all") => 1000,
        Ok(count) => count.parse().unwrap(),
        Err(_) => 40,
    };
    let first = promises.committed.values().map(|span| span.done).min().unwrap();
    let mut instants: Vec<usize> =
        (0..tries).map(|_| first + usize::try_from(rng.below((events.len() - first) as u64)).unwrap()).collect();
    instants.sort_unstable();
    let (mut replay, mut counts) = (Replay::new(image, &events), BTreeMap::<Found, usize>::new());
    let (lied, at) = (room.path().join("lied"), scratch());
    for since in instants {
        replay.go_to(since);
        let cut = (since + 1 + usize::try_from(rng.below(300)).unwrap()).min(events.len());
        replay.lie(cut, &mut rng, &lied);
        // As a machine does when it starts; what cannot be mended has no file system any more.
        let mended = Command::new("e2fsck").args(["-fy"]).arg(&lied).output().unwrap();
        let found = if mended.status.code().is_some_and(|code| code < 4) {
            let _mounted = Mounted::new(&lied, at.path());
            judge(at.path(), &format!("seed {seed}, flushes ignored from {since} to {cut} of {}", events.len()))
        } else {
            Found::Nothing
        };
        *counts.entry(found).or_default() += 1;
    }
    println!("{counts:#?}");
    assert!(counts.contains_key(&Found::Named) && counts.contains_key(&Found::Whole), "{counts:?}");
}
