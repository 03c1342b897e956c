//! The files of a store: where they lie, how they become durable, and who may write.
//!
//! ```text
//! VERSION                  format of the store, and its realm
//! lock                     held by the one process that has the store open
//! packs/xx/<id>.pack       blobs
//! manifests/<id>.manifest  the manifest of each snapshot
//! log/chain.log            what became and ceased to be a snapshot, in order
//! trash/                   packs of no more use, kept for some days
//! quarantine/              torn or damaged pieces, kept for a person to look at
//! catalog.sqlite           an index of all that; can be made anew from it
//! ballast                  space that is held for a full disk
//! ```
//!
//! Nothing here knows what a session or a request is.

pub(crate) mod ballast;
pub mod disk;
pub mod health;
pub mod home;
pub mod journal;
pub mod memory;
pub mod pack;
pub mod room;
pub mod steps;

#[cfg(test)]
mod conformance;

use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use rustix::io::Errno;
use thiserror::Error;

use crate::words::report;
use vsync_protocol::id::{Cid, PackId, RealmId};

use pack::{FOOTER_LEN, PACK_SIZE, Pack, PackError, RECORD_HEAD_LEN, Record};

/// Why the store could not do something.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The operating system refused.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A pack's table cannot be read.
    #[error("pack {pack} is damaged")]
    Pack {
        /// The pack.
        pack: PackId,
        /// What is wrong with it.
        source: PackError,
    },
    /// What was just written does not read back.
    #[error("pack {0} was written but does not read back; the disk or the file system is at fault")]
    NotWritten(PackId),
    /// The log does not hold together.
    #[error("log {path} is damaged at byte {offset}: {what}")]
    Log {
        /// The log file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong there.
        what: &'static str,
    },
    /// What would be made anew is there.
    #[error("{path} is not made anew: {reason}")]
    NotLost {
        /// The file.
        path: PathBuf,
        /// What is there instead, and what to do.
        reason: &'static str,
    },
    /// Too little space is left.
    #[error("no space: {free} bytes are free at {path}, {reserve} are kept in reserve")]
    NoSpace {
        /// The store.
        path: PathBuf,
        /// Bytes free now.
        free: u64,
        /// Bytes that must stay free.
        reserve: u64,
    },
    /// An earlier error stopped all writing.
    #[error("the store takes no writes since: {0}")]
    ReadOnly(String),
    /// Another process has the store open.
    #[error("store {0} is in use by another process; one server at a time may open it")]
    Locked(PathBuf),
    /// The store was written by a newer program.
    #[error("store {path} has format {found}, this program knows {known}; use a newer vsync")]
    Newer {
        /// The store.
        path: PathBuf,
        /// The format it has.
        found: u32,
        /// The highest format known here.
        known: u32,
    },
    /// The store keeps another realm.
    #[error("store {path} belongs to realm {found}, not {wanted}")]
    OtherRealm {
        /// The store.
        path: PathBuf,
        /// Its realm.
        found: RealmId,
        /// The realm asked for.
        wanted: RealmId,
    },
    /// A file system that does not keep its promises.
    #[error(
        "store {path} is on {kind}, which does not keep what it was told to sync; \
         use a local disk, or make an empty file `any-file-system` in it to take the risk"
    )]
    FileSystem {
        /// The store.
        path: PathBuf,
        /// What it is on.
        kind: &'static str,
    },
    /// There are files, but not those of a store.
    #[error("{0} is neither empty nor a vsync store")]
    NotAStore(PathBuf),
}

impl StoreError {
    /// Whether the medium cannot read what it holds, which is damage if it happens again. To
    /// be out of memory or open files is none.
    #[must_use]
    pub fn is_unreadable(&self) -> bool {
        let Self::Io { operation: "read" | "open" | "look at", source, .. } = self else { return false };
        // The latter two are what file systems with checksums say.
        let damage = [Errno::IO, Errno::BADMSG, Errno::UCLEAN];
        source.raw_os_error().is_some_and(|code| damage.iter().any(|errno| errno.raw_os_error() == code))
    }

    /// Wraps an I/O error with what was tried on which file.
    pub fn io(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { operation, path: path.into(), source }
    }
}

/// Where packs lie: a local disk now, object storage later.
///
/// A pack is written whole and never changed. `put` returns once the pack is durable and
/// reads back; before that nobody sees any of it. Putting a pack that is already there
/// replaces it by the same bytes, which heals a damaged one. What is not there is a value,
/// never an error. All methods may be called from many threads at once, and block.
pub trait PackStore: Send + Sync {
    /// Makes `pack` durable.
    ///
    /// # Errors
    /// When it is not durable; then nothing of it is visible.
    fn put(&self, pack: &Pack) -> Result<(), StoreError>;

    /// Length of a pack in bytes.
    ///
    /// # Errors
    /// When the store cannot tell.
    fn len(&self, pack: PackId) -> Result<Option<u64>, StoreError>;

    /// Fills `buffer` with the bytes at `offset`. Returns whether it did: not when the pack
    /// is absent or ends before.
    ///
    /// # Errors
    /// When the medium fails.
    fn read(&self, pack: PackId, offset: u64, buffer: &mut [u8]) -> Result<bool, StoreError>;

    /// The names of all packs, in any order.
    ///
    /// # Errors
    /// When the store cannot be listed.
    fn list(&self) -> Result<Vec<PackId>, StoreError>;
}

