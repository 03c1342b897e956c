//! The layout of a pack: many blobs in one file that is written once and never changed.
//!
//! ```text
//! pack    = "VSPACK01" ‖ records ‖ trailer
//! record  = "VSR1" ‖ len u32 ‖ cid 32 ‖ blob
//! trailer = table ‖ table_len u64 ‖ BLAKE3(table) 32 ‖ "VSPKEND1"
//! table   = per record: cid 32 ‖ offset of blob u64 ‖ len u32 ‖ kind u8 ‖ 3 zeros
//! ```
//!
//! Integers are little-endian. A pack is named by BLAKE3 of its table, hence by its blobs
//! and their order: a pack written again under the same name holds the same bytes. The
//! table gives an index back without reading blobs; the record heads give it back when
//! the table itself is damaged.

use std::collections::HashSet;
use std::io::IoSlice;

use bytes::Bytes;
use thiserror::Error;
use vsync_protocol::blob::{BlobKind, Header};
use vsync_protocol::id::{Cid, PackId};
use vsync_protocol::limits::MAX_BLOB_LEN;

/// Starts every pack; a change of layout changes the digits.
pub const MAGIC: [u8; 8] = *b"VSPACK01";
/// Starts every record.
pub const RECORD_MAGIC: [u8; 4] = *b"VSR1";
/// Ends every pack.
pub const END_MAGIC: [u8; 8] = *b"VSPKEND1";

/// Bytes in front of a blob in its record.
pub const RECORD_HEAD_LEN: usize = 40;
/// Bytes of one row of the table.
pub const ROW_LEN: usize = 48;
/// Bytes after the table.
pub const FOOTER_LEN: usize = 48;

/// A pack is closed when it has grown to this size: large enough that a sync per pack
/// costs little, small enough to be held in memory until it is whole.
pub const PACK_SIZE: usize = 16 << 20;

/// Most records of a pack, so that small blobs cannot make its table large.
pub const MAX_RECORDS: usize = 65_536;

/// One row of a pack's table: a blob and where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The blob's name.
    pub cid: Cid,
    /// Where the blob begins in the pack.
    pub offset: u64,
    /// Bytes of the blob.
    pub len: u32,
    /// What it holds.
    pub kind: BlobKind,
}

/// Why bytes are not a pack.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PackError {
    /// Too short, or one of the magic numbers is missing.
    #[error("not a pack of format 1")]
    Magic,
    /// The table's length cannot be.
    #[error("table of {0} bytes is out of bounds")]
    TableLen(u64),
    /// The table is not what its hash, or the pack's name, says.
    #[error("the table does not match its hash")]
    TableHash,
    /// The medium cannot read the table.
    #[error("the disk cannot read its table")]
    Unreadable,
    /// A row points outside the records, or does not follow the row before it.
    #[error("row {0} of the table cannot be")]
    Row(usize),
}

/// A pack while blobs are added.
#[derive(Default)]
pub struct PackBuilder {
    records: Vec<Record>,
    blobs: Vec<Bytes>,
    names: HashSet<Cid>,
    len: usize,
}

impl PackBuilder {
    /// Adds a blob whose name and kind the caller has checked; a second one of the same
    /// name is left out.
    pub fn push(&mut self, cid: Cid, kind: BlobKind, blob: Bytes) {
        if !self.names.insert(cid) {
            return;
        }
        let offset = (MAGIC.len() + self.len + RECORD_HEAD_LEN) as u64;
        self.len += RECORD_HEAD_LEN + blob.len();
        self.records.push(Record { cid, offset, len: blob.len() as u32, kind });
        self.blobs.push(blob);
    }

