//! A file's content as the snapshot describes it: in groups of pieces, each with a digest by
//! which it is recognised without reading anything.

use std::collections::VecDeque;

use crossbeam_channel::Receiver;

use super::RestoreError;
use crate::tree::Piece;

/// Pieces in a group: a megabyte or less of most files.
pub(super) const GROUP: usize = 16;

/// Bytes of a digest.
pub(super) const DIGEST: usize = 16;

/// Consecutive pieces with their offsets.
pub(super) struct Group {
    pub(super) pieces: Vec<(Piece, u64)>,
    /// Stands for their content and place.
    pub(super) digest: [u8; DIGEST],
}

impl Group {
    /// Where it ends in the file.
    pub(super) fn end(&self) -> u64 {
        self.pieces.last().map_or(0, |(piece, offset)| offset + piece.len())
    }
}

/// A file's pieces, as they come from the plan.
pub(super) struct Pieces<'a> {
    runs: &'a Receiver<Vec<Piece>>,
    run: std::vec::IntoIter<Piece>,
    /// Where the next piece belongs.
    offset: u64,
    /// Bytes of the whole file.
    len: u64,
    /// Read, and not yet taken.
    ahead: VecDeque<Group>,
    /// Of all groups read.
    content: Vec<u8>,
}

impl<'a> Pieces<'a> {
    pub(super) fn new(runs: &'a Receiver<Vec<Piece>>, len: u64) -> Self {
        let (run, ahead, content) = (Vec::new().into_iter(), VecDeque::new(), Vec::new());
        Self { runs, run, offset: 0, len, ahead, content }
    }

    /// The next group; `None` at the end.
    ///
    /// # Errors
    /// When the plan broke off.
    pub(super) fn next_group(&mut self) -> Result<Option<Group>, RestoreError> {
        match self.ahead.pop_front() {
            None => self.read(),
            group => Ok(group),
        }
    }

    /// Whether the whole file has the content that `content` stands for. At most `limit`
    /// groups are read to find out; they can still be taken.
    ///
    /// # Errors
    /// When the plan broke off.
    pub(super) fn are(&mut self, content: &[u8], limit: usize) -> Result<bool, RestoreError> {
        let mut digests = content.chunks_exact(DIGEST);
        for _ in 0..limit {
            match (self.read()?, digests.next()) {
                (None, None) => return Ok(true),
                (Some(group), digest) => {
                    let same = digest == Some(&group.digest[..]);
                    self.ahead.push_back(group);
                    if !same {
                        return Ok(false);
                    }
                }
                (None, Some(_)) => return Ok(false),
            }
        }
        Ok(false)
    }

    /// Digests of all groups, once all have been taken.
    pub(super) fn content(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.content)
    }

    fn read(&mut self) -> Result<Option<Group>, RestoreError> {
        let (mut pieces, mut hasher) = (Vec::new(), blake3::Hasher::new());
        // The same pieces elsewhere are another group.
        hasher.update(&self.offset.to_le_bytes());
        while pieces.len() < GROUP {
            let Some(piece) = self.run.next() else {
                match self.runs.recv() {
                    Ok(run) => self.run = run.into_iter(),
                    Err(_) => break,
                }
                continue;
            };
            match &piece {
                Piece::Chunk(reference) => hasher.update(reference.child.pid.as_bytes()),
                Piece::Hole(_) => hasher.update(&[0; 16]),
            };
            hasher.update(&piece.len().to_le_bytes());
            pieces.push((piece, self.offset));
            self.offset += piece.len();
        }
        if pieces.is_empty() {
            // A plan that broke off ends the pieces early.
            return if self.offset == self.len { Ok(None) } else { Err(RestoreError::Stopped) };
        }
        let mut digest = [0; DIGEST];
        hasher.finalize_xof().fill(&mut digest);
        self.content.extend_from_slice(&digest);
        Ok(Some(Group { pieces, digest }))
    }
}
