//! Nodes to items, in path order, holding one path of nodes in memory at a time.

use std::collections::VecDeque;

use thiserror::Error;
use vsync_protocol::blob::BlobKind;
use vsync_protocol::id::Cid;
use vsync_protocol::limits::MAX_TREE_DEPTH;
use vsync_protocol::tree::{Child, ChildSummary, EntryKind, EntryPath, Extent, Inner, Leaf, Record, Root};

use super::{Item, Node, NodeSource, Piece, Reference};

/// How many nodes are announced ahead of the one that is read.
const READ_AHEAD: usize = 16;

/// Why a tree could not be read on.
#[derive(Debug, Error)]
pub enum TreeError<E: std::error::Error + 'static> {
    /// A node could not be had.
    #[error("tree node {cid} could not be read")]
    Node {
        /// The node.
        cid: Cid,
        /// Why.
        source: E,
    },
    /// A node that was sealed with the right key does not make sense.
    #[error("tree node {cid} is malformed: {reason}")]
    Malformed {
        /// The node.
        cid: Cid,
        /// What is wrong with it.
        reason: String,
    },
}

/// Reads a tree from some path on.
pub struct TreeReader<N> {
    source: N,
    /// Unread children of the nodes on the way down, the lowest last.
    stack: Vec<Level>,
    records: VecDeque<Record>,
    pieces: VecDeque<Piece>,
    leaf: Option<(Cid, Vec<Reference>)>,
    last: Option<EntryPath>,
    in_file: bool,
    /// Where to begin; `None` once that place is found.
    from: Option<EntryPath>,
}

struct Level {
    kind: BlobKind,
    depth: usize,
    children: VecDeque<(Reference, ChildSummary)>,
    announced: usize,
}

impl<N: NodeSource> TreeReader<N> {
    /// Loads the root and stands before its first entry at or after `from`.
    ///
    /// # Errors
    /// When the root cannot be had or is malformed.
    pub fn open(mut source: N, root: &Reference, from: &EntryPath) -> Result<(Root, Self), TreeError<N::Error>> {
        let Node { refs, payload } = load(&mut source, BlobKind::Root, root)?;
        let node: Root = decode(root.cid, &payload)?;
        let from = Some(from.clone()).filter(|path| !path.is_root());
        let mut reader = Self {
            source,
            stack: Vec::new(),
            records: VecDeque::new(),
            pieces: VecDeque::new(),
            leaf: None,
            last: None,
            in_file: false,
            from,
        };
        let depth = node.subtree.depth as usize;
        let subtree = &node.subtree;
        reader.push_level(root.cid, depth, refs, subtree.children.clone(), subtree.summaries.clone())?;
        Ok((node, reader))
    }

