//! What of a file is there already: hashed along the snapshot's chunk boundaries.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crossbeam_channel::Receiver;
use vsync_protocol::tree::Entry;

use super::file::FileTask;
use super::transfer::{Shared, lock};
use super::{RestoreError, moved};
use crate::chunk::is_zero;
use crate::tree::{Piece, Reference};
use crate::volume::{Staging, TargetFile};

/// Pieces compared before anything is done about them: 16 GiB of file, 25 MiB of memory.
const STRETCH: usize = 1 << 18;

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
    let len = job.entry.size;
    let existing = match job.existing {
        Existing::Nothing => None,
        Existing::Alone => target.update_file(&job.entry.path)?,
        Existing::Linked => match target.read_file(&job.entry.path)? {
            Some(file) => return keep_or_replace(shared, &job, file),
            None => None,
        },
    };
    let in_place = existing.is_some();
    let file = match existing {
        Some(file) => Some(file),
        // What an interrupted restore left is compared like an older version.
        None if FileTask::staging(len) == Staging::Resumable => {
            Some(target.create_file(&job.entry.path, Staging::Resumable)?)
        }
        None => None,
    };
    let compare = in_place || file.as_ref().is_some_and(TargetFile::is_resumed);
    let task = Arc::new(match file {
        Some(file) => FileTask::open(job.entry.clone(), len, file, in_place),
        None => FileTask::new(job.entry.clone(), len),
    });
    if compare { update(shared, &job, &task) } else { fill(shared, &job, &task) }
}

/// Asks for everything: there is nothing to compare with.
fn fill(shared: &Shared<'_>, job: &CompareJob, task: &Arc<FileTask>) -> Result<(), RestoreError> {
    let mut pieces = Pieces::of(job);
    while let Some((piece, offset)) = pieces.next() {
        if let Piece::Chunk(reference) = piece {
            shared.want(task, &reference, offset)?;
        }
    }
    pieces.end()?;
    shared.settle(task)
}

