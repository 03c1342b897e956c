//! What differs between two snapshots. Nodes that both have are left out unread, so that
//! the cost follows the change and not the volume.

use std::collections::HashSet;

use vsync_protocol::id::Cid;
use vsync_protocol::tree::{Entry, EntryKind, EntryPath};

use crate::tree::{Head, Item, NodeSource, Piece, Reference, TreeError, TreeReader};

/// How many of the other side's next nodes are looked at before reading ahead.
const LOOK: usize = 64;

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Only the second snapshot has it.
    Added,
    /// Only the first snapshot has it.
    Removed,
    /// A file with other content.
    Content,
    /// Owner, mode, times, attributes or target differ; the content does not.
    Metadata,
    /// It is another kind of thing.
    Type,
}

/// An entry that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) path: EntryPath,
    pub(crate) kind: Kind,
    /// The entry in the first snapshot, if it had to be read.
    pub(crate) old: Option<Box<Entry>>,
    /// The entry in the second snapshot, if it had to be read.
    pub(crate) new: Option<Box<Entry>>,
    /// Bytes of a file that the second snapshot does not have any more.
    pub(crate) bytes_removed: u64,
    /// Bytes of a file that the first snapshot does not have yet.
    pub(crate) bytes_added: u64,
}

/// A comparison under way.
pub(crate) struct Diff<N> {
    old: Side<N>,
    new: Side<N>,
    /// The file that both sides are in.
    current: Option<Current>,
}

struct Side<N> {
    tree: TreeReader<N>,
    /// The last file that was begun.
    file: Option<EntryPath>,
}

struct Current {
    path: EntryPath,
    entries: Option<(Box<Entry>, Box<Entry>)>,
    differs: bool,
    bytes_removed: u64,
    bytes_added: u64,
}

/// As [`Head`], in values.
enum Front {
    End,
    Entry(EntryPath),
    Piece(Piece),
    Node(NodeAhead),
}

struct NodeAhead {
    node: Reference,
    depth: usize,
    first: EntryPath,
    continues: bool,
}

impl Front {
    fn continues(&self, path: &EntryPath) -> bool {
        match self {
            Self::Piece(_) => true,
            Self::Node(place) => place.continues && place.first == *path,
            Self::End | Self::Entry(_) => false,
        }
    }
}

enum Step {
    On,
    Found(Box<Change>),
    End,
}

impl<N: NodeSource> Diff<N> {
    /// Compares two trees, both from their beginning or from the same path.
    #[must_use]
    pub(crate) const fn new(old: TreeReader<N>, new: TreeReader<N>) -> Self {
        Self { old: Side { tree: old, file: None }, new: Side { tree: new, file: None }, current: None }
    }

    /// The next entry that differs, in path order; `None` at the end.
    ///
    /// # Errors
    /// When a node cannot be had or is malformed.
    pub(crate) fn next_change(&mut self) -> Result<Option<Change>, TreeError<N::Error>> {
        loop {
            match self.step()? {
                Step::On => {}
                Step::Found(change) => return Ok(Some(*change)),
                Step::End => return Ok(None),
            }
        }
    }

    fn step(&mut self) -> Result<Step, TreeError<N::Error>> {
        let (old, new) = (self.old.front()?, self.new.front()?);
        if let Some(current) = self.current.take_if(|it| !old.continues(&it.path) && !new.continues(&it.path)) {
            return Ok(current.finish().map_or(Step::On, Step::Found));
        }
        match (old, new) {
            (Front::End, Front::End) => return Ok(Step::End),
            (Front::Node(a), Front::Node(b)) if a.node.cid == b.node.cid => return self.skip_both(),
            (Front::Node(a), Front::Node(b)) => self.enter(&a, &b)?,
            (Front::Piece(a), Front::Piece(b)) if self.current.is_some() => self.pieces(&a, &b)?,
            // The same file goes on there: what is in it is needed to compare.
            (Front::Piece(_), Front::Node(b)) if self.is_current(&b) => self.new.enter(&self.old)?,
            (Front::Node(a), Front::Piece(_)) if self.is_current(&a) => self.old.enter(&self.new)?,
            (Front::Piece(piece), _) => self.lone(&piece, true)?,
            (_, Front::Piece(piece)) => self.lone(&piece, false)?,
            (Front::Entry(a), Front::Entry(b)) if a == b => self.pair()?,
            (Front::Entry(a), Front::Entry(b)) if a < b => return self.removed(),
            (Front::Entry(a), Front::Node(b)) if a < b.first => return self.removed(),
            (Front::Node(a), Front::Entry(b)) if b < a.first => return self.added(),
            (Front::Entry(_), Front::Entry(_)) | (Front::End, Front::Entry(_)) => return self.added(),
            (Front::Entry(_), Front::End) => return self.removed(),
            (Front::Node(_), Front::Entry(_) | Front::End) => self.old.enter(&self.new)?,
            (Front::Entry(_) | Front::End, Front::Node(_)) => self.new.enter(&self.old)?,
        }
        Ok(Step::On)
    }

