//! Backing up the bytes of a stream: a snapshot with one file.

use std::io::{self, Read};
use std::ops::Range;

use crossbeam_channel::{Sender, bounded};
use vsync_protocol::tree::{Entry, EntryKind, EntryPath};

use super::BackupError;
use super::ahead::{SEGMENT, Stretch, Supply};
use super::chunking::Chunking;
use super::pipeline::{FilePart, Segment, Shared, Slot};
use super::predict::Predictor;
use super::scan::ParentTree;
use crate::cache::{CacheReader, Parent};

/// Name of the one file.
const NAME: &[u8] = b"stream";

/// Pieces of the parent kept in memory to recognise content.
const KEPT_PIECES: usize = 1 << 18;

/// Reads the stream to its end.
pub(super) fn run(
    shared: &Shared,
    stream: &mut (dyn Read + Send),
    parent: Option<Parent>,
    nodes: CacheReader,
    slots: &Sender<Slot>,
    segments: &Sender<Segment>,
    root: &Sender<Entry>,
) -> Result<(), BackupError> {
    let path = EntryPath::new(NAME).unwrap_or_default();
    let entry = super::stream_entry(&path);
    let directory = Entry { kind: EntryKind::Directory, mode: 0o700, path: EntryPath::root(), ..entry.clone() };
    root.send(directory).map_err(|_| BackupError::Stopped)?;
    let pieces = match parent.map(|parent| ParentTree::open(shared, &parent, nodes)).transpose()? {
        Some(mut tree) => {
            tree.advance_to(&path)?;
            tree.pieces(KEPT_PIECES)?
        }
        None => Vec::new(),
    };
    let predictor = Predictor::new(pieces);
    let (parts, queue) = bounded(32);
    slots.send(Slot::File(queue)).map_err(|_| BackupError::Stopped)?;
    parts.send(FilePart::Entry(Box::new(entry))).map_err(|_| BackupError::Stopped)?;
    let profile = shared.pipeline.profile.unwrap_or_default();
    let mut chunking = Chunking::new(shared, &path, profile, predictor, segments, &parts);
    chunking.run(&mut StreamSupply { shared, stream })?.map_err(BackupError::Stream)
}

/// Nothing of a stream can be read ahead of its turn.
struct StreamSupply<'a> {
    shared: &'a Shared,
    stream: &'a mut (dyn Read + Send),
}

impl Supply for StreamSupply<'_> {
    fn next(&mut self, _: &dyn Fn(Range<u64>) -> Vec<(u64, usize)>) -> Result<io::Result<Stretch>, BackupError> {
        let permit = self.shared.read_budget.take(SEGMENT);
        let headroom = self.shared.headroom();
        let mut buffer = self.shared.buffers.take(headroom + SEGMENT);
        let filled = fill(self.stream, &mut buffer[headroom..]);
        Ok(filled.map(|len| {
            self.shared.pipeline.progress.read.add(len as u64);
            Stretch { buffer, len, pids: Vec::new(), last: len < SEGMENT, permit }
        }))
    }
}

/// Reads until the buffer is full or the stream ends.
fn fill(stream: &mut (dyn Read + Send), buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match stream.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
