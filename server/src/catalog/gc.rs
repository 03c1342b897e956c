//! What garbage collection and scrub ask and change.

use std::collections::HashSet;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row as SqlRow, Transaction, params};
use vsync_protocol::blob::BlobKind;
use vsync_protocol::id::{Cid, PackId};

use super::read::unsigned;
use super::schema::{CONDEMNED, CORRUPT, LIVE};
use super::{Catalog, CatalogError, write};
use crate::store::pack::{RECORD_HEAD_LEN, ROW_LEN, Record};

/// How a blob stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Here for everybody.
    Live,
    /// Damaged, hence absent.
    Corrupt,
    /// Needless since a round of garbage collection, hence absent, but still on disk.
    Condemned,
}

/// A blob in a survey of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The blob.
    pub cid: Cid,
    /// What it holds.
    pub kind: BlobKind,
    /// How it stands.
    pub state: State,
    /// Since which round.
    pub since: u64,
    /// Bytes of it.
    pub len: u32,
}

/// A blob with its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The pack that the catalog names.
    pub pack: PackId,
    /// Where the blob begins in it.
    pub offset: u64,
    /// Bytes of it.
    pub len: u32,
    /// What it holds.
    pub kind: BlobKind,
    /// How it stands.
    pub state: State,
    /// Since which round.
    pub since: u64,
}

/// How much of a pack is still of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The pack.
    pub pack: PackId,
    /// Its bytes.
    pub bytes: u64,
    /// Bytes of records that must stay, and of their rows in the table.
    pub kept: u64,
}

/// What one step of compaction changes.
#[derive(Clone, Debug, Default)]
pub struct Compaction {
    /// The new pack, which is durable, and its bytes.
    pub new: Option<(PackId, u64)>,
    /// What the new pack holds, and in which pack each of these was before.
    pub moved: Vec<(Record, PackId)>,
    /// Packs that are of no more use, with every blob in their tables.
    pub retired: Vec<(PackId, Vec<Cid>)>,
    /// The last round whose condemned blobs may go.
    pub ripe: u64,
}

impl Catalog {
    /// Begins a round of garbage collection that looks at the log up to `log`. Returns its
    /// number.
    ///
    /// # Errors
    /// When it is not recorded.
    pub fn begin_round(&self, log: u64, uptime: u64) -> Result<u64, CatalogError> {
        self.write("begin a round", move |t| begin_round(t, log, uptime))
    }

