//! Walking trees by the references that stand in clear: what needs what.
//!
//! Only nodes are read; a leaf's children are chunks, which need nothing. Each node is read
//! once however many snapshots share it. Memory: the names of all nodes, and eight bytes
//! for each blob.

use std::collections::HashSet;
use std::sync::Arc;

use thiserror::Error;
use vsync_protocol::blob::{BlobKind, Header};
use vsync_protocol::id::{Cid, SnapshotId};
use vsync_protocol::limits::{MAX_CIDS, MAX_TREE_DEPTH};
use vsync_protocol::log::LogEntry;

use super::throttle::Throttle;
use crate::archive::{Archive, ArchiveError};
use crate::catalog::{CatalogError, Known, State};
use crate::pins::CidSet;
use crate::store::{StoreError, read_blob};

/// Why not everything that is needed can be known. Nothing may then be removed.
#[derive(Debug, Error)]
pub enum MarkError {
    /// A manifest cannot be read.
    #[error("the manifest of snapshot {} is unreadable", .0.short())]
    Manifest(SnapshotId),
    /// The log names a snapshot of which nothing else is left.
    #[error(
        "the manifest of snapshot {0} is lost, so that nobody knows what it needs; put its file back into \
         `manifests` and run `vsync server rebuild`, or give it up with `vsync forget {0}`"
    )]
    LostManifest(SnapshotId),
    /// A node is absent, damaged, or not what it should be.
    #[error("node {node} of snapshot {} {what}", snapshot.short())]
    Node {
        /// The snapshot that needs it.
        snapshot: SnapshotId,
        /// The node.
        node: Cid,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The work was called off.
    #[error("it was called off")]
    Stopped,
    /// The store failed.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

impl From<CatalogError> for MarkError {
    fn from(error: CatalogError) -> Self {
        Self::Archive(error.into())
    }
}

impl From<StoreError> for MarkError {
    fn from(error: StoreError) -> Self {
        Self::Archive(error.into())
    }
}

/// Everything that some snapshots need.
#[derive(Default)]
pub(crate) struct Mark {
    nodes: Arc<HashSet<Cid>>,
    blobs: CidSet,
    /// The last place in the log whose snapshot is marked.
    position: u64,
    /// How much of the log was looked through for snapshots that were brought back.
    log: u64,
}

impl Mark {
    /// Marks nothing yet; snapshots that are brought back after the log's place `log` will
    /// be noticed.
    pub(crate) fn since(log: u64) -> Self {
        Self { log, ..Self::default() }
    }

    /// All nodes that are needed.
    pub(crate) fn nodes(&self) -> Arc<HashSet<Cid>> {
        Arc::clone(&self.nodes)
    }

    /// Whether `cid` is needed. May be wrong by saying yes.
    pub(crate) fn contains(&self, cid: &Cid) -> bool {
        self.blobs.contains(cid)
    }

    /// Marks all snapshots that are not forgotten, have not been marked, and are not `left
    /// out`. Called again, it marks what was committed or brought back meanwhile.
    pub(crate) fn extend(
        &mut self,
        archive: &Archive,
        throttle: &Throttle,
        left_out: &HashSet<SnapshotId>,
    ) -> Result<(), MarkError> {
        let reached = archive.catalog().each_standing(self.position, |known| {
            if left_out.contains(&known.id()) {
                return Ok(());
            }
            self.add(archive, throttle, known)
        })?;
        self.position = reached;
        self.extend_by_revived(archive, throttle)
    }

    fn extend_by_revived(&mut self, archive: &Archive, throttle: &Throttle) -> Result<(), MarkError> {
        let reached = archive.catalog().each_log_entry(self.log, |entry| {
            let LogEntry::Undelete { manifest, .. } = entry else { return Ok(()) };
            match archive.catalog().known(manifest.into())? {
                Some(known) if !known.forgotten => self.add(archive, throttle, &known),
                _ => Ok(()),
            }
        })?;
        self.log = reached;
        Ok(())
    }

    fn add(&mut self, archive: &Archive, throttle: &Throttle, known: &Known) -> Result<(), MarkError> {
        let root = root_of(known)?;
        let mut walk = Walk { archive, throttle, snapshot: known.id(), revive: false };
        // Nobody else holds the set while it grows, so that this copies nothing.
        let nodes = Arc::make_mut(&mut self.nodes);
        walk.from(root, |cid, kind| {
            self.blobs.insert(cid);
            kind != BlobKind::Chunk && nodes.insert(*cid)
        })
    }
}

pub(crate) fn root_of(known: &Known) -> Result<Cid, MarkError> {
    known.body().map(|body| body.root).map_err(|_| MarkError::Manifest(known.id()))
}

/// A walk below one root.
pub(crate) struct Walk<'a> {
    pub(crate) archive: &'a Archive,
    pub(crate) throttle: &'a Throttle,
    pub(crate) snapshot: SnapshotId,
    /// Whether condemned blobs are made live again; otherwise to meet one is an error.
    pub(crate) revive: bool,
}