    /// Whether it is time to close the pack.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.is_full_at(PACK_SIZE)
    }

    /// The same where packs are closed at `size` bytes.
    #[must_use]
    pub fn is_full_at(&self, size: usize) -> bool {
        self.len >= size || self.records.len() >= MAX_RECORDS
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// What is in it.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// The same pack without the blobs that `keep` does not want.
    #[must_use]
    pub fn retain(self, mut keep: impl FnMut(&Record) -> bool) -> Self {
        let mut kept = Self::default();
        for (record, blob) in self.records.into_iter().zip(self.blobs) {
            if keep(&record) {
                kept.push(record.cid, record.kind, blob);
            }
        }
        kept
    }

    /// Closes the pack.
    #[must_use]
    pub fn finish(self) -> Pack {
        let mut trailer = Vec::with_capacity(self.records.len() * ROW_LEN + FOOTER_LEN);
        self.records.iter().for_each(|record| write_row(&mut trailer, record));
        let hash = blake3::hash(&trailer);
        let table_len = trailer.len() as u64;
        trailer.extend_from_slice(&table_len.to_le_bytes());
        trailer.extend_from_slice(hash.as_bytes());
        trailer.extend_from_slice(&END_MAGIC);
        let heads = self.records.iter().map(record_head).collect();
        Pack { id: PackId::from_bytes(*hash.as_bytes()), records: self.records, heads, blobs: self.blobs, trailer }
    }
}

/// A whole pack in memory, ready to be stored.
pub struct Pack {
    id: PackId,
    records: Vec<Record>,
    heads: Vec<[u8; RECORD_HEAD_LEN]>,
    blobs: Vec<Bytes>,
    trailer: Vec<u8>,
}

impl Pack {
    /// Its name.
    #[must_use]
    pub const fn id(&self) -> PackId {
        self.id
    }

    /// Its table.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Its bytes in order, without copying the blobs.
    #[must_use]
    pub fn slices(&self) -> Vec<IoSlice<'_>> {
        let mut slices = Vec::with_capacity(2 + 2 * self.blobs.len());
        slices.push(IoSlice::new(&MAGIC));
        for (head, blob) in self.heads.iter().zip(&self.blobs) {
            slices.push(IoSlice::new(head));
            slices.push(IoSlice::new(blob));
        }
        slices.push(IoSlice::new(&self.trailer));
        slices
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.slices().iter().map(|slice| slice.len() as u64).sum()
    }

    /// Always false: a pack has a head and a trailer.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }
}

/// Length of the table that ends at the footer `footer` of a pack of `pack_len` bytes.
///
/// # Errors
/// When the footer is not one, or the pack could not hold such a table.
pub fn table_len(footer: &[u8; FOOTER_LEN], pack_len: u64) -> Result<usize, PackError> {
    if footer[40..] != END_MAGIC {
        return Err(PackError::Magic);
    }
    let len = read_u64(footer, 0);
    let room = pack_len.saturating_sub((MAGIC.len() + FOOTER_LEN) as u64);
    let fits = len <= room && len <= (MAX_RECORDS * ROW_LEN) as u64 && len.is_multiple_of(ROW_LEN as u64);
    if fits { Ok(len as usize) } else { Err(PackError::TableLen(len)) }
}

/// Reads the table of pack `id` from its last bytes, `table ‖ footer`, and checks all of it.
///
/// # Errors
/// When anything about it cannot be.
pub fn read_table(id: PackId, trailer: &[u8], pack_len: u64) -> Result<Vec<Record>, PackError> {
    let (table, footer) = trailer.split_last_chunk::<FOOTER_LEN>().ok_or(PackError::Magic)?;
    if table_len(footer, pack_len)? != table.len() {
        return Err(PackError::TableLen(table.len() as u64));
    }
    let hash = blake3::hash(table);
    if footer[8..40] != *hash.as_bytes() || id.as_bytes() != hash.as_bytes() {
        return Err(PackError::TableHash);
    }
    let mut end = MAGIC.len() as u64;
    let mut records = Vec::with_capacity(table.len() / ROW_LEN);
    for (index, row) in table.chunks_exact(ROW_LEN).enumerate() {
        let record = read_row(row).filter(|record| record.offset == end + RECORD_HEAD_LEN as u64);
        let record = record.ok_or(PackError::Row(index))?;
        end = record.offset + u64::from(record.len);
        records.push(record);
    }
    // The records must fill the file up to the table exactly.
    if end + trailer.len() as u64 == pack_len { Ok(records) } else { Err(PackError::Row(records.len())) }
}

