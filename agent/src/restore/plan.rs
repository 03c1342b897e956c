//! What is to be done: the snapshot's tree side by side with what is in the target.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::sync::Arc;

use crossbeam_channel::{Sender, bounded};
use vsync_protocol::tree::{Entry, EntryKind, EntryPath};

use super::RestoreError;
use super::changes::Property;
use super::compare::{CompareJob, Existing, FilePlace};
use super::file::Counted;
use super::inspect::Inspector;
use super::links::{Ahead, Name, Outside};
use super::record::{FileRecord, Reader};
use super::transfer::{Transfer, Transferred, lock};
use crate::remote::RemoteNodes;
use crate::tree::{Item, Piece, TreeReader};
use crate::volume::{Defect, DefectReason, Found, Step, Walker};

/// Goes through the tree; files are handed to the comparing threads.
pub(super) fn run(
    shared: &Transfer<'_>,
    tree: TreeReader<RemoteNodes>,
    jobs: Sender<CompareJob>,
    record: Option<Reader>,
) -> Result<Transferred, RestoreError> {
    let walker = shared.restore.target.scan()?;
    let mut present = Present { walker, next: None, swept: None, unseen: Vec::new() };
    present.advance();
    let mut inspector = Inspector::default();
    if let Some(top) = shared.restore.top.as_ref().filter(|_| shared.restore.options.dry_run) {
        inspector.top(top, present.walker.root()).map_err(RestoreError::Deferred)?;
    }
    Plan {
        shared,
        tree: Ahead::new(tree)?,
        outside: Outside::default(),
        jobs,
        record,
        files: 0,
        present,
        inspector,
        done: Transferred::default(),
        base_is_directory: false,
        kept: HashSet::new(),
    }
    .run()
}

struct Plan<'a, 'b> {
    shared: &'a Transfer<'b>,
    tree: Ahead,
    outside: Outside,
    jobs: Sender<CompareJob>,
    /// What the restore before left in the target.
    record: Option<Reader>,
    /// Files met so far.
    files: u64,
    present: Present,
    /// Of a dry run.
    inspector: Inspector,
    done: Transferred,
    base_is_directory: bool,
    /// Inodes with several names that a file of the snapshot may keep: one file each.
    kept: HashSet<(u64, u64)>,
}

impl Plan<'_, '_> {
    fn run(mut self) -> Result<Transferred, RestoreError> {
        let selection = &self.shared.restore.options.selection;
        while let Some(item) = self.tree.advance()? {
            self.shared.check()?;
            let Item::Entry(entry) = item else { continue };
            if selection.is_past(&entry.path) {
                break;
            }
            if entry.path == selection.start() {
                self.base_is_directory = entry.kind == EntryKind::Directory;
            }
            if selection.contains(&entry.path, entry.kind == EntryKind::Directory) {
                self.entry(*entry)?;
            }
        }
        if selection.is_all() {
            while let Some(found) = self.present.next.take() {
                self.extraneous(&found)?;
            }
            lock(&self.shared.report).left = self.present.unseen;
        }
        lock(&self.shared.changes).push(self.inspector.finish());
        Ok(self.done)
    }

    fn entry(&mut self, entry: Entry) -> Result<(), RestoreError> {
        let selection = &self.shared.restore.options.selection;
        let path = selection.place(&entry.path, self.base_is_directory);
        let entry = Entry { path, ..entry };
        lock(&self.shared.report).entries += 1;
        let existing = self.existing(&entry.path)?;
        if existing.as_ref().is_some_and(|found| found.entry.kind == EntryKind::Directory)
            && entry.kind != EntryKind::Directory
        {
            // What is in the directory goes with it, when something else takes its place.
            self.present.swept = Some(entry.path.clone());
            self.present.unseen.retain(|(path, _)| !path.is_within(&entry.path));
        }
        if entry.kind == EntryKind::HardLink && !selection.is_all() {
            return self.name(entry, existing);
        }
        self.bring(entry, existing, None)
    }

    /// Brings an entry about; its content is what comes next in the snapshot's tree, or in another.
    fn bring(
        &mut self,
        entry: Entry,
        mut existing: Option<Box<Found>>,
        elsewhere: Option<&mut Ahead>,
    ) -> Result<(), RestoreError> {
        let differing = self.inspect(&entry, existing.as_deref_mut())?;
        match entry.kind {
            EntryKind::Directory => self.directory(entry),
            EntryKind::HardLink => self.link(&entry),
            EntryKind::File => {
                let kept = self.record.as_mut().and_then(|record| {
                    let kept = record.find(&entry.path)?;
                    let found = existing.as_ref()?;
                    (found.device == record.device() && is_untouched(found, &kept)).then_some(kept)
                });
                let existing = existing.map_or(Existing::Nothing, |found| self.usable(&found));
                self.file(entry, FilePlace { existing, kept, differing }, elsewhere)
            }
            EntryKind::Symlink
            | EntryKind::CharDevice
            | EntryKind::BlockDevice
            | EntryKind::Fifo
            | EntryKind::Socket => self.node(&entry, existing),
        }
    }

