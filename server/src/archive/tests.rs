use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use vsync_protocol::blob::BlobKind;
use vsync_protocol::id::Cid;
use vsync_protocol::log::LogEntry;

use super::*;
use crate::store::pack::PackBuilder;
use crate::store::read_table;
use crate::testing::NO_RESERVE;
use crate::testing::blob;
use vsync_protocol::manifest::manifest_hash;

const REALM: RealmId = RealmId::from_bytes([1; 16]);

fn open(dir: &Path) -> Archive {
    Archive::open(dir, REALM, NO_RESERVE).unwrap()
}

fn pack(content: &[u8]) -> (Cid, PackBuilder) {
    let blob = blob(BlobKind::Chunk, &[], content);
    let (cid, mut pack) = (Cid::of(&blob), PackBuilder::default());
    pack.push(cid, BlobKind::Chunk, blob);
    (cid, pack)
}

#[test]
fn what_is_here_is_not_stored_again() {
    let dir = tempfile::tempdir().unwrap();
    let archive = open(dir.path());
    let pins = archive.session_pins();
    archive.put(&pins, pack(b"once").1).unwrap();
    archive.put(&pins, pack(b"once").1).unwrap();
    let (cid, mut both) = pack(b"once");
    let other = blob(BlobKind::Chunk, &[], b"other");
    both.push(Cid::of(&other), BlobKind::Chunk, other.clone());
    archive.put(&pins, both).unwrap();
    let found = archive.catalog().locate(&[cid, Cid::of(&other)]).unwrap();
    let [Some(once), Some(new)] = found[..] else { panic!("absent") };
    assert_ne!(once.pack, new.pack);
    assert_eq!(read_table(archive.packs(), new.pack).unwrap().unwrap().len(), 1);
    assert_eq!(archive.read(Cid::of(&other), &new).unwrap(), Some(other));
}

#[test]
fn a_failed_disk_leaves_a_store_to_read() {
    let dir = tempfile::tempdir().unwrap();
    let archive = open(dir.path());
    let pins = archive.session_pins();
    let (cid, first) = pack(b"first");
    archive.put(&pins, first).unwrap();
    archive.files.health.fail("disk on fire".to_owned());
    assert!(matches!(archive.put(&pins, pack(b"second").1), Err(ArchiveError::Store(StoreError::ReadOnly(_)))));
    assert!(matches!(archive.check_writable(), Err(StoreError::ReadOnly(_))));
    assert_eq!(archive.failure(), Some("disk on fire"));
    let location = archive.catalog().locate(&[cid]).unwrap()[0].unwrap();
    assert!(archive.read(cid, &location).unwrap().is_some());
    drop(archive);
    assert_eq!(open(dir.path()).failure(), None, "a new start, after somebody has looked, writes again");
}

#[test]
fn what_crashes_leave_behind_is_tidied() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let leftovers = ["packs/tmp/0", "manifests/tmp/7"].map(|name| dir.path().join(name));
    leftovers.iter().for_each(|path| fs::write(path, "half").unwrap());
    // Durable, but the crash came before the log entry that would have made it count.
    let orphan = dir.path().join(manifest_name(manifest_hash(b"orphan")));
    fs::write(orphan, "orphan").unwrap();
    let archive = open(dir.path());
    assert!(leftovers.iter().all(|path| !path.exists()));
    assert_eq!(archive.catalog().totals().unwrap(), crate::catalog::Totals::default());
}

/// A store on which steps of this name find the disk full, so many times as the number says.
fn filling(dir: &Path, reserve: Reserve, step: &'static str) -> (Archive, Arc<AtomicUsize>) {
    let left = Arc::new(AtomicUsize::new(0));
    let steps = Steps::heard_by({
        let left = left.clone();
        move |when, what| {
            let one_less = |left: usize| left.checked_sub(1);
            let is_full = when == "before"
                && what == step
                && left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok();
            if is_full { Err(io::ErrorKind::QuotaExceeded.into()) } else { Ok(()) }
        }
    });
    (Archive::open_in(World { steps, ..World::default() }, dir, REALM, reserve).unwrap(), left)
}

#[test]
fn a_pack_that_a_full_disk_kept_out_of_the_catalog_is_known_as_soon_as_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let (archive, full) = filling(dir.path(), NO_RESERVE, "add a pack");
    let pins = archive.session_pins();
    full.store(usize::MAX, Ordering::Relaxed);
    let (cid, first) = pack(b"first");
    for again in [first, pack(b"first").1, pack(b"second").1] {
        assert!(matches!(archive.put(&pins, again), Err(ArchiveError::Catalog(error)) if error.is_full()));
    }
    assert_eq!(archive.packs().list().unwrap().len(), 1, "a full disk is filled no further");
    assert_eq!(archive.catalog().have(&[cid]).unwrap(), [false]);
    full.store(0, Ordering::Relaxed);
    let (other, second) = pack(b"second");
    archive.put(&pins, second).unwrap();
    assert_eq!(archive.catalog().have(&[cid, other]).unwrap(), [true, true]);
    let location = archive.catalog().locate_one(cid).unwrap().unwrap();
    assert!(archive.read(cid, &location).unwrap().is_some());
    assert_eq!(archive.catalog().totals().unwrap().packs, 2);
}

#[test]
fn a_pack_that_a_full_disk_kept_out_of_the_catalog_is_known_to_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let (archive, full) = filling(dir.path(), NO_RESERVE, "add a pack");
    full.store(usize::MAX, Ordering::Relaxed);
    let (cid, first) = pack(b"first");
    archive.put(&archive.session_pins(), first).unwrap_err();
    drop(archive);
    assert_eq!(open(dir.path()).catalog().have(&[cid]).unwrap(), [true]);
}

#[test]
fn an_order_that_a_quota_refuses_has_the_space_that_was_held_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let (archive, full) = filling(dir.path(), Reserve { bytes: 32 << 20, percent: 0 }, "append to the log");
    let ballast = dir.path().join("ballast");
    assert!(ballast.exists());
    full.store(1, Ordering::Relaxed);
    let pin = |at| LogEntry::Pin { manifest: manifest_hash(b"any"), at, by: "office".to_owned() };
    let position = archive.note::<ArchiveError>(|at| Ok(Some(pin(at)))).unwrap();
    assert_eq!((position.index, ballast.exists()), (1, false));
    assert_eq!(archive.failure(), None);
}
