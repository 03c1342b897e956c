//! One backup in progress: upload streams bring blobs, one thread checks them against
//! their names and packs them, another makes packs durable meanwhile.
//!
//! Blobs wait for the first in a queue bounded by bytes. A full queue stops the reading of
//! streams, and QUIC's flow control then stops the sender. A stream waits for room in it with its
//! blob already read: if it waited before, blobs half read could wait for bytes that the
//! connection's window has no room for, because those of waiting streams fill it. The bound on what
//! is half read, which is waited for before, is so wide that only hostile machines meet it.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes};
use crossbeam_channel::{Receiver, Sender};
use tokio::io::AsyncReadExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use vsync_protocol::blob::Header;
use vsync_protocol::id::{Cid, VolumeName};
use vsync_protocol::limits::MAX_UPLOAD_STREAMS;
use vsync_protocol::wire::{FRAME_HEAD_LEN, FrameHead, Refusal, RefusalCode};

use crate::archive::Archive;
use crate::catalog::Group;
use crate::limits::Receiving;
use crate::pins::SessionPins;
use crate::refusal::refusal;
use crate::shares::{Filling, Shares, Turn};
use crate::store::pack::PackBuilder;
use crate::upkeep::usage::Allowance;

/// Bytes of blobs that wait to be checked.
const QUEUE: usize = 1 << 20;

/// What a blob costs at least, so that tiny ones cannot fill memory with bookkeeping.
const LEAST_COST: usize = 512;

/// A flush gives up when none of the frames it waits for arrives for this long.
const STALL: Duration = Duration::from_secs(60);

const STREAMS: usize = MAX_UPLOAD_STREAMS as usize;

/// How far a session has come, for those who wait for it.
#[derive(Clone, Default)]
struct Progress {
    /// Frames that have joined the queue, by stream.
    frames: [u64; STREAMS],
    /// Why the session takes no more, if it does not.
    failure: Option<Refusal>,
}

enum Item {
    Blob { cid: Cid, blob: Bytes, _cost: OwnedSemaphorePermit },
    Flush(oneshot::Sender<Result<(), Refusal>>),
    Close,
}

/// A backup in progress.
pub(crate) struct Session {
    /// Names it on its connection.
    pub(crate) id: u32,
    /// What is backed up.
    pub(crate) volume: VolumeName,
    /// What it was told to be here.
    pub(crate) pins: SessionPins,
    queue: Sender<Item>,
    room: Arc<Semaphore>,
    progress: watch::Sender<Progress>,
}

impl Session {
    /// Begins a session. The returned tasks end once the session was closed and everything
    /// that it received is durable.
    pub(crate) fn begin(
        id: u32,
        group: Group,
        allowance: Option<Allowance>,
        archive: Arc<Archive>,
        shares: &Arc<Shares>,
    ) -> (Arc<Self>, [JoinHandle<()>; 2]) {
        // Bounded by the permits that items carry.
        let (queue, items) = crossbeam_channel::unbounded();
        let progress = watch::Sender::new(Progress::default());
        // Without room: one pack is filled while one is stored, and that is all there is.
        let (packs, tasks) = crossbeam_channel::bounded(0);
        let filling = shares.fill();
        let checker = Checker { packs, progress: progress.clone(), pack: PackBuilder::default(), filling, allowance };
        let pins = archive.session_pins();
        let volume = group.volume.clone();
        let writer = PackWriter { archive, group, pins: pins.clone(), progress: progress.clone() };
        let threads = [
            tokio::task::spawn_blocking(move || checker.run(&items)),
            tokio::task::spawn_blocking(move || writer.run(&tasks)),
        ];
        (Arc::new(Self { id, volume, pins, queue, room: Arc::new(Semaphore::new(QUEUE)), progress }), threads)
    }