impl Walk<'_> {
    /// Shows `enter` every blob, with its kind; it says whether to look below a node.
    pub(crate) fn from(&mut self, root: Cid, mut enter: impl FnMut(&Cid, BlobKind) -> bool) -> Result<(), MarkError> {
        if !enter(&root, BlobKind::Root) {
            return Ok(());
        }
        // Nodes still to look at on the way down, with their children.
        let mut path = vec![self.children(root, None)?.1];
        while let Some(siblings) = path.last_mut() {
            let Some((node, parent)) = siblings.pop() else {
                path.pop();
                continue;
            };
            if parent == BlobKind::Leaf {
                enter(&node, BlobKind::Chunk);
            } else if enter(&node, BlobKind::Inner) {
                if path.len() >= MAX_TREE_DEPTH {
                    return Err(self.wrong(node, "lies too deep"));
                }
                path.push(self.children(node, Some(parent))?.1);
            }
        }
        Ok(())
    }

    /// The kind of a node and its children, each with that kind as its parent's. A node
    /// without a parent must be a root.
    fn children(&self, node: Cid, parent: Option<BlobKind>) -> Result<(BlobKind, Vec<(Cid, BlobKind)>), MarkError> {
        self.throttle.check().map_err(|_| MarkError::Stopped)?;
        if self.revive {
            self.archive.revive(&[node])?;
        }
        let blob = self.read(node)?;
        self.throttle.spend(blob.len() as u64).map_err(|_| MarkError::Stopped)?;
        let header = Header::parse(&blob).map_err(|_| self.wrong(node, "is no blob"))?;
        let fits = parent.map_or(header.kind == BlobKind::Root, |parent| parent.may_refer_to(header.kind));
        if !fits {
            return Err(self.wrong(node, "is of a wrong kind"));
        }
        let children: Vec<Cid> = header.refs().collect();
        if self.revive && header.kind == BlobKind::Leaf {
            self.revive_chunks(&children)?;
        }
        Ok((header.kind, children.into_iter().map(|child| (child, header.kind)).collect()))
    }

    fn revive_chunks(&self, chunks: &[Cid]) -> Result<(), MarkError> {
        for chunks in chunks.chunks(MAX_CIDS) {
            self.archive.revive(chunks)?;
            let here = self.archive.catalog().have(chunks)?;
            if let Some((&chunk, _)) = chunks.iter().zip(here).find(|(_, here)| !here) {
                return Err(self.wrong(chunk, "is gone"));
            }
        }
        Ok(())
    }

    fn read(&self, node: Cid) -> Result<bytes::Bytes, MarkError> {
        // A second time, if compaction moved it between being found and being read.
        for _ in 0..2 {
            let entry = self.archive.catalog().entries(&[node])?.pop().flatten();
            let entry = entry.ok_or_else(|| self.wrong(node, "is missing"))?;
            match entry.state {
                State::Live => {}
                State::Corrupt => return Err(self.wrong(node, "is damaged")),
                State::Condemned => return Err(self.wrong(node, "was condemned although it is needed")),
            }
            let blob = read_blob(self.archive.packs(), entry.pack, entry.offset, entry.len, node)?;
            if let Some(blob) = blob {
                return Ok(blob);
            }
        }
        Err(self.wrong(node, "does not match its name"))
    }

    fn wrong(&self, node: Cid, what: &'static str) -> MarkError {
        MarkError::Node { snapshot: self.snapshot, node, what }
    }
}

impl Archive {
    /// Makes all that the tree of `known` needs live again. Returns false when some of it is
    /// gone.
    pub(crate) fn revive_tree(&self, known: &Known) -> Result<bool, ArchiveError> {
        let (mut seen, throttle) = (HashSet::new(), Throttle::default());
        let walked = root_of(known).and_then(|root| {
            let mut walk = Walk { archive: self, throttle: &throttle, snapshot: known.id(), revive: true };
            walk.from(root, |cid, kind| kind != BlobKind::Chunk && seen.insert(*cid))
        });
        match walked {
            Ok(()) => Ok(true),
            Err(MarkError::Archive(error)) => Err(error),
            Err(error) => {
                tracing::warn!("cannot bring a snapshot back: {error}");
                Ok(false)
            }
        }
    }

    /// Bytes of blobs that only those of `ids` need that are not forgotten yet.
    ///
    /// # Errors
    /// When a node cannot be read.
    pub fn needed_only_by(&self, ids: &[SnapshotId]) -> Result<u64, MarkError> {
        loop {
            match self.weigh(ids) {
                // Nobody holds collections up while this looks: what was forgotten and collected
                // meanwhile stands for nothing the next time.
                Err(MarkError::Node { snapshot, .. }) if !self.stands(snapshot)? => {}
                outcome => return outcome,
            }
        }
    }

    fn stands(&self, id: SnapshotId) -> Result<bool, CatalogError> {
        Ok(self.catalog().known(id)?.is_some_and(|known| !known.forgotten))
    }

    fn weigh(&self, ids: &[SnapshotId]) -> Result<u64, MarkError> {
        let throttle = Throttle::default();
        let mut mark = Mark::default();
        mark.extend(self, &throttle, &ids.iter().copied().collect())?;
        let (mut seen, mut bytes) = (HashSet::new(), 0);
        for &id in ids {
            let Some(known) = self.catalog().known(id)?.filter(|known| !known.forgotten) else { continue };
            let root = root_of(&known)?;
            let mut only = Vec::new();
            let mut walk = Walk { archive: self, throttle: &throttle, snapshot: id, revive: false };
            walk.from(root, |cid, kind| {
                let new = !mark.contains(cid) && seen.insert(*cid);
                only.extend(new.then_some(*cid));
                new && kind != BlobKind::Chunk
            })?;
            bytes += self.bytes_of(&only)?;
        }
        Ok(bytes)
    }
}