    /// The current round.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn round(&self) -> Result<u64, CatalogError> {
        self.read("read the round", |reader| reader.query_row("SELECT round FROM totals", [], |row| unsigned(row, 0)))
    }

    /// The last round that is at least two behind and began at uptime `before` or earlier; 0
    /// if there is none.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn ripe_round(&self, before: Option<u64>) -> Result<u64, CatalogError> {
        let Some(before) = before.and_then(|before| i64::try_from(before).ok()) else { return Ok(0) };
        self.read("find a ripe round", |reader| {
            reader.query_row(
                "SELECT coalesce(max(number), 0) FROM rounds
                 WHERE number <= (SELECT round FROM totals) - 2 AND uptime <= ?1",
                [before],
                |row| unsigned(row, 0),
            )
        })
    }

    /// At most `limit` blobs after the blob `after`, in order.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn survey(&self, after: Option<Cid>, limit: u32) -> Result<Vec<Row>, CatalogError> {
        self.read("survey blobs", |reader| survey(reader, after, limit))
    }

    /// Where `cids` lie and how they stand.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn entries(&self, cids: &[Cid]) -> Result<Vec<Option<Entry>>, CatalogError> {
        self.read("look up blobs", |reader| entries(reader, cids))
    }

    /// All blobs that the catalog places in `pack`. Looks at every blob there is.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn blobs_of(&self, pack: PackId) -> Result<Vec<Cid>, CatalogError> {
        self.read("list a pack's blobs", |reader| {
            reader
                .prepare_cached("SELECT cid FROM blobs WHERE pack = (SELECT number FROM packs WHERE id = ?1)")?
                .query_map([pack.as_bytes()], |row| row.get(0).map(Cid::from_bytes))?
                .collect()
        })
    }

    /// Makes those of `cids` absent that are live. A new generation begins; those of `nodes`
    /// that were closed in the last one, and below which there is none of `cids`, stay so.
    /// Returns how many became absent.
    ///
    /// # Errors
    /// When it is not recorded; then none of it is.
    pub(crate) fn condemn(&self, cids: Vec<Cid>, nodes: Arc<HashSet<Cid>>) -> Result<u64, CatalogError> {
        self.write("condemn blobs", move |t| condemn(t, &cids, &nodes))
    }

    /// Makes those of `cids` live again that are condemned. Returns those that are live.
    ///
    /// # Errors
    /// When it is not recorded.
    pub fn revive(&self, cids: Vec<Cid>) -> Result<Vec<Cid>, CatalogError> {
        self.write("revive blobs", move |t| revive(t, &cids))
    }

    /// How much of each pack is of use, if blobs condemned up to round `ripe` are not.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn kept(&self, ripe: u64) -> Result<Vec<Kept>, CatalogError> {
        self.read("weigh packs", |reader| kept(reader, ripe))
    }

    /// Notes that the data of snapshots may be gone that were forgotten before the round
    /// `ripe` began.
    ///
    /// # Errors
    /// When it is not recorded.
    pub fn collect(&self, ripe: u64) -> Result<(), CatalogError> {
        self.write("mark collected snapshots", move |t| {
            t.execute(
                "UPDATE snapshots SET collected = 1 WHERE collected = 0
                 AND forgotten <= (SELECT log FROM rounds WHERE number = ?1)",
                [ripe as i64],
            )
            .map(drop)
        })
    }

    /// Records a step of compaction. A retired pack is doomed unless something in it turned
    /// out to be of use after all. Returns the doomed ones.
    ///
    /// # Errors
    /// When it is not recorded; then none of it is.
    pub fn compact(&self, step: Compaction) -> Result<Vec<PackId>, CatalogError> {
        self.write("repoint blobs", move |t| compact(t, &step))
    }

    /// Packs that are of no more use but not yet in the trash.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn doomed(&self) -> Result<Vec<PackId>, CatalogError> {
        self.read("list doomed packs", |reader| {
            reader
                .prepare_cached("SELECT id FROM packs WHERE doomed = 1")?
                .query_map([], |row| row.get(0).map(PackId::from_bytes))?
                .collect()
        })
    }

    /// Notes that the doomed `pack` is in the trash since `uptime`.
    ///
    /// # Errors
    /// When it is not recorded.
    pub fn bury(&self, pack: PackId, uptime: u64) -> Result<(), CatalogError> {
        self.write("note a pack in the trash", move |t| {
            t.execute("DELETE FROM packs WHERE id = ?1 AND doomed = 1", [pack.as_bytes()])?;
            t.execute(
                "INSERT OR IGNORE INTO trash (id, uptime) VALUES (?1, ?2)",
                params![pack.as_bytes(), uptime as i64],
            )
            .map(drop)
        })
    }

    /// Packs in the trash, and since which uptime.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn trash(&self) -> Result<Vec<(PackId, u64)>, CatalogError> {
        self.read("list the trash", |reader| {
            reader
                .prepare_cached("SELECT id, uptime FROM trash")?
                .query_map([], |row| Ok((PackId::from_bytes(row.get(0)?), unsigned(row, 1)?)))?
                .collect()
        })
    }

    /// The uptime at which the last round began, if any did.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn last_round(&self) -> Result<Option<u64>, CatalogError> {
        self.read("find the last round", |reader| {
            reader
                .query_row("SELECT uptime FROM rounds ORDER BY number DESC LIMIT 1", [], |row| unsigned(row, 0))
                .optional()
        })
    }

    /// Notes that `pack` is no more in the trash.
    ///
    /// # Errors
    /// When it is not recorded.
    pub fn unbury(&self, pack: PackId) -> Result<(), CatalogError> {
        self.write("note a pack gone", move |t| {
            t.execute("DELETE FROM trash WHERE id = ?1", [pack.as_bytes()]).map(drop)
        })
    }

    /// The pack that was read through longest ago, and when, by the server's uptime; 0 if
    /// never.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn least_checked(&self) -> Result<Option<(PackId, u64)>, CatalogError> {
        self.read("find a pack to check", |reader| {
            reader
                .prepare_cached("SELECT id, checked FROM packs WHERE doomed = 0 ORDER BY checked, number LIMIT 1")?
                .query_row([], |row| Ok((PackId::from_bytes(row.get(0)?), unsigned(row, 1)?)))
                .optional()
        })
    }

    /// Notes that `pack` was read through at `uptime`.
    ///
    /// # Errors
    /// When it is not recorded.
    pub fn checked(&self, pack: PackId, uptime: u64) -> Result<(), CatalogError> {
        self.write("note a checked pack", move |t| {
            t.execute("UPDATE packs SET checked = ?2 WHERE id = ?1", params![pack.as_bytes(), uptime as i64]).map(drop)
        })
    }
}

