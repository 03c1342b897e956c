//! The index of a store: which blob lies where, which snapshots there are.
//!
//! Everything in it but the record of jobs can be made anew from packs, manifests and log; it
//! exists so that no request costs work in proportion to history. [`Catalog`] is a handle: one thread owns
//! the connection that writes, a few read-only ones answer questions beside it. All
//! methods block, so they are called from threads that may.

mod chores;
mod gc;
mod history;
mod jobs;
mod read;
mod rows;
mod schema;
mod summary;
mod write;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use rusqlite::{Connection, ErrorCode};
use thiserror::Error;
use vsync_protocol::blob::BlobKind;
use vsync_protocol::id::{Cid, MachineName, ManifestHash, PackId, VolumeName};
use vsync_protocol::log::LogEntry;
use vsync_protocol::manifest::{LogPosition, Manifest, ManifestError, manifest_hash};
use vsync_protocol::wire::{Listing, SnapshotRecord};

use crate::store::health::Health;
use crate::store::journal::{Logged, Mark};
use crate::store::pack::Record;
use crate::store::room::is_full;
use crate::words::report;
use write::Command;

pub use gc::{Compaction, Entry, Kept, Row, State};
pub use history::{Group, Known};
pub use jobs::{Adopted, NewJob};
pub use rows::Misplaced;
pub use summary::Day;

/// Connections that read beside one another.
const READERS: usize = 4;

/// No question keeps all of them for this time; the check of the whole file keeps one for longer.
const READER_WAIT: Duration = Duration::from_secs(60);

/// Why the catalog could not do something.
#[derive(Debug, Error)]
pub enum CatalogError {
    /// SQLite failed.
    #[error("catalog cannot {operation}")]
    Sqlite {
        /// What was tried.
        operation: &'static str,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The SQLite that was linked has a known bug that corrupts databases.
    #[error("SQLite {0} is too old, 3.51.3 is needed")]
    OldSqlite(String),
    /// Not a catalog of a format known here.
    #[error("the catalog has format {found}, this program knows {known}; run `vsync server rebuild`")]
    Format {
        /// The format it has.
        found: i64,
        /// The format known here.
        known: i64,
    },
    /// SQLite finds its own file damaged.
    #[error("the catalog is damaged ({0}); run `vsync server rebuild`")]
    Damaged(String),
    /// A change was called off before or after its commit.
    #[error("catalog stops when about to {operation}")]
    Stopped {
        /// What was tried.
        operation: &'static str,
        /// Who stopped it.
        source: std::io::Error,
    },
    /// The writing thread could not be started.
    #[error("cannot start the catalog's thread")]
    Thread(#[source] std::io::Error),
    /// The catalog was closed, or its thread died.
    #[error("the catalog is closed")]
    Closed,
    /// No connection for reading came free.
    #[error("the catalog is busy: none of its connections came free within a minute; try again")]
    Busy,
}

impl CatalogError {
    fn sqlite(operation: &'static str) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| Self::Sqlite { operation, source }
    }

    /// Whether the disk is full: the change was rolled back, and nothing is the worse for it.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::Sqlite { source, .. } => source.sqlite_error().is_some_and(|error| {
                error.code == ErrorCode::DiskFull || error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE
            }),
            Self::Stopped { source, .. } => is_full(source),
            Self::OldSqlite(_)
            | Self::Format { .. }
            | Self::Damaged(_)
            | Self::Thread(_)
            | Self::Closed
            | Self::Busy => false,
        }
    }

    /// Whether nobody knows what the file holds now.
    fn is_failure(&self) -> bool {
        use ErrorCode::{DatabaseCorrupt, NotADatabase, SystemIoFailure};
        let Self::Sqlite { source, .. } = self else { return false };
        let code = source.sqlite_error_code();
        !self.is_full() && matches!(code, Some(SystemIoFailure | DatabaseCorrupt | NotADatabase))
    }
}

/// Where a blob lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// The pack.
    pub pack: PackId,
    /// Where the blob begins in it.
    pub offset: u64,
    /// Bytes of the blob.
    pub len: u32,
    /// What it holds.
    pub kind: BlobKind,
    /// The generation in which everything below this node was found present; 0 if never.
    pub closed: u64,
}

/// What the catalog keeps of an accepted manifest.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The manifest's hash.
    pub hash: ManifestHash,
    /// Its volume.
    pub volume: VolumeName,
    /// The machine that the data came from.
    pub source: MachineName,
    /// Position in the sequence of that volume from that machine.
    pub sequence: u64,
    /// The whole manifest.
    pub manifest: Vec<u8>,
}