    fn is_current(&self, place: &NodeAhead) -> bool {
        self.current.as_ref().is_some_and(|current| place.continues && place.first == current.path)
    }

    /// Loads of two different nodes the one that begins first, or stands for more.
    fn enter(&mut self, a: &NodeAhead, b: &NodeAhead) -> Result<(), TreeError<N::Error>> {
        let order = a.first.cmp(&b.first).then(b.depth.cmp(&a.depth));
        if order.is_le() {
            self.old.enter(&self.new)?;
        }
        if order.is_ge() {
            self.new.enter(&self.old)?;
        }
        Ok(())
    }

    /// Leaves out a node that both have. It may have begun a file that goes on after it.
    fn skip_both(&mut self) -> Result<Step, TreeError<N::Error>> {
        self.old.tree.skip();
        self.new.tree.skip();
        let begun = match self.old.begun()? {
            Some(path) => Some(path),
            None => self.new.begun()?,
        };
        let Some(path) = begun else { return Ok(Step::On) };
        self.old.file = Some(path.clone());
        self.new.file = Some(path.clone());
        let before = self.current.replace(Current::new(path, None));
        Ok(before.and_then(Current::finish).map_or(Step::On, Step::Found))
    }

    fn pieces(&mut self, a: &Piece, b: &Piece) -> Result<(), TreeError<N::Error>> {
        self.old.tree.next_item()?;
        self.new.tree.next_item()?;
        if !is_same(a, b)
            && let Some(current) = &mut self.current
        {
            current.differs = true;
            current.bytes_removed += a.len();
            current.bytes_added += b.len();
        }
        Ok(())
    }

    /// A piece that the other side has nothing to compare with.
    fn lone(&mut self, piece: &Piece, is_old: bool) -> Result<(), TreeError<N::Error>> {
        let side = if is_old { &mut self.old } else { &mut self.new };
        side.tree.next_item()?;
        if let Some(current) = &mut self.current {
            current.differs = true;
            *(if is_old { &mut current.bytes_removed } else { &mut current.bytes_added }) += piece.len();
        }
        Ok(())
    }

    fn pair(&mut self) -> Result<(), TreeError<N::Error>> {
        if let (Some(old), Some(new)) = (self.old.take()?, self.new.take()?) {
            self.current = Some(Current::new(new.path.clone(), Some((old, new))));
        }
        Ok(())
    }

    fn removed(&mut self) -> Result<Step, TreeError<N::Error>> {
        let entry = self.old.take()?;
        Ok(entry.map_or(Step::On, |entry| Step::Found(Box::new(Change::removed(entry)))))
    }

    fn added(&mut self) -> Result<Step, TreeError<N::Error>> {
        let entry = self.new.take()?;
        Ok(entry.map_or(Step::On, |entry| Step::Found(Box::new(Change::added(entry)))))
    }
}

impl<N: NodeSource> Side<N> {
    fn front(&mut self) -> Result<Front, TreeError<N::Error>> {
        Ok(match self.tree.peek()? {
            None => Front::End,
            Some(Head::Entry(entry)) => Front::Entry(entry.path.clone()),
            Some(Head::Piece(piece)) => Front::Piece(piece),
            Some(Head::Node { node, depth, summary }) => {
                Front::Node(NodeAhead { node, depth, first: summary.first.clone(), continues: summary.continues })
            }
        })
    }

