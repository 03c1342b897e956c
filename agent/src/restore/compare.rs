//! What of a file is there already: hashed along the snapshot's chunk boundaries.

use std::ops::Range;
use std::sync::Arc;

use crossbeam_channel::Receiver;
use vsync_protocol::tree::Entry;

use super::RestoreError;
use super::file::FileTask;
use super::transfer::{Shared, lock};
use crate::chunk::is_zero;
use crate::tree::{Piece, Reference};
use crate::volume::{Staging, TargetFile};

/// A file whose content is to be brought about.
pub(super) struct CompareJob {
    pub(super) entry: Entry,
    /// The content, in runs.
    pub(super) pieces: Receiver<Vec<Piece>>,
    pub(super) existing: Existing,
}

/// What is at a file's place before the restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Existing {
    /// Nothing that helps.
    Nothing,
    /// A file with this one name: it may be changed where it is.
    Alone,
    /// A file with further names, which may be other files in the snapshot: it is kept if
    /// it is right, and else replaced.
    Linked,
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
    let path = &job.entry.path;
    let existing = match job.existing {
        Existing::Nothing => None,
        Existing::Alone => target.update_file(path)?,
        Existing::Linked => target.read_file(path)?,
    };
    match existing {
        Some(file) if job.existing == Existing::Linked => keep_or_replace(shared, job, &file),
        Some(file) => update(shared, job, file, Place::Final),
        None => create(shared, job),
    }
}

fn create(shared: &Shared<'_>, job: CompareJob) -> Result<(), RestoreError> {
    let len = job.entry.size;
    if FileTask::staging(len) == Staging::Unnamed {
        let task = Arc::new(FileTask::new(job.entry.clone(), len));
        return fill(shared, &job, &task);
    }
    let file = shared.restore.target.create_file(&job.entry.path, Staging::Resumable)?;
    if file.is_resumed() {
        // What an interrupted restore left is compared like an older version.
        return update(shared, job, file, Place::Staged);
    }
    let task = Arc::new(FileTask::open(job.entry.clone(), len, file, false));
    fill(shared, &job, &task)
}

/// Asks for everything: there is nothing to compare with.
fn fill(shared: &Shared<'_>, job: &CompareJob, task: &Arc<FileTask>) -> Result<(), RestoreError> {
    each_chunk(job, |reference, offset| shared.want(task, reference, offset), |_, _| Ok(()))?;
    shared.settle(task)
}

/// Keeps a file that has further names if it is right; those names are dealt with as links,
/// files or deletions of their own.
fn keep_or_replace(shared: &Shared<'_>, job: CompareJob, file: &TargetFile) -> Result<(), RestoreError> {
    let mut chunks = Vec::new();
    let seen = look(shared, &job, file, |reference, offset, _| chunks.push((*reference, offset)))?;
    if seen.same {
        return unchanged(shared, &job.entry);
    }
    let len = job.entry.size;
    let new = shared.restore.target.create_file(&job.entry.path, FileTask::staging(len))?;
    // Of what an interrupted restore left nothing is known: its holes may not be ours.
    new.set_len(0)?;
    let task = Arc::new(FileTask::open(job.entry, len, new, false));
    chunks.iter().try_for_each(|(reference, offset)| shared.want(&task, reference, *offset))?;
    shared.settle(&task)
}

/// Where a file is changed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Under its own name.
    Final,
    /// Under the name of a restore that was interrupted.
    Staged,
}

/// Asks for what differs.
fn update(shared: &Shared<'_>, job: CompareJob, file: TargetFile, place: Place) -> Result<(), RestoreError> {
    let len = job.entry.size;
    // Found out in one pass over the old content, before any of it is overwritten.
    let mut differing = Vec::new();
    let seen = look(shared, &job, &file, |reference, offset, held| {
        if !held {
            differing.push((*reference, offset));
        }
    })?;
    let in_place = place == Place::Final;
    if seen.same && in_place {
        return unchanged(shared, &job.entry);
    }
    if in_place {
        shared.changing_in_place(&job.entry.path);
    }
    for hole in seen.holes {
        file.punch_hole(hole)?;
    }
    if seen.size != len {
        file.set_len(len)?;
    }
    let task = Arc::new(FileTask::open(job.entry, len, file, in_place));
    for (reference, offset) in differing {
        shared.want(&task, &reference, offset)?;
    }
    shared.settle(&task)
}

/// Nothing but metadata can differ.
fn unchanged(shared: &Shared<'_>, entry: &Entry) -> Result<(), RestoreError> {
    let unrestored = shared.restore.target.apply_metadata(entry)?;
    let mut report = lock(&shared.report);
    report.files_unchanged += 1;
    report.unrestored.extend(unrestored);
    drop(report);
    shared.restore.progress.entries.add(1);
    shared.restore.progress.bytes.add(entry.size);
    Ok(())
}

/// Counts what would be fetched, without touching anything.
fn estimate(shared: &Shared<'_>, job: &CompareJob) -> Result<(), RestoreError> {
    let existing = match job.existing {
        Existing::Nothing => None,
        Existing::Alone | Existing::Linked => shared.restore.target.read_file(&job.entry.path)?,
    };
    let (mut all, mut differing) = (0, 0);
    let mut count = |reference: &Reference, held: bool| {
        let len = u64::from(reference.child.raw_len);
        all += len;
        differing += if held { 0 } else { len };
    };
    let same = match existing {
        Some(file) => look(shared, job, &file, |reference, _, held| count(reference, held))?.same,
        None => {
            each_chunk(job, |reference, _| Ok(count(reference, false)), |_, _| Ok(()))?;
            false
        }
    };
    let mut report = lock(&shared.report);
    match (same, job.existing) {
        (true, _) => report.files_unchanged += 1,
        (false, Existing::Alone) => {
            report.files_restored += 1;
            report.bytes_fetched += differing;
        }
        // A linked file is replaced as a whole.
        (false, Existing::Linked | Existing::Nothing) => {
            report.files_restored += 1;
            report.bytes_fetched += all;
        }
    }
    Ok(())
}

/// What comparing a file with the snapshot came to.
struct Seen {
    same: bool,
    /// Bytes that it has now.
    size: u64,
    /// Where the snapshot's file has holes.
    holes: Vec<Range<u64>>,
}

/// Compares a file with the snapshot, and tells for each chunk whether it is there.
fn look(
    shared: &Shared<'_>,
    job: &CompareJob,
    file: &TargetFile,
    mut each: impl FnMut(&Reference, u64, bool),
) -> Result<Seen, RestoreError> {
    let mut comparison = Comparison { shared, buffer: Vec::new(), size: file.size()? };
    let mut holes = Vec::new();
    let mut all_held = true;
    each_chunk(
        job,
        |reference, offset| {
            let held = comparison.holds(file, reference, offset)?;
            all_held &= held;
            each(reference, offset, held);
            Ok(())
        },
        |len, offset| {
            holes.push(offset..offset + len);
            Ok(())
        },
    )?;
    let size = comparison.size;
    let same = all_held && size == job.entry.size && comparison.all_zero(file, &holes)?;
    Ok(Seen { same, size, holes })
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
    fn all_zero(&mut self, file: &TargetFile, holes: &[Range<u64>]) -> Result<bool, RestoreError> {
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
