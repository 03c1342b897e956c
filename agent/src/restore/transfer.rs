//! Chunks on their way from the server into files.

use std::collections::hash_map::Entry as Place;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use vsync_protocol::blob::BlobKind;
use vsync_protocol::id::Cid;
use vsync_protocol::tree::{Child, Entry, EntryPath};

use super::changes::{Change, Changes};
use super::compare::{self, CompareJob};
use super::file::{FileTask, Outcome};
use super::known::KnownChunks;
use super::record::{FileRecord, Reader, Writer};
use super::{Options, RestoreError, RestoreReport, plan};
use crate::budget::{Budget, Permit};
use crate::chunk::Cutter;
use crate::progress::Progress;
use crate::remote::{Fetched, Fetcher, Remote, RemoteNodes};
use crate::shelf::Shelf;
use crate::snapshot::Snapshot;
use crate::tree::{Reference, TreeReader};
use crate::vault::{Opener, Vault};
use crate::volume::Target;

/// Bytes of plaintext asked for and not yet written.
const BUDGET: usize = 64 << 20;

/// What a chunk costs beside its bytes: where it goes, and the entry of its file, which may
/// be the only one. A million tiny files must not be asked for at once.
const COST: usize = 1 << 10;

/// Blobs asked for at once: by number, and by bytes of plaintext.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 4 << 20;

/// How often whoever waits for the end looks whether somebody asked to stop.
const LOOK: Duration = Duration::from_millis(50);

const WRITERS: usize = 2;

/// More than there may be processors: where nothing is cached, they wait for the disk.
const COMPARERS: usize = 4;

/// What a restore works with.
pub(super) struct Restore<'a> {
    pub(super) remote: &'a Remote,
    pub(super) vault: &'a Arc<Vault>,
    pub(super) snapshot: &'a Snapshot,
    /// Cuts files as the snapshot's were cut, if this program knows how.
    pub(super) cutter: Option<Cutter>,
    pub(super) target: Arc<Target>,
    pub(super) options: &'a Options,
    pub(super) progress: &'a Arc<Progress>,
    /// The record of what was restored into the target, if there may be one.
    pub(super) record: Option<PathBuf>,
    /// Bytes of all content in the snapshot.
    pub(super) bytes: u64,
    /// What the target's own directory should be, when all is restored.
    pub(super) top: Option<Entry>,
}

/// What is left to be done when all content is there.
#[derive(Default)]
pub(super) struct Transferred {
    pub(super) report: RestoreReport,
    /// Directories, in path order.
    pub(super) directories: Shelf<Entry>,
    /// Further names of files, in path order.
    pub(super) links: Shelf<Entry>,
    /// Entries that the snapshot does not have.
    pub(super) extraneous: Shelf<EntryPath>,
    /// What the next restore may know, once all is on disk.
    pub(super) record: Option<Writer>,
}

/// State of a transfer that its threads share.
pub(super) struct Transfer<'a> {
    pub(super) restore: &'a Restore<'a>,
    budget: Budget,
    /// Where chunks go that were asked for.
    wanted: Mutex<HashMap<Cid, Wanted>>,
    /// Nothing is wanted any more, or the work has stopped.
    emptied: Condvar,
    /// To be asked for with the next batch.
    batch: Mutex<Batch>,
    fetcher: Fetcher,
    arrivals: Sender<Fetched>,
    pub(super) report: Mutex<RestoreReport>,
    /// Where chunks are by now.
    pub(super) known: Mutex<KnownChunks>,
    /// What a dry run found to be done, of each thread that looked.
    pub(super) changes: Mutex<Vec<Shelf<Change>>>,
    /// What the next restore may know.
    record: Mutex<Option<Writer>>,
    /// Files that are being changed where they are.
    in_place: Mutex<HashSet<EntryPath>>,
    stopped: AtomicBool,
}

struct Wanted {
    child: Child,
    places: Vec<(Arc<FileTask>, u64)>,
    _permit: Permit,
}

impl Wanted {
    /// Notes one more place, if `reference` says the same of the chunk as those before.
    fn also_for(&mut self, reference: &Reference, task: &Arc<FileTask>, offset: u64) -> bool {
        let agrees = self.child == reference.child;
        if agrees {
            self.places.push((task.clone(), offset));
        }
        agrees
    }
}

#[derive(Default)]
struct Batch {
    chunks: Vec<Reference>,
    /// What is left for further chunks; none before the first.
    room: Option<Permit>,
}

