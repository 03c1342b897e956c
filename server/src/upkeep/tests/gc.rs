//! Garbage collection: what goes, what stays, and that it ends when anything is wrong.

use std::fs;

use vsync_protocol::blob::BlobKind;
use vsync_protocol::id::Cid;
use vsync_protocol::manifest::SnapshotKind;

use super::{NO_FLOOR, keep};
use crate::commit::Outcome;
use crate::store::disk::Reserve;
use crate::store::pack::PackBuilder;
use crate::testing::{DAY, Store, blob, open, tree};
use crate::upkeep::gc::{GcOptions, GcReport};
use crate::upkeep::mark::MarkError;
use crate::upkeep::retention::RetentionError;
use crate::upkeep::throttle::Stop;
use crate::{Trust, rebuild};

#[test]
fn what_nothing_needs_goes_step_by_step() {
    let store = Store::new();
    let (old, new) = (tree(&["shared", "shared too", "old"]), tree(&["shared", "shared too", "new"]));
    let (first, second) = (store.back_up("a", &old), store.back_up("a", &new));
    store.forget(first);
    // Younger than two rounds: an interrupted backup may still want it.
    assert_eq!(store.collect().condemned, 0);
    let round = store.collect();
    assert_eq!((round.condemned, round.trashed), (3, 0), "its chunk, the leaf above it, the root");
    assert_eq!(store.here(&old), [true, true, false, true, false, false]);
    // Two rounds later, but too short a time.
    assert_eq!((store.collect().trashed, store.collect().trashed), (0, 0));
    store.pass(4 * DAY);
    let round = store.collect();
    assert_eq!((round.trashed, round.condemned), (1, 0));
    assert_eq!(store.check(), [second]);
    assert_eq!(fs::read_dir(store.path().join("trash")).unwrap().count(), 1);
    store.pass(4 * DAY);
    assert_eq!(store.collect().removed, 0);
    store.pass(4 * DAY);
    assert_eq!(store.collect().removed, 1);
    assert_eq!(fs::read_dir(store.path().join("trash")).unwrap().count(), 0);
    let totals = store.archive.catalog().totals().unwrap();
    assert_eq!(totals.blobs, 6);
    // Rebuilt from the files alone, the catalog is the same.
    let path = store.path();
    drop(store.archive);
    assert_eq!(rebuild(&path, crate::testing::REALM, Trust::Nothing).unwrap().totals, totals);
}

#[test]
fn what_a_session_relies_on_stays() {
    let store = Store::new();
    let blobs = tree(&["one", "two", "three"]);
    let id = store.back_up("a", &blobs);
    let pins = store.archive.session_pins();
    let cids: Vec<Cid> = blobs.iter().map(|blob| Cid::of(blob)).collect();
    assert_eq!(store.archive.have(&pins, &cids[..2]).unwrap(), [true, true]);
    store.forget(id);
    // G03: a backup that takes longer than every window.
    for _ in 0..400 {
        store.pass(DAY);
        store.collect();
    }
    assert_eq!(store.here(&blobs), [true, true, false, false, false, false]);
    drop(pins);
    store.collect_all();
    assert_eq!(store.here(&blobs), [false; 6]);
    assert_eq!(store.archive.catalog().totals().unwrap().blobs, 0);
}

#[test]
fn a_commit_that_relied_on_too_little_is_refused_not_broken() {
    let store = Store::new();
    let blobs = tree(&["one", "two"]);
    let id = store.back_up("a", &blobs);
    let pins = store.archive.session_pins();
    // The source asks for the root alone and believes the rest to be below it.
    assert_eq!(store.archive.have(&pins, &[Cid::of(blobs.last().unwrap())]).unwrap(), [true]);
    store.forget(id);
    store.collect_times(3);
    let (_, outcome) = store.commit("a", &blobs, SnapshotKind::Full).unwrap();
    assert!(matches!(outcome, Outcome::Missing(missing) if !missing.is_empty()));
    store.back_up("a", &blobs);
    store.collect_all();
    assert_eq!(store.check().len(), 1);
}

/// G07: condemned, brought again, condemned.
#[test]
fn the_condemned_live_again_without_a_second_copy() {
    let store = Store::new();
    let blobs = tree(&["one", "two", "three"]);
    let bytes = |store: &Store| store.archive.catalog().totals().unwrap().bytes;
    let mut id = store.back_up("a", &blobs);
    let once = bytes(&store);
    for _ in 0..10 {
        store.forget(id);
        store.collect_times(3);
        assert_eq!(store.here(&blobs), [false; 6]);
        id = store.back_up("a", &blobs);
        assert_eq!(store.check(), [id]);
        assert_eq!(bytes(&store), once);
    }
    store.collect_all();
    assert_eq!(store.check(), [id]);
}

