//! Sealing what is new, and offering it to the server.

use crossbeam_channel::Receiver;
use vsync_protocol::blob::BlobKind;
use vsync_protocol::id::Pid;
use vsync_protocol::tree::Child;

use super::BackupError;
use super::pipeline::{Segment, Shared};
use super::predict::Cut;
use crate::remote::Offer;
use crate::tree::{Piece, Reference};
use crate::vault::Sealer;

/// Seals segments until there are no more.
pub(super) fn work(shared: &Shared, queue: &Receiver<Segment>) -> Result<(), BackupError> {
    let mut sealer = Sealer::new(shared.pipeline.vault.clone()).map_err(BackupError::Sealer)?;
    for segment in queue {
        let pieces = seal(shared, &mut sealer, &segment)?;
        // When nobody waits for the pieces, the run has failed elsewhere.
        segment.pieces.send(pieces).map_err(|_| BackupError::Stopped)?;
    }
    Ok(())
}

fn seal(shared: &Shared, sealer: &mut Sealer, segment: &Segment) -> Result<Vec<Piece>, BackupError> {
    let mut pieces = Vec::with_capacity(segment.cuts.len());
    let mut at = 0;
    for cut in &segment.cuts {
        let data = &segment.data[at..at + cut.len()];
        at += cut.len();
        pieces.push(match *cut {
            Cut::Known(reference) => Piece::Chunk(reference),
            Cut::Hole(len) => Piece::Hole(len),
            Cut::New(_, pid) => Piece::Chunk(seal_chunk(shared, sealer, segment, data, pid)?),
        });
    }
    Ok(pieces)
}

fn seal_chunk(
    shared: &Shared,
    sealer: &mut Sealer,
    segment: &Segment,
    data: &[u8],
    pid: Option<Pid>,
) -> Result<Reference, BackupError> {
    let pid = pid.unwrap_or_else(|| sealer.vault().pid(data));
    if let Some((cid, ck)) = shared.recall(pid) {
        shared.pipeline.progress.recognised.add(1);
        return Ok(Reference { cid, child: Child { ck, pid, raw_len: data.len() as u32 } });
    }
    let sealed = sealer
        .seal(BlobKind::Chunk, &[], data)
        .map_err(|source| BackupError::Chunk { path: segment.path.clone(), source })?;
    shared.pipeline.progress.sealed.add(1);
    let permit = shared.send_budget.take(sealed.blob.len());
    shared.pipeline.upload.offer(Offer { cid: sealed.cid, blob: sealed.blob, permit })?;
    shared.remember(pid, sealed.cid, sealed.ck);
    Ok(Reference { cid: sealed.cid, child: Child { ck: sealed.ck, pid, raw_len: data.len() as u32 } })
}
