//! Sending what the server lacks.
//!
//! Offers come in from the sealing threads; their names are asked about in batches; what is
//! missing goes out on several streams; now and then the server is asked to make it all
//! durable. A blob is held, with its share of the budget, until it is: when the connection
//! breaks, everything not durable is offered again on the next one.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use quinn::{Connection, SendStream};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use vsync_protocol::id::{Cid, ManifestHash, VolumeName};
use vsync_protocol::log::Receipt;
use vsync_protocol::wire::{Answers, Cids, FrameHead, Reply, Request, UploadHead};

use super::RemoteError;
use super::connection::Connector;
use crate::budget::Permit;

const STREAMS: u32 = 4;

/// Names asked about at once, and how many such questions are under way.
const BATCH: usize = 512;
const QUESTIONS: usize = 4;

/// Batches of offers that wait for the network thread.
const BATCHES: usize = 16;

/// The server is asked to make things durable after this many bytes: one pack of its own.
const FLUSH_EVERY: u64 = 16 << 20;

/// Names remembered as being on the server, so that repeated content is not asked about: as
/// many as a table of 2^18 places holds before it doubles.
const REMEMBERED: usize = (1 << 18) / 8 * 7;

/// A sealed blob that the server may or may not have.
pub struct Offer {
    /// Its name.
    pub cid: Cid,
    /// Its bytes.
    pub blob: Bytes,
    /// Its share of the budget.
    pub permit: Permit,
}

/// What an upload came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UploadStats {
    /// Blobs sent.
    pub blobs: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Blobs that the server had.
    pub known: u64,
}

impl UploadStats {
    /// What this upload and another one came to.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self { blobs: self.blobs + other.blobs, bytes: self.bytes + other.bytes, known: self.known + other.known }
    }
}

/// An upload under way.
pub struct Upload {
    runtime: Handle,
    offers: mpsc::Sender<Vec<Offer>>,
    task: JoinHandle<Result<Actor, RemoteError>>,
    last: Option<(u64, ManifestHash)>,
}

/// An upload of which everything is durable: it may be committed.
pub struct Uploaded {
    runtime: Handle,
    actor: Actor,
}

/// The server's word on a commit.
pub enum CommitOutcome {
    /// The snapshot exists.
    Committed(Receipt),
    /// It does not: the server lacks these blobs.
    Missing(Vec<Cid>),
}

/// What is written in vain when the task has ended: its result says why.
#[derive(Debug)]
pub struct UploadEnded;

impl Upload {
    pub(super) fn begin(runtime: &Handle, connector: Arc<Connector>, volume: VolumeName) -> Result<Self, RemoteError> {
        let (offers, receiver) = mpsc::channel(BATCHES);
        let mut actor = Actor::new(connector, volume, receiver);
        runtime.block_on(actor.open_patiently())?;
        let last = actor.last;
        Ok(Self { runtime: runtime.clone(), offers, task: runtime.spawn(actor.run()), last })
    }

    /// Sequence number and manifest of the last snapshot of this volume from this machine.
    #[must_use]
    pub const fn last(&self) -> Option<(u64, ManifestHash)> {
        self.last
    }

    /// A handle for offering blobs from other threads.
    #[must_use]
    pub fn sender(&self) -> UploadSender {
        UploadSender(self.offers.clone())
    }

    /// Waits until everything offered is durable. All senders must be gone by then.
    ///
    /// # Errors
    /// When the server refused something or stayed away.
    pub fn finish(self) -> Result<(Uploaded, UploadStats), RemoteError> {
        drop(self.offers);
        let actor = match self.runtime.block_on(self.task) {
            Ok(ended) => ended?,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(error) => return Err(RemoteError::Protocol(format!("the upload task ended: {error}"))),
        };
        let stats = actor.stats;
        Ok((Uploaded { runtime: self.runtime, actor }, stats))
    }
}

/// Offers blobs to an upload.
#[derive(Clone)]
pub struct UploadSender(mpsc::Sender<Vec<Offer>>);

impl UploadSender {
    /// Offers a blob; waits while too many are under way.
    ///
    /// # Errors
    /// When the upload has ended; [`Upload::finish`] tells why.
    pub fn offer(&self, offer: Offer) -> Result<(), UploadEnded> {
        self.offer_all(vec![offer])
    }

    /// Offers several blobs: each call wakes the network thread, which costs more than a small
    /// blob does.
    ///
    /// # Errors
    /// When the upload has ended; [`Upload::finish`] tells why.
    pub fn offer_all(&self, offers: Vec<Offer>) -> Result<(), UploadEnded> {
        self.0.blocking_send(offers).map_err(|_| UploadEnded)
    }
}

impl Uploaded {
    /// Makes the uploaded tree a snapshot.
    ///
    /// # Errors
    /// When the server refused or stayed away. The snapshot may exist all the same if the
    /// answer was lost; committing the same manifest again then gives its receipt.
    pub fn commit(&mut self, manifest: &[u8]) -> Result<CommitOutcome, RemoteError> {
        self.runtime.block_on(self.actor.commit(manifest))
    }
}

