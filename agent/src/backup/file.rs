//! Reading files and cutting them.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use super::BackupError;
use super::ahead::{FileSupply, Order};
use super::chunking::Chunking;
use super::pipeline::{FilePart, Segment, Shared};
use super::predict::Predictor;
use crate::budget::Permit;
use crate::chunk::Profile;
use crate::tree::Piece;
use crate::volume::{Found, SourceFile};

/// Files up to this size are read whole before anything of them is passed on, so that one
/// that changes meanwhile can be read again.
const SMALL: u64 = 1 << 20;

/// Files up to this size are read in one go, whatever the kernel expects.
const UNADVISED: u64 = 128 << 10;

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

/// Where a reader's work goes on.
#[derive(Clone)]
pub(super) struct Next {
    /// To those who read large files ahead.
    pub(super) orders: Sender<Order>,
    /// To those who seal.
    pub(super) segments: Sender<Segment>,
}

/// Reads files until there are no more.
pub(super) fn work(shared: &Shared, queue: &Receiver<FileJob>, next: &Next) -> Result<(), BackupError> {
    for job in queue {
        shared.check_cancelled()?;
        read(shared, job, next)?;
    }
    Ok(())
}

fn read(shared: &Shared, mut job: FileJob, next: &Next) -> Result<(), BackupError> {
    let mut attempt = 1;
    loop {
        let (source, changed) = match open(shared, &mut job.found) {
            Ok(source) if source.size() > SMALL => return read_large(shared, job, source, next),
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
        return pass_small(shared, job, source.1, changed, &next.segments);
    }
}

fn open(shared: &Shared, found: &mut Found) -> Result<SourceFile, String> {
    let source = found.open().map_err(|defect| defect.reason.to_string())?;
    found.load_metadata().map_err(|defect| defect.reason.to_string())?;
    if source.size() > UNADVISED {
        source.advise();
    }
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
    let len = source.read_sparing(&mut data, 0)?;
    shared.pipeline.progress.read.add(len as u64);
    let changed = len < data.len() || source.changed();
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

fn read_large(shared: &Shared, mut job: FileJob, source: SourceFile, next: &Next) -> Result<(), BackupError> {
    let profile = profile(shared, &job);
    let predictor = predictor(&mut job, profile);
    let parts = job.parts.clone();
    let send = |part| parts.send(part).map_err(|_| BackupError::Stopped);
    send(FilePart::Entry(Box::new(job.found.entry.clone())))?;
    let source = Arc::new(source);
    let mut chunking = Chunking::new(shared, &job.found.entry.path, profile, predictor, &next.segments, &parts);
    let mut short = false;
    let outcome = ranges(&source, |range| {
        chunking.hole_up_to(range.start)?;
        let read = chunking.run(&mut FileSupply::new(shared, &source, &next.orders, range.clone()))?;
        short |= chunking.offset < range.end;
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
