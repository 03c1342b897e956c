//! The one thread that changes the catalog, and what it can be told.

use crossbeam_channel::{Receiver, Sender};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use vsync_protocol::id::{Cid, PackId};
use vsync_protocol::log::LogEntry;

use super::schema::{self, CORRUPT, LIVE};
use super::{CatalogError, Snapshot};
use crate::store::journal::Logged;
use crate::store::pack::Record;

/// Where a command's outcome goes.
pub(super) type Done = Sender<Result<(), CatalogError>>;

/// One change; each is one transaction, durable when its outcome is sent.
pub(super) enum Command {
    AddPack { pack: PackId, bytes: u64, records: Vec<Record>, done: Done },
    AddClosed { nodes: Vec<Cid>, generation: u64, done: Done },
    AddDamage { cid: Cid, pack: PackId, done: Done },
    LosePack { pack: PackId, done: Done },
    Append { logged: Box<(Logged, Option<Snapshot>)>, done: Done },
    Stop,
}

/// Carries out commands until told to stop.
pub(super) fn run(mut connection: Connection, commands: &Receiver<Command>) {
    for command in commands {
        let (done, result) = match command {
            Command::AddPack { pack, bytes, mut records, done } => {
                (done, change(&mut connection, "add a pack", |t| add_pack(t, pack, bytes, &mut records)))
            }
            Command::AddClosed { nodes, generation, done } => {
                (done, change(&mut connection, "mark nodes", |t| add_closed(t, &nodes, generation)))
            }
            Command::AddDamage { cid, pack, done } => {
                (done, change(&mut connection, "mark a damaged blob", |t| add_damage(t, cid, pack)))
            }
            Command::LosePack { pack, done } => {
                (done, change(&mut connection, "mark a lost pack", |t| lose_pack(t, pack)))
            }
            Command::Append { logged, done } => {
                let (logged, snapshot) = &*logged;
                (done, change(&mut connection, "repeat a log entry", |t| append(t, logged, snapshot.as_ref())))
            }
            Command::Stop => break,
        };
        // Who asked may have gone; the change stands all the same.
        let _ = done.send(result);
    }
    schema::close(connection);
}

fn change(
    connection: &mut Connection,
    operation: &'static str,
    with: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()>,
) -> Result<(), CatalogError> {
    // Immediate: a transaction that begins by reading could not wait for the lock later.
    let run = |connection: &mut Connection| {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // With the first change, not at the start: who only reads waits for no disk.
        transaction.prepare_cached("UPDATE totals SET clean = 0 WHERE clean = 1")?.execute([])?;
        with(&transaction)?;
        transaction.commit()
    };
    run(connection).map_err(CatalogError::sqlite(operation))
}

fn add_pack(t: &Transaction<'_>, pack: PackId, bytes: u64, records: &mut [Record]) -> rusqlite::Result<()> {
    let new = t
        .prepare_cached("INSERT OR IGNORE INTO packs (id, bytes) VALUES (?1, ?2)")?
        .execute(params![pack.as_bytes(), bytes as i64])?;
    t.prepare_cached("UPDATE totals SET packs = packs + ?1, bytes = bytes + ?1 * ?2")?
        .execute(params![new as i64, bytes as i64])?;
    let number: i64 =
        t.prepare_cached("SELECT number FROM packs WHERE id = ?1")?.query_row([pack.as_bytes()], |row| row.get(0))?;
    // Sorted, neighbouring keys touch the same page of the tree once.
    records.sort_unstable_by_key(|record| record.cid);
    let mut insert = t.prepare_cached(
        "INSERT OR IGNORE INTO blobs (cid, pack, offset, len, kind, state, closed) VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0)",
    )?;
    let mut update = t.prepare_cached(
        "UPDATE blobs SET pack = ?2, offset = ?3, len = ?4, kind = ?5, state = ?6
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

fn add_closed(t: &Transaction<'_>, nodes: &[Cid], generation: u64) -> rusqlite::Result<()> {
    let mut update = t.prepare_cached("UPDATE blobs SET closed = ?2 WHERE cid = ?1")?;
    nodes.iter().try_for_each(|cid| update.execute(params![cid.as_bytes(), generation as i64]).map(drop))
}

fn add_damage(t: &Transaction<'_>, cid: Cid, pack: PackId) -> rusqlite::Result<()> {
    // Only that copy: another may have taken its place since it was looked at.
    t.execute(
        "UPDATE blobs SET state = ?3 WHERE cid = ?1 AND pack = (SELECT number FROM packs WHERE id = ?2)",
        params![cid.as_bytes(), pack.as_bytes(), CORRUPT],
    )?;
    begin_generation(t)
}

fn lose_pack(t: &Transaction<'_>, pack: PackId) -> rusqlite::Result<()> {
    let found = t.query_row("SELECT number, bytes FROM packs WHERE id = ?1", [pack.as_bytes()], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
    });
    let Some((number, bytes)) = found.optional()? else { return Ok(()) };
    // Looks at every blob, since none is found by its pack; but this is no daily matter.
    let blobs = t.execute("DELETE FROM blobs WHERE pack = ?1", [number])? as i64;
    t.execute("DELETE FROM packs WHERE number = ?1", [number])?;
    t.execute("UPDATE totals SET packs = packs - 1, blobs = blobs - ?1, bytes = bytes - ?2", [blobs, bytes])?;
    begin_generation(t)
}

/// Forgets in one step which nodes were closed.
fn begin_generation(t: &Transaction<'_>) -> rusqlite::Result<()> {
    t.execute("UPDATE totals SET generation = generation + 1", []).map(drop)
}

fn append(t: &Transaction<'_>, logged: &Logged, snapshot: Option<&Snapshot>) -> rusqlite::Result<()> {
    let position = logged.mark.position.index as i64;
    t.execute(
        "INSERT INTO log (position, entry, head, end) VALUES (?1, ?2, ?3, ?4)",
        params![position, logged.bytes, logged.mark.position.head.as_bytes(), logged.mark.end as i64],
    )?;
    let change = match (&logged.entry, snapshot) {
        (LogEntry::Commit { at, .. }, Some(snapshot)) => insert_snapshot(t, position, *at, snapshot)?,
        // A commit whose manifest is lost; its place in the log stays.
        (LogEntry::Commit { .. }, None) => 0,
        (LogEntry::Forget { manifest, .. }, _) => {
            -(t.execute(
                "UPDATE snapshots SET forgotten = ?2 WHERE hash = ?1 AND forgotten IS NULL",
                params![manifest.as_bytes(), position],
            )? as i64)
        }
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
