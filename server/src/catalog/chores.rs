//! What the server noted of its own work, and counts of what an operator must look at.

use rusqlite::{OptionalExtension, params};

use super::read::unsigned;
use super::{Catalog, CatalogError};

/// A damaged blob is rare, so that finding all of them looks at those alone.
pub(super) const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS chores (
        name TEXT PRIMARY KEY NOT NULL,
        at INTEGER NOT NULL,
        amount INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS blobs_damaged ON blobs (cid) WHERE state = 1;
";

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

    /// How many blobs are damaged and did not come again.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn damaged(&self) -> Result<u64, CatalogError> {
        self.read("count damaged blobs", |reader| {
            reader
                .prepare_cached("SELECT count(*) FROM blobs INDEXED BY blobs_damaged WHERE state = 1")?
                .query_row([], |row| unsigned(row, 0))
        })
    }
}
