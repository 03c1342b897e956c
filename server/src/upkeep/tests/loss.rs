//! What is lost is said to be lost, as long as it is, and nothing that is left is removed
//! because of it.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;

use vsync_protocol::id::{Cid, PackId};

use crate::archive::ArchiveError;
use crate::store::StoreError;
use crate::testing::{DAY, NO_RESERVE, REALM, Store, open, tree};
use crate::upkeep::gc::GcOptions;
use crate::upkeep::mark::MarkError;
use crate::upkeep::scrub::ScrubReport;
use crate::upkeep::throttle::Stop;
use crate::{RepairReport, Trust, rebuild, repair};

fn scrub(store: &Store) -> ScrubReport {
    store.archive.scrub(None, &Stop::default()).unwrap()
}

/// Ends the store, lets `change` work on its files, and opens it again.
pub(super) fn while_closed<T>(store: Store, change: impl FnOnce(&std::path::Path) -> T) -> (Store, T) {
    let Store { dir, archive, moment, steps, reserve } = store;
    archive.close();
    drop(archive);
    let path = dir.path().join("store");
    let changed = change(&path);
    let archive = Arc::new(open(&path, &moment, &steps, NO_RESERVE).unwrap());
    (Store { dir, archive, moment, steps, reserve }, changed)
}

pub(super) fn lose_catalog(path: &std::path::Path) {
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(path.join(format!("catalog.sqlite{suffix}")));
    }
}

pub(super) fn pack_of(store: &Store, blob: &[u8]) -> PackId {
    store.archive.catalog().locate_one(Cid::of(blob)).unwrap().unwrap().pack
}

/// R04: k of n packs are gone. Every look says so until a backup brings them again.
#[test]
fn what_is_lost_is_named_at_every_look() {
    let contents: Vec<_> = (0..4).map(|at| tree(&["shared", &format!("{at}"), &format!("also {at}")])).collect();
    for lost in 1_u32..16 {
        let store = Store::new();
        let ids: Vec<_> = contents.iter().map(|blobs| store.back_up("a", blobs)).collect();
        let is_lost = |at: usize| lost & (1 << at) != 0;
        for at in (0..4).filter(|&at| is_lost(at)) {
            // Its root is in no other pack.
            let pack = pack_of(&store, contents[at].last().unwrap());
            fs::remove_file(store.archive.files.packs.path_of(pack)).unwrap();
        }
        // All need what the first has brought.
        let expected: Vec<_> = (0..4).filter(|&at| is_lost(at) || is_lost(0)).map(|at| ids[at]).collect();
        let named = |found: &ScrubReport| found.affected.iter().map(|one| one.id).collect::<Vec<_>>();
        let first = scrub(&store);
        assert_eq!(named(&first), expected, "{lost:b}");
        let second = scrub(&store);
        assert!(second.damaged_packs.is_empty() && !second.is_clean(), "{lost:b}");
        assert_eq!((named(&second), second.lost), (expected.clone(), first.lost), "{lost:b}");
        assert_eq!(store.archive.catalog().damaged().unwrap(), first.lost, "{lost:b}");
        let (store, repaired) = while_closed(store, |path| repair(path, REALM).unwrap());
        assert_eq!((named(&repaired.scrub), repaired.scrub.lost), (expected.clone(), first.lost), "{lost:b}");
        // A catalog that was made anew finds it out by itself.
        let (store, ()) = while_closed(store, lose_catalog);
        assert_eq!(named(&scrub(&store)), expected, "{lost:b}");
        store.back_up_all(&contents);
        assert!(scrub(&store).is_clean(), "{lost:b}");
        assert_eq!(store.archive.catalog().damaged().unwrap(), 0, "{lost:b}");
        assert_eq!(store.check().len(), 8, "{lost:b}");
    }
}

