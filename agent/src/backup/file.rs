//! Reading files and cutting them.

use std::io;
use std::ops::Range;

use crossbeam_channel::{Receiver, Sender, bounded};
use vsync_protocol::tree::EntryPath;

use super::BackupError;
use super::pipeline::{FilePart, Segment, Shared};
use super::predict::{Cut, Predictor};
use crate::chunk::Profile;
use crate::remote::Permit;
use crate::tree::Piece;
use crate::volume::{Found, SourceFile};

/// What is read at once.
const SEGMENT: usize = 2 << 20;

/// Files up to this size are read whole before anything of them is passed on, so that one
/// that changes meanwhile can be read again.
const SMALL: u64 = 1 << 20;

/// Below this size nobody asks where the holes are: zeros are recognised anyway.
const WITHOUT_HOLES: u64 = 128 << 10;

/// How often a small file is read when it keeps changing.
const ATTEMPTS: usize = 3;

const CHANGED: &str = "changed while it was read; its content may mix two versions";

/// A file to be read.
pub(super) struct FileJob {
    pub(super) found: Box<Found>,
    /// The parent's pieces of it, and the profile by which those were cut.
    pub(super) parent: Vec<Piece>,
    pub(super) parent_profile: Profile,
    pub(super) parts: Sender<FilePart>,
    /// For the parent's pieces.
    pub(super) _kept: Permit,
}

/// Reads files until there are no more.
pub(super) fn work(shared: &Shared, queue: &Receiver<FileJob>, segments: &Sender<Segment>) -> Result<(), BackupError> {
    for job in queue {
        shared.check_cancelled()?;
        read(shared, job, segments)?;
    }
    Ok(())
}

fn read(shared: &Shared, mut job: FileJob, segments: &Sender<Segment>) -> Result<(), BackupError> {
    let mut attempt = 1;
    loop {
        let (source, changed) = match open(shared, &mut job.found) {
            Ok(source) if source.size() > SMALL => return read_large(shared, job, source, segments),
            Ok(source) => match read_small(shared, &source) {
                Ok((data, changed)) => ((source, data), changed),
                Err(error) => return fail(&job, format!("cannot be read: {error}")),
            },
            // Replaced since the walk came by: whatever is there now is taken instead.
            Err(_) if attempt < ATTEMPTS && job.found.look_again().is_ok() => {
                attempt += 1;
                continue;
            }
            Err(reason) => return fail(&job, reason),
        };
        if changed && attempt < ATTEMPTS {
            attempt += 1;
            continue;
        }
        return pass_small(shared, job, source.1, changed, segments);
    }
}

fn open(shared: &Shared, found: &mut Found) -> Result<SourceFile, String> {
    let mut source = found.open().map_err(|defect| defect.reason.to_string())?;
    found.load_metadata().map_err(|defect| defect.reason.to_string())?;
    source.advise_sequential();
    shared.pipeline.progress.opened.add(1);
    Ok(source)
}

fn fail(job: &FileJob, reason: String) -> Result<(), BackupError> {
    let failed = FilePart::Failed(job.found.entry.path.clone(), reason);
    job.parts.send(failed).map_err(|_| BackupError::Stopped)
}

/// The content, and whether the file changed meanwhile.
fn read_small(shared: &Shared, source: &SourceFile) -> io::Result<(Vec<u8>, bool)> {
    let mut data = vec![0; source.size() as usize];
    let len = source.read_at(&mut data, 0)?;
    shared.pipeline.progress.read.add(len as u64);
    let changed = len < data.len() || source.changed();
    source.forget(0..len as u64);
    data.truncate(len);
    Ok((data, changed))
}

fn pass_small(
    shared: &Shared,
    mut job: FileJob,
    data: Vec<u8>,
    changed: bool,
    segments: &Sender<Segment>,
) -> Result<(), BackupError> {
    job.found.entry.size = data.len() as u64;
    let profile = profile(shared, &job);
    let entry = job.found.entry.clone();
    let parts = job.parts.clone();
    parts.send(FilePart::Entry(Box::new(entry))).map_err(|_| BackupError::Stopped)?;
    if changed {
        parts.send(FilePart::Defect(CHANGED.into())).map_err(|_| BackupError::Stopped)?;
    }
    if data.is_empty() {
        return Ok(());
    }
    let predictor = predictor(&mut job, profile);
    let mut chunking = Chunking::new(shared, &job.found.entry.path, profile, predictor, segments, &parts);
    chunking.whole(data)
}

fn read_large(
    shared: &Shared,
    mut job: FileJob,
    source: SourceFile,
    segments: &Sender<Segment>,
) -> Result<(), BackupError> {
    let profile = profile(shared, &job);
    let predictor = predictor(&mut job, profile);
    let parts = job.parts.clone();
    let send = |part| parts.send(part).map_err(|_| BackupError::Stopped);
    send(FilePart::Entry(Box::new(job.found.entry.clone())))?;
    let mut chunking = Chunking::new(shared, &job.found.entry.path, profile, predictor, segments, &parts);
    let mut short = false;
    let outcome = ranges(&source, |range| {
        chunking.hole_up_to(range.start)?;
        let read = chunking.run(range.end - range.start, &mut |buffer, offset| source.read_at(buffer, offset))?;
        short |= chunking.offset < range.end;
        source.forget(range);
        Ok(read)
    })?;
    chunking.hole_up_to(source.size())?;
    match outcome {
        Err(error) => send(FilePart::Defect(format!("cannot be read to its end ({error}); the rest is zeros"))),
        Ok(()) if short || source.changed() => send(FilePart::Defect(CHANGED.into())),
        Ok(()) => Ok(()),
    }
}