impl Snapshot {
    /// What the catalog keeps of `manifest`.
    ///
    /// # Errors
    /// When it is no manifest.
    pub fn of(manifest: Vec<u8>) -> Result<Self, ManifestError> {
        let body = Manifest::parse(&manifest)?.body;
        let hash = manifest_hash(&manifest);
        Ok(Self { hash, volume: body.volume, source: body.source, sequence: body.sequence, manifest })
    }
}

/// When and where in the log a manifest was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The log after it.
    pub position: LogPosition,
    /// Milliseconds since 1970 by the server's clock.
    pub at: i64,
}

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Blobs, damaged ones included.
    pub blobs: u64,
    /// Packs.
    pub packs: u64,
    /// Bytes of all packs.
    pub bytes: u64,
    /// Snapshots.
    pub snapshots: u64,
}

/// Handle to an open catalog.
pub struct Catalog {
    commands: Sender<Command>,
    health: Health,
    idle_readers: (Sender<Connection>, Receiver<Connection>),
    writer: Mutex<Option<JoinHandle<()>>>,
    content: summary::Remembered,
}

impl Catalog {
    /// Opens the catalog at `path`, or makes an empty one. Every commit is announced as a step
    /// to `health`, which fails when a change does so that nobody knows what the disk holds.
    ///
    /// # Errors
    /// When it is damaged or of another format.
    pub fn open(path: &Path, health: Health) -> Result<Self, CatalogError> {
        let connection = schema::open(path)?;
        let idle_readers = crossbeam_channel::bounded(READERS);
        for _ in 0..READERS {
            // The channel has room for each of them.
            let _ = idle_readers.0.send(schema::open_reader(path)?);
        }
        let (commands, received) = crossbeam_channel::bounded(64);
        let writer = std::thread::Builder::new()
            .name("vsync-catalog".to_owned())
            .spawn(move || write::run(connection, &received))
            .map_err(CatalogError::Thread)?;
        Ok(Self {
            commands,
            health,
            idle_readers,
            writer: Mutex::new(Some(writer)),
            content: summary::Remembered::default(),
        })
    }

