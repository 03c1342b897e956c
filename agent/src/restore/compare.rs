//! What of a file is there already: hashed along the snapshot's chunk boundaries.

use std::sync::Arc;

use crossbeam_channel::Receiver;
use vsync_protocol::tree::Entry;

use super::RestoreError;
use super::file::FileTask;
use super::transfer::{Shared, lock};
use crate::chunk::is_zero;
use crate::tree::{Piece, Reference};
use crate::volume::TargetFile;

/// A file whose content is to be brought about.
pub(super) struct CompareJob {
    pub(super) entry: Entry,
    /// The content, in runs.
    pub(super) pieces: Receiver<Vec<Piece>>,
    /// Whether there is a file at this path.
    pub(super) exists: bool,
}

/// Deals with files until there are no more.
pub(super) fn work(shared: &Shared<'_>, queue: &Receiver<CompareJob>) -> Result<(), RestoreError> {
    for job in queue {
        shared.check()?;
        if shared.restore.options.dry_run {
            estimate(shared, &job)?;
        } else {
            restore(shared, job)?;
        }
    }
    Ok(())
}

fn restore(shared: &Shared<'_>, job: CompareJob) -> Result<(), RestoreError> {
    let target = &shared.restore.target;
    let len = job.entry.size;
    let existing = if job.exists { target.update_file(&job.entry.path)? } else { None };
    let in_place = existing.is_some();
    let file = match existing {
        Some(file) => Some(file),
        // What an interrupted restore left is compared like an older version.
        None if FileTask::staging(len) == crate::volume::Staging::Resumable => {
            Some(target.create_file(&job.entry.path, crate::volume::Staging::Resumable)?)
        }
        None => None,
    };
    match file {
        Some(file) if in_place || file.is_resumed() => update(shared, job, file, in_place),
        Some(file) => fill(shared, &job, &Arc::new(FileTask::open(job.entry.clone(), len, file, false))),
        None => fill(shared, &job, &Arc::new(FileTask::new(job.entry.clone(), len))),
    }
}

/// Asks for everything: there is nothing to compare with.
fn fill(shared: &Shared<'_>, job: &CompareJob, task: &Arc<FileTask>) -> Result<(), RestoreError> {
    each_chunk(job, |reference, offset| shared.want(task, reference, offset), |_, _| Ok(()))?;
    shared.settle(task)
}

/// Asks for what differs.
fn update(shared: &Shared<'_>, job: CompareJob, file: TargetFile, in_place: bool) -> Result<(), RestoreError> {
    let len = job.entry.size;
    let mut comparison = Comparison { shared, buffer: Vec::new(), size: file.size()? };
    // Found out in one pass over the old content, before any of it is overwritten.
    let mut differing = Vec::new();
    let mut holes = Vec::new();
    each_chunk(
        &job,
        |reference, offset| {
            if !comparison.holds(&file, reference, offset)? {
                differing.push((*reference, offset));
            }
            Ok(())
        },
        |len, offset| {
            holes.push(offset..offset + len);
            Ok(())
        },
    )?;
    let unchanged = differing.is_empty() && comparison.size == len && comparison.all_zero(&file, &holes)?;
    if unchanged && in_place {
        let unrestored = shared.restore.target.apply_metadata(&job.entry)?;
        let mut report = lock(&shared.report);
        report.files_unchanged += 1;
        report.unrestored.extend(unrestored);
        drop(report);
        shared.restore.progress.entries.add(1);
        shared.restore.progress.bytes.add(len);
        return Ok(());
    }
    if in_place {
        shared.changing_in_place(&job.entry.path);
    }
    for hole in holes {
        file.punch_hole(hole)?;
    }
    if comparison.size != len {
        file.set_len(len)?;
    }
    let task = Arc::new(FileTask::open(job.entry, len, file, in_place));
    for (reference, offset) in differing {
        shared.want(&task, &reference, offset)?;
    }
    shared.settle(&task)
}

/// Counts what would be fetched, without touching anything.
fn estimate(shared: &Shared<'_>, job: &CompareJob) -> Result<(), RestoreError> {
    let file = if job.exists { shared.restore.target.read_file(&job.entry.path)? } else { None };
    let Some(file) = file else {
        let mut bytes = 0;
        each_chunk(
            job,
            |reference, _| {
                bytes += u64::from(reference.child.raw_len);
                Ok(())
            },
            |_, _| Ok(()),
        )?;
        let mut report = lock(&shared.report);
        report.files_restored += 1;
        report.bytes_fetched += bytes;
        return Ok(());
    };
    let mut comparison = Comparison { shared, buffer: Vec::new(), size: file.size()? };
    let mut bytes = 0;
    let mut holes = Vec::new();
    each_chunk(
        job,
        |reference, offset| {
            if !comparison.holds(&file, reference, offset)? {
                bytes += u64::from(reference.child.raw_len);
            }
            Ok(())
        },
        |len, offset| {
            holes.push(offset..offset + len);
            Ok(())
        },
    )?;
    let same = bytes == 0 && comparison.size == job.entry.size && comparison.all_zero(&file, &holes)?;
    let mut report = lock(&shared.report);
    report.bytes_fetched += bytes;
    *(if same { &mut report.files_unchanged } else { &mut report.files_restored }) += 1;
    Ok(())
}

struct Comparison<'a, 'b> {
    shared: &'a Shared<'b>,
    buffer: Vec<u8>,
    size: u64,
}

impl Comparison<'_, '_> {
    /// Whether the file has this chunk at this offset.
    fn holds(&mut self, file: &TargetFile, reference: &Reference, offset: u64) -> Result<bool, RestoreError> {
        self.shared.check()?;
        let len = reference.child.raw_len as usize;
        if offset + len as u64 > self.size {
            return Ok(false);
        }
        self.buffer.resize(len, 0);
        let read = file.read_at(&mut self.buffer, offset)?;
        self.shared.restore.progress.read.add(read as u64);
        Ok(read == len && self.shared.restore.vault.pid(&self.buffer) == reference.child.pid)
    }

    /// Whether the file reads as zeros there, where it has anything at all.
    fn all_zero(&mut self, file: &TargetFile, holes: &[std::ops::Range<u64>]) -> Result<bool, RestoreError> {
        for hole in holes {
            for data in file.data_within(hole.clone())? {
                let mut at = data.start;
                while at < data.end {
                    self.buffer.resize((data.end - at).min(1 << 20) as usize, 0);
                    let read = file.read_at(&mut self.buffer, at)?;
                    if read == 0 || !is_zero(&self.buffer[..read]) {
                        return Ok(false);
                    }
                    at += read as u64;
                }
            }
        }
        Ok(true)
    }
}

/// Goes through a file's chunks and holes with their offsets.
fn each_chunk(
    job: &CompareJob,
    mut chunk: impl FnMut(&Reference, u64) -> Result<(), RestoreError>,
    mut hole: impl FnMut(u64, u64) -> Result<(), RestoreError>,
) -> Result<(), RestoreError> {
    let mut offset = 0;
    for piece in job.pieces.iter().flatten() {
        match piece {
            Piece::Chunk(reference) => chunk(&reference, offset)?,
            Piece::Hole(len) => hole(len, offset)?,
        }
        offset += piece.len();
    }
    // A plan that broke off ends the stream of pieces early.
    if offset == job.entry.size { Ok(()) } else { Err(RestoreError::Stopped) }
}
