//! Reading a volume: every entry once, in the order of a snapshot.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fd::AsFd;
use rustix::fs::OFlags;
use rustix::io::Errno;
use thiserror::Error;
use vsync_protocol::tree::{Entry, EntryKind, EntryPath};

use super::attributes;
use super::descent::Descent;
use super::source::SourceFile;
use super::sys::{CONFINED, Directory, Identity, Stat, open_unnoticed, pin};

/// Why a volume cannot be read at all.
#[derive(Debug, Error)]
#[error("cannot {operation} {}", .path.display())]
pub struct WalkError {
    /// The volume's directory.
    pub path: PathBuf,
    /// What was tried.
    pub operation: &'static str,
    /// What the system said.
    #[source]
    pub source: Errno,
}

/// One thing that the backup lacks, or has not as it is. The walk goes on after it.
#[derive(Debug, Error)]
#[error("\"{path}\" {reason}")]
pub struct Defect {
    /// Where it is; for a directory, all below it is meant.
    pub path: EntryPath,
    /// What is wrong.
    pub reason: DefectReason,
}

/// What may be wrong with an entry.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum DefectReason {
    /// It was there when its directory was listed.
    #[error("vanished while the volume was read")]
    Vanished,
    /// Another inode has taken its place, perhaps of another type.
    #[error("was replaced while the volume was read")]
    Replaced,
    /// A directory too deep to be kept open was moved, with what was still to be read in
    /// it and above it.
    #[error("was moved while it was read")]
    Moved,
    /// Not part of this volume.
    #[error("is the mount point of something else")]
    MountPoint,
    /// It holds something that a snapshot cannot name.
    #[error("holds what cannot be recorded: {0}")]
    Name(&'static str),
    /// The system refused.
    #[error("could not be read: failed to {operation} ({source})")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        #[source]
        source: Errno,
    },
}

impl Defect {
    /// Says what `error` means for an entry that a directory listing has shown.
    fn new(path: &EntryPath, operation: &'static str, error: Errno) -> Self {
        let reason = match error {
            Errno::NOENT => DefectReason::Vanished,
            Errno::NOTDIR | Errno::LOOP => DefectReason::Replaced,
            Errno::XDEV => DefectReason::MountPoint,
            source => DefectReason::Io { operation, source },
        };
        Self { path: path.clone(), reason }
    }

    fn replaced(path: &EntryPath) -> Self {
        Self { path: path.clone(), reason: DefectReason::Replaced }
    }
}

/// What a walk comes upon.
#[derive(Debug)]
pub enum Step {
    /// An entry of the volume.
    Found(Box<Found>),
    /// Something that could not be read.
    Defect(Defect),
}

/// Walks a volume in the order of [`EntryPath`]: a directory, what is in it, its next sibling.
///
/// An entry costs one `statx`; everything else is asked of [`Found`]. Memory holds the names
/// in the directories on the way down to the current one, and nothing more.
#[derive(Debug)]
pub struct Walker {
    root: Entry,
    top: Stat,
    descent: Descent,
    /// Path of the directory at hand.
    path: EntryPath,
    next: Next,
}

/// What the next call does.
#[derive(Debug)]
enum Next {
    /// Opens the root.
    Root(Arc<Directory>),
    /// Takes the next name at hand.
    Name,
    /// Goes into the directory that was returned last.
    Enter { path: EntryPath, identity: Identity },
}

impl Walker {
    /// Opens the volume in the directory `path`.
    ///
    /// # Errors
    /// When the directory cannot be opened.
    pub fn open(path: &Path) -> Result<Self, WalkError> {
        let failed = |operation| move |source| WalkError { path: path.to_owned(), operation, source };
        let root = Directory::open_root(path).map_err(failed("open"))?;
        Self::new(Arc::new(root)).map_err(failed("read the attributes of"))
    }

    pub(super) fn new(directory: Arc<Directory>) -> Result<Self, Errno> {
        let top = Stat::of(&directory)?;
        let mut root = top.entry(EntryPath::root());
        root.xattrs = attributes::read(&directory)?;
        let (descent, path) = (Descent::new(), EntryPath::root());
        Ok(Self { root, top, descent, path, next: Next::Root(directory) })
    }

    /// The volume's own directory, with the empty path. The walk itself does not return it.
    #[must_use]
    pub const fn root(&self) -> &Entry {
        &self.root
    }

    /// Leaves out the content of the directory that was returned last.
    pub fn skip_content(&mut self) {
        if matches!(self.next, Next::Enter { .. }) {
            self.next = Next::Name;
        }
    }

    /// Opens the directory that was returned last, if it still is the one.
    fn open_directory(&self, path: &EntryPath, identity: Identity) -> Result<Arc<Directory>, Defect> {
        let parent = self.descent.directory().ok_or_else(|| Defect::replaced(path))?;
        match parent.open_below(path.name()) {
            Ok(directory) if directory.identity() == identity => Ok(Arc::new(directory)),
            Ok(_) => Err(Defect::replaced(path)),
            Err(error) => Err(Defect::new(path, "open the directory", error)),
        }
    }

    /// Makes `directory` the one at hand.
    fn enter(&mut self, path: EntryPath, directory: Arc<Directory>) -> Option<Defect> {
        let (names, outcome) = directory.names();
        self.descent.enter(directory, names);
        self.path = path;
        outcome.err().map(|error| Defect::new(&self.path, "list the directory", error))
    }