fn begin_round(t: &Transaction<'_>, log: u64, uptime: u64) -> rusqlite::Result<u64> {
    t.execute("UPDATE totals SET round = round + 1", [])?;
    t.execute(
        "INSERT INTO rounds (number, log, uptime) SELECT round, ?1, ?2 FROM totals",
        params![log as i64, uptime as i64],
    )?;
    t.query_row("SELECT round FROM totals", [], |row| unsigned(row, 0))
}

fn survey(reader: &Connection, after: Option<Cid>, limit: u32) -> rusqlite::Result<Vec<Row>> {
    let row = |row: &SqlRow<'_>| {
        let (cid, kind) = (Cid::from_bytes(row.get(0)?), kind(row, 1)?);
        Ok(Row { cid, kind, state: state(row, 2)?, since: unsigned(row, 3)?, len: row.get(4)? })
    };
    // No blob is named by nothing, so that the empty string comes before all.
    let after = after.map_or_else(Vec::new, |cid| cid.as_bytes().to_vec());
    reader
        .prepare_cached("SELECT cid, kind, state, since, len FROM blobs WHERE cid > ?1 ORDER BY cid LIMIT ?2")?
        .query_map(params![after, limit], row)?
        .collect()
}

fn entries(reader: &Connection, cids: &[Cid]) -> rusqlite::Result<Vec<Option<Entry>>> {
    let transaction = reader.unchecked_transaction()?;
    let mut find = transaction.prepare_cached(
        "SELECT packs.id, offset, len, kind, state, since FROM blobs JOIN packs ON packs.number = blobs.pack
         WHERE cid = ?1",
    )?;
    let entry = |row: &SqlRow<'_>| {
        let (pack, offset, len) = (PackId::from_bytes(row.get(0)?), unsigned(row, 1)?, row.get(2)?);
        Ok(Entry { pack, offset, len, kind: kind(row, 3)?, state: state(row, 4)?, since: unsigned(row, 5)? })
    };
    cids.iter().map(|cid| find.query_row([cid.as_bytes()], entry).optional()).collect()
}

fn condemn(t: &Transaction<'_>, cids: &[Cid], nodes: &HashSet<Cid>) -> rusqlite::Result<u64> {
    let mut update = t.prepare_cached(
        "UPDATE blobs SET state = ?2, since = (SELECT round FROM totals) WHERE cid = ?1 AND state = ?3",
    )?;
    let mut condemned = 0;
    for cid in cids {
        condemned += update.execute(params![cid.as_bytes(), CONDEMNED, LIVE])? as u64;
    }
    write::begin_generation(t)?;
    let mut reclose = t.prepare_cached(
        "UPDATE blobs SET closed = closed + 1 WHERE cid = ?1 AND closed = (SELECT generation - 1 FROM totals)",
    )?;
    nodes.iter().try_for_each(|cid| reclose.execute([cid.as_bytes()]).map(drop))?;
    Ok(condemned)
}

fn revive(t: &Transaction<'_>, cids: &[Cid]) -> rusqlite::Result<Vec<Cid>> {
    let mut update = t.prepare_cached(
        "UPDATE blobs SET state = ?2, since = (SELECT round FROM totals) WHERE cid = ?1 AND state = ?3",
    )?;
    let mut find = t.prepare_cached("SELECT 1 FROM blobs WHERE cid = ?1 AND state = ?2")?;
    let mut live = Vec::new();
    for cid in cids {
        update.execute(params![cid.as_bytes(), LIVE, CONDEMNED])?;
        if find.exists(params![cid.as_bytes(), LIVE])? {
            live.push(*cid);
        }
    }
    Ok(live)
}

