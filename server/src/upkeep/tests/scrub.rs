//! Scrub: damage anywhere is found, named, healed from a copy or by the next backup, and
//! what is whole survives it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use vsync_protocol::id::{Cid, PackId};
use vsync_protocol::plan::Policy;

use super::{NO_FLOOR, keep};
use crate::store::PackStore;
use crate::store::pack::PackBuilder;
use crate::testing::{DAY, Store, tree};
use crate::upkeep::Upkeep;
use crate::upkeep::keeper::{Keeper, Notices};
use crate::upkeep::scrub::ScrubReport;
use crate::upkeep::throttle::{Stop, Throttle};

fn scrub(store: &Store) -> ScrubReport {
    store.archive.scrub(None, &Stop::default()).unwrap()
}

fn only_pack(store: &Store) -> (PackId, PathBuf) {
    let [pack] = store.archive.packs().list().unwrap()[..] else { panic!("not one pack") };
    (pack, store.archive.files.packs.path_of(pack))
}

#[test]
fn a_healthy_store_is_read_and_left_alone() {
    let store = Store::new();
    let blobs = tree(&["1", "2", "3"]);
    store.back_up("a", &blobs);
    let bytes = blobs.iter().map(|blob| blob.len() as u64).sum();
    assert_eq!(scrub(&store), ScrubReport { packs: 1, bytes, ..ScrubReport::default() });
    assert_eq!(fs::read_dir(store.path().join("quarantine")).unwrap().count(), 0);
}

/// R01, R02: a bit flipped in every byte of a small pack.
#[test]
fn every_damaged_byte_is_found_and_the_next_backup_heals_it() {
    let blobs = tree(&["one", "two", "three"]);
    let probe = Store::new();
    probe.back_up("a", &blobs);
    let whole = fs::read(only_pack(&probe).1).unwrap();
    // Each store is damaged many times over, as each is healed in between.
    let store = Store::new();
    let mut id = store.back_up("a", &blobs);
    let mut named = 0;
    for at in 0..whole.len() {
        let (pack, path) = match store.archive.packs().list().unwrap()[..] {
            [pack] => (pack, store.archive.files.packs.path_of(pack)),
            _ => panic!("not one pack at byte {at}"),
        };
        let mut bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len(), whole.len());
        bytes[at] ^= 0x10;
        fs::write(&path, &bytes).unwrap();
        let found = scrub(&store);
        if at < 8 {
            // The magic in front helps nobody to find anything.
            assert!(found.damaged_packs.is_empty());
        } else {
            assert_eq!(found.damaged_packs, [pack], "byte {at}");
            assert_eq!(found.lost == 0, found.affected.is_empty(), "byte {at}");
            assert!(found.lost <= 1, "byte {at}");
            assert!(found.lost == 0 || found.affected.iter().any(|one| one.id == id), "byte {at}");
            named += found.lost;
        }
        // Nothing damaged is ever said to be here.
        let here = store.here(&blobs);
        assert_eq!(here.iter().filter(|&&here| !here).count() as u64, found.lost);
        id = store.back_up("a", &blobs);
        assert!(store.check().contains(&id), "byte {at}");
        // Begin again with one pack of the same bytes.
        reset(&store, &whole, pack);
    }
    assert!(named > 0);
}

/// Makes the store hold just the pack `pack` with the bytes `whole` again.
fn reset(store: &Store, whole: &[u8], pack: PackId) {
    for other in store.archive.packs().list().unwrap() {
        fs::remove_file(store.archive.files.packs.path_of(other)).unwrap();
        store.archive.catalog().lose_pack(other).unwrap();
    }
    fs::write(store.archive.files.packs.path_of(pack), whole).unwrap();
    let table = crate::store::read_table(store.archive.packs(), pack).unwrap().unwrap();
    store.archive.catalog().add_pack(pack, whole.len() as u64, table).unwrap();
    let _ = fs::remove_file(store.path().join(format!("quarantine/{pack}.pack")));
}

/// R03: a pack cut at any length keeps what is whole in it.
#[test]
fn a_cut_pack_gives_back_what_is_whole() {
    let blobs = tree(&["one", "two", "three"]);
    let store = Store::new();
    store.back_up("a", &blobs);
    let (pack, path) = only_pack(&store);
    let whole = fs::read(&path).unwrap();
    for len in (0..whole.len()).step_by(7) {
        fs::write(&path, &whole[..len]).unwrap();
        let found = scrub(&store);
        assert_eq!(found.damaged_packs, [pack], "cut to {len}");
        let kept = blobs.iter().filter(|blob| store.here(std::slice::from_ref(*blob))[0]).count();
        let table = crate::store::pack::scan_records(&whole[..len]).len();
        assert_eq!((kept, found.lost as usize), (table, 6 - table), "cut to {len}");
        assert!(store.path().join(format!("quarantine/{pack}.pack")).exists());
        let id = store.back_up("a", &blobs);
        assert!(store.check().contains(&id), "cut to {len}");
        reset(&store, &whole, pack);
    }
}

#[test]
fn another_copy_takes_the_place_of_a_damaged_one() {
    let store = Store::new();
    let blobs = tree(&["one", "two"]);
    store.back_up("a", &blobs);
    let (_, path) = only_pack(&store);
    let mut copies = PackBuilder::default();
    copies.push(Cid::of(&blobs[0]), vsync_protocol::blob::BlobKind::Chunk, blobs[0].clone());
    store.archive.files.packs.put(&copies.finish()).unwrap();
    let store = store.reopen();
    let bytes = fs::read(&path).unwrap();
    let flipped: Vec<u8> = bytes.iter().enumerate().map(|(at, byte)| if at == 60 { byte ^ 1 } else { *byte }).collect();
    fs::write(&path, flipped).unwrap();
    let found = scrub(&store);
    assert_eq!((found.lost, found.damaged_packs.len()), (0, 1));
    assert_eq!(store.check().len(), 1);
}

