//! Questions to the catalog, each answered through an index.

use rusqlite::types::{Type, Value};
use rusqlite::{Connection, OptionalExtension, Row, params};
use vsync_protocol::blob::BlobKind;
use vsync_protocol::id::{Cid, LogHead, MachineName, ManifestHash, PackId, SnapshotId, VolumeName};
use vsync_protocol::log::LogEntry;
use vsync_protocol::manifest::LogPosition;
use vsync_protocol::wire::{Listing, SnapshotRecord};

use super::schema::LIVE;
use super::{Accepted, Location, Totals};
use crate::store::journal::Mark;

/// What a record takes in a reply besides its manifest, at most.
const RECORD_OVERHEAD: usize = 80;

pub(super) fn have(reader: &Connection, cids: &[Cid]) -> rusqlite::Result<Vec<bool>> {
    // One transaction for all: without it each lookup takes and drops the lock.
    let transaction = reader.unchecked_transaction()?;
    let mut find = transaction.prepare_cached("SELECT 1 FROM blobs WHERE cid = ?1 AND state = ?2")?;
    let mut found = vec![false; cids.len()];
    for at in in_key_order(cids) {
        found[at] = find.exists(params![cids[at].as_bytes(), LIVE])?;
    }
    Ok(found)
}

/// Where the names stand in `cids`, in the order of the names: neighbours in the tree are looked
/// up together, so that a connection needs little memory for pages of a large one.
fn in_key_order(cids: &[Cid]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..cids.len()).collect();
    order.sort_unstable_by_key(|&at| cids[at].as_bytes());
    order
}

pub(super) fn locate(reader: &Connection, cids: &[Cid]) -> rusqlite::Result<Vec<Option<Location>>> {
    let transaction = reader.unchecked_transaction()?;
    let mut find = transaction.prepare_cached(
        "SELECT packs.id, offset, len, kind, closed FROM blobs JOIN packs ON packs.number = blobs.pack
         WHERE cid = ?1 AND state = ?2",
    )?;
    let mut found = vec![None; cids.len()];
    for at in in_key_order(cids) {
        found[at] = find.query_row(params![cids[at].as_bytes(), LIVE], location).optional()?;
    }
    Ok(found)
}

pub(super) fn generation(reader: &Connection) -> rusqlite::Result<u64> {
    reader.prepare_cached("SELECT generation FROM totals")?.query_row([], |row| unsigned(row, 0))
}

pub(super) fn last(
    reader: &Connection,
    volume: &VolumeName,
    source: &MachineName,
) -> rusqlite::Result<Option<(u64, ManifestHash)>> {
    reader
        .prepare_cached(
            "SELECT sequence, hash FROM snapshots WHERE source = ?1 AND volume = ?2 ORDER BY sequence DESC LIMIT 1",
        )?
        .query_row([source.as_str(), volume.as_str()], |row| {
            Ok((unsigned(row, 0)?, ManifestHash::from_bytes(row.get(1)?)))
        })
        .optional()
}

pub(super) fn accepted(reader: &Connection, hash: ManifestHash) -> rusqlite::Result<Option<Accepted>> {
    reader
        .prepare_cached("SELECT position, head, received FROM snapshots JOIN log USING (position) WHERE hash = ?1")?
        .query_row([hash.as_bytes()], |row| Ok(Accepted { position: position(row)?, at: row.get(2)? }))
        .optional()
}

pub(super) fn snapshots(
    reader: &Connection,
    listing: &Listing,
    budget: usize,
) -> rusqlite::Result<Vec<SnapshotRecord>> {
    let Some((query, values)) = listing_query(listing) else { return Ok(Vec::new()) };
    let mut statement = reader.prepare_cached(&query)?;
    let mut rows = statement.query(rusqlite::params_from_iter(values))?;
    let (mut page, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let record = snapshot(row)?;
        bytes += record.manifest.len() + RECORD_OVERHEAD;
        if bytes > budget && !page.is_empty() {
            break;
        }
        page.push(record);
    }
    Ok(page)
}

