//! Directories and the state of files, by system calls that no symbolic link redirects.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::path::Path;

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RawDir, ResolveFlags, Statx, StatxFlags, StatxTimestamp, makedev, openat2,
    statx,
};
use rustix::io::{Errno, Result, retry_on_intr};
use rustix::path::Arg;
use vsync_protocol::tree::{Entry, EntryKind, EntryPath, Time};

use super::target::State;

/// No step may leave its directory, follow a link or enter another mount.
pub(super) const CONFINED: ResolveFlags = ResolveFlags::BENEATH.union(STRAIGHT);

/// The same, but the step may be `..`.
const STRAIGHT: ResolveFlags =
    ResolveFlags::NO_SYMLINKS.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Enough for hundreds of names per system call, and for the longest one many times over.
const NAMES_BUFFER: usize = 32 << 10;

/// Which inode something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) device: u64,
    pub(super) inode: u64,
}

/// What one `statx` tells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stat {
    pub(super) identity: Identity,
    pub(super) kind: EntryKind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    pub(super) ctime: Time,
    pub(super) size: u64,
    pub(super) links: u32,
    pub(super) mount: Option<u64>,
    number: u64,
}

impl Stat {
    /// The state of what is open as `fd`.
    pub(super) fn of(fd: impl AsFd) -> Result<Self> {
        Self::query(fd.as_fd(), c"", AtFlags::EMPTY_PATH)
    }

    /// The state of `name` itself, be it a symbolic link.
    pub(super) fn at(directory: impl AsFd, name: impl Arg + Copy) -> Result<Self> {
        Self::query(directory.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT)
    }

    fn query(fd: BorrowedFd<'_>, name: impl Arg + Copy, flags: AtFlags) -> Result<Self> {
        let fields = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
        Self::decode(&retry_on_intr(|| statx(fd, name, flags, fields))?)
    }

