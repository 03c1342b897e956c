//! Tests of the whole room: trees are walked, copied, and walked again.

mod hostile;
mod metadata;
mod source;
mod target;
mod walk;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use vsync_protocol::tree::{Entry, EntryKind, EntryPath, Time};

use super::*;

/// All entries, complete, and the defects of a walk.
fn walk(root: &Path) -> (Vec<Entry>, Vec<Defect>) {
    let (mut entries, mut defects) = (Vec::new(), Vec::new());
    for step in Walker::open(root).unwrap() {
        match step {
            Step::Found(mut found) => {
                defects.extend(found.load_metadata().err());
                entries.push(found.entry);
            }
            Step::Defect(defect) => defects.push(defect),
        }
    }
    (entries, defects)
}

/// The entries of a tree that must be whole.
fn entries(root: &Path) -> Vec<Entry> {
    let (entries, defects) = walk(root);
    assert!(defects.is_empty(), "{defects:?}");
    entries
}

/// What a restore must bring back: all but what names the inode.
fn restorable(root: &Path) -> Vec<Entry> {
    let mut root_and_all = vec![Walker::open(root).unwrap().root().clone()];
    root_and_all.extend(entries(root));
    root_and_all.into_iter().map(|entry| Entry { ctime: Time::default(), inode: 0, ..entry }).collect()
}

/// Copies a tree as a backup and a restore of it would. Returns what was not restored.
fn copy(from: &Path, to: &Path) -> Vec<Unrestored> {
    let target = Target::open(to).unwrap();
    let walker = Walker::open(from).unwrap();
    let (mut unrestored, mut directories) = (Vec::new(), vec![walker.root().clone()]);
    let mut first_names = HashMap::new();
    for step in walker {
        let Step::Found(mut found) = step else { panic!("{step:?}") };
        found.load_metadata().unwrap();
        let (path, inode) = (found.entry.path.clone(), (found.device, found.entry.inode));
        if found.entry.kind == EntryKind::Directory {
            target.create_directory(&path).unwrap();
            directories.push(found.entry);
        } else if found.links > 1 && first_names.contains_key(&inode) {
            target.create_link(&path, &first_names[&inode]).unwrap();
        } else {
            first_names.insert(inode, path);
            unrestored.extend(copy_entry(&target, &mut found));
        }
    }
    for directory in directories.iter().rev() {
        unrestored.extend(target.apply_metadata(directory).unwrap().unrestored);
    }
    target.sync().unwrap();
    unrestored
}

fn copy_entry(target: &Target, found: &mut Found) -> Vec<Unrestored> {
    if found.entry.kind != EntryKind::File {
        return target.create_node(&found.entry).unwrap();
    }
    let source = found.open().unwrap();
    let file = target.create_file(&found.entry.path, Staging::Unnamed).unwrap();
    for range in source.data_ranges() {
        let range = range.unwrap();
        let mut buffer = vec![0; usize::try_from(range.end - range.start).unwrap()];
        assert_eq!(source.read_at(&mut buffer, range.start).unwrap(), buffer.len());
        file.write_at(&buffer, range.start).unwrap();
    }
    file.set_len(source.size()).unwrap();
    file.finish(target, &found.entry).unwrap().unrestored
}

fn path(bytes: impl AsRef<[u8]>) -> EntryPath {
    EntryPath::new(bytes.as_ref()).unwrap()
}

fn join(root: &Path, path: &EntryPath) -> PathBuf {
    root.join(OsStr::from_bytes(path.as_bytes()))
}

fn file_entry(path: EntryPath) -> Entry {
    Entry {
        path,
        kind: EntryKind::File,
        mode: 0o644,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        mtime: Time { seconds: 1_000_000, nanos: 1 },
        ctime: Time::default(),
        inode: 0,
        size: 0,
        target: None,
        device: None,
        xattrs: None,
    }
}

fn run(program: &str, args: &[&str]) {
    assert!(Command::new(program).args(args).status().unwrap().success(), "{program} {args:?}");
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn write(root: &Path, name: &str, content: &[u8]) -> PathBuf {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, content).unwrap();
    path
}