    /// Makes the directory above the one at hand.
    fn leave(&mut self) -> Option<Defect> {
        let above = self.path.parent().unwrap_or_default();
        let outcome = self.descent.leave();
        let path = if self.descent.depth() > 1 { above } else { EntryPath::root() };
        let left = std::mem::replace(&mut self.path, path);
        outcome.err().map(|_| Defect { path: left.parent().unwrap_or_default(), reason: DefectReason::Moved })
    }

    /// Looks at the next name at hand; `None` when there is none left.
    fn look(&mut self) -> Option<Result<Found, Defect>> {
        let (parent, name) = self.descent.take()?;
        let path = match self.path.child(name.to_bytes()) {
            Ok(path) => path,
            Err(error) => {
                return Some(Err(Defect { path: self.path.clone(), reason: DefectReason::Name(error.reason) }));
            }
        };
        Some(match Stat::at(parent, name) {
            Ok(stat) if stat.is_mounted_apart_from(&self.top) => Err(Defect { path, reason: DefectReason::MountPoint }),
            Ok(stat) => Ok(Found::new(path, &stat, parent.clone())),
            Err(error) => Err(Defect::new(&path, "read the attributes", error)),
        })
    }
}

impl Iterator for Walker {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        loop {
            let defect = match std::mem::replace(&mut self.next, Next::Name) {
                Next::Root(directory) => self.enter(EntryPath::root(), directory),
                Next::Enter { path, identity } => match self.open_directory(&path, identity) {
                    Ok(directory) => self.enter(path, directory),
                    Err(defect) => Some(defect),
                },
                Next::Name => match self.look() {
                    Some(Ok(found)) => {
                        if found.entry.kind == EntryKind::Directory {
                            self.next = Next::Enter { path: found.entry.path.clone(), identity: found.identity() };
                        }
                        return Some(Step::Found(Box::new(found)));
                    }
                    Some(Err(defect)) => Some(defect),
                    None if self.descent.depth() == 0 => return None,
                    None => self.leave(),
                },
            };
            if let Some(defect) = defect {
                return Some(Step::Defect(defect));
            }
        }
    }
}

/// An entry that a walk came upon. May be handed to another thread; it keeps its directory
/// open, so only a bounded number of them should be kept.
#[derive(Debug)]
pub struct Found {
    /// What one `statx` told: no extended attributes and no target of a symbolic link yet.
    pub entry: Entry,
    /// Names that the inode has, in this volume or elsewhere.
    pub links: u32,
    /// The device that holds the inode; its number is unique only there.
    pub device: u64,
    parent: Arc<Directory>,
}

impl Found {
    fn new(path: EntryPath, stat: &Stat, parent: Arc<Directory>) -> Self {
        Self { entry: stat.entry(path), links: stat.links, device: stat.identity.device, parent }
    }

    const fn identity(&self) -> Identity {
        Identity { device: self.device, inode: self.entry.inode }
    }

    fn is(&self, stat: &Stat) -> bool {
        stat.identity == self.identity() && stat.kind == self.entry.kind
    }

    /// Looks again, after the entry turned out to have been replaced: whatever has its name
    /// now becomes what was found, without its metadata.
    ///
    /// # Errors
    /// When it is gone.
    pub fn look_again(&mut self) -> Result<(), Defect> {
        let path = &self.entry.path;
        let stat =
            Stat::at(&self.parent, path.name()).map_err(|error| Defect::new(path, "read the attributes", error))?;
        *self = Self::new(path.clone(), &stat, self.parent.clone());
        Ok(())
    }

    /// Completes the entry: extended attributes, and the target of a symbolic link.
    ///
    /// # Errors
    /// When they cannot be read, or the entry has been replaced.
    pub fn load_metadata(&mut self) -> Result<(), Defect> {
        let path = &self.entry.path;
        let failed = |operation| move |error| Defect::new(path, operation, error);
        // Held by a handle: a name that is swapped meanwhile cannot mix two files.
        let handle = pin(&self.parent, path.name()).map_err(failed("look the entry up"))?;
        if !self.is(&Stat::of(&handle).map_err(failed("read the attributes"))?) {
            return Err(Defect::replaced(path));
        }
        let xattrs = attributes::read(&handle).map_err(failed("read the extended attributes"))?;
        if self.entry.kind == EntryKind::Symlink {
            let target = rustix::fs::readlinkat(&handle, c"", Vec::new()).map_err(failed("read the link"))?;
            self.entry.target = Some(target.into_bytes());
        }
        self.entry.xattrs = xattrs;
        Ok(())
    }

    /// Opens a regular file. The entry is brought up to date, so that it tells the file's
    /// state at this moment.
    ///
    /// # Errors
    /// When it is not what was found any more, or is not a regular file.
    pub fn open(&mut self) -> Result<SourceFile, Defect> {
        let path = &self.entry.path;
        let failed = |error| Defect::new(path, "open the file", error);
        if self.entry.kind != EntryKind::File {
            return Err(failed(Errno::INVAL));
        }
        // A FIFO or a terminal may have taken the name: neither may block us or be ours.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = open_unnoticed(self.parent.as_fd(), path.name(), flags, CONFINED).map_err(failed)?;
        let stat = Stat::of(&fd).map_err(failed)?;
        if !self.is(&stat) {
            return Err(Defect::replaced(path));
        }
        let (xattrs, path) = (self.entry.xattrs.take(), std::mem::take(&mut self.entry.path));
        self.entry = Entry { xattrs, ..stat.entry(path) };
        self.links = stat.links;
        Ok(SourceFile::new(fd, &stat))
    }
}
