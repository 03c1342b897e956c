//! Writing a restored file: it gets its name when it is complete, or is updated in place.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags, fallocate, fsync, ftruncate, linkat, openat};
use rustix::io::{Errno, Result as SysResult, retry_on_intr};
use rustix::process::geteuid;
use vsync_protocol::tree::{Entry, EntryKind, EntryPath};

use super::attributes;
use super::source::DataRanges;
use super::sys::{Stat, handle_path, pin};
use super::target::{PRIVATE_FILE, Placed, Spot, Staging, State, Target, TargetError, Trying};
use super::writeback::Writeback;

/// Zeros written at once where holes cannot be punched.
const ZEROS: &[u8] = &[0; 64 << 10];

/// A regular file that is being restored. Several threads may write to it at once.
#[derive(Debug)]
pub struct TargetFile {
    file: File,
    spot: Spot,
    stage: Stage,
    writeback: Arc<Writeback>,
}

#[derive(Debug)]
enum Stage {
    Unnamed,
    Partial { name: CString, resumed: bool },
    InPlace,
}

impl Target {
    /// Begins a new file for `path`. What is at `path` stays until the file is finished.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn create_file(&self, path: &EntryPath, staging: Staging) -> Result<TargetFile, TargetError> {
        let spot = self.spot(path)?;
        if staging == Staging::Unnamed && !self.named_only.load(Ordering::Relaxed) {
            match open_unnamed(&spot) {
                Ok(fd) => return Ok(self.file(fd, spot, Stage::Unnamed)),
                // What file systems say that cannot do this; the last one is what NFS says.
                Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {
                    self.named_only.store(true, Ordering::Relaxed);
                }
                Err(error) => return Err(error).trying("create", path),
            }
        }
        let name = spot.partial_name();
        let resumable = match staging {
            Staging::Resumable => open_partial(&spot, &name).trying("resume", path)?,
            Staging::Unnamed => None,
        };
        let resumed = resumable.is_some();
        let fd = match resumable {
            Some(fd) => fd,
            None => {
                self.remove_at(&spot, &name)?;
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                openat(&spot.directory, &name, flags, PRIVATE_FILE).trying("create", path)?
            }
        };
        Ok(self.file(fd, spot, Stage::Partial { name, resumed }))
    }

    fn file(&self, fd: OwnedFd, spot: Spot, stage: Stage) -> TargetFile {
        TargetFile { file: fd.into(), spot, stage, writeback: self.writeback.clone() }
    }

    /// Opens the file at `path` to be compared. `None` when there is no regular file that
    /// can be read.
    ///
    /// # Errors
    /// When its directory cannot be opened.
    pub fn read_file(&self, path: &EntryPath) -> Result<Option<TargetFile>, TargetError> {
        let spot = match self.spot(path) {
            Err(TargetError::Io { source: Errno::NOENT | Errno::NOTDIR, .. }) => return Ok(None),
            spot => spot?,
        };
        match open_existing(&spot, &spot.name, OFlags::RDONLY, |_| true) {
            Err(Errno::ACCESS | Errno::PERM) => Ok(None),
            found => Ok(found.trying("open", path)?.map(|fd| self.file(fd, spot, Stage::InPlace))),
        }
    }

    /// Opens the file at `path` to be changed where it is. `None` when that cannot or must
    /// not be done: it is no regular file, has further names that may be other files in the
    /// snapshot, is being executed, or may not be written to. Then a new one replaces it.
    ///
    /// # Errors
    /// When its directory cannot be opened.
    pub fn update_file(&self, path: &EntryPath) -> Result<Option<TargetFile>, TargetError> {
        let spot = self.spot(path)?;
        let found = open_existing(&spot, &spot.name, OFlags::RDWR, |stat| stat.links == 1);
        match found {
            Err(Errno::TXTBSY | Errno::ACCESS | Errno::PERM) => Ok(None),
            found => Ok(found.trying("open", path)?.map(|fd| self.file(fd, spot, Stage::InPlace))),
        }
    }
}

