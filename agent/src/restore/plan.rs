//! What is to be done: the snapshot's tree side by side with what is in the target.

use std::cmp::Ordering;
use std::collections::HashSet;

use crossbeam_channel::{Sender, bounded};
use vsync_protocol::tree::{Entry, EntryKind, EntryPath};

use super::RestoreError;
use super::compare::{CompareJob, Existing};
use super::record::{Kept, Reader};
use super::transfer::{Shared, Transferred, lock};
use crate::remote::RemoteNodes;
use crate::tree::{Item, Piece, TreeReader};
use crate::volume::{Found, Step, Walker};

/// Pieces handed on at once.
const RUN: usize = 1024;

/// Goes through the tree; files are handed to the comparing threads.
pub(super) fn run(
    shared: &Shared<'_>,
    tree: TreeReader<RemoteNodes>,
    jobs: Sender<CompareJob>,
    record: Option<Reader>,
) -> Result<Transferred, RestoreError> {
    let walker = shared.restore.target.scan()?;
    let mut present = Present { walker, next: None, swept: None };
    present.advance();
    Plan {
        shared,
        tree,
        item: None,
        jobs,
        record,
        files: 0,
        present,
        done: Transferred::default(),
        base_is_directory: false,
        kept: HashSet::new(),
    }
    .run()
}

struct Plan<'a, 'b> {
    shared: &'a Shared<'b>,
    tree: TreeReader<RemoteNodes>,
    item: Option<Item>,
    jobs: Sender<CompareJob>,
    /// What the restore before left in the target.
    record: Option<Reader>,
    /// Files met so far.
    files: u64,
    present: Present,
    done: Transferred,
    base_is_directory: bool,
    /// Inodes with several names that a file of the snapshot may keep: one file each.
    kept: HashSet<(u64, u64)>,
}

impl Plan<'_, '_> {
    fn run(mut self) -> Result<Transferred, RestoreError> {
        let selection = &self.shared.restore.options.selection;
        self.item = self.tree.next_item()?;
        while let Some(item) = self.item.take() {
            self.shared.check()?;
            let Item::Entry(entry) = item else {
                self.item = self.tree.next_item()?;
                continue;
            };
            if selection.is_past(&entry.path) {
                break;
            }
            if entry.path == selection.start() {
                self.base_is_directory = entry.kind == EntryKind::Directory;
            }
            self.item = self.tree.next_item()?;
            if selection.contains(&entry.path) {
                self.entry(*entry)?;
            }
        }
        if selection.is_all() {
            while let Some(found) = self.present.next.take() {
                self.extraneous(&found)?;
            }
        }
        Ok(self.done)
    }

    fn entry(&mut self, entry: Entry) -> Result<(), RestoreError> {
        let selection = &self.shared.restore.options.selection;
        let path = selection.place(&entry.path, self.base_is_directory);
        let entry = Entry { path, ..entry };
        self.done.report.entries += 1;
        let existing = self.existing(&entry.path)?;
        if existing.as_ref().is_some_and(|found| found.entry.kind == EntryKind::Directory)
            && entry.kind != EntryKind::Directory
        {
            // What is in the directory goes with it, when something else takes its place.
            self.present.swept = Some(entry.path.clone());
        }
        match entry.kind {
            EntryKind::Directory => self.directory(entry),
            EntryKind::HardLink => self.done.links.push(&entry).map_err(RestoreError::Deferred),
            EntryKind::File => {
                let kept = self.record.as_mut().and_then(|record| {
                    let kept = record.find(&entry.path)?;
                    let found = existing.as_ref()?;
                    (found.device == record.device() && is_untouched(found, &kept)).then_some(kept)
                });
                let existing = existing.map_or(Existing::Nothing, |found| self.usable(&found));
                self.file(entry, existing, kept)
            }
            _ => self.node(&entry, existing),
        }
    }

    /// What is at `path` now. Everything before it that was not asked for is extraneous.
    fn existing(&mut self, path: &EntryPath) -> Result<Option<Box<Found>>, RestoreError> {
        loop {
            let order = self.present.next.as_ref().map(|found| found.entry.path.cmp(path));
            match order {
                None | Some(Ordering::Greater) => return Ok(None),
                Some(Ordering::Equal) => {
                    let found = self.present.next.take();
                    self.present.advance();
                    return Ok(found);
                }
                Some(Ordering::Less) => {
                    let found = self.present.next.take();
                    found.iter().try_for_each(|found| self.extraneous(found))?;
                }
            }
        }
    }

    /// Notes an entry that the snapshot does not have; a directory stands for its content.
    fn extraneous(&mut self, found: &Found) -> Result<(), RestoreError> {
        let whole = self.shared.restore.options.selection.is_all();
        if whole && self.present.swept.as_ref().is_none_or(|swept| !found.entry.path.is_within(swept)) {
            self.present.swept = Some(found.entry.path.clone());
            self.done.extraneous.push(&found.entry.path).map_err(RestoreError::Deferred)?;
        }
        self.present.advance();
        Ok(())
    }