    /// Notes in a dry run how what is there differs from `entry`. Of a file, this is returned: its
    /// content is compared first.
    fn inspect(&mut self, entry: &Entry, there: Option<&mut Found>) -> Result<Option<Vec<Property>>, RestoreError> {
        if !self.shared.restore.options.dry_run {
            return Ok(None);
        }
        let differing = self.inspector.differing(entry, there);
        if entry.kind == EntryKind::File && differing.is_some() {
            return Ok(differing);
        }
        self.inspector.note(&entry.path, differing).map_err(RestoreError::Deferred)?;
        Ok(None)
    }

    /// A further name in a part of a snapshot: of a file that is restored elsewhere, or not at all.
    fn name(&mut self, link: Entry, existing: Option<Box<Found>>) -> Result<(), RestoreError> {
        let selection = &self.shared.restore.options.selection;
        let Some(target) = link.target.as_deref().and_then(|path| EntryPath::new(path).ok()) else {
            return self.bring(link, existing, None);
        };
        let found = if selection.contains(&target, false) {
            Name::Of(selection.place(&target, self.base_is_directory))
        } else {
            self.outside.find(self.shared.restore, target, &link.path)?
        };
        match found {
            Name::Of(place) => {
                let link = Entry { target: Some(place.as_bytes().to_vec()), ..link };
                self.bring(link, existing, None)
            }
            Name::First(entry, mut tree) => {
                self.bring(*entry, existing, Some(tree.as_mut()))?;
                self.outside.keep(tree);
                Ok(())
            }
            Name::OfNothing(target) => {
                let reason = format!("it is a name of {target}, which the snapshot does not have");
                lock(&self.shared.report).damaged.push((link.path, reason));
                Ok(())
            }
        }
    }

    fn link(&mut self, link: &Entry) -> Result<(), RestoreError> {
        if !self.shared.restore.options.dry_run {
            self.make_parents(&link.path)?;
        }
        self.shared.restore.progress.entries.add(1);
        self.done.links.push(link).map_err(RestoreError::Deferred)
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
            if self.shared.restore.options.dry_run {
                self.inspector.extraneous(&found.entry.path).map_err(RestoreError::Deferred)?;
            }
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

    fn file(&mut self, entry: Entry, mut place: FilePlace, elsewhere: Option<&mut Ahead>) -> Result<(), RestoreError> {
        if !self.shared.restore.options.dry_run {
            self.make_parents(&entry.path)?;
        }
        let tree = elsewhere.unwrap_or(&mut self.tree);
        let (first, complete) = tree.pieces()?;
        // A stream's entry, made before its end, does not tell its length; but a stream is all
        // that there is in its snapshot.
        let size = match (complete, entry.size) {
            (true, _) => first.iter().map(Piece::len).sum(),
            (false, 0) => self.shared.restore.bytes,
            (false, size) => size,
        };
        // What a snapshot says of itself is only as true as the machine that made it.
        {
            let mut report = lock(&self.shared.report);
            report.bytes = report.bytes.saturating_add(size);
        }
        let (pieces, queue) = bounded(4);
        place.kept.take_if(|_| place.existing == Existing::Nothing);
        let counted = Arc::new(Counted::new(size));
        let entry = Entry { size, ..entry };
        let job = CompareJob { entry, number: self.files, counted, pieces: queue, place };
        self.files += 1;
        let stopped = |_| RestoreError::Stopped;
        pieces.send(first).map_err(|_| RestoreError::Stopped)?;
        self.jobs.send(job).map_err(stopped)?;
        let mut more = !complete;
        while more {
            let (run, complete) = tree.pieces()?;
            // A comparing thread that failed has said why.
            pieces.send(run).map_err(|_| RestoreError::Stopped)?;
            more = !complete;
        }
        Ok(())
    }
}

/// Whether the file that was found is the one that a restore left, as it left it.
fn is_untouched(found: &Found, kept: &FileRecord) -> bool {
    found.entry.kind == EntryKind::File && found.entry.inode == kept.inode && found.entry.ctime == kept.ctime
}

/// What is in the target, one entry ahead.
struct Present {
    walker: Walker,
    next: Option<Box<Found>>,
    /// The last extraneous entry: what is below it goes with it.
    swept: Option<EntryPath>,
    /// What could not be looked at, and why. Of what is there, nothing can be compared or deleted.
    unseen: Vec<(EntryPath, String)>,
}

impl Present {
    fn advance(&mut self) {
        self.next = self.walker.by_ref().find_map(|step| match step {
            Step::Found(found) => Some(found),
            Step::Defect(Defect { path, reason }) => {
                // What goes with its directory does not stay.
                let goes = self.swept.as_ref().is_some_and(|swept| path.is_within(swept));
                if !goes && reason != DefectReason::Vanished {
                    self.unseen.push((path, reason.to_string()));
                }
                None
            }
        });
    }
}