#[test]
fn a_healthy_store_needs_no_repair() {
    let store = Store::new();
    store.back_up("a", &tree(&["1", "2"]));
    let (_store, repaired) = while_closed(store, |path| repair(path, REALM).unwrap());
    let RepairReport { log: None, catalog: None, recovered: 0, scrub } = repaired else { panic!("{repaired:?}") };
    assert!(scrub.is_clean(), "{scrub:?}");
}

/// G02: an old catalog names packs that were compacted since: what they held lies elsewhere.
/// VSYNC_TEST_VARIANTS is how many of them.
#[test]
fn an_older_catalog_finds_what_was_moved() {
    for variant in 0..std::env::var("VSYNC_TEST_VARIANTS").map_or(16, |text| text.parse().unwrap()) {
        let store = Store::new();
        let name = |what: &str| format!("{what} {variant}");
        let first = store.back_up("a", &tree(&["shared", &name("dead"), &name("also dead")]));
        store.back_up("a", &tree(&["shared", &name("new")]));
        store.forget(first);
        let (store, old) = while_closed(store, |path| fs::read(path.join("catalog.sqlite")).unwrap());
        let before = store.check();
        assert!(store.collect_all() > 0);
        let (store, ()) = while_closed(store, |path| {
            lose_catalog(path);
            fs::write(path.join("catalog.sqlite"), &old).unwrap();
        });
        assert_eq!(store.check(), before, "variant {variant}");
        store.collect_all();
        assert_eq!(store.check(), before, "variant {variant}");
        assert!(scrub(&store).is_clean(), "variant {variant}");
    }
}

/// Nobody knows what a snapshot needs whose manifest is lost: nothing is removed until it is
/// given up.
#[test]
fn nothing_is_collected_while_a_manifest_is_lost() {
    for gone in [true, false] {
        let store = Store::new();
        let blobs = tree(&["precious", "too"]);
        let id = store.back_up("a", &blobs);
        store.back_up("b", &tree(&["other"]));
        let (store, ()) = while_closed(store, |path| {
            lose_catalog(path);
            let manifest = path.join(format!("manifests/{id}.manifest"));
            if gone { fs::remove_file(manifest).unwrap() } else { fs::write(manifest, "zeros").unwrap() }
        });
        for _ in 0..6 {
            store.pass(4 * DAY);
            let refused = store.archive.collect(&GcOptions::default(), &Stop::default());
            assert!(matches!(refused, Err(MarkError::LostManifest(lost)) if lost == id), "{refused:?}");
            let dry = GcOptions { dry_run: true, ..GcOptions::default() };
            assert!(store.archive.collect(&dry, &Stop::default()).is_err());
        }
        assert!(store.here(&blobs).iter().all(|&here| here));
        assert_eq!(scrub(&store).bad_manifests, [id]);
        store.forget(id);
        assert!(scrub(&store).bad_manifests.is_empty());
        assert!(store.collect_all() > 0);
        assert_eq!(store.check().len(), 1);
    }
}

/// What cannot be read for want of anything but the medium is not damaged.
#[test]
fn only_what_the_medium_cannot_read_is_damaged() {
    let store = Store::new();
    let blobs = tree(&["one", "two"]);
    store.back_up("a", &blobs);
    let (cid, pack) = (Cid::of(&blobs[0]), pack_of(&store, &blobs[0]));
    let path = store.archive.files.packs.path_of(pack);
    let whole = fs::read(&path).unwrap();
    // To read a directory fails, as it would without memory or open files left.
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let refused = store.archive.recheck(cid);
    assert!(matches!(refused, Err(ArchiveError::Store(StoreError::Io { .. }))), "{refused:?}");
    assert!(store.archive.scrub(None, &Stop::default()).is_err());
    assert!(store.here(&blobs).iter().all(|&here| here), "nothing is lost");
    // The first page of memory is what nobody can read.
    fs::remove_dir(&path).unwrap();
    symlink("/proc/self/mem", &path).unwrap();
    assert!(store.archive.recheck(cid).unwrap());
    fs::remove_file(&path).unwrap();
    fs::write(&path, whole).unwrap();
    store.back_up("a", &blobs);
    assert!(store.here(&blobs).iter().all(|&here| here));
}

