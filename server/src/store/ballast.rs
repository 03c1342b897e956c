//! Space that the store holds for the day on which there is none left. Without it a full disk
//! could not even be emptied: to forget and to collect is to write first.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

use super::StoreError;
use super::disk::{Reserve, space};
use super::room::sync_directory;

/// It is this part of what is kept free.
const PART: u64 = 32;

/// A file of nothing.
#[derive(Debug)]
pub(crate) struct Ballast {
    home: PathBuf,
    path: PathBuf,
    size: u64,
    reserve: Reserve,
}

impl Ballast {
    pub(crate) fn of(home: &Path, reserve: Reserve) -> Self {
        Self { home: home.to_owned(), path: home.join("ballast"), size: reserve.bytes / PART, reserve }
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

    /// Takes it up when there is space for it beyond what is kept free.
    pub(crate) fn take(&self) {
        let held = fs::metadata(&self.path).map_or(0, |held| held.blocks().saturating_mul(512));
        let room = || {
            let (free, total) = space(&self.home)?;
            Ok::<_, StoreError>(free >= self.reserve.of(total).saturating_add(self.size))
        };
        if held >= self.size || !room().unwrap_or(false) {
            return;
        }
        let allocate = || -> io::Result<()> {
            let file = File::create(&self.path)?;
            rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, self.size)?;
            file.sync_all()
        };
        if let Err(error) = allocate() {
            tracing::warn!("no space can be held for a full disk: {error}");
            // Less than all of it would be taken for nothing.
            let _ = fs::remove_file(&self.path);
        }
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
}
