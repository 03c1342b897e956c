//! What is in a target, compared with what should be: everything that a restore promises but the
//! content of files, which `compare` reads.

use std::collections::HashMap;
use std::io;

use vsync_protocol::tree::{Entry, EntryKind, EntryPath};

use super::changes::{Action, Change, Property};
use crate::shelf::Shelf;
use crate::volume::{Attribute, Found};

/// Looks at entries in the snapshot's order.
#[derive(Default)]
pub(super) struct Inspector {
    /// The entry of the snapshot that an inode with several names belongs to.
    owners: HashMap<(u64, u64), EntryPath>,
    changes: Shelf<Change>,
}

impl Inspector {
    /// How what is there differs from `entry`, but for the content of a file; `None` when nothing is there.
    pub(super) fn differing(&mut self, entry: &Entry, there: Option<&mut Found>) -> Option<Vec<Property>> {
        let there = there?;
        if entry.kind == EntryKind::HardLink {
            return Some(self.link_differing(entry, there));
        }
        if there.entry.kind != entry.kind {
            return Some(vec![Property::Kind]);
        }
        let mut differing = Vec::new();
        if !self.is_own(entry, there) {
            differing.push(Property::HardLinks);
        }
        let read = there.load_metadata().is_ok();
        // What cannot be looked at is not known to be right.
        if !read || there.entry.target != entry.target {
            differing.extend((entry.kind == EntryKind::Symlink).then_some(Property::Target));
        }
        if there.entry.device != entry.device {
            differing.push(Property::Device);
        }
        let attributes = attributes_differing(&there.entry, entry, read);
        differing.extend(attributes.into_iter().map(Property::Attribute));
        Some(differing)
    }

    /// The target's own directory.
    pub(super) fn top(&mut self, wanted: &Entry, there: &Entry) -> io::Result<()> {
        let attributes = Attribute::differing(there, wanted);
        self.note(&wanted.path, Some(attributes.into_iter().map(Property::Attribute).collect()))
    }

    /// Notes what [`differing`](Self::differing) said.
    pub(super) fn note(&mut self, path: &EntryPath, differing: Option<Vec<Property>>) -> io::Result<()> {
        match differing {
            None => self.push(path, Action::Create),
            Some(differing) if differing.is_empty() => Ok(()),
            Some(differing) => self.push(path, Action::Change(differing)),
        }
    }

    /// Notes what the snapshot does not have.
    pub(super) fn extraneous(&mut self, path: &EntryPath) -> io::Result<()> {
        self.push(path, Action::Delete)
    }

    /// What was noted.
    pub(super) fn finish(self) -> Shelf<Change> {
        self.changes
    }

    fn push(&mut self, path: &EntryPath, action: Action) -> io::Result<()> {
        self.changes.push(&Change { path: path.clone(), action })
    }

    /// Whether what is there belongs to no other entry of the snapshot.
    fn is_own(&mut self, entry: &Entry, there: &Found) -> bool {
        there.entry.kind == EntryKind::Directory
            || there.links == 1
            || *self.owners.entry(inode(there)).or_insert_with(|| entry.path.clone()) == entry.path
    }

    fn link_differing(&self, link: &Entry, there: &Found) -> Vec<Property> {
        let owner = self.owners.get(&inode(there)).map(EntryPath::as_bytes);
        let is_name = there.links > 1 && owner.is_some() && owner == link.target.as_deref();
        let differing = if there.entry.kind == EntryKind::Directory { Property::Kind } else { Property::HardLinks };
        if is_name { Vec::new() } else { vec![differing] }
    }
}

const fn inode(there: &Found) -> (u64, u64) {
    (there.device, there.entry.inode)
}

