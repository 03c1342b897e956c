//! Writing a restored volume: directories, links and nodes; files are in [`super::file`].

use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, fstatfs, fstatvfs, linkat, mkdirat, mknodat, renameat, symlinkat, unlinkat};
use rustix::io::{Errno, Result as SysResult};
use thiserror::Error;
use vsync_protocol::tree::{Entry, EntryKind, EntryPath, Time};

use super::attributes::{self, Attribute, Unrestored};
use super::directories::Directories;
use super::removal::Removal;
use super::sys::{Directory, Stat, pin};
use super::walk::Walker;
use super::writeback::Writeback;

/// What is not complete yet has a name that begins so.
const PARTIAL_PREFIX: &str = ".vsync-partial-";

/// What is created is the restore's alone until its metadata is set.
pub(super) const PRIVATE_FILE: Mode = Mode::from_raw_mode(0o600);
const PRIVATE_DIRECTORY: Mode = Mode::from_raw_mode(0o700);

/// Why something could not be restored.
#[derive(Debug, Error)]
pub enum TargetError {
    /// The target cannot be opened, looked through or made durable.
    #[error("cannot {operation} {}", .path.display())]
    Root {
        /// The volume's directory.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        #[source]
        source: Errno,
    },
    /// The file system is full, or the owner's quota is: further attempts are useless.
    #[error("cannot {operation} \"{path}\": no space is left")]
    NoSpace {
        /// The entry.
        path: EntryPath,
        /// What was tried.
        operation: &'static str,
    },
    /// Someone else is at work in the target: what was created is not there any more.
    #[error("\"{path}\" was replaced by someone else during the restore")]
    Replaced {
        /// The entry.
        path: EntryPath,
    },
    /// The system refused.
    #[error("cannot {operation} \"{path}\"")]
    Io {
        /// The entry.
        path: EntryPath,
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        #[source]
        source: Errno,
    },
}

impl TargetError {
    /// Whether there is no room: the disk may say so when it stores what was written long before.
    #[must_use]
    pub const fn is_no_space(&self) -> bool {
        matches!(self, Self::NoSpace { .. } | Self::Root { source: Errno::NOSPC | Errno::DQUOT, .. })
    }
}

/// Names what was tried, and on what, in the error of a system call.
pub(super) trait Trying<T> {
    fn trying(self, operation: &'static str, path: &EntryPath) -> Result<T, TargetError>;
}

impl<T> Trying<T> for SysResult<T> {
    fn trying(self, operation: &'static str, path: &EntryPath) -> Result<T, TargetError> {
        self.map_err(|error| {
            let path = path.clone();
            match error {
                Errno::NOSPC | Errno::DQUOT => TargetError::NoSpace { path, operation },
                source => TargetError::Io { path, operation, source },
            }
        })
    }
}

/// How a new file comes about before it has its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Staging {
    /// Without a name where the file system can do that: a crash leaves nothing. Elsewhere
    /// it starts anew under the name that [`Resumable`](Self::Resumable) ones have.
    Unnamed,
    /// Under a name of its own, where an interrupted restore finds it again: for files that
    /// take long.
    Resumable,
}

/// Something that has its name, its content and its metadata.
#[derive(Debug)]
pub struct Placed {
    /// What could not be restored.
    pub unrestored: Vec<Unrestored>,
    /// Its state before it got its metadata.
    pub before: State,
    /// Its state now.
    pub state: State,
}

/// What tells later whether anyone touched an inode since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Its number.
    pub inode: u64,
    /// When it last changed. A further hard link to it changes that once more.
    pub ctime: Time,
    /// Bytes in it.
    pub size: u64,
}

/// Which directory something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectoryId {
    /// The device that holds it.
    pub device: u64,
    /// Its inode number, unique on that device.
    pub inode: u64,
}

/// Local file systems that change an inode's time whenever its content or metadata changes,
/// at once and by this system's clock, and that give no two files one number: ext2 to ext4,
/// XFS, Btrfs, F2FS, tmpfs.
const TELLING: [u64; 5] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0x0102_1994];

/// A directory that a volume is restored into. Usable from several threads.
#[derive(Debug)]
pub struct Target {
    path: PathBuf,
    root: Arc<Directory>,
    directories: Mutex<Directories>,
    pub(super) writeback: Arc<Writeback>,
    /// Whether files without a name were refused.
    pub(super) named_only: AtomicBool,
}

impl Target {
    /// Opens the volume in the directory `path`.
    ///
    /// # Errors
    /// When there is no such directory.
    pub fn open(path: &Path) -> Result<Self, TargetError> {
        let failed = |source| TargetError::Root { path: path.to_owned(), operation: "open", source };
        let root = Arc::new(Directory::open_root(path).map_err(failed)?);
        let directories = Mutex::new(Directories::new(root.clone()));
        let writeback = Arc::new(Writeback::of(path, root.clone()));
        Ok(Self { path: path.to_owned(), root, directories, writeback, named_only: AtomicBool::new(false) })
    }

