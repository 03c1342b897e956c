//! What the agent remembers of a volume's last snapshot: its tree nodes, so that unchanged
//! files need not be read. A cache: without it, or with a damaged one, the next backup reads
//! everything once and is as exact.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use thiserror::Error;
use vsync_protocol::encode;
use vsync_protocol::id::{Cid, Pid, SnapshotId};
use vsync_protocol::key::ContentKey;
use vsync_protocol::manifest::ChunkerParameters;
use vsync_protocol::tree::Child;

use crate::tree::Reference;

/// Changes when tables or meanings do; an older cache is thrown away.
const VERSION: i32 = 2;

/// Why the cache could not be used.
#[derive(Debug, Error)]
pub enum CacheError {
    /// Its directory or file.
    #[error("cannot use the cache {}", .path.display())]
    File { path: PathBuf, source: io::Error },
    /// SQLite.
    #[error("cannot use the cache {}", .path.display())]
    Database { path: PathBuf, source: rusqlite::Error },
}

/// The last tree of the volume that this machine made: that of its last snapshot, or that of
/// a reading ahead, which is on the server and belongs to no snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// The last snapshot, if there is one.
    pub snapshot: Option<SnapshotId>,
    pub root: Reference,
    /// How its files were cut.
    pub chunker: ChunkerParameters,
    /// Its key epoch.
    pub epoch: u32,
    /// Shortly before that backup began, seconds since 1970 by this machine's clock: a file changed
    /// since may have changed again without telling, and is not taken for unchanged.
    pub settled: i64,
}

/// One volume's cache for one server.
pub struct Cache {
    connection: Connection,
    path: PathBuf,
}

