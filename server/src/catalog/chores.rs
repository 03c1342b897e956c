//! What the server noted of its own work, and counts of what an operator must look at.

use rusqlite::{OptionalExtension, params};
use vsync_protocol::id::Cid;

use super::read::unsigned;
use super::schema::CORRUPT;
use super::{Catalog, CatalogError};

/// A damaged blob is rare, so that finding all of them looks at those alone. `absent` names
/// blobs that were lost with their packs, or that snapshots were found to need in vain; one
/// that came again is in `blobs`.
pub(super) const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS chores (
        name TEXT PRIMARY KEY NOT NULL,
        at INTEGER NOT NULL,
        amount INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS confirmed (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        position INTEGER NOT NULL,
        at INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS absent (
        cid BLOB NOT NULL PRIMARY KEY CHECK (length(cid) = 32)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS blobs_damaged ON blobs (cid) WHERE state = 1;
";
const _: () = assert!(CORRUPT == 1);

impl Catalog {
    /// Notes that the chore `name` ended at the time `at`, and what it came to.
    ///
    /// # Errors
    /// When it is not recorded.
    pub fn note_chore(&self, name: &'static str, at: i64, amount: u64) -> Result<(), CatalogError> {
        let amount = i64::try_from(amount).unwrap_or(i64::MAX);
        self.write("note its own work", move |t| {
            t.execute("INSERT OR REPLACE INTO chores (name, at, amount) VALUES (?1, ?2, ?3)", params![name, at, amount])
                .map(drop)
        })
    }

    /// When the chore `name` last ended, in milliseconds since 1970, and what it came to.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn chore(&self, name: &str) -> Result<Option<(i64, u64)>, CatalogError> {
        self.read("read its own work", |reader| {
            reader
                .prepare_cached("SELECT at, amount FROM chores WHERE name = ?1")?
                .query_row([name], |row| Ok((row.get(0)?, unsigned(row, 1)?)))
                .optional()
        })
    }

    /// Notes that an administrator confirmed the clock when it showed `at` and the log had
    /// `position` entries.
    ///
    /// # Errors
    /// When it is not recorded.
    pub fn confirm(&self, position: u64, at: i64) -> Result<(), CatalogError> {
        let position = i64::try_from(position).unwrap_or(i64::MAX);
        self.write("note a confirmed clock", move |t| {
            t.execute("INSERT OR REPLACE INTO confirmed (one, position, at) VALUES (1, ?1, ?2)", [position, at])
                .map(drop)
        })
    }

    /// What was last noted of a confirmed clock: the log's entries then, and the time.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn confirmed(&self) -> Result<Option<(u64, i64)>, CatalogError> {
        self.read("read the confirmed clock", |reader| {
            reader
                .prepare_cached("SELECT position, at FROM confirmed")?
                .query_row([], |row| Ok((unsigned(row, 0)?, row.get(1)?)))
                .optional()
        })
    }

    /// How many blobs are damaged or lost and did not come again.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn damaged(&self) -> Result<u64, CatalogError> {
        self.read("count damaged blobs", |reader| {
            // As a number in the text: a bound one would not be known to be the index's own.
            let query = format!(
                "SELECT (SELECT count(*) FROM blobs INDEXED BY blobs_damaged WHERE state = {CORRUPT}) +
                 (SELECT count(*) FROM absent WHERE NOT EXISTS (SELECT 1 FROM blobs WHERE blobs.cid = absent.cid))"
            );
            reader.prepare_cached(&query)?.query_row([], |row| unsigned(row, 0))
        })
    }

    /// Notes that snapshots need `cids`, which are lost. If `all` is well otherwise, what was
    /// noted before is needed no more.
    ///
    /// # Errors
    /// When it is not recorded.
    pub(crate) fn note_absent(&self, cids: Vec<Cid>, all: bool) -> Result<(), CatalogError> {
        // Who finds a store whole waits for no disk.
        let noted =
            self.read("look at lost blobs", |reader| reader.prepare_cached("SELECT 1 FROM absent")?.exists([]))?;
        if cids.is_empty() && !(all && noted) {
            return Ok(());
        }
        self.write("note lost blobs", move |t| {
            if all {
                t.execute("DELETE FROM absent", [])?;
            }
            let mut insert = t.prepare_cached("INSERT OR IGNORE INTO absent (cid) VALUES (?1)")?;
            cids.iter().try_for_each(|cid| insert.execute([cid.as_bytes()]).map(drop))
        })
    }
}
