//! What is done about a file, given what of it is there already.

use std::collections::HashMap;
use std::sync::Arc;

use crossbeam_channel::Receiver;
use vsync_protocol::tree::Entry;

use super::changes::Property;
use super::file::{Counted, FileTask};
use super::inspect::Inspector;
use super::known::Chunks;
use super::moved::{self, Search};
use super::pieces::{GROUP, Pieces};
use super::record::FileRecord;
use super::survey::{Comparison, STRETCH, Survey};
use super::transfer::{Transfer, lock};
use super::{RestoreError, record};
use crate::tree::Piece;
use crate::volume::{Staging, State, TargetFile};

/// A file whose content is to be brought about.
pub(super) struct CompareJob {
    pub(super) entry: Entry,
    /// Which file of the snapshot it is, counted in path order.
    pub(super) number: u64,
    /// How much of the content has been dealt with.
    pub(super) counted: Arc<Counted>,
    /// The content, in runs.
    pub(super) pieces: Receiver<Vec<Piece>>,
    pub(super) place: FilePlace,
}

/// A file's place before the restore.
pub(super) struct FilePlace {
    pub(super) existing: Existing,
    /// What is known of the existing file, which nobody touched since.
    pub(super) kept: Option<FileRecord>,
    /// In a dry run, what differs besides the content; none if nothing is there, which has been noted.
    pub(super) differing: Option<Vec<Property>>,
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
pub(super) fn work(shared: &Transfer<'_>, queue: &Receiver<CompareJob>) -> Result<(), RestoreError> {
    let mut changes = Inspector::default();
    for job in queue {
        shared.check()?;
        if shared.restore.options.dry_run {
            estimate(shared, job, &mut changes)?;
        } else {
            restore(shared, job)?;
        }
    }
    lock(&shared.changes).push(changes.finish());
    Ok(())
}

fn restore(shared: &Transfer<'_>, job: CompareJob) -> Result<(), RestoreError> {
    let target = &shared.restore.target;
    let mut pieces = Pieces::new(&job.pieces, job.entry.size);
    if let Some(kept) = &job.place.kept
        && pieces.are(&kept.content, STRETCH / GROUP)?
    {
        return untouched(shared, &job, kept, &mut pieces);
    }
    let existing = match job.place.existing {
        Existing::Nothing => None,
        Existing::Alone => target.update_file(&job.entry.path)?,
        Existing::Linked => match target.read_file(&job.entry.path)? {
            Some(file) => return keep_or_replace(shared, &job, &mut pieces, file),
            None => None,
        },
    };
    let in_place = existing.is_some();
    let file = match existing {
        Some(file) => Some(file),
        // What an interrupted restore left is compared like an older version.
        None if FileTask::staging(job.entry.size) == Staging::Resumable => {
            Some(target.create_file(&job.entry.path, Staging::Resumable)?)
        }
        None => None,
    };
    let compare = in_place || file.as_ref().is_some_and(TargetFile::is_resumed);
    let task = Arc::new(match file {
        Some(file) => FileTask::open(&job, file, in_place),
        None => FileTask::new(&job),
    });
    if compare { update(shared, &job, &mut pieces, &task) } else { fill(shared, &mut pieces, &task) }
}

/// Asks for everything: there is nothing to compare with.
fn fill(shared: &Transfer<'_>, pieces: &mut Pieces<'_>, task: &Arc<FileTask>) -> Result<(), RestoreError> {
    while let Some(group) = pieces.next_group()? {
        for (piece, offset) in group.pieces {
            match piece {
                Piece::Chunk(reference) => shared.want(task, &reference, offset)?,
                Piece::Hole(len) => shared.count(task, len),
            }
        }
    }
    task.set_content(pieces.content());
    shared.settle(task)
}

/// Asks for what differs.
fn update(
    shared: &Transfer<'_>,
    job: &CompareJob,
    pieces: &mut Pieces<'_>,
    task: &Arc<FileTask>,
) -> Result<(), RestoreError> {
    let seen = task.state()?;
    let mut comparison = Comparison::of(shared, task, job.place.kept.as_ref())?;
    let mut survey = comparison.survey(pieces)?;
    let mut changed = false;
    if survey.complete {
        let index = find_moved(shared, task, &survey, Search::Shift)?;
        changed = comparison.shift(&mut survey, &index.places)?;
        if !changed && rebuild(shared, job, pieces, task, &survey, index)? {
            return Ok(());
        }
    }
    // What there is of very long files is compared and mended stretch by stretch.
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
        survey = comparison.survey(pieces)?;
    }
    if changed || comparison.size != job.entry.size || !task.is_in_place() {
        task.set_content(pieces.content());
        return shared.settle(task);
    }
    task.remember(&mut lock(&shared.known));
    unchanged(shared, job, seen, pieces.content())
}