    /// Walks what is there already.
    ///
    /// # Errors
    /// When the root cannot be read.
    pub fn scan(&self) -> Result<Walker, TargetError> {
        self.root.open_below(c".").and_then(|root| Walker::new(Arc::new(root))).map_err(self.failed("look through"))
    }

    /// Which directory this is, if it is on a file system whose times tell of every change.
    #[must_use]
    pub fn place(&self) -> Option<DirectoryId> {
        let kind = u64::try_from(fstatfs(&self.root).ok()?.f_type).ok()?;
        let identity = self.root.identity();
        TELLING.contains(&kind).then_some(DirectoryId { device: identity.device, inode: identity.inode })
    }

    /// Bytes that can still be written.
    ///
    /// # Errors
    /// When the file system does not tell.
    pub fn free_bytes(&self) -> Result<u64, TargetError> {
        let info = fstatvfs(&self.root).map_err(self.failed("ask for the free space of"))?;
        Ok(info.f_bavail.saturating_mul(info.f_frsize))
    }

    /// Makes all that was restored durable.
    ///
    /// # Errors
    /// When the file system failed to write, now or since the target was opened.
    pub fn sync(&self) -> Result<(), TargetError> {
        self.writeback.finish()
    }

    /// What is at `path`; `None` if nothing is.
    ///
    /// # Errors
    /// When its directory cannot be opened without leaving the volume or following a link.
    pub fn kind_at(&self, path: &EntryPath) -> Result<Option<EntryKind>, TargetError> {
        if path.is_root() {
            return Ok(Some(EntryKind::Directory));
        }
        let spot = match self.spot(path) {
            Err(TargetError::Io { source: Errno::NOENT, .. }) => return Ok(None),
            spot => spot?,
        };
        match Stat::at(&spot.directory, &spot.name) {
            Err(Errno::NOENT) => Ok(None),
            stat => stat.trying("look at", path).map(|stat| Some(stat.kind)),
        }
    }

