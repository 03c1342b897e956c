//! What a file has, compared with what it should have: read and hashed along the snapshot's chunk
//! boundaries, a long file by two threads.

use std::collections::HashMap;
use std::ops::Range;
use std::thread;

use vsync_protocol::id::Pid;

use super::RestoreError;
use super::file::FileTask;
use super::moved;
use super::pieces::{DIGEST, GROUP, Pieces};
use super::record::FileRecord;
use super::transfer::{Transfer, join};
use crate::chunk::is_zero;
use crate::tree::{Piece, Reference};

/// Pieces compared before anything is done about them: 16 GiB of file, 25 MiB of memory.
pub(super) const STRETCH: usize = 1 << 18;

/// Groups of pieces that are looked at together.
const VOLLEY: usize = 64;

/// So many bytes are worth a second thread.
const WORTH_TWO: u64 = 4 << 20;

/// What a stretch of a file has, compared with what it should have.
#[derive(Default)]
pub(super) struct Survey {
    /// Chunks that are where they should be.
    pub(super) here: Vec<(Reference, u64)>,
    /// Chunks that are not.
    pub(super) differing: Vec<(Reference, u64)>,
    /// Ranges that should be holes and are not all zero.
    pub(super) holes: Vec<Range<u64>>,
    /// Ranges that should be holes, and read as such.
    zeros: Vec<Range<u64>>,
    /// The stretch reaches the file's end.
    pub(super) complete: bool,
}

impl Survey {
    pub(super) fn differs(&self) -> bool {
        !self.differing.is_empty() || !self.holes.is_empty()
    }

    fn add(&mut self, claim: &Claim, holds: bool) {
        match (&claim.piece, holds) {
            (Piece::Chunk(reference), true) => self.here.push((*reference, claim.offset)),
            (Piece::Chunk(reference), false) => self.differing.push((*reference, claim.offset)),
            (Piece::Hole(_), true) => self.zeros.push(claim.range()),
            (Piece::Hole(_), false) => self.holes.push(claim.range()),
        }
    }
}

/// What a file should have somewhere.
struct Claim {
    piece: Piece,
    offset: u64,
    /// It is known to have it.
    certain: bool,
}

impl Claim {
    fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.piece.len()
    }
}

/// A file and what is known of it before it is read.
pub(super) struct Comparison<'a, 'b> {
    shared: &'a Transfer<'b>,
    task: &'a FileTask,
    /// Bytes of the file.
    pub(super) size: u64,
    /// Digests of groups that the file has for certain.
    kept: std::slice::ChunksExact<'a, u8>,
}

impl<'a, 'b> Comparison<'a, 'b> {
    pub(super) fn of(
        shared: &'a Transfer<'b>,
        task: &'a FileTask,
        kept: Option<&'a FileRecord>,
    ) -> Result<Self, RestoreError> {
        shared.restore.progress.opened.add(1);
        let kept = kept.map_or(&[][..], |kept| &kept.content).chunks_exact(DIGEST);
        Ok(Self { shared, task, size: task.size()?, kept })
    }

    /// Compares the next stretch.
    pub(super) fn survey(&mut self, pieces: &mut Pieces<'_>) -> Result<Survey, RestoreError> {
        let mut survey = Survey::default();
        for _ in 0..STRETCH / GROUP / VOLLEY {
            let claims = self.volley(pieces, &mut survey.complete)?;
            self.judge(&claims, &mut survey)?;
            if survey.complete {
                break;
            }
        }
        Ok(survey)
    }

    /// The next groups of pieces, and whether they are the last ones.
    fn volley(&mut self, pieces: &mut Pieces<'_>, last: &mut bool) -> Result<Vec<Claim>, RestoreError> {
        let mut claims = Vec::new();
        for _ in 0..VOLLEY {
            let Some(group) = pieces.next_group()? else {
                *last = true;
                break;
            };
            let certain = self.kept.next() == Some(&group.digest[..]) && group.end() <= self.size;
            claims.extend(group.pieces.into_iter().map(|(piece, offset)| Claim { piece, offset, certain }));
        }
        Ok(claims)
    }

