//! Kinds of damage at every place of a store that is closed: found or harmless, mended as far as
//! bytes are left, and healed by the next backup.

use std::fs;
use std::path::{Path, PathBuf};

use super::loss::{lose_catalog, pack_of, while_closed};
use crate::testing::{REALM, Store, tree};
use crate::upkeep::throttle::Stop;
use crate::{Trust, rebuild, repair};

/// Numbers without end, the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

fn contents() -> [Vec<bytes::Bytes>; 3] {
    [&["shared", "one", "more of one"][..], &["shared", "two", "more of two"], &["three"]].map(tree)
}

fn store() -> Store {
    let store = Store::new();
    store.back_up_all(&contents());
    store
}

fn catalog(path: &Path) -> PathBuf {
    path.join("catalog.sqlite")
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

type Damage = fn(&Path, &mut Dice);

/// R06: what may befall a catalog. A rebuild makes it right whatever it was.
#[test]
fn a_damaged_catalog_is_made_anew() {
    let damages: [(&str, Damage); 6] = [
        ("a bit", |path, dice| {
            change(&catalog(path), |bytes| {
                let at = dice.below(bytes.len());
                bytes[at] ^= 1 << dice.below(8);
            });
        }),
        ("a page", |path, dice| {
            change(&catalog(path), |bytes| {
                let at = dice.below(bytes.len() / 4096) * 4096;
                bytes[at..at + 4096].fill(0);
            });
        }),
        ("its end", |path, dice| change(&catalog(path), |bytes| bytes.truncate(dice.below(bytes.len())))),
        ("all of it", |path, _| lose_catalog(path)),
        ("a foreign WAL", |path, dice| {
            let junk: Vec<u8> = (0..9000).map(|_| dice.below(256) as u8).collect();
            fs::write(path.join("catalog.sqlite-wal"), junk).unwrap();
        }),
        ("its memory", |path, _| fs::write(path.join("catalog.sqlite-shm"), [7; 32768]).unwrap()),
    ];
    let mut dice = Dice(1);
    for (what, damage) in damages {
        for round in 0..10 {
            let (store, ()) = while_closed(store(), |path| {
                damage(path, &mut dice);
                if rebuild(path, REALM, Trust::Nothing).is_err() {
                    // It claims to know more of the log than there is.
                    lose_catalog(path);
                    rebuild(path, REALM, Trust::Nothing).unwrap();
                }
            });
            assert_eq!(store.check().len(), 3, "{what}, round {round}");
            assert!(contents().iter().all(|blobs| store.here(blobs).iter().all(|&here| here)), "{what}");
            assert!(store.archive.scrub(None, &Stop::default()).unwrap().is_clean(), "{what}, round {round}");
        }
    }
}

/// R06: a catalog from before the last backups, and one whose last changes are lost.
#[test]
fn an_older_catalog_catches_up() {
    let store = Store::new();
    store.back_up("a", &contents()[0]);
    let (store, old) = while_closed(store, |path| fs::read(catalog(path)).unwrap());
    store.back_up_all(&contents()[1..]);
    let (store, ()) = while_closed(store, |path| {
        lose_catalog(path);
        fs::write(catalog(path), old).unwrap();
    });
    assert_eq!(store.check().len(), 3);
    assert!(contents().iter().all(|blobs| store.here(blobs).iter().all(|&here| here)));
}

/// R03: what may befall packs. What is in some file is found again.
#[test]
fn damaged_packs_give_back_what_is_in_them() {
    type Befall = fn(&Path, &Path);
    let damages: [(&str, bool, Befall); 6] = [
        ("emptied", false, |one, _| fs::write(one, "").unwrap()),
        ("gone", false, |one, _| fs::remove_file(one).unwrap()),
        ("cut", false, |one, _| change(one, |bytes| bytes.truncate(bytes.len() / 2))),
        ("longer", true, |one, _| change(one, |bytes| bytes.extend([7; 5000]))),
        ("swapped", true, |one, other| {
            let (first, second) = (fs::read(one).unwrap(), fs::read(other).unwrap());
            fs::write(one, second).unwrap();
            fs::write(other, first).unwrap();
        }),
        ("there twice", true, |one, _| {
            let packs = one.parent().and_then(Path::parent).unwrap();
            let copy = packs.join(format!("00/{}.pack", "0".repeat(64)));
            fs::copy(one, copy).unwrap();
        }),
    ];
    for (what, nothing_lost, damage) in damages {
        let store = store();
        let path = |which: usize| {
            let pack = pack_of(&store, contents()[which].last().unwrap());
            store.archive.files.packs.path_of(pack)
        };
        let (one, other) = (path(0), path(1));
        let (store, repaired) = while_closed(store, |path| {
            damage(&one, &other);
            repair(path, REALM).unwrap()
        });
        assert_eq!(repaired.scrub.lost == 0, nothing_lost, "{what}: {repaired:?}");
        assert_eq!(repaired.scrub.affected.is_empty(), nothing_lost, "{what}: {repaired:?}");
        // Nothing that is not here is said to be.
        for blob in contents().iter().flatten() {
            let cid = vsync_protocol::id::Cid::of(blob);
            let location = store.archive.catalog().locate_one(cid).unwrap();
            assert!(location.is_none_or(|at| store.archive.read(cid, &at).unwrap().is_some()), "{what}: {cid}");
        }
        store.back_up_all(&contents());
        assert_eq!(store.check().len(), 6, "{what}");
        store.collect_all();
        assert_eq!(store.check().len(), 6, "{what}");
    }
}

/// G06: whichever of seven snapshots go, compaction leaves what the others need.
#[test]
fn any_choice_of_packs_is_compacted_right() {
    let contents: Vec<_> = (0..7)
        .map(|at| tree(&["shared", &format!("{}", at / 2), &format!("own {at}"), &format!("also {at}")]))
        .collect();
    for forgotten in 0_u32..128 {
        let store = Store::new();
        let ids: Vec<_> = contents.iter().map(|blobs| store.back_up("a", blobs)).collect();
        let is_forgotten = |at: &usize| forgotten & (1 << at) != 0;
        (0..7).filter(is_forgotten).for_each(|at| store.forget(ids[at]));
        store.collect_all();
        let left: Vec<_> = (0..7).filter(|at| !is_forgotten(at)).map(|at| ids[at]).collect();
        assert_eq!(store.check(), left, "{forgotten:b}");
        let needed: std::collections::HashSet<_> =
            (0..7).filter(|at| !is_forgotten(at)).flat_map(|at| contents[at].iter()).collect();
        assert_eq!(store.archive.catalog().totals().unwrap().blobs, needed.len() as u64, "{forgotten:b}");
    }
}