/// What a reader has found damaged is set aside before compaction drops it.
#[test]
fn damaged_bytes_are_kept_for_a_person_to_look_at() {
    let store = Store::new();
    let blobs = tree(&["hit", "dead", "also dead"]);
    let first = store.back_up("a", &blobs);
    store.back_up("a", &tree(&["other"]));
    let location = store.archive.catalog().locate_one(Cid::of(&blobs[0])).unwrap().unwrap();
    let path = store.archive.files.packs.path_of(location.pack);
    let mut bytes = fs::read(&path).unwrap();
    bytes[location.offset as usize + 30] ^= 4;
    fs::write(&path, &bytes).unwrap();
    assert!(store.archive.recheck(Cid::of(&blobs[0])).unwrap());
    store.forget(first);
    assert!(store.collect_all() > 0);
    let kept = store.path().join(format!("quarantine/{}.pack", location.pack));
    assert_eq!(fs::read(kept).unwrap(), bytes);
}

/// R04: a rebuild must not forget what the old catalog alone still knows.
#[test]
fn a_shorter_log_replaces_no_catalog() {
    let store = Store::new();
    let log = store.path().join("log/chain.log");
    store.back_up("a", &tree(&["1"]));
    let short = fs::read(&log).unwrap();
    store.back_up("a", &tree(&["2"]));
    let (store, ()) = while_closed(store, |path| {
        fs::write(&log, &short).unwrap();
        let refused = rebuild(path, REALM, Trust::Tables);
        assert!(refused.as_ref().is_err_and(|error| error.to_string().contains("repair")), "{refused:?}");
        assert_eq!(repair(path, REALM).unwrap().log, Some(1));
    });
    assert_eq!(store.check().len(), 2);
    // Without either, the snapshots are not taken for none.
    let Store { dir, archive, moment, steps, .. } = store;
    archive.close();
    drop(archive);
    let path = dir.path().join("store");
    lose_catalog(&path);
    fs::remove_file(&log).unwrap();
    for _ in 0..2 {
        let refused = open(&path, &moment, &steps, NO_RESERVE).err().unwrap();
        assert!(matches!(refused, ArchiveError::Store(StoreError::Log { .. })), "{refused}");
        assert!(rebuild(&path, REALM, Trust::Tables).is_err() && repair(&path, REALM).is_err());
    }
}

/// R04: what waits in the trash may go at any time, all of it or the directory itself.
#[test]
fn nothing_needs_what_is_in_the_trash() {
    for whole in [false, true] {
        let store = Store::new();
        let first = store.back_up("a", &tree(&["shared", "dead", "also dead"]));
        store.back_up("a", &tree(&["shared", "new"]));
        store.forget(first);
        store.collect_times(3);
        store.pass(4 * DAY);
        assert_eq!(store.collect().trashed, 1);
        let before = store.check();
        let lose = |path: &std::path::Path| {
            let trash = path.join("trash");
            assert_eq!(fs::read_dir(&trash).unwrap().count(), 1);
            fs::remove_dir_all(&trash).unwrap();
            if !whole {
                fs::create_dir(&trash).unwrap();
            }
        };
        let (store, ()) = while_closed(store, lose);
        assert_eq!(store.check(), before);
        assert!(scrub(&store).is_clean());
        store.collect_all();
        assert_eq!(store.check(), before);
        let again = store.back_up("a", &tree(&["shared", "dead", "also dead"]));
        assert!(store.check().contains(&again));
        let (_store, repaired) = while_closed(store, |path| repair(path, REALM).unwrap());
        assert!(repaired.scrub.is_clean(), "{:?}", repaired.scrub);
    }
}
