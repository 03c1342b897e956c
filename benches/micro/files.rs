//! The volume's side: finding out what there is, and writing what is restored.

use std::fs;
use std::path::Path;

use tempfile::TempDir;
use vsync::volume::{Staging, Step, Target, Walker};
use vsync_benches::{Amount, Harness};
use vsync_protocol::tree::{Entry, EntryKind, EntryPath, Time};

/// Files of a walk, so many to a directory.
const WALKED: usize = 20_000;
const PER_DIRECTORY: usize = 200;

/// Files restored in one sample, and their size. More would be told apart only by what the
/// file system remembers of files deleted before.
const RESTORED: usize = 1000;
const SMALL: usize = 16 << 10;

/// One large file, and what of it is written at once.
const LARGE: usize = 256 << 20;
const CHUNK: usize = 64 << 10;

pub(crate) fn run(harness: &Harness) {
    if harness.wants("walk") {
        let volume = scratch();
        for number in 0..WALKED {
            let directory = volume.path().join(format!("{:04}", number / PER_DIRECTORY));
            fs::create_dir_all(&directory).expect("a directory");
            fs::write(directory.join(format!("{number:08}")), "x").expect("a file");
        }
        harness.run("walk", Amount::Items(WALKED), || walk(volume.path()));
    }
    if harness.wants("restore") {
        let content = crate::noise(3, CHUNK);
        // Deleted at the end: a file system that forgets many files is slow to make new ones.
        let mut kept = Vec::new();
        harness.run_with("restore/small files", Amount::Items(RESTORED), scratch, |target| {
            restore_small(target.path(), &content[..SMALL]);
            kept.push(target);
        });
        harness.run_with("restore/large file", Amount::Bytes(LARGE), scratch, |target| {
            restore_large(target.path(), &content);
            target
        });
    }
}

fn scratch() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

fn walk(volume: &Path) -> usize {
    let walker = Walker::open(volume).expect("a volume");
    walker.filter(|step| matches!(step, Step::Found(found) if found.entry.kind == EntryKind::File)).count()
}

/// Everything but the final sync, which depends on the disk alone.
fn restore_small(path: &Path, content: &[u8]) {
    let target = Target::open(path).expect("a target");
    for number in 0..RESTORED {
        let entry = entry(&format!("file-{number:08}"), content.len());
        let file = target.create_file(&entry.path, Staging::Unnamed).expect("a new file");
        file.write_at(content, 0).expect("room");
        file.finish(&target, &entry).expect("its name");
    }
}

fn restore_large(path: &Path, chunk: &[u8]) {
    let target = Target::open(path).expect("a target");
    let entry = entry("large", LARGE);
    let file = target.create_file(&entry.path, Staging::Resumable).expect("a new file");
    for at in (0..LARGE as u64).step_by(chunk.len()) {
        file.write_at(chunk, at).expect("room");
    }
    file.finish(&target, &entry).expect("its name");
}

fn entry(name: &str, size: usize) -> Entry {
    let time = Time { seconds: 1_700_000_000, nanos: 1 };
    Entry {
        path: EntryPath::new(name).expect("a path"),
        kind: EntryKind::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: time,
        ctime: time,
        inode: 1,
        size: size as u64,
        target: None,
        device: None,
        xattrs: None,
    }
}
