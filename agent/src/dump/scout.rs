//! Reads the tree ahead of the archive: a sparse file's map of data stands before its content.

use std::ops::Range;

use vsync_protocol::tree::Entry;

use crate::remote::{NodeError, RemoteNodes};
use crate::tree::{Item, Piece, TreeError, TreeReader};

/// A file in more pieces than this is written with its holes as zeros: its map must fit into memory.
const MAX_PIECES: usize = 1 << 20;

/// A second reader of the same tree.
pub(super) struct Scout {
    tree: TreeReader<RemoteNodes>,
    next: Option<Item>,
}

impl Scout {
    pub(super) const fn new(tree: TreeReader<RemoteNodes>) -> Self {
        Self { tree, next: None }
    }

    /// Where the data of `file` is; `None` if it has no holes. Files must be asked for in the tree's
    /// order.
    pub(super) fn data_of(&mut self, file: &Entry) -> Result<Option<Vec<Range<u64>>>, TreeError<NodeError>> {
        loop {
            match self.take()? {
                Some(Item::Entry(entry)) if entry.path == file.path => break,
                Some(_) => {}
                None => return Ok(None),
            }
        }
        let (mut data, mut at, mut holes) = (Vec::<Range<u64>>::new(), 0, false);
        loop {
            match self.take()? {
                Some(Item::Piece(Piece::Hole(len))) => {
                    at += len;
                    holes = true;
                }
                Some(Item::Piece(piece)) => {
                    let end = at + piece.len();
                    let full = data.len() >= MAX_PIECES;
                    match data.last_mut() {
                        Some(last) if last.end == at => last.end = end,
                        // The rest is read over when the next file is asked for.
                        _ if full => return Ok(None),
                        _ => data.push(at..end),
                    }
                    at = end;
                }
                other => {
                    self.next = other;
                    return Ok(holes.then_some(data));
                }
            }
        }
    }

    fn take(&mut self) -> Result<Option<Item>, TreeError<NodeError>> {
        match self.next.take() {
            Some(item) => Ok(Some(item)),
            None => self.tree.next_item(),
        }
    }
}
