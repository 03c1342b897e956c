//! Another process changes the tree meanwhile, on purpose.

use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fd::OwnedFd;
use rustix::fs::{RenameFlags, renameat_with};

use super::*;

/// B06, B13: how long each race lasts. VSYNC_RACE_SECONDS asks for more.
fn duration() -> Duration {
    Duration::from_secs(std::env::var("VSYNC_RACE_SECONDS").map_or(3, |text| text.parse().unwrap()))
}

/// Two names in one directory, to be swapped. The directory is held, so that the swapping
/// itself is not led astray.
struct Swap(OwnedFd, &'static str, &'static str);

impl Swap {
    fn new(directory: &Path, a: &'static str, b: &'static str) -> Self {
        Self(fs::File::open(directory).unwrap().into(), a, b)
    }
}

/// Runs `work` over and over while threads keep swapping.
fn while_swapping(swaps: &[Swap], mut work: impl FnMut()) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for Swap(directory, a, b) in swaps {
            let done = &done;
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    // Fails while one of them does not exist.
                    let _ = renameat_with(directory, *a, directory, *b, RenameFlags::EXCHANGE);
                }
            });
        }
        let _stop = Stop(&done);
        let end = Instant::now() + duration();
        while Instant::now() < end {
            work();
        }
    });
}

/// Ends the other threads, also when a test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A volume in which a directory and a file may turn into links to `outside` at any time.
fn trap(volume: &Path, outside: &Path) -> [Swap; 2] {
    write(volume, "dir/sub/file", b"inside");
    write(volume, "dir/file", b"inside");
    symlink(outside, volume.join("dir/link-to-dir")).unwrap();
    symlink(outside, volume.join("link")).unwrap();
    symlink(outside.join("file"), volume.join("dir/link-to-file")).unwrap();
    [Swap::new(volume, "dir", "link"), Swap::new(&volume.join("dir"), "file", "link-to-file")]
}

#[test]
fn a_walk_never_leaves_the_volume() {
    let (volume, outside) = (scratch(), scratch());
    for name in ["file", "sub/file", "canary"] {
        write(outside.path(), name, b"CANARY");
    }
    let (mut read, mut defects) = (0, 0);
    while_swapping(&trap(volume.path(), outside.path()), || {
        for step in Walker::open(volume.path()).unwrap() {
            let Step::Found(mut found) = step else {
                defects += 1;
                continue;
            };
            assert_ne!(found.entry.path.name(), b"canary");
            let _ = found.load_metadata();
            if let Ok(source) = found.open() {
                let mut content = [0; 6];
                source.read_at(&mut content, 0).unwrap();
                assert_eq!(&content, b"inside");
                read += 1;
            }
        }
    });
    assert!(read > 0 && defects > 0, "{read} files read, {defects} defects");
}

#[test]
fn a_restore_never_leaves_the_volume() {
    let (volume, outside) = (scratch(), scratch());
    for name in ["file", "sub/file"] {
        write(outside.path(), name, b"CANARY");
    }
    let before = restorable(outside.path());
    let (mut done, mut refused) = (0, 0);
    while_swapping(&trap(volume.path(), outside.path()), || {
        let target = Target::open(volume.path()).unwrap();
        for outcome in attack(&target) {
            match outcome {
                Ok(()) => done += 1,
                Err(_) => refused += 1,
            }
        }
    });
    assert_eq!(restorable(outside.path()), before);
    assert_eq!(fs::read(outside.path().join("file")).unwrap(), b"CANARY");
    assert!(done > 0 && refused > 0, "{done} done, {refused} refused");
}

/// Every way to write, at places that may lead outside.
fn attack(target: &Target) -> Vec<Result<(), TargetError>> {
    let replace = |name: &str, staging| {
        let file = target.create_file(&path(name), staging)?;
        file.write_at(b"restored", 0)?;
        file.finish(target, &file_entry(path(name))).map(drop)
    };
    let update = |name: &str| match target.update_file(&path(name))? {
        Some(file) => {
            file.write_at(b"restored", 0)?;
            file.finish(target, &file_entry(path(name))).map(drop)
        }
        None => Ok(()),
    };
    let fifo = Entry { kind: EntryKind::Fifo, ..file_entry(path("dir/sub/fifo")) };
    let directory = Entry { kind: EntryKind::Directory, mode: 0o700, ..file_entry(path("dir/sub")) };
    vec![
        update("dir/file"),
        update("dir/sub/file"),
        replace("dir/sub/new", Staging::Unnamed),
        replace("dir/sub/large", Staging::Resumable),
        target.create_directory(&path("dir/sub/made")),
        target.create_node(&fifo).map(drop),
        target.create_link(&path("dir/sub/linked"), &path("dir/file")),
        target.apply_metadata(&directory).map(drop),
        target.apply_metadata(&file_entry(path("dir/file"))).map(drop),
        target.remove(&path("dir/sub/made")),
    ]
}

#[test]
fn removing_a_tree_never_leaves_the_volume() {
    let (volume, outside) = (scratch(), scratch());
    write(outside.path(), "keep/file", b"");
    symlink(outside.path(), volume.path().join("link")).unwrap();
    let swaps = [Swap::new(volume.path(), "tree", "link")];
    let (mut removed, mut refused) = (0, 0);
    while_swapping(&swaps, || {
        // Built elsewhere: while it is swapped, its names may lead the test itself outside.
        let new = volume.path().join("new");
        write(&new, "keep/file", b"");
        let _ = fs::rename(&new, volume.path().join("tree"));
        match Target::open(volume.path()).unwrap().remove(&path("tree")) {
            Ok(()) => removed += 1,
            Err(_) => refused += 1,
        }
        let _ = fs::remove_dir_all(&new);
        let _ = symlink(outside.path(), volume.path().join("link"));
    });
    assert!(outside.path().join("keep/file").exists());
    assert!(removed > 0, "{removed} removed, {refused} refused");
}

#[test]
fn trees_that_vanish_are_reported() {
    let volume = scratch();
    let done = AtomicBool::new(false);
    let mut defects = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for name in 0..20 {
                    write(volume.path(), &format!("d/{name}/e/file"), b"");
                }
                fs::remove_dir_all(volume.path().join("d")).unwrap();
            }
        });
        let _stop = Stop(&done);
        let end = Instant::now() + duration();
        while Instant::now() < end {
            defects += walk(volume.path()).1.len();
        }
    });
    assert!(defects > 0);
}

#[test]
fn a_deep_tree_that_is_moved_ends_the_walk_there_and_only_there() {
    let volume = scratch();
    let deep: Vec<_> = (0..200).map(|_| "d").collect();
    write(volume.path(), &format!("{}/file", deep.join("/")), b"");
    write(volume.path(), "z", b"");
    let middle = deep[..30].join("/");
    let mut walker = Walker::open(volume.path()).unwrap();
    let mut last = None;
    for step in walker.by_ref() {
        let Step::Found(found) = step else { panic!("{step:?}") };
        if found.entry.path.name() == b"file" {
            last = Some(found.entry.path);
            break;
        }
    }
    assert_eq!(last.unwrap().components().count(), 201);
    fs::rename(volume.path().join(&middle), volume.path().join("moved")).unwrap();
    let rest: Vec<_> = walker.collect();
    let [Step::Defect(defect), Step::Found(found)] = &rest[..] else { panic!("{rest:?}") };
    assert_eq!((defect.reason, defect.path.components().count()), (DefectReason::Moved, 29));
    assert_eq!(found.entry.path, path("z"));
}