/// Goes through the data of a file. The outer error ends the backup, the inner one the file.
fn ranges(
    source: &SourceFile,
    mut each: impl FnMut(Range<u64>) -> Result<io::Result<()>, BackupError>,
) -> Result<io::Result<()>, BackupError> {
    if source.size() <= WITHOUT_HOLES {
        return each(0..source.size());
    }
    for range in source.data_ranges() {
        match range {
            Ok(range) => {
                if let Err(error) = each(range)? {
                    return Ok(Err(error));
                }
            }
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(()))
}

fn profile(shared: &Shared, job: &FileJob) -> Profile {
    let entry = &job.found.entry;
    shared.pipeline.profile.unwrap_or_else(|| Profile::guess(entry.path.as_bytes(), entry.size))
}

/// The parent's cuts help only where the same profile would make them again.
fn predictor(job: &mut FileJob, profile: Profile) -> Predictor {
    let same = job.parent_profile == profile;
    Predictor::new(if same { std::mem::take(&mut job.parent) } else { Vec::new() })
}

/// Cuts one file's content and passes it on in segments.
pub(super) struct Chunking<'a> {
    shared: &'a Shared,
    path: &'a EntryPath,
    profile: Profile,
    predictor: Predictor,
    segments: &'a Sender<Segment>,
    parts: &'a Sender<FilePart>,
    /// Bytes of content so far.
    pub(super) offset: u64,
}

impl<'a> Chunking<'a> {
    pub(super) const fn new(
        shared: &'a Shared,
        path: &'a EntryPath,
        profile: Profile,
        predictor: Predictor,
        segments: &'a Sender<Segment>,
        parts: &'a Sender<FilePart>,
    ) -> Self {
        Self { shared, path, profile, predictor, segments, parts, offset: 0 }
    }

    /// Cuts a whole small file.
    fn whole(&mut self, mut data: Vec<u8>) -> Result<(), BackupError> {
        let permit = self.shared.read_budget.take(data.len());
        let cuts = self.cut(&mut data, true).0;
        self.pass(data, cuts, permit)
    }

    /// Reads a run of `len` bytes, or up to where `read` gives none, and cuts it. `read`
    /// fills a buffer from an offset as far as it can.
    pub(super) fn run(
        &mut self,
        len: u64,
        read: &mut dyn FnMut(&mut [u8], u64) -> io::Result<usize>,
    ) -> Result<io::Result<()>, BackupError> {
        let mut left = len;
        let mut carry = Vec::new();
        let mut at = self.offset;
        loop {
            self.shared.check_cancelled()?;
            let permit = self.shared.read_budget.take(SEGMENT);
            let mut data = std::mem::take(&mut carry);
            let filled = data.len();
            data.resize(SEGMENT.min(filled.saturating_add(usize::try_from(left).unwrap_or(SEGMENT))), 0);
            let wanted = data.len() - filled;
            let got = match read(&mut data[filled..], at) {
                Ok(got) => got,
                Err(error) => return Ok(Err(error)),
            };
            self.shared.pipeline.progress.read.add(got as u64);
            data.truncate(filled + got);
            at += got as u64;
            left -= got as u64;
            let last = left == 0 || got < wanted;
            let (cuts, rest) = self.cut(&mut data, last);
            carry = rest;
            self.pass(data, cuts, permit)?;
            if last {
                return Ok(Ok(()));
            }
        }
    }

    /// Cuts `data` as far as the cuts are certain; what is left over is returned.
    fn cut(&mut self, data: &mut Vec<u8>, last: bool) -> (Vec<Cut>, Vec<u8>) {
        let Shared { pipeline, .. } = self.shared;
        let longest = pipeline.cutter.longest(self.profile);
        let mut cuts = Vec::with_capacity(data.len() / (32 << 10) + 1);
        let mut at = 0;
        while at < data.len() && (last || data.len() - at >= longest) {
            let end = data.len().min(at + longest);
            let last = last && end == data.len();
            let cut =
                self.predictor.cut(&pipeline.vault, &pipeline.cutter, self.profile, &data[at..end], self.offset, last);
            at += cut.len();
            self.offset += cut.len() as u64;
            cuts.push(cut);
        }
        let rest = data[at..].to_vec();
        data.truncate(at);
        (cuts, rest)
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
    fn pass(&self, data: Vec<u8>, cuts: Vec<Cut>, mut permit: Permit) -> Result<(), BackupError> {
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
                permit.shrink(data.len());
                let (pieces, sealing) = bounded(1);
                let segment = Segment { path: self.path.clone(), data, cuts, pieces, _permit: permit };
                self.segments.send(segment).map_err(|_| BackupError::Stopped)?;
                FilePart::Sealing(sealing)
            }
        };
        self.parts.send(part).map_err(|_| BackupError::Stopped)
    }
}