impl TargetFile {
    /// Whether this is what an earlier, interrupted restore of the same path left. Its
    /// content is of unknown worth: compare before use.
    #[must_use]
    pub const fn is_resumed(&self) -> bool {
        matches!(self.stage, Stage::Partial { resumed: true, .. })
    }

    /// Which inode it is, when that last changed, and its size.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn state(&self) -> Result<State, TargetError> {
        Ok(Stat::of(&self.file).trying("look at", &self.spot.path)?.state())
    }

    /// Reads at `offset` until `buf` is full or the file ends; returns how much it read.
    ///
    /// # Errors
    /// When the system fails to read.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize, TargetError> {
        super::source::read_full(&self.file, buf, offset).map_err(errno).trying("read", &self.spot.path)
    }

    /// Where the file has data within `range`; the rest of it is holes.
    ///
    /// # Errors
    /// When the system fails to tell.
    pub fn data_within(&self, range: Range<u64>) -> Result<Vec<Range<u64>>, TargetError> {
        let ranges: io::Result<Vec<_>> = DataRanges::of(&self.file, range).collect();
        ranges.map_err(errno).trying("look for holes in", &self.spot.path)
    }

    /// Writes all of `buf` at `offset`.
    ///
    /// # Errors
    /// When the system fails to write.
    pub fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), TargetError> {
        self.file.write_all_at(buf, offset).map_err(errno).trying("write", &self.spot.path)?;
        self.writeback.wrote(offset, buf.len())
    }

    /// Makes a range read as zeros, and gives its blocks back where the file system can.
    /// The size stays.
    ///
    /// # Errors
    /// When the system fails to write.
    pub fn punch_hole(&self, range: Range<u64>) -> Result<(), TargetError> {
        let path = &self.spot.path;
        let end = range.end.min(self.state()?.size);
        let Some(len) = end.checked_sub(range.start).filter(|&len| len > 0) else { return Ok(()) };
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match retry_on_intr(|| fallocate(&self.file, flags, range.start, len)) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.write_zeros(range.start, end),
            outcome => outcome.trying("punch a hole into", path),
        }
    }

    /// Makes room for `len` bytes at `offset`, or takes them out there if `len` is negative,
    /// without copying what follows. Returns whether the file system can do that: both must
    /// be multiples of its block size, and few file systems can at all.
    ///
    /// # Errors
    /// When the file system is full.
    pub fn shift(&self, offset: u64, len: i64) -> Result<bool, TargetError> {
        let flags = if len < 0 { FallocateFlags::COLLAPSE_RANGE } else { FallocateFlags::INSERT_RANGE };
        match retry_on_intr(|| fallocate(&self.file, flags, offset, len.unsigned_abs())) {
            Ok(()) => Ok(true),
            Err(error @ (Errno::NOSPC | Errno::DQUOT)) => Err(error).trying("make room in", &self.spot.path),
            Err(_) => Ok(false),
        }
    }

    fn write_zeros(&self, start: u64, end: u64) -> Result<(), TargetError> {
        let mut at = start;
        while at < end {
            let zeros = usize::try_from(end - at).ok().and_then(|len| ZEROS.get(..len)).unwrap_or(ZEROS);
            self.write_at(zeros, at)?;
            at += zeros.len() as u64;
        }
        Ok(())
    }

    /// Cuts the file to `len`, or extends it by a hole.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn set_len(&self, len: u64) -> Result<(), TargetError> {
        retry_on_intr(|| ftruncate(&self.file, len)).trying("set the size of", &self.spot.path)
    }

    /// Makes the content durable. Not needed where [`Target::sync`] follows.
    ///
    /// # Errors
    /// When the system fails to write.
    pub fn sync(&self) -> Result<(), TargetError> {
        retry_on_intr(|| fsync(&self.file)).trying("write to disk", &self.spot.path)
    }

    /// Gives the file its size and its metadata, then its name. Its content must be complete:
    /// from here on it is taken for restored.
    ///
    /// # Errors
    /// When it cannot get its name.
    pub fn finish(self, target: &Target, entry: &Entry) -> Result<Placed, TargetError> {
        let path = &self.spot.path;
        // Metadata first: no moment shows the file under its name with the wrong owner.
        let mut before = Stat::of(&self.file).trying("look at", path)?;
        // Holes at the end, and whatever an older version had beyond.
        if before.size != entry.size {
            self.set_len(entry.size)?;
            before = Stat::of(&self.file).trying("look at", path)?;
        }
        let unrestored = attributes::apply_to_file(&self.file, before, entry).trying("look at", path)?.unrestored;
        match &self.stage {
            Stage::Unnamed => self.link(target)?,
            Stage::Partial { name, .. } => target.replace(&self.spot, name)?,
            Stage::InPlace => {}
        }
        self.writeback.touched(1)?;
        let stat = Stat::of(&self.file).trying("look at", path)?;
        Ok(Placed { unrestored, before: before.state(), state: stat.state() })
    }

    /// Gives the file up, because its content turned out to be wrong. A new one leaves
    /// nothing; one that is updated in place stays as it is by now.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn discard(self, target: &Target) -> Result<(), TargetError> {
        match &self.stage {
            Stage::Partial { name, .. } => target.remove_at(&self.spot, name),
            Stage::Unnamed | Stage::InPlace => Ok(()),
        }
    }

    /// Names a file that has none, over whatever is there.
    fn link(&self, target: &Target) -> Result<(), TargetError> {
        let Spot { directory, name, path } = &self.spot;
        let link = |name| match linkat(&self.file, c"", directory, name, AtFlags::EMPTY_PATH) {
            // Older kernels let only the privileged do this. Where it works, it spares a way through /proc.
            Err(Errno::NOENT) => linkat(CWD, handle_path(&self.file), directory, name, AtFlags::SYMLINK_FOLLOW),
            outcome => outcome,
        };
        match link(name) {
            Err(Errno::EXIST) => {}
            outcome => return outcome.trying("name", path),
        }
        let staged = self.spot.partial_name();
        target.remove_at(&self.spot, &staged)?;
        link(&staged).trying("name", path)?;
        target.replace(&self.spot, &staged)
    }
}

