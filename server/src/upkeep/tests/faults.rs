//! Kills and failing disks at every single step by which a store changes: in ingest,
//! commit, orders, garbage collection, compaction, scrub and rebuild. A kill is a copy of
//! the store as it is at that instant.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use vsync_protocol::id::{Cid, SnapshotId};

use super::{NO_FLOOR, keep};
use crate::catalog::State;
use crate::store::steps::Steps;
use crate::testing::{DAY, NO_RESERVE, REALM, Store, open, tree};
use crate::upkeep::gc::GcOptions;
use crate::upkeep::throttle::Stop;
use crate::{Trust, rebuild, rebuild_in};

type Outcome = Result<(), Box<dyn std::error::Error>>;
type Act = fn(&Store) -> Outcome;

fn contents() -> [Vec<Bytes>; 3] {
    [&["shared", "also shared", "of the first"][..], &["shared", "also shared", "of the second"], &["other"]].map(tree)
}

fn back_up(store: &Store, volume: &str, which: usize) -> Outcome {
    store.try_back_up(volume, &contents()[which])?;
    Ok(())
}

/// The oldest snapshot, forgotten or not.
fn oldest(store: &Store) -> Result<SnapshotId, Box<dyn std::error::Error>> {
    let log = store.archive.catalog().log(0, 1000)?;
    Ok(log.first().ok_or("an empty log")?.manifest().into())
}

fn collect(store: &Store, empty_trash: bool) -> Outcome {
    store.pass(4 * DAY);
    store.archive.collect(&GcOptions { empty_trash, ..GcOptions::default() }, &Stop::default())?;
    Ok(())
}

/// The life of a store, from empty to one that has done everything there is to do.
const LIFE: [Act; 18] = [
    |store| back_up(store, "a", 0),
    |store| back_up(store, "a", 1),
    |store| back_up(store, "b", 2),
    |store| store.archive.pin(oldest(store)?, true, "office").map(drop).map_err(Into::into),
    |store| store.archive.pin(oldest(store)?, false, "office").map(drop).map_err(Into::into),
    |store| store.archive.forget(&keep(NO_FLOOR), oldest(store)?, "test").map(drop).map_err(Into::into),
    |store| collect(store, false),
    |store| collect(store, false),
    |store| store.archive.undelete(oldest(store)?, "office").map(drop).map_err(Into::into),
    |store| store.archive.forget(&keep(NO_FLOOR), oldest(store)?, "test").map(drop).map_err(Into::into),
    |store| collect(store, false),
    |store| collect(store, false),
    // Copies what is of use, dooms, moves to the trash.
    |store| collect(store, false),
    |store| back_up(store, "a", 0),
    |store| collect(store, true),
    // Damage, and what scrub makes of it.
    |store| {
        let pack = store.archive.packs().list()?.into_iter().max().ok_or("no pack")?;
        let path = store.archive.files.packs.path_of(pack);
        let mut bytes = fs::read(&path)?;
        let last = bytes.len() - 60;
        bytes[last] ^= 1;
        fs::write(&path, bytes)?;
        store.archive.scrub(None, &Stop::default())?;
        Ok(())
    },
    |store| back_up(store, "b", 2),
    |store| collect(store, true),
];

fn standing(store: &Store) -> BTreeSet<SnapshotId> {
    store.archive.catalog().standing_after(0, 1000).unwrap().iter().map(|known| known.hash.into()).collect()
}

