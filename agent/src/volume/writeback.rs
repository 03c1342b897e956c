//! How much of a restore may be in memory and not yet on disk.
//!
//! The kernel counts what was written and not yet stored as memory of whoever wrote it. Under
//! a limit on memory it does not always hold writers back (control groups of version 1 never
//! do), and then kills them: a file of 150 bytes takes a page, and a million of them take
//! 4 GiB. So the disk is set to work early, beside the restore, and a restore that is far
//! ahead of its disk waits for it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::fs::syncfs;
use rustix::io::{Errno, Result as SysResult};

use super::memory;
use super::sys::Directory;
use super::target::TargetError;

/// Bytes after which the disk is set to work. As much again may be written meanwhile; then
/// writers wait. Each time costs a commit of the journal and a flush of the disk, a tenth of a
/// second on many: so there are few of them where there is memory.
const LEAST_BUDGET: u64 = 32 << 20;
const MOST_BUDGET: u64 = 256 << 20;

/// This part of the memory that the process may have.
const PART: u64 = 32;

/// What one entry adds to the memory that only the disk sets free: its inode, its place in
/// the inode table and in a directory.
const ENTRY: u64 = 2 << 10;

/// Memory comes in pages.
const PAGE: u64 = 4 << 10;

/// Counts what is not on disk yet, and brings it there.
pub(super) struct Writeback {
    /// The target, for errors.
    path: PathBuf,
    shared: Arc<Storing>,
}

struct Storing {
    /// Brings everything to disk that was written so far.
    store: Box<dyn Fn() -> SysResult<()> + Send + Sync>,
    /// Between [`LEAST_BUDGET`] and [`MOST_BUDGET`].
    budget: u64,
    state: Mutex<State>,
    stored: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes written since storing last began.
    dirty: u64,
    /// Whether a thread is storing what had been written before.
    storing: bool,
    /// What went wrong in it. The kernel reports such an error once.
    failed: Option<Errno>,
}

impl fmt::Debug for Writeback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Writeback").field(&self.shared.lock()).finish()
    }
}

impl Writeback {
    /// For the file system that the target `root`, at `path`, is on.
    pub(super) fn of(path: &Path, root: Arc<Directory>) -> Self {
        let budget = memory::granted().map_or(LEAST_BUDGET, |bytes| (bytes / PART).clamp(LEAST_BUDGET, MOST_BUDGET));
        Self::new(path, budget, move || syncfs(&root))
    }

    fn new(path: &Path, budget: u64, store: impl Fn() -> SysResult<()> + Send + Sync + 'static) -> Self {
        let (state, stored) = (Mutex::default(), Condvar::new());
        Self { path: path.to_owned(), shared: Arc::new(Storing { store: Box::new(store), budget, state, stored }) }
    }

    /// Counts entries made, changed or removed.
    ///
    /// # Errors
    /// As [`dirtied`](Self::dirtied).
    pub(super) fn touched(&self, entries: u64) -> Result<(), TargetError> {
        self.dirtied(entries.saturating_mul(ENTRY))
    }

    /// Counts `len` bytes written at `offset`, in pages.
    ///
    /// # Errors
    /// As [`dirtied`](Self::dirtied).
    pub(super) fn wrote(&self, offset: u64, len: usize) -> Result<(), TargetError> {
        let end = offset.saturating_add(len as u64).next_multiple_of(PAGE);
        self.dirtied(end - offset / PAGE * PAGE)
    }

    /// Counts `bytes` that are not on disk yet. Waits when the disk is too far behind.
    ///
    /// # Errors
    /// When something that was written before could not be stored.
    fn dirtied(&self, bytes: u64) -> Result<(), TargetError> {
        let mut state = self.shared.lock();
        state.dirty += bytes;
        while state.storing && state.dirty >= self.shared.budget {
            state = self.shared.wait(state);
        }
        let outcome = self.outcome(&state);
        // Of several writers that waited here, the first one begins anew.
        if state.dirty < self.shared.budget || outcome.is_err() {
            return outcome;
        }
        state.dirty = 0;
        state.storing = true;
        drop(state);
        let shared = self.shared.clone();
        if thread::Builder::new().name("writeback".into()).spawn(move || shared.store()).is_err() {
            self.shared.store();
        }
        Ok(())
    }

