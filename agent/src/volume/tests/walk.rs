//! Order and completeness of a walk, on trees that nobody changes.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use proptest::prelude::*;
use rustix::fs::{Mode, OFlags, mkdirat, openat};

use super::*;

fn any_name() -> impl Strategy<Value = Vec<u8>> {
    // Few and awkward bytes: collisions of prefixes are what the order is about.
    let byte = prop::sample::select(b"ab!.-\n\x1b\x01\x7f\xff\xc3".to_vec());
    prop::collection::vec(byte, 1..6).prop_filter("no dots", |name| name != b"." && name != b"..")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn entries_come_in_the_order_of_their_paths(
        paths in prop::collection::vec((prop::collection::vec(any_name(), 1..5), any::<bool>()), 0..40),
    ) {
        let root = scratch();
        for (names, is_file) in paths {
            let at = root.path().join(OsStr::from_bytes(&names.join(&b'/')));
            // Fails where a file is in the way; the tree is random anyway.
            let _ = fs::create_dir_all(at.parent().unwrap());
            let _ = if is_file { fs::write(at, "") } else { fs::create_dir(at) };
        }
        let found: Vec<_> = entries(root.path()).into_iter().map(|entry| entry.path).collect();
        prop_assert!(found.is_sorted(), "{found:?}");
        let mut expected = Vec::new();
        list(root.path(), &EntryPath::root(), &mut expected);
        expected.sort();
        prop_assert_eq!(found, expected);
    }
}

fn list(root: &Path, below: &EntryPath, into: &mut Vec<EntryPath>) {
    for entry in fs::read_dir(join(root, below)).unwrap() {
        let entry = entry.unwrap();
        let path = below.child(entry.file_name().as_bytes()).unwrap();
        if entry.file_type().unwrap().is_dir() {
            list(root, &path, into);
        }
        into.push(path);
    }
}

#[test]
fn an_entry_tells_what_the_system_tells() {
    let root = scratch();
    let file = write(root.path(), "dir/file", b"content");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o6755)).unwrap();
    symlink("/nowhere", root.path().join("link")).unwrap();
    let all = entries(root.path());
    let metadata = fs::metadata(&file).unwrap();
    let kinds: Vec<_> = all.iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds, [EntryKind::Directory, EntryKind::File, EntryKind::Symlink]);
    assert_eq!(all[1].mode, 0o6755);
    assert_eq!((all[1].size, all[0].size, all[2].size), (7, 0, 0));
    assert_eq!((all[1].inode, all[1].mtime.seconds), (metadata.ino(), metadata.mtime()));
    assert_eq!(all[2].target.as_deref(), Some(&b"/nowhere"[..]));
}

#[test]
fn a_tree_deeper_than_any_path_is_walked_and_removed() {
    const DEPTH: usize = 1100;
    let name = "d".repeat(255);
    let root = scratch();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut at = openat(rustix::fs::CWD, root.path(), flags, Mode::empty()).unwrap();
    for _ in 0..DEPTH {
        for child in [name.as_str(), "e"] {
            mkdirat(&at, child, Mode::RWXU).unwrap();
        }
        at = openat(&at, name.as_str(), flags, Mode::empty()).unwrap();
    }
    let (entries, defects) = walk(root.path());
    // From here on the path is longer than a snapshot can record.
    let recorded = vsync_protocol::limits::MAX_PATH_LEN / (name.len() + 1);
    assert_eq!(entries.len(), 2 * recorded);
    assert!(entries.iter().map(|entry| &entry.path).is_sorted());
    assert_eq!(defects.len(), 2, "{defects:?}");

    let target = Target::open(root.path()).unwrap();
    let deepest = entries.iter().max_by_key(|entry| entry.path.as_bytes().len()).unwrap();
    target.create_directory(&deepest.path.parent().unwrap().child(b"x").unwrap()).unwrap();
    target.remove(&path(&name)).unwrap();
    target.remove(&path("e")).unwrap();
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
}

#[test]
fn odd_names_are_found_and_opened() {
    let root = scratch();
    let names: [&[u8]; 7] =
        [b"new\nline", b"\x1b[31m", b"\xff\xfe", b"-rf", b"..x", &[b'n'; 255], "\u{202e}gnp".as_bytes()];
    for name in names {
        fs::write(root.path().join(OsStr::from_bytes(name)), name).unwrap();
    }
    for step in Walker::open(root.path()).unwrap() {
        let Step::Found(mut found) = step else { panic!("{step:?}") };
        let mut content = [0; 256];
        let len = found.open().unwrap().read_at(&mut content, 0).unwrap();
        assert_eq!(&content[..len], found.entry.path.name());
    }
    assert_eq!(entries(root.path()).len(), names.len());
}

