//! Nodes to items, in path order, holding one path of nodes in memory at a time.

use std::collections::VecDeque;

use thiserror::Error;
use vsync_protocol::blob::BlobKind;
use vsync_protocol::id::Cid;
use vsync_protocol::tree::{ChildSummary, Entry, EntryKind, EntryPath, Extent, Leaf, Record, Root};

use super::shape::{self, NOTHING};
use super::{Children, Item, Node, NodeSource, Piece, Reference, decode, load};

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
        /// What its source said.
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

impl<E: std::error::Error + 'static> TreeError<E> {
    /// The node `cid` makes no sense.
    pub(crate) fn malformed(cid: Cid, reason: impl Into<String>) -> Self {
        Self::Malformed { cid, reason: reason.into() }
    }
}

/// Offsets of files are signed on Linux.
const LONGEST_FILE: u64 = i64::MAX as u64;

/// Reads a tree from some path on.
pub struct TreeReader<N> {
    source: N,
    /// Unread children of the nodes on the way down, the lowest last.
    stack: Vec<Level>,
    records: VecDeque<Record>,
    pieces: VecDeque<Piece>,
    /// The node whose records are read: the root before the first leaf.
    at: Cid,
    /// The chunks that it refers to.
    chunks: Vec<Reference>,
    last: Option<EntryPath>,
    in_file: bool,
    /// Bytes of the current file's content that have come by, at most [`LONGEST_FILE`].
    content: u64,
    /// Where to begin; `None` once that place is found.
    from: Option<EntryPath>,
}

