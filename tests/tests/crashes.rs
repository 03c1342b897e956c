//! Power cuts, restarts and cut cables in the middle of things: what was acknowledged is there, the rest is there
//! wholly or not at all, and nothing is sent twice that had arrived.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use vsync_tests::{Link, Place, Realm, Relay, Rng, Running, Server, Tree, Volume, Vsync, asked, assert_same};

/// How long anything may take to come true.
const PATIENCE: Duration = Duration::from_secs(120);

struct Bed {
    data: Volume,
    realm: Realm,
    server: Server,
    /// Restored into again and again: only what differs is fetched.
    target: tempfile::TempDir,
}

impl Bed {
    fn new(seed: u64) -> Self {
        let data = Volume::new(seed);
        let realm = Realm::new().server("annex2").directory("data", data.path()).client("production2", &["data"]);
        let realm = realm.build();
        let server = realm.serve("annex2");
        Self { data, realm, server, target: vsync_tests::scratch() }
    }

    /// About 150 MB, of which none was there before.
    fn fill(&self, version: u64) {
        self.fill_with(version, 100 << 20);
    }

    /// Half as much text as noise, and small files.
    fn fill_with(&self, version: u64, noise: u64) {
        let fresh = Volume::at(&self.data.path().join("large"), version);
        fresh.random("random", noise).text("text", noise / 2);
        Volume::at(&self.data.path().join("small"), version).many("files", 300, 3000);
    }

    fn client(&self) -> Vsync {
        self.realm.vsync("production2")
    }

    fn back_up(&self) -> Value {
        self.client().run(["backup", "data", "--json"]).success().summary()
    }

    fn packs(&self) -> u64 {
        let files = Place::Pack.files(&self.realm.store("annex2"));
        files.iter().filter_map(|file| file.metadata().ok()).map(|pack| pack.len()).sum()
    }

    fn snapshots(&self) -> Vec<Value> {
        let listed = self.client().run(["snapshots", "data", "--json"]).success().json();
        listed.as_array().expect("a list").clone()
    }

    /// Restores a snapshot over the one before.
    fn restored(&self, id: &Value) -> Tree {
        let what = format!("data@{}", id.as_str().expect("an id"));
        self.client().run(["restore", &what, "--to-path", path(self.target.path())]).success();
        Tree::read(self.target.path())
    }

    /// The client's view of the server goes through a relay from now on.
    fn relay(&self) -> Relay {
        let file = self.realm.machine("production2").join("vsync.toml");
        let toml = fs::read_to_string(&file).expect("vsync.toml");
        let line = toml.lines().find(|line| line.starts_with("address")).expect("an address");
        let relay = Relay::to(line.split('"').nth(1).expect("an address"));
        fs::write(&file, toml.replace(line, &format!("address = \"{}\"", relay.address()))).expect("vsync.toml");
        relay
    }

    /// Rebuilds the catalog; tells what is in it.
    fn rebuild(&mut self) -> Value {
        self.server.stop().success();
        let report = self.realm.vsync("annex2").run(["server", "rebuild", "--json"]).success().json();
        self.server.restart();
        report
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path")
}

fn number(summary: &Value, name: &str) -> u64 {
    summary[name].as_u64().unwrap_or_else(|| panic!("no number {name} in {summary}"))
}

#[track_caller]
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Agent,
    Server,
    Both,
}

/// Two times each of the two for one time both: 500 rounds are 200, 200 and 100 kills.
const VICTIMS: [Victim; 5] = [Victim::Agent, Victim::Server, Victim::Both, Victim::Agent, Victim::Server];

/// What is random in the volume while it is backed up under kills.
const NOISE: u64 = 32 << 20;

fn seeded() -> Rng {
    Rng::new(asked("VSYNC_TEST_SEED", 20_261_120))
}

