//! Writing and reading the sealed description of a snapshot.

mod reader;
mod shape;
mod writer;

use vsync_protocol::blob::BlobKind;
use vsync_protocol::id::Cid;
use vsync_protocol::tree::{Child, Entry};

pub use reader::{Head, TreeError, TreeReader};
pub use shape::Children;
pub(crate) use shape::{decode, load};
pub use writer::{Totals, TreeWriter};

/// A run of a file's content, with all that is needed to fetch it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A chunk.
    Chunk(Reference),
    /// This many zero bytes.
    Hole(u64),
}

impl Piece {
    /// Bytes of content.
    #[must_use]
    pub const fn len(&self) -> u64 {
        match self {
            Self::Chunk(reference) => reference.child.raw_len as u64,
            Self::Hole(len) => *len,
        }
    }

    /// Whether it holds nothing, which no stored piece does.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A stored blob: its name, and how to open it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Its name.
    pub cid: Cid,
    /// How to open and recognise it.
    pub child: Child,
}

/// What a tree is made of, in path order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// The next entry.
    Entry(Box<Entry>),
    /// The next piece of the last entry's content.
    Piece(Piece),
}

/// Where finished nodes go.
pub trait NodeSink {
    /// Why a node could not be taken.
    type Error;

    /// Takes a node and says how to refer to it. An equal node that is already stored need
    /// not be sealed again.
    ///
    /// # Errors
    /// When it cannot be sealed, sent or kept.
    fn store(&mut self, kind: BlobKind, refs: &[Cid], payload: &[u8]) -> Result<Reference, Self::Error>;
}

/// A node, opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The names of its children.
    pub refs: Vec<Cid>,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// Where nodes come from.
pub trait NodeSource {
    /// Why a node could not be had.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The opened node.
    ///
    /// # Errors
    /// When it is not there or damaged.
    fn load(&mut self, kind: BlobKind, node: &Reference) -> Result<Node, Self::Error>;

    /// Announces nodes that will be asked for next, in that order.
    fn expect(&mut self, _kind: BlobKind, _nodes: &[Reference]) {}

    /// Takes an announcement back: the node will not be asked for.
    fn forget(&mut self, _node: &Reference) {}
}

#[cfg(test)]
pub(crate) mod tests;