/// Finds the whole, undamaged records in the bytes of a pack whose table is damaged. Only
/// blobs that match their names are returned.
#[must_use]
pub fn scan_records(pack: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    let mut at = MAGIC.len();
    while at + RECORD_HEAD_LEN <= pack.len() && records.len() < MAX_RECORDS {
        match whole_record(pack, at) {
            Some(record) => {
                at = record.offset as usize + record.len as usize;
                records.push(record);
            }
            // Damaged here: look for the next head.
            None => match find_magic(&pack[at + 1..]) {
                Some(skip) => at += 1 + skip,
                None => break,
            },
        }
    }
    records
}

/// Whether `head`, read in front of a blob, is that of the blob `cid` of `len` bytes.
#[must_use]
pub fn is_head_of(head: &[u8], cid: Cid, len: u32) -> bool {
    head.len() == RECORD_HEAD_LEN
        && head[..4] == RECORD_MAGIC
        && head[4..8] == len.to_le_bytes()
        && head[8..] == *cid.as_bytes()
}

fn whole_record(pack: &[u8], at: usize) -> Option<Record> {
    let head = pack.get(at..at + RECORD_HEAD_LEN)?;
    let len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    let cid = Cid::from_slice(&head[8..])?;
    if head[..4] != RECORD_MAGIC || len as usize > MAX_BLOB_LEN {
        return None;
    }
    let offset = at + RECORD_HEAD_LEN;
    let blob = pack.get(offset..offset + len as usize)?;
    let kind = Header::parse(blob).ok()?.kind;
    (Cid::of(blob) == cid).then_some(Record { cid, offset: offset as u64, len, kind })
}

fn find_magic(bytes: &[u8]) -> Option<usize> {
    bytes.windows(RECORD_MAGIC.len()).position(|window| window == RECORD_MAGIC)
}

fn record_head(record: &Record) -> [u8; RECORD_HEAD_LEN] {
    let mut head = [0; RECORD_HEAD_LEN];
    head[..4].copy_from_slice(&RECORD_MAGIC);
    head[4..8].copy_from_slice(&record.len.to_le_bytes());
    head[8..].copy_from_slice(record.cid.as_bytes());
    head
}

fn write_row(table: &mut Vec<u8>, record: &Record) {
    table.extend_from_slice(record.cid.as_bytes());
    table.extend_from_slice(&record.offset.to_le_bytes());
    table.extend_from_slice(&record.len.to_le_bytes());
    table.extend_from_slice(&[record.kind as u8, 0, 0, 0]);
}

fn read_row(row: &[u8]) -> Option<Record> {
    let len = u32::from_le_bytes([row[40], row[41], row[42], row[43]]);
    let kind = BlobKind::from_code(row[44]).filter(|_| row[45..] == [0; 3] && len as usize <= MAX_BLOB_LEN)?;
    Some(Record { cid: Cid::from_slice(&row[..32])?, offset: read_u64(row, 32), len, kind })
}