fn open_unnamed(spot: &Spot) -> SysResult<OwnedFd> {
    openat(&spot.directory, c".", OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, PRIVATE_FILE)
}

/// Opens what an interrupted restore left, if it can only be ours: anyone may create a file
/// of that name, but not one that belongs to us, has no second name and is open to no one else.
fn open_partial(spot: &Spot, name: &CString) -> SysResult<Option<OwnedFd>> {
    let me = geteuid().as_raw();
    open_existing(spot, name, OFlags::RDWR, |stat| {
        stat.links == 1 && stat.uid == me && stat.mode == PRIVATE_FILE.bits()
    })
}

/// Opens an existing regular file, if it is `acceptable`. It is looked at
/// through a handle first: merely opening a device or a FIFO may have effects.
fn open_existing(
    spot: &Spot,
    name: &CString,
    access: OFlags,
    acceptable: impl Fn(&Stat) -> bool,
) -> SysResult<Option<OwnedFd>> {
    let handle = match pin(&spot.directory, &**name) {
        Err(Errno::NOENT) => return Ok(None),
        other => other?,
    };
    let stat = Stat::of(&handle)?;
    if stat.kind != EntryKind::File || !acceptable(&stat) {
        return Ok(None);
    }
    // Opens the very inode that the handle holds, whatever has its name by now.
    openat(CWD, handle_path(&handle), access | OFlags::CLOEXEC, Mode::empty()).map(Some)
}

fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