impl Restore<'_> {
    /// What the last restore into the target left there.
    fn old_record(&self) -> Option<Reader> {
        Reader::open(self.record.as_ref()?, self.target.place()?)
    }

    fn new_record(&self) -> Option<Writer> {
        let path = self.record.as_ref().filter(|_| !self.options.dry_run)?;
        match Writer::create(path, self.target.place()?) {
            Ok(writer) => Some(writer),
            Err(error) => {
                tracing::warn!("the next restore will read all files: {} cannot be written: {error}", path.display());
                None
            }
        }
    }

    /// Brings all content into place. Directories, links and deletions are left over.
    pub(super) fn transfer(&self, tree: TreeReader<RemoteNodes>) -> Result<Transferred, RestoreError> {
        let (arrivals, arrived) = unbounded();
        let shared = &Transfer {
            restore: self,
            budget: Budget::new(BUDGET),
            wanted: Mutex::default(),
            emptied: Condvar::new(),
            batch: Mutex::default(),
            fetcher: self.remote.fetcher(),
            arrivals,
            report: Mutex::default(),
            known: Mutex::default(),
            changes: Mutex::default(),
            record: Mutex::new(self.new_record()),
            in_place: Mutex::default(),
            stopped: AtomicBool::new(false),
        };
        let (jobs, queue) = bounded::<CompareJob>(64);
        let (done, finished) = bounded::<()>(0);
        thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|_| {
                    let (arrived, finished) = (arrived.clone(), finished.clone());
                    scope.spawn(move || shared.stopping(|| shared.write_arrivals(&arrived, &finished)))
                })
                .collect();
            let comparers: Vec<_> = (0..COMPARERS)
                .map(|_| {
                    let queue = queue.clone();
                    scope.spawn(move || shared.stopping(|| compare::work(shared, &queue)))
                })
                .collect();
            drop(queue);
            let planned = shared.stopping(|| plan::run(shared, tree, jobs, self.old_record()));
            let compared: Vec<_> = comparers.into_iter().map(join).collect();
            let drained = shared.stopping(|| shared.drain());
            drop(done);
            let written: Vec<_> = writers.into_iter().map(join).collect();
            let (mut transferred, failed) = match planned {
                Ok(transferred) => (transferred, None),
                Err(error) => (Transferred::default(), Some(error)),
            };
            let outcomes = compared.into_iter().chain([drained]).chain(written);
            if let Some(failure) = outcomes.filter_map(Result::err).chain(failed).max_by_key(gravity) {
                return Err(failure.leaving(lock(&shared.in_place).drain().collect()));
            }
            transferred.record = lock(&shared.record).take();
            transferred.report = std::mem::take(&mut *lock(&shared.report));
            transferred.report.changes = Changes(std::mem::take(&mut *lock(&shared.changes)));
            Ok(transferred)
        })
    }
}

/// When it is dropped, the threads of a transfer stop.
struct StopsOthers<'a>(&'a Transfer<'a>);

impl Drop for StopsOthers<'_> {
    fn drop(&mut self) {
        self.0.stopped.store(true, Ordering::Relaxed);
        // Whoever waits for the budget gets it, and sees that the work has stopped.
        lock(&self.0.wanted).clear();
        self.0.emptied.notify_all();
    }
}

