//! A file on its way back: its chunks arrive in any order, on any thread.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use vsync_protocol::id::Cid;
use vsync_protocol::tree::{Entry, EntryPath};

use super::compare::CompareJob;
use super::known::{Chunks, KnownChunks};
use super::record::FileRecord;
use crate::progress::Counter;
use crate::volume::{Placed, Staging, State, Target, TargetError, TargetFile};

/// Larger files keep what was written when the restore is interrupted.
const RESUMABLE_FROM: u64 = 16 << 20;

/// How much of a file's content has been dealt with.
pub(super) struct Counted {
    len: u64,
    done: AtomicU64,
}

impl Counted {
    pub(super) const fn new(len: u64) -> Self {
        Self { len, done: AtomicU64::new(0) }
    }

    /// Counts bytes that were written, or found right. What is looked at twice counts once: a file
    /// never adds more to `total` than it has.
    pub(super) fn add(&self, bytes: u64, total: &Counter) {
        let counted = |done: u64| Some(done.saturating_add(bytes).min(self.len));
        let before = self.done.fetch_update(Ordering::Relaxed, Ordering::Relaxed, counted).unwrap_or(self.len);
        total.add(bytes.min(self.len - before));
    }

    /// Counts all that is not counted yet: the file is done.
    pub(super) fn finish(&self, total: &Counter) {
        self.add(u64::MAX, total);
    }
}

/// A file that is being written.
pub(super) struct FileTask {
    pub(super) entry: Entry,
    /// Which file of the snapshot it is, counted in path order.
    number: u64,
    /// Shared with what is known of the older version.
    pub(super) counted: Arc<Counted>,
    file: RwLock<Option<TargetFile>>,
    in_place: bool,
    /// Bytes that the file has in the end.
    len: u64,
    /// Chunks still to come, and one for as long as more may be asked for.
    outstanding: AtomicUsize,
    failed: AtomicBool,
    /// What it will have, for files that need the same.
    chunks: Mutex<Chunks>,
    /// Digests of all that it will have.
    content: Mutex<Vec<u8>>,
}

/// What became of a file.
pub(super) enum Outcome {
    Restored(Placed),
    /// It is not complete; a new file has no name then.
    Failed,
}

impl FileTask {
    /// A file that does not exist yet; it is created when its first chunk comes.
    pub(super) fn new(job: &CompareJob) -> Self {
        Self::with(job, None, false)
    }

    /// A file that is open already.
    pub(super) fn open(job: &CompareJob, file: TargetFile, in_place: bool) -> Self {
        Self::with(job, Some(file), in_place)
    }

    fn with(job: &CompareJob, file: Option<TargetFile>, in_place: bool) -> Self {
        Self {
            len: job.entry.size,
            entry: job.entry.clone(),
            number: job.number,
            counted: job.counted.clone(),
            file: RwLock::new(file),
            in_place,
            outstanding: AtomicUsize::new(1),
            failed: AtomicBool::new(false),
            chunks: Mutex::new(Chunks::new()),
            content: Mutex::new(Vec::new()),
        }
    }

    /// How a file of this length comes about.
    pub(super) const fn staging(len: u64) -> Staging {
        if len >= RESUMABLE_FROM { Staging::Resumable } else { Staging::Unnamed }
    }

