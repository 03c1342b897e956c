//! Whatever happens to a store: no wrong file gets its name, the damage is named, the rest comes back, and the next
//! backup or a rebuild heals.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::ops::Range;

use vsync_tests::site::Summary;
use vsync_tests::{Damage, Output, Place, Server, Site, Tree, Volume};

/// How the table of a pack names a chunk; all else are nodes of trees.
const CHUNK: u8 = 1;

/// Bytes before each blob of a pack.
const RECORD_HEAD: usize = 40;

/// Content in several packs, so that damage leaves something; compressible and not.
fn site() -> Site {
    let site = Site::new(1);
    site.data.many("many", 100, 4000).random("one", 6 << 20).write("few", "a few words");
    site.backup();
    site.data.random("two", 5 << 20);
    site.backup();
    site
}

/// Starts the server, which may refuse; then it says what to do.
fn start(site: &mut Site) -> Result<(), Output> {
    let listen = site.server.address().replace("[::]", "127.0.0.1");
    let mut running = site.realm.vsync("store").spawn(["server", "run", "--listen", &listen]);
    loop {
        if running.stderr_so_far().contains("listening on ") {
            drop(running);
            site.server = Server::start(site.realm.vsync("store"));
            return Ok(());
        }
        if !running.is_running() {
            return Err(running.wait());
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Restores, and checks that what is there is right and the rest is named. Returns whether all is there.
fn restore_tells_the_truth(site: &Site, expected: &Tree, what: &str) -> bool {
    let there = Volume::new(0);
    let restore = site.host().run(["restore", "data", "--to-path", there.path().to_str().unwrap()]);
    assert!(!restore.stderr().contains("panicked"), "{what}: {restore}");
    let found = Tree::read(there.path());
    match restore.status() {
        Some(0) => {
            let differences = expected.differences(&found);
            assert!(differences.is_empty(), "{what}: said to be exact: {differences:#?}");
            true
        }
        Some(13) => {
            assert!(restore.stderr().contains("damaged") || restore.stderr().contains("missing"), "{what}: {restore}");
            let files = found.paths().filter(|path| !path.is_empty());
            for path in files.filter(|path| there.path().join(path).is_file()) {
                assert_eq!(found.entry(path).kind, expected.entry(path).kind, "{what}: wrong content of {path:?}");
            }
            for path in expected.paths().filter(|path| !there.path().join(path).exists()) {
                let named = restore.stderr().contains(path.to_str().unwrap());
                // More than twenty are counted; without the tree nobody knows the names.
                let summed = restore.stderr().contains(" more") || found.paths().count() == 1;
                assert!(named || summed, "{what}: {path:?} is missing, unsaid: {restore}");
            }
            false
        }
        code => panic!("{what}: exit status {code:?} of {restore}"),
    }
}

#[test]
fn damage_is_found_named_and_healed() {
    let mut found = 0;
    let mut site = site();
    let expected = Tree::read(site.data.path());
    site.server.stop().success();
    let pristine = Volume::new(0);
    vsync_tests::shell::run("cp", ["-a", &format!("{}/.", site.store().display()), pristine.path().to_str().unwrap()]);
    let state = site.realm.machine("host").join("state");
    let known = Volume::new(0);
    vsync_tests::shell::run("cp", ["-a", &format!("{}/.", state.display()), known.path().to_str().unwrap()]);
    for place in Place::ALL {
        for damage in Damage::ALL {
            for (from, to) in [(pristine.path(), site.store()), (known.path(), state.clone())] {
                fs::remove_dir_all(&to).unwrap();
                vsync_tests::shell::run("cp", ["-a", from.to_str().unwrap(), to.to_str().unwrap()]);
            }
            let file = place.damage(&site.store(), damage, 3 + damage as u64);
            let what = format!("{damage:?} of {}", file.display());
            match start(&mut site) {
                Ok(()) => {
                    let whole = restore_tells_the_truth(&site, &expected, &what);
                    found += u32::from(!whole);
                    assert!(whole || place != Place::Manifest, "{what}: the catalog has a copy");
                    let healed = site.host().run(["backup", "data"]);
                    assert!(!healed.stderr().contains("panicked"), "{what}: {healed}");
                    let whole = restore_tells_the_truth(&site, &expected, &what);
                    // A damaged catalog is made anew, not mended.
                    assert!(healed.status() == Some(0) && whole || place == Place::Catalog, "{what}: {healed}");
                    site.server.stop().success();
                }
                Err(refused) => {
                    found += 1;
                    assert!(matches!(place, Place::Catalog | Place::Log), "{what}: {refused}");
                    assert!(refused.stderr().contains("damaged"), "{what}: {refused}");
                    let helped = refused.stderr().contains("vsync server rebuild");
                    assert!(helped || place == Place::Log, "{what}: {refused}");
                }
            }
            let rebuilt = site.realm.vsync("store").run(["server", "rebuild", "--rehash"]);
            assert!(!rebuilt.stderr().contains("panicked"), "{what}: {rebuilt}");
            if place == Place::Log && rebuilt.status() == Some(1) {
                // Nothing else says what was committed and forgotten, and in which order.
                assert!(rebuilt.stderr().contains("chain.log is damaged at byte"), "{what}: {rebuilt}");
                continue;
            }
            assert!(matches!(rebuilt.status(), Some(0 | 13)), "{what}: {rebuilt}");
            site.server = site.realm.serve("store");
            let after = site.host().run(["backup", "data"]);
            if place == Place::Log && after.status() == Some(14) {
                // A log that was cut off has lost snapshots: who has seen them says so.
                let _ = after.stderr_contains("rolled back or rewritten");
                site.server.stop().success();
                continue;
            }
            let _ = after.success();
            assert!(restore_tells_the_truth(&site, &expected, &what), "{what}: not right after the rebuild");
            site.server.stop().success();
        }
    }
    assert!(found >= 5, "only {found} damages showed");
    site.server = site.realm.serve("store");
}

#[test]
fn a_rebuilt_catalog_equals_the_lost_one() {
    let mut site = site();
    let listed = |site: &Site| site.host().run(["snapshots", "--json"]).success().stdout().to_owned();
    let before = listed(&site);
    site.server.stop().success();
    for name in ["catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm"] {
        let _ = fs::remove_file(site.store().join(name));
    }
    site.realm.vsync("store").run(["server", "rebuild"]).success().stdout_contains("2 snapshots");
    site.server = site.realm.serve("store");
    assert_eq!(before, listed(&site));
    let there = vsync_tests::scratch();
    site.restore(&["data@latest~1"], there.path());
    // It knows what it has.
    let summary = site.backup();
    assert_eq!(summary.number("data_blobs"), 0, "{summary:?}");
}

/// A15: packs and manifests of another realm that lie among those of this one are no snapshots of it, whether the log says
/// what was committed or a new one is made from the manifests that are there.
#[test]
fn what_another_realm_made_is_not_taken_in() {
    let listed = |site: &Site| {
        let listed: serde_json::Value =
            serde_json::from_str(site.host().run(["snapshots", "--json"]).success().stdout()).unwrap();
        // A new log has the times that the manifests give, and not those of the server's clock.
        listed.as_array().unwrap().iter().map(|snapshot| snapshot["id"].clone()).collect::<Vec<_>>()
    };
    for lost in [&["catalog.sqlite"][..], &["catalog.sqlite", "log/chain.log"]] {
        let (mut site, other) = (Site::new(9), Site::new(10));
        site.data.random("ours", 100_000);
        site.backup();
        other.data.random("theirs", 100_000);
        other.backup();
        let before = listed(&site);
        site.server.stop().success();
        for room in ["packs", "manifests"] {
            let [from, to] = [other.store().join(format!("{room}/.")), site.store().join(room)];
            vsync_tests::shell::run("cp", ["-a", from.to_str().unwrap(), to.to_str().unwrap()]);
        }
        for name in lost.iter().flat_map(|name| [name.to_string(), format!("{name}-wal"), format!("{name}-shm")]) {
            let _ = fs::remove_file(site.store().join(name));
        }
        let new_log = (lost.len() > 1).then_some("--new-log");
        let _ = site.realm.vsync("store").run(["server", "rebuild"].into_iter().chain(new_log)).success();
        if new_log.is_some() {
            // To machines that know the old log it is another.
            fs::remove_dir_all(site.realm.machine("host").join("state")).unwrap();
        }
        site.server = site.realm.serve("store");
        assert_eq!(listed(&site), before, "without {lost:?}");
        let there = vsync_tests::scratch();
        site.restore(&["data"], there.path());
        vsync_tests::assert_same(&Tree::read(site.data.path()), &Tree::read(there.path()));
    }
}

#[test]
fn an_older_file_with_a_damaged_update_is_listed() {
    let mut site = Site::new(5);
    site.data.random("large", 8 << 20).write("small", "old");
    site.backup();
    let there = vsync_tests::scratch();
    site.restore(&["data"], there.path());
    site.data.patch("large", 4 << 20, vec![1; 100_000]).write("small", "new");
    site.backup();
    site.server.stop().success();
    let packs = Place::Pack.files(&site.store());
    let newest = packs.iter().max_by_key(|pack| fs::metadata(pack).unwrap().modified().unwrap()).unwrap();
    let mut bytes = fs::read(newest).unwrap();
    damage_chunks(&mut bytes);
    fs::write(newest, bytes).unwrap();
    site.server.restart();
    let restore = site.try_restore(&["data"], there.path()).code(13);
    let damaged = Summary::of(&restore).0["damaged"].clone();
    assert_eq!(damaged.as_array().map(Vec::len), Some(2), "{restore}");
}

/// Flips a bit in every chunk of a pack. Any one chunk might not be needed: cut anew, it may hold what the old file has
/// at the same place.
fn damage_chunks(pack: &mut [u8]) {
    for (blob, _) in records(pack, |kind| kind == CHUNK) {
        pack[(blob.start + blob.end) / 2] ^= 1;
    }
}

/// Where the blobs of some kinds lie in a pack, and their heads, by the pack's own table (docs/format.md).
fn records(pack: &[u8], wanted: impl Fn(u8) -> bool) -> Vec<(Range<usize>, Range<usize>)> {
    let end = pack.len() - 48;
    let table = u64::from_le_bytes(pack[end..end + 8].try_into().expect("8 bytes"));
    let rows = &pack[end - usize::try_from(table).expect("a small table")..end];
    let found = rows.chunks_exact(48).filter(|row| wanted(row[44])).map(|row| {
        let offset = u64::from_le_bytes(row[32..40].try_into().expect("8 bytes"));
        let start = usize::try_from(offset).expect("an offset");
        let len = u32::from_le_bytes(row[40..44].try_into().expect("4 bytes")) as usize;
        (start..start + len, start - RECORD_HEAD..start)
    });
    found.collect()
}

/// Whatever a reader meets, in a blob or beside it, the next backup brings again.
#[test]
fn what_a_reader_finds_damaged_is_brought_again() {
    type Part = fn((Range<usize>, Range<usize>)) -> Range<usize>;
    let parts: [(&str, Part); 2] = [("blobs", |(blob, _)| blob), ("heads", |(_, head)| head)];
    for (part, place) in parts {
        for kinds in ["chunks", "nodes"] {
            let mut site = Site::new(8);
            site.data.many("many", 40, 4000).random("one", 1 << 20);
            site.backup();
            let expected = Tree::read(site.data.path());
            site.server.stop().success();
            for pack in Place::Pack.files(&site.store()) {
                let mut bytes = fs::read(&pack).unwrap();
                for record in records(&bytes, |kind| (kind == CHUNK) == (kinds == "chunks")) {
                    let place = place(record);
                    bytes[(place.start + place.end) / 2] ^= 1;
                }
                fs::write(&pack, bytes).unwrap();
            }
            site.server = site.realm.serve("store");
            let what = format!("{part} of {kinds}");
            assert!(!restore_tells_the_truth(&site, &expected, &what), "{what}: nothing was damaged");
            site.backup();
            assert!(restore_tells_the_truth(&site, &expected, &what), "{what}: not healed");
        }
    }
}

/// A stream cannot be read again when the server turns out to lack what it had: the next one heals it.
#[test]
fn a_stream_whose_chunks_are_lost_is_sent_whole_the_next_time() {
    let mut site = Site::new(6);
    let content = Volume::new(6);
    content.random("dump", 3 << 20);
    let dump = fs::read(content.join("dump")).unwrap();
    let backup = |site: &Site| site.host().stdin(dump.clone()).run(["backup", "--stdin", "data", "--json"]);
    let _ = backup(&site).success();
    site.server.stop().success();
    for pack in Place::Pack.files(&site.store()) {
        let mut bytes = fs::read(&pack).unwrap();
        damage_chunks(&mut bytes);
        fs::write(&pack, bytes).unwrap();
    }
    let _ = site.realm.vsync("store").run(["server", "rebuild", "--rehash"]).code(13);
    site.server = site.realm.serve("store");
    let _ = backup(&site).code(13).stderr_contains("run it again: everything will be sent");
    let _ = backup(&site).success();
    let there = vsync_tests::scratch();
    site.restore(&["data"], there.path());
    assert_eq!(fs::read(there.path().join("stream")).unwrap(), dump);
}

/// What this machine remembers of its last tree may be damaged like any file; no snapshot is.
#[test]
fn damaged_keys_in_the_cache_come_into_no_snapshot() {
    let site = Site::new(7);
    site.data.many("many", 300, 4000).random("large", 3 << 20);
    site.backup();
    let flip = "
import glob, sqlite3, sys
[cache] = glob.glob(sys.argv[1] + '/*/cache/*/data.sqlite')
with sqlite3.connect(cache) as database:
    rows = database.execute('SELECT pid, ck FROM node').fetchall()
    assert rows
    for pid, ck in rows:
        database.execute('UPDATE node SET ck = ? WHERE pid = ?', (bytes([ck[0] ^ 1]) + ck[1:], pid))
";
    let state = site.realm.machine("host").join("state");
    vsync_tests::shell::run("python3", ["-c", flip, state.to_str().unwrap()]);
    site.backup();
    let there = vsync_tests::scratch();
    site.restore(&["data"], there.path());
    vsync_tests::assert_same(&Tree::read(site.data.path()), &Tree::read(there.path()));
}
