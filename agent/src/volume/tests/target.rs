//! Writing: nothing half done is visible, and whatever is in the way gives way.

use std::os::unix::fs::{MetadataExt, symlink};
use std::sync::atomic::Ordering;

use super::*;

/// Restores `content` as the file `name`.
fn restore(target: &Target, name: &str, staging: Staging, content: &[u8]) -> Placed {
    let file = target.create_file(&path(name), staging).unwrap();
    file.write_at(content, 0).unwrap();
    file.finish(target, &Entry { size: content.len() as u64, ..file_entry(path(name)) }).unwrap()
}

fn count(root: &Path) -> usize {
    fs::read_dir(root).unwrap().count()
}

#[test]
fn a_file_appears_when_it_is_complete() {
    for staging in [Staging::Unnamed, Staging::Resumable] {
        let root = scratch();
        let target = Target::open(root.path()).unwrap();
        let file = target.create_file(&path("file"), staging).unwrap();
        file.write_at(b"content", 0).unwrap();
        assert!(!root.path().join("file").exists());
        let placed = file.finish(&target, &Entry { size: 7, ..file_entry(path("file")) }).unwrap();
        assert!(placed.unrestored.is_empty());
        let metadata = fs::metadata(root.path().join("file")).unwrap();
        assert_eq!((metadata.mode(), metadata.nlink(), metadata.mtime()), (0o100_644, 1, 1_000_000));
        assert_eq!((metadata.ino(), metadata.ctime()), (placed.state.inode, placed.state.ctime.seconds));
        assert_eq!(fs::read(root.path().join("file")).unwrap(), b"content");
        assert_eq!(count(root.path()), 1);
    }
}

#[test]
fn whatever_is_in_the_way_gives_way() {
    let elsewhere = scratch();
    write(elsewhere.path(), "canary", b"alive");
    for staging in [Staging::Unnamed, Staging::Resumable] {
        let root = scratch();
        let at = |name: &str| root.path().join(name);
        write(root.path(), "over-directory/deep/file", b"");
        symlink(elsewhere.path().join("canary"), at("over-link")).unwrap();
        run("mkfifo", &[at("over-fifo").to_str().unwrap()]);
        let other = write(root.path(), "other-name", b"other");
        fs::hard_link(&other, at("over-hard-link")).unwrap();
        let target = Target::open(root.path()).unwrap();
        let names = ["over-directory", "over-link", "over-fifo", "over-hard-link"];
        for name in names {
            restore(&target, name, staging, b"new");
            assert_eq!(fs::read(at(name)).unwrap(), b"new");
            assert!(fs::symlink_metadata(at(name)).unwrap().is_file());
        }
        assert_eq!(fs::read(&other).unwrap(), b"other");
        assert_eq!(count(root.path()), names.len() + 1);

        // And the other way round.
        let link = Entry { kind: EntryKind::Symlink, target: Some(b"x".to_vec()), ..file_entry(path("over-link")) };
        target.create_node(&link).unwrap();
        target.create_directory(&path("over-fifo")).unwrap();
        target.create_directory(&path("over-fifo/inner")).unwrap();
        target.create_link(&path("over-directory"), &path("other-name")).unwrap();
        target.create_link(&path("over-directory"), &path("other-name")).unwrap();
        assert!(at("over-fifo/inner").is_dir());
        assert_eq!(fs::read_link(at("over-link")).unwrap(), Path::new("x"));
        assert_eq!(fs::metadata(&other).unwrap().nlink(), 2);
        assert_eq!(count(root.path()), names.len() + 1);
    }
    assert_eq!(fs::read(elsewhere.path().join("canary")).unwrap(), b"alive");
}

#[test]
fn file_systems_without_unnamed_files_do_as_well() {
    let root = scratch();
    let target = Target::open(root.path()).unwrap();
    target.named_only.store(true, Ordering::Relaxed);
    target.create_file(&path("file"), Staging::Unnamed).unwrap().write_at(b"left behind", 0).unwrap();
    restore(&target, "file", Staging::Unnamed, b"content");
    assert_eq!(fs::read(root.path().join("file")).unwrap(), b"content");
    assert_eq!(count(root.path()), 1);
}

#[test]
fn an_interrupted_file_is_found_again() {
    let root = scratch();
    let target = Target::open(root.path()).unwrap();
    let file = target.create_file(&path("file"), Staging::Resumable).unwrap();
    assert!(!file.is_resumed());
    file.write_at(b"half", 0).unwrap();
    drop(file);
    let left = entries(root.path()).remove(0).path;
    assert!(is_partial_name(left.name()), "{left}");

    let file = target.create_file(&path("file"), Staging::Resumable).unwrap();
    assert!(file.is_resumed());
    let mut content = [0; 10];
    assert_eq!((file.read_at(&mut content, 0).unwrap(), file.state().unwrap().size), (4, 4));
    assert_eq!(&content[..4], b"half");
    file.discard(&target).unwrap();
    assert_eq!(count(root.path()), 0);
}

