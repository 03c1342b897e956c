//! Records to nodes. Where a node ends depends on the records themselves, so that a change
//! in one place leaves the nodes elsewhere as they were.

use std::collections::HashMap;

use vsync_protocol::blob::BlobKind;
use vsync_protocol::encode;
use vsync_protocol::id::{Cid, Pid};
use vsync_protocol::limits::{MAX_EXTENTS, MAX_REFS};
use vsync_protocol::tree::{
    Child, ChildSummary, Entry, EntryPath, Extent, Inner, Leaf, Record, Root, Subtree, VolumeInfo,
};

use super::{NodeSink, Piece, Reference};

/// A leaf's payload is about this long, in bytes: short enough to be rewritten for one
/// changed chunk, long enough to compress and to be one request.
const LEAF_TARGET: usize = 64 << 10;
const LEAF_MIN: usize = LEAF_TARGET / 4;
const LEAF_MAX: usize = LEAF_TARGET * 4;

/// Bits of a record's key that must be zero for a leaf to end after it. A record of extents
/// is some 3 KiB with its chunks, one of an entry about 100 bytes.
const ENTRY_BITS: u32 = 9;
const EXTENT_BITS: u32 = 4;

/// Extents per record: on average 32, so that a few insertions leave later records alone.
const RECORD_BITS: u32 = 5;

/// Children of an inner node: 64 on average.
const INNER_BITS: u32 = 6;
const FIRST_INNER_BIT: u32 = 16;
const INNER_MIN: usize = 8;
const INNER_MAX: usize = 512;

/// What went into a tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Entries.
    pub entries: u64,
    /// Bytes of content, holes included.
    pub bytes: u64,
}

/// Builds a tree from items in path order.
pub struct TreeWriter<S> {
    sink: S,
    leaf: LeafBuilder,
    levels: Vec<InnerBuilder>,
    /// Path of the last entry: extents belong to it.
    current: EntryPath,
    extents: Vec<Extent>,
    totals: Totals,
}

impl<S: NodeSink> TreeWriter<S> {
    /// A writer that hands finished nodes to `sink`.
    pub fn new(sink: S) -> Self {
        Self {
            sink,
            leaf: LeafBuilder::default(),
            levels: Vec::new(),
            current: EntryPath::root(),
            extents: Vec::new(),
            totals: Totals::default(),
        }
    }

    /// Begins an entry; its path must come after all before it.
    ///
    /// # Errors
    /// When the sink fails.
    pub fn entry(&mut self, entry: Entry) -> Result<(), S::Error> {
        self.end_extents()?;
        debug_assert!(self.totals.entries == 0 || entry.path > self.current, "{} is out of order", entry.path);
        self.current = entry.path.clone();
        self.totals.entries += 1;
        let key = path_key(&entry.path);
        self.leaf.begin(&self.current, false);
        self.leaf.entries += 1;
        self.leaf.push(Record::Entry(Box::new(entry)));
        self.end_leaf_if(key, ENTRY_BITS)
    }

    /// Continues the content of the last entry.
    ///
    /// # Errors
    /// When the sink fails.
    pub fn piece(&mut self, piece: Piece) -> Result<(), S::Error> {
        self.totals.bytes += piece.len();
        if self.extents.is_empty() {
            self.leaf.begin(&self.current, true);
        }
        self.leaf.bytes += piece.len();
        let key = match piece {
            Piece::Chunk(reference) => {
                let position = self.leaf.position(&reference);
                self.extents.push(Extent::Chunk(position));
                pid_key(reference.child.pid)
            }
            Piece::Hole(len) => {
                self.extents.push(Extent::Hole(len));
                u64::MAX
            }
        };
        if self.extents.len() == MAX_EXTENTS || ends(key, 0, RECORD_BITS) {
            self.end_extents()?;
            self.end_leaf_if(key, EXTENT_BITS)?;
        }
        Ok(())
    }

    /// Ends the tree and stores its root.
    ///
    /// # Errors
    /// When the sink fails.
    pub fn finish(
        mut self,
        volume: VolumeInfo,
        directory: Option<Entry>,
        defects: Vec<(EntryPath, String)>,
        defect_count: u64,
    ) -> Result<(Reference, Totals, S), S::Error> {
        self.end_extents()?;
        self.end_leaf(u64::MAX)?;
        let mut level = 0;
        while level + 1 < self.levels.len() {
            self.end_inner(level, u64::MAX)?;
            level += 1;
        }
        let top = self.levels.pop().unwrap_or_default();
        let subtree = Subtree {
            depth: if top.summaries.is_empty() { 0 } else { self.levels.len() as u32 + 1 },
            children: top.children,
            summaries: top.summaries,
        };
        let root = Root { volume, directory, subtree, defects, defect_count };
        let reference = self.sink.store(BlobKind::Root, &top.refs, &encode(&root))?;
        Ok((reference, self.totals, self.sink))
    }