/// As [`PackStore::read`], and once more when the medium could not: that may pass.
fn read_twice(store: &dyn PackStore, pack: PackId, offset: u64, buffer: &mut [u8]) -> Result<bool, StoreError> {
    match store.read(pack, offset, buffer) {
        Err(error) if error.is_unreadable() => store.read(pack, offset, buffer),
        result => result,
    }
}

/// As [`PackStore::read`]; what the medium cannot read, twice, is not there either.
///
/// # Errors
/// When it cannot be told: that says nothing of what is there.
pub(crate) fn read_or_damaged(
    store: &dyn PackStore,
    pack: PackId,
    offset: u64,
    buffer: &mut [u8],
) -> Result<bool, StoreError> {
    match read_twice(store, pack, offset, buffer) {
        Err(error) if error.is_unreadable() => {
            tracing::error!("{}", report(&error));
            Ok(false)
        }
        read => read,
    }
}

/// What a pack holds, read and checked from its table. `None` when there is no such pack. A
/// table that the medium cannot read, twice, is damaged.
///
/// # Errors
/// When the table is damaged or the medium fails.
pub fn read_table(store: &dyn PackStore, pack: PackId) -> Result<Option<Vec<Record>>, StoreError> {
    match try_table(store, pack) {
        Err(error) if error.is_unreadable() => {
            tracing::error!("{}", report(&error));
            Err(StoreError::Pack { pack, source: PackError::Unreadable })
        }
        result => result,
    }
}

fn try_table(store: &dyn PackStore, pack: PackId) -> Result<Option<Vec<Record>>, StoreError> {
    let damaged = |source| StoreError::Pack { pack, source };
    let Some(len) = store.len(pack)? else { return Ok(None) };
    let Some(start) = len.checked_sub(FOOTER_LEN as u64) else { return Err(damaged(PackError::Magic)) };
    let mut footer = [0; FOOTER_LEN];
    if !read_twice(store, pack, start, &mut footer)? {
        return Ok(None);
    }
    let mut trailer = vec![0; pack::table_len(&footer, len).map_err(damaged)? + FOOTER_LEN];
    if !read_twice(store, pack, len - trailer.len() as u64, &mut trailer)? {
        return Ok(None);
    }
    pack::read_table(pack, &trailer, len).map(Some).map_err(damaged)
}

/// Reads one blob and checks it against its name; none when it is absent or damaged. One
/// that the medium cannot read, twice, is damaged.
///
/// # Errors
/// When the medium fails.
pub fn read_blob(
    store: &dyn PackStore,
    pack: PackId,
    offset: u64,
    len: u32,
    cid: Cid,
) -> Result<Option<Bytes>, StoreError> {
    let Some(start) = offset.checked_sub(RECORD_HEAD_LEN as u64) else { return Ok(None) };
    let mut record = vec![0; RECORD_HEAD_LEN + len as usize];
    let read = read_or_damaged(store, pack, start, &mut record)?;
    if !read || !pack::is_head_of(&record[..RECORD_HEAD_LEN], cid, len) {
        return Ok(None);
    }
    let blob = Bytes::from(record).slice(RECORD_HEAD_LEN..);
    Ok(Some(blob).filter(|blob| Cid::of(blob) == cid))
}

/// Whether the blob of `record` lies in `pack` and matches its name.
///
/// # Errors
/// When that cannot be told.
pub fn is_whole(store: &dyn PackStore, pack: PackId, record: &Record) -> Result<bool, StoreError> {
    Ok(read_blob(store, pack, record.offset, record.len, record.cid)?.is_some())
}

/// Those of the blobs in `pack` that are `wanted` and whole; none of a pack whose table is
/// damaged.
///
/// # Errors
/// When that cannot be told.
pub fn whole_copies(
    store: &dyn PackStore,
    pack: PackId,
    wanted: impl Fn(&Cid) -> bool,
) -> Result<Vec<Record>, StoreError> {
    let table = match read_table(store, pack) {
        Err(StoreError::Pack { .. }) => None,
        table => table?,
    };
    let mut copies = Vec::new();
    for record in table.unwrap_or_default().into_iter().filter(|record| wanted(&record.cid)) {
        if is_whole(store, pack, &record)? {
            copies.push(record);
        }
    }
    Ok(copies)
}

/// More than any pack that this program writes, less than what would not fit in memory.
const MAX_SALVAGE: usize = 4 * PACK_SIZE;

/// What a medium reads or does not read as a whole.
const SECTOR: usize = 4096;

/// The bytes of a pack, with zeros where the medium cannot read it; none when there is no
/// such pack.
///
/// # Errors
/// When it cannot be read for another reason.
pub fn salvage(store: &dyn PackStore, pack: PackId) -> Result<Option<Vec<u8>>, StoreError> {
    let Some(len) = store.len(pack)? else { return Ok(None) };
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX).min(MAX_SALVAGE)];
    match store.read(pack, 0, &mut bytes) {
        Err(error) if error.is_unreadable() => {}
        read => return Ok(read?.then_some(bytes)),
    }
    for (number, sector) in bytes.chunks_mut(SECTOR).enumerate() {
        match store.read(pack, (number * SECTOR) as u64, sector) {
            Err(error) if error.is_unreadable() => sector.fill(0),
            Ok(true) => {}
            read => return read.map(|_| None),
        }
    }
    Ok(Some(bytes))
}
