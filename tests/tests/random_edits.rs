//! Random trees, random edits, several backups: every snapshot comes back exactly, into an empty directory and over
//! any other version.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use vsync_tests::{Rng, Site, Tree, Volume};

/// One change to a tree. Numbers choose among what there is.
#[derive(Clone, Debug)]
enum Edit {
    Write { path: String, size: u64, seed: u64 },
    Sparse { path: String, size: u64, at: u64 },
    Patch { path: String, at: u64, size: u64 },
    Insert { path: String, at: u64, size: u64 },
    Resize { path: String, size: u64 },
    Remove { path: String },
    Rename { from: String, to: String },
    Copy { from: String, to: String },
    Link { from: String, to: String },
    Symlink { path: String, to: String },
    Directory { path: String },
    Fifo { path: String },
    Mode { path: String, mode: u32 },
    Owner { path: String, uid: u32 },
    Mtime { path: String, seconds: i64 },
    Xattr { path: String, value: Vec<u8> },
}

/// Few names, so that edits meet each other.
fn path() -> impl Strategy<Value = String> {
    let name = prop_oneof![Just("a"), Just("b"), Just("a.c"), Just("a b"), Just("é"), Just("-")];
    prop::collection::vec(name, 1..4).prop_map(|names| names.join("/"))
}

/// Mostly small; now and then beyond what is read at once, cut into many chunks, or resumed.
fn size() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..5000_u64, 3 => 60_000..400_000_u64, 2 => (1_u64 << 20)..(3 << 20), 1 => Just(17_u64 << 20)]
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        6 => (path(), size(), 0..4_u64).prop_map(|(path, size, seed)| Edit::Write { path, size, seed }),
        2 => (path(), size(), size()).prop_map(|(path, size, at)| Edit::Sparse { path, size, at }),
        3 => (path(), size(), 1..9000_u64).prop_map(|(path, at, size)| Edit::Patch { path, at, size }),
        2 => (path(), size(), 1..9000_u64).prop_map(|(path, at, size)| Edit::Insert { path, at, size }),
        2 => (path(), size()).prop_map(|(path, size)| Edit::Resize { path, size }),
        2 => path().prop_map(|path| Edit::Remove { path }),
        2 => (path(), path()).prop_map(|(from, to)| Edit::Rename { from, to }),
        1 => (path(), path()).prop_map(|(from, to)| Edit::Copy { from, to }),
        2 => (path(), path()).prop_map(|(from, to)| Edit::Link { from, to }),
        1 => (path(), path()).prop_map(|(path, to)| Edit::Symlink { path, to }),
        1 => path().prop_map(|path| Edit::Directory { path }),
        1 => path().prop_map(|path| Edit::Fifo { path }),
        1 => (path(), 0..0o7777_u32).prop_map(|(path, mode)| Edit::Mode { path, mode }),
        1 => (path(), 0..3_u32).prop_map(|(path, uid)| Edit::Owner { path, uid }),
        1 => (path(), -5..5_i64).prop_map(|(path, seconds)| Edit::Mtime { path, seconds }),
        1 => (path(), prop::collection::vec(any::<u8>(), 0..50)).prop_map(|(path, value)| Edit::Xattr { path, value }),
    ]
}

