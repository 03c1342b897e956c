//! What every [`PackStore`] must do, run on each implementation.

use vsync_protocol::blob::BlobKind;
use vsync_protocol::id::{Cid, PackId};

use super::disk::{DiskStore, Reserve};
use super::health::Health;
use super::memory::MemoryStore;
use super::pack::{Pack, PackBuilder};
use super::{PackStore, StoreError, read_blob, read_table};
use crate::testing::blob;

fn pack(tags: std::ops::Range<u8>) -> Pack {
    let mut builder = PackBuilder::default();
    for tag in tags {
        let blob = blob(BlobKind::Chunk, &[], &vec![tag; usize::from(tag) * 1000]);
        builder.push(Cid::of(&blob), BlobKind::Chunk, blob);
    }
    builder.finish()
}

fn conforms(store: &dyn PackStore) {
    let absent = PackId::from_bytes([9; 32]);
    assert!(store.list().unwrap().is_empty());
    assert_eq!(store.len(absent).unwrap(), None);
    assert!(!store.read(absent, 0, &mut [0]).unwrap());
    assert!(read_table(store, absent).unwrap().is_none());

    let (one, two) = (pack(0..10), pack(10..12));
    for pack in [&one, &two, &one] {
        store.put(pack).unwrap();
    }
    let mut listed = store.list().unwrap();
    listed.sort();
    let mut expected = vec![one.id(), two.id()];
    expected.sort();
    assert_eq!(listed, expected, "a pack put twice is there once");

    for pack in [&one, &two] {
        assert_eq!(store.len(pack.id()).unwrap(), Some(pack.len()));
        assert_eq!(read_table(store, pack.id()).unwrap().as_deref(), Some(pack.records()));
        for record in pack.records() {
            let blob = read_blob(store, pack.id(), record.offset, record.len, record.cid).unwrap().unwrap();
            assert_eq!(Cid::of(&blob), record.cid);
            assert!(read_blob(store, pack.id(), record.offset + 1, record.len, record.cid).unwrap().is_none());
        }
        let len = pack.len();
        assert!(store.read(pack.id(), 0, &mut vec![0; len as usize]).unwrap());
        assert!(!store.read(pack.id(), 0, &mut vec![0; len as usize + 1]).unwrap());
        for offset in [len, u64::MAX] {
            assert!(!store.read(pack.id(), offset, &mut [0]).unwrap());
        }
    }
}

#[test]
fn memory_conforms() {
    conforms(&MemoryStore::default());
}

#[test]
fn disk_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let reserve = Reserve { bytes: 0, percent: 0 };
    conforms(&DiskStore::open(dir.path().join("packs"), reserve, Health::default()).unwrap());
    let left = std::fs::read_dir(dir.path().join("packs/tmp")).unwrap().count();
    assert_eq!(left, 0, "nothing unfinished stays");
}

#[test]
fn a_failed_store_takes_no_packs_but_still_reads() {
    let dir = tempfile::tempdir().unwrap();
    let health = Health::default();
    let reserve = Reserve { bytes: 0, percent: 0 };
    let store = DiskStore::open(dir.path().join("packs"), reserve, health.clone()).unwrap();
    store.put(&pack(0..3)).unwrap();
    health.fail("disk on fire".to_owned());
    assert!(matches!(store.put(&pack(3..5)), Err(StoreError::ReadOnly(why)) if why.contains("fire")));
    assert!(read_table(&store, pack(0..3).id()).unwrap().is_some());
}

#[test]
fn the_reserve_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let reserve = Reserve { bytes: u64::MAX, percent: 0 };
    let store = DiskStore::open(dir.path().join("packs"), reserve, Health::default()).unwrap();
    assert!(matches!(store.put(&pack(0..3)), Err(StoreError::NoSpace { .. })));
    assert!(store.list().unwrap().is_empty());
}