    fn decode(raw: &Statx) -> Result<Self> {
        let mode = u32::from(raw.stx_mode);
        Ok(Self {
            identity: Identity { device: makedev(raw.stx_dev_major, raw.stx_dev_minor), inode: raw.stx_ino },
            kind: kind_of(FileType::from_raw_mode(mode)).ok_or(Errno::NOTSUP)?,
            mode: mode & 0o7777,
            uid: raw.stx_uid,
            gid: raw.stx_gid,
            mtime: time_of(raw.stx_mtime),
            ctime: time_of(raw.stx_ctime),
            size: raw.stx_size,
            links: raw.stx_nlink,
            mount: (raw.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(raw.stx_mnt_id),
            number: makedev(raw.stx_rdev_major, raw.stx_rdev_minor),
        })
    }

    /// What tells later whether anyone touched it since.
    pub(super) const fn state(&self) -> State {
        State { inode: self.identity.inode, ctime: self.ctime, size: self.size }
    }

    /// Whether `other` is known to lie on another mount. Older kernels do not tell;
    /// `openat2` still refuses to go there.
    pub(super) fn is_mounted_apart_from(&self, other: &Self) -> bool {
        self.mount.is_some() && other.mount.is_some() && self.mount != other.mount
    }

    /// The device number that a device file stands for.
    pub(super) fn device_number(&self) -> Option<u64> {
        matches!(self.kind, EntryKind::CharDevice | EntryKind::BlockDevice).then_some(self.number)
    }

    /// An entry with all that `statx` knows.
    pub(super) fn entry(&self, path: EntryPath) -> Entry {
        Entry {
            path,
            kind: self.kind,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            mtime: self.mtime,
            ctime: self.ctime,
            inode: self.identity.inode,
            size: if self.kind == EntryKind::File { self.size } else { 0 },
            target: None,
            device: self.device_number(),
            xattrs: None,
        }
    }
}

fn kind_of(kind: FileType) -> Option<EntryKind> {
    Some(match kind {
        FileType::RegularFile => EntryKind::File,
        FileType::Directory => EntryKind::Directory,
        FileType::Symlink => EntryKind::Symlink,
        FileType::CharacterDevice => EntryKind::CharDevice,
        FileType::BlockDevice => EntryKind::BlockDevice,
        FileType::Fifo => EntryKind::Fifo,
        FileType::Socket => EntryKind::Socket,
        FileType::Unknown => return None,
    })
}

fn time_of(raw: StatxTimestamp) -> Time {
    Time { seconds: raw.tv_sec, nanos: raw.tv_nsec }
}

/// An open directory.
#[derive(Debug)]
pub(super) struct Directory {
    fd: OwnedFd,
    identity: Identity,
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Directory {
    /// Opens a volume's own directory. Its path is the administrator's: links in it are followed.
    pub(super) fn open_root(path: &Path) -> Result<Self> {
        Self::open(CWD, path, DIRECTORY.difference(OFlags::NOFOLLOW), ResolveFlags::empty())
    }

    /// Opens a directory at or below this one; `path` is relative and shorter than `PATH_MAX`.
    pub(super) fn open_below(&self, path: impl Arg + Copy) -> Result<Self> {
        Self::open(self.as_fd(), path, DIRECTORY, CONFINED)
    }

    /// Opens what `..` is now; the caller compares it with what it should be.
    pub(super) fn open_above(&self) -> Result<Self> {
        Self::open(self.as_fd(), c"..", DIRECTORY, STRAIGHT)
    }

    fn open(at: BorrowedFd<'_>, path: impl Arg + Copy, flags: OFlags, resolve: ResolveFlags) -> Result<Self> {
        let fd = open_unnoticed(at, path, flags, resolve)?;
        let identity = Stat::of(&fd)?.identity;
        Ok(Self { fd, identity })
    }

    pub(super) const fn identity(&self) -> Identity {
        self.identity
    }

    /// Everything in the directory, and the error that cut the listing short.
    pub(super) fn names(&self) -> (Names, Result<()>) {
        let mut buffer = [const { MaybeUninit::uninit() }; NAMES_BUFFER];
        let mut names = Names::default();
        let mut listing = RawDir::new(self.as_fd(), &mut buffer);
        let outcome = loop {
            match listing.next() {
                None => break Ok(()),
                Some(Ok(entry)) => names.push(entry.file_name()),
                Some(Err(Errno::INTR)) => {}
                Some(Err(error)) => break Err(error),
            }
        };
        names.sort();
        (names, outcome)
    }
}

/// Opens for reading, without a new access time where the file's owner lets us.
pub(super) fn open_unnoticed(
    at: BorrowedFd<'_>,
    path: impl Arg + Copy,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd> {
    let open = |flags| retry_on_intr(|| openat2(at, path, flags, Mode::empty(), resolve));
    match open(flags | OFlags::NOATIME) {
        Err(Errno::PERM) => open(flags),
        other => other,
    }
}

/// A handle on what `name` is now, of any type, that neither opens nor follows it.
pub(super) fn pin(directory: impl AsFd, name: impl Arg + Copy) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    retry_on_intr(|| openat2(directory.as_fd(), name, flags, Mode::empty(), CONFINED))
}

/// A path that stands for exactly the inode open as `fd`, even if that is a symbolic link:
/// the way to those system calls that take no handle, or not one from [`pin`].
pub(super) fn handle_path(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// The names in one directory, handed out in bytewise order. One allocation for all of
/// them: a directory may hold millions.
#[derive(Debug, Default)]
pub(super) struct Names {
    bytes: Vec<u8>,
    /// Where each name that is left begins, last one first.
    starts: Vec<usize>,
}

impl Names {
    fn push(&mut self, name: &CStr) {
        if name != c"." && name != c".." {
            self.starts.push(self.bytes.len());
            self.bytes.extend_from_slice(name.to_bytes_with_nul());
        }
    }

    fn sort(&mut self) {
        let Self { bytes, starts } = self;
        starts.sort_unstable_by(|&a, &b| name_at(bytes, b).cmp(&name_at(bytes, a)));
        // A rename during the listing may show one name twice.
        starts.dedup_by(|a, b| name_at(bytes, *a) == name_at(bytes, *b));
        bytes.shrink_to_fit();
    }

    /// The next name.
    pub(super) fn take(&mut self) -> Option<&CStr> {
        name_at(&self.bytes, self.starts.pop()?)
    }
}

fn name_at(bytes: &[u8], start: usize) -> Option<&CStr> {
    CStr::from_bytes_until_nul(bytes.get(start..)?).ok()
}