    /// Loads the next node. What the other side has too is not read ahead: it may turn out
    /// to be skipped.
    fn enter(&mut self, other: &Self) -> Result<(), TreeError<N::Error>> {
        let known: HashSet<Cid> = other.tree.upcoming(LOOK).collect();
        self.tree.enter(|node, _| !known.contains(&node.cid)).map(|_| ())
    }

    fn take(&mut self) -> Result<Option<Box<Entry>>, TreeError<N::Error>> {
        let Some(Item::Entry(entry)) = self.tree.next_item()? else { return Ok(None) };
        self.file = Some(entry.path.clone());
        Ok(Some(entry))
    }

    /// The file that the next node continues, if it began in a node that was left out.
    fn begun(&mut self) -> Result<Option<EntryPath>, TreeError<N::Error>> {
        let Some(Head::Node { summary, .. }) = self.tree.peek()? else { return Ok(None) };
        Ok((summary.continues && self.file.as_ref() != Some(&summary.first)).then(|| summary.first.clone()))
    }
}

impl Current {
    const fn new(path: EntryPath, entries: Option<(Box<Entry>, Box<Entry>)>) -> Self {
        Self { path, entries, differs: false, bytes_removed: 0, bytes_added: 0 }
    }

    fn finish(self) -> Option<Box<Change>> {
        let kind = match &self.entries {
            Some((old, new)) if old.kind != new.kind => Kind::Type,
            _ if self.differs => Kind::Content,
            Some((old, new)) if !is_same_metadata(old, new) => Kind::Metadata,
            _ => return None,
        };
        let (old, new) = self.entries.unzip();
        let Self { path, bytes_removed, bytes_added, .. } = self;
        Some(Box::new(Change { path, kind, old, new, bytes_removed, bytes_added }))
    }
}

impl Change {
    /// Of an entry that only the first snapshot has.
    fn removed(entry: Box<Entry>) -> Self {
        let (path, bytes_removed) = (entry.path.clone(), content_of(&entry));
        Self { path, kind: Kind::Removed, old: Some(entry), new: None, bytes_removed, bytes_added: 0 }
    }

    /// Of an entry that only the second snapshot has.
    fn added(entry: Box<Entry>) -> Self {
        let (path, bytes_added) = (entry.path.clone(), content_of(&entry));
        Self { path, kind: Kind::Added, old: None, new: Some(entry), bytes_removed: 0, bytes_added }
    }
}

fn content_of(entry: &Entry) -> u64 {
    if entry.kind == EntryKind::File { entry.size } else { 0 }
}

/// Equal content, even if one of them was sealed by another cipher.
fn is_same(a: &Piece, b: &Piece) -> bool {
    match (a, b) {
        (Piece::Chunk(a), Piece::Chunk(b)) => {
            a.cid == b.cid || (a.child.pid == b.child.pid && a.child.raw_len == b.child.raw_len)
        }
        (Piece::Hole(a), Piece::Hole(b)) => a == b,
        (Piece::Chunk(_), Piece::Hole(_)) | (Piece::Hole(_), Piece::Chunk(_)) => false,
    }
}