/// The file is what a restore left, and what is to be restored now.
fn untouched(
    shared: &Transfer<'_>,
    job: &CompareJob,
    kept: &FileRecord,
    pieces: &mut Pieces<'_>,
) -> Result<(), RestoreError> {
    let mut chunks = Chunks::new();
    while let Some(group) = pieces.next_group()? {
        for (piece, offset) in group.pieces {
            if let Piece::Chunk(reference) = piece {
                chunks.push(&reference.cid, offset);
            }
        }
    }
    lock(&shared.known).insert(&job.entry.path, &chunks);
    if kept.attributes == record::attributes(&job.entry) {
        shared.done(job.number, job.place.kept.clone());
        return count_unchanged(shared, job);
    }
    let seen = State { inode: kept.inode, ctime: kept.ctime, size: job.entry.size };
    unchanged(shared, job, Some(seen), pieces.content())
}

/// Nothing but metadata can differ. `seen` is the file's state before its content was looked
/// at, which `content` stands for.
fn unchanged(
    shared: &Transfer<'_>,
    job: &CompareJob,
    seen: Option<State>,
    content: Vec<u8>,
) -> Result<(), RestoreError> {
    let placed = shared.restore.target.apply_metadata(&job.entry)?;
    // Of one that somebody changed meanwhile, nothing is known.
    let kept = (seen == Some(placed.before)).then(|| FileRecord::of(&job.entry, &placed, content));
    shared.done(job.number, kept);
    lock(&shared.report).unrestored.extend(placed.unrestored);
    count_unchanged(shared, job)
}

fn count_unchanged(shared: &Transfer<'_>, job: &CompareJob) -> Result<(), RestoreError> {
    lock(&shared.report).files_unchanged += 1;
    count_done(shared, job);
    Ok(())
}

fn count_done(shared: &Transfer<'_>, job: &CompareJob) {
    shared.restore.progress.entries.add(1);
    job.counted.finish(&shared.restore.progress.bytes);
}

/// Leaves a file with further names alone if it is right. Else a new one replaces it, made
/// of what the old one has and what must be fetched.
fn keep_or_replace(
    shared: &Transfer<'_>,
    job: &CompareJob,
    pieces: &mut Pieces<'_>,
    file: TargetFile,
) -> Result<(), RestoreError> {
    let old = Arc::new(FileTask::open(job, file, true));
    let seen = old.state()?;
    let mut comparison = Comparison::of(shared, &old, job.place.kept.as_ref())?;
    let mut survey = comparison.survey(pieces)?;
    if survey.complete && !survey.differs() && comparison.size == job.entry.size {
        return unchanged(shared, job, seen, pieces.content());
    }
    let task = Arc::new(FileTask::open(job, replacement(shared, job)?, false));
    moved::rebuild(shared, &old, &task, &survey, &HashMap::new())?;
    while !survey.complete {
        survey = comparison.survey(pieces)?;
        moved::rebuild(shared, &old, &task, &survey, &HashMap::new())?;
    }
    task.set_content(pieces.content());
    shared.settle(&task)
}

/// An empty file to take the place of the one that is there.
fn replacement(shared: &Transfer<'_>, job: &CompareJob) -> Result<TargetFile, RestoreError> {
    let file = shared.restore.target.create_file(&job.entry.path, FileTask::staging(job.entry.size))?;
    // What an interrupted restore left may have data where the snapshot has holes.
    file.set_len(0)?;
    Ok(file)
}