    /// Moves the rest of a file that is changed in place by whole blocks, if that brings most
    /// of it where it should be, and looks again. Returns whether it did.
    pub(super) fn shift(&mut self, survey: &mut Survey, index: &HashMap<Pid, u64>) -> Result<bool, RestoreError> {
        let Some(shift) = moved::shift(survey, index) else { return Ok(false) };
        let task = self.task;
        self.shared.changing_in_place(task.path());
        if !task.shift(shift.at, shift.by)? {
            self.shared.is_whole(task.path());
            return Ok(false);
        }
        self.size = task.size()?;
        let before = std::mem::replace(survey, Survey { complete: true, ..Survey::default() });
        let chunk = |(reference, offset), certain| Claim { piece: Piece::Chunk(reference), offset, certain };
        let here = before.here.into_iter().map(|(reference, offset)| {
            let stayed = offset + u64::from(reference.child.raw_len) <= shift.at;
            chunk((reference, offset), stayed)
        });
        let differing = before.differing.into_iter().map(|place| chunk(place, false));
        let holes = before.zeros.into_iter().chain(before.holes);
        let holes =
            holes.map(|hole| Claim { piece: Piece::Hole(hole.end - hole.start), offset: hole.start, certain: false });
        let claims: Vec<Claim> = here.chain(differing).chain(holes).collect();
        for volley in claims.chunks(VOLLEY * GROUP) {
            self.judge(volley, survey)?;
        }
        Ok(true)
    }

    /// Looks at what is claimed, and lists it.
    fn judge(&self, claims: &[Claim], survey: &mut Survey) -> Result<(), RestoreError> {
        let open: u64 = claims.iter().filter(|claim| !claim.certain).map(|claim| claim.piece.len()).sum();
        let (front, back) = claims.split_at(if open < WORTH_TWO { claims.len() } else { claims.len() / 2 });
        let (front, back) = if back.is_empty() {
            (self.verdicts(front)?, Vec::new())
        } else {
            thread::scope(|scope| {
                let back = scope.spawn(|| self.verdicts(back));
                let front = self.verdicts(front);
                let back = join(back);
                Ok::<_, RestoreError>((front?, back?))
            })?
        };
        for (claim, holds) in claims.iter().zip(front.into_iter().chain(back)) {
            if holds || matches!(claim.piece, Piece::Hole(_)) {
                self.shared.count(self.task, claim.piece.len());
            }
            survey.add(claim, holds);
        }
        Ok(())
    }

    /// Whether the file has what each claim says.
    fn verdicts(&self, claims: &[Claim]) -> Result<Vec<bool>, RestoreError> {
        let mut buffer = Vec::new();
        let verdict = |claim: &Claim| match &claim.piece {
            _ if claim.certain => Ok(true),
            Piece::Chunk(reference) => self.holds(reference, claim.offset, &mut buffer),
            Piece::Hole(_) => self.is_zero(claim.range(), &mut buffer),
        };
        claims.iter().map(verdict).collect()
    }

    /// Whether the file has this chunk at this offset.
    fn holds(&self, reference: &Reference, offset: u64, buffer: &mut Vec<u8>) -> Result<bool, RestoreError> {
        self.shared.check()?;
        let len = reference.child.raw_len as usize;
        if offset + len as u64 > self.size {
            return Ok(false);
        }
        buffer.resize(len, 0);
        let read = self.task.read_at(buffer, offset)?;
        self.shared.restore.progress.read.add(read as u64);
        Ok(read == len && self.shared.restore.vault.pid(buffer) == reference.child.pid)
    }

    /// Whether the file reads as zeros there, where it has anything at all.
    fn is_zero(&self, hole: Range<u64>, buffer: &mut Vec<u8>) -> Result<bool, RestoreError> {
        for data in self.task.data_within(hole.start..hole.end.min(self.size))? {
            let mut at = data.start;
            while at < data.end {
                buffer.resize((data.end - at).min(1 << 20) as usize, 0);
                let read = self.task.read_at(buffer, at)?;
                if read == 0 || !is_zero(&buffer[..read]) {
                    return Ok(false);
                }
                at += read as u64;
            }
        }
        Ok(true)
    }
}
