//! Tables, and how connections to them are opened.

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::CatalogError;

/// "VSYC".
const APPLICATION: i64 = 0x5653_5943;

/// Format of the tables.
const FORMAT: i64 = 2;

/// What each connection keeps of the file, in MiB. The system keeps the rest.
const WRITER_CACHE: i64 = 8;
const READER_CACHE: i64 = 2;

/// States of a blob.
pub(super) const LIVE: i64 = 0;
pub(super) const CORRUPT: i64 = 1;
/// Found needless by garbage collection: absent for everybody, but its bytes are still there.
pub(super) const CONDEMNED: i64 = 2;

/// `blobs` names packs by number, which keeps its rows short: it has one for every blob.
/// `snapshots` keeps the forgotten ones too, because their sequence goes on after them.
/// A blob's `since` is the round of garbage collection in which it came into its state. A
/// doomed pack has given up all its blobs and waits to be moved to the trash.
const TABLES: &str = "
    CREATE TABLE packs (
        number INTEGER PRIMARY KEY,
        id BLOB NOT NULL UNIQUE CHECK (length(id) = 32),
        bytes INTEGER NOT NULL,
        doomed INTEGER NOT NULL DEFAULT 0,
        checked INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE TABLE blobs (
        cid BLOB NOT NULL PRIMARY KEY CHECK (length(cid) = 32),
        pack INTEGER NOT NULL,
        offset INTEGER NOT NULL,
        len INTEGER NOT NULL,
        kind INTEGER NOT NULL,
        state INTEGER NOT NULL,
        closed INTEGER NOT NULL,
        since INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE log (
        position INTEGER PRIMARY KEY,
        entry BLOB NOT NULL,
        head BLOB NOT NULL CHECK (length(head) = 32),
        end INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE snapshots (
        position INTEGER PRIMARY KEY REFERENCES log (position),
        hash BLOB NOT NULL UNIQUE CHECK (length(hash) = 32),
        volume TEXT NOT NULL,
        source TEXT NOT NULL,
        sequence INTEGER NOT NULL,
        received INTEGER NOT NULL,
        manifest BLOB NOT NULL,
        forgotten INTEGER REFERENCES log (position),
        forgotten_at INTEGER,
        pinned INTEGER NOT NULL DEFAULT 0,
        collected INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE INDEX snapshots_in_sequence ON snapshots (source, volume, sequence);
    CREATE INDEX snapshots_of_volume ON snapshots (volume, position) WHERE forgotten IS NULL;
    CREATE INDEX snapshots_of_source ON snapshots (source, position) WHERE forgotten IS NULL;
    CREATE INDEX snapshots_of_both ON snapshots (source, volume, position) WHERE forgotten IS NULL;
    CREATE TABLE totals (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        blobs INTEGER NOT NULL,
        packs INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        snapshots INTEGER NOT NULL,
        generation INTEGER NOT NULL,
        clean INTEGER NOT NULL,
        round INTEGER NOT NULL
    ) STRICT;
    INSERT INTO totals VALUES (1, 0, 0, 0, 0, 1, 1, 1);
    CREATE TABLE rounds (
        number INTEGER PRIMARY KEY,
        log INTEGER NOT NULL,
        uptime INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE trash (
        id BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 32),
        uptime INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE clock (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        seen INTEGER NOT NULL,
        passed INTEGER NOT NULL,
        uptime INTEGER NOT NULL,
        boot TEXT NOT NULL,
        steady INTEGER NOT NULL
    ) STRICT;
";

/// Opens the connection that writes, making the tables if there are none.
pub(super) fn open(path: &Path) -> Result<Connection, CatalogError> {
    check_sqlite(rusqlite::version_number())?;
    let mut connection = Connection::open(path).map_err(CatalogError::sqlite("open its file"))?;
    configure(&connection, WRITER_CACHE).map_err(damaged_or("set up its connection"))?;
    let begin = |connection: &Connection| -> rusqlite::Result<()> {
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "journal_size_limit", 64 << 20)
    };
    begin(&connection).map_err(damaged_or("set up its connection"))?;
    match format(&connection).map_err(damaged_or("read its format"))? {
        (0, 0) => create(&mut connection).map_err(CatalogError::sqlite("create its tables"))?,
        (APPLICATION, FORMAT) => check_after_crash(&connection)?,
        (_, found) => return Err(CatalogError::Format { found, known: FORMAT }),
    }
    // Catalogs of the same format may be older than these; programs that do not know them
    // leave them alone.
    let added = [super::jobs::TABLES, super::chores::TABLES];
    added.into_iter().try_for_each(|tables| connection.execute_batch(tables)).map_err(damaged_or("add tables"))?;
    Ok(connection)
}

/// Opens a connection that can only read.
pub(super) fn open_reader(path: &Path) -> Result<Connection, CatalogError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(CatalogError::sqlite("open its file"))?;
    configure(&connection, READER_CACHE).map_err(CatalogError::sqlite("set up its connection"))?;
    Ok(connection)
}

/// Folds the WAL in and notes that the file needs no check at the next start.
pub(super) fn close(connection: Connection) {
    let closed = connection
        .execute("UPDATE totals SET clean = 1 WHERE clean = 0", [])
        .and_then(|_| connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())));
    if let Err(error) = closed {
        tracing::warn!("the catalog was not closed cleanly and will be checked at the next start: {error}");
    }
}

fn configure(connection: &Connection, cache_mib: i64) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(30))?;
    connection.set_prepared_statement_cache_capacity(64);
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.pragma_update(None, "mmap_size", 0)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "cache_size", -1024 * cache_mib)
}

/// Versions before 3.51.3 can corrupt a database in WAL mode.
pub(super) fn check_sqlite(version: i32) -> Result<(), CatalogError> {
    if version < 3_051_003 {
        return Err(CatalogError::OldSqlite(rusqlite::version().to_owned()));
    }
    Ok(())
}

fn format(connection: &Connection) -> rusqlite::Result<(i64, i64)> {
    let read = |name| connection.pragma_query_value(None, name, |row| row.get(0));
    Ok((read("application_id")?, read("user_version")?))
}

fn create(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    transaction.execute_batch(TABLES)?;
    transaction.pragma_update(None, "application_id", APPLICATION)?;
    transaction.pragma_update(None, "user_version", FORMAT)?;
    transaction.commit()
}

/// A catalog that was not closed is checked before it is believed.
fn check_after_crash(connection: &Connection) -> Result<(), CatalogError> {
    let clean = connection.query_row("SELECT clean FROM totals", [], |row| row.get::<_, bool>(0));
    if clean.map_err(damaged_or("read its totals"))? {
        return Ok(());
    }
    let verdict = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
    match verdict.map_err(damaged_or("check itself"))?.as_str() {
        "ok" => Ok(()),
        problem => Err(CatalogError::Damaged(problem.to_owned())),
    }
}

fn damaged_or(operation: &'static str) -> impl FnOnce(rusqlite::Error) -> CatalogError {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    move |source| match source.sqlite_error_code() {
        Some(DatabaseCorrupt | NotADatabase) => CatalogError::Damaged(source.to_string()),
        _ => CatalogError::Sqlite { operation, source },
    }
}