    /// Makes sure that there is a directory at `path`. A new one is ours alone until
    /// [`apply_metadata`](Self::apply_metadata), once its content is complete.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn create_directory(&self, path: &EntryPath) -> Result<(), TargetError> {
        if path.is_root() {
            return Ok(());
        }
        let spot = self.spot(path)?;
        let mut outcome = mkdirat(&spot.directory, &spot.name, PRIVATE_DIRECTORY);
        if outcome == Err(Errno::EXIST) {
            let stat = Stat::at(&spot.directory, &spot.name).trying("look at", path)?;
            if stat.kind == EntryKind::Directory {
                return Ok(());
            }
            self.remove_at(&spot, &spot.name)?;
            outcome = mkdirat(&spot.directory, &spot.name, PRIVATE_DIRECTORY);
        }
        outcome.trying("create the directory", path)?;
        self.writeback.touched(1)
    }

    /// Creates a symbolic link, FIFO, socket or device with all its metadata, in place of
    /// whatever is there. Returns what could not be restored.
    ///
    /// # Errors
    /// When it cannot be created, other than for lack of privilege.
    pub fn create_node(&self, entry: &Entry) -> Result<Vec<Unrestored>, TargetError> {
        let spot = self.spot(&entry.path)?;
        match self.create(&spot, |name| make_node(&spot.directory, name, entry)) {
            Err(TargetError::Io { source: error @ Errno::PERM, .. }) if entry.device.is_some() => {
                Ok(vec![Unrestored { path: entry.path.clone(), what: Attribute::Device, error }])
            }
            Err(error) => Err(error),
            Ok(()) => Ok(self.apply_metadata(entry)?.unrestored),
        }
    }

    /// Makes `path` a further name of the inode at `earlier`, in place of whatever is there.
    /// A symbolic link at `earlier` is not followed; it gets a further name itself.
    ///
    /// # Errors
    /// When it cannot be created, for instance because nothing is at `earlier`.
    pub fn create_link(&self, path: &EntryPath, earlier: &EntryPath) -> Result<(), TargetError> {
        let (spot, source) = (self.spot(path)?, self.spot(earlier)?);
        let identity = |spot: &Spot| Stat::at(&spot.directory, &spot.name).map(|stat| stat.identity);
        if let (Ok(there), Ok(wanted)) = (identity(&spot), identity(&source))
            && there == wanted
        {
            return Ok(());
        }
        self.create(&spot, |name| linkat(&source.directory, &source.name, &spot.directory, name, AtFlags::empty()))
    }

    /// Removes an entry, with all that is in it. Nothing there is fine.
    ///
    /// # Errors
    /// When something resists.
    pub fn remove(&self, path: &EntryPath) -> Result<(), TargetError> {
        let spot = self.spot(path)?;
        self.remove_at(&spot, &spot.name)
    }

    /// Gives an existing entry the metadata of `entry`, touching only what differs; a file's
    /// content and size are not its business.
    ///
    /// # Errors
    /// When there is no entry of that type.
    pub fn apply_metadata(&self, entry: &Entry) -> Result<Placed, TargetError> {
        let path = &entry.path;
        let handle = if path.is_root() {
            pin(&self.root, c".").trying("open", path)?
        } else {
            let spot = self.spot(path)?;
            pin(&spot.directory, &*spot.name).trying("open", path)?
        };
        let before = Stat::of(&handle).trying("look at", path)?;
        if before.kind != entry.kind {
            return Err(TargetError::Replaced { path: path.clone() });
        }
        let applied = attributes::apply(&handle, before, entry).trying("look at", path)?;
        if applied.changed {
            self.writeback.touched(1)?;
        }
        Ok(Placed { unrestored: applied.unrestored, before: before.state(), state: applied.after.state() })
    }

    /// Where `path` is or will be.
    pub(super) fn spot(&self, path: &EntryPath) -> Result<Spot, TargetError> {
        let locate = || {
            // The root is not in a directory of the volume.
            let parent = path.parent().ok_or(Errno::INVAL)?;
            let name = CString::new(path.name()).map_err(|_| Errno::INVAL)?;
            let mut directories = self.directories.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(Spot { directory: directories.get(&parent)?, name, path: path.clone() })
        };
        locate().trying("find the directory of", path)
    }

    /// Creates something by `make`, in place of whatever is there.
    fn create(&self, spot: &Spot, make: impl Fn(&CStr) -> SysResult<()>) -> Result<(), TargetError> {
        self.writeback.touched(1)?;
        match make(&spot.name) {
            Err(Errno::EXIST) => {}
            outcome => return outcome.trying("create", &spot.path),
        }
        let staged = spot.partial_name();
        self.remove_at(spot, &staged)?;
        make(&staged).trying("create", &spot.path)?;
        self.replace(spot, &staged)?;
        // A rename does nothing, successfully, if both are names of one inode already.
        self.remove_at(spot, &staged)
    }

    /// Renames what is `staged` to its final name, over whatever is there.
    pub(super) fn replace(&self, spot: &Spot, staged: &CStr) -> Result<(), TargetError> {
        let rename = || renameat(&spot.directory, staged, &spot.directory, &spot.name);
        let mut outcome = rename();
        if outcome == Err(Errno::ISDIR) {
            self.remove_at(spot, &spot.name)?;
            outcome = rename();
        }
        outcome.trying("rename a complete copy to", &spot.path)
    }

    /// Removes `name` from the directory of `spot`, with all that is in it.
    pub(super) fn remove_at(&self, spot: &Spot, name: &CStr) -> Result<(), TargetError> {
        match unlinkat(&spot.directory, name, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR) => {
                self.directories.lock().unwrap_or_else(PoisonError::into_inner).forget(&spot.path);
                self.remove_tree(spot, name)
            }
            outcome => {
                outcome.trying("remove", &spot.path)?;
                self.writeback.touched(1)
            }
        }
    }

    /// Removes the directory `name` and all that is in it, whatever its depth.
    fn remove_tree(&self, spot: &Spot, name: &CStr) -> Result<(), TargetError> {
        let mut removal = Removal::of(spot.directory.clone());
        let mut next = removal.enter(name.to_owned());
        while next.trying("remove", &spot.path)? {
            self.writeback.touched(1)?;
            next = removal.step();
        }
        Ok(())
    }

    fn failed(&self, operation: &'static str) -> impl Fn(Errno) -> TargetError {
        move |source| TargetError::Root { path: self.path.clone(), operation, source }
    }
}

/// The place of an entry: its directory, held open, and its name there.
#[derive(Debug)]
pub(super) struct Spot {
    pub(super) directory: Arc<Directory>,
    pub(super) name: CString,
    pub(super) path: EntryPath,
}

impl Spot {
    /// The name that the entry has until it is complete: always the same one, so that an
    /// interrupted restore finds it.
    pub(super) fn partial_name(&self) -> CString {
        let hash = blake3::hash(self.path.as_bytes()).to_hex();
        let name = format!("{PARTIAL_PREFIX}{}", hash.get(..16).unwrap_or_default());
        CString::new(name).unwrap_or_default()
    }
}

/// Whether an entry is what an interrupted restore left: not part of the volume.
#[must_use]
pub fn is_partial_name(name: &[u8]) -> bool {
    name.strip_prefix(PARTIAL_PREFIX.as_bytes())
        .is_some_and(|hash| hash.len() == 16 && hash.iter().all(u8::is_ascii_hexdigit))
}

fn make_node(directory: &Directory, name: &CStr, entry: &Entry) -> SysResult<()> {
    let number = entry.device.unwrap_or_default();
    let kind = match entry.kind {
        EntryKind::Symlink => {
            let target = entry.target.as_deref().ok_or(Errno::INVAL)?;
            return symlinkat(target, directory, name);
        }
        EntryKind::Fifo => FileType::Fifo,
        EntryKind::Socket => FileType::Socket,
        EntryKind::CharDevice => FileType::CharacterDevice,
        EntryKind::BlockDevice => FileType::BlockDevice,
        EntryKind::File | EntryKind::Directory | EntryKind::HardLink => return Err(Errno::INVAL),
    };
    mknodat(directory, name, kind, PRIVATE_FILE, number)
}