    /// The next item; `None` at the end.
    ///
    /// # Errors
    /// When a node cannot be had or is malformed.
    pub fn next_item(&mut self) -> Result<Option<Item>, TreeError<N::Error>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Ok(Some(Item::Piece(piece)));
            }
            if let Some(record) = self.records.pop_front() {
                if let Some(item) = self.record(record)? {
                    return Ok(Some(item));
                }
            } else if !self.next_leaf()? {
                return Ok(None);
            }
        }
    }

    fn record(&mut self, record: Record) -> Result<Option<Item>, TreeError<N::Error>> {
        match record {
            Record::Entry(entry) => {
                if entry.path.is_root() || self.last.as_ref().is_some_and(|last| *last >= entry.path) {
                    return Err(self.malformed(format!("{} is out of order", entry.path)));
                }
                self.last = Some(entry.path.clone());
                if self.from.as_ref().is_some_and(|from| entry.path < *from) {
                    self.in_file = false;
                    return Ok(None);
                }
                self.from = None;
                self.in_file = entry.kind == EntryKind::File;
                Ok(Some(Item::Entry(entry)))
            }
            Record::Extents(extents) => {
                if self.from.is_some() {
                    return Ok(None);
                }
                if !self.in_file {
                    return Err(self.malformed("content that belongs to no file".into()));
                }
                for extent in extents {
                    let piece = self.resolve(extent)?;
                    self.pieces.push_back(piece);
                }
                Ok(None)
            }
        }
    }

    fn resolve(&self, extent: Extent) -> Result<Piece, TreeError<N::Error>> {
        let refs = self.leaf.as_ref().map_or(&[][..], |(_, refs)| refs);
        let piece = match extent {
            Extent::Hole(len) => Some(Piece::Hole(len)),
            Extent::Chunk(position) => refs.get(position as usize).copied().map(Piece::Chunk),
        };
        piece
            .filter(|piece| !piece.is_empty())
            .ok_or_else(|| self.malformed("an extent without a chunk, or of no length".into()))
    }

    fn malformed(&self, reason: String) -> TreeError<N::Error> {
        let cid = self.leaf.as_ref().map_or(Cid::from_bytes([0; 32]), |(cid, _)| *cid);
        TreeError::Malformed { cid, reason }
    }

    /// Goes on to the next leaf; false when there is none.
    fn next_leaf(&mut self) -> Result<bool, TreeError<N::Error>> {
        loop {
            let Some(level) = self.stack.last_mut() else { return Ok(false) };
            level.announce(&mut self.source);
            let (kind, depth) = (level.kind, level.depth);
            let Some((node, summary)) = level.children.pop_front() else {
                self.stack.pop();
                continue;
            };
            level.announced = level.announced.saturating_sub(1);
            let Node { refs, payload } = load(&mut self.source, kind, &node)?;
            if kind == BlobKind::Inner {
                let inner: Inner = decode(node.cid, &payload)?;
                self.push_level(node.cid, depth - 1, refs, inner.children, inner.summaries)?;
                continue;
            }
            let leaf: Leaf = decode(node.cid, &payload)?;
            let references = pair(node.cid, refs, leaf.chunks)?;
            // After a jump, a leaf that continues a file begins inside it: that content is
            // before the place looked for.
            if self.last.is_none() && summary.continues && self.from.is_none() {
                return Err(TreeError::Malformed { cid: node.cid, reason: "it continues nothing".into() });
            }
            self.leaf = Some((node.cid, references));
            self.records = leaf.records.into();
            return Ok(true);
        }
    }

    fn push_level(
        &mut self,
        cid: Cid,
        depth: usize,
        refs: Vec<Cid>,
        children: Vec<Child>,
        summaries: Vec<ChildSummary>,
    ) -> Result<(), TreeError<N::Error>> {
        let references = pair(cid, refs, children)?;
        let deep = depth > MAX_TREE_DEPTH || (depth == 0 && !references.is_empty());
        if references.len() != summaries.len() || deep {
            return Err(TreeError::Malformed { cid, reason: "counts or depth do not fit".into() });
        }
        let kind = if depth == 1 { BlobKind::Leaf } else { BlobKind::Inner };
        let mut children: VecDeque<_> = references.into_iter().zip(summaries).collect();
        if let Some(from) = &self.from {
            let begins =
                |summary: &ChildSummary| summary.first < *from || (summary.first == *from && !summary.continues);
            let skip = children.iter().rposition(|(_, summary)| begins(summary)).unwrap_or(0);
            children.drain(..skip);
        }
        self.stack.push(Level { kind, depth, children, announced: 0 });
        Ok(())
    }
}

impl Level {
    /// Tells the source what comes next, half a window at a time.
    fn announce(&mut self, source: &mut impl NodeSource) {
        if self.announced > READ_AHEAD / 2 || self.announced == self.children.len() {
            return;
        }
        let upto = self.children.len().min(READ_AHEAD);
        let next: Vec<Reference> = self.children.range(self.announced..upto).map(|(node, _)| *node).collect();
        source.expect(self.kind, &next);
        self.announced = upto;
    }
}

fn load<N: NodeSource>(source: &mut N, kind: BlobKind, node: &Reference) -> Result<Node, TreeError<N::Error>> {
    source.load(kind, node).map_err(|source| TreeError::Node { cid: node.cid, source })
}

fn decode<'b, T, E>(cid: Cid, payload: &'b [u8]) -> Result<T, TreeError<E>>
where
    T: minicbor::Decode<'b, ()>,
    E: std::error::Error + 'static,
{
    minicbor::decode(payload).map_err(|error| TreeError::Malformed { cid, reason: error.to_string() })
}

fn pair<E: std::error::Error + 'static>(
    cid: Cid,
    refs: Vec<Cid>,
    children: Vec<Child>,
) -> Result<Vec<Reference>, TreeError<E>> {
    if refs.len() != children.len() {
        return Err(TreeError::Malformed { cid, reason: "references and children differ in number".into() });
    }
    Ok(refs.into_iter().zip(children).map(|(cid, child)| Reference { cid, child }).collect())
}
