//! A snapshot beside what it was made of, as that is now: nothing is fetched but the description.
//!
//! A source goes on changing, and what has changed since is no fault. But a file that says it
//! has not, by its length and times, must hold what the snapshot holds: the same chunks, cut at
//! the same places. Where it does not, one of the two is damaged, or somebody has set times back.

use std::cmp::Ordering;

use vsync_protocol::tree::{Entry, EntryKind, EntryPath};

use super::VerifyError;
use crate::chunk::is_zero;
use crate::progress::Progress;
use crate::remote::NodeError;
use crate::tree::{Item, NodeSource, Piece, TreeError, TreeReader};
use crate::vault::Vault;
use crate::volume::{Found, SourceFile, Step, Walker};

/// Paths listed by name; the rest is counted.
const LISTED: usize = 1000;

/// Holes are looked at in pieces of this size.
const WINDOW: usize = 1 << 20;

/// Why a comparison could not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    /// The snapshot's description.
    #[error(transparent)]
    Tree(#[from] TreeError<NodeError>),
    /// Somebody asked to stop.
    #[error(transparent)]
    Verify(#[from] VerifyError),
}

/// What a comparison came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct SourceReport {
    /// Entries of the snapshot.
    pub(crate) entries: u64,
    /// Files whose content was compared, and is the same.
    pub(crate) same: u64,
    /// Bytes of those.
    pub(crate) bytes: u64,
    /// Files that the sample left out.
    pub(crate) left_out: u64,
    /// Entries that have changed since, or are gone, or of another kind.
    pub(crate) changed: u64,
    /// Entries that are new since.
    pub(crate) new: u64,
    /// Files that could not be read.
    pub(crate) unreadable: Vec<EntryPath>,
    /// Files that have not changed, by their length and times, but hold something else.
    pub(crate) differing: Vec<EntryPath>,
    /// How many of those there are.
    pub(crate) differing_count: u64,
}

/// Which files are compared.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    /// From 0 to 1.
    pub(crate) share: f64,
    /// Makes the choice another one.
    pub(crate) seed: u64,
}

impl Share {
    fn takes(&self, path: &EntryPath) -> bool {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.seed.to_le_bytes()).update(path.as_bytes());
        let hash = hasher.finalize();
        let number = hash.as_bytes().first_chunk().map_or(0, |first| u32::from_le_bytes(*first));
        f64::from(number) < self.share * f64::from(u32::MAX) || self.share >= 1.0
    }
}

/// Compares the snapshot that `reader` reads, from its first entry on, with the volume that
/// `walker` walks. `vault` is the one that the snapshot was sealed in.
///
/// # Errors
/// When the snapshot's description cannot be read, or somebody asks to stop.
pub(crate) fn compare<N: NodeSource<Error = NodeError>>(
    walker: Walker,
    reader: &mut TreeReader<N>,
    vault: &Vault,
    share: Share,
    progress: &Progress,
) -> Result<SourceReport, SourceError> {
    let mut report = SourceReport::default();
    let mut source = Source { walker, next: None };
    let mut file: Option<Comparison> = None;
    while let Some(item) = reader.next_item()? {
        if progress.is_cancelled() {
            return Err(VerifyError::Interrupted.into());
        }
        match item {
            Item::Entry(entry) => {
                file.take().into_iter().for_each(|file| file.finish(&mut report));
                report.entries += 1;
                progress.entries.add(1);
                progress.bytes.add(entry.size);
                file = meet(&mut source, &entry, share, &mut report);
            }
            Item::Piece(piece) => file.iter_mut().for_each(|file| file.piece(&piece, vault)),
        }
    }
    file.into_iter().for_each(|file| file.finish(&mut report));
    while source.next(&mut report).is_some() {
        report.new += 1;
    }
    Ok(report)
}

/// Goes to the place of `entry` in the source; a file that is to be compared is opened.
fn meet(source: &mut Source, entry: &Entry, share: Share, report: &mut SourceReport) -> Option<Comparison> {
    let mut found = loop {
        let Some(found) = source.next(report) else {
            report.changed += 1;
            return None;
        };
        match found.entry.path.cmp(&entry.path) {
            Ordering::Less => report.new += 1,
            Ordering::Equal => break found,
            Ordering::Greater => {
                source.next = Some(found);
                report.changed += 1;
                return None;
            }
        }
    };
    // A further name of a file is a file there.
    let same_kind =
        found.entry.kind == entry.kind || (entry.kind == EntryKind::HardLink && found.entry.kind == EntryKind::File);
    if !same_kind {
        report.changed += 1;
        return None;
    }
    if entry.kind != EntryKind::File {
        return None;
    }
    if !share.takes(&entry.path) {
        report.left_out += 1;
        return None;
    }
    let Ok(file) = found.open() else {
        report.unreadable.push(entry.path.clone());
        return None;
    };
    let stamps = |entry: &Entry| (entry.size, entry.mtime, entry.ctime, entry.inode);
    if stamps(&found.entry) != stamps(entry) {
        report.changed += 1;
        return None;
    }
    let path = entry.path.clone();
    Some(Comparison { path, file, offset: 0, buffer: Vec::new(), differs: false, failed: false })
}

/// The source, entry by entry.
struct Source {
    walker: Walker,
    next: Option<Box<Found>>,
}

impl Source {
    fn next(&mut self, report: &mut SourceReport) -> Option<Box<Found>> {
        if let Some(next) = self.next.take() {
            return Some(next);
        }
        loop {
            match self.walker.next()? {
                Step::Found(found) => return Some(found),
                Step::Defect(defect) => report.unreadable.push(defect.path),
            }
        }
    }
}

/// A file whose content is compared, piece by piece.
struct Comparison {
    path: EntryPath,
    file: SourceFile,
    offset: u64,
    buffer: Vec<u8>,
    differs: bool,
    failed: bool,
}

impl Comparison {
    fn piece(&mut self, piece: &Piece, vault: &Vault) {
        if self.differs || self.failed {
            return;
        }
        let same = match piece {
            Piece::Chunk(reference) => {
                let len = reference.child.raw_len as usize;
                self.read(len).map(|()| self.buffer.len() == len && vault.pid(&self.buffer) == reference.child.pid)
            }
            Piece::Hole(len) => self.is_hole(*len),
        };
        match same {
            Ok(same) => self.differs = !same,
            Err(_) => self.failed = true,
        }
    }

    fn read(&mut self, len: usize) -> std::io::Result<()> {
        self.buffer.resize(len, 0);
        let read = self.file.read_at(&mut self.buffer, self.offset)?;
        self.buffer.truncate(read);
        self.offset += read as u64;
        Ok(())
    }

    fn is_hole(&mut self, len: u64) -> std::io::Result<bool> {
        let end = self.offset + len;
        while self.offset < end {
            let window = usize::try_from(end - self.offset).unwrap_or(WINDOW).min(WINDOW);
            self.read(window)?;
            if self.buffer.len() != window || !is_zero(&self.buffer) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn finish(self, report: &mut SourceReport) {
        if self.failed {
            report.unreadable.push(self.path);
        } else if self.file.changed() {
            report.changed += 1;
        } else if self.differs || self.offset != self.file.size() {
            report.differing_count += 1;
            if report.differing.len() < LISTED {
                report.differing.push(self.path);
            }
        } else {
            report.same += 1;
            report.bytes += self.offset;
        }
    }
}