/// C01, C02, C03.
#[test]
fn kills_at_random_points_of_a_backup_lose_nothing_that_was_acknowledged() {
    let mut rng = seeded();
    let mut bed = Bed::new(rng.next_u64());
    bed.fill_with(0, NOISE);
    // Id, and what the volume held then.
    let mut known: Vec<(Value, Tree)> = Vec::new();
    let mut usual = Duration::from_millis(800);
    for round in 1..=asked("VSYNC_TEST_ROUNDS", 25) {
        match round % 4 {
            1 => bed.fill_with(rng.next_u64(), NOISE),
            _ => drop(bed.data.patch("large/random", rng.below(NOISE - (3 << 20)), rng.clone().bytes(3 << 20))),
        }
        let tree = Tree::read(bed.data.path());
        let victim = VICTIMS[round % VICTIMS.len()];
        let after = usual.mul_f64(rng.below(1000) as f64 / 1000.0);
        println!("round {round}: {victim:?} after {after:?}");
        killed(&mut bed, victim, after, &tree, &mut known);

        let done = bed.back_up();
        usual = usual.max(Duration::from_secs_f64(done["total_duration"].as_f64().expect("a duration")));
        if round % 4 != 1 {
            usual = Duration::from_millis(300);
        }
        known.push((done["snapshot_id"].clone(), tree));
        assert_eq!(bed.snapshots().len(), known.len());
        if round % 3 == 0 {
            let (id, tree) = rng.pick(&known);
            assert_same(tree, &bed.restored(id));
        }
    }
    let before = bed.snapshots();
    let report = bed.rebuild();
    assert_eq!(number(&report, "snapshots"), known.len() as u64, "{report}");
    assert_eq!(bed.snapshots(), before, "the rebuilt catalog lists what the live one did");
    every_snapshot_is_exact(&bed, &known);
    bed.back_up();
}

/// A backup during which somebody is killed.
fn killed(bed: &mut Bed, victim: Victim, after: Duration, tree: &Tree, known: &mut Vec<(Value, Tree)>) {
    let backup = bed.client().spawn(["backup", "data", "--json"]);
    std::thread::sleep(after);
    if victim != Victim::Agent {
        bed.server.kill();
    }
    let acknowledged = match victim {
        Victim::Server => {
            bed.server.restart();
            // It goes on by itself, unless it had not even begun to: whom a first greeting does not reach is told so.
            let ended = backup.wait_within(PATIENCE);
            match ended.status() {
                Some(10) => ended.stderr_contains("no answer from annex2").status() == Some(0),
                _ => ended.success().status() == Some(0),
            }
        }
        Victim::Agent | Victim::Both => backup.kill().status() == Some(0),
    };
    if victim == Victim::Both {
        bed.server.restart();
    }
    let listed = bed.snapshots();
    let new = listed.len() - known.len();
    assert!(new <= 1, "{new} snapshots of one backup: {listed:?}");
    assert!(!acknowledged || new == 1, "an acknowledged snapshot is gone");
    if new == 1 {
        let id = listed[0]["id"].clone();
        assert_same(tree, &bed.restored(&id));
        known.push((id, tree.clone()));
    }
}

fn every_snapshot_is_exact(bed: &Bed, known: &[(Value, Tree)]) {
    for (id, tree) in known {
        assert_same(tree, &bed.restored(id));
    }
}

#[test]
fn after_a_killed_first_backup_only_what_had_not_arrived_is_sent() {
    let mut bed = Bed::new(7);
    bed.fill(7);
    let mut backup = bed.client().spawn(["backup", "data", "--json"]);
    until("packs on the server's disk", || bed.packs() > 40 << 20);
    assert!(backup.is_running(), "too late: the backup has ended");
    backup.kill().died();
    // What had arrived is made durable though nobody asks for it any more.
    let settled = |server: &mut Server| server.stop().success();
    settled(&mut bed.server);
    let count = |bed: &Bed| bed.realm.vsync("annex2").run(["server", "rebuild", "--json"]).success().json();
    let before = count(&bed);
    let had = bed.packs();
    bed.server.restart();
    assert_eq!(bed.snapshots().len(), 0, "nothing was committed");

    let rerun = bed.back_up();
    bed.server.stop().success();
    let after = count(&bed);
    assert!(number(&before, "blobs") > 200, "{before}");
    assert_eq!(number(&rerun, "data_blobs"), number(&after, "blobs") - number(&before, "blobs"), "{before} {rerun}");
    assert!(number(&rerun, "data_added_packed") <= bed.packs() - had, "{rerun}");
    bed.server.restart();
    assert_same(&Tree::read(bed.data.path()), &bed.restored(&rerun["snapshot_id"]));
}

#[test]
fn a_backup_goes_on_by_itself_when_the_server_restarts() {
    let mut bed = Bed::new(8);
    bed.fill(8);
    let mut backup = bed.client().spawn(["backup", "data", "--json"]);
    until("packs on the server's disk", || bed.packs() > 20 << 20);
    assert!(backup.is_running(), "too late: the backup has ended");
    bed.server.restart();
    let summary = backup.wait_within(PATIENCE).success().summary();
    assert_same(&Tree::read(bed.data.path()), &bed.restored(&summary["snapshot_id"]));
}

