//! The one thread that changes the catalog, and the changes.

use crossbeam_channel::Receiver;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use vsync_protocol::id::{Cid, ManifestHash, PackId};
use vsync_protocol::log::LogEntry;

use super::schema::{self, CONDEMNED, CORRUPT, LIVE};
use super::{CatalogError, Snapshot};
use crate::store::journal::Logged;
use crate::store::pack::Record;
use crate::store::steps::Steps;

/// What the thread is told.
pub(super) enum Command {
    /// Makes one change, durable when it tells its asker.
    Change(Box<dyn FnOnce(&mut Connection) + Send>),
    Stop,
}

/// Carries out commands until told to stop.
pub(super) fn run(mut connection: Connection, commands: &Receiver<Command>) {
    for command in commands {
        match command {
            Command::Change(change) => change(&mut connection),
            Command::Stop => break,
        }
    }
    schema::close(connection);
}

/// Makes one change as one transaction.
pub(super) fn change<T>(
    connection: &mut Connection,
    steps: &Steps,
    operation: &'static str,
    with: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
) -> Result<T, CatalogError> {
    // Immediate: a transaction that begins by reading could not wait for the lock later.
    let begun = connection.transaction_with_behavior(TransactionBehavior::Immediate);
    let transaction = begun.map_err(CatalogError::sqlite(operation))?;
    let run = |t: &Transaction<'_>| {
        // With the first change, not at the start: who only reads waits for no disk.
        t.prepare_cached("UPDATE totals SET clean = 0 WHERE clean = 1")?.execute([])?;
        with(t)
    };
    let done = run(&transaction).map_err(CatalogError::sqlite(operation))?;
    let stopped = |source| CatalogError::Stopped { operation, source };
    steps.before(operation).map_err(stopped)?;
    transaction.commit().map_err(CatalogError::sqlite(operation))?;
    steps.after(operation).map_err(stopped)?;
    Ok(done)
}

/// Adds a blob of which there was no copy.
const INSERT_BLOB: &str = "INSERT OR IGNORE INTO blobs (cid, pack, offset, len, kind, state, closed, since)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, (SELECT round FROM totals))";

pub(super) fn add_pack(t: &Transaction<'_>, pack: PackId, bytes: u64, records: &mut [Record]) -> rusqlite::Result<()> {
    let number = add_pack_row(t, pack, bytes)?;
    // Sorted, neighbouring keys touch the same page of the tree once.
    records.sort_unstable_by_key(|record| record.cid);
    let mut insert = t.prepare_cached(INSERT_BLOB)?;
    let mut update = t.prepare_cached(
        "UPDATE blobs SET pack = ?2, offset = ?3, len = ?4, kind = ?5, state = ?6, since = (SELECT round FROM totals)
         WHERE cid = ?1 AND (state <> ?6 OR ?7 < (SELECT id FROM packs WHERE number = blobs.pack))",
    )?;
    let mut added = 0;
    for record in records.iter() {
        let (cid, kind) = (record.cid.as_bytes(), record.kind as i64);
        let (offset, len) = (record.offset as i64, record.len);
        if insert.execute(params![cid, number, offset, len, kind, LIVE])? == 1 {
            added += 1;
        } else {
            update.execute(params![cid, number, offset, len, kind, LIVE, pack.as_bytes()])?;
        }
    }
    t.prepare_cached("UPDATE totals SET blobs = blobs + ?1")?.execute([added])?;
    Ok(())
}

pub(super) fn fill_from(t: &Transaction<'_>, pack: PackId, records: &[Record]) -> rusqlite::Result<()> {
    let find = "SELECT number FROM packs WHERE id = ?1 AND doomed = 0";
    let number = t.query_row(find, [pack.as_bytes()], |row| row.get::<_, i64>(0)).optional()?;
    let Some(number) = number else { return Ok(()) };
    let mut insert = t.prepare_cached(INSERT_BLOB)?;
    let mut added = 0;
    for Record { cid, offset, len, kind } in records {
        added += insert.execute(params![cid.as_bytes(), number, *offset as i64, len, *kind as i64, LIVE])? as i64;
    }
    // Most packs add nothing: no page is written for them.
    if added > 0 {
        t.execute("UPDATE totals SET blobs = blobs + ?1", [added])?;
    }
    Ok(())
}

/// Returns the number of the pack's row. A pack that was doomed and came again is not.
pub(super) fn add_pack_row(t: &Transaction<'_>, pack: PackId, bytes: u64) -> rusqlite::Result<i64> {
    let new = t
        .prepare_cached("INSERT OR IGNORE INTO packs (id, bytes) VALUES (?1, ?2)")?
        .execute(params![pack.as_bytes(), bytes as i64])?;
    let saved =
        t.prepare_cached("UPDATE packs SET doomed = 0 WHERE id = ?1 AND doomed = 1")?.execute([pack.as_bytes()])?;
    t.prepare_cached("UPDATE totals SET packs = packs + ?1, bytes = bytes + ?1 * ?2")?
        .execute(params![(new + saved) as i64, bytes as i64])?;
    t.prepare_cached("SELECT number FROM packs WHERE id = ?1")?.query_row([pack.as_bytes()], |row| row.get(0))
}

