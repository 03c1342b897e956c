//! The threads of a backup, and the channels between them.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};
use vsync_protocol::id::{Cid, Pid};
use vsync_protocol::key::ContentKey;
use vsync_protocol::tree::{Entry, EntryPath, VolumeInfo};

use super::ahead::{Buffer, Order, Pool};
use super::assemble::Assembler;
use super::file::{FileJob, Next};
use super::predict::Cut;
use super::{BackupError, Built, Source, Trust, ahead, file, scan, seal, stream};
use crate::budget::{Budget, Permit};
use crate::cache::{Cache, Parent};
use crate::chunk::{Cutter, Profile};
use crate::progress::Progress;
use crate::remote::UploadSender;
use crate::tree::Piece;
use crate::vault::Vault;

/// Threads that open files and cut, that read large files ahead, and that seal: both cores are
/// busy even while one of each waits for disk or network.
const READERS: usize = 2;
const AHEAD: usize = 2;
const SEALERS: usize = 2;

/// Bytes read and not yet sealed.
const READ_BUDGET: usize = 48 << 20;

/// Bytes sealed and not yet durable on the server.
const SEND_BUDGET: usize = 64 << 20;

/// Sealed chunks remembered within a run, so that repeated content is sealed once: as many
/// as a table of 2^18 places holds before it doubles.
const REMEMBERED: usize = (1 << 18) / 8 * 7;

/// What the threads share.
pub(super) struct Pipeline {
    pub(super) vault: Arc<Vault>,
    pub(super) cutter: Cutter,
    pub(super) profile: Option<Profile>,
    pub(super) upload: UploadSender,
    pub(super) progress: Arc<Progress>,
    pub(super) trust: Trust,
}

/// What the assembler puts into the tree next.
pub(super) enum Slot {
    /// An entry that needs no reading.
    Entry(Box<Entry>),
    /// Content of the last entry, known already.
    Pieces(Vec<Piece>),
    /// A file that is being read: its parts come here.
    File(Receiver<FilePart>),
    /// Something that could not be read at all.
    Defect(EntryPath, String),
}

/// A part of a file that is being read; an entry comes first.
pub(super) enum FilePart {
    Entry(Box<Entry>),
    Pieces(Vec<Piece>),
    /// Content that is being sealed.
    Sealing(Receiver<Vec<Piece>>),
    /// The content is not exact.
    Defect(String),
    /// There will be no entry.
    Failed(EntryPath, String),
}

/// A stretch of a file on its way to a sealer.
pub(super) struct Segment {
    pub(super) path: EntryPath,
    pub(super) buffer: Buffer,
    /// Where in the buffer it lies.
    pub(super) bytes: Range<usize>,
    /// What it consists of, in order.
    pub(super) cuts: Vec<Cut>,
    pub(super) pieces: Sender<Vec<Piece>>,
    pub(super) _permit: Permit,
}

/// State of a run that several threads use.
pub(super) struct Shared {
    pub(super) pipeline: Pipeline,
    pub(super) read_budget: Budget,
    pub(super) send_budget: Budget,
    pub(super) buffers: Arc<Pool>,
    /// Chunks sealed in this run.
    pub(super) sealed: Mutex<HashMap<Pid, (Cid, ContentKey)>>,
}

impl Shared {
    /// Remembers a sealed chunk; forgets all when there are too many.
    pub(super) fn remember(&self, pid: Pid, cid: Cid, ck: ContentKey) {
        let mut sealed = self.sealed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if sealed.len() >= REMEMBERED {
            sealed.clear();
        }
        sealed.insert(pid, (cid, ck));
    }

    pub(super) fn recall(&self, pid: Pid) -> Option<(Cid, ContentKey)> {
        self.sealed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(&pid).copied()
    }

    /// Bytes kept free in front of what is read, for what could not be cut before: never as
    /// much as the longest chunk.
    pub(super) fn headroom(&self) -> usize {
        let longest = |profile| self.pipeline.cutter.longest(profile);
        longest(Profile::General).max(longest(Profile::Database))
    }

    /// Ends the run when somebody asked for it.
    pub(super) fn check_cancelled(&self) -> Result<(), BackupError> {
        if self.pipeline.progress.is_cancelled() { Err(BackupError::Interrupted) } else { Ok(()) }
    }
}

impl Pipeline {
    pub(super) fn run(
        self,
        source: &mut Source<'_>,
        info: VolumeInfo,
        parent: Option<Parent>,
        cache: &mut Cache,
        all_read: &mut dyn FnMut() -> Result<(), BackupError>,
    ) -> Result<Built, BackupError> {
        let nodes = cache.reader()?;
        let shared = &Shared {
            pipeline: self,
            read_budget: Budget::new(READ_BUDGET),
            send_budget: Budget::new(SEND_BUDGET),
            buffers: Arc::default(),
            sealed: Mutex::default(),
        };
        let (slots, slot_queue) = bounded::<Slot>(1024);
        let (jobs, job_queue) = bounded::<FileJob>(32);
        let (orders, order_queue) = bounded::<Order>(AHEAD);
        let (segments, segment_queue) = bounded::<Segment>(8);
        let (root, root_queue) = bounded(1);
        thread::scope(|scope| {
            let assembler = scope.spawn(move || Assembler::new(shared, cache)?.run(&slot_queue, info, &root_queue));
            let sealers: Vec<_> = (0..SEALERS)
                .map(|_| {
                    let queue = segment_queue.clone();
                    scope.spawn(move || seal::work(shared, &queue))
                })
                .collect();
            let ahead: Vec<_> = (0..AHEAD)
                .map(|_| {
                    let queue = order_queue.clone();
                    scope.spawn(move || ahead::work(shared, &queue))
                })
                .collect();
            let next = Next { orders, segments };
            let readers: Vec<_> = (0..READERS)
                .map(|_| {
                    let (queue, next) = (job_queue.clone(), next.clone());
                    scope.spawn(move || file::work(shared, &queue, &next))
                })
                .collect();
            drop((segment_queue, order_queue, job_queue));
            let fed = match source {
                Source::Directory(path) => scan::run(shared, path, parent, nodes, &slots, &jobs, &root),
                Source::Stream(reader) => stream::run(shared, *reader, parent, nodes, &slots, &next.segments, &root),
            };
            // The end of the input travels through the channels.
            drop((slots, jobs, next, root));
            let mut outcomes = vec![fed];
            outcomes.extend(readers.into_iter().chain(ahead).map(join));
            // Sealing and sending go on while whatever was held for reading is let go.
            if outcomes.iter().all(Result::is_ok) {
                outcomes.push(all_read());
            }
            outcomes.extend(sealers.into_iter().map(join));
            let built = join(assembler);
            let failure = outcomes.into_iter().filter_map(Result::err).reduce(BackupError::graver);
            match (built, failure) {
                (Ok(built), None) => Ok(built),
                (Ok(_), Some(error)) => Err(error),
                (Err(error), None) => Err(error),
                (Err(one), Some(other)) => Err(one.graver(other)),
            }
        })
    }
}

fn join<T>(handle: thread::ScopedJoinHandle<'_, Result<T, BackupError>>) -> Result<T, BackupError> {
    match handle.join() {
        Ok(outcome) => outcome,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
