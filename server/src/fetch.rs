//! Sending blobs to a reader: in the order in which they lie on disk, neighbours in one
//! read, without copying what was read.

use bytes::Bytes;
use vsync_protocol::id::{Cid, PackId};
use vsync_protocol::wire::FrameHead;

use crate::archive::{Archive, ArchiveError};
use crate::catalog::Location;
use crate::store::pack::{RECORD_HEAD_LEN, is_head_of};
use crate::store::read_or_damaged;

/// Reading over a gap is cheaper than a second read, up to this many bytes.
const MAX_GAP: u64 = 64 << 10;

/// A run of neighbours ends when it has grown to this; a single blob may be longer.
const MAX_RUN: u64 = 1 << 20;

/// Blobs that one read brings.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pack: PackId,
    start: u64,
    end: u64,
    blobs: Vec<(Cid, Location)>,
}

/// What to read for a request.
pub(crate) struct Plan {
    /// Reads, in order.
    pub(crate) runs: Vec<Run>,
    /// Blobs that are not here.
    pub(crate) absent: Vec<Cid>,
}

impl Plan {
    /// Plans the reads for `cids`.
    pub(crate) fn new(archive: &Archive, cids: &[Cid]) -> Result<Self, ArchiveError> {
        let located = archive.catalog().locate(cids)?;
        let absent = cids.iter().zip(&located).filter(|(_, found)| found.is_none()).map(|(&cid, _)| cid).collect();
        let found = cids.iter().zip(located).filter_map(|(&cid, found)| Some((cid, found?))).collect();
        Ok(Self { runs: runs(found), absent })
    }
}

impl Run {
    /// Bytes that the read brings.
    pub(crate) const fn len(&self) -> usize {
        (self.end - self.start) as usize
    }

    /// Reads the blobs into `buffer`, which is as long as the run, and frames them. Damage
    /// that shows without hashing makes a blob absent; the rest is for the reader, who must
    /// hash anyway, to find and report.
    ///
    /// # Errors
    /// When it cannot be told whether the blobs are here.
    pub(crate) fn read(&self, archive: &Archive, mut buffer: Vec<u8>) -> Result<Vec<Bytes>, ArchiveError> {
        if read_or_damaged(archive.packs(), self.pack, self.start, &mut buffer)? {
            let bytes = Bytes::from(buffer);
            let mut frames = Vec::with_capacity(2 * self.blobs.len());
            for &(cid, at) in &self.blobs {
                frames.extend(self.frame(archive, &bytes, cid, at)?);
            }
            return Ok(frames);
        }
        if let [(cid, location)] = self.blobs[..] {
            return elsewhere(archive, cid, location);
        }
        // Perhaps only one of them is beyond reach.
        let mut frames = Vec::new();
        for run in self.split() {
            frames.extend(run.read(archive, vec![0; run.len()])?);
        }
        Ok(frames)
    }

    fn frame(&self, archive: &Archive, bytes: &Bytes, cid: Cid, at: Location) -> Result<Vec<Bytes>, ArchiveError> {
        let start = (at.offset - self.start) as usize;
        if is_head_of(&bytes[start - RECORD_HEAD_LEN..start], cid, at.len) {
            return Ok(framed(cid, bytes.slice(start..start + at.len as usize)));
        }
        elsewhere(archive, cid, at)
    }

    fn split(&self) -> Vec<Self> {
        self.blobs.iter().map(|&(cid, at)| Self::one(cid, at)).collect()
    }

    fn one(cid: Cid, at: Location) -> Self {
        let start = at.offset.saturating_sub(RECORD_HEAD_LEN as u64);
        Self { pack: at.pack, start, end: at.offset + u64::from(at.len), blobs: vec![(cid, at)] }
    }
}

/// A blob that is not where it was when the read was planned: compaction may have moved it since. If it is damaged, it
/// counts as absent from now on, so that the next backup brings it again.
fn elsewhere(archive: &Archive, cid: Cid, planned: Location) -> Result<Vec<Bytes>, ArchiveError> {
    if let Some(blob) = archive.read_moved(cid, &planned)? {
        return Ok(framed(cid, blob));
    }
    archive.doubt(cid);
    Ok(vec![absent(cid)])
}

/// A blob with what goes before it.
fn framed(cid: Cid, blob: Bytes) -> Vec<Bytes> {
    let head = FrameHead { len: blob.len(), cid }.encode();
    vec![Bytes::copy_from_slice(&head), blob]
}

/// The frame that says that a blob is not here.
pub(crate) fn absent(cid: Cid) -> Bytes {
    Bytes::copy_from_slice(&FrameHead { len: 0, cid }.encode())
}

fn runs(mut found: Vec<(Cid, Location)>) -> Vec<Run> {
    found.sort_unstable_by_key(|(_, at)| (at.pack, at.offset));
    let mut runs: Vec<Run> = Vec::new();
    for (cid, at) in found {
        let next = Run::one(cid, at);
        match runs.last_mut() {
            Some(run)
                if run.pack == next.pack
                    && next.start <= run.end.saturating_add(MAX_GAP)
                    && next.end.saturating_sub(run.start) <= MAX_RUN =>
            {
                run.end = run.end.max(next.end);
                run.blobs.extend(next.blobs);
            }
            _ => runs.push(next),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use vsync_protocol::blob::BlobKind;

    fn at(pack: u8, offset: u64, len: u32) -> (Cid, Location) {
        let pack = PackId::from_bytes([pack; 32]);
        (Cid::of(&offset.to_le_bytes()), Location { pack, offset, len, kind: BlobKind::Chunk, closed: 0 })
    }

    #[test]
    fn neighbours_are_read_together() {
        let far = 100_040 + 10 + MAX_GAP;
        let found = vec![at(2, 48, 10), at(1, far + 41, 10), at(1, 100_040, 10), at(1, 48, 99_952), at(1, 48, 99_952)];
        let spans: Vec<_> =
            runs(found).iter().map(|run| (run.pack.as_bytes()[0], run.start, run.end, run.blobs.len())).collect();
        assert_eq!(spans, [(1, 8, 100_050, 3), (1, far + 1, far + 51, 1), (2, 8, 58, 1)]);
    }

    #[test]
    fn a_run_stays_short_but_a_long_blob_is_whole() {
        let long = MAX_RUN as u32 * 2;
        let found = vec![at(1, 48, 600_000), at(1, 600_088, 600_000), at(1, 1_200_128, long)];
        assert_eq!(runs(found).iter().map(Run::len).collect::<Vec<_>>(), [600_040, 600_040, long as usize + 40]);
    }
}