    /// Finishes what was asked for and closes the file. Later calls fail.
    pub fn close(&self) {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            // Readers first: the last connection to close folds the WAL into the database.
            while self.idle_readers.1.try_recv().is_ok() {}
            let _ = self.commands.send(Command::Stop);
            if writer.join().is_err() {
                tracing::error!("the catalog's thread panicked");
            }
        }
    }

    /// Records a pack that is durable, and with it its blobs. Of a blob with several copies
    /// the catalog names the one in the pack of lowest name, whatever came first, so that a
    /// rebuilt catalog equals this one; a damaged copy yields to any new one.
    ///
    /// # Errors
    /// When it is not recorded; then none of it is.
    pub fn add_pack(&self, pack: PackId, bytes: u64, mut records: Vec<Record>) -> Result<(), CatalogError> {
        self.write("add a pack", move |t| write::add_pack(t, pack, bytes, &mut records))
    }

    /// Records those blobs of the known `pack` of which the catalog knows no copy.
    ///
    /// # Errors
    /// When it is not recorded; then none of it is.
    pub fn fill_from(&self, pack: PackId, records: Vec<Record>) -> Result<(), CatalogError> {
        self.write("add blobs of a pack", move |t| write::fill_from(t, pack, &records))
    }

    /// Records that everything below `nodes` was found present in `generation`.
    ///
    /// # Errors
    /// When it is not recorded.
    pub fn add_closed(&self, nodes: Vec<Cid>, generation: u64) -> Result<(), CatalogError> {
        self.write("mark nodes", move |t| write::add_closed(t, &nodes, generation))
    }

    /// Records that the copy of `cid` in `pack` is damaged. A new generation begins, since
    /// no node above it is closed any more.
    ///
    /// # Errors
    /// When it is not recorded.
    pub fn add_damage(&self, cid: Cid, pack: PackId) -> Result<(), CatalogError> {
        self.write("mark a damaged blob", move |t| write::add_damage(t, cid, pack))
    }

    /// Records that `pack` is gone, and with it the copies in it.
    ///
    /// # Errors
    /// When it is not recorded.
    pub fn lose_pack(&self, pack: PackId) -> Result<(), CatalogError> {
        self.write("mark a lost pack", move |t| write::lose_pack(t, pack))
    }

    /// Repeats an entry of the log, with the snapshot that it brings if it is a commit.
    ///
    /// # Errors
    /// When it is not recorded; then none of it is.
    pub fn append(&self, logged: Logged, snapshot: Option<Snapshot>) -> Result<(), CatalogError> {
        let appended = self.write("repeat a log entry", move |t| write::append(t, &logged, snapshot.as_ref()));
        self.content.forget();
        appended
    }

    /// Which of `cids` are here and not known to be damaged.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn have(&self, cids: &[Cid]) -> Result<Vec<bool>, CatalogError> {
        self.read("look up blobs", |reader| read::have(reader, cids))
    }

    /// Where `cids` lie; none for those that are absent or damaged.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn locate(&self, cids: &[Cid]) -> Result<Vec<Option<Location>>, CatalogError> {
        self.read("locate blobs", |reader| read::locate(reader, cids))
    }

    /// Where `cid` lies; none when it is absent or damaged.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn locate_one(&self, cid: Cid) -> Result<Option<Location>, CatalogError> {
        Ok(self.locate(&[cid])?.pop().flatten())
    }

    /// The current generation of closed nodes. While it is the same, no blob becomes absent.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn generation(&self) -> Result<u64, CatalogError> {
        self.read("read the generation", read::generation)
    }

    /// The last snapshot of `volume` from `source`, forgotten or not: its sequence number
    /// and its manifest.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn last(&self, volume: &VolumeName, source: &MachineName) -> Result<Option<(u64, ManifestHash)>, CatalogError> {
        self.read("find the last snapshot", |reader| read::last(reader, volume, source))
    }

    /// When the manifest `hash` was accepted, if it was.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn accepted(&self, hash: ManifestHash) -> Result<Option<Accepted>, CatalogError> {
        self.read("find a snapshot", |reader| read::accepted(reader, hash))
    }

    /// A page of snapshots, newest first, with at most `budget` bytes of manifests but at
    /// least one.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn snapshots(&self, listing: &Listing, budget: usize) -> Result<Vec<SnapshotRecord>, CatalogError> {
        self.read("list snapshots", |reader| read::snapshots(reader, listing, budget))
    }

    /// Entries of the log after the first `from`, with at most `budget` bytes of them but at
    /// least one.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn log(&self, from: u64, budget: usize) -> Result<Vec<LogEntry>, CatalogError> {
        self.read("read the log", |reader| read::log(reader, from, budget))
    }

    /// Where the log stands.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn mark(&self) -> Result<Mark, CatalogError> {
        self.read("find the log's end", read::mark)
    }

    /// How much there is.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn totals(&self) -> Result<Totals, CatalogError> {
        self.read("read totals", read::totals)
    }

    /// The names of all packs but the doomed ones.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn packs(&self) -> Result<Vec<PackId>, CatalogError> {
        self.read("list packs", read::packs)
    }

    /// What SQLite finds wrong with its file, looking at all of it; none when it is whole.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn check(&self) -> Result<Option<String>, CatalogError> {
        let verdict = self.read("check itself", |reader| {
            reader.query_row("PRAGMA integrity_check(1)", [], |row| row.get::<_, String>(0))
        })?;
        Ok(Some(verdict).filter(|verdict| verdict != "ok"))
    }

    /// One change; each is one transaction, durable when this returns.
    fn write<T: Send + 'static>(
        &self,
        operation: &'static str,
        with: impl FnOnce(&rusqlite::Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, CatalogError> {
        let (done, answer) = crossbeam_channel::bounded(1);
        let health = self.health.clone();
        let change = move |connection: &mut Connection| {
            let changed = write::change(connection, health.steps(), operation, with);
            if let Some(error) = changed.as_ref().err().filter(|error| error.is_failure()) {
                health.fail(report(error));
            }
            // Who asked may have gone; the change stands all the same.
            let _ = done.send(changed);
        };
        self.commands.send(Command::Change(Box::new(change))).map_err(|_| CatalogError::Closed)?;
        answer.recv().map_err(|_| CatalogError::Closed)?
    }

    fn read<T>(
        &self,
        operation: &'static str,
        ask: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, CatalogError> {
        let (back, idle) = &self.idle_readers;
        // After `close` no connection comes back; the wait must end then.
        let connection = idle.recv_timeout(READER_WAIT).map_err(|error| match error {
            RecvTimeoutError::Timeout => CatalogError::Busy,
            RecvTimeoutError::Disconnected => CatalogError::Closed,
        })?;
        let reader = Lent { connection: Some(connection), back };
        let connection = reader.connection.as_ref().ok_or(CatalogError::Closed)?;
        ask(connection).map_err(CatalogError::sqlite(operation))
    }
}

impl Drop for Catalog {
    fn drop(&mut self) {
        self.close();
    }
}

/// A connection that goes back to the idle ones, whatever happens to its borrower.
struct Lent<'a> {
    connection: Option<Connection>,
    back: &'a Sender<Connection>,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            // The channel has room for all that ever left it.
            let _ = self.back.try_send(connection);
        }
    }
}