fn read_u64(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_golden, blob};

    fn pack(count: u8) -> (Pack, Vec<u8>) {
        let mut builder = PackBuilder::default();
        for tag in 0..count {
            let blob = blob(BlobKind::Chunk, &[], &[tag; 100]);
            builder.push(Cid::of(&blob), BlobKind::Chunk, blob);
        }
        let pack = builder.finish();
        let bytes = pack.slices().iter().flat_map(|slice| slice.to_vec()).collect();
        (pack, bytes)
    }

    fn table_of(id: PackId, bytes: &[u8]) -> Result<Vec<Record>, PackError> {
        let footer = bytes.last_chunk().ok_or(PackError::Magic)?;
        let len = table_len(footer, bytes.len() as u64)? + FOOTER_LEN;
        read_table(id, &bytes[bytes.len() - len..], bytes.len() as u64)
    }

    #[test]
    fn a_table_comes_back() {
        for count in [0, 1, 7] {
            let (pack, bytes) = pack(count);
            assert_eq!(pack.len(), bytes.len() as u64);
            assert_eq!(table_of(pack.id(), &bytes).unwrap(), pack.records());
            assert_eq!(scan_records(&bytes), pack.records());
            for record in pack.records() {
                let at = record.offset as usize;
                assert_eq!(Cid::of(&bytes[at..at + record.len as usize]), record.cid);
                assert!(is_head_of(&bytes[at - RECORD_HEAD_LEN..at], record.cid, record.len));
            }
        }
    }

    /// A pack with a leaf and the chunk that it refers to, for ever.
    #[test]
    fn golden_pack() {
        let chunk = blob(BlobKind::Chunk, &[], b"chunk");
        let leaf = blob(BlobKind::Leaf, &[Cid::of(&chunk)], b"leaf");
        let mut builder = PackBuilder::default();
        builder.push(Cid::of(&leaf), BlobKind::Leaf, leaf.clone());
        builder.push(Cid::of(&chunk), BlobKind::Chunk, chunk);
        let pack = builder.finish();
        let id = pack.id();
        let bytes: Vec<u8> = pack.slices().iter().flat_map(|slice| slice.to_vec()).collect();
        let (records, trailer) = bytes.split_at(bytes.len() - 2 * ROW_LEN - FOOTER_LEN);
        let second = 8 + RECORD_HEAD_LEN + leaf.len();
        let found = [
            ("pack magic", &records[..8]),
            ("first record's head", &records[8..48]),
            ("its blob", &records[48..second]),
            ("second record's head", &records[second..second + RECORD_HEAD_LEN]),
            ("its blob", &records[second + RECORD_HEAD_LEN..]),
            ("first row", &trailer[..ROW_LEN]),
            ("second row", &trailer[ROW_LEN..2 * ROW_LEN]),
            ("footer", &trailer[2 * ROW_LEN..]),
            ("pack id", id.as_bytes()),
        ];
        assert_golden(&found.map(|(name, bytes)| (name, bytes.to_vec())), include_str!("pack.golden"));
    }

    #[test]
    fn any_damaged_byte_of_the_trailer_is_noticed() {
        let (pack, bytes) = pack(3);
        let trailer = bytes.len() - 3 * ROW_LEN - FOOTER_LEN;
        for at in trailer..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            assert!(table_of(pack.id(), &damaged).is_err(), "byte {at}");
        }
        for len in 0..bytes.len() {
            assert!(table_of(pack.id(), &bytes[..len]).is_err(), "cut to {len}");
        }
    }

    proptest::proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300), start in 0usize..4) {
            // Some of them begin or end like a pack.
            let mut bytes = bytes;
            if start & 1 != 0 {
                bytes.splice(0..0, MAGIC.into_iter().chain(RECORD_MAGIC));
            }
            if start & 2 != 0 {
                bytes.extend(END_MAGIC);
            }
            let _ = table_of(PackId::from_bytes([0; 32]), &bytes);
            let _ = read_table(PackId::from_bytes([0; 32]), &bytes, bytes.len() as u64);
            proptest::prop_assert!(scan_records(&bytes).is_empty());
        }
    }

    #[test]
    fn scanning_finds_all_but_the_damaged() {
        let (pack, bytes) = pack(3);
        for at in 8..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            let found = scan_records(&damaged);
            let hit = pack.records().iter().filter(|record| {
                let start = record.offset as usize - RECORD_HEAD_LEN;
                !(start..record.offset as usize + record.len as usize).contains(&at)
            });
            assert!(found.iter().eq(hit), "byte {at}");
        }
    }
}
