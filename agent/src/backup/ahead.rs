//! Reading large files ahead of cutting them, on threads of their own.
//!
//! A cut depends on the one before, so that one thread cuts a file from start to end. What
//! does not depend on it is done here meanwhile, several stretches at once: reading, and
//! hashing the chunks that are expected to be found again. Of a file that changed little
//! nothing is left to the cutting thread but to compare.

use std::collections::VecDeque;
use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};
use vsync_protocol::id::Pid;

use super::BackupError;
use super::pipeline::Shared;
use crate::budget::Permit;
use crate::volume::SourceFile;

/// What is read at once.
pub(super) const SEGMENT: usize = 2 << 20;

/// Stretches of one file that are read or wait to be cut.
const DEPTH: usize = 4;

/// Buffers kept for use again: fresh memory costs more than reading into it.
const KEPT: usize = 16;

/// Buffers that are used again and again. Their content is of no meaning.
#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<Vec<Vec<u8>>>);

impl Pool {
    /// A buffer of `len` bytes, the same for all that are taken; they are not cleared.
    pub(super) fn take(self: &Arc<Self>, len: usize) -> Buffer {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = kept.filter(|kept| kept.len() == len).unwrap_or_else(|| vec![0; len]);
        Buffer { bytes, pool: Some(self.clone()) }
    }
}

/// Bytes that go back to their pool when they are dropped.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    pool: Option<Arc<Pool>>,
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, pool: None }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(pool) = &self.pool {
            let mut kept = pool.0.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() < KEPT {
                kept.push(std::mem::take(&mut self.bytes));
            }
        }
    }
}

/// A stretch that was read.
pub(super) struct Stretch {
    /// What was read begins after [`Shared::headroom`] bytes, where the rest of the stretch
    /// before it is put.
    pub(super) buffer: Buffer,
    /// Bytes read.
    pub(super) len: usize,
    /// Ids computed ahead: offset in the file, length, id.
    pub(super) pids: Vec<(u64, usize, Pid)>,
    /// Whether nothing follows.
    pub(super) last: bool,
    /// For the buffer.
    pub(super) permit: Permit,
}

/// Where the stretches of a run of data come from.
pub(super) trait Supply {
    /// The next stretch. `outlook` tells, for a range, which chunks of it will be asked for
    /// by their ids. The outer error ends the backup, the inner one the run.
    fn next(&mut self, outlook: &dyn Fn(Range<u64>) -> Vec<(u64, usize)>) -> Result<io::Result<Stretch>, BackupError>;
}

/// A stretch to be read.
pub(super) struct Order {
    source: Arc<SourceFile>,
    range: Range<u64>,
    expected: Vec<(u64, usize)>,
    buffer: Buffer,
    permit: Permit,
    last: bool,
    done: Sender<io::Result<Stretch>>,
}

/// Carries orders out until there are no more.
pub(super) fn work(shared: &Shared, orders: &Receiver<Order>) -> Result<(), BackupError> {
    for order in orders {
        let done = order.done.clone();
        // Who ordered it may have given its file up.
        drop(done.send(order.carry_out(shared)));
    }
    Ok(())
}

impl Order {
    fn carry_out(mut self, shared: &Shared) -> io::Result<Stretch> {
        let headroom = shared.headroom();
        let wanted = usize::try_from(self.range.end - self.range.start).map_or(SEGMENT, |len| len.min(SEGMENT));
        let len = self.source.read_sparing(&mut self.buffer[headroom..headroom + wanted], self.range.start)?;
        shared.pipeline.progress.read.add(len as u64);
        let data = &self.buffer[headroom..headroom + len];
        let pid = |&(offset, len): &(u64, usize)| {
            let start = usize::try_from(offset.checked_sub(self.range.start)?).ok()?;
            let chunk = data.get(start..start.checked_add(len)?)?;
            Some((offset, len, shared.pipeline.vault.pid(chunk)))
        };
        let pids = self.expected.iter().filter_map(pid).collect();
        let last = self.last || len < wanted;
        Ok(Stretch { buffer: self.buffer, len, pids, last, permit: self.permit })
    }
}

/// A run of data of a file, read ahead.
pub(super) struct FileSupply<'a> {
    shared: &'a Shared,
    source: &'a Arc<SourceFile>,
    orders: &'a Sender<Order>,
    /// What is not ordered yet.
    range: Range<u64>,
    under_way: VecDeque<Receiver<io::Result<Stretch>>>,
}

impl<'a> FileSupply<'a> {
    pub(super) const fn new(
        shared: &'a Shared,
        source: &'a Arc<SourceFile>,
        orders: &'a Sender<Order>,
        range: Range<u64>,
    ) -> Self {
        Self { shared, source, orders, range, under_way: VecDeque::new() }
    }

    /// Orders the next stretch, if there is room for it now. Only who has none under way
    /// waits for room: else two files could each wait for what the other holds.
    fn order(&mut self, outlook: &dyn Fn(Range<u64>) -> Vec<(u64, usize)>) -> Result<bool, BackupError> {
        if self.range.is_empty() || self.under_way.len() >= DEPTH {
            return Ok(false);
        }
        let len = usize::try_from(self.range.end - self.range.start).map_or(SEGMENT, |left| left.min(SEGMENT));
        let budget = &self.shared.read_budget;
        let permit = if self.under_way.is_empty() { Some(budget.take(len)) } else { budget.try_take(len) };
        let Some(permit) = permit else { return Ok(false) };
        let range = self.range.start..self.range.start + len as u64;
        self.range.start = range.end;
        let (done, stretch) = bounded(1);
        let order = Order {
            source: self.source.clone(),
            expected: outlook(range.clone()),
            buffer: self.shared.buffers.take(self.shared.headroom() + SEGMENT),
            permit,
            last: self.range.is_empty(),
            range,
            done,
        };
        self.orders.send(order).map_err(|_| BackupError::Stopped)?;
        self.under_way.push_back(stretch);
        Ok(true)
    }
}

impl Supply for FileSupply<'_> {
    fn next(&mut self, outlook: &dyn Fn(Range<u64>) -> Vec<(u64, usize)>) -> Result<io::Result<Stretch>, BackupError> {
        while self.order(outlook)? {}
        let next = self.under_way.pop_front().ok_or(BackupError::Stopped)?;
        next.recv().map_err(|_| BackupError::Stopped)
    }
}