/// Without inode and change time, which no restore brings back.
fn is_same_metadata(old: &Entry, new: &Entry) -> bool {
    Entry { ctime: new.ctime, inode: new.inode, ..old.clone() } == *new
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::tree::tests::{Nodes, big_file, chunk, items, many_files, write};

    /// The differences of two trees, and how many nodes were loaded for them.
    fn diff(old: &[Item], new: &[Item]) -> (Vec<(String, Kind)>, usize) {
        let ((old_root, mut old), (new_root, mut new)) = (write(old), write(new));
        let open = |root, nodes| TreeReader::open(nodes, root, &EntryPath::root()).unwrap().1;
        let mut diff = Diff::new(open(&old_root, &mut old), open(&new_root, &mut new));
        let next = || diff.next_change().unwrap().map(|change| (change.path.to_string(), change.kind));
        let found = std::iter::from_fn(next).collect();
        drop(diff);
        (found, loaded(&old) + loaded(&new))
    }

    fn loaded(nodes: &Nodes) -> usize {
        nodes.loaded
    }

    fn entry_of(item: &mut Item) -> &mut Entry {
        let Item::Entry(entry) = item else { panic!("no entry") };
        entry
    }

    #[test]
    fn the_cost_follows_the_change() {
        let old = many_files(50_000);
        assert_eq!(diff(&old, &old), (vec![], 2));

        let mut new = old.clone();
        new[2 * 31_415 + 2] = Item::Piece(chunk(1 << 40));
        entry_of(&mut new[2 * 31_415 + 1]).mtime.seconds += 1;
        entry_of(&mut new[2 * 7 + 1]).mode = 0o600;
        new.drain(2 * 40_000 + 1..2 * 40_000 + 3);
        let (found, loaded) = diff(&old, &new);
        let expected = [("d/000007", Kind::Metadata), ("d/031415", Kind::Content), ("d/040000", Kind::Removed)];
        assert_eq!(found, expected.map(|(path, kind)| (path.to_owned(), kind)));
        assert!(loaded <= 40, "{loaded} nodes loaded");
    }

    #[test]
    fn a_chunk_in_the_middle_of_a_large_file_is_found_by_its_nodes_alone() {
        let old = [big_file("big", 40_000, 0), big_file("other", 10, 9)].concat();
        let mut new = old.clone();
        new[20_000] = Item::Piece(chunk(1 << 40));
        let (found, loaded) = diff(&old, &new);
        assert_eq!(found, [("big".to_owned(), Kind::Content)]);
        assert!(loaded <= 16, "{loaded} nodes loaded");
    }

    #[test]
    fn a_renamed_file_is_one_less_and_one_more() {
        let old = [big_file("a", 4000, 0), big_file("other", 10, 9)].concat();
        let new = [big_file("b", 4000, 0), big_file("other", 10, 9)].concat();
        let (found, _) = diff(&old, &new);
        assert_eq!(found, [("a".to_owned(), Kind::Removed), ("b".to_owned(), Kind::Added)]);
    }

    type Files = BTreeMap<EntryPath, (Entry, Vec<Piece>)>;

    fn files(items: &[Item]) -> Files {
        let mut files = Files::new();
        let mut last = EntryPath::root();
        for item in items {
            match item {
                Item::Entry(entry) => {
                    last = entry.path.clone();
                    files.insert(last.clone(), ((**entry).clone(), vec![]));
                }
                Item::Piece(piece) => files.get_mut(&last).unwrap().1.push(*piece),
            }
        }
        files
    }

    fn plain_diff(old: &[Item], new: &[Item]) -> Vec<(String, Kind)> {
        let (old, new) = (files(old), files(new));
        let paths: std::collections::BTreeSet<&EntryPath> = old.keys().chain(new.keys()).collect();
        let kind = |path| match (old.get(path), new.get(path)) {
            (None, _) => Some(Kind::Added),
            (_, None) => Some(Kind::Removed),
            (Some(old), Some(new)) if old.1 != new.1 => Some(Kind::Content),
            (Some(old), Some(new)) => (old.0 != new.0).then_some(Kind::Metadata),
        };
        paths.into_iter().filter_map(|path| Some((path.to_string(), kind(path)?))).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn it_finds_what_a_plain_comparison_finds(old in items(), new in items(), edits in proptest::collection::vec((any::<prop::sample::Index>(), 0..3), 0..6)) {
            prop_assert_eq!(diff(&old, &new).0, plain_diff(&old, &new));
            let mut edited = old.clone();
            for (at, edit) in edits {
                if edited.is_empty() { break; }
                let at = at.index(edited.len());
                match (&mut edited[at], edit) {
                    (Item::Entry(entry), 0) => entry.mode ^= 1,
                    (Item::Piece(piece), 0) => *piece = chunk(1 << 50),
                    (Item::Piece(_), 1) => drop(edited.remove(at)),
                    (Item::Piece(_), _) => edited.insert(at, Item::Piece(chunk(1 << 51))),
                    (Item::Entry(_), _) => {
                        let end = (at + 1..edited.len()).find(|&at| matches!(edited[at], Item::Entry(_)));
                        edited.drain(at..end.unwrap_or(edited.len()));
                    }
                }
            }
            prop_assert_eq!(diff(&old, &edited).0, plain_diff(&old, &edited));
        }
    }
}