/// The query that answers `listing`, and its values; none when no id can match its prefix.
pub(super) fn listing_query(listing: &Listing) -> Option<(String, Vec<Value>)> {
    let before = listing.before.and_then(|before| i64::try_from(before).ok()).unwrap_or(i64::MAX);
    let mut values = vec![Value::from(before), Value::from(listing.limit)];
    let mut query = "SELECT hash, position, received, manifest, pinned, forgotten_at FROM snapshots".to_owned();
    // An id is the beginning of a manifest's hash, so a prefix of one is a range of the
    // other. It is the narrowest index; left alone, SQLite might walk all positions.
    let prefix = listing.prefix.as_deref().filter(|prefix| !prefix.is_empty());
    if prefix.is_some() {
        query += " INDEXED BY sqlite_autoindex_snapshots_1";
    }
    query +=
        if listing.forgotten { " WHERE forgotten IS NOT NULL AND collected = 0" } else { " WHERE forgotten IS NULL" };
    query += " AND position < ?1";
    if let Some(prefix) = prefix {
        let (low, high) = prefix_range(prefix)?;
        query += " AND hash BETWEEN ?3 AND ?4";
        values.extend([Value::from(low.to_vec()), Value::from(high.to_vec())]);
    }
    for (column, name) in [
        ("volume", listing.volume.as_ref().map(VolumeName::as_str)),
        ("source", listing.source.as_ref().map(MachineName::as_str)),
    ] {
        if let Some(name) = name {
            values.push(Value::from(name.to_owned()));
            query += &format!(" AND {column} = ?{}", values.len());
        }
    }
    query += " ORDER BY position DESC LIMIT ?2";
    Some((query, values))
}

pub(super) fn log(reader: &Connection, from: u64, budget: usize) -> rusqlite::Result<Vec<LogEntry>> {
    let Ok(from) = i64::try_from(from) else { return Ok(Vec::new()) };
    let mut find = reader.prepare_cached("SELECT entry FROM log WHERE position > ?1 ORDER BY position")?;
    let mut rows = find.query([from])?;
    let (mut page, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let entry = row.get_ref(0)?.as_blob()?;
        bytes += entry.len();
        if bytes > budget && !page.is_empty() {
            break;
        }
        page.push(minicbor::decode(entry).map_err(|error| foreign(0, Type::Blob, error))?);
    }
    Ok(page)
}

pub(super) fn mark(reader: &Connection) -> rusqlite::Result<Mark> {
    let found = reader
        .prepare_cached("SELECT position, head, end FROM log ORDER BY position DESC LIMIT 1")?
        .query_row([], |row| Ok(Mark { position: position(row)?, end: unsigned(row, 2)? }))
        .optional();
    Ok(found?.unwrap_or(Mark::START))
}

pub(super) fn totals(reader: &Connection) -> rusqlite::Result<Totals> {
    reader.query_row("SELECT blobs, packs, bytes, snapshots FROM totals", [], |row| {
        Ok(Totals {
            blobs: unsigned(row, 0)?,
            packs: unsigned(row, 1)?,
            bytes: unsigned(row, 2)?,
            snapshots: unsigned(row, 3)?,
        })
    })
}

pub(super) fn packs(reader: &Connection) -> rusqlite::Result<Vec<PackId>> {
    reader
        .prepare("SELECT id FROM packs WHERE doomed = 0")?
        .query_map([], |row| row.get(0).map(PackId::from_bytes))?
        .collect()
}

fn location(row: &Row<'_>) -> rusqlite::Result<Location> {
    let kind: u8 = row.get(3)?;
    Ok(Location {
        pack: PackId::from_bytes(row.get(0)?),
        offset: unsigned(row, 1)?,
        len: row.get(2)?,
        kind: BlobKind::from_code(kind).ok_or(rusqlite::Error::IntegralValueOutOfRange(3, kind.into()))?,
        closed: unsigned(row, 4)?,
    })
}

fn snapshot(row: &Row<'_>) -> rusqlite::Result<SnapshotRecord> {
    Ok(SnapshotRecord {
        id: SnapshotId::from(ManifestHash::from_bytes(row.get(0)?)),
        index: unsigned(row, 1)?,
        received: row.get(2)?,
        manifest: row.get(3)?,
        pinned: row.get(4)?,
        forgotten: row.get(5)?,
    })
}

/// Columns 0 and 1 as a position in the log.
fn position(row: &Row<'_>) -> rusqlite::Result<LogPosition> {
    Ok(LogPosition { index: unsigned(row, 0)?, head: LogHead::from_bytes(row.get(1)?) })
}

pub(super) fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, value))
}

fn foreign(column: usize, kind: Type, error: minicbor::decode::Error) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, kind, Box::new(error))
}

/// The lowest and highest hash of a snapshot whose id begins with the digits `prefix`;
/// none when they are no digits or too many.
fn prefix_range(prefix: &str) -> Option<([u8; 32], [u8; 32])> {
    if prefix.len() > 2 * SnapshotId::LEN || !prefix.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let low: ManifestHash = format!("{prefix:0<64}").parse().ok()?;
    let high: ManifestHash = format!("{prefix:f<64}").parse().ok()?;
    Some((*low.as_bytes(), *high.as_bytes()))
}
