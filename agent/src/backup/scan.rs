//! The walk, side by side with the parent's tree: both are in path order.

use std::collections::HashSet;
use std::path::Path;

use crossbeam_channel::{Sender, bounded};
use vsync_protocol::blob::BlobKind;
use vsync_protocol::tree::{Entry, EntryKind, EntryPath};

use super::BackupError;
use super::error::CachedNodeError;
use super::file::FileJob;
use super::hardlinks::HardLinks;
use super::pipeline::{FilePart, Shared, Slot};
use crate::budget::Budget;
use crate::cache::{CacheReader, Parent};
use crate::chunk::Profile;
use crate::tree::{Item, Node, NodeSource, Piece, Reference, TreeError, TreeReader};
use crate::vault::Opener;
use crate::volume::{Found, Step, Walker};

/// Parts of one file that may wait for the assembler.
const PARTS: usize = 32;

/// Pieces of one file kept in memory to recognise its content: 8 GiB of a database file,
/// twice that of others. What lies beyond is sealed again and found on the server.
const KEPT_PIECES: usize = 1 << 18;

/// Pieces of all files that are being read or wait for it. Segments of a large database,
/// a gibibyte each, are many at once.
const KEPT_IN_ALL: usize = KEPT_PIECES;

/// Pieces of an unchanged file passed on at once.
const PASSED: usize = 1024;

/// Walks the volume and hands out what is to be done.
pub(super) fn run(
    shared: &Shared,
    path: &Path,
    parent: Option<Parent>,
    nodes: CacheReader,
    slots: &Sender<Slot>,
    jobs: &Sender<FileJob>,
    root: &Sender<Entry>,
) -> Result<(), BackupError> {
    let walker = Walker::open(path)?;
    root.send(walker.root().clone()).map_err(|_| BackupError::Stopped)?;
    let settled_before = parent.as_ref().map_or(i64::MIN, |parent| parent.settled);
    let parent = parent.map(|parent| ParentTree::open(shared, &parent, nodes)).transpose()?;
    Scan { shared, slots, jobs, parent, settled_before, links: HardLinks::default(), kept: Budget::new(KEPT_IN_ALL) }
        .walk(walker)
}

struct Scan<'a> {
    shared: &'a Shared,
    slots: &'a Sender<Slot>,
    jobs: &'a Sender<FileJob>,
    parent: Option<ParentTree>,
    settled_before: i64,
    links: HardLinks,
    kept: Budget,
}

impl Scan<'_> {
    fn walk(mut self, walker: Walker) -> Result<(), BackupError> {
        for step in walker {
            self.shared.check_cancelled()?;
            match step {
                Step::Found(found) => self.entry(found)?,
                Step::Defect(defect) => self.send(Slot::Defect(defect.path, defect.reason.to_string()))?,
            }
        }
        Ok(())
    }

    fn send(&self, slot: Slot) -> Result<(), BackupError> {
        self.slots.send(slot).map_err(|_| BackupError::Stopped)
    }

    fn entry(&mut self, mut found: Box<Found>) -> Result<(), BackupError> {
        if let Some(earlier) = self.links.earlier(&found) {
            found.entry.kind = EntryKind::HardLink;
            found.entry.size = 0;
            found.entry.target = Some(earlier.as_bytes().to_vec());
            return self.send(Slot::Entry(Box::new(found.entry)));
        }
        let known = match &mut self.parent {
            Some(parent) => parent.advance_to(&found.entry.path)?,
            None => None,
        };
        match known {
            Some(known) if self.is_unchanged(&found.entry, &known) => self.keep(found.entry, *known),
            known if found.entry.kind == EntryKind::File => self.read(found, known.as_deref()),
            _ => match found.load_metadata() {
                Ok(()) => self.send(Slot::Entry(Box::new(found.entry))),
                Err(defect) => self.send(Slot::Defect(defect.path, defect.reason.to_string())),
            },
        }
    }

    /// Size, times and inode tell; the inode's time alone cannot be set by users. What the parent
    /// does not hold exactly is read again, whatever they say; the chunks that it has are found again.
    fn is_unchanged(&self, found: &Entry, known: &Entry) -> bool {
        self.parent.as_ref().is_some_and(|parent| parent.is_exact(&known.path))
            && found.kind == known.kind
            && found.size == known.size
            && found.mtime == known.mtime
            && found.ctime == known.ctime
            && found.inode == known.inode
            && found.ctime.seconds < self.settled_before
    }

    /// Takes an unchanged entry over, with its content: nothing is opened.
    fn keep(&mut self, found: Entry, known: Entry) -> Result<(), BackupError> {
        let is_file = found.kind == EntryKind::File;
        let entry = Entry { xattrs: known.xattrs, target: known.target, ..found };
        self.send(Slot::Entry(Box::new(entry)))?;
        if !is_file {
            return Ok(());
        }
        self.shared.pipeline.progress.unchanged.add(1);
        let Some(parent) = &mut self.parent else { return Ok(()) };
        loop {
            let pieces = parent.pieces(PASSED)?;
            let done = pieces.len() < PASSED;
            if !pieces.is_empty() {
                self.slots.send(Slot::Pieces(pieces)).map_err(|_| BackupError::Stopped)?;
            }
            if done {
                return Ok(());
            }
        }
    }

    fn read(&mut self, found: Box<Found>, known: Option<&Entry>) -> Result<(), BackupError> {
        let pieces = match (&mut self.parent, known) {
            (Some(parent), Some(known)) if known.kind == EntryKind::File => parent.pieces(KEPT_PIECES)?,
            _ => Vec::new(),
        };
        let guess = |entry: &Entry| Profile::guess(entry.path.as_bytes(), entry.size);
        let parent_profile = self.shared.pipeline.profile.or_else(|| known.map(guess)).unwrap_or_default();
        let kept = self.kept.take(pieces.len());
        let (parts, queue) = bounded::<FilePart>(PARTS);
        self.send(Slot::File(queue))?;
        let job = FileJob { found, parent: pieces, parent_profile, parts, _kept: kept };
        self.jobs.send(job).map_err(|_| BackupError::Stopped)
    }
}

