//! T03: volumes that suddenly change; and what machines and volumes take.

use std::fs;

use bytes::Bytes;
use vsync_protocol::id::{Cid, SnapshotId, VolumeName};
use vsync_protocol::plan::Policy;

use super::{NO_FLOOR, keep};
use crate::catalog::Group;
use crate::testing::{DAY, Store, tree};
use crate::upkeep::throttle::Throttle;
use crate::upkeep::usage::Scope;

/// A volume of four large chunks and a small one.
fn content(large: char, small: &str) -> Vec<Bytes> {
    let large: Vec<String> = (0..4).map(|number| format!("{number}{}", large.to_string().repeat(400_000))).collect();
    let texts: Vec<&str> = large.iter().map(String::as_str).chain([small]).collect();
    tree(&texts)
}

fn data() -> VolumeName {
    "data".parse().unwrap()
}

fn guard(store: &Store) -> usize {
    store.archive.guard(&Throttle::default()).unwrap();
    store.archive.held().unwrap().len()
}

/// What retention would forget if it kept one snapshot.
fn forgettable(store: &Store) -> usize {
    let upkeep = keep(Policy { last: 1, ..NO_FLOOR });
    store.archive.plan(&upkeep, None, None).unwrap().iter().map(|plan| plan.forgotten().count()).sum()
}

#[test]
fn a_volume_that_is_suddenly_another_one_is_held_until_it_is_released() {
    let store = Store::new();
    let clean: Vec<SnapshotId> = ["one", "two"].map(|small| store.back_up("data", &content('a', small))).to_vec();
    assert_eq!(guard(&store), 0);
    // Somebody encrypts it, and thirty backups are made of that.
    for day in 0..30 {
        store.back_up("data", &content('x', &day.to_string()));
        store.pass(DAY);
        assert_eq!(guard(&store), 1);
        assert_eq!(forgettable(&store), 0);
    }
    let held = store.archive.held().unwrap();
    assert!(held[0].reason.contains("% of the content of data"), "{held:?}");
    assert!(store.archive.catalog().known(clean[1]).unwrap().unwrap().pinned);
    let store = store.reopen();
    assert_eq!((guard(&store), forgettable(&store)), (1, 0), "a restart forgets no hold");
    store.archive.release(&data(), None, "office").unwrap();
    assert!(store.archive.release(&data(), None, "office").is_err());
    assert_eq!((guard(&store), forgettable(&store)), (0, 31));
    let store = store.reopen();
    assert_eq!(guard(&store), 0, "nor what was released");
}

/// The log has one kind of pin: a release must not take away a person's.
#[test]
fn what_a_person_pinned_stays_pinned_when_the_hold_is_released() {
    for before in [true, false] {
        let store = Store::new();
        let clean: Vec<SnapshotId> = ["one", "two"].map(|small| store.back_up("data", &content('a', small))).to_vec();
        let pin = || store.archive.pin(clean[1], true, "office").map(drop).unwrap();
        if before {
            pin();
        }
        store.back_up("data", &content('x', "three"));
        assert_eq!(guard(&store), 1);
        if !before {
            pin();
        }
        store.archive.release(&data(), None, "office").unwrap();
        let store = store.reopen();
        assert_eq!(guard(&store), 0, "released");
        assert!(store.archive.catalog().known(clean[1]).unwrap().unwrap().pinned, "pinned before: {before}");
        store.archive.pin(clean[1], false, "office").unwrap();
        assert!(!store.archive.catalog().known(clean[1]).unwrap().unwrap().pinned);
    }
}

#[test]
fn a_volume_that_was_emptied_is_held() {
    let store = Store::new();
    let _ = ["one", "two"].map(|small| store.back_up("data", &content('a', small)));
    store.back_up("data", &tree(&["two"]));
    assert_eq!(guard(&store), 1);
}

#[test]
fn a_volume_that_always_changes_as_a_whole_is_not_held() {
    let store = Store::new();
    for dump in ['a', 'b', 'c', 'd'] {
        store.back_up("data", &content(dump, "dump"));
        assert_eq!(guard(&store), 0);
    }
    // Nor one that changes in part, or is tiny.
    let store = Store::new();
    for words in ["one", "two", "three"] {
        store.back_up("data", &content('a', words));
        store.back_up("tiny", &tree(&[words]));
        assert_eq!(guard(&store), 0);
    }
}