    /// Why the session takes no more, if it does not.
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        self.progress.borrow().failure.clone().map_or(Ok(()), Err)
    }

    /// Reads frames from upload stream `stream` until it ends or the session fails.
    pub(crate) async fn receive(
        &self,
        stream: u32,
        from: &mut quinn::RecvStream,
        receiving: &Receiving,
    ) -> Result<(), Refusal> {
        let stream = stream as usize;
        loop {
            self.check()?;
            let mut head = [0; FRAME_HEAD_LEN];
            match from.read_exact(&mut head).await {
                Ok(()) => {}
                Err(quinn::ReadExactError::FinishedEarly(0)) => return Ok(()),
                Err(_) => return Err(cut_off()),
            }
            let head = FrameHead::decode(&head).ok_or_else(|| refusal(RefusalCode::Malformed, "frame too long"))?;
            // The agent opens another session: it may have written all it has, and waits for nothing else.
            let lost = |refused: Refusal| {
                fail(&self.progress, refused.clone());
                refused
            };
            let _received = receiving.room_for(head.len).await.map_err(lost)?;
            let blob = self.read_blob(from, head.len).await?;
            // A blob larger than the queue has it for itself.
            let cost = head.len.clamp(LEAST_COST, QUEUE) as u32;
            let cost = Arc::clone(&self.room).acquire_many_owned(cost).await.map_err(|_| closed())?;
            let item = Item::Blob { cid: head.cid, blob: blob.into(), _cost: cost };
            self.queue.send(item).map_err(|_| closed())?;
            // After joining the queue: a flush that counts this frame queues behind it.
            self.progress.send_modify(|progress| progress.frames[stream] += 1);
        }
    }

    /// The next `len` bytes of a stream, of which something must arrive all the time, in memory
    /// that was not cleared before.
    async fn read_blob(&self, from: &mut quinn::RecvStream, len: usize) -> Result<Vec<u8>, Refusal> {
        let mut blob = Vec::with_capacity(len);
        while blob.len() < len {
            let missing = len - blob.len();
            match timeout(STALL, from.read_buf(&mut (&mut blob).limit(missing))).await {
                Ok(Ok(0) | Err(_)) => return Err(cut_off()),
                Ok(Ok(_)) => {}
                // The server itself is behind: blobs of other streams wait, and fill the window.
                Err(_) if self.room.available_permits() < QUEUE => self.check()?,
                Err(_) => {
                    let stalled = refusal(RefusalCode::NoSession, "the rest of a blob does not arrive");
                    fail(&self.progress, stalled.clone());
                    return Err(stalled);
                }
            }
        }
        Ok(blob)
    }

    /// Waits until each stream has brought as many frames as `frames` says, and all of them
    /// are durable.
    pub(crate) async fn flush(&self, frames: &[u64]) -> Result<(), Refusal> {
        if frames.len() > STREAMS {
            return Err(refusal(RefusalCode::Malformed, "more streams than there may be"));
        }
        let mut progress = self.progress.subscribe();
        loop {
            {
                let now = progress.borrow_and_update();
                now.failure.clone().map_or(Ok(()), Err)?;
                if frames.iter().zip(&now.frames).all(|(wanted, arrived)| arrived >= wanted) {
                    break;
                }
            }
            match timeout(STALL, progress.changed()).await {
                Ok(changed) => changed.map_err(|_| closed())?,
                Err(_) => return Err(refusal(RefusalCode::Malformed, "the frames to flush do not arrive")),
            }
        }
        let (done, answer) = oneshot::channel();
        self.queue.send(Item::Flush(done)).map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// Takes no more; what was received is still made durable.
    pub(crate) fn close(&self) {
        self.progress.send_modify(|progress| {
            progress.failure.get_or_insert_with(closed);
        });
        // When the thread is gone there is nothing left to close.
        let _ = self.queue.send(Item::Close);
    }
}

fn closed() -> Refusal {
    refusal(RefusalCode::NoSession, "the session is closed; open one again")
}

fn cut_off() -> Refusal {
    refusal(RefusalCode::Malformed, "an upload stream ends inside a frame")
}

/// The thread that checks blobs and packs them.
struct Checker {
    packs: Sender<Task>,
    progress: watch::Sender<Progress>,
    pack: PackBuilder,
    filling: Filling,
    allowance: Option<Allowance>,
}

/// What the checker hands to the writer, in the order in which it came.
enum Task {
    Store(PackBuilder, Turn),
    Flush(oneshot::Sender<Result<(), Refusal>>),
}

impl Checker {
    fn run(mut self, items: &Receiver<Item>) {
        let mut failed = false;
        for item in items {
            match item {
                // After a failure the queue is still emptied, so that nobody waits for room.
                Item::Blob { .. } if failed => {}
                Item::Blob { cid, blob, .. } => {
                    failed = self.add(cid, blob).map_err(|failure| fail(&self.progress, failure)).is_err();
                }
                Item::Flush(done) => {
                    self.hand_over();
                    // The writer is gone only if it panicked; then `done` is dropped, which
                    // tells who waits.
                    let _ = self.packs.send(Task::Flush(done));
                }
                Item::Close => break,
            }
        }
        // The connection may be lost, but what arrived over it is kept for the next one.
        self.hand_over();
    }

    fn add(&mut self, cid: Cid, blob: Bytes) -> Result<(), Refusal> {
        if Cid::of(&blob) != cid {
            return Err(refusal(RefusalCode::WrongName, format!("the bytes sent as {cid} are another blob's")));
        }
        let header = Header::parse(&blob);
        let header = header.map_err(|error| refusal(RefusalCode::Malformed, format!("blob {cid}: {error}")))?;
        let kind = header.kind;
        if let Some(allowance) = &mut self.allowance {
            let left = allowance.left.checked_sub(blob.len() as u64);
            allowance.left = left.ok_or_else(|| refusal(RefusalCode::Quota, allowance.words.clone()))?;
        }
        self.pack.push(cid, kind, blob);
        if self.pack.is_full_at(self.filling.pack_size()) {
            self.hand_over();
        }
        Ok(())
    }

    fn hand_over(&mut self) {
        if !self.pack.is_empty() {
            let turn = self.filling.turn();
            let _ = self.packs.send(Task::Store(std::mem::take(&mut self.pack), turn));
        }
    }
}

/// The thread that makes packs durable, while the checker fills the next one.
struct PackWriter {
    archive: Arc<Archive>,
    group: Group,
    pins: SessionPins,
    progress: watch::Sender<Progress>,
}

impl PackWriter {
    fn run(self, tasks: &Receiver<Task>) {
        for task in tasks {
            match task {
                Task::Store(pack, _turn) => {
                    let bytes = pack.records().iter().map(|record| u64::from(record.len)).sum();
                    let stored = self.archive.put(&self.pins, pack);
                    if let Err(error) = stored.and_then(|()| self.archive.note_pending(&self.group, bytes)) {
                        fail(&self.progress, error.into());
                    }
                }
                Task::Flush(done) => {
                    // Any failure so far, of a blob before the flush or of a pack.
                    let failure = self.progress.borrow().failure.clone();
                    // Who asked may have gone.
                    let _ = done.send(failure.map_or(Ok(()), Err));
                }
            }
        }
    }
}

/// The first failure ends the session for all who use it.
fn fail(progress: &watch::Sender<Progress>, failure: Refusal) {
    tracing::warn!("a session fails: {}", failure.message);
    progress.send_modify(|progress| {
        progress.failure.get_or_insert(failure);
    });
}