#[test]
fn a_partial_file_that_may_be_someone_elses_is_not_used() {
    let root = scratch();
    let target = Target::open(root.path()).unwrap();
    let file = target.create_file(&path("file"), Staging::Resumable).unwrap();
    let partial = join(root.path(), &entries(root.path())[0].path);
    file.discard(&target).unwrap();
    let plants: [&dyn Fn(); 4] = [
        &|| fs::write(&partial, "open to others").unwrap(),
        &|| symlink("/etc/passwd", &partial).unwrap(),
        &|| run("mkfifo", &[partial.to_str().unwrap()]),
        &|| fs::create_dir_all(partial.join("deep")).unwrap(),
    ];
    for plant in plants {
        plant();
        let file = target.create_file(&path("file"), Staging::Resumable).unwrap();
        assert!(!file.is_resumed());
        assert_eq!(file.state().unwrap().size, 0);
        file.discard(&target).unwrap();
    }
}

#[test]
fn a_file_is_updated_in_place() {
    let root = scratch();
    let at = write(root.path(), "file", &[1; 100_000]);
    let inode = fs::metadata(&at).unwrap().ino();
    let target = Target::open(root.path()).unwrap();
    let file = target.update_file(&path("file")).unwrap().unwrap();
    std::thread::scope(|scope| {
        for part in 0..4 {
            let file = &file;
            scope.spawn(move || file.write_at(&[part; 100], u64::from(part) * 1000).unwrap());
        }
    });
    file.punch_hole(8192..81_920).unwrap();
    file.punch_hole(99_000..u64::MAX).unwrap();
    file.punch_hole(200_000..300_000).unwrap();
    file.set_len(150_000).unwrap();
    file.sync().unwrap();
    assert_eq!(file.finish(&target, &Entry { size: 150_000, ..file_entry(path("file")) }).unwrap().state.inode, inode);

    let mut expected = vec![1; 100_000];
    (0..4).for_each(|part| expected[part * 1000..][..100].fill(u8::try_from(part).unwrap()));
    expected[8192..81_920].fill(0);
    expected[99_000..].fill(0);
    expected.resize(150_000, 0);
    assert_eq!(fs::read(&at).unwrap(), expected);
    let metadata = fs::metadata(&at).unwrap();
    assert!(metadata.blocks() * 512 < 50_000, "{}", metadata.blocks());
    assert_eq!(metadata.mtime(), 1_000_000);
}

#[test]
fn what_is_no_file_of_one_name_is_not_updated_in_place() {
    let root = scratch();
    let file = write(root.path(), "a", b"");
    fs::hard_link(&file, root.path().join("b")).unwrap();
    symlink("a", root.path().join("link")).unwrap();
    run("mkfifo", &[root.path().join("fifo").to_str().unwrap()]);
    fs::create_dir(root.path().join("directory")).unwrap();
    let target = Target::open(root.path()).unwrap();
    for name in ["a", "b", "link", "fifo", "directory", "missing"] {
        assert!(target.update_file(&path(name)).unwrap().is_none(), "{name}");
    }
}

#[test]
fn many_directories_in_any_order() {
    let root = scratch();
    let target = Target::open(root.path()).unwrap();
    let long = "n".repeat(200);
    for outer in 0..300 {
        target.create_directory(&path(format!("{long}{outer}"))).unwrap();
        target.create_directory(&path(format!("{long}{outer}/inner"))).unwrap();
    }
    for outer in (0..300).rev() {
        restore(&target, &format!("{long}{outer}/inner/file"), Staging::Unnamed, b"");
    }
    assert_eq!(entries(root.path()).len(), 900);
    // A directory that was replaced is not written to through the old handle.
    let first = format!("{long}0");
    target.remove(&path(&first)).unwrap();
    target.remove(&path(&first)).unwrap();
    let error = target.create_directory(&path(format!("{first}/inner/new"))).unwrap_err();
    assert!(matches!(error, TargetError::Io { .. }), "{error}");
    let scanned = target.scan().unwrap().filter(|step| matches!(step, Step::Found(_))).count();
    assert_eq!(scanned, 897);
}

#[test]
fn the_root_itself_is_never_created_or_removed() {
    let root = scratch();
    let target = Target::open(root.path()).unwrap();
    target.create_directory(&EntryPath::root()).unwrap();
    assert!(target.remove(&EntryPath::root()).is_err());
    assert!(target.create_link(&path("link"), &EntryPath::root()).is_err());
    assert!(root.path().is_dir());
}

#[test]
fn a_full_file_system_is_told_apart() {
    if !is_root() {
        return;
    }
    let root = scratch();
    run("mount", &["-t", "tmpfs", "-o", "size=64k", "tmpfs", root.path().to_str().unwrap()]);
    let outcome = (|| {
        let target = Target::open(root.path())?;
        assert!(target.free_bytes()? <= 64 << 10);
        let file = target.create_file(&path("file"), Staging::Unnamed)?;
        file.write_at(&vec![1; 1 << 20], 0)
    })();
    run("umount", &["-l", root.path().to_str().unwrap()]);
    assert!(matches!(outcome, Err(TargetError::NoSpace { .. })), "{outcome:?}");
}
