//! Whether the catalog says of a pack what the pack says of itself.

use std::collections::HashSet;

use rusqlite::{Connection, OptionalExtension, Row as SqlRow, Transaction, params};
use vsync_protocol::id::{Cid, PackId};

use super::schema::{CORRUPT, LIVE};
use super::{Catalog, CatalogError};
use crate::store::pack::Record;

/// What a catalog says of blobs that are whole in a pack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Misplaced {
    /// They are said to be in it, but at another place, or to be something else.
    pub here: Vec<Record>,
    /// They are said to be live in another pack, and may be.
    pub elsewhere: Vec<Cid>,
}

impl Catalog {
    /// What the catalog says of the whole blobs `records` of `pack` that the pack does not.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn misplaced(&self, pack: PackId, records: &[Record]) -> Result<Misplaced, CatalogError> {
        self.read("compare a pack's rows", |reader| misplaced(reader, pack, records))
    }

    /// Puts the rows right that place `records` in `pack`, but elsewhere in it or as damaged.
    ///
    /// # Errors
    /// When it is not recorded; then none of it is.
    pub fn put_right(&self, pack: PackId, records: Vec<Record>) -> Result<(), CatalogError> {
        self.write("put rows right", move |t| put_right(t, pack, &records))
    }
}

fn misplaced(reader: &Connection, pack: PackId, records: &[Record]) -> rusqlite::Result<Misplaced> {
    let transaction = reader.unchecked_transaction()?;
    let find = "SELECT number FROM packs WHERE id = ?1 AND doomed = 0";
    let number = transaction.query_row(find, [pack.as_bytes()], |row| row.get::<_, i64>(0)).optional()?;
    let Some(number) = number else { return Ok(Misplaced::default()) };
    let mut find = transaction.prepare_cached("SELECT pack, offset, len, kind, state FROM blobs WHERE cid = ?1")?;
    // As numbers, whatever they are: what could not be a place is a wrong one.
    let row = |row: &SqlRow<'_>| Ok((row.get::<_, i64>(0)?, place(row)?, row.get::<_, i64>(4)?));
    // A pack may hold a blob twice; either place is right.
    let places: HashSet<_> = records.iter().map(|record| (record.cid, place_of(record))).collect();
    let mut found = Misplaced::default();
    for record in records {
        match find.query_row([record.cid.as_bytes()], row).optional()? {
            Some((at, place, _)) if at == number => {
                if !places.contains(&(record.cid, place)) {
                    found.here.push(*record);
                }
            }
            Some((_, _, LIVE)) => found.elsewhere.push(record.cid),
            // Nobody is told that it is here.
            Some(_) | None => {}
        }
    }
    Ok(found)
}

/// Offset, length and kind, as the columns 1, 2 and 3 of a row have them.
fn place(row: &SqlRow<'_>) -> rusqlite::Result<(i64, i64, i64)> {
    Ok((row.get(1)?, row.get(2)?, row.get(3)?))
}

fn place_of(record: &Record) -> (i64, i64, i64) {
    (record.offset as i64, record.len.into(), record.kind as i64)
}

fn put_right(t: &Transaction<'_>, pack: PackId, records: &[Record]) -> rusqlite::Result<()> {
    // Read where it was not, a blob may have been taken for damaged.
    let mut update = t.prepare_cached(
        "UPDATE blobs SET offset = ?3, len = ?4, kind = ?5,
             since = CASE state WHEN ?6 THEN (SELECT round FROM totals) ELSE since END,
             state = CASE state WHEN ?6 THEN ?7 ELSE state END
         WHERE cid = ?1 AND pack = (SELECT number FROM packs WHERE id = ?2 AND doomed = 0)",
    )?;
    records.iter().try_for_each(|record| {
        let (offset, len, kind) = place_of(record);
        let values = params![record.cid.as_bytes(), pack.as_bytes(), offset, len, kind, CORRUPT, LIVE];
        update.execute(values).map(drop)
    })
}