/// The parent's tree, read alongside the walk.
pub(super) struct ParentTree {
    reader: TreeReader<CachedNodes>,
    next: Option<Item>,
    /// Entries whose content is not what the file held: it could not be read, or changed meanwhile.
    /// `None` if the parent has more of them than it lists: anything in it may be one.
    inexact: Option<HashSet<EntryPath>>,
}

impl ParentTree {
    pub(super) fn open(shared: &Shared, parent: &Parent, nodes: CacheReader) -> Result<Self, BackupError> {
        let opener = Opener::new(shared.pipeline.vault.clone()).map_err(BackupError::Opener)?;
        let nodes = CachedNodes { nodes, opener };
        let (root, mut reader) =
            TreeReader::open(nodes, &parent.root, &EntryPath::root()).map_err(BackupError::damaged_cache)?;
        let progress = &shared.pipeline.progress;
        progress.total_entries.set(root.subtree.summaries.iter().map(|child| child.entries).sum());
        progress.total_bytes.set(root.subtree.summaries.iter().map(|child| child.bytes).sum());
        let next = reader.next_item().map_err(BackupError::damaged_cache)?;
        let all_listed = root.defect_count <= root.defects.len() as u64;
        let inexact = all_listed.then(|| root.defects.into_iter().map(|(path, _)| path).collect());
        Ok(Self { reader, next, inexact })
    }

    /// Whether the parent holds this entry as it was.
    fn is_exact(&self, path: &EntryPath) -> bool {
        self.inexact.as_ref().is_some_and(|inexact| !inexact.contains(path))
    }

    /// The parent's entry of this path. Paths must be asked for in order.
    pub(super) fn advance_to(&mut self, path: &EntryPath) -> Result<Option<Box<Entry>>, BackupError> {
        loop {
            match &self.next {
                None => return Ok(None),
                Some(Item::Entry(entry)) if entry.path > *path => return Ok(None),
                Some(Item::Entry(entry)) if entry.path == *path => break,
                Some(_) => self.next = self.reader.next_item().map_err(BackupError::damaged_cache)?,
            }
        }
        let item = std::mem::replace(&mut self.next, self.reader.next_item().map_err(BackupError::damaged_cache)?);
        match item {
            Some(Item::Entry(entry)) => Ok(Some(entry)),
            _ => Ok(None),
        }
    }

    /// Up to `limit` further pieces of the entry that was returned last.
    pub(super) fn pieces(&mut self, limit: usize) -> Result<Vec<Piece>, BackupError> {
        let mut pieces = Vec::new();
        while let (Some(Item::Piece(piece)), true) = (&self.next, pieces.len() < limit) {
            pieces.push(*piece);
            self.next = self.reader.next_item().map_err(BackupError::damaged_cache)?;
        }
        Ok(pieces)
    }
}

/// Nodes from the cache.
struct CachedNodes {
    nodes: CacheReader,
    opener: Opener,
}

impl NodeSource for CachedNodes {
    type Error = CachedNodeError;

    fn load(&mut self, kind: BlobKind, node: &Reference) -> Result<Node, CachedNodeError> {
        let blob = self.nodes.blob(node.child.pid)?.ok_or(CachedNodeError::Absent(node.cid))?;
        Ok(self.opener.open_node(kind, node, blob)?)
    }
}

impl BackupError {
    fn damaged_cache(error: TreeError<CachedNodeError>) -> Self {
        Self::DamagedCache(error.to_string())
    }
}