pub(super) fn add_closed(t: &Transaction<'_>, nodes: &[Cid], generation: u64) -> rusqlite::Result<()> {
    let mut update = t.prepare_cached("UPDATE blobs SET closed = ?2 WHERE cid = ?1")?;
    nodes.iter().try_for_each(|cid| update.execute(params![cid.as_bytes(), generation as i64]).map(drop))
}

pub(super) fn add_damage(t: &Transaction<'_>, cid: Cid, pack: PackId) -> rusqlite::Result<()> {
    // Only that copy: another may have taken its place since it was looked at.
    t.execute(
        "UPDATE blobs SET state = ?3, since = (SELECT round FROM totals)
         WHERE cid = ?1 AND pack = (SELECT number FROM packs WHERE id = ?2)",
        params![cid.as_bytes(), pack.as_bytes(), CORRUPT],
    )?;
    begin_generation(t)
}

pub(super) fn lose_pack(t: &Transaction<'_>, pack: PackId) -> rusqlite::Result<()> {
    let found = t.query_row("SELECT number, bytes, doomed FROM packs WHERE id = ?1", [pack.as_bytes()], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)? * (1 - row.get::<_, i64>(2)?), row.get::<_, i64>(2)?))
    });
    let Some((number, bytes, doomed)) = found.optional()? else { return Ok(()) };
    // Looks at every blob, since none is found by its pack; but this is no daily matter.
    t.execute(
        "INSERT OR IGNORE INTO absent (cid) SELECT cid FROM blobs WHERE pack = ?1 AND state <> ?2",
        [number, CONDEMNED],
    )?;
    let blobs = t.execute("DELETE FROM blobs WHERE pack = ?1", [number])? as i64;
    t.execute("DELETE FROM packs WHERE number = ?1", [number])?;
    t.execute(
        "UPDATE totals SET packs = packs - 1 + ?3, blobs = blobs - ?1, bytes = bytes - ?2",
        [blobs, bytes, doomed],
    )?;
    begin_generation(t)
}

/// Forgets in one step which nodes were closed.
pub(super) fn begin_generation(t: &Transaction<'_>) -> rusqlite::Result<()> {
    t.execute("UPDATE totals SET generation = generation + 1", []).map(drop)
}

pub(super) fn append(t: &Transaction<'_>, logged: &Logged, snapshot: Option<&Snapshot>) -> rusqlite::Result<()> {
    let position = logged.mark.position.index as i64;
    t.execute(
        "INSERT INTO log (position, entry, head, end) VALUES (?1, ?2, ?3, ?4)",
        params![position, logged.bytes, logged.mark.position.head.as_bytes(), logged.mark.end as i64],
    )?;
    let change = match (&logged.entry, snapshot) {
        (LogEntry::Commit { at, .. }, Some(snapshot)) => insert_snapshot(t, position, *at, snapshot)?,
        // A commit whose manifest is lost; its place in the log stays.
        (LogEntry::Commit { .. }, None) => 0,
        (LogEntry::Forget { manifest, at, .. }, _) => -forget(t, *manifest, position, *at)?,
        (LogEntry::Undelete { manifest, .. }, _) => undelete(t, *manifest)?,
        (LogEntry::Pin { manifest, .. }, _) => pin(t, *manifest, true)?,
        (LogEntry::Unpin { manifest, .. }, _) => pin(t, *manifest, false)?,
    };
    t.execute("UPDATE totals SET snapshots = snapshots + ?1", [change]).map(drop)
}

fn insert_snapshot(t: &Transaction<'_>, position: i64, at: i64, snapshot: &Snapshot) -> rusqlite::Result<i64> {
    // A manifest whose file was once lost may stand in the log twice; its first place counts.
    let new = t.execute(
        "INSERT OR IGNORE INTO snapshots (position, hash, volume, source, sequence, received, manifest)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            position,
            snapshot.hash.as_bytes(),
            snapshot.volume.as_str(),
            snapshot.source.as_str(),
            snapshot.sequence as i64,
            at,
            snapshot.manifest,
        ],
    )?;
    Ok(new as i64)
}

fn forget(t: &Transaction<'_>, hash: ManifestHash, position: i64, at: i64) -> rusqlite::Result<i64> {
    let changed = t.execute(
        "UPDATE snapshots SET forgotten = ?2, forgotten_at = ?3 WHERE hash = ?1 AND forgotten IS NULL",
        params![hash.as_bytes(), position, at],
    )?;
    Ok(changed as i64)
}

fn undelete(t: &Transaction<'_>, hash: ManifestHash) -> rusqlite::Result<i64> {
    let changed = t.execute(
        "UPDATE snapshots SET forgotten = NULL, forgotten_at = NULL, collected = 0
         WHERE hash = ?1 AND forgotten IS NOT NULL",
        [hash.as_bytes()],
    )?;
    Ok(changed as i64)
}

/// Changes no number of snapshots.
fn pin(t: &Transaction<'_>, hash: ManifestHash, pinned: bool) -> rusqlite::Result<i64> {
    t.execute("UPDATE snapshots SET pinned = ?2 WHERE hash = ?1", params![hash.as_bytes(), pinned]).map(|_| 0)
}
