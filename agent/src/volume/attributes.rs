//! Owner, mode, times and extended attributes: what a file has besides its content.

use std::fmt;

use minicbor::{Decode, Encode};
use rustix::fd::AsFd;
use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, chownat};
use rustix::io::{Errno, Result};
use vsync_protocol::tree::{Entry, EntryKind, EntryPath, Time, Xattr};

use super::reach::Reach;
use super::sys::Stat;

const SET_ID: u32 = 0o6000;

/// Most bytes of extended attributes that one file may have: they must fit into a record.
/// Some file systems allow hundreds of megabytes.
const MAX_XATTRS_LEN: usize = 1 << 20;

/// Something that an entry lacks after a restore.
#[derive(Debug)]
pub struct Unrestored {
    /// Which entry.
    pub path: EntryPath,
    /// What it lacks.
    pub what: Attribute,
    /// What the system said.
    pub error: Errno,
}

impl fmt::Display for Unrestored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" lacks its {}: {}", self.path, self.what, self.error)
    }
}

/// What may fail to be restored while the entry itself is there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Attribute {
    /// Numeric owner and group.
    #[n(0)]
    Owner,
    /// Permission bits, or some of them.
    #[n(1)]
    Mode,
    /// When the content last changed.
    #[n(2)]
    Mtime,
    /// The extended attribute of this name, which may hold an ACL or a capability.
    #[n(3)]
    Xattr(
        #[n(0)]
        #[cbor(with = "minicbor::bytes")]
        Vec<u8>,
    ),
    /// All extended attributes, as those that are there could not even be listed.
    #[n(4)]
    Xattrs,
    /// The device file itself.
    #[n(5)]
    Device,
}

impl Attribute {
    /// Those in which `found`, whose extended attributes have been read, differs from `wanted`:
    /// what a restore would set.
    #[must_use]
    pub fn differing(found: &Entry, wanted: &Entry) -> Vec<Self> {
        let present = found.xattrs.as_deref().unwrap_or_default();
        let (extraneous, lacking) = xattr_changes(present, wanted.xattrs.as_deref().unwrap_or_default());
        let mut names: Vec<&Vec<u8>> = extraneous.iter().chain(&lacking).map(|xattr| &xattr.name).collect();
        names.sort_unstable();
        [
            ((found.uid, found.gid) != (wanted.uid, wanted.gid)).then_some(Self::Owner),
            (found.mode != wanted.mode && wanted.kind != EntryKind::Symlink).then_some(Self::Mode),
            (found.mtime != wanted.mtime).then_some(Self::Mtime),
        ]
        .into_iter()
        .flatten()
        .chain(names.into_iter().cloned().map(Self::Xattr))
        .collect()
    }
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owner => f.write_str("owner"),
            Self::Mode => f.write_str("mode"),
            Self::Mtime => f.write_str("modification time"),
            Self::Xattr(name) => write!(f, "attribute {}", name.escape_ascii()),
            Self::Xattrs => f.write_str("extended attributes"),
            Self::Device => f.write_str("device file"),
        }
    }
}

/// Reads the extended attributes of what is open as `fd`, sorted by name; `None` when
/// there are none.
pub(super) fn read(fd: impl AsFd) -> Result<Option<Vec<Xattr>>> {
    read_by(&Reach::handle(fd))
}

fn read_by(reach: &Reach<'_>) -> Result<Option<Vec<Xattr>>> {
    let list = match reach.list_xattrs() {
        Ok(list) if list.is_empty() => return Ok(None),
        Err(Errno::OPNOTSUPP) => return Ok(None),
        other => other?,
    };
    let (mut xattrs, mut len) = (Vec::new(), list.len());
    for name in list.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        match reach.xattr(name) {
            Ok(value) => {
                len += value.len();
                xattrs.push(Xattr { name: name.to_vec(), value });
            }
            // Removed since the listing, or listed by a file system that has no value for it.
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error),
        }
        if len > MAX_XATTRS_LEN {
            return Err(Errno::TOOBIG);
        }
    }
    xattrs.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok((!xattrs.is_empty()).then_some(xattrs))
}

/// Gives what `fd` is a handle of, and whose state is `before`, the attributes of `entry`,
/// touching only those that differ. A failure to set one is listed, not returned: without root, a restore does what it can.
pub(super) fn apply(fd: impl AsFd, before: Stat, entry: &Entry) -> Result<Applied> {
    run(Applying { reach: Reach::handle(&fd), fd, entry, unrestored: Vec::new() }, before)
}

/// As [`apply`], for a file that is open.
pub(super) fn apply_to_file(fd: impl AsFd, before: Stat, entry: &Entry) -> Result<Applied> {
    run(Applying { reach: Reach::Open(fd.as_fd()), fd: fd.as_fd(), entry, unrestored: Vec::new() }, before)
}

fn run(mut applying: Applying<'_, impl AsFd>, before: Stat) -> Result<Applied> {
    let (after, changed) = applying.run(before)?;
    Ok(Applied { unrestored: applying.unrestored, changed, after })
}

