//! Writing whole files so that they are either there in full and durable, or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Advice, fadvise};

use super::StoreError;
use super::health::Health;

/// A large file is on its way to the disk after so many bytes: the sync at its end then waits
/// for the rest only.
const STEP: u64 = 4 << 20;

/// What stays in the page cache at the end of a file that leaves it: more than enough for
/// reading its last bytes back.
const TAIL: u64 = 64 << 10;

/// What becomes of a file's bytes in the page cache once they are durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cached {
    /// They stay: few, and soon read again.
    Kept,
    /// They go: a store is larger than memory, and would push out what other programs keep
    /// there. The memory is used again for the next file, which costs less than memory that
    /// is new, too.
    Dropped,
}

/// A directory of immutable files, with a `tmp` directory of its own for unfinished ones.
#[derive(Debug)]
pub struct Room {
    path: PathBuf,
    health: Health,
    unfinished: AtomicU64,
}

impl Room {
    /// Opens the directory, making it if need be, and removes what was left unfinished.
    ///
    /// # Errors
    /// When the directory cannot be made or cleaned.
    pub fn open(path: PathBuf, health: Health) -> Result<Self, StoreError> {
        let tmp = path.join("tmp");
        fs::create_dir_all(&tmp).map_err(StoreError::io("create", &tmp))?;
        for left in fs::read_dir(&tmp).map_err(StoreError::io("list", &tmp))? {
            let left = left.map_err(StoreError::io("list", &tmp))?.path();
            fs::remove_file(&left).map_err(StoreError::io("remove", left))?;
        }
        Ok(Self { path, health, unfinished: AtomicU64::new(0) })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the file `name`, a path below this room whose directory exists, durable.
    ///
    /// # Errors
    /// When it is not durable. Any error but a full disk stops all writing to the store.
    pub fn write(&self, name: &Path, parts: &mut [IoSlice<'_>], cached: Cached) -> Result<(), StoreError> {
        self.health.check()?;
        let number = self.unfinished.fetch_add(1, Ordering::Relaxed);
        let tmp = self.path.join("tmp").join(number.to_string());
        let path = self.path.join(name);
        let written = self.write_tmp(&tmp, parts, cached).and_then(|()| self.publish(&tmp, &path));
        if written.is_err() {
            // Only tidiness: the next start removes it too.
            let _ = fs::remove_file(&tmp);
        }
        written
    }

    fn write_tmp(&self, tmp: &Path, parts: &mut [IoSlice<'_>], cached: Cached) -> Result<(), StoreError> {
        let steps = self.health.steps();
        let open = || OpenOptions::new().write(true).create_new(true).open(tmp);
        let file = steps.take("create a file", open).map_err(StoreError::io("create", tmp))?;
        let len = match steps.take("write a file", || write_all(&file, parts, cached)) {
            // A full disk is no damage: nothing has become visible.
            Err(error) if is_full(&error) => return Err(StoreError::io("write", tmp)(error)),
            result => self.health.watch("write", tmp, result)?,
        };
        self.health.watch("sync", tmp, steps.take("sync a file", || file.sync_data()))?;
        if cached == Cached::Dropped {
            let_go(&file, 0, len.saturating_sub(TAIL));
        }
        Ok(())
    }

    /// Gives a durable temporary file its name, and makes the name durable.
    fn publish(&self, tmp: &Path, path: &Path) -> Result<(), StoreError> {
        let parent = path.parent().unwrap_or(&self.path);
        // Opened before the rename: afterwards, failing to open it would leave a name that
        // may or may not survive a power cut.
        let directory = File::open(parent).map_err(StoreError::io("open", parent))?;
        let steps = self.health.steps();
        steps.take("name a file", || fs::rename(tmp, path)).map_err(StoreError::io("rename into", path))?;
        self.health.watch("sync", parent, steps.take("sync a directory", || directory.sync_all()))
    }
}

/// Keeps `bytes` as `name` in `directory` for a person to look at; durable when this returns.
pub(crate) fn set_aside(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
    let (part, path) = (directory.join(format!("{name}.part")), directory.join(name));
    let write = || {
        let mut file = File::create(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&part, &path)?;
        sync_directory(directory)
    };
    write().map_err(|error| {
        // Only tidiness.
        let _ = fs::remove_file(&part);
        StoreError::io("write", &path)(error)
    })
}

/// Whether the disk, or a quota on it, is full.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Writes all of `parts`, and returns how many bytes that was.
fn write_all(mut file: &File, mut parts: &mut [IoSlice<'_>], cached: Cached) -> io::Result<u64> {
    let (mut written, mut on_its_way) = (0, 0);
    while !parts.is_empty() {
        let mut room = STEP;
        let within = |part: &&IoSlice<'_>| {
            room = room.saturating_sub(part.len() as u64);
            room > 0
        };
        let count = parts.iter().take_while(within).count().max(1);
        match file.write_vectored(&parts[..count]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(len) => {
                IoSlice::advance_slices(&mut parts, len);
                written += len as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if cached == Cached::Dropped && written - on_its_way >= STEP {
            let_go(file, on_its_way, written - on_its_way);
            on_its_way = written;
        }
    }
    Ok(written)
}

/// Says that `len` bytes at `offset` are not needed in the page cache. What is not on disk yet
/// begins to be written, and stays until then.
fn let_go(file: &File, offset: u64, len: u64) {
    if let Some(len) = NonZeroU64::new(len) {
        // Advice: a file system that does not take it keeps the pages.
        let _ = fadvise(file, offset, Some(len), Advice::DontNeed);
    }
}