#[test]
fn a_backup_survives_a_pulled_cable_and_a_new_address() {
    let bed = Bed::new(9);
    bed.fill(9);
    let relay = bed.relay();
    let mut backup = bed.client().spawn(["backup", "data", "--json"]);
    let running = |backup: &mut Running| assert!(backup.is_running(), "too late: the backup has ended");
    until("upload", || relay.bytes().0 > 15 << 20);
    running(&mut backup);
    relay.rebind();
    until("upload from a new port", || relay.bytes().0 > 40 << 20);
    running(&mut backup);
    relay.cut();
    std::thread::sleep(Duration::from_secs(5));
    relay.rebind();
    relay.set(Link::default());
    let summary = backup.wait_within(PATIENCE).success().summary();
    drop(relay);
    let direct = bed.realm.admin().join("vsync.toml");
    fs::copy(direct, bed.realm.machine("production2").join("vsync.toml")).expect("vsync.toml");
    assert_same(&Tree::read(bed.data.path()), &bed.restored(&summary["snapshot_id"]));
}

#[test]
fn a_restore_goes_on_by_itself_when_the_server_restarts_and_resumes_when_it_was_killed() {
    let mut bed = Bed::new(10);
    bed.fill(10);
    bed.back_up();
    let relay = bed.relay();
    let target = bed.target.path().to_owned();
    let restore = |bed: &Bed| bed.client().spawn(["restore", "data", "--to-path", path(&target), "--json"]);
    let mut running = restore(&bed);
    until("download", || relay.bytes().1 > 15 << 20);
    assert!(running.is_running(), "too late: the restore has ended");
    bed.server.restart();
    let whole = running.wait_within(PATIENCE).success().summary();
    let source = Tree::read(bed.data.path());
    assert_same(&source, &Tree::read(&target));

    fs::remove_dir_all(target.join("large")).expect("half of it");
    let before = relay.bytes().1;
    let mut running = restore(&bed);
    until("download", || relay.bytes().1 > before + (90 << 20));
    assert!(running.is_running(), "too late: the restore has ended");
    running.kill().died();
    let resumed = restore(&bed).wait().success().summary();
    assert_same(&source, &Tree::read(&target));
    // Of the 90 MB, all but what may be under way at once.
    assert!(number(&resumed, "bytes_skipped") > 16 << 20, "{whole} {resumed}");
    assert_eq!(strangers(&target), Vec::<PathBuf>::new());
}

/// What a killed restore may have left behind.
fn strangers(target: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(target).expect("the target").map(|entry| entry.expect("an entry").path());
    entries.filter(|path| !["large", "small"].iter().any(|name| path.ends_with(name))).collect()
}

/// C08: a file has its name when it is complete, and the same command finishes what was begun.
#[test]
fn kills_at_random_points_of_a_restore_leave_no_wrong_file() {
    let mut rng = seeded();
    let bed = Bed::new(rng.next_u64());
    let mut versions = Vec::new();
    for version in 0..2 {
        bed.fill_with(version, NOISE);
        bed.data.many(format!("only-{version}"), 200, 4000);
        versions.push((bed.back_up()["snapshot_id"].clone(), Tree::read(bed.data.path())));
        bed.data.remove(format!("only-{version}"));
    }
    let target = bed.target.path().to_owned();
    let restored = |id: &Value| {
        let what = format!("data@{}", id.as_str().expect("an id"));
        bed.client().spawn(["restore", &what, "--delete", "--to-path", path(&target)])
    };
    let mut usual = Duration::from_millis(600);
    let mut killed = 0;
    for round in 0..asked("VSYNC_TEST_ROUNDS", 10) {
        // In every other round into an empty directory, in which no file is half of another.
        if round % 2 == 0 {
            fs::remove_dir_all(&target).and_then(|()| fs::create_dir(&target)).expect("an empty directory");
        }
        let (id, expected) = rng.pick(&versions);
        let after = usual.mul_f64(rng.below(1000) as f64 / 1000.0);
        let running = restored(id);
        std::thread::sleep(after);
        killed += u32::from(running.kill().status().is_none());
        if round % 2 == 0 {
            no_wrong_file(expected, &Tree::read(&target), &format!("round {round}, killed after {after:?}"));
        }
        let again = restored(id).wait().success();
        usual = again.elapsed().min(Duration::from_secs(2)).max(Duration::from_millis(50));
        assert_same(expected, &Tree::read(&target));
    }
    println!("{killed} killed");
    assert!(killed > 0, "every restore had ended before it was killed");
}

/// What an interrupted restore into an empty directory left: complete files, and such as say that they are not.
fn no_wrong_file(expected: &Tree, found: &Tree, when: &str) {
    let unfinished = |path: &OsStr| path.to_string_lossy().contains(".vsync-partial-");
    for path in found.paths().filter(|path| !unfinished(path)) {
        assert_eq!(found.entry(path).kind, expected.entry(path).kind, "{when}: {}", path.display());
    }
}
