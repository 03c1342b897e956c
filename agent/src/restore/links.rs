//! Further names of files, in a restore of a part: the first name may be outside of it.

use std::collections::HashMap;

use vsync_protocol::tree::{Entry, EntryKind, EntryPath};

use super::RestoreError;
use super::transfer::Restore;
use crate::remote::RemoteNodes;
use crate::tree::{Item, Piece, TreeReader};

/// Pieces handed on at once.
const RUN: usize = 1024;

/// Entries passed over to come to a first name; to one farther away the tree is opened anew.
const NEAR: usize = 1000;

/// A tree, read one item ahead.
pub(super) struct Ahead {
    tree: TreeReader<RemoteNodes>,
    item: Option<Item>,
}

impl Ahead {
    pub(super) fn new(mut tree: TreeReader<RemoteNodes>) -> Result<Self, RestoreError> {
        let item = tree.next_item()?;
        Ok(Self { tree, item })
    }

    /// The next item, which is taken.
    pub(super) fn advance(&mut self) -> Result<Option<Item>, RestoreError> {
        let item = self.item.take();
        if item.is_some() {
            self.item = self.tree.next_item()?;
        }
        Ok(item)
    }

    /// The next pieces of the current file, and whether they are the last.
    pub(super) fn pieces(&mut self) -> Result<(Vec<Piece>, bool), RestoreError> {
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

    /// Goes on to the entry at `path`, if it is near; whether it is there.
    fn reaches(&mut self, path: &EntryPath) -> Result<bool, RestoreError> {
        for _ in 0..NEAR {
            match &self.item {
                Some(Item::Entry(entry)) if entry.path >= *path => return Ok(entry.path == *path),
                Some(_) => self.item = self.tree.next_entry(None)?.map(Item::Entry),
                None => return Ok(false),
            }
        }
        Ok(false)
    }
}

/// What a further name comes to.
pub(super) enum Name {
    /// One more name of what is restored as this.
    Of(EntryPath),
    /// The first one that is restored: it gets what its file, which is not, has.
    First(Box<Entry>, Box<Ahead>),
    /// Its file is not in the snapshot.
    OfNothing(EntryPath),
}

/// The files outside of a part that have names in it.
#[derive(Default)]
pub(super) struct Outside {
    /// Where their content goes, by their paths in the snapshot.
    restored: HashMap<EntryPath, EntryPath>,
    /// Where in the tree the last one was found.
    tree: Option<Box<Ahead>>,
}

impl Outside {
    /// Finds what the entry that goes to `place` is a name of; `target` is the path of the file
    /// in the snapshot.
    pub(super) fn find(
        &mut self,
        restore: &Restore<'_>,
        target: EntryPath,
        place: &EntryPath,
    ) -> Result<Name, RestoreError> {
        if let Some(first) = self.restored.get(&target) {
            return Ok(Name::Of(first.clone()));
        }
        let mut tree = match self.tree.take() {
            Some(tree) => tree,
            None => Self::open(restore, &target)?,
        };
        // What cannot be read on the way there may not be needed.
        if !tree.reaches(&target).unwrap_or(false) {
            tree = Self::open(restore, &target)?;
        }
        match tree.advance()? {
            Some(Item::Entry(entry))
                if entry.path == target && !matches!(entry.kind, EntryKind::Directory | EntryKind::HardLink) =>
            {
                self.restored.insert(target, place.clone());
                Ok(Name::First(Box::new(Entry { path: place.clone(), ..*entry }), tree))
            }
            _ => Ok(Name::OfNothing(target)),
        }
    }

    /// Takes the tree back, for the next one.
    pub(super) fn keep(&mut self, tree: Box<Ahead>) {
        self.tree = Some(tree);
    }

    fn open(restore: &Restore<'_>, path: &EntryPath) -> Result<Box<Ahead>, RestoreError> {
        let (_, tree) = super::open_tree(restore.remote, restore.vault, restore.snapshot, path)?;
        Ok(Box::new(Ahead::new(tree)?))
    }
}
