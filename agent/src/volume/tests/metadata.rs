//! Metadata of every kind comes back.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, chownat, lsetxattr, makedev,
    mknodat, utimensat,
};
use vsync_protocol::tree::Xattr;

use super::*;

fn set_mtime(path: &Path, seconds: i64, nanos: i64) {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanos },
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn chown(path: &Path, uid: u32, gid: u32) {
    chownat(CWD, path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A tree with one of everything, and then with all of them at once.
fn motley(root: &Path) {
    let file = write(root, "file", b"content");
    chown(&file, u32::MAX - 1, u32::MAX - 1);
    set_xattr(&file, "user.empty", b"");
    set_xattr(&file, "user.binary", b"\0\xff\n");
    set_xattr(&file, "user.large", &[1; 1000]);
    set_xattr(&file, "trusted.overlay.opaque", b"y");
    set_xattr(&file, "security.capability", CAPABILITY);
    run("setfacl", &["-m", "u:1234:rwx,g:77:r,m:rw", file.to_str().unwrap()]);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o7764)).unwrap();
    set_mtime(&file, -1_000_000_000, 123_456_789);
    fs::hard_link(&file, root.join("zz-link")).unwrap();

    let directory = root.join("directory");
    write(root, "directory/inner/empty", b"");
    run("setfacl", &["-d", "-m", "u:1234:rwx", directory.to_str().unwrap()]);
    write(root, "directory/inherits", b"");
    chown(&directory, 7, 9);
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o3750)).unwrap();
    set_xattr(&directory, "trusted.x", b"1");

    let link = root.join("link");
    symlink("/nowhere/\u{fc}", &link).unwrap();
    fs::hard_link(&link, root.join("linked-link")).unwrap();
    chown(&link, 5, 6);
    set_xattr(&link, "trusted.on-link", b"2");
    set_mtime(&link, 1, 999_999_999);

    run("mkfifo", &["-m", "0640", root.join("fifo").to_str().unwrap()]);
    drop(UnixListener::bind(root.join("socket")).unwrap());
    for (name, kind, number) in
        [("null", FileType::CharacterDevice, makedev(1, 3)), ("disk", FileType::BlockDevice, makedev(4000, 1_000_000))]
    {
        mknodat(CWD, root.join(name), kind, Mode::from_raw_mode(0o660), number).unwrap();
        chown(&root.join(name), 0, 6);
        set_mtime(&root.join(name), 5_000_000_000, 1);
    }
    for mode in 0..0o10 {
        let file = write(root, &format!("modes/{mode}"), b"");
        fs::set_permissions(&file, fs::Permissions::from_mode(mode * 0o1111)).unwrap();
    }
    for (name, mtime) in [("directory/inner", -5), ("directory", 77), ("modes", 1_700_000_000)] {
        set_mtime(&root.join(name), mtime, 42);
    }
    set_xattr(root, "user.root", b"3");
    fs::set_permissions(root, fs::Permissions::from_mode(0o1711)).unwrap();
    chown(root, 999, 998);
    set_mtime(root, 12_345, 6789);
}

#[test]
fn everything_comes_back() {
    if !is_root() {
        return;
    }
    let (from, to) = (scratch(), scratch());
    motley(from.path());
    let unrestored = copy(from.path(), to.path());
    assert!(unrestored.is_empty(), "{unrestored:?}");
    let (expected, restored) = (restorable(from.path()), restorable(to.path()));
    assert!(
        expected
            .iter()
            .any(|entry| { entry.xattrs.iter().flatten().any(|xattr| xattr.name == b"system.posix_acl_default") })
    );
    assert_eq!(restored.len(), expected.len());
    for (restored, expected) in restored.iter().zip(&expected) {
        assert_eq!(restored, expected);
    }
    let inode = |name: &str| fs::symlink_metadata(to.path().join(name)).unwrap().ino();
    assert_eq!(inode("file"), inode("zz-link"));
    assert_eq!(inode("link"), inode("linked-link"));
    assert_eq!(fs::read(to.path().join("file")).unwrap(), b"content");

    // Once more, over what is there: new inodes, the same tree, nothing left over.
    let unrestored = copy(from.path(), to.path());
    assert!(unrestored.is_empty(), "{unrestored:?}");
    assert_eq!(restorable(to.path()), expected);
}

#[test]
fn equal_metadata_is_not_touched() {
    if !is_root() {
        return;
    }
    let root = scratch();
    motley(root.path());
    let before = entries(root.path());
    let target = Target::open(root.path()).unwrap();
    for entry in &before {
        assert!(target.apply_metadata(entry).unwrap().unrestored.is_empty());
    }
    // The times of the inodes would tell.
    assert_eq!(entries(root.path()), before);
}