impl Cache {
    /// Opens or makes the cache at `path`. One that cannot be read is made anew.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn open(path: &Path) -> Result<Self, CacheError> {
        let file = |source| CacheError::File { path: path.to_owned(), source };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(file)?;
        }
        match Self::try_open(path) {
            Ok(cache) => Ok(cache),
            // Busy, or out of memory, files or space, says nothing of what is in it.
            Err(error) if !Self::is_damage(&error) => {
                Err(CacheError::Database { path: path.to_owned(), source: error })
            }
            Err(error) => {
                tracing::warn!("the cache {} is made anew: {error}", path.display());
                for suffix in ["", "-wal", "-shm"] {
                    let mut name = path.as_os_str().to_owned();
                    name.push(suffix);
                    match fs::remove_file(&name) {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(file(error)),
                        _ => {}
                    }
                }
                Self::try_open(path).map_err(|source| CacheError::Database { path: path.to_owned(), source })
            }
        }
    }

    /// Whether it is what is in the file that cannot be used.
    fn is_damage(error: &rusqlite::Error) -> bool {
        use ErrorCode::{CannotOpen, DatabaseBusy, DatabaseLocked, DiskFull, OutOfMemory};
        let passing = [CannotOpen, DatabaseBusy, DatabaseLocked, DiskFull, OutOfMemory];
        error.sqlite_error_code().is_none_or(|code| !passing.contains(&code))
    }

    fn try_open(path: &Path) -> Result<Self, rusqlite::Error> {
        let connection = Connection::open(path)?;
        // Losing the cache costs time only, so nothing waits for the disk.
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "OFF")?;
        connection.pragma_update(None, "cell_size_check", true)?;
        // Keys of older snapshots must not outlive their rows: a machine that may only write
        // could otherwise be made to read them.
        connection.pragma_update(None, "secure_delete", true)?;
        let version: i32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if version != VERSION {
            connection.execute_batch(
                "DROP TABLE IF EXISTS parent; DROP TABLE IF EXISTS node;
                 CREATE TABLE parent(snapshot BLOB, cid BLOB, ck BLOB, pid BLOB, raw_len INTEGER,
                     chunker BLOB, epoch INTEGER, settled INTEGER) STRICT;
                 CREATE TABLE node(pid BLOB PRIMARY KEY, cid BLOB NOT NULL, ck BLOB NOT NULL,
                     sum BLOB NOT NULL, blob BLOB NOT NULL, run INTEGER NOT NULL) STRICT;",
            )?;
            connection.pragma_update(None, "user_version", VERSION)?;
        }
        Ok(Self { connection, path: path.to_owned() })
    }

    fn error(&self, source: rusqlite::Error) -> CacheError {
        CacheError::Database { path: self.path.clone(), source }
    }

    /// The last snapshot, if it is known. Anything unreadable counts as not known.
    #[must_use]
    pub fn parent(&self) -> Option<Parent> {
        let row = self.connection.query_row(
            "SELECT snapshot, cid, ck, pid, raw_len, chunker, epoch, settled FROM parent",
            [],
            |row| {
                Ok((
                    row.get::<_, Option<Vec<u8>>>(0)?,
                    row.get::<_, Vec<u8>>(1)?,
                    row.get::<_, Vec<u8>>(2)?,
                    row.get::<_, Vec<u8>>(3)?,
                    row.get::<_, u32>(4)?,
                    row.get::<_, Vec<u8>>(5)?,
                    row.get::<_, u32>(6)?,
                    row.get::<_, i64>(7)?,
                ))
            },
        );
        let (snapshot, cid, ck, pid, raw_len, chunker, epoch, settled) = row.ok()?;
        let child = Child { ck: ContentKey::from_slice(&ck)?, pid: Pid::from_slice(&pid)?, raw_len };
        Some(Parent {
            snapshot: snapshot.as_deref().and_then(SnapshotId::from_slice),
            root: Reference { cid: Cid::from_slice(&cid)?, child },
            chunker: minicbor::decode(&chunker).ok()?,
            epoch,
            settled,
        })
    }

    /// Begins a run: what it stores becomes the cache when it is finished, and not before.
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn begin(&mut self) -> Result<(), CacheError> {
        self.connection
            .execute_batch("BEGIN IMMEDIATE; UPDATE node SET run = 0 WHERE run <> 0;")
            .map_err(|source| self.error(source))
    }

    /// The sealed node whose plaintext has this id, and how to refer to it. A damaged row counts as not known: what
    /// refers to a node with a wrong key is lost, and nobody would notice before it is needed.
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn node(&self, pid: Pid) -> Result<Option<(Cid, ContentKey)>, CacheError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT cid, ck, sum FROM node WHERE pid = ?1")
            .map_err(|source| self.error(source))?;
        let row = statement
            .query_row(params![pid.as_bytes()], |row| {
                Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, Vec<u8>>(1)?, row.get::<_, Vec<u8>>(2)?))
            })
            .optional()
            .map_err(|source| self.error(source))?;
        Ok(row.and_then(|(cid, ck, sum)| {
            let (cid, ck) = (Cid::from_slice(&cid)?, ContentKey::from_slice(&ck)?);
            (sum == self::sum(pid, &cid, &ck)).then_some((cid, ck))
        }))
    }

    /// A second view of the cache as it was before this run, for another thread.
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn reader(&self) -> Result<CacheReader, CacheError> {
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY | rusqlite::OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags).map_err(|source| self.error(source))?;
        Ok(CacheReader(Self { connection, path: self.path.clone() }))
    }

    /// Keeps a new node.
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn insert(&mut self, node: &Reference, blob: &[u8]) -> Result<(), CacheError> {
        let mut statement = self
            .connection
            .prepare_cached("INSERT OR REPLACE INTO node VALUES (?1, ?2, ?3, ?4, ?5, 1)")
            .map_err(|source| self.error(source))?;
        let sum = sum(node.child.pid, &node.cid, &node.child.ck);
        statement
            .execute(params![node.child.pid.as_bytes(), node.cid.as_bytes(), node.child.ck.as_bytes(), sum, blob])
            .map(|_| ())
            .map_err(|source| self.error(source))
    }

    /// Keeps a node of the last run for this one too.
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn keep(&mut self, pid: Pid) -> Result<(), CacheError> {
        let mut statement = self
            .connection
            .prepare_cached("UPDATE node SET run = 1 WHERE pid = ?1")
            .map_err(|source| self.error(source))?;
        statement.execute(params![pid.as_bytes()]).map(|_| ()).map_err(|source| self.error(source))
    }

    /// Ends the run: its nodes and `parent` are the cache from now on. Nodes of older
    /// snapshots go, and with them the keys of content that this machine no longer has.
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn finish(&mut self, parent: &Parent) -> Result<(), CacheError> {
        let chunker = encode(&parent.chunker);
        let finish = |connection: &Connection| {
            connection.execute("DELETE FROM node WHERE run = 0", [])?;
            connection.execute("DELETE FROM parent", [])?;
            connection.execute(
                "INSERT INTO parent VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                params![
                    parent.snapshot.as_ref().map(SnapshotId::as_bytes),
                    parent.root.cid.as_bytes(),
                    parent.root.child.ck.as_bytes(),
                    parent.root.child.pid.as_bytes(),
                    parent.root.child.raw_len,
                    chunker,
                    parent.epoch,
                    parent.settled
                ],
            )?;
            connection.execute_batch("COMMIT")
        };
        finish(&self.connection).map_err(|source| self.error(source))
    }

    /// Gives the run up; the cache is as it was before.
    pub fn abandon(&mut self) {
        // Without a transaction there is nothing to give up.
        let _ = self.connection.execute_batch("ROLLBACK");
    }

    /// Forgets everything: the next backup reads all files.
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn clear(&mut self) -> Result<(), CacheError> {
        self.connection.execute_batch("DELETE FROM parent; DELETE FROM node;").map_err(|source| self.error(source))
    }
}

