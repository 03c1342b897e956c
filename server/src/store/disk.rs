//! Packs as files of a local file system.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use vsync_protocol::id::PackId;

use super::health::Health;
use super::pack::Pack;
use super::room::{Cached, Room, is_full, sync_directory};
use super::{PackStore, StoreError, read_table};

/// How much space must stay free, so that catalog and log keep room to work and an
/// operator can still clean up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserve {
    /// Bytes.
    pub bytes: u64,
    /// Percent of the file system, on top of the bytes.
    pub percent: u8,
}

impl Reserve {
    /// Bytes that stay free of `total`.
    pub(crate) fn of(self, total: u64) -> u64 {
        self.bytes.saturating_add(total / 100 * u64::from(self.percent))
    }
}

impl Default for Reserve {
    fn default() -> Self {
        Self { bytes: 1 << 30, percent: 2 }
    }
}

/// Packs below one directory, spread over 256 others by the first byte of their names.
#[derive(Debug)]
pub struct DiskStore {
    room: Room,
    health: Health,
    reserve: Reserve,
}

impl DiskStore {
    /// Opens the packs at `path`.
    ///
    /// # Errors
    /// When the directories cannot be made.
    pub fn open(path: PathBuf, reserve: Reserve, health: Health) -> Result<Self, StoreError> {
        let room = Room::open(path, health.clone())?;
        // The last one made tells that all are there, and that they are durable.
        if !shard(room.path(), u8::MAX).exists() {
            create_shards(room.path())?;
        }
        Ok(Self { room, health, reserve })
    }

    /// Refuses when there is less free space than the reserve.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`], or when the system cannot tell.
    pub fn check_space(&self) -> Result<(), StoreError> {
        let (free, reserve) = self.space()?;
        if free < reserve { Err(self.no_space(free, reserve)) } else { Ok(()) }
    }

    /// Free bytes of the file system, and how many of them are kept free.
    ///
    /// # Errors
    /// When the system cannot tell.
    pub fn space(&self) -> Result<(u64, u64), StoreError> {
        let (free, total) = space(self.room.path())?;
        Ok((free, self.reserve.of(total)))
    }

    /// Free bytes of the file system.
    ///
    /// # Errors
    /// When the system cannot tell.
    pub fn free(&self) -> Result<u64, StoreError> {
        space(self.room.path()).map(|(free, _)| free)
    }

    /// Bytes of the file system, free or not.
    ///
    /// # Errors
    /// When the system cannot tell.
    pub fn size(&self) -> Result<u64, StoreError> {
        space(self.room.path()).map(|(_, size)| size)
    }

    /// The file of a pack.
    #[cfg(test)]
    pub(crate) fn path_of(&self, pack: PackId) -> PathBuf {
        self.room.path().join(name(pack))
    }

    fn no_space(&self, free: u64, reserve: u64) -> StoreError {
        StoreError::NoSpace { path: self.room.path().to_owned(), free, reserve }
    }

    fn open_pack(&self, pack: PackId) -> Result<Option<(File, PathBuf)>, StoreError> {
        let path = self.room.path().join(name(pack));
        match File::open(&path) {
            Ok(file) => Ok(Some((file, path))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("open", path)(error)),
        }
    }
}

impl DiskStore {
    /// As `put`, but may use the reserve: what garbage collection writes frees more.
    ///
    /// # Errors
    /// When the pack is not durable; then nothing of it is visible.
    pub fn put_from_reserve(&self, pack: &Pack) -> Result<(), StoreError> {
        match self.room.write(&name(pack.id()), &mut pack.slices(), Cached::Dropped) {
            Err(StoreError::Io { source, .. }) if is_full(&source) => return Err(self.no_space(0, self.reserve.bytes)),
            result => result?,
        }
        // Read back through the name: whatever else went wrong, nobody is told that a pack
        // is there which cannot be found again.
        let reads_back = read_table(self, pack.id()).is_ok_and(|table| table.as_deref() == Some(pack.records()));
        if !reads_back {
            self.health.fail(StoreError::NotWritten(pack.id()).to_string());
            return Err(StoreError::NotWritten(pack.id()));
        }
        Ok(())
    }

    /// Moves a pack to the directory `trash`. That it is there already, or nowhere, is fine.
    ///
    /// # Errors
    /// When the move is not durable.
    pub fn move_to(&self, trash: &Path, pack: PackId) -> Result<(), StoreError> {
        self.health.check()?;
        let (path, steps) = (self.room.path().join(name(pack)), self.health.steps());
        let parent = path.parent().unwrap_or_else(|| self.room.path());
        match steps.take("move a pack to the trash", || fs::rename(&path, trash.join(format!("{pack}.pack")))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result.map_err(StoreError::io("move to the trash", &path))?,
        }
        for directory in [trash, parent] {
            let synced = steps.take("sync a directory of moved packs", || sync_directory(directory));
            self.health.watch("sync", directory, synced)?;
        }
        Ok(())
    }
}

impl PackStore for DiskStore {
    fn put(&self, pack: &Pack) -> Result<(), StoreError> {
        self.check_space()?;
        self.put_from_reserve(pack)
    }

    fn len(&self, pack: PackId) -> Result<Option<u64>, StoreError> {
        let Some((file, path)) = self.open_pack(pack)? else { return Ok(None) };
        file.metadata().map(|metadata| Some(metadata.len())).map_err(StoreError::io("look at", path))
    }

    fn read(&self, pack: PackId, offset: u64, buffer: &mut [u8]) -> Result<bool, StoreError> {
        if i64::try_from(offset).is_err() {
            return Ok(false);
        }
        let Some((file, path)) = self.open_pack(pack)? else { return Ok(false) };
        match file.read_exact_at(buffer, offset) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(StoreError::io("read", path)(error)),
        }
    }

    fn list(&self) -> Result<Vec<PackId>, StoreError> {
        let mut packs = Vec::new();
        for first in 0..=u8::MAX {
            let shard = shard(self.room.path(), first);
            for entry in fs::read_dir(&shard).map_err(StoreError::io("list", &shard))? {
                let entry = entry.map_err(StoreError::io("list", &shard))?;
                // Foreign files are left alone.
                let name = entry.file_name();
                packs.extend(name.to_str().and_then(|name| name.strip_suffix(".pack")?.parse::<PackId>().ok()));
            }
        }
        Ok(packs)
    }
}

fn shard(packs: &Path, first: u8) -> PathBuf {
    packs.join(format!("{first:02x}"))
}

fn create_shards(packs: &Path) -> Result<(), StoreError> {
    for first in 0..=u8::MAX {
        if first == u8::MAX {
            sync_directory(packs).map_err(StoreError::io("sync", packs))?;
        }
        let shard = shard(packs, first);
        fs::create_dir_all(&shard).map_err(StoreError::io("create", shard))?;
    }
    sync_directory(packs).map_err(StoreError::io("sync", packs))
}

fn name(pack: PackId) -> PathBuf {
    Path::new(&format!("{:02x}", pack.as_bytes()[0])).join(format!("{pack}.pack"))
}

/// Free and total bytes of the file system that holds `path`.
pub(crate) fn space(path: &Path) -> Result<(u64, u64), StoreError> {
    let found =
        rustix::fs::statvfs(path).map_err(|error| StoreError::io("look at the space of", path)(error.into()))?;
    Ok((found.f_bavail.saturating_mul(found.f_frsize), found.f_blocks.saturating_mul(found.f_frsize)))
}