/// The snapshots that stand before each act and after the last one.
fn history() -> Vec<BTreeSet<SnapshotId>> {
    let store = Store::new();
    let mut states = vec![BTreeSet::new()];
    for act in LIFE {
        act(&store).unwrap();
        states.push(standing(&store));
    }
    states
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Everything that must hold of a store, however it came to be; and that it goes on.
fn check(store: Store, expected: &[&BTreeSet<SnapshotId>], what: &str) {
    // I1, I2: what was acknowledged is there and whole, the rest wholly there or absent.
    let found = standing(&store);
    assert!(expected.contains(&&found), "{what}: {found:?} stand");
    // I3: what is said to be here is here.
    for row in store.archive.catalog().survey(None, 10_000).unwrap() {
        if row.state == State::Live {
            let location = store.archive.catalog().locate(&[row.cid]).unwrap()[0].unwrap();
            let blob = store.archive.read(row.cid, &location).unwrap();
            assert!(blob.is_some_and(|blob| Cid::of(&blob) == row.cid), "{what}: {} is said to be here", row.cid);
        }
    }
    // Damage that was done on purpose is found; what it hit comes again below.
    store.archive.scrub(None, &Stop::default()).unwrap();
    // B1, C05: what was deleted, or about to be, is backed up again and stays.
    let ids = contents().map(|blobs| store.back_up("again", &blobs));
    let whole = store.check();
    assert!(ids.iter().all(|id| whole.contains(id)), "{what}");
    store.collect_all();
    assert_eq!(store.check(), whole, "{what}");
    // I7: the files alone make the same catalog.
    let totals = store.archive.catalog().totals().unwrap();
    let Store { dir, archive, moment, steps, reserve } = store;
    archive.close();
    drop(archive);
    let path = dir.path().join("store");
    let report = rebuild(&path, REALM, Trust::Nothing).unwrap();
    assert_eq!((report.damaged_blobs, report.damaged_packs, report.lost_manifests), (0, 0, 0), "{what}");
    assert_eq!(report.totals.snapshots, totals.snapshots, "{what}");
    assert_eq!(report.totals.blobs, totals.blobs, "{what}");
    let archive = Arc::new(open(&path, &moment, &steps, reserve).unwrap());
    assert_eq!(Store { dir, archive, moment, steps, reserve }.check(), whole, "{what}");
}

/// A store in a copy of the directory `image`.
fn wake(image: &Path, like: &Store) -> Store {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    fs::rename(image, dir.path().join("store")).unwrap();
    let moment = Arc::new(Mutex::new(like.moment.lock().unwrap().clone()));
    let archive = Arc::new(open(&dir.path().join("store"), &moment, &Steps::default(), NO_RESERVE).unwrap());
    Store { dir, archive, moment, steps: Steps::default(), reserve: NO_RESERVE }
}

/// What was heard: the act, the step, and where the copy is.
type Images = Arc<Mutex<Vec<(usize, String, PathBuf)>>>;

/// C04, C05, C06: a kill before and after every step.
#[test]
fn a_kill_at_any_step_loses_nothing() {
    let states = history();
    let scratch = tempfile::tempdir().unwrap();
    let (images, act, from) = (Images::default(), Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(PathBuf::new())));
    let steps = {
        let (images, act, from, scratch) =
            (Arc::clone(&images), Arc::clone(&act), Arc::clone(&from), scratch.path().to_owned());
        Steps::heard_by(move |when, what| {
            let from = from.lock().unwrap();
            if from.as_os_str().is_empty() {
                return Ok(());
            }
            let mut images = images.lock().unwrap();
            let image = scratch.join(images.len().to_string());
            copy(&from, &image);
            images.push((act.load(Ordering::Relaxed), format!("{when}: {what}"), image));
            Ok(())
        })
    };
    let store = Store::heard_by(steps);
    *from.lock().unwrap() = store.path();
    for (index, perform) in LIFE.iter().enumerate() {
        act.store(index, Ordering::Relaxed);
        perform(&store).unwrap();
        assert_eq!(standing(&store), states[index + 1], "act {index}");
    }
    *from.lock().unwrap() = PathBuf::new();
    let images = std::mem::take(&mut *images.lock().unwrap());
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for (index, step, image) in &images {
        *kinds.entry(step).or_default() += 1;
        let what = format!("killed in act {index}, {step}");
        check(wake(image, &store), &[&states[*index], &states[index + 1]], &what);
    }
    println!("{} kills at {} kinds of step: {kinds:#?}", images.len(), kinds.len());
    // So that nobody takes a step without announcing it, unnoticed.
    assert!(images.len() > 200 && kinds.len() >= 30, "{} kills, {} kinds", images.len(), kinds.len());
}

/// F01, F02: the n-th step fails, for every n.
#[test]
fn a_step_that_fails_loses_nothing() {
    let states = history();
    for kind in [io::ErrorKind::StorageFull, io::ErrorKind::Other] {
        let mut fired = 0;
        for failing in 0.. {
            let (count, hit) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(None)));
            let steps = {
                let (count, hit) = (Arc::clone(&count), Arc::clone(&hit));
                Steps::heard_by(move |when, what| {
                    if count.fetch_add(1, Ordering::Relaxed) != failing {
                        return Ok(());
                    }
                    *hit.lock().unwrap() = Some(format!("{when}: {what}"));
                    Err(io::Error::new(kind, "injected"))
                })
            };
            // The founding of a store is another matter: there is nothing to lose yet.
            let store = Store::heard_by(steps);
            let mut last = 0;
            for act in LIFE {
                if act(&store).is_err() {
                    break;
                }
                last += 1;
            }
            let Some(step) = hit.lock().unwrap().take() else {
                assert_eq!(last, LIFE.len());
                break;
            };
            fired += 1;
            if step.contains("sync") {
                assert!(store.archive.failure().is_some(), "{step}: no more writes after a failed sync");
                assert!(store.try_back_up("a", &tree(&["refused"])).is_err());
            }
            let what = format!("{step} fails with {kind}, act {last}");
            let expected = [&states[last], &states[(last + 1).min(LIFE.len())]];
            let Store { dir, archive, moment, reserve, .. } = store;
            drop(archive);
            let path = dir.path().join("store");
            let archive = Arc::new(open(&path, &moment, &Steps::default(), reserve).unwrap());
            check(Store { dir, archive, moment, steps: Steps::default(), reserve }, &expected, &what);
        }
        println!("{fired} failures of kind {kind}");
        assert!(fired > 200);
    }
}

/// C07: a kill at every step of a rebuild.
#[test]
fn a_rebuild_that_is_killed_leaves_the_old_catalog_or_the_new() {
    let store = Store::new();
    for act in &LIFE[..12] {
        act(&store).unwrap();
    }
    let states = [standing(&store)];
    store.archive.close();
    let original = store.path();
    let scratch = tempfile::tempdir().unwrap();
    let image = scratch.path().join("original");
    copy(&original, &image);
    let images = Images::default();
    let steps = {
        let (images, scratch, image) = (Arc::clone(&images), scratch.path().to_owned(), image.clone());
        Steps::heard_by(move |when, what| {
            let mut images = images.lock().unwrap();
            let to = scratch.join(images.len().to_string());
            copy(&image, &to);
            images.push((0, format!("{when}: {what}"), to));
            Ok(())
        })
    };
    rebuild_in(&steps, &image, REALM, Trust::Nothing).unwrap();
    let images = std::mem::take(&mut *images.lock().unwrap());
    for (_, step, image) in &images {
        check(wake(image, &store), &[&states[0]], &format!("killed in a rebuild, {step}"));
    }
    println!("{} kills of a rebuild", images.len());
    assert!(images.len() > 20);
}
