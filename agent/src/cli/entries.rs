//! Entries of snapshots, in lines and in JSON.

use serde_json::{Value, json};
use vsync_protocol::tree::{Entry, EntryKind, EntryPath, Time};

/// `-rwsr-xr-x`.
pub(super) fn permissions(entry: &Entry) -> String {
    let mut text = String::from(letter(entry.kind));
    for (shift, special, set, unset) in [(6, 0o4000, 's', 'S'), (3, 0o2000, 's', 'S'), (0, 0o1000, 't', 'T')] {
        let bits = entry.mode >> shift;
        text.push(if bits & 4 == 0 { '-' } else { 'r' });
        text.push(if bits & 2 == 0 { '-' } else { 'w' });
        text.push(match (bits & 1 != 0, entry.mode & special != 0) {
            (true, true) => set,
            (false, true) => unset,
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

const fn letter(kind: EntryKind) -> char {
    match kind {
        EntryKind::File => '-',
        EntryKind::Directory => 'd',
        EntryKind::Symlink => 'l',
        EntryKind::HardLink => 'h',
        EntryKind::CharDevice => 'c',
        EntryKind::BlockDevice => 'b',
        EntryKind::Fifo => 'p',
        EntryKind::Socket => 's',
    }
}

/// What restic calls a kind of entry; it has no word for further names of a file.
pub(super) const fn type_name(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::File => "file",
        EntryKind::Directory => "dir",
        EntryKind::Symlink => "symlink",
        EntryKind::HardLink => "hardlink",
        EntryKind::CharDevice => "chardev",
        EntryKind::BlockDevice => "dev",
        EntryKind::Fifo => "fifo",
        EntryKind::Socket => "socket",
    }
}

/// A moment in JSON; what no calendar has is left out.
pub(super) fn moment(time: Time) -> Option<String> {
    jiff::Timestamp::new(time.seconds, i32::try_from(time.nanos).ok()?).ok().map(|time| time.to_string())
}

/// An entry as restic writes one.
pub(super) fn node(entry: &Entry) -> Value {
    let name = EntryPath::new(entry.path.name()).unwrap_or_default();
    let mut node = json!({
        "message_type": "node",
        "struct_type": "node",
        "name": name.to_string(),
        "type": type_name(entry.kind),
        "path": entry.path.to_string(),
        "uid": entry.uid,
        "gid": entry.gid,
        "mode": entry.mode,
        "permissions": permissions(entry),
        "mtime": moment(entry.mtime),
    });
    if entry.kind == EntryKind::File {
        node["size"] = entry.size.into();
    }
    if let Some(target) = &entry.target {
        node["linktarget"] = escaped(target).into();
    }
    node
}

/// The target of a link, printable whatever the bytes.
pub(super) fn escaped(target: &[u8]) -> String {
    // A target may be absolute or empty, which no path in a volume is.
    let parts = target.split(|&byte| byte == b'/').map(|part| match EntryPath::new(part) {
        Ok(path) => path.to_string(),
        Err(_) => part.escape_ascii().to_string(),
    });
    parts.collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: EntryKind, mode: u32) -> Entry {
        Entry {
            path: EntryPath::new("a/b").unwrap(),
            kind,
            mode,
            uid: 1,
            gid: 2,
            mtime: Time { seconds: 1, nanos: 5 },
            ctime: Time::default(),
            inode: 0,
            size: 3,
            target: None,
            device: None,
            xattrs: None,
        }
    }

    #[test]
    fn permissions_read_as_in_ls() {
        for (kind, mode, text) in [
            (EntryKind::File, 0o644, "-rw-r--r--"),
            (EntryKind::Directory, 0o1777, "drwxrwxrwt"),
            (EntryKind::File, 0o6755, "-rwsr-sr-x"),
            (EntryKind::Symlink, 0o7000, "l--S--S--T"),
        ] {
            assert_eq!(permissions(&entry(kind, mode)), text);
        }
    }

    #[test]
    fn entries_have_restic_s_names() {
        let node = node(&entry(EntryKind::File, 0o600));
        assert_eq!((&node["name"], &node["path"], &node["type"]), (&"b".into(), &"a/b".into(), &"file".into()));
        assert_eq!((&node["size"], &node["mtime"]), (&3.into(), &"1970-01-01T00:00:01.000000005Z".into()));
        assert_eq!(escaped(b"/a/../\x1b/\xff"), "/a/../\\u{1b}/\\xff");
    }
}