    fn directory(&mut self, entry: Entry) -> Result<(), RestoreError> {
        if !self.shared.restore.options.dry_run {
            self.make_parents(&entry.path)?;
            self.shared.restore.target.create_directory(&entry.path)?;
        }
        self.shared.restore.progress.entries.add(1);
        self.done.directories.push(&entry).map_err(RestoreError::Deferred)
    }

    /// With patterns, a file may be selected without the directories above it.
    fn make_parents(&self, path: &EntryPath) -> Result<(), RestoreError> {
        if self.shared.restore.options.selection.is_all() {
            return Ok(());
        }
        let mut above = Vec::new();
        let mut place = path.parent();
        while let Some(directory) = place.filter(|directory| !directory.is_root()) {
            place = directory.parent();
            above.push(directory);
        }
        above.iter().rev().try_for_each(|directory| Ok(self.shared.restore.target.create_directory(directory)?))
    }

    fn node(&mut self, entry: &Entry, existing: Option<Box<Found>>) -> Result<(), RestoreError> {
        self.shared.restore.progress.entries.add(1);
        if self.shared.restore.options.dry_run {
            return Ok(());
        }
        self.make_parents(&entry.path)?;
        let same = existing.is_some_and(|mut found| {
            found.entry.kind == entry.kind
                && (found.links == 1 || self.kept.insert((found.device, found.entry.inode)))
                && found.load_metadata().is_ok()
                && found.entry.target == entry.target
                && found.entry.device == entry.device
        });
        let target = &self.shared.restore.target;
        let unrestored = if same { target.apply_metadata(entry)?.unrestored } else { target.create_node(entry)? };
        lock(&self.shared.report).unrestored.extend(unrestored);
        Ok(())
    }

    /// What use a file's place can make of what is there now.
    fn usable(&mut self, found: &Found) -> Existing {
        match (found.entry.kind, found.links) {
            (EntryKind::File, 1) => Existing::Alone,
            // Two files of the snapshot must not end up as one.
            (EntryKind::File, _) if self.kept.insert((found.device, found.entry.inode)) => Existing::Linked,
            _ => Existing::Nothing,
        }
    }

    fn file(&mut self, entry: Entry, existing: Existing, kept: Option<Kept>) -> Result<(), RestoreError> {
        if !self.shared.restore.options.dry_run {
            self.make_parents(&entry.path)?;
        }
        let (first, complete) = self.pieces()?;
        // A stream's entry, made before its end, does not tell its length; but a stream is all
        // that there is in its snapshot.
        let size = match (complete, entry.size) {
            (true, _) => first.iter().map(Piece::len).sum(),
            (false, 0) => self.shared.restore.bytes,
            (false, size) => size,
        };
        // What a snapshot says of itself is only as true as the machine that made it.
        self.done.report.bytes = self.done.report.bytes.saturating_add(size);
        let (pieces, queue) = bounded(4);
        let kept = kept.filter(|_| existing != Existing::Nothing);
        let job = CompareJob { entry: Entry { size, ..entry }, number: self.files, pieces: queue, existing, kept };
        self.files += 1;
        let stopped = |_| RestoreError::Stopped;
        pieces.send(first).map_err(|_| RestoreError::Stopped)?;
        self.jobs.send(job).map_err(stopped)?;
        let mut more = !complete;
        while more {
            let (run, complete) = self.pieces()?;
            // A comparing thread that failed has said why.
            pieces.send(run).map_err(|_| RestoreError::Stopped)?;
            more = !complete;
        }
        Ok(())
    }

    /// The next pieces of the current file, and whether they are the last.
    fn pieces(&mut self) -> Result<(Vec<Piece>, bool), RestoreError> {
        let mut pieces = Vec::new();
        while let Some(Item::Piece(piece)) = self.item {
            pieces.push(piece);
            self.item = self.tree.next_item()?;
            if pieces.len() == RUN {
                return Ok((pieces, !matches!(self.item, Some(Item::Piece(_)))));
            }
        }
        Ok((pieces, true))
    }
}

/// Whether the file that was found is the one that a restore left, as it left it.
fn is_untouched(found: &Found, kept: &Kept) -> bool {
    found.entry.kind == EntryKind::File && found.entry.inode == kept.inode && found.entry.ctime == kept.ctime
}

/// What is in the target, one entry ahead.
struct Present {
    walker: Walker,
    next: Option<Box<Found>>,
    /// The last extraneous entry: what is below it goes with it.
    swept: Option<EntryPath>,
}

impl Present {
    fn advance(&mut self) {
        self.next = self.walker.by_ref().find_map(|step| match step {
            Step::Found(found) => Some(found),
            // What cannot be looked at cannot be compared either: it will be replaced.
            Step::Defect(_) => None,
        });
    }
}
