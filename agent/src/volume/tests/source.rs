//! Reading a file: holes, changes, the page cache.

use std::fs::File;
use std::io::IoSliceMut;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::{Advice, fadvise};
use rustix::io::{ReadWriteFlags, preadv2};

use super::*;

fn open(root: &Path) -> SourceFile {
    let Some(Step::Found(mut found)) = Walker::open(root).unwrap().next() else { panic!("no file") };
    found.open().unwrap()
}

fn ranges(root: &Path) -> Vec<Range<u64>> {
    open(root).data_ranges().collect::<Result<_, _>>().unwrap()
}

#[test]
fn data_is_told_from_holes() {
    let root = scratch();
    let file = File::create(root.path().join("sparse")).unwrap();
    assert_eq!(ranges(root.path()), []);
    file.set_len(1 << 40).unwrap();
    assert_eq!(ranges(root.path()), []);
    file.write_at(&[1; 4096], 1 << 30).unwrap();
    file.write_at(&[1; 4096], (1 << 40) - 4096).unwrap();
    assert_eq!(ranges(root.path()), [1 << 30..(1 << 30) + 4096, (1 << 40) - 4096..1 << 40]);
    file.set_len((1 << 40) - 1000).unwrap();
    assert_eq!(ranges(root.path()).last(), Some(&((1 << 40) - 4096..(1 << 40) - 1000)));
}

#[test]
fn ranges_stay_within_the_size_at_opening() {
    let root = scratch();
    let file = write(root.path(), "file", &[1; 10_000]);
    let source = open(root.path());
    fs::write(&file, [1; 50_000]).unwrap();
    assert_eq!(source.data_ranges().map(Result::unwrap).collect::<Vec<_>>(), vec![0..10_000]);
    fs::write(&file, "").unwrap();
    assert!(source.data_ranges().map(Result::unwrap).all(|range| range.end <= 10_000));
    assert_eq!(source.read_at(&mut [0; 100], 0).unwrap(), 0);
    assert!(source.changed());
}

#[test]
fn a_change_shows() {
    let root = scratch();
    let path = write(root.path(), "file", b"one");
    let source = open(root.path());
    assert!(!source.changed());
    std::thread::sleep(std::time::Duration::from_millis(20));
    fs::write(&path, "two").unwrap();
    assert!(source.changed());
}

fn is_cached(file: &File, offset: u64) -> bool {
    preadv2(file, &mut [IoSliceMut::new(&mut [0])], offset, ReadWriteFlags::NOWAIT).is_ok()
}

/// Which pieces of 128 KiB have their middle in the page cache.
fn cached(file: &File, size: usize) -> Vec<bool> {
    // A look at one page fetches it, but then no others: elsewhere than anyone looks first.
    fadvise(file, 0, None, Advice::Random).unwrap();
    (0..size as u64).step_by(128 << 10).map(|piece| is_cached(file, piece + (64 << 10))).collect()
}

#[test]
fn the_page_cache_is_left_as_it_was() {
    const SIZE: usize = 4 << 20;
    // On disk: what a tmpfs holds is always cached.
    let root = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let content: Vec<u8> = (0..SIZE as u32 / 4).flat_map(u32::to_le_bytes).collect();
    let path = write(root.path(), "file", &content);
    let file = File::open(&path).unwrap();
    file.sync_all().unwrap();
    // A page that is still being fetched, as after a look at it, cannot be dropped: the read waits for it.
    let forget = || {
        file.read_at(&mut vec![0; SIZE], 0).unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    };
    let read = |at: usize, len: usize| {
        let source = open(root.path());
        source.advise();
        let mut buffer = vec![0; len];
        let wanted = len.min(SIZE - at);
        assert_eq!(source.read_sparing(&mut buffer, at as u64).unwrap(), wanted);
        assert_eq!(buffer[..wanted], content[at..at + wanted]);
    };
    fadvise(&file, 0, None, Advice::Random).unwrap();
    forget();
    if cached(&file, SIZE).contains(&true) {
        return; // a file system that keeps it
    }
    // All of it in use, nothing, and every other mebibyte.
    let pieces = SIZE / (128 << 10);
    for used in [vec![true; pieces], vec![false; pieces], (0..pieces).map(|piece| piece / 8 % 2 == 0).collect()] {
        let left_as_it_was = || {
            forget();
            for (piece, _) in used.iter().enumerate().filter(|(_, used)| **used) {
                file.read_at(&mut vec![0; 128 << 10], (piece as u64) * (128 << 10)).unwrap();
            }
            read(0, SIZE + 5000);
            let left = cached(&file, SIZE);
            assert!(left.iter().zip(&used).all(|(left, used)| left >= used), "what is in use stays: {left:?}");
            left == used
        };
        // A disk that answers at once lets a piece seem cached that was not: seen once in some thousand pieces.
        assert!((0..10).any(|_| left_as_it_was()), "what was not cached is dropped again");
    }
    read(SIZE - 5000, 10_000);
}