#[test]
fn the_forgotten_can_be_brought_back_until_they_are_collected() {
    let store = Store::new();
    let ids = ["one", "two"].map(|text| store.back_up("a", &tree(&[text, "shared"])));
    ids.into_iter().for_each(|id| store.forget(id));
    store.collect_times(4);
    store.archive.undelete(ids[0], "office").unwrap();
    assert_eq!(store.check(), [ids[0]]);
    store.collect_all();
    assert_eq!(store.check(), [ids[0]]);
    assert!(matches!(store.archive.undelete(ids[1], "office"), Err(RetentionError::Collected(_))));
    assert!(store.archive.catalog().known(ids[1]).unwrap().unwrap().collected);
}

/// B20, G04: the same blob in several packs, and more than once.
#[test]
fn copies_of_a_blob_do_not_outlive_or_kill_each_other() {
    let store = Store::new();
    let chunk = blob(BlobKind::Chunk, &[], b"everywhere");
    for other in ["a", "b", "c"] {
        let mut pack = PackBuilder::default();
        let other = blob(BlobKind::Chunk, &[], other.as_bytes());
        for blob in [&chunk, &other, &chunk] {
            pack.push(Cid::of(blob), BlobKind::Chunk, blob.clone());
        }
        // Past the archive, as two sessions at once may do it.
        let pack = pack.finish();
        store.archive.files.packs.put_from_reserve(&pack).unwrap();
        store.archive.catalog().add_pack(pack.id(), pack.len(), pack.records().to_vec()).unwrap();
    }
    let blobs = tree(&["everywhere", "x"]);
    let id = store.back_up("v", &blobs);
    store.collect_all();
    assert_eq!(store.check(), [id]);
    let store = store.reopen();
    assert_eq!(store.check(), [id]);
    assert_eq!(store.archive.catalog().totals().unwrap().blobs, 4);
}

#[test]
fn a_pack_that_comes_again_while_doomed_is_not_thrown_away() {
    let store = Store::new();
    let blobs = tree(&["again"]);
    let id = store.back_up("a", &blobs);
    store.forget(id);
    store.collect_times(3);
    let [kept] = store.archive.catalog().kept(u64::MAX >> 1).unwrap()[..] else { panic!("not one pack") };
    // As if the round was cut off between dooming the pack and moving it.
    let cids = blobs.iter().map(|blob| Cid::of(blob)).collect();
    let step = crate::catalog::Compaction { retired: vec![(kept.pack, cids)], ripe: 100, ..Default::default() };
    assert_eq!(store.archive.catalog().compact(step).unwrap(), [kept.pack]);
    let id = store.back_up("a", &blobs);
    assert_eq!(store.archive.catalog().totals().unwrap().packs, 1);
    store.collect_all();
    assert_eq!(store.check(), [id]);
    assert_eq!(store.reopen().check(), [id]);
}

#[test]
fn small_packs_are_merged_and_large_ones_left_alone() {
    let store = Store::new();
    let ids: Vec<_> = (0..9).map(|day| store.back_up("a", &tree(&[&format!("day {day}")]))).collect();
    assert_eq!(store.archive.catalog().totals().unwrap().packs, 9);
    let round = store.collect();
    assert_eq!((round.trashed, round.condemned), (9, 0));
    assert_eq!(store.archive.catalog().totals().unwrap().packs, 1);
    assert_eq!(store.check(), ids);
    assert_eq!(store.collect().trashed, 0);
    let store = store.reopen();
    assert_eq!(store.check(), ids);
}

#[test]
fn a_full_disk_is_collected_too() {
    let store = Store::new();
    let (first, second) = (store.back_up("a", &tree(&["1", "2"])), store.back_up("a", &tree(&["1", "3"])));
    store.forget(first);
    let store = Store { reserve: Reserve { bytes: u64::MAX, percent: 0 }, ..store }.reopen();
    assert!(store.try_back_up("a", &tree(&["no space"])).is_err());
    let options = GcOptions { empty_trash: true, ..GcOptions::default() };
    let mut removed = 0;
    for _ in 0..5 {
        store.pass(4 * DAY);
        removed += store.archive.collect(&options, &Stop::default()).unwrap().removed;
    }
    assert!(removed > 0);
    assert_eq!(fs::read_dir(store.path().join("trash")).unwrap().count(), 0);
    assert_eq!(store.check(), [second]);
}

