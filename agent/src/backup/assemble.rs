//! Everything comes together in path order and becomes a tree.

use std::collections::HashSet;

use crossbeam_channel::Receiver;
use vsync_protocol::blob::BlobKind;
use vsync_protocol::id::Cid;
use vsync_protocol::limits::MAX_DEFECTS;
use vsync_protocol::tree::{Child, Entry, EntryKind, EntryPath, VolumeInfo};

use super::pipeline::{FilePart, Shared, Slot};
use super::{BackupError, Built, Trust};
use crate::cache::Cache;
use crate::remote::Offer;
use crate::tree::{NodeSink, Piece, Reference, TreeWriter};
use crate::vault::Sealer;

/// Builds the tree of one run.
pub(super) struct Assembler<'a> {
    shared: &'a Shared,
    writer: TreeWriter<Nodes<'a>>,
    defects: Vec<(EntryPath, String)>,
    defect_count: u64,
    /// Files without an entry: hard links to them have nothing to point at.
    left_out: HashSet<EntryPath>,
}

impl<'a> Assembler<'a> {
    pub(super) fn new(shared: &'a Shared, cache: &'a mut Cache) -> Result<Self, BackupError> {
        let sealer = Sealer::new(shared.pipeline.vault.clone()).map_err(BackupError::Sealer)?;
        let writer = TreeWriter::new(Nodes { shared, cache, sealer });
        Ok(Self { shared, writer, defects: Vec::new(), defect_count: 0, left_out: HashSet::new() })
    }

    /// Takes slots until there are no more, then ends the tree.
    pub(super) fn run(
        mut self,
        slots: &Receiver<Slot>,
        info: VolumeInfo,
        root: &Receiver<Entry>,
    ) -> Result<Built, BackupError> {
        // Without a root directory the walk never began.
        let directory = root.recv().map_err(|_| BackupError::Stopped)?;
        for slot in slots {
            match slot {
                Slot::Entry(entry) => self.entry(*entry)?,
                Slot::Pieces(pieces) => self.pieces(&pieces)?,
                Slot::File(parts) => self.file(&parts)?,
                Slot::Defect(path, reason) => self.leave_out(path, reason),
            }
        }
        // An ended walk and a broken one look alike from here; the flag tells them apart.
        self.shared.check_cancelled()?;
        let Self { writer, defects, defect_count, .. } = self;
        let (root, totals, _) = writer.finish(info, Some(directory), defects.clone(), defect_count)?;
        Ok(Built { root, totals, defects, defect_count })
    }

    fn entry(&mut self, entry: Entry) -> Result<(), BackupError> {
        if entry.kind == EntryKind::HardLink {
            let target = entry.target.as_deref().and_then(|target| EntryPath::new(target).ok());
            if target.is_some_and(|target| self.left_out.contains(&target)) {
                self.leave_out(entry.path, "is another name of a file that could not be read".into());
                return Ok(());
            }
        }
        self.shared.pipeline.progress.entries.add(1);
        self.writer.entry(entry)
    }

    fn pieces(&mut self, pieces: &[Piece]) -> Result<(), BackupError> {
        for piece in pieces {
            self.shared.pipeline.progress.bytes.add(piece.len());
            self.writer.piece(*piece)?;
        }
        Ok(())
    }

    fn file(&mut self, parts: &Receiver<FilePart>) -> Result<(), BackupError> {
        let mut current = None;
        for part in parts {
            match part {
                FilePart::Entry(entry) => {
                    current = Some(entry.path.clone());
                    self.entry(*entry)?;
                }
                FilePart::Pieces(pieces) => self.pieces(&pieces)?,
                FilePart::Sealing(pieces) => self.pieces(&pieces.recv().map_err(|_| BackupError::Stopped)?)?,
                FilePart::Defect(reason) => self.defect(current.clone().unwrap_or_default(), reason),
                FilePart::Failed(path, reason) => {
                    current = Some(path.clone());
                    self.leave_out(path, reason);
                }
            }
        }
        // A reader that gives up leaves its file without a word.
        if current.is_some() { Ok(()) } else { Err(BackupError::Stopped) }
    }

    fn leave_out(&mut self, path: EntryPath, reason: String) {
        self.left_out.insert(path.clone());
        self.defect(path, reason);
    }

    fn defect(&mut self, path: EntryPath, reason: String) {
        self.shared.pipeline.progress.defects.add(1);
        self.defect_count += 1;
        if self.defects.len() < MAX_DEFECTS {
            self.defects.push((path, reason));
        }
    }
}

/// Seals, sends and keeps nodes; takes unchanged ones over.
struct Nodes<'a> {
    shared: &'a Shared,
    cache: &'a mut Cache,
    sealer: Sealer,
}

impl NodeSink for Nodes<'_> {
    type Error = BackupError;

    fn store(&mut self, kind: BlobKind, refs: &[Cid], payload: &[u8]) -> Result<Reference, BackupError> {
        let pipeline = &self.shared.pipeline;
        let pid = pipeline.vault.node_pid(refs, payload);
        let reference = |cid, ck| Reference { cid, child: Child { ck, pid, raw_len: payload.len() as u32 } };
        if pipeline.trust == Trust::Cache
            && let Some((cid, ck)) = self.cache.node(pid)?
        {
            self.cache.keep(pid)?;
            return Ok(reference(cid, ck));
        }
        let sealed = self.sealer.seal(kind, refs, payload).map_err(BackupError::Node)?;
        let node = reference(sealed.cid, sealed.ck);
        self.cache.insert(&node, &sealed.blob)?;
        let permit = self.shared.send_budget.take(sealed.blob.len());
        pipeline.upload.offer(Offer { cid: sealed.cid, blob: sealed.blob, permit })?;
        Ok(node)
    }
}