/// Asks for what differs.
fn update(shared: &Shared<'_>, job: &CompareJob, task: &Arc<FileTask>) -> Result<(), RestoreError> {
    let len = job.entry.size;
    let size = task.size()?;
    let mut comparison = Comparison { shared, buffer: Vec::new(), size };
    let mut pieces = Pieces::of(job);
    let mut survey = comparison.survey(task, &mut pieces)?;
    if survey.complete && rebuild(shared, job, task, &survey)? {
        return Ok(());
    }
    // What there is of very long files is compared and mended stretch by stretch.
    let mut changed = false;
    loop {
        if survey.differs() && !std::mem::replace(&mut changed, true) && task.is_in_place() {
            shared.changing_in_place(task.path());
        }
        task.punch_holes(&survey.holes)?;
        for (reference, offset) in &survey.here {
            task.will_have(&reference.cid, *offset);
        }
        for (reference, offset) in &survey.differing {
            shared.want(task, reference, *offset)?;
        }
        if survey.complete {
            break;
        }
        survey = comparison.survey(task, &mut pieces)?;
    }
    if changed || size != len || !task.is_in_place() {
        return shared.settle(task);
    }
    task.remember(&mut lock(&shared.known));
    unchanged(shared, &job.entry)
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

/// Leaves a file with further names alone if it is right. Else a new one replaces it, made
/// of what the old one has and what must be fetched.
fn keep_or_replace(shared: &Shared<'_>, job: &CompareJob, file: TargetFile) -> Result<(), RestoreError> {
    let len = job.entry.size;
    let old = Arc::new(FileTask::open(job.entry.clone(), len, file, true));
    let mut comparison = Comparison { shared, buffer: Vec::new(), size: old.size()? };
    let mut pieces = Pieces::of(job);
    let mut survey = comparison.survey(&old, &mut pieces)?;
    if survey.complete && !survey.differs() && comparison.size == len {
        return unchanged(shared, &job.entry);
    }
    let task = Arc::new(FileTask::open(job.entry.clone(), len, replacement(shared, job)?, false));
    moved::rebuild(shared, &old, &task, &survey, &HashMap::new())?;
    while !survey.complete {
        survey = comparison.survey(&old, &mut pieces)?;
        moved::rebuild(shared, &old, &task, &survey, &HashMap::new())?;
    }
    shared.settle(&task)
}

/// An empty file to take the place of the one that is there.
fn replacement(shared: &Shared<'_>, job: &CompareJob) -> Result<TargetFile, RestoreError> {
    let file = shared.restore.target.create_file(&job.entry.path, FileTask::staging(job.entry.size))?;
    // What an interrupted restore left may have data where the snapshot has holes.
    file.set_len(0)?;
    Ok(file)
}

/// Builds a file anew from its older version when content seems to have moved in it, if
/// there is room for both. Returns whether it did.
fn rebuild(shared: &Shared<'_>, job: &CompareJob, old: &Arc<FileTask>, survey: &Survey) -> Result<bool, RestoreError> {
    let all = survey.here.len() + survey.differing.len();
    let Some(cutter) = shared.restore.cutter.as_ref() else { return Ok(false) };
    if !old.is_in_place() || !moved::is_likely(survey.differing.len(), all) {
        return Ok(false);
    }
    if shared.restore.target.free_bytes()? < job.entry.size.saturating_mul(2) {
        return Ok(false);
    }
    let index = moved::index(shared, old, cutter)?;
    if !survey.differing.iter().any(|(reference, _)| index.contains_key(&reference.child.pid)) {
        return Ok(false);
    }
    let task = Arc::new(FileTask::open(job.entry.clone(), job.entry.size, replacement(shared, job)?, false));
    moved::rebuild(shared, old, &task, survey, &index)?;
    shared.settle(&task)?;
    Ok(true)
}

/// Counts what would be fetched, without touching anything.
fn estimate(shared: &Shared<'_>, job: &CompareJob) -> Result<(), RestoreError> {
    let file = match job.existing {
        Existing::Nothing => None,
        Existing::Alone | Existing::Linked => shared.restore.target.read_file(&job.entry.path)?,
    };
    let mut pieces = Pieces::of(job);
    let Some(file) = file else {
        let mut bytes = 0;
        while let Some((piece, _)) = pieces.next() {
            bytes += if matches!(piece, Piece::Chunk(_)) { piece.len() } else { 0 };
        }
        pieces.end()?;
        let mut report = lock(&shared.report);
        report.files_restored += 1;
        report.bytes_fetched += bytes;
        return Ok(());
    };
    let task = FileTask::open(job.entry.clone(), job.entry.size, file, true);
    let mut comparison = Comparison { shared, buffer: Vec::new(), size: task.size()? };
    let mut same = comparison.size == job.entry.size;
    let mut bytes = 0;
    loop {
        let survey = comparison.survey(&task, &mut pieces)?;
        same &= !survey.differs();
        bytes += survey.differing.iter().map(|(reference, _)| u64::from(reference.child.raw_len)).sum::<u64>();
        if survey.complete {
            break;
        }
    }
    let mut report = lock(&shared.report);
    report.bytes_fetched += bytes;
    *(if same { &mut report.files_unchanged } else { &mut report.files_restored }) += 1;
    Ok(())
}

/// What a stretch of a file has, compared with what it should have.
#[derive(Default)]
pub(super) struct Survey {
    /// Chunks that are where they should be.
    pub(super) here: Vec<(Reference, u64)>,
    /// Chunks that are not.
    pub(super) differing: Vec<(Reference, u64)>,
    /// Ranges that should be holes and are not all zero.
    pub(super) holes: Vec<Range<u64>>,
    /// The stretch reaches the file's end.
    complete: bool,
}

impl Survey {
    fn differs(&self) -> bool {
        !self.differing.is_empty() || !self.holes.is_empty()
    }
}

struct Comparison<'a, 'b> {
    shared: &'a Shared<'b>,
    buffer: Vec<u8>,
    size: u64,
}

impl Comparison<'_, '_> {
    /// Compares the next stretch.
    fn survey(&mut self, task: &FileTask, pieces: &mut Pieces<'_>) -> Result<Survey, RestoreError> {
        let mut survey = Survey::default();
        for _ in 0..STRETCH {
            match pieces.next() {
                None => {
                    pieces.end()?;
                    survey.complete = true;
                    break;
                }
                Some((Piece::Chunk(reference), offset)) => {
                    let same = self.holds(task, &reference, offset)?;
                    let list = if same { &mut survey.here } else { &mut survey.differing };
                    list.push((reference, offset));
                }
                Some((Piece::Hole(len), offset)) => {
                    if !self.is_zero(task, offset..offset + len)? {
                        survey.holes.push(offset..offset + len);
                    }
                }
            }
        }
        Ok(survey)
    }

    /// Whether the file has this chunk at this offset.
    fn holds(&mut self, task: &FileTask, reference: &Reference, offset: u64) -> Result<bool, RestoreError> {
        self.shared.check()?;
        let len = reference.child.raw_len as usize;
        if offset + len as u64 > self.size {
            return Ok(false);
        }
        self.buffer.resize(len, 0);
        let read = task.read_at(&mut self.buffer, offset)?;
        self.shared.restore.progress.read.add(read as u64);
        Ok(read == len && self.shared.restore.vault.pid(&self.buffer) == reference.child.pid)
    }

    /// Whether the file reads as zeros there, where it has anything at all.
    fn is_zero(&mut self, task: &FileTask, hole: Range<u64>) -> Result<bool, RestoreError> {
        for data in task.data_within(hole.start..hole.end.min(self.size))? {
            let mut at = data.start;
            while at < data.end {
                self.buffer.resize((data.end - at).min(1 << 20) as usize, 0);
                let read = task.read_at(&mut self.buffer, at)?;
                if read == 0 || !is_zero(&self.buffer[..read]) {
                    return Ok(false);
                }
                at += read as u64;
            }
        }
        Ok(true)
    }
}

/// A file's pieces with their offsets, as they come from the plan.
struct Pieces<'a> {
    job: &'a CompareJob,
    run: std::vec::IntoIter<Piece>,
    offset: u64,
}

impl<'a> Pieces<'a> {
    fn of(job: &'a CompareJob) -> Self {
        Self { job, run: Vec::new().into_iter(), offset: 0 }
    }

    fn next(&mut self) -> Option<(Piece, u64)> {
        loop {
            if let Some(piece) = self.run.next() {
                let offset = self.offset;
                self.offset += piece.len();
                return Some((piece, offset));
            }
            self.run = self.job.pieces.recv().ok()?.into_iter();
        }
    }

    /// A plan that broke off ends the pieces early.
    const fn end(&self) -> Result<(), RestoreError> {
        if self.offset == self.job.entry.size { Ok(()) } else { Err(RestoreError::Stopped) }
    }
}