fn attributes_differing(there: &Entry, wanted: &Entry, read: bool) -> Vec<Attribute> {
    let mut attributes = Attribute::differing(there, wanted);
    if !read {
        attributes.retain(|attribute| !matches!(attribute, Attribute::Xattr(_)));
        attributes.push(Attribute::Xattrs);
    }
    attributes
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
    use std::path::Path;
    use std::time::{Duration, UNIX_EPOCH};

    use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat, removexattr, setxattr};
    use vsync_protocol::tree::Time;

    use super::*;
    use crate::volume::{Step, Walker};

    fn set(path: &Path, name: &str, value: &[u8]) {
        setxattr(path, name, value, XattrFlags::empty()).unwrap();
    }

    fn set_mtime(path: &Path, nanos: u64) {
        File::open(path).unwrap().set_modified(UNIX_EPOCH + Duration::from_nanos(nanos)).unwrap();
    }

    fn node(path: &Path, kind: FileType, device: u64) {
        mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), device).unwrap();
    }

    fn replace(path: &Path, make: impl FnOnce(&Path)) {
        fs::remove_file(path).unwrap();
        make(path);
    }

    /// A directory with something of every kind.
    fn fill(at: &Path) {
        fs::create_dir(at.join("d")).unwrap();
        for name in ["d/file", "one", "other"] {
            fs::write(at.join(name), name).unwrap();
        }
        fs::hard_link(at.join("one"), at.join("second")).unwrap();
        fs::hard_link(at.join("one"), at.join("third")).unwrap();
        symlink("one", at.join("link")).unwrap();
        node(&at.join("pipe"), FileType::Fifo, 0);
        node(&at.join("null"), FileType::CharacterDevice, makedev(1, 3));
        set(&at.join("d/file"), "user.note", b"1");
        set(&at.join("d"), "system.posix_acl_default", &acl(5));
        set(&at.join("d/file"), "security.capability", &capability(0x400));
        ["d/file", "one", "other", "d"].iter().for_each(|name| set_mtime(&at.join(name), 1_700_000_000_000_000_007));
    }

    /// `u::rwx,u:1000:PERMISSIONS,g::---,m::rwx,o::---`, as the system stores it.
    fn acl(permissions: u16) -> Vec<u8> {
        let entries =
            [(1, 7, u32::MAX), (2, permissions, 1000), (4, 0, u32::MAX), (16, 7, u32::MAX), (32, 0, u32::MAX)];
        let entry = |(tag, permissions, id): (u16, u16, u32)| {
            [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
        };
        [2_u32.to_le_bytes().to_vec(), entries.map(entry).concat()].concat()
    }

    fn capability(permitted: u32) -> Vec<u8> {
        [0x0200_0000_u32, permitted, 0, 0, 0].map(u32::to_le_bytes).concat()
    }

    /// The directory as a snapshot has it.
    fn snapshot(at: &Path) -> Vec<Entry> {
        let mut names = HashMap::new();
        let walker = Walker::open(at).unwrap();
        let top = walker.root().clone();
        let entries = walker.map(|step| {
            let Step::Found(mut found) = step else { panic!("{step:?}") };
            found.load_metadata().unwrap();
            let first = names.entry(inode(&found)).or_insert_with(|| found.entry.path.clone());
            let target = Some(first.as_bytes().to_vec()).filter(|_| *first != found.entry.path);
            match target {
                Some(target) => Entry { kind: EntryKind::HardLink, target: Some(target), ..found.entry },
                None => found.entry,
            }
        });
        std::iter::once(top).chain(entries).collect()
    }

    /// The differences of a directory from a snapshot, in words.
    fn differences(snapshot: &[Entry], at: &Path) -> Vec<String> {
        let mut inspector = Inspector::default();
        let walker = Walker::open(at).unwrap();
        inspector.top(&snapshot[0], walker.root()).unwrap();
        let mut there: Vec<Box<Found>> =
            walker.filter_map(|step| if let Step::Found(found) = step { Some(found) } else { None }).collect();
        for entry in &snapshot[1..] {
            let found = there.iter_mut().find(|found| found.entry.path == entry.path);
            let differing = inspector.differing(entry, found.map(AsMut::as_mut));
            inspector.note(&entry.path, differing).unwrap();
        }
        for found in there.iter().filter(|found| snapshot.iter().all(|entry| entry.path != found.entry.path)) {
            inspector.extraneous(&found.entry.path).unwrap();
        }
        let changes = inspector.finish();
        changes.forwards().map(|change| words(&change.unwrap())).collect()
    }

    fn words(Change { path, action }: &Change) -> String {
        let words = match action {
            Action::Create => "create".to_owned(),
            Action::Delete => "delete".to_owned(),
            Action::Change(properties) => properties.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        };
        format!("{path}: {words}")
    }

    type Tampering = (fn(&Path), &'static [&'static str]);

    /// Needs root, as every test of owners and devices.
    const TAMPERINGS: &[Tampering] = &[
        (|_| (), &[]),
        (|at| fs::remove_file(at.join("other")).unwrap(), &["other: create"]),
        (|at| fs::write(at.join("more"), "").unwrap(), &["more: delete"]),
        (|at| replace(&at.join("other"), |path| fs::create_dir(path).unwrap()), &["other: kind"]),
        (|at| replace(&at.join("pipe"), |path| node(path, FileType::Socket, 0)), &["pipe: kind"]),
        (|at| chown(at.join("other"), Some(7), None).unwrap(), &["other: owner"]),
        (|at| chown(at.join("other"), None, Some(7)).unwrap(), &["other: owner"]),
        (|at| lchown(at.join("link"), Some(7), None).unwrap(), &["link: owner"]),
        (|at| fs::set_permissions(at.join("d"), Permissions::from_mode(0o700)).unwrap(), &["d: mode"]),
        (|at| fs::set_permissions(at.join("other"), Permissions::from_mode(0o4644)).unwrap(), &["other: mode"]),
        (|at| fs::set_permissions(at.join("pipe"), Permissions::from_mode(0o666)).unwrap(), &["pipe: mode"]),
        (|at| fs::set_permissions(at, Permissions::from_mode(0o711)).unwrap(), &[": mode"]),
        (|at| set_mtime(&at.join("other"), 1_700_000_000_000_000_008), &["other: modification time"]),
        (|at| set_mtime(&at.join("d"), 0), &["d: modification time"]),
        (|at| set(&at.join("d/file"), "user.note", b"2"), &["d/file: attribute user.note"]),
        (|at| set(&at.join("d/file"), "user.more", b""), &["d/file: attribute user.more"]),
        (|at| removexattr(at.join("d/file"), "user.note").unwrap(), &["d/file: attribute user.note"]),
        (|at| set(&at.join("d"), "system.posix_acl_default", &acl(4)), &["d: attribute system.posix_acl_default"]),
        (
            |at| set(&at.join("d/file"), "security.capability", &capability(0x800)),
            &["d/file: attribute security.capability"],
        ),
        (
            |at| replace(&at.join("null"), |path| node(path, FileType::CharacterDevice, makedev(1, 5))),
            &["null: device number"],
        ),
        (|at| replace(&at.join("second"), |path| fs::write(path, "one").unwrap()), &["second: hard links"]),
        (
            |at| replace(&at.join("third"), |path| fs::hard_link(path.with_file_name("other"), path).unwrap()),
            &["third: hard links"],
        ),
        (
            |at| replace(&at.join("pipe"), |path| fs::hard_link(path.with_file_name("null"), path).unwrap()),
            &["pipe: kind"],
        ),
        (|at| replace(&at.join("second"), |path| fs::create_dir(path).unwrap()), &["second: kind"]),
        (|at| fs::remove_file(at.join("third")).unwrap(), &["third: create"]),
    ];

    #[test]
    fn every_property_that_a_restore_promises_is_compared() {
        for (number, (tamper, expected)) in TAMPERINGS.iter().enumerate() {
            let directory = tempfile::tempdir().unwrap();
            fill(directory.path());
            let mut wanted = snapshot(directory.path());
            // Inode numbers and change times are none of a restore's business.
            wanted.iter_mut().for_each(|entry| (entry.inode, entry.ctime) = (0, Time::default()));
            tamper(directory.path());
            let mut found = differences(&wanted, directory.path());
            // What was made anew has the time of now, and so has the directory it is in.
            let renewed =
                |change: &String| change.ends_with(": modification time") && !expected.contains(&change.as_str());
            found.retain(|change| !renewed(change));
            found.iter_mut().for_each(|change| drop_suffix(change, ", modification time"));
            assert_eq!(found, *expected, "tampering {number}");
        }
    }

    fn drop_suffix(text: &mut String, suffix: &str) {
        let len = text.strip_suffix(suffix).map_or(text.len(), str::len);
        text.truncate(len);
    }

    #[test]
    fn a_link_to_elsewhere_and_a_name_of_two_files_are_told() {
        let directory = tempfile::tempdir().unwrap();
        fill(directory.path());
        let wanted = snapshot(directory.path());
        let at = |name: &str| directory.path().join(name);
        replace(&at("link"), |path| symlink("other", path).unwrap());
        // Two files of the snapshot are one now.
        replace(&at("other"), |path| fs::hard_link(path.with_file_name("d/file"), path).unwrap());
        let found = differences(&wanted, directory.path());
        assert!(found.iter().any(|change| change.starts_with("link: link target")), "{found:?}");
        assert!(found.iter().any(|change| change.starts_with("other: hard links")), "{found:?}");
    }
}