#[test]
fn snapshots_that_need_the_damaged_are_named_and_no_others() {
    let store = Store::new();
    let first = store.back_up("a", &tree(&["hit", "x"]));
    let _second = store.back_up("a", &tree(&["y", "z"]));
    let third = store.back_up("b", &tree(&["hit", "q"]));
    let hit = Cid::of(&tree(&["hit"])[0]);
    let location = store.archive.catalog().locate(&[hit]).unwrap()[0].unwrap();
    let path = store.archive.files.packs.path_of(location.pack);
    let mut bytes = fs::read(&path).unwrap();
    bytes[location.offset as usize + 30] ^= 4;
    fs::write(&path, bytes).unwrap();
    let found = scrub(&store);
    let named: Vec<_> = found.affected.iter().map(|one| (one.volume.as_str(), one.id)).collect();
    assert_eq!(named, [("a", first), ("b", third)]);
    // R04: a pack that is gone.
    fs::remove_file(path).unwrap();
    assert!(scrub(&store).lost > 0);
}

/// Changes rows of the catalog behind its back.
fn tamper(store: &Store, sql: &str, cid: Cid) {
    let catalog = rusqlite::Connection::open(store.path().join("catalog.sqlite")).unwrap();
    assert_eq!(catalog.execute(sql, [cid.as_bytes()]).unwrap(), 1, "{sql}");
}

#[test]
fn rows_of_the_catalog_that_are_wrong_are_found_and_put_right() {
    let store = Store::new();
    let blobs = tree(&["one", "two", "three"]);
    let id = store.back_up("a", &blobs);
    let cid = Cid::of(&blobs[1]);
    let right = store.archive.catalog().locate_one(cid).unwrap().unwrap();
    for wrong in ["offset = offset + 1", "offset = 0", "offset = -5", "len = len - 1", "len = 1 << 40", "kind = 3"] {
        tamper(&store, &format!("UPDATE blobs SET {wrong} WHERE cid = ?1"), cid);
        let found = scrub(&store);
        assert_eq!((found.misplaced, found.lost, found.damaged_packs.len()), (Some(1), 0, 0), "{wrong}");
        assert!(!found.is_clean(), "{wrong}");
        assert_eq!(store.archive.catalog().locate_one(cid).unwrap(), Some(right), "{wrong}");
        assert!(scrub(&store).is_clean(), "{wrong}");
    }
    // Somebody read it where it was not, so that it counts as damaged.
    tamper(&store, "UPDATE blobs SET offset = offset + 1 WHERE cid = ?1", cid);
    assert!(store.archive.recheck(cid).unwrap());
    store.pass(31 * DAY);
    let found = store.archive.scrub_next(30 * DAY, &Throttle::default()).unwrap().unwrap();
    assert_eq!((found.misplaced, store.here(&blobs)), (Some(1), vec![true; blobs.len()]));
    assert_eq!(store.check(), [id]);
}

#[test]
fn a_blob_that_the_catalog_places_in_the_wrong_pack_is_found_in_its_own() {
    let store = Store::new();
    let blobs = tree(&["one", "two"]);
    store.back_up("a", &blobs);
    store.back_up("b", &tree(&["other"]));
    let cid = Cid::of(&blobs[0]);
    let right = store.archive.catalog().locate_one(cid).unwrap().unwrap();
    let other = "(SELECT max(number) FROM packs WHERE number <> pack)";
    tamper(&store, &format!("UPDATE blobs SET pack = {other} WHERE cid = ?1"), cid);
    let found = scrub(&store);
    assert_eq!((found.lost, found.healed), (0, 1));
    assert_eq!(store.archive.catalog().locate_one(cid).unwrap(), Some(right));
    assert_eq!(store.check().len(), 2);
}

#[test]
fn packs_are_read_in_turn_once_a_period() {
    let store = Store::new();
    for day in 0..3 {
        store.back_up("a", &tree(&[&format!("{day}")]));
    }
    let next = || store.archive.scrub_next(30 * DAY, &Throttle::default()).unwrap();
    assert_eq!(next(), None, "they were just written");
    store.pass(31 * DAY);
    (0..3).for_each(|_| assert_eq!(next().unwrap().packs, 1));
    assert_eq!(next(), None);
    store.pass(31 * DAY);
    assert!(next().is_some());
}

#[test]
fn a_running_server_does_all_of_it_by_itself() {
    let store = Store::new();
    for day in 0..12 {
        store.pass(DAY);
        store.back_up("a", &tree(&["shared", &format!("{day}")]));
    }
    let upkeep = Upkeep {
        collect_every: Some(Duration::from_secs(3600)),
        tick: Duration::from_millis(1),
        ..keep(Policy { daily: 2, ..NO_FLOOR })
    };
    let notices = Notices::default();
    let keeper = Keeper::start(store.archive.clone(), upkeep, notices.clone()).unwrap();
    let done = || {
        let totals = store.archive.catalog().totals().unwrap();
        (totals.snapshots, totals.blobs) == (2, 7) && store.archive.catalog().trash().unwrap().is_empty()
    };
    while !done() {
        store.pass(DAY / 2);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(notices.all().is_empty(), "{:?}", notices.all());
    store.moment.lock().unwrap().now += 400 * DAY as i64;
    store.back_up("a", &tree(&["after"]));
    while notices.all().is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(notices.all()[0].contains("ahead"), "{:?}", notices.all());
    keeper.end();
    assert_eq!(store.check().len(), 3);
}