fn kept(reader: &Connection, ripe: u64) -> rusqlite::Result<Vec<Kept>> {
    let row = |row: &SqlRow<'_>| {
        let pack = PackId::from_bytes(row.get(0)?);
        Ok(Kept { pack, bytes: unsigned(row, 1)?, kept: unsigned(row, 2)? })
    };
    reader
        .prepare_cached(
            "SELECT id, bytes, coalesce(weight, 0) FROM packs LEFT JOIN
                 (SELECT pack, sum(len + ?1) AS weight FROM blobs
                  WHERE state = ?2 OR (state = ?3 AND since > ?4) GROUP BY pack) ON pack = number
             WHERE doomed = 0 ORDER BY number",
        )?
        .query_map(params![(RECORD_HEAD_LEN + ROW_LEN) as i64, LIVE, CONDEMNED, ripe as i64], row)?
        .collect()
}

fn compact(t: &Transaction<'_>, step: &Compaction) -> rusqlite::Result<Vec<PackId>> {
    if let Some((pack, bytes)) = step.new {
        let number = write::add_pack_row(t, pack, bytes)?;
        let mut repoint = t.prepare_cached(
            "UPDATE blobs SET pack = ?2, offset = ?3, len = ?4
             WHERE cid = ?1 AND state <> ?5 AND pack = (SELECT number FROM packs WHERE id = ?6)",
        )?;
        for (record, from) in &step.moved {
            let place = (record.cid.as_bytes(), number, record.offset as i64, record.len);
            repoint.execute(params![place.0, place.1, place.2, place.3, CORRUPT, from.as_bytes()])?;
        }
    }
    let mut doomed = Vec::new();
    for (pack, cids) in step.retired.iter().filter(|(pack, _)| step.new.is_none_or(|(new, _)| new != *pack)) {
        if retire(t, *pack, cids, step.ripe)? {
            doomed.push(*pack);
        }
    }
    Ok(doomed)
}

/// Drops the needless blobs of `pack` and dooms it. Returns false, leaving everything as it
/// is, when one of its blobs is needed.
fn retire(t: &Transaction<'_>, pack: PackId, cids: &[Cid], ripe: u64) -> rusqlite::Result<bool> {
    let row = t.query_row("SELECT number, bytes FROM packs WHERE id = ?1 AND doomed = 0", [pack.as_bytes()], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
    });
    let Some((number, bytes)) = row.optional()? else { return Ok(false) };
    let mut needed = t.prepare_cached(
        "SELECT 1 FROM blobs WHERE cid = ?1 AND pack = ?2 AND (state = ?3 OR (state = ?4 AND since > ?5))",
    )?;
    for cid in cids {
        if needed.exists(params![cid.as_bytes(), number, LIVE, CONDEMNED, ripe as i64])? {
            return Ok(false);
        }
    }
    // A damaged blob is still to be missed when its row is gone.
    let mut miss = t.prepare_cached(
        "INSERT OR IGNORE INTO absent (cid) SELECT cid FROM blobs WHERE cid = ?1 AND pack = ?2 AND state = ?3",
    )?;
    let mut delete = t.prepare_cached("DELETE FROM blobs WHERE cid = ?1 AND pack = ?2")?;
    let mut gone = 0;
    for cid in cids {
        miss.execute(params![cid.as_bytes(), number, CORRUPT])?;
        gone += delete.execute(params![cid.as_bytes(), number])? as i64;
    }
    t.execute("UPDATE packs SET doomed = 1 WHERE number = ?1", [number])?;
    t.execute("UPDATE totals SET packs = packs - 1, blobs = blobs - ?1, bytes = bytes - ?2", [gone, bytes])?;
    Ok(true)
}

fn kind(row: &SqlRow<'_>, column: usize) -> rusqlite::Result<BlobKind> {
    let kind: u8 = row.get(column)?;
    BlobKind::from_code(kind).ok_or(rusqlite::Error::IntegralValueOutOfRange(column, kind.into()))
}

fn state(row: &SqlRow<'_>, column: usize) -> rusqlite::Result<State> {
    match row.get(column)? {
        LIVE => Ok(State::Live),
        CORRUPT => Ok(State::Corrupt),
        CONDEMNED => Ok(State::Condemned),
        other => Err(rusqlite::Error::IntegralValueOutOfRange(column, other)),
    }
}
