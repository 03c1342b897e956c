//! Whether everything is here that snapshots need. Each node is read once however many
//! snapshots share it. Memory: eight bytes for each node and each blob that is lacking, and the
//! names of what is not whole.

use std::collections::HashSet;

use vsync_protocol::blob::BlobKind;
use vsync_protocol::id::Cid;
use vsync_protocol::limits::MAX_CIDS;
pub use vsync_protocol::wire::Affected;

use super::mark::{MarkError, root_of};
use super::throttle::Throttle;
use crate::archive::Archive;
use crate::catalog::State;
use crate::pins::CidSet;

/// Names of lacking blobs that the catalog keeps, at most.
const MAX_NAMES: usize = 1 << 20;

/// What snapshots need and the store does not have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lacking {
    /// How many blobs are lost, as far as is known: what an absent node refers to nobody can
    /// tell any more.
    pub blobs: u64,
    /// The snapshots that need any of them.
    pub affected: Vec<Affected>,
}

impl Archive {
    /// Looks for everything that snapshots need.
    ///
    /// # Errors
    /// When the store fails, or `throttle` calls it off. What is lacking is no error.
    pub fn lacking(&self, throttle: &Throttle) -> Result<Lacking, MarkError> {
        let mut search = Search {
            archive: self,
            throttle,
            seen: CidSet::default(),
            broken: HashSet::new(),
            lacking: CidSet::default(),
            names: Vec::new(),
        };
        let mut affected = Vec::new();
        self.catalog().each_standing(0, |known| {
            // Of a manifest that cannot be read nobody knows what it needs.
            let whole = root_of(known).map_or(Ok(false), |root| search.is_whole(root))?;
            if !whole {
                let (id, group) = (known.id(), known.group.clone());
                affected.push(Affected { volume: group.volume, source: group.source, id });
            }
            Ok::<_, MarkError>(())
        })?;
        if self.failure().is_none() {
            let (names, none) = (search.names, affected.is_empty());
            self.record(|catalog| catalog.note_absent(names, none))?;
        }
        let blobs = if affected.is_empty() { 0 } else { self.catalog().damaged()? };
        Ok(Lacking { blobs, affected })
    }
}

struct Search<'a> {
    archive: &'a Archive,
    throttle: &'a Throttle,
    /// Nodes that were looked at, and those of them that need something that is not here.
    seen: CidSet,
    broken: HashSet<Cid>,
    lacking: CidSet,
    names: Vec<Cid>,
}

impl Search<'_> {
    /// Whether `node` and all that it needs is here.
    fn is_whole(&mut self, node: Cid) -> Result<bool, MarkError> {
        if self.seen.contains(&node) {
            return Ok(!self.broken.contains(&node));
        }
        self.throttle.check().map_err(|_| MarkError::Stopped)?;
        // Trees are shallow: each was walked within its bounds when it was committed.
        let whole = match self.archive.references(node)? {
            None => {
                self.lack(node);
                false
            }
            Some((BlobKind::Leaf, chunks)) => {
                self.spend(&chunks)?;
                self.are_here(&chunks)?
            }
            Some((_, children)) => {
                self.spend(&children)?;
                let mut whole = true;
                for child in children {
                    // All of them, since each may lack something.
                    whole &= self.is_whole(child)?;
                }
                whole
            }
        };
        self.seen.insert(&node);
        if !whole {
            self.broken.insert(node);
        }
        Ok(whole)
    }

    /// Counts a node that was read, by the names in it: most of what it is made of.
    fn spend(&self, refs: &[Cid]) -> Result<(), MarkError> {
        self.throttle.spend((refs.len() * Cid::LEN) as u64).map_err(|_| MarkError::Stopped)
    }

    fn are_here(&mut self, chunks: &[Cid]) -> Result<bool, MarkError> {
        let mut here = true;
        for chunks in chunks.chunks(MAX_CIDS) {
            for (&chunk, entry) in chunks.iter().zip(self.archive.catalog().entries(chunks)?) {
                if entry.is_none_or(|entry| entry.state == State::Corrupt) {
                    self.lack(chunk);
                    here = false;
                }
            }
        }
        Ok(here)
    }

    fn lack(&mut self, cid: Cid) {
        if self.names.len() < MAX_NAMES && !self.lacking.contains(&cid) {
            self.lacking.insert(&cid);
            self.names.push(cid);
        }
    }
}