    /// Stores everything, and waits for it.
    ///
    /// # Errors
    /// When something could not be stored, now or earlier.
    pub(super) fn finish(&self) -> Result<(), TargetError> {
        let mut state = self.shared.lock();
        while state.storing {
            state = self.shared.wait(state);
        }
        state.storing = true;
        state.dirty = 0;
        drop(state);
        self.shared.store();
        self.outcome(&self.shared.lock())
    }

    fn outcome(&self, state: &State) -> Result<(), TargetError> {
        let failed = |source| TargetError::Root { path: self.path.clone(), operation: "write to disk", source };
        state.failed.map_or(Ok(()), |source| Err(failed(source)))
    }
}

impl Storing {
    /// Stores what has been written so far.
    fn store(&self) {
        let outcome = (self.store)();
        let mut state = self.lock();
        state.storing = false;
        if let (None, Err(error)) = (state.failed, outcome) {
            state.failed = Some(error);
        }
        drop(state);
        self.stored.notify_all();
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.stored.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use crossbeam_channel::bounded;

    use super::*;

    const BUDGET: u64 = LEAST_BUDGET;

    #[test]
    fn storing_goes_on_beside_writing_until_a_second_budget_is_full() {
        let (allow, allowed) = bounded::<()>(0);
        let stored = Arc::new(AtomicU64::new(0));
        let count = stored.clone();
        let writeback = Arc::new(Writeback::new(Path::new("t"), BUDGET, move || {
            allowed.recv().map_err(|_| Errno::IO)?;
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }));
        // The disk does nothing yet; so much may be written all the same.
        writeback.dirtied(BUDGET).unwrap();
        writeback.dirtied(BUDGET - 1).unwrap();
        let (done, written) = bounded(1);
        let ahead = writeback.clone();
        let writer = thread::spawn(move || done.send(ahead.dirtied(1)).unwrap());
        assert!(written.recv_timeout(std::time::Duration::from_millis(50)).is_err());
        assert_eq!(stored.load(Ordering::SeqCst), 0);
        allow.send(()).unwrap();
        written.recv().unwrap().unwrap();
        assert_eq!(stored.load(Ordering::SeqCst), 1);
        writer.join().unwrap();
        // What the writer began, and the last of all.
        let finished = thread::spawn(move || writeback.finish());
        (0..2).for_each(|_| allow.send(()).unwrap());
        finished.join().unwrap().unwrap();
        assert_eq!(stored.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn what_could_not_be_stored_stops_the_next_writer_and_is_not_forgotten_at_the_end() {
        let attempts = AtomicU64::new(0);
        let first_fails = move || if attempts.fetch_add(1, Ordering::SeqCst) == 0 { Err(Errno::IO) } else { Ok(()) };
        let writeback = Writeback::new(Path::new("t"), BUDGET, first_fails);
        writeback.dirtied(BUDGET).unwrap();
        while writeback.shared.lock().storing {
            thread::yield_now();
        }
        for outcome in [writeback.dirtied(1), writeback.finish()] {
            assert!(matches!(outcome, Err(TargetError::Root { source: Errno::IO, .. })), "{outcome:?}");
        }
    }

    #[test]
    fn the_smallest_write_counts_as_the_pages_that_it_touches() {
        let writeback = Writeback::new(Path::new("t"), BUDGET, || Ok(()));
        writeback.wrote(0, 1).unwrap();
        writeback.wrote(PAGE - 1, 2).unwrap();
        assert_eq!(writeback.shared.lock().dirty, 3 * PAGE);
    }
}
