//! Content in order: chunks asked for far ahead, opened on threads of their own, and handed
//! out in the order in which they were wanted, within a budget of bytes.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::thread;

use crossbeam_channel::{Receiver, Sender, unbounded};
use vsync_protocol::blob::BlobKind;
use vsync_protocol::id::Cid;
use vsync_protocol::tree::Child;

use crate::remote::{Fetched, Fetcher, RemoteError};
use crate::tree::Reference;
use crate::vault::{OpenError, Opener, Vault};

/// Bytes of plaintext asked for and not yet handed out.
const BUDGET: usize = 48 << 20;

/// Marks that wait in the queue, with or without a chunk.
const QUEUE: usize = 16_384;

/// Blobs asked for at once: by number, and by bytes of plaintext.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 4 << 20;

const OPENERS: usize = 2;

/// What stands at a place of the queue.
#[derive(Clone, Debug)]
pub(crate) enum Part {
    /// A mark alone.
    Mark,
    /// The plaintext of a chunk.
    Plain(Arc<Vec<u8>>),
    /// A chunk that cannot be had.
    Lost(Lost),
}

/// Why a chunk cannot be had.
#[derive(Clone, Debug)]
pub(crate) enum Lost {
    /// The server does not have it whole.
    Absent,
    /// What came is not the chunk; in words.
    Damaged(String),
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Absent => f.write_str("missing from the server, or damaged there"),
            Self::Damaged(reason) => write!(f, "damaged: {reason}"),
        }
    }
}

/// Chunks and marks between them. `T` is what the caller knows a place by.
pub(crate) struct Content<T> {
    fetcher: Fetcher,
    arrivals: Sender<Arrival>,
    opened: Receiver<Result<(Cid, Part), RemoteError>>,
    queue: VecDeque<(T, Option<Reference>)>,
    slots: HashMap<Cid, Slot>,
    batch: Vec<Reference>,
    batch_bytes: usize,
    bytes: usize,
}

/// A chunk under way, and how many places of the queue want it.
struct Slot {
    wanted: usize,
    part: Option<Part>,
}

type Arrival = (Fetched, Option<Child>);

impl<T> Content<T> {
    /// Content that `fetcher` brings and `vault` opens.
    ///
    /// # Errors
    /// When decompression cannot be set up.
    pub(crate) fn new(fetcher: Fetcher, vault: &Arc<Vault>) -> Result<Self, OpenError> {
        let (arrivals, arrived) = unbounded();
        let (sender, opened) = unbounded();
        for number in 0..OPENERS {
            let opener = Opener::new(vault.clone())?;
            let (arrived, sender) = (arrived.clone(), sender.clone());
            thread::Builder::new()
                .name(format!("open-{number}"))
                .spawn(move || open(opener, &arrived, &sender))
                .map_err(OpenError::Decompressor)?;
        }
        Ok(Self {
            fetcher,
            arrivals,
            opened,
            queue: VecDeque::new(),
            slots: HashMap::new(),
            batch: Vec::new(),
            batch_bytes: 0,
            bytes: 0,
        })
    }

    /// Whether something should be taken out before more is put in.
    #[must_use]
    pub(crate) fn is_full(&self) -> bool {
        self.bytes >= BUDGET || self.queue.len() >= QUEUE
    }

    /// Puts a place at the end of the queue.
    pub(crate) fn push(&mut self, mark: T, chunk: Option<Reference>) {
        self.queue.push_back((mark, chunk));
        let Some(chunk) = chunk else { return };
        if let Some(slot) = self.slots.get_mut(&chunk.cid) {
            slot.wanted += 1;
            return;
        }
        self.slots.insert(chunk.cid, Slot { wanted: 1, part: None });
        self.bytes += chunk.child.raw_len as usize;
        self.batch_bytes += chunk.child.raw_len as usize;
        self.batch.push(chunk);
        if self.batch.len() >= BATCH || self.batch_bytes >= BATCH_BYTES {
            self.ask();
        }
    }

    /// Sends the batch at hand.
    fn ask(&mut self) {
        self.batch_bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() {
            return;
        }
        let children: HashMap<Cid, Child> = batch.iter().map(|chunk| (chunk.cid, chunk.child)).collect();
        let arrivals = self.arrivals.clone();
        self.fetcher.fetch(BlobKind::Chunk, &batch, move |fetched| {
            let child = match &fetched {
                Fetched::Blob(cid, _) => children.get(cid).copied(),
                Fetched::Absent(_) | Fetched::Failed(_) => None,
            };
            // Nobody misses what arrives after the end.
            drop(arrivals.send((fetched, child)));
        });
    }

    /// The first place of the queue, with its chunk; waits for it. `None` when the queue is
    /// empty.
    ///
    /// # Errors
    /// When the server refuses or stays away.
    pub(crate) fn pop(&mut self) -> Result<Option<(T, Option<Reference>, Part)>, RemoteError> {
        let Some((mark, chunk)) = self.queue.pop_front() else { return Ok(None) };
        let part = match &chunk {
            None => Part::Mark,
            Some(chunk) => self.take(chunk)?,
        };
        Ok(Some((mark, chunk, part)))
    }

    fn take(&mut self, chunk: &Reference) -> Result<Part, RemoteError> {
        loop {
            match self.slots.get_mut(&chunk.cid) {
                Some(Slot { wanted, part: Some(part) }) => {
                    let part = part.clone();
                    *wanted -= 1;
                    if *wanted == 0 {
                        self.slots.remove(&chunk.cid);
                        self.bytes -= chunk.child.raw_len as usize;
                    }
                    return Ok(checked(part, chunk));
                }
                Some(Slot { part: None, .. }) => {}
                None => return Ok(Part::Lost(Lost::Absent)),
            }
            if self.batch.iter().any(|waiting| waiting.cid == chunk.cid) {
                self.ask();
            }
            let ended = || RemoteError::Protocol("the threads that open chunks have ended".into());
            let (cid, part) = self.opened.recv().map_err(|_| ended())??;
            if let Some(slot) = self.slots.get_mut(&cid) {
                slot.part = Some(part);
            }
        }
    }
}

/// Two parents may speak of one chunk; it must have the length that each of them gives.
fn checked(part: Part, chunk: &Reference) -> Part {
    match part {
        Part::Plain(plain) if plain.len() != chunk.child.raw_len as usize => {
            Part::Lost(Lost::Damaged("it is not as long as its parent says".into()))
        }
        part => part,
    }
}

fn open(mut opener: Opener, arrived: &Receiver<Arrival>, opened: &Sender<Result<(Cid, Part), RemoteError>>) {
    for (fetched, child) in arrived {
        let result = match (fetched, child) {
            (Fetched::Blob(cid, blob), Some(child)) => match opener.open(BlobKind::Chunk, cid, &child, blob) {
                Ok(plain) => Ok((cid, Part::Plain(Arc::new(plain)))),
                Err(error) => Ok((cid, Part::Lost(Lost::Damaged(error.to_string())))),
            },
            (Fetched::Absent(cid) | Fetched::Blob(cid, _), _) => Ok((cid, Part::Lost(Lost::Absent))),
            (Fetched::Failed(error), _) => Err(error),
        };
        if opened.send(result).is_err() {
            return;
        }
    }
}