/// Tells a row from a damaged one: SQLite's pages carry no checksums.
fn sum(pid: Pid, cid: &Cid, ck: &ContentKey) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(pid.as_bytes()).update(cid.as_bytes()).update(ck.as_bytes());
    let mut sum = [0; 8];
    hasher.finalize_xof().fill(&mut sum);
    sum
}

/// Reads nodes while a run writes others.
pub struct CacheReader(Cache);

impl CacheReader {
    /// The sealed bytes of the node whose plaintext has this id.
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn blob(&self, pid: Pid) -> Result<Option<Vec<u8>>, CacheError> {
        let mut statement = self
            .0
            .connection
            .prepare_cached("SELECT blob FROM node WHERE pid = ?1")
            .map_err(|source| self.0.error(source))?;
        statement.query_row(params![pid.as_bytes()], |row| row.get(0)).optional().map_err(|source| self.0.error(source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(seed: u8) -> Reference {
        let child = Child { ck: ContentKey::from_bytes([seed; 32]), pid: Pid::from_bytes([seed; 16]), raw_len: 7 };
        Reference { cid: Cid::of(&[seed]), child }
    }

    fn parent(seed: u8) -> Parent {
        Parent {
            snapshot: Some(SnapshotId::from_bytes([seed; 16])),
            root: reference(seed),
            chunker: crate::chunk::PARAMETERS,
            epoch: 1,
            settled: 5,
        }
    }

    #[test]
    fn a_run_counts_when_it_is_finished_and_drops_what_it_did_not_use() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/cache.sqlite");
        let mut cache = Cache::open(&path).unwrap();
        assert_eq!(cache.parent(), None);
        cache.begin().unwrap();
        [1, 2].iter().for_each(|&seed| cache.insert(&reference(seed), b"blob").unwrap());
        cache.finish(&parent(1)).unwrap();

        let mut cache = Cache::open(&path).unwrap();
        cache.begin().unwrap();
        cache.insert(&reference(3), b"other").unwrap();
        cache.abandon();
        assert_eq!(cache.parent(), Some(parent(1)));
        assert_eq!(cache.node(reference(3).child.pid).unwrap(), None);

        cache.begin().unwrap();
        cache.keep(reference(2).child.pid).unwrap();
        cache.insert(&reference(4), b"new").unwrap();
        cache.finish(&parent(4)).unwrap();
        let known = |seed| cache.node(reference(seed).child.pid).unwrap().is_some();
        assert_eq!([1, 2, 3, 4].map(known), [false, true, false, true]);
    }

    #[test]
    fn a_tree_without_a_snapshot_is_remembered_too() {
        let directory = tempfile::tempdir().unwrap();
        let mut cache = Cache::open(&directory.path().join("cache.sqlite")).unwrap();
        let ahead = Parent { snapshot: None, ..parent(1) };
        cache.begin().unwrap();
        cache.finish(&ahead).unwrap();
        assert_eq!(cache.parent(), Some(ahead));
    }

    #[test]
    fn a_damaged_row_is_not_known() {
        let directory = tempfile::tempdir().unwrap();
        let mut cache = Cache::open(&directory.path().join("cache.sqlite")).unwrap();
        let pid = reference(1).child.pid;
        for damage in ["ck = zeroblob(32)", "cid = zeroblob(32)", "sum = zeroblob(8)", "sum = x''"] {
            cache.insert(&reference(1), b"blob").unwrap();
            assert_eq!(cache.node(pid).unwrap(), Some((reference(1).cid, ContentKey::from_bytes([1; 32]))));
            cache.connection.execute(&format!("UPDATE node SET {damage}"), []).unwrap();
            assert_eq!(cache.node(pid).unwrap(), None, "{damage}");
        }
    }

    #[test]
    fn a_damaged_cache_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cache.sqlite");
        fs::write(&path, b"this is not a database, whatever its name says, and long enough").unwrap();
        assert_eq!(Cache::open(&path).unwrap().parent(), None);
    }
}
