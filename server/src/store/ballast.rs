//! Space that the store holds for the day on which there is none left. Without it a full disk
//! could not even be emptied: to forget and to collect is to write first.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::FallocateFlags;
use thiserror::Error;

use super::StoreError;
use super::disk::{Reserve, space};
use super::room::{is_full, sync_directory};

/// It is this part of what is kept free.
const PART: u64 = 32;

/// A file of nothing.
#[derive(Debug)]
pub(crate) struct Ballast {
    home: PathBuf,
    path: PathBuf,
    size: u64,
    reserve: Reserve,
    /// This file system holds none.
    given_up: AtomicBool,
    /// Somebody was told that none is held.
    told: AtomicBool,
}

impl Ballast {
    pub(crate) fn of(home: &Path, reserve: Reserve) -> Self {
        Self {
            home: home.to_owned(),
            path: home.join("ballast"),
            size: reserve.bytes / PART,
            reserve,
            given_up: AtomicBool::new(false),
            told: AtomicBool::new(false),
        }
    }

    /// Lets go of it when there is less space than it holds.
    ///
    /// # Errors
    /// When it cannot be removed, or the system cannot tell how much space there is.
    pub(crate) fn let_go_if_needed(&self) -> Result<(), StoreError> {
        if space(&self.home)?.0 < self.size { self.let_go() } else { Ok(()) }
    }

    /// Lets go of it.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub(crate) fn let_go(&self) -> Result<(), StoreError> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => removed.map_err(StoreError::io("remove", &self.path))?,
        }
        tracing::warn!("the disk is full; {} bytes that were held for this are free now", self.size);
        // Some file systems free space with the next commit only.
        sync_directory(&self.home).map_err(StoreError::io("sync", &self.home))
    }

    /// Takes it up when there is space for it beyond what is kept free. Where the file system
    /// holds nothing, that is not tried again until the next start.
    pub(crate) fn take(&self) {
        let room = || {
            let (free, total) = space(&self.home)?;
            Ok::<_, StoreError>(free >= self.reserve.of(total).saturating_add(self.size))
        };
        if self.given_up.load(Ordering::Relaxed) || self.held() >= self.size || !room().unwrap_or(false) {
            return;
        }
        let Err(why) = judge(self.allocate(), self.size) else { return };
        // Less than all of it would be taken for nothing.
        let _ = fs::remove_file(&self.path);
        self.given_up.store(!why.may_pass(), Ordering::Relaxed);
        if !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!("no space is held for the day on which the disk is full: {why}");
        }
    }

    /// Bytes of the disk that it takes.
    fn held(&self) -> u64 {
        fs::metadata(&self.path).map_or(0, |held| held.blocks().saturating_mul(512))
    }

    /// Returns how many bytes the file system holds then.
    fn allocate(&self) -> io::Result<u64> {
        let file = File::create(&self.path)?;
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, self.size)?;
        file.sync_all()?;
        Ok(self.held())
    }
}

/// Why no space is held.
#[derive(Debug, Error)]
enum Loose {
    /// There is none, or a quota leaves none.
    #[error("{0}")]
    Full(io::Error),
    /// The file system cannot, or not now.
    #[error("{0}")]
    Refused(io::Error),
    /// It says that it did; but what is written later takes space of its own.
    #[error("the file system set {held} bytes aside when asked for {size}")]
    Nothing { held: u64, size: u64 },
}

impl Loose {
    /// Whether it is worth trying again.
    const fn may_pass(&self) -> bool {
        match self {
            Self::Full(_) => true,
            Self::Refused(_) | Self::Nothing { .. } => false,
        }
    }
}

/// What came of allocating `size` bytes, of which the file system then held so many.
fn judge(allocated: io::Result<u64>, size: u64) -> Result<(), Loose> {
    match allocated {
        Ok(held) if held >= size => Ok(()),
        Ok(held) => Err(Loose::Nothing { held, size }),
        Err(error) if is_full(&error) => Err(Loose::Full(error)),
        Err(error) => Err(Loose::Refused(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_taken_when_there_is_room_and_dropped_when_there_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ballast");
        let ballast = Ballast::of(dir.path(), Reserve { bytes: PART << 20, percent: 0 });
        ballast.let_go_if_needed().unwrap();
        ballast.take();
        assert!(fs::metadata(&path).unwrap().blocks() * 512 >= 1 << 20);
        ballast.let_go_if_needed().unwrap();
        assert!(path.exists(), "there is space");
        // Somebody copied the store without it.
        fs::write(&path, "").unwrap();
        ballast.take();
        assert!(fs::metadata(&path).unwrap().blocks() * 512 >= 1 << 20);
        ballast.let_go().unwrap();
        assert!(!path.exists());
        ballast.let_go().unwrap();
        let none = Ballast::of(dir.path(), Reserve { bytes: u64::MAX, percent: 0 });
        none.take();
        assert!(!path.exists(), "there is no such disk");
        none.let_go_if_needed().unwrap();
    }

    #[test]
    fn what_cannot_be_held_is_tried_again_only_where_that_may_help() {
        use rustix::io::Errno;
        let failed = |errno: Errno| judge(Err(errno.into()), 4096).unwrap_err().may_pass();
        assert!(judge(Ok(4096), 4096).is_ok());
        assert!(judge(Ok(8192), 4096).is_ok());
        assert!(failed(Errno::NOSPC) && failed(Errno::DQUOT));
        assert!(!failed(Errno::OPNOTSUPP) && !failed(Errno::IO));
        // As ZFS does, and whoever compresses.
        assert!(!judge(Ok(512), 4096).unwrap_err().may_pass());
    }

    #[test]
    fn one_try_is_enough_where_nothing_can_be_held() {
        let dir = tempfile::tempdir().unwrap();
        let ballast = Ballast::of(dir.path(), Reserve { bytes: PART << 20, percent: 0 });
        // Whatever cannot be made a file.
        fs::create_dir(dir.path().join("ballast")).unwrap();
        ballast.take();
        assert!(ballast.given_up.load(Ordering::Relaxed) && ballast.told.load(Ordering::Relaxed));
        fs::remove_dir(dir.path().join("ballast")).unwrap();
        ballast.take();
        assert!(!dir.path().join("ballast").exists());
        // The next start may find another file system.
        let next = Ballast::of(dir.path(), ballast.reserve);
        next.take();
        assert!(next.held() >= 1 << 20);
    }
}