#[test]
fn attributes_that_are_too_many_are_removed() {
    let root = scratch();
    let file = write(root.path(), "file", b"");
    set_xattr(&file, "user.kept", b"old");
    set_xattr(&file, "user.extraneous", b"");
    run("setfacl", &["-m", "u:1234:rwx", file.to_str().unwrap()]);
    let kept = Xattr { name: b"user.kept".to_vec(), value: b"new".to_vec() };
    let wanted = Entry { xattrs: Some(vec![kept]), mode: 0o751, ..file_entry(path("file")) };
    let target = Target::open(root.path()).unwrap();
    let unrestored = target.apply_metadata(&wanted).unwrap().unrestored;
    assert!(unrestored.is_empty(), "{unrestored:?}");
    let now = entries(root.path()).remove(0);
    assert_eq!((now.xattrs, now.mode, now.mtime), (wanted.xattrs, wanted.mode, wanted.mtime));
}

#[test]
fn what_cannot_be_set_is_listed() {
    let root = scratch();
    write(root.path(), "file", b"");
    let odd = Xattr { name: b"nonsense.name".to_vec(), value: vec![] };
    let wanted = Entry {
        uid: u32::MAX,
        mode: 0o4755,
        mtime: Time { seconds: i64::MAX, nanos: 0 },
        xattrs: Some(vec![odd.clone()]),
        ..file_entry(path("file"))
    };
    let target = Target::open(root.path()).unwrap();
    let unrestored = target.apply_metadata(&wanted).unwrap().unrestored;
    let what: Vec<_> = unrestored.iter().map(|unrestored| unrestored.what.clone()).collect();
    assert_eq!(what, [Attribute::Owner, Attribute::Xattr(odd.name), Attribute::Mode, Attribute::Mtime]);
    // Not set-id for someone whom it does not belong to.
    assert_eq!(entries(root.path())[0].mode, 0o755);
    assert!(unrestored[0].to_string().starts_with("\"file\" lacks its owner: "), "{}", unrestored[0]);
}

/// Runs the test of that name as a user without privileges, in a process of its own.
fn unprivileged(test: &str) {
    let to = scratch();
    chown(to.path(), 1234, 1234);
    fs::set_permissions(to.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let binary = to.path().join("test");
    fs::copy(std::env::current_exe().unwrap(), &binary).unwrap();
    let outcome = Command::new("setpriv")
        .args(["--reuid=1234", "--regid=1234", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"])
        .arg(binary)
        .args(["--exact", test])
        .env("TMPDIR", to.path())
        .output()
        .unwrap();
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stdout));
    assert!(String::from_utf8_lossy(&outcome.stdout).contains("1 passed"));
}

/// As root it only starts itself once more as somebody else.
#[test]
fn without_privileges_the_rest_comes_back() {
    if is_root() {
        return unprivileged("volume::tests::metadata::without_privileges_the_rest_comes_back");
    }
    let root = scratch();
    let target = Target::open(root.path()).unwrap();
    let xattrs = ["security.capability", "trusted.x", "user.x"];
    let value = CAPABILITY.to_vec();
    let xattrs = xattrs.iter().map(|name| Xattr { name: name.as_bytes().to_vec(), value: value.clone() }).collect();
    let entry = Entry { uid: 0, mode: 0o4750, xattrs: Some(xattrs), ..file_entry(path("file")) };
    let file = target.create_file(&entry.path, Staging::Unnamed).unwrap();
    file.write_at(b"content", 0).unwrap();
    let placed = file.finish(&target, &entry).unwrap();
    let what: Vec<_> = placed.unrestored.into_iter().map(|unrestored| unrestored.what).collect();
    let xattr = |name: &str| Attribute::Xattr(name.as_bytes().to_vec());
    assert_eq!(what, [Attribute::Owner, xattr("security.capability"), xattr("trusted.x"), Attribute::Mode]);
    let device = Entry { kind: EntryKind::CharDevice, device: Some(makedev(1, 3)), ..file_entry(path("null")) };
    assert_eq!(target.create_node(&device).unwrap()[0].what, Attribute::Device);

    let restored = entries(root.path());
    assert_eq!(restored.len(), 1);
    assert_eq!((restored[0].mode, restored[0].mtime), (0o750, entry.mtime));
    assert_eq!(restored[0].xattrs.as_ref().unwrap().len(), 1);

    // A directory that we may not read is a defect, with its entry and its siblings there.
    fs::create_dir(root.path().join("closed")).unwrap();
    fs::set_permissions(root.path().join("closed"), fs::Permissions::from_mode(0o000)).unwrap();
    let (entries, defects) = walk(root.path());
    assert_eq!((entries.len(), defects.len()), (2, 1));
    assert!(matches!(defects[0].reason, DefectReason::Io { .. }));
    assert_eq!(
        defects[0].to_string(),
        "\"closed\" could not be read: failed to open the directory (Permission denied (os error 13))"
    );
}