#[test]
fn a_dry_run_says_what_would_go_and_changes_nothing() {
    let store = Store::new();
    let (first, _) = (store.back_up("a", &tree(&["1", "2"])), store.back_up("a", &tree(&["1", "3"])));
    store.collect();
    store.forget(first);
    let dry = GcOptions { dry_run: true, ..GcOptions::default() };
    let report = store.archive.collect(&dry, &Stop::default()).unwrap();
    let blobs = tree(&["1", "2"]);
    let lens = [1, 2, 3].map(|index: usize| blobs[index].len() as u64).iter().sum();
    assert_eq!(report, GcReport { condemned: 3, condemned_bytes: lens, ..GcReport::default() });
    assert_eq!(store.archive.catalog().round().unwrap(), 2);
    assert_eq!(store.here(&blobs), [true; 4]);
    let real = store.collect();
    assert_eq!((real.condemned, real.condemned_bytes), (3, lens));
}

/// R04, R09 in part: GC removes nothing when a node is missing, damaged, or a manifest
/// cannot be read.
#[test]
fn anything_wrong_ends_the_round() {
    for damage in ["node", "pack", "manifest"] {
        let store = Store::new();
        let (needless, blobs) = (tree(&["needless"]), tree(&["needed", "too"]));
        let (first, _) = (store.back_up("a", &needless), store.back_up("a", &blobs));
        store.forget(first);
        store.collect();
        let leaf = Cid::of(&blobs[2]);
        let location = store.archive.catalog().locate(&[leaf]).unwrap()[0].unwrap();
        let shard = format!("packs/{:02x}/{}.pack", location.pack.as_bytes()[0], location.pack);
        match damage {
            "node" => store.archive.catalog().add_damage(leaf, location.pack).unwrap(),
            "pack" => fs::remove_file(store.path().join(shard)).unwrap(),
            _ => {
                let catalog = rusqlite::Connection::open(store.path().join("catalog.sqlite")).unwrap();
                catalog.execute("UPDATE snapshots SET manifest = x'00' WHERE forgotten IS NULL", []).unwrap();
            }
        }
        let round = store.archive.collect(&GcOptions::default(), &Stop::default());
        assert!(matches!(round, Err(MarkError::Node { .. } | MarkError::Manifest(_))), "{damage}: {round:?}");
        assert_eq!(store.here(&needless), [true; 3], "{damage}");
        assert!(matches!(store.archive.plan(&keep(NO_FLOOR), None, None), Ok(plans) if plans.len() == 1));
    }
}

#[test]
fn a_stopped_round_leaves_a_store_that_is_right() {
    let store = Store::new();
    let id = store.back_up("a", &tree(&["1"]));
    let stop = Stop::default();
    stop.stop();
    assert!(matches!(store.archive.collect(&GcOptions::default(), &stop), Err(MarkError::Stopped)));
    assert_eq!(store.check(), [id]);
}

#[test]
fn a_damaged_pack_is_not_compacted_away() {
    let store = Store::new();
    let old = tree(&["old and large old and large old and large old and large", "new"]);
    let (first, second) = (store.back_up("a", &old), store.back_up("b", &tree(&["new"])));
    store.forget(first);
    let [pack, ..] = store.archive.catalog().kept(0).unwrap()[..] else { panic!("no pack") };
    let path = store.path().join(format!("packs/{:02x}/{}.pack", pack.pack.as_bytes()[0], pack.pack));
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 20;
    bytes[last] ^= 1;
    fs::write(&path, &bytes).unwrap();
    store.collect_all();
    assert!(path.exists(), "its table is damaged");
    assert_eq!(store.check(), [second]);
}

#[test]
fn time_in_the_trash_begins_anew_when_the_catalog_is_lost() {
    let store = Store::new();
    let id = store.back_up("a", &tree(&["1"]));
    store.forget(id);
    assert!(store.collect_all() > 0);
    store.archive.close();
    fs::remove_file(store.path().join("catalog.sqlite")).unwrap();
    drop(store.archive);
    let path = store.dir.path().join("store");
    let archive = open(&path, &store.moment, &store.steps, store.reserve).unwrap();
    archive.collect(&GcOptions::default(), &Stop::default()).unwrap();
    assert_eq!(archive.catalog().trash().unwrap().len(), fs::read_dir(path.join("trash")).unwrap().count());
}