/// What came of giving an entry its attributes.
pub(super) struct Applied {
    pub(super) unrestored: Vec<Unrestored>,
    /// Whether one differed, so that the inode is another now.
    pub(super) changed: bool,
    /// Its state now.
    pub(super) after: Stat,
}

struct Applying<'a, Fd> {
    fd: Fd,
    reach: Reach<'a>,
    entry: &'a Entry,
    unrestored: Vec<Unrestored>,
}

impl<Fd: AsFd> Applying<'_, Fd> {
    /// Order matters: a new owner clears set-id bits and capabilities, an ACL sets the
    /// group's bits of the mode, and after the times nothing may touch the file.
    fn run(&mut self, before: Stat) -> Result<(Stat, bool)> {
        let new_owner = (before.uid, before.gid) != (self.entry.uid, self.entry.gid);
        let owned = !new_owner || self.set_owner();
        let new_xattrs = self.set_xattrs();
        let now = if new_owner || new_xattrs { Stat::of(&self.fd)? } else { before };
        let touched = self.set_mode(&now, owned) | self.set_mtime(&now);
        let after = if touched { Stat::of(&self.fd)? } else { now };
        self.check(&after);
        Ok((after, new_owner || new_xattrs || touched))
    }

    fn set_owner(&mut self) -> bool {
        let Entry { uid, gid, .. } = *self.entry;
        // The system takes the highest number for "leave as it is".
        let outcome = if uid == u32::MAX || gid == u32::MAX {
            Err(Errno::INVAL)
        } else {
            chownat(&self.fd, c"", Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::EMPTY_PATH)
        };
        self.note(Attribute::Owner, outcome);
        outcome.is_ok()
    }

    /// Returns whether there was something to set, so that the mode may be another now.
    fn set_xattrs(&mut self) -> bool {
        let wanted = self.entry.xattrs.as_deref().unwrap_or_default();
        let present = match read_by(&self.reach) {
            Ok(present) => present.unwrap_or_default(),
            Err(error) => {
                self.note(Attribute::Xattrs, Err(error));
                return false;
            }
        };
        let (extraneous, lacking) = xattr_changes(&present, wanted);
        for Xattr { name, .. } in &extraneous {
            self.note(Attribute::Xattr(name.clone()), self.reach.remove_xattr(name));
        }
        for Xattr { name, value } in &lacking {
            let outcome = self.reach.set_xattr(name, value);
            self.note(Attribute::Xattr(name.clone()), outcome);
        }
        !extraneous.is_empty() || !lacking.is_empty()
    }

    fn set_mode(&mut self, now: &Stat, owned: bool) -> bool {
        // Set-id bits lend the rights of the file's owner. If that is not who it was on the
        // source, they must not.
        let wanted = if owned { self.entry.mode } else { self.entry.mode & !SET_ID };
        if now.mode == wanted || self.entry.kind == EntryKind::Symlink {
            return false;
        }
        self.note(Attribute::Mode, self.reach.chmod(Mode::from_raw_mode(wanted)));
        true
    }

    fn set_mtime(&mut self, now: &Stat) -> bool {
        let Time { seconds, nanos } = self.entry.mtime;
        if now.mtime == self.entry.mtime {
            return false;
        }
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: seconds, tv_nsec: nanos.into() },
        };
        self.note(Attribute::Mtime, self.reach.set_times(&times));
        true
    }

    /// Lists what the system took and silently did otherwise: a set-group-id bit of a
    /// group that is not ours, a time that the file system cannot hold.
    fn check(&mut self, now: &Stat) {
        if now.mode != self.entry.mode && self.entry.kind != EntryKind::Symlink {
            self.note(Attribute::Mode, Err(Errno::PERM));
        }
        if now.mtime != self.entry.mtime {
            self.note(Attribute::Mtime, Err(Errno::RANGE));
        }
    }

    /// Lists the attribute, once, if it could not be set.
    fn note(&mut self, what: Attribute, outcome: Result<()>) {
        if let Err(error) = outcome
            && self.unrestored.iter().all(|unrestored| unrestored.what != what)
        {
            self.unrestored.push(Unrestored { path: self.entry.path.clone(), what, error });
        }
    }
}

/// Which of the attributes that are `present` go, and which of those that are `wanted` are to be set.
fn xattr_changes<'a>(present: &'a [Xattr], wanted: &'a [Xattr]) -> (Vec<&'a Xattr>, Vec<&'a Xattr>) {
    let extraneous = |xattr: &&Xattr| is_content(&xattr.name) && wanted.iter().all(|kept| kept.name != xattr.name);
    let lacking = |xattr: &&Xattr| !present.contains(xattr);
    (present.iter().filter(extraneous).collect(), wanted.iter().filter(lacking).collect())
}

/// Whether an attribute is the volume's own, rather than the system's: labels that a
/// security module gives to every file, for instance, cannot and must not be removed.
fn is_content(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || name.starts_with(b"trusted.")
        || name.starts_with(b"system.posix_acl_")
        || name == b"security.capability"
}