struct Sent {
    stream: usize,
    frame: u64,
    offer: Offer,
}

struct Session {
    id: u32,
    connection: Connection,
    streams: Vec<(SendStream, u64)>,
}

type Question = BoxFuture<'static, (usize, Result<Answers, RemoteError>)>;
type Flush = BoxFuture<'static, (Vec<u64>, Result<(), RemoteError>)>;

struct Actor {
    connector: Arc<Connector>,
    volume: VolumeName,
    offers: mpsc::Receiver<Vec<Offer>>,
    session: Option<Session>,
    last: Option<(u64, ManifestHash)>,
    /// Not asked about yet.
    waiting: VecDeque<Offer>,
    /// Asked about; emptied when answered.
    asked: Vec<Vec<Offer>>,
    /// Sent, not yet durable.
    sent: VecDeque<Sent>,
    since_flush: u64,
    /// Names under way or known to be durable.
    settled: HashSet<Cid>,
    stats: UploadStats,
    /// Grows whenever something has become durable, or turned out to be.
    progress: u64,
}

impl Actor {
    fn new(connector: Arc<Connector>, volume: VolumeName, offers: mpsc::Receiver<Vec<Offer>>) -> Self {
        Self {
            connector,
            volume,
            offers,
            session: None,
            last: None,
            waiting: VecDeque::new(),
            asked: Vec::new(),
            sent: VecDeque::new(),
            since_flush: 0,
            settled: HashSet::new(),
            stats: UploadStats::default(),
            progress: 0,
        }
    }

    async fn open(&mut self) -> Result<(), RemoteError> {
        let connection = self.connector.connection().await?;
        let opened = self.connector.ask(&connection, &Request::Open { volume: self.volume.clone() }).await?;
        let Reply::Opened { session: id, last } = opened else { return Err(RemoteError::unexpected(&opened)) };
        let mut streams = Vec::new();
        for stream in 0..STREAMS {
            let mut send = connection.open_uni().await.map_err(|error| self.connector.lost(&error))?;
            let head = UploadHead { session: id, stream }.encode();
            send.write_all(&head).await.map_err(|error| self.connector.lost(&error))?;
            streams.push((send, 0));
        }
        self.session = Some(Session { id, connection, streams });
        self.last = last;
        Ok(())
    }

    async fn run(mut self) -> Result<Self, RemoteError> {
        let (mut tries, mut before) = (self.connector.tries(), 0);
        loop {
            let Err(error) = self.drive().await else { return Ok(self) };
            if self.progress > before {
                tries.progressed();
                before = self.progress;
            }
            tries.again(error).await?;
            self.reopen().await?;
        }
    }

    /// A new session in place of one that broke. What was not durable is offered again.
    async fn reopen(&mut self) -> Result<(), RemoteError> {
        self.session = None;
        self.since_flush = 0;
        let unsettled = self.asked.drain(..).flatten().chain(self.sent.drain(..).map(|sent| sent.offer));
        self.waiting.extend(unsettled);
        self.open_patiently().await
    }

