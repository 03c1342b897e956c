//! Cutting one file's content, and handing it on in segments.

use std::io;
use std::ops::Range;

use crossbeam_channel::{Sender, bounded};
use vsync_protocol::tree::EntryPath;

use super::BackupError;
use super::ahead::{Buffer, Stretch, Supply};
use super::pipeline::{FilePart, Segment, Shared};
use super::predict::{Cut, Hashed, Predictor, Window};
use crate::budget::Permit;
use crate::chunk::Profile;
use crate::tree::Piece;

/// Cuts one file's content and passes it on in segments.
pub(super) struct Chunking<'a> {
    shared: &'a Shared,
    path: &'a EntryPath,
    profile: Profile,
    predictor: Predictor,
    hashed: Hashed,
    segments: &'a Sender<Segment>,
    parts: &'a Sender<FilePart>,
    /// Bytes of content so far.
    pub(super) offset: u64,
}

impl<'a> Chunking<'a> {
    pub(super) fn new(
        shared: &'a Shared,
        path: &'a EntryPath,
        profile: Profile,
        predictor: Predictor,
        segments: &'a Sender<Segment>,
        parts: &'a Sender<FilePart>,
    ) -> Self {
        Self { shared, path, profile, predictor, hashed: Hashed::default(), segments, parts, offset: 0 }
    }

    /// Cuts a whole small file.
    pub(super) fn whole(&mut self, data: Vec<u8>) -> Result<(), BackupError> {
        let permit = self.shared.read_budget.take(data.len());
        let cuts = self.cut(&data, true).0;
        let bytes = 0..data.len();
        self.pass(data.into(), bytes, cuts, permit)
    }

    /// Cuts a run of data to its end. The outer error ends the backup, the inner one the run.
    pub(super) fn run(&mut self, supply: &mut dyn Supply) -> Result<io::Result<()>, BackupError> {
        let headroom = self.shared.headroom();
        let mut carry = Vec::with_capacity(headroom);
        loop {
            self.shared.check_cancelled()?;
            let (predictor, profile) = (&self.predictor, self.profile);
            let outlook = |range: Range<u64>| predictor.outlook(&self.shared.pipeline.cutter, profile, range);
            let stretch = match supply.next(&outlook)? {
                Ok(stretch) => stretch,
                Err(error) => return Ok(Err(error)),
            };
            let Stretch { mut buffer, len, pids, last, permit } = stretch;
            // What was left of the stretch before goes in front of this one.
            let start = headroom - carry.len();
            buffer[start..headroom].copy_from_slice(&carry);
            let end = headroom + len;
            self.hashed.advance(self.offset, pids);
            let (cuts, cut) = self.cut(&buffer[start..end], last);
            carry.clear();
            carry.extend_from_slice(&buffer[start + cut..end]);
            self.pass(buffer, start..start + cut, cuts, permit)?;
            if last {
                return Ok(Ok(()));
            }
        }
    }

    /// Cuts `data` as far as the cuts are certain, and says how far that is.
    fn cut(&mut self, data: &[u8], last: bool) -> (Vec<Cut>, usize) {
        let Shared { pipeline, .. } = self.shared;
        let longest = pipeline.cutter.longest(self.profile);
        let mut cuts = Vec::with_capacity(data.len() / (32 << 10) + 1);
        let mut at = 0;
        while at < data.len() && (last || data.len() - at >= longest) {
            let end = data.len().min(at + longest);
            let last = last && end == data.len();
            let window = Window { data: &data[at..end], offset: self.offset, last, hashed: &self.hashed };
            let cut = self.predictor.cut(&pipeline.vault, &pipeline.cutter, self.profile, &window);
            at += cut.len();
            self.offset += cut.len() as u64;
            cuts.push(cut);
        }
        (cuts, at)
    }

    /// Adds a hole that ends at `end`.
    pub(super) fn hole_up_to(&mut self, end: u64) -> Result<(), BackupError> {
        if end <= self.offset {
            return Ok(());
        }
        let hole = Piece::Hole(end - self.offset);
        self.offset = end;
        self.parts.send(FilePart::Pieces(vec![hole])).map_err(|_| BackupError::Stopped)
    }

    /// Hands a segment to a sealer, or straight on when nothing in it is new.
    fn pass(&self, buffer: Buffer, bytes: Range<usize>, cuts: Vec<Cut>, mut permit: Permit) -> Result<(), BackupError> {
        if cuts.is_empty() {
            return Ok(());
        }
        let known: Option<Vec<Piece>> = cuts
            .iter()
            .map(|cut| match *cut {
                Cut::Known(reference) => Some(Piece::Chunk(reference)),
                Cut::Hole(len) => Some(Piece::Hole(len)),
                Cut::New(..) => None,
            })
            .collect();
        let part = match known {
            Some(pieces) => {
                self.shared.pipeline.progress.recognised.add(pieces.len() as u64);
                FilePart::Pieces(pieces)
            }
            None => {
                permit.shrink(bytes.len());
                let (pieces, sealing) = bounded(1);
                let segment = Segment { path: self.path.clone(), buffer, bytes, cuts, pieces, _permit: permit };
                self.segments.send(segment).map_err(|_| BackupError::Stopped)?;
                FilePart::Sealing(sealing)
            }
        };
        self.parts.send(part).map_err(|_| BackupError::Stopped)
    }
}