    fn end_extents(&mut self) -> Result<(), S::Error> {
        if !self.extents.is_empty() {
            let extents = std::mem::take(&mut self.extents);
            self.leaf.push(Record::Extents(extents));
        }
        Ok(())
    }

    fn end_leaf_if(&mut self, key: u64, bits: u32) -> Result<(), S::Error> {
        let full = self.leaf.size >= LEAF_MAX || self.leaf.refs.len() + MAX_EXTENTS > MAX_REFS;
        if full || (self.leaf.size >= LEAF_MIN && ends(key, RECORD_BITS, bits)) { self.end_leaf(key) } else { Ok(()) }
    }

    fn end_leaf(&mut self, key: u64) -> Result<(), S::Error> {
        let Some((first, continues)) = self.leaf.first.take() else { return Ok(()) };
        let leaf = std::mem::take(&mut self.leaf);
        let payload = encode(&Leaf { chunks: leaf.chunks, records: leaf.records });
        let reference = self.sink.store(BlobKind::Leaf, &leaf.refs, &payload)?;
        let summary = ChildSummary { first, continues, entries: leaf.entries, bytes: leaf.bytes };
        self.add_to_level(0, reference, summary, key)
    }

    /// Adds a child that ended with a record of this key. The same key decides on every
    /// level, by other bits: a boundary moves only when that one record does.
    fn add_to_level(
        &mut self,
        level: usize,
        reference: Reference,
        summary: ChildSummary,
        key: u64,
    ) -> Result<(), S::Error> {
        if self.levels.len() == level {
            self.levels.push(InnerBuilder::default());
        }
        self.levels[level].push(reference, summary);
        let count = self.levels[level].summaries.len();
        let boundary = count >= INNER_MIN && ends(key, FIRST_INNER_BIT + INNER_BITS * level as u32, INNER_BITS);
        if boundary || count == INNER_MAX { self.end_inner(level, key) } else { Ok(()) }
    }

    fn end_inner(&mut self, level: usize, key: u64) -> Result<(), S::Error> {
        let node = std::mem::take(&mut self.levels[level]);
        let Some(first) = node.summaries.first() else { return Ok(()) };
        let summary = ChildSummary {
            first: first.first.clone(),
            continues: first.continues,
            entries: node.summaries.iter().map(|child| child.entries).sum(),
            bytes: node.summaries.iter().map(|child| child.bytes).sum(),
        };
        let payload = encode(&Inner { children: node.children, summaries: node.summaries });
        let reference = self.sink.store(BlobKind::Inner, &node.refs, &payload)?;
        self.add_to_level(level + 1, reference, summary, key)
    }
}

#[derive(Default)]
struct LeafBuilder {
    first: Option<(EntryPath, bool)>,
    refs: Vec<Cid>,
    chunks: Vec<Child>,
    positions: HashMap<Cid, u32>,
    records: Vec<Record>,
    /// Roughly the payload's length.
    size: usize,
    entries: u64,
    bytes: u64,
}

impl LeafBuilder {
    fn begin(&mut self, path: &EntryPath, continues: bool) {
        if self.first.is_none() {
            self.first = Some((path.clone(), continues));
        }
    }

    fn position(&mut self, reference: &Reference) -> u32 {
        let next = self.refs.len() as u32;
        let position = *self.positions.entry(reference.cid).or_insert(next);
        if position == next {
            self.refs.push(reference.cid);
            self.chunks.push(reference.child);
            self.size += vsync_protocol::tree::node::CHILD_LEN + Cid::LEN;
        }
        position
    }

    fn push(&mut self, record: Record) {
        self.size += match &record {
            Record::Entry(entry) => {
                let xattrs = entry.xattrs.iter().flatten().map(|x| x.name.len() + x.value.len()).sum::<usize>();
                48 + entry.path.as_bytes().len() + entry.target.as_ref().map_or(0, Vec::len) + xattrs
            }
            Record::Extents(extents) => 4 + 8 * extents.len(),
        };
        self.records.push(record);
    }
}

#[derive(Default)]
struct InnerBuilder {
    refs: Vec<Cid>,
    children: Vec<Child>,
    summaries: Vec<ChildSummary>,
}

impl InnerBuilder {
    fn push(&mut self, reference: Reference, summary: ChildSummary) {
        self.refs.push(reference.cid);
        self.children.push(reference.child);
        self.summaries.push(summary);
    }
}

/// Whether `bits` bits of `key` from `skip` on are zero.
const fn ends(key: u64, skip: u32, bits: u32) -> bool {
    (key >> skip) & ((1 << bits) - 1) == 0
}

/// A path's key depends on the path alone: metadata may change without moving a boundary.
/// It decides boundaries only, which the server sees anyway.
fn path_key(path: &EntryPath) -> u64 {
    first_eight(blake3::hash(path.as_bytes()).as_bytes())
}

fn pid_key(pid: Pid) -> u64 {
    first_eight(pid.as_bytes())
}

fn first_eight(bytes: &[u8]) -> u64 {
    bytes.first_chunk::<8>().map_or(0, |first| u64::from_le_bytes(*first))
}