/// What a reader stands before.
#[derive(Debug)]
pub enum Head<'a> {
    /// An entry.
    Entry(&'a Entry),
    /// A piece of the last entry's content.
    Piece(Piece),
    /// A node that is not loaded yet.
    Node {
        /// The node.
        node: Reference,
        /// Levels of nodes from it down: 1 for a leaf.
        depth: usize,
        /// What its parent knows of it.
        summary: &'a ChildSummary,
    },
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
            at: root.cid,
            chunks: Vec::new(),
            last: None,
            in_file: false,
            content: 0,
            from,
        };
        let children = Children::of_root(refs, node.subtree.clone());
        reader.push_level(children.map_err(|reason| TreeError::malformed(root.cid, reason))?);
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
                self.content = 0;
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
                    let content = self.content.checked_add(piece.len()).filter(|&len| len <= LONGEST_FILE);
                    self.content =
                        content.ok_or_else(|| self.malformed("a file longer than any file system takes".into()))?;
                    self.pieces.push_back(piece);
                }
                Ok(None)
            }
        }
    }

    fn resolve(&self, extent: Extent) -> Result<Piece, TreeError<N::Error>> {
        let piece = match extent {
            Extent::Hole(len) => Some(Piece::Hole(len)),
            Extent::Chunk(position) => self.chunks.get(position as usize).copied().map(Piece::Chunk),
        };
        piece
            .filter(|piece| !piece.is_empty())
            .ok_or_else(|| self.malformed("an extent without a chunk, or of no length".into()))
    }

    fn malformed(&self, reason: String) -> TreeError<N::Error> {
        TreeError::malformed(self.at, reason)
    }

    /// What comes next, without taking it. A node is not loaded for that.
    ///
    /// # Errors
    /// When what was loaded already is malformed.
    pub fn peek(&mut self) -> Result<Option<Head<'_>>, TreeError<N::Error>> {
        self.settle()?;
        if let Some(piece) = self.pieces.front() {
            return Ok(Some(Head::Piece(*piece)));
        }
        if let Some(Record::Entry(entry)) = self.records.front() {
            return Ok(Some(Head::Entry(entry)));
        }
        let node = self.stack.last().and_then(|level| Some((level.depth, level.children.front()?)));
        Ok(node.map(|(depth, (node, summary))| Head::Node { node: *node, depth, summary }))
    }

    /// Goes on until an entry, a piece or a node is next, or nothing is left.
    fn settle(&mut self) -> Result<(), TreeError<N::Error>> {
        while self.pieces.is_empty() {
            let before = |entry: &Entry| self.from.as_ref().is_some_and(|from| entry.path < *from);
            match self.records.front() {
                Some(Record::Entry(entry)) if !before(entry) => return Ok(()),
                Some(_) => {
                    let record = self.records.pop_front();
                    record.map(|record| self.record(record)).transpose()?;
                }
                None => {
                    while self.stack.last().is_some_and(|level| level.children.is_empty()) {
                        self.stack.pop();
                    }
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The next entry, leaving out content and all that is within `below`, without loading
    /// nodes that hold nothing else.
    ///
    /// # Errors
    /// When a node cannot be had or is malformed.
    pub fn next_entry(&mut self, below: Option<&EntryPath>) -> Result<Option<Box<Entry>>, TreeError<N::Error>> {
        loop {
            self.pieces.clear();
            match self.peek()? {
                None => return Ok(None),
                Some(Head::Piece(_)) => {}
                Some(Head::Entry(entry)) => {
                    let wanted = below.is_none_or(|below| !entry.path.is_within(below));
                    if let Some(Item::Entry(entry)) = self.next_item()?
                        && wanted
                    {
                        return Ok(Some(entry));
                    }
                }
                Some(Head::Node { summary, .. }) => {
                    if summary.entries == 0 || self.next_sibling_is_within(below) {
                        self.skip();
                    } else {
                        self.enter(|_, summary| below.is_none() && summary.entries > 0)?;
                    }
                }
            }
        }
    }

    /// Whether the node after the next one begins within `below`: then all of the next is.
    fn next_sibling_is_within(&self, below: Option<&EntryPath>) -> bool {
        let sibling = self.stack.last().and_then(|level| level.children.get(1));
        sibling.zip(below).is_some_and(|((_, summary), below)| summary.first.is_within(below))
    }

    /// Names of the nodes that come next on this level, at most `count`.
    pub fn upcoming(&self, count: usize) -> impl Iterator<Item = Cid> {
        self.stack.last().into_iter().flat_map(move |level| level.children.iter().take(count)).map(|(node, _)| node.cid)
    }

    /// Leaves out the node that is next, with all below it.
    pub fn skip(&mut self) {
        let Some(level) = self.stack.last_mut() else { return };
        let Some((node, summary)) = level.children.pop_front() else { return };
        level.announced = level.announced.saturating_sub(1);
        self.source.forget(&node);
        self.last = self.last.take().max(Some(summary.first));
        // It may have ended inside a file.
        self.in_file = true;
    }

    /// Goes on to the next leaf; false when there is none.
    fn next_leaf(&mut self) -> Result<bool, TreeError<N::Error>> {
        loop {
            while self.stack.last().is_some_and(|level| level.children.is_empty()) {
                self.stack.pop();
            }
            if self.stack.is_empty() {
                return Ok(false);
            }
            if self.enter(|_, _| true)? {
                return Ok(true);
            }
        }
    }

    /// Loads the node that is next, so that what is in it comes next; whether it is a leaf.
    /// Nodes after it that `ahead` takes are announced to the source.
    ///
    /// # Errors
    /// When it cannot be had or is malformed.
    pub fn enter(&mut self, ahead: impl Fn(&Reference, &ChildSummary) -> bool) -> Result<bool, TreeError<N::Error>> {
        let Some(level) = self.stack.last_mut() else { return Ok(false) };
        level.announce(&mut self.source, ahead);
        let (kind, depth) = (level.kind, level.depth);
        let Some((node, summary)) = level.children.pop_front() else { return Ok(false) };
        level.announced = level.announced.saturating_sub(1);
        let Node { refs, payload } = load(&mut self.source, kind, &node)?;
        let malformed = |reason| TreeError::malformed(node.cid, reason);
        if kind == BlobKind::Inner {
            let children = Children::of_inner(depth, refs, decode(node.cid, &payload)?).map_err(malformed)?;
            self.push_level(children);
            return Ok(false);
        }
        let leaf: Leaf = decode(node.cid, &payload)?;
        if leaf.records.is_empty() {
            return Err(malformed(NOTHING));
        }
        let chunks = shape::references(refs, leaf.chunks).map_err(malformed)?;
        // After a jump, a leaf that continues a file begins inside it: that content is
        // before the place looked for.
        if self.last.is_none() && summary.continues && self.from.is_none() {
            return Err(malformed("it continues nothing"));
        }
        (self.at, self.chunks) = (node.cid, chunks);
        self.records = leaf.records.into();
        Ok(true)
    }

    fn push_level(&mut self, children: Children) {
        let (kind, depth) = (children.kind(), children.depth);
        let mut children: VecDeque<_> = children.nodes.into();
        if let Some(from) = &self.from {
            let begins =
                |summary: &ChildSummary| summary.first < *from || (summary.first == *from && !summary.continues);
            let skip = children.iter().rposition(|(_, summary)| begins(summary)).unwrap_or(0);
            children.drain(..skip);
        }
        self.stack.push(Level { kind, depth, children, announced: 0 });
    }
}

impl Level {
    /// Tells the source what comes next, half a window at a time.
    fn announce(&mut self, source: &mut impl NodeSource, ahead: impl Fn(&Reference, &ChildSummary) -> bool) {
        if self.announced > READ_AHEAD / 2 || self.announced == self.children.len() {
            return;
        }
        let upto = self.children.len().min(READ_AHEAD);
        let next = self.children.range(self.announced..upto).filter(|(node, summary)| ahead(node, summary));
        let next: Vec<Reference> = next.map(|(node, _)| *node).collect();
        if !next.is_empty() {
            source.expect(self.kind, &next);
        }
        self.announced = upto;
    }
}