    /// Notes that the file will have this chunk there.
    pub(super) fn will_have(&self, cid: &Cid, offset: u64) {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner).push(cid, offset);
    }

    /// Makes known what the file, now complete, has.
    pub(super) fn remember(&self, known: &mut KnownChunks) {
        known.insert(&self.entry.path, &self.chunks.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Notes what stands for the file's whole content. Before it can become complete.
    pub(super) fn set_content(&self, digests: Vec<u8>) {
        *self.content.lock().unwrap_or_else(PoisonError::into_inner) = digests;
    }

    /// What a later restore may know of the file, now complete.
    pub(super) fn kept(&self, placed: &Placed) -> (u64, Option<FileRecord>) {
        let content = std::mem::take(&mut *self.content.lock().unwrap_or_else(PoisonError::into_inner));
        (self.number, Some(FileRecord::of(&self.entry, placed, content)))
    }

    pub(super) const fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn expect_chunk(&self) {
        self.outstanding.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) const fn is_in_place(&self) -> bool {
        self.in_place
    }

    pub(super) const fn path(&self) -> &EntryPath {
        &self.entry.path
    }

    /// The file will not become complete. Returns whether that is news.
    pub(super) fn fail(&self) -> bool {
        !self.failed.swap(true, Ordering::Relaxed)
    }

    pub(super) fn write(&self, target: &Target, data: &[u8], offset: u64) -> Result<(), TargetError> {
        {
            let file = self.file.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(file) = &*file {
                return file.write_at(data, offset);
            }
        }
        self.create(target)?;
        let file = self.file.read().unwrap_or_else(PoisonError::into_inner);
        file.as_ref().map_or(Ok(()), |file| file.write_at(data, offset))
    }

    /// Reads from a file that is open already, as [`TargetFile::read_at`].
    pub(super) fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, TargetError> {
        self.with_file(|file| file.read_at(buffer, offset))
    }

    /// As [`TargetFile::state`]; none of a file that is not open.
    pub(super) fn state(&self) -> Result<Option<State>, TargetError> {
        self.with_file(|file| file.state().map(Some))
    }

    /// Bytes in a file that is open already.
    pub(super) fn size(&self) -> Result<u64, TargetError> {
        Ok(self.state()?.map_or(0, |state| state.size))
    }

    /// As [`TargetFile::data_within`].
    pub(super) fn data_within(&self, range: Range<u64>) -> Result<Vec<Range<u64>>, TargetError> {
        self.with_file(|file| file.data_within(range))
    }

    /// As [`TargetFile::shift`].
    pub(super) fn shift(&self, offset: u64, len: i64) -> Result<bool, TargetError> {
        self.with_file(|file| file.shift(offset, len))
    }

    /// Makes ranges of a file that is open already read as zeros.
    pub(super) fn punch_holes(&self, holes: &[Range<u64>]) -> Result<(), TargetError> {
        self.with_file(|file| holes.iter().try_for_each(|hole| file.punch_hole(hole.clone())))
    }

    fn with_file<T: Default>(
        &self,
        work: impl FnOnce(&TargetFile) -> Result<T, TargetError>,
    ) -> Result<T, TargetError> {
        let file = self.file.read().unwrap_or_else(PoisonError::into_inner);
        file.as_ref().map_or_else(|| Ok(T::default()), work)
    }

    fn create(&self, target: &Target) -> Result<(), TargetError> {
        let mut file = self.file.write().unwrap_or_else(PoisonError::into_inner);
        if file.is_none() {
            *file = Some(target.create_file(&self.entry.path, Self::staging(self.len))?);
        }
        Ok(())
    }

    /// One chunk less to come, or no more to be asked for. The last one finishes the file.
    pub(super) fn settle(&self, target: &Target) -> Result<Option<Outcome>, TargetError> {
        if self.outstanding.fetch_sub(1, Ordering::AcqRel) > 1 {
            return Ok(None);
        }
        if !self.failed.load(Ordering::Relaxed) {
            self.create(target)?;
        }
        let file = self.file.write().unwrap_or_else(PoisonError::into_inner).take();
        let Some(file) = file else { return Ok(Some(Outcome::Failed)) };
        if self.failed.load(Ordering::Relaxed) {
            file.discard(target)?;
            return Ok(Some(Outcome::Failed));
        }
        file.finish(target, &self.entry).map(|placed| Some(Outcome::Restored(placed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_of_a_file_counts_once() {
        let total = Counter::default();
        let counted = Counted::new(100);
        for (bytes, all) in [(30, 30), (0, 30), (50, 80), (50, 100), (1, 100)] {
            counted.add(bytes, &total);
            assert_eq!(total.get(), all);
        }
        counted.finish(&total);
        Counted::new(7).finish(&total);
        Counted::new(0).finish(&total);
        assert_eq!(total.get(), 107);
    }
}