#[test]
fn usage_is_what_the_snapshots_need() {
    let store = Store::new();
    let used = |scope: &Scope| store.archive.used(scope).unwrap();
    let (machine, volume) = (Scope::Machine("one".parse().unwrap()), Scope::Volume(data()));
    assert_eq!((used(&machine), used(&volume)), (0, 0));
    let bytes = |blobs: &[Bytes]| blobs.iter().map(|blob| blob.len() as u64).sum::<u64>();
    let (first, second) = (content('a', "first"), content('b', "second"));
    let id = store.back_up("data", &first);
    store.back_up("data", &first);
    assert_eq!((used(&machine), used(&volume)), (bytes(&first), bytes(&first)));
    store.back_up("other", &second);
    assert_eq!((used(&machine), used(&volume)), (bytes(&first) + bytes(&second), bytes(&first)));
    store.back_up("data", &second);
    assert_eq!(used(&volume), bytes(&first) + bytes(&second));
    store.forget(id);
    assert_eq!(used(&volume), bytes(&first) + bytes(&second), "another snapshot has it");
    let quotas = |left| vec![(volume.clone(), left), (machine.clone(), u64::MAX)];
    let allowance = store.archive.allowance(quotas(used(&volume) + 7)).unwrap().unwrap();
    assert_eq!(allowance.left, 7);
    assert!(allowance.words.contains("volume data has a quota"), "{}", allowance.words);
    assert_eq!(store.archive.allowance(quotas(1)).unwrap().unwrap().left, 0);
    assert!(store.archive.allowance(Vec::new()).unwrap().is_none());
}

/// Damage must not keep out the backup that heals it.
#[test]
fn a_quota_is_no_obstacle_to_healing() {
    let store = Store::new();
    let blobs = content('a', "first");
    store.back_up("data", &blobs);
    let bytes: u64 = blobs.iter().map(|blob| blob.len() as u64).sum();
    let root = Cid::of(blobs.last().unwrap());
    let location = store.archive.catalog().locate_one(root).unwrap().unwrap();
    let path = store.archive.files.packs.path_of(location.pack);
    let mut pack = fs::read(&path).unwrap();
    pack[location.offset as usize] ^= 1;
    fs::write(&path, &pack).unwrap();
    assert!(store.archive.recheck(root).unwrap());
    let quotas = || vec![(Scope::Volume(data()), 10 * bytes)];
    // As often as it is asked: what could not be counted is not taken for counted.
    for _ in 0..2 {
        assert!(store.archive.allowance(quotas()).unwrap().unwrap().left > 9 * bytes);
    }
    store.back_up("data", &blobs);
    assert_eq!(store.archive.used(&Scope::Volume(data())).unwrap(), bytes);
}

/// What was brought and not committed may be as much as the quota once more, until it is, or until it was collected.
#[test]
fn what_was_not_committed_counts_towards_quotas() {
    let store = Store::new();
    let group = |source: &str, volume: &str| Group { source: source.parse().unwrap(), volume: volume.parse().unwrap() };
    let quotas = || vec![(Scope::Machine("one".parse().unwrap()), 1000), (Scope::Volume("a".parse().unwrap()), 900)];
    let left = || store.archive.allowance(quotas()).unwrap().unwrap().left;
    assert_eq!(left(), 900);
    store.archive.note_pending(&group("one", "a"), 1000).unwrap();
    store.archive.note_pending(&group("one", "b"), 400).unwrap();
    store.archive.note_pending(&group("two", "a"), 50).unwrap();
    assert_eq!(left(), 600, "of the machine");
    store.archive.note_pending(&group("two", "a"), 500).unwrap();
    assert_eq!(left(), 250, "of the volume");
    store.archive.settle(&group("two", "a"));
    assert_eq!(left(), 600);
    store.collect_times(2);
    assert_eq!(left(), 600);
    store.collect();
    assert_eq!(left(), 900);
}