    /// Opens a session; a connection may break meanwhile, and a server that restarts refuses
    /// for a moment.
    async fn open_patiently(&mut self) -> Result<(), RemoteError> {
        let mut tries = self.connector.tries();
        loop {
            match self.open().await {
                Err(error) => tries.again(error).await?,
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Works until everything offered is durable.
    async fn drive(&mut self) -> Result<(), RemoteError> {
        let mut questions: FuturesUnordered<Question> = FuturesUnordered::new();
        let mut flush: Option<Flush> = None;
        let mut open = true;
        loop {
            let idle = questions.is_empty() && self.waiting.is_empty();
            if !open && idle && self.sent.is_empty() {
                return Ok(());
            }
            let enough = self.since_flush >= FLUSH_EVERY || (!open && idle);
            if flush.is_none() && !self.sent.is_empty() && enough {
                flush = Some(self.flush()?);
            }
            // A question leaves when its batch is full, or when there is nothing else to do.
            let ready = self.waiting.len() >= BATCH || questions.is_empty() || !open;
            if !self.waiting.is_empty() && ready && questions.len() < QUESTIONS {
                self.take_all_offers();
                questions.push(self.question()?);
                continue;
            }
            tokio::select! {
                offers = self.offers.recv(), if open && self.waiting.len() < BATCH => match offers {
                    Some(offers) => offers.into_iter().for_each(|offer| self.accept(offer)),
                    None => open = false,
                },
                Some((batch, answers)) = questions.next(), if !questions.is_empty() => {
                    self.answered(batch, &answers?).await?;
                }
                Some((frames, flushed)) = wait(&mut flush) => {
                    flush = None;
                    flushed?;
                    self.durable(&frames);
                }
            }
        }
    }

    /// Takes what is there already, so that batches are large without waiting for them.
    fn take_all_offers(&mut self) {
        while self.waiting.len() < BATCH {
            let Ok(offers) = self.offers.try_recv() else { return };
            offers.into_iter().for_each(|offer| self.accept(offer));
        }
    }

    fn accept(&mut self, offer: Offer) {
        if self.settled.len() >= REMEMBERED {
            self.settled.clear();
        }
        if self.settled.insert(offer.cid) {
            self.waiting.push_back(offer);
        } else {
            self.stats.known += 1;
        }
    }

    fn session(&mut self) -> Result<&mut Session, RemoteError> {
        let lost = self.connector.lost(&"no session");
        self.session.as_mut().ok_or(lost)
    }

    fn question(&mut self) -> Result<Question, RemoteError> {
        let offers: Vec<Offer> = self.waiting.drain(..self.waiting.len().min(BATCH)).collect();
        let cids = Cids::new(offers.iter().map(|offer| offer.cid).collect());
        let session = self.session()?;
        let (id, connection) = (session.id, session.connection.clone());
        let batch = match self.asked.iter().position(Vec::is_empty) {
            Some(free) => {
                self.asked[free] = offers;
                free
            }
            None => {
                self.asked.push(offers);
                self.asked.len() - 1
            }
        };
        let connector = self.connector.clone();
        Ok(Box::pin(async move {
            let reply = connector.ask(&connection, &Request::Have { session: id, cids }).await;
            let answers = reply.and_then(|reply| match reply {
                Reply::Have(answers) => Ok(answers),
                other => Err(RemoteError::unexpected(&other)),
            });
            (batch, answers)
        }))
    }

    async fn answered(&mut self, batch: usize, answers: &Answers) -> Result<(), RemoteError> {
        // Whatever happens while sending, no offer may be lost: they go back one by one.
        let offers = std::mem::take(&mut self.asked[batch]);
        let mut missing = VecDeque::new();
        for (index, offer) in offers.into_iter().enumerate() {
            if answers.get(index) {
                self.stats.known += 1;
                self.progress += 1;
            } else {
                missing.push_back(offer);
            }
        }
        while let Some(offer) = missing.pop_front() {
            if let Err(error) = self.send(offer).await {
                self.waiting.extend(missing);
                return Err(error);
            }
        }
        Ok(())
    }

    async fn send(&mut self, offer: Offer) -> Result<(), RemoteError> {
        let connector = self.connector.clone();
        let head = FrameHead { len: offer.blob.len(), cid: offer.cid }.encode();
        let blob = offer.blob.clone();
        let size = blob.len() as u64;
        let number = (self.stats.blobs % u64::from(STREAMS)) as usize;
        let session = self.session()?;
        let (stream, frames) = &mut session.streams[number];
        *frames += 1;
        let frame = *frames;
        let mut parts = [Bytes::copy_from_slice(&head), blob];
        connector.before_sending(size).await;
        let written = stream.write_all_chunks(&mut parts).await;
        self.sent.push_back(Sent { stream: number, frame, offer });
        written.map_err(|error| connector.lost(&error))?;
        self.stats.blobs += 1;
        self.stats.bytes += size;
        self.since_flush += size;
        Ok(())
    }

    fn flush(&mut self) -> Result<Flush, RemoteError> {
        self.since_flush = 0;
        let connector = self.connector.clone();
        let session = self.session()?;
        let (id, connection) = (session.id, session.connection.clone());
        let frames: Vec<u64> = session.streams.iter().map(|(_, frames)| *frames).collect();
        Ok(Box::pin(async move {
            let request = Request::Flush { session: id, frames: frames.clone() };
            let flushed = match connector.ask(&connection, &request).await {
                Ok(Reply::Flushed) => Ok(()),
                Ok(other) => Err(RemoteError::unexpected(&other)),
                Err(error) => Err(error),
            };
            (frames, flushed)
        }))
    }

    fn durable(&mut self, frames: &[u64]) {
        let before = self.sent.len();
        self.sent.retain(|sent| frames.get(sent.stream).is_none_or(|&durable| sent.frame > durable));
        self.progress += (before - self.sent.len()) as u64;
    }

    async fn commit(&mut self, manifest: &[u8]) -> Result<CommitOutcome, RemoteError> {
        let mut tries = self.connector.tries();
        loop {
            let session = self.session()?;
            let (id, connection) = (session.id, session.connection.clone());
            let request = Request::Commit { session: id, manifest: manifest.to_vec() };
            match self.connector.ask(&connection, &request).await {
                Ok(Reply::Committed(receipt)) => return Ok(CommitOutcome::Committed(receipt)),
                Ok(Reply::Missing(cids)) => return Ok(CommitOutcome::Missing(cids.into_vec())),
                Ok(other) => return Err(RemoteError::unexpected(&other)),
                Err(error) => {
                    tries.again(error).await?;
                    self.reopen().await?;
                }
            }
        }
    }
}

async fn wait(flush: &mut Option<Flush>) -> Option<(Vec<u64>, Result<(), RemoteError>)> {
    match flush {
        Some(flush) => Some(flush.await),
        None => std::future::pending().await,
    }
}
