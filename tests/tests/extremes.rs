//! Files of a tebibyte that are nearly empty, offsets at the end of what the kernel can count, and ten thousand names of
//! one file (B02, B10).

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use vsync_tests::{Rng, Site, Tree, Volume, assert_same, scratch, shell};

const TIB: u64 = 1 << 40;

/// Where the data of a file lies, as the kernel says.
fn map(path: &Path) -> Vec<(u64, u64)> {
    let file = File::open(path).unwrap();
    let mut pieces = Vec::new();
    let mut at = 0;
    while let Ok(start) = seek(&file, SeekFrom::Data(at)) {
        at = seek(&file, SeekFrom::Hole(start)).unwrap();
        pieces.push((start, at));
    }
    pieces
}

/// Same length, same holes, same bytes between them, same space on the disk but for a hundredth.
#[track_caller]
fn same_sparse_file(source: &Path, restored: &Path) {
    let [a, b] = [source, restored].map(|path| fs::metadata(path).unwrap());
    assert_eq!(a.len(), b.len(), "{}", source.display());
    let pieces = map(source);
    assert_eq!(pieces, map(restored), "{}", source.display());
    assert!(a.blocks().abs_diff(b.blocks()) <= a.blocks() / 100, "{} and {} blocks", a.blocks(), b.blocks());
    let [a, b] = [source, restored].map(|path| File::open(path).unwrap());
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for (start, end) in pieces {
        let mut at = start;
        while at < end {
            let len = usize::try_from((end - at).min(1 << 20)).unwrap();
            a.read_exact_at(&mut left[..len], at).unwrap();
            b.read_exact_at(&mut right[..len], at).unwrap();
            assert!(left[..len] == right[..len], "{} differs after {at}", source.display());
            at += len as u64;
        }
    }
}

/// A file system in memory, gone with the guard. ext4 counts to 16 TiB only.
struct InMemory(tempfile::TempDir);

impl InMemory {
    fn new() -> Self {
        let it = Self(scratch());
        shell::run("mount", ["-t", "tmpfs", "-o", "size=512m,mode=755", "none", it.path()]);
        it
    }

    fn path(&self) -> &str {
        self.0.path().to_str().unwrap()
    }
}

impl Drop for InMemory {
    fn drop(&mut self) {
        drop(shell::attempt(std::process::Command::new("umount").args(["-l", self.path()])));
    }
}

fn sparse_files(volume: &Volume) {
    let mut rng = Rng::new(2);
    let islands = [rng.bytes(5 << 20), rng.bytes(70_000), rng.bytes(1)];
    volume.sparse("islands", TIB, &[(12_345, &islands[0]), (TIB / 2 + 7, &islands[1]), (TIB - 4096 * 3, &islands[2])]);
    volume.sparse("nothing", TIB, &[]);
    volume.sparse("hole-at-the-end", 9 << 30, &[(0, &islands[0])]);
    // Data, and a hole in the middle of what was one chunk.
    volume.random("punched", 12 << 20);
    let punched = File::options().write(true).open(volume.join("punched")).unwrap();
    fallocate(&punched, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 300 << 10, 64 << 10).unwrap();
}

#[test]
fn holes_of_a_tebibyte_come_back_as_holes() {
    let site = Site::new(1);
    sparse_files(&site.data);
    let there = scratch();
    for round in 0..2 {
        let summary = site.backup();
        assert!(summary.number("bytes_read") < 64 << 20, "holes were read: {summary:?}");
        // Into an empty directory, then over what is there.
        site.restore(&["data"], there.path());
        for name in ["islands", "nothing", "hole-at-the-end", "punched"] {
            same_sparse_file(&site.data.join(name), &there.path().join(name));
        }
        if round == 0 {
            site.data.patch("islands", TIB / 3, "a new island").patch("nothing", TIB - 1, "x");
        }
    }
}

/// Where no more can be counted to. Of the very last page tmpfs itself does not tell that it is there.
#[test]
fn the_largest_offset_comes_back() {
    let (from, to) = (InMemory::new(), InMemory::new());
    let site = Site::with(2, |realm| realm.client_with("far", &["far"], "").directory("far", Path::new(from.path())));
    let volume = Volume::at(Path::new(from.path()), 2);
    let end = i64::MAX.unsigned_abs() - 4096;
    volume.sparse("far", end, &[(0, b"first"), (end - 4, b"last")]);
    let far = site.realm.vsync("far");
    far.run(["backup", "far"]).success();
    let there = Path::new(to.path()).join("there");
    far.run(["restore", "far", "--to-path", there.to_str().unwrap()]).success();
    same_sparse_file(&volume.join("far"), &there.join("far"));
}

#[test]
fn ten_thousand_names_of_one_file_come_back() {
    let site = Site::new(3);
    let data = &site.data;
    data.random("first", 300_000);
    for number in 1..10_000 {
        data.link(format!("{:02}/{number}", number % 100), "first");
    }
    // Links of links, of devices, and of files whose other name is elsewhere.
    data.symlink("symlink", "first").link("a/symlink", "symlink").link("b/symlink", "symlink");
    data.fifo("fifo").link("a/fifo", "fifo").character_device("null", 1, 3).link("b/null", "null");
    let outside = Volume::new(4);
    outside.random("other-end", 70_000);
    fs::hard_link(outside.join("other-end"), data.join("one-end")).unwrap();
    fs::hard_link(outside.join("other-end"), data.join("a/second-end")).unwrap();
    data.write("empty", "").link("b/empty", "empty");
    site.backup();
    let there = scratch();
    site.restore(&["data"], there.path());
    assert_same(&Tree::read(data.path()), &Tree::read(there.path()));
    let names = |path: &str| fs::symlink_metadata(there.path().join(path)).unwrap().nlink();
    assert_eq!((names("first"), names("symlink"), names("one-end")), (10_000, 3, 2));
    // Half of them go, one becomes a file of its own, and another comes; over what is there.
    for number in 1..5_000 {
        data.remove(format!("{:02}/{number}", number % 100));
    }
    data.remove("77/7777").write("77/7777", "its own").link("new", "first").remove("a/second-end");
    site.backup();
    site.restore(&["data"], there.path());
    assert_same(&Tree::read(data.path()), &Tree::read(there.path()));
}