impl Transfer<'_> {
    /// Makes the other threads stop when this one fails, or panics: none of them waits for what
    /// does not come any more.
    fn stopping<T>(&self, work: impl FnOnce() -> Result<T, RestoreError>) -> Result<T, RestoreError> {
        let guard = StopsOthers(self);
        let outcome = work();
        if outcome.is_ok() {
            std::mem::forget(guard);
        }
        outcome
    }

    pub(super) fn check(&self) -> Result<(), RestoreError> {
        if self.restore.progress.is_cancelled() {
            Err(RestoreError::Interrupted)
        } else if self.stopped.load(Ordering::Relaxed) {
            Err(RestoreError::Stopped)
        } else {
            Ok(())
        }
    }

    /// Remembers that a file is not what it was and not yet what it will be.
    pub(super) fn changing_in_place(&self, path: &EntryPath) {
        lock(&self.in_place).insert(path.clone());
    }

    /// The file is what it was, or what it will be.
    pub(super) fn is_whole(&self, path: &EntryPath) {
        lock(&self.in_place).remove(path);
    }

    /// Brings a chunk of `task` to `offset`: from another file if one has it, else it is asked
    /// for, and written when it comes.
    pub(super) fn want(&self, task: &Arc<FileTask>, reference: &Reference, offset: u64) -> Result<(), RestoreError> {
        task.will_have(&reference.cid, offset);
        if self.copy(task, reference, offset)? {
            return Ok(());
        }
        task.expect_chunk();
        let len = reference.child.raw_len as usize;
        {
            let mut wanted = lock(&self.wanted);
            if let Some(known) = wanted.get_mut(&reference.cid) {
                if known.also_for(reference, task, offset) {
                    return Ok(());
                }
                drop(wanted);
                return self.contradicted(task, reference, offset);
            }
        }
        let mut batch = lock(&self.batch);
        let permit = match batch.room.as_mut().and_then(|room| room.split(len + COST)) {
            Some(permit) => permit,
            None => {
                self.send(std::mem::take(&mut *batch));
                // Room for a whole batch at once: whoever waits for that of a single chunk asks
                // for one at a time from then on. What is waited for is on its way.
                let mut room = self.budget.take(BATCH_BYTES.max(len) + BATCH * COST);
                let permit = room.split(len + COST);
                batch.room = Some(room);
                permit.ok_or(RestoreError::Stopped)?
            }
        };
        self.check()?;
        match lock(&self.wanted).entry(reference.cid) {
            Place::Occupied(mut known) => {
                if known.get_mut().also_for(reference, task, offset) {
                    return Ok(());
                }
                return self.contradicted(task, reference, offset);
            }
            Place::Vacant(free) => {
                let places = vec![(task.clone(), offset)];
                free.insert(Wanted { child: reference.child, places, _permit: permit });
            }
        }
        lock(&self.report).bytes_fetched += len as u64;
        batch.chunks.push(*reference);
        if batch.chunks.len() >= BATCH {
            self.send(std::mem::take(&mut *batch));
        }
        Ok(())
    }

    /// Copies a chunk from a file that is complete. Returns whether there was one.
    fn copy(&self, task: &FileTask, reference: &Reference, offset: u64) -> Result<bool, RestoreError> {
        let Some((path, from)) = lock(&self.known).find(&reference.cid) else { return Ok(false) };
        let target = &self.restore.target;
        let Some(file) = target.read_file(&path)? else { return Ok(false) };
        let mut plain = vec![0; reference.child.raw_len as usize];
        let read = file.read_at(&mut plain, from)?;
        // Hashed again: the record may be wrong, and the volume may have users that nobody
        // knows of.
        if read < plain.len() || self.restore.vault.pid(&plain) != reference.child.pid {
            return Ok(false);
        }
        task.write(target, &plain, offset)?;
        self.restore.progress.written.add(plain.len() as u64);
        self.count(task, plain.len() as u64);
        Ok(true)
    }

    /// Asks for what a batch lists; what is left of its room is free for the next one.
    fn send(&self, batch: Batch) {
        if !batch.chunks.is_empty() {
            let arrivals = self.arrivals.clone();
            // Nobody misses what arrives after the end.
            self.fetcher.fetch(BlobKind::Chunk, &batch.chunks, move |fetched| drop(arrivals.send(fetched)));
        }
    }

    /// Waits until everything asked for has been written.
    fn drain(&self) -> Result<(), RestoreError> {
        self.check()?;
        self.send(std::mem::take(&mut *lock(&self.batch)));
        let mut wanted = lock(&self.wanted);
        while !wanted.is_empty() {
            self.check()?;
            (wanted, _) = self.emptied.wait_timeout(wanted, LOOK).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    fn write_arrivals(&self, arrived: &Receiver<Fetched>, finished: &Receiver<()>) -> Result<(), RestoreError> {
        let mut opener = Opener::new(self.restore.vault.clone()).map_err(RestoreError::Opener)?;
        loop {
            crossbeam_channel::select! {
                recv(arrived) -> fetched => match fetched {
                    Ok(Fetched::Blob(cid, blob)) => self.arrived(&mut opener, cid, blob)?,
                    Ok(Fetched::Absent(cid)) => self.lost(cid, "missing from the server, or damaged there")?,
                    Ok(Fetched::Failed(error)) => return Err(error.into()),
                    Err(_) => return Ok(()),
                },
                // The sender sends nothing; that it is gone is the signal.
                recv(finished) -> _ => return self.check().or_else(|error| match error {
                    RestoreError::Stopped => Ok(()),
                    other => Err(other),
                }),
            }
        }
    }

    fn arrived(&self, opener: &mut Opener, cid: Cid, blob: Vec<u8>) -> Result<(), RestoreError> {
        self.check()?;
        self.restore.progress.received.add(blob.len() as u64);
        let child = lock(&self.wanted).get(&cid).map(|wanted| wanted.child);
        let Some(child) = child else { return Ok(()) };
        let plain = match opener.open(BlobKind::Chunk, cid, &child, blob) {
            Ok(plain) => plain,
            Err(error) => {
                // The server can tell for itself; it then takes the next backup's copy.
                self.restore.remote.fetcher().report_damage(cid);
                return self.lost(cid, &format!("damaged: {error}"));
            }
        };
        // Places may be added until the chunk is taken out of the list.
        let mut written = 0;
        loop {
            let places: Vec<(Arc<FileTask>, u64)> = {
                let mut wanted = lock(&self.wanted);
                let Some(entry) = wanted.get(&cid) else { return Ok(()) };
                if entry.places.len() == written {
                    wanted.remove(&cid);
                    self.wake(&wanted);
                    return Ok(());
                }
                entry.places[written..].to_vec()
            };
            for (task, offset) in &places {
                task.write(&self.restore.target, &plain, *offset)?;
                self.restore.progress.written.add(plain.len() as u64);
                self.count(task, plain.len() as u64);
                self.settle(task)?;
            }
            written += places.len();
        }
    }

    /// Two parents say different things of one chunk, which only a forger's do.
    fn contradicted(&self, task: &Arc<FileTask>, chunk: &Reference, offset: u64) -> Result<(), RestoreError> {
        let chunk = &chunk.cid.to_string()[..16];
        self.damaged(task, format!("the chunk {chunk} at byte {offset} is not what its parent says"));
        self.settle(task)
    }

    /// Tells whoever waits for the end.
    fn wake(&self, wanted: &HashMap<Cid, Wanted>) {
        if wanted.is_empty() {
            self.emptied.notify_all();
        }
    }

    /// A chunk that cannot be had: its files will not be complete.
    fn lost(&self, cid: Cid, reason: &str) -> Result<(), RestoreError> {
        let mut wanted = lock(&self.wanted);
        let Some(Wanted { places, .. }) = wanted.remove(&cid) else { return Ok(()) };
        self.wake(&wanted);
        drop(wanted);
        for (task, offset) in places {
            let place = format!("the chunk {} at byte {offset} is {reason}", &cid.to_string()[..16]);
            self.damaged(&task, place);
            self.settle(&task)?;
        }
        Ok(())
    }

    fn damaged(&self, task: &FileTask, reason: String) {
        if task.fail() {
            self.restore.progress.defects.add(1);
            lock(&self.report).damaged.push((task.path().clone(), reason));
        }
    }

    /// Counts bytes of a file's content that are where they should be.
    pub(super) fn count(&self, task: &FileTask, bytes: u64) {
        task.counted.add(bytes, &self.restore.progress.bytes);
    }

    /// Keeps for the next restore what it may know of a file.
    pub(super) fn done(&self, number: u64, kept: Option<FileRecord>) {
        if let Some(record) = &mut *lock(&self.record) {
            record.done(number, kept);
        }
    }

    /// One thing less to be done for a file.
    pub(super) fn settle(&self, task: &FileTask) -> Result<(), RestoreError> {
        match task.settle(&self.restore.target)? {
            None => return Ok(()),
            Some(Outcome::Failed) => self.done(task.number(), None),
            Some(Outcome::Restored(placed)) => {
                task.remember(&mut lock(&self.known));
                let (number, kept) = task.kept(&placed);
                self.done(number, kept);
                let mut report = lock(&self.report);
                report.files_restored += 1;
                report.unrestored.extend(placed.unrestored);
                drop(report);
                self.is_whole(task.path());
            }
        }
        self.restore.progress.entries.add(1);
        task.counted.finish(&self.restore.progress.bytes);
        Ok(())
    }
}

/// Which of several failures tells why: the others stopped because of it.
const fn gravity(failure: &RestoreError) -> u8 {
    match failure {
        RestoreError::Stopped => 0,
        RestoreError::Interrupted => 1,
        _ => 2,
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn join<T>(handle: thread::ScopedJoinHandle<'_, T>) -> T {
    match handle.join() {
        Ok(outcome) => outcome,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