/// Where a file has content that seems to have moved in it.
fn find_moved(
    shared: &Transfer<'_>,
    old: &FileTask,
    survey: &Survey,
    search: Search,
) -> Result<moved::Index, RestoreError> {
    let all = survey.here.len() + survey.differing.len();
    match &shared.restore.cutter {
        Some(cutter) if old.is_in_place() && moved::is_likely(survey.differing.len(), all) => {
            moved::index(shared, old, cutter, survey, search)
        }
        _ => Ok(moved::Index { complete: true, ..moved::Index::default() }),
    }
}

/// Builds a file anew from its older version when content seems to have moved in it, if
/// there is room for both. Returns whether it did.
fn rebuild(
    shared: &Transfer<'_>,
    job: &CompareJob,
    pieces: &mut Pieces<'_>,
    old: &Arc<FileTask>,
    survey: &Survey,
    mut index: moved::Index,
) -> Result<bool, RestoreError> {
    let found = |index: &moved::Index| {
        survey.differing.iter().any(|(reference, _)| index.places.contains_key(&reference.child.pid))
    };
    if !found(&index) || shared.restore.target.free_bytes()? < job.entry.size.saturating_mul(2) {
        return Ok(false);
    }
    if !index.complete {
        index = find_moved(shared, old, survey, Search::Everything)?;
    }
    let task = Arc::new(FileTask::open(job, replacement(shared, job)?, false));
    moved::rebuild(shared, old, &task, survey, &index.places)?;
    task.set_content(pieces.content());
    shared.settle(&task)?;
    Ok(true)
}

/// Counts what would be fetched, without touching anything, and notes what differs.
fn estimate(shared: &Transfer<'_>, job: CompareJob, changes: &mut Inspector) -> Result<(), RestoreError> {
    let file = match job.place.existing {
        Existing::Nothing => None,
        Existing::Alone | Existing::Linked => shared.restore.target.read_file(&job.entry.path)?,
    };
    let mut pieces = Pieces::new(&job.pieces, job.entry.size);
    let (same, bytes) = match file {
        Some(file) => missing(shared, &FileTask::open(&job, file, true), &mut pieces)?,
        None => (false, all(&mut pieces)?),
    };
    let mut report = lock(&shared.report);
    report.bytes_fetched += bytes;
    *(if same { &mut report.files_unchanged } else { &mut report.files_restored }) += 1;
    drop(report);
    count_done(shared, &job);
    let Some(mut differing) = job.place.differing else { return Ok(()) };
    // Of what is no file, there is no content that could differ.
    if !same && job.place.existing != Existing::Nothing {
        differing.insert(0, Property::Content);
    }
    changes.note(&job.entry.path, Some(differing)).map_err(RestoreError::Deferred)
}

/// Bytes of all chunks.
fn all(pieces: &mut Pieces<'_>) -> Result<u64, RestoreError> {
    let mut bytes = 0;
    while let Some(group) = pieces.next_group()? {
        let chunks = group.pieces.iter().filter(|(piece, _)| matches!(piece, Piece::Chunk(_)));
        bytes += chunks.map(|(piece, _)| piece.len()).sum::<u64>();
    }
    Ok(bytes)
}

/// Whether a file has all that it should, and the bytes of the chunks that it lacks.
fn missing(shared: &Transfer<'_>, task: &FileTask, pieces: &mut Pieces<'_>) -> Result<(bool, u64), RestoreError> {
    let mut comparison = Comparison::of(shared, task, None)?;
    let mut same = comparison.size == task.entry.size;
    let mut bytes = 0;
    loop {
        let survey = comparison.survey(pieces)?;
        same &= !survey.differs();
        bytes += survey.differing.iter().map(|(reference, _)| u64::from(reference.child.raw_len)).sum::<u64>();
        if survey.complete {
            return Ok((same, bytes));
        }
    }
}