#[test]
fn what_is_not_a_file_is_recorded_and_never_opened() {
    let root = scratch();
    run("mkfifo", &[root.path().join("fifo").to_str().unwrap()]);
    let _listener = UnixListener::bind(root.path().join("socket")).unwrap();
    let kinds: Vec<_> = entries(root.path()).iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds, [EntryKind::Fifo, EntryKind::Socket]);
    for step in Walker::open(root.path()).unwrap() {
        let Step::Found(mut found) = step else { panic!("{step:?}") };
        assert!(found.open().is_err());
    }
}

#[test]
fn a_fifo_that_takes_the_place_of_a_file_does_not_block() {
    let root = scratch();
    let file = write(root.path(), "file", b"");
    let Some(Step::Found(mut found)) = Walker::open(root.path()).unwrap().next() else { panic!() };
    fs::remove_file(&file).unwrap();
    assert_eq!(found.open().unwrap_err().reason, DefectReason::Vanished);
    run("mkfifo", &[file.to_str().unwrap()]);
    assert_eq!(found.open().unwrap_err().reason, DefectReason::Replaced);
    assert_eq!(found.load_metadata().unwrap_err().reason, DefectReason::Replaced);
    found.look_again().unwrap();
    assert_eq!(found.entry.kind, EntryKind::Fifo);
}

#[test]
fn opening_brings_the_entry_up_to_date() {
    let root = scratch();
    let file = write(root.path(), "file", b"short");
    let Some(Step::Found(mut found)) = Walker::open(root.path()).unwrap().next() else { panic!() };
    fs::write(&file, "rather longer").unwrap();
    let source = found.open().unwrap();
    assert_eq!((found.entry.size, source.size(), source.changed()), (13, 13, false));
}

#[test]
fn hard_links_are_told_by_inode() {
    let root = scratch();
    let file = write(root.path(), "a", b"");
    fs::hard_link(&file, root.path().join("b")).unwrap();
    let found: Vec<_> = Walker::open(root.path())
        .unwrap()
        .map(|step| match step {
            Step::Found(found) => (found.links, found.device, found.entry.inode),
            Step::Defect(defect) => panic!("{defect}"),
        })
        .collect();
    assert_eq!(found[0], found[1]);
    assert_eq!(found[0].0, 2);
}

#[test]
fn content_can_be_left_out() {
    let root = scratch();
    write(root.path(), "a/b/c", b"");
    write(root.path(), "d", b"");
    let mut walker = Walker::open(root.path()).unwrap();
    let mut seen = Vec::new();
    while let Some(step) = walker.next() {
        let Step::Found(found) = step else { panic!("{step:?}") };
        seen.push(found.entry.path);
        walker.skip_content();
    }
    assert_eq!(seen, [path("a"), path("d")]);
}

#[test]
fn nested_mounts_are_reported_and_not_entered() {
    if !is_root() {
        return;
    }
    let root = scratch();
    write(root.path(), "after", b"");
    let inside = root.path().join("inside");
    fs::create_dir(&inside).unwrap();
    let bound = write(root.path(), "bound", b"");
    run("mount", &["-t", "tmpfs", "tmpfs", inside.to_str().unwrap()]);
    run("mount", &["--bind", "/etc/passwd", bound.to_str().unwrap()]);
    fs::write(inside.join("foreign"), "").unwrap();
    let (entries, defects) = walk(root.path());
    let refused = Target::open(root.path()).unwrap().create_directory(&path("inside/new"));
    run("umount", &[inside.to_str().unwrap()]);
    run("umount", &[bound.to_str().unwrap()]);

    assert_eq!(entries.into_iter().map(|entry| entry.path).collect::<Vec<_>>(), [path("after")]);
    let defects: Vec<_> = defects.into_iter().map(|defect| (defect.path, defect.reason)).collect();
    assert_eq!(defects, [(path("bound"), DefectReason::MountPoint), (path("inside"), DefectReason::MountPoint)]);
    assert!(matches!(refused, Err(TargetError::Io { .. })), "{refused:?}");
}

#[test]
fn a_missing_volume_is_an_error_that_names_it() {
    let error = Walker::open(Path::new("/no/such/volume")).unwrap_err();
    assert_eq!(error.to_string(), "cannot open /no/such/volume");
}