/// Makes the edit where it is possible; else it is none.
fn apply(edit: &Edit, volume: &Volume) {
    let is_file = |path: &str| fs::symlink_metadata(volume.path().join(path)).is_ok_and(|meta| meta.is_file());
    let is_there = |path: &str| fs::symlink_metadata(volume.path().join(path)).is_ok();
    let is_inside = |path: &str, other: &str| path == other || path.starts_with(&format!("{other}/"));
    match edit {
        Edit::Write { path, size, seed } => {
            clear(volume, path);
            volume.write(path, Rng::new(*seed).bytes(usize::try_from(*size).unwrap()));
        }
        Edit::Sparse { path, size, at } => {
            clear(volume, path);
            volume.sparse(path, size + at + 5, &[(*at, b"piece")]);
        }
        Edit::Patch { path, at, size } if is_file(path) => {
            volume.patch(path, *at, Rng::new(*at).bytes(usize::try_from(*size).unwrap()));
        }
        Edit::Insert { path, at, size } if is_file(path) => {
            let end = fs::metadata(volume.path().join(path)).unwrap().len();
            volume.insert(path, usize::try_from(*at.min(&end)).unwrap(), vec![7; usize::try_from(*size).unwrap()]);
        }
        Edit::Resize { path, size } if is_file(path) => drop(volume.resize(path, *size).path()),
        Edit::Remove { path } if is_there(path) => drop(volume.remove(path).path()),
        Edit::Rename { from, to } if is_there(from) && !is_inside(to, from) && !is_inside(from, to) => {
            clear(volume, to);
            if is_there(from) {
                volume.rename(from, to);
            }
        }
        Edit::Copy { from, to } if is_file(from) && !is_inside(from, to) => {
            clear(volume, to);
            if is_file(from) {
                fs::copy(volume.path().join(from), volume.join(to)).unwrap();
            }
        }
        Edit::Link { from, to } if is_file(from) && !is_inside(from, to) => {
            clear(volume, to);
            if is_file(from) {
                let _ = volume.join(to);
                volume.link(to, from);
            }
        }
        Edit::Symlink { path, to } => {
            clear(volume, path);
            volume.symlink(path, to);
        }
        Edit::Directory { path } => {
            clear(volume, path);
            volume.directory(path);
        }
        Edit::Fifo { path } => {
            clear(volume, path);
            volume.fifo(path);
        }
        Edit::Mode { path, mode } if is_file(path) => {
            volume.mode(path, *mode);
        }
        Edit::Owner { path, uid } if is_there(path) => drop(volume.owner(path, *uid, *uid).path()),
        Edit::Mtime { path, seconds } if is_there(path) => drop(volume.mtime(path, *seconds, 3).path()),
        Edit::Xattr { path, value } if is_file(path) => drop(volume.xattr(path, "user.random", value).path()),
        _ => {}
    }
}

/// Removes what is at `path`, and what stands in the way of its directories.
fn clear(volume: &Volume, path: &str) {
    let ends = path.match_indices('/').map(|(end, _)| end);
    for above in ends.filter_map(|end| path.get(..end)) {
        if fs::symlink_metadata(volume.path().join(above)).is_ok_and(|meta| !meta.is_dir()) {
            volume.remove(above);
        }
    }
    if fs::symlink_metadata(volume.path().join(path)).is_ok() {
        volume.remove(path);
    }
}

#[test]
fn every_snapshot_comes_back() {
    let site = Site::new(1);
    let histories = prop::collection::vec(prop::collection::vec(edit(), 1..25), 3..5);
    let cases = vsync_tests::asked("VSYNC_TEST_CASES", 6);
    let config = Config { cases, max_shrink_iters: 60, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&histories, |history| check(&site, &history));
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

fn check(site: &Site, history: &[Vec<Edit>]) -> Result<(), TestCaseError> {
    for entry in fs::read_dir(site.data.path()).unwrap() {
        site.data.remove(entry.unwrap().file_name());
    }
    let mut versions = Vec::new();
    for edits in history {
        edits.iter().for_each(|edit| apply(edit, &site.data));
        let summary = site.backup();
        versions.push((summary.text("snapshot_id").to_owned(), Tree::read(site.data.path())));
    }
    let used = Volume::new(0);
    fs::set_permissions(used.path(), fs::Permissions::from_mode(0o700)).unwrap();
    // Forwards, then back and forth over what is there.
    let last = versions.len() - 1;
    for (id, expected) in versions.iter().chain(versions.iter().rev()).chain([&versions[0], &versions[last]]) {
        site.restore(&[&format!("data@{id}"), "--verify"], used.path());
        compare(expected, &Tree::read(used.path()), &format!("over another version, {history:#?}"))?;
    }
    for (id, expected) in &versions {
        let fresh = vsync_tests::scratch();
        site.restore(&[&format!("data@{id}")], fresh.path());
        compare(expected, &Tree::read(fresh.path()), &format!("in an empty directory, {history:#?}"))?;
    }
    Ok(())
}

fn compare(expected: &Tree, found: &Tree, place: &str) -> Result<(), TestCaseError> {
    let differences = expected.differences(found);
    prop_assert!(differences.is_empty(), "{differences:#?}\n{place}");
    Ok(())
}
