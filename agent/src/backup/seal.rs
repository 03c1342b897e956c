//! Sealing what is new, and offering it to the server.

use bytes::Bytes;
use crossbeam_channel::{Receiver, TryRecvError};
use vsync_protocol::blob::BlobKind;
use vsync_protocol::id::{Cid, Pid};
use vsync_protocol::tree::{Child, EntryPath};

use super::BackupError;
use super::pipeline::{Segment, Shared};
use super::predict::Cut;
use crate::remote::Offer;
use crate::tree::{Piece, Reference};
use crate::vault::Sealer;

/// Sealed blobs that are offered together, at most: by number, and by bytes.
const OFFERED: usize = 64;
const OFFERED_BYTES: usize = 1 << 20;

/// Seals segments until there are no more.
pub(super) fn work(shared: &Shared, queue: &Receiver<Segment>) -> Result<(), BackupError> {
    let mut sealer = Sealer::new(shared.pipeline.vault.clone()).map_err(BackupError::Sealer)?;
    let mut outbox = Outbox::new(shared);
    loop {
        let segment = match queue.try_recv() {
            Ok(segment) => segment,
            Err(TryRecvError::Disconnected) => return outbox.send(),
            Err(TryRecvError::Empty) => {
                // Nobody waits for what is held here while there is nothing else to do.
                outbox.send()?;
                let Ok(segment) = queue.recv() else { return Ok(()) };
                segment
            }
        };
        let pieces = seal(shared, &mut sealer, &mut outbox, &segment)?;
        // When nobody waits for the pieces, the run has failed elsewhere.
        segment.pieces.send(pieces).map_err(|_| BackupError::Stopped)?;
    }
}

/// Offers of one thread on their way to the network thread, which small ones reach together.
struct Outbox<'a> {
    shared: &'a Shared,
    offers: Vec<Offer>,
    bytes: usize,
}

impl<'a> Outbox<'a> {
    const fn new(shared: &'a Shared) -> Self {
        Self { shared, offers: Vec::new(), bytes: 0 }
    }

    fn add(&mut self, cid: Cid, blob: Bytes) -> Result<(), BackupError> {
        let permit = match self.shared.send_budget.try_take(blob.len()) {
            Some(permit) => permit,
            None => {
                // What is held here may be what there is no room for.
                self.send()?;
                self.shared.send_budget.take(blob.len())
            }
        };
        self.bytes += blob.len();
        self.offers.push(Offer { cid, blob, permit });
        if self.offers.len() >= OFFERED || self.bytes >= OFFERED_BYTES { self.send() } else { Ok(()) }
    }

    fn send(&mut self) -> Result<(), BackupError> {
        self.bytes = 0;
        let offers = std::mem::take(&mut self.offers);
        if offers.is_empty() { Ok(()) } else { Ok(self.shared.pipeline.upload.offer_all(offers)?) }
    }
}

fn seal(
    shared: &Shared,
    sealer: &mut Sealer,
    outbox: &mut Outbox<'_>,
    segment: &Segment,
) -> Result<Vec<Piece>, BackupError> {
    let mut pieces = Vec::with_capacity(segment.cuts.len());
    let mut rest = &segment.buffer[segment.bytes.clone()];
    for cut in &segment.cuts {
        let (data, after) = rest.split_at(cut.len());
        rest = after;
        pieces.push(match *cut {
            Cut::Known(reference) => Piece::Chunk(reference),
            Cut::Hole(len) => Piece::Hole(len),
            Cut::New(_, pid) => Piece::Chunk(seal_chunk(shared, sealer, outbox, &segment.path, data, pid)?),
        });
    }
    Ok(pieces)
}

fn seal_chunk(
    shared: &Shared,
    sealer: &mut Sealer,
    outbox: &mut Outbox<'_>,
    path: &EntryPath,
    data: &[u8],
    pid: Option<Pid>,
) -> Result<Reference, BackupError> {
    let pid = pid.unwrap_or_else(|| sealer.vault().pid(data));
    if let Some((cid, ck)) = shared.recall(pid) {
        shared.pipeline.progress.recognised.add(1);
        return Ok(Reference { cid, child: Child { ck, pid, raw_len: data.len() as u32 } });
    }
    let sealed =
        sealer.seal(BlobKind::Chunk, &[], data).map_err(|source| BackupError::Chunk { path: path.clone(), source })?;
    shared.pipeline.progress.sealed.add(1);
    outbox.add(sealed.cid, sealed.blob)?;
    shared.remember(pid, sealed.cid, sealed.ck);
    Ok(Reference { cid: sealed.cid, child: Child { ck: sealed.ck, pid, raw_len: data.len() as u32 } })
}
