//! Which snapshots hold paths that match. A node that several snapshots share is read once.

use std::collections::HashMap;
use std::rc::Rc;

use vsync_protocol::blob::BlobKind;
use vsync_protocol::id::Cid;
use vsync_protocol::tree::{Entry, EntryKind, EntryPath, Leaf, Record, Root};

use crate::pattern::Pattern;
use crate::tree::{Children, Node, NodeSource, Reference, TreeError, decode, load};

/// Matches remembered; beyond that, nodes are read again.
const REMEMBERED: usize = 200_000;

const READ_AHEAD: usize = 16;

/// Searches trees, one after the other.
pub(crate) struct Search {
    pattern: Pattern,
    known: HashMap<Cid, Matches>,
    remembered: usize,
}

/// What a node is known to hold.
#[derive(Clone)]
enum Matches {
    /// A leaf, and its matching entries.
    Entries(Cid, Rc<[Entry]>),
    /// Children in which something matches, and whether they are leaves.
    Nodes(Rc<[(Reference, usize)]>),
}

impl Matches {
    fn is_empty(&self) -> bool {
        match self {
            Self::Entries(_, entries) => entries.is_empty(),
            Self::Nodes(nodes) => nodes.is_empty(),
        }
    }
}

impl Search {
    /// A search for `pattern`.
    #[must_use]
    pub(crate) fn new(pattern: Pattern) -> Self {
        Self { pattern, known: HashMap::new(), remembered: 0 }
    }

    /// Calls `found` for each entry of the tree that matches, in path order.
    ///
    /// # Errors
    /// When a node cannot be had or is malformed.
    pub(crate) fn tree<N: NodeSource>(
        &mut self,
        nodes: &mut N,
        root: &Reference,
        found: &mut dyn FnMut(&Entry),
    ) -> Result<(), TreeError<N::Error>> {
        let known = if let Some(known) = self.known.get(&root.cid) {
            known.clone()
        } else {
            let Node { refs, payload } = load(nodes, BlobKind::Root, root)?;
            let node: Root = decode(root.cid, &payload)?;
            let known = self.children(nodes, root.cid, Children::of_root(refs, node.subtree))?;
            self.remember(root.cid, known)
        };
        self.tell(nodes, known, &mut None, found)
    }

    /// Hands out what is known of a node; what was forgotten meanwhile is read again.
    /// Paths come in order: a tree that refers to a node in more ways than can be gone does not.
    fn tell<N: NodeSource>(
        &mut self,
        nodes: &mut N,
        known: Matches,
        last: &mut Option<EntryPath>,
        found: &mut dyn FnMut(&Entry),
    ) -> Result<(), TreeError<N::Error>> {
        match known {
            Matches::Entries(leaf, entries) => {
                for entry in entries.iter() {
                    if last.as_ref().is_some_and(|last| *last >= entry.path) {
                        return Err(TreeError::malformed(leaf, format!("{} is out of order", entry.path)));
                    }
                    *last = Some(entry.path.clone());
                    found(entry);
                }
            }
            Matches::Nodes(children) => {
                for (child, depth) in children.iter() {
                    let known = self.node(nodes, child, *depth)?;
                    self.tell(nodes, known, last, found)?;
                }
            }
        }
        Ok(())
    }

    fn node<N: NodeSource>(
        &mut self,
        nodes: &mut N,
        node: &Reference,
        depth: usize,
    ) -> Result<Matches, TreeError<N::Error>> {
        if let Some(known) = self.known.get(&node.cid) {
            return Ok(known.clone());
        }
        if depth > 1 {
            let Node { refs, payload } = load(nodes, BlobKind::Inner, node)?;
            let children = Children::of_inner(depth, refs, decode(node.cid, &payload)?);
            let known = self.children(nodes, node.cid, children)?;
            return Ok(self.remember(node.cid, known));
        }
        let leaf: Leaf = decode(node.cid, &load(nodes, BlobKind::Leaf, node)?.payload)?;
        let entries = leaf.records.into_iter().filter_map(|record| match record {
            Record::Entry(entry) if self.pattern.fits(&entry.path, entry.kind == EntryKind::Directory) => Some(*entry),
            Record::Entry(_) | Record::Extents(_) => None,
        });
        let known = Matches::Entries(node.cid, entries.collect());
        Ok(self.remember(node.cid, known))
    }

    fn children<N: NodeSource>(
        &mut self,
        nodes: &mut N,
        cid: Cid,
        children: Result<Children, &'static str>,
    ) -> Result<Matches, TreeError<N::Error>> {
        let children = children.map_err(|reason| TreeError::malformed(cid, reason))?;
        let (kind, depth) = (children.kind(), children.depth);
        // A node of content alone holds no path.
        let worth = children.nodes.into_iter().filter(|(_, summary)| summary.entries > 0);
        let worth: Vec<Reference> = worth.map(|(node, _)| node).collect();
        let mut matching = Vec::new();
        for (at, child) in worth.iter().enumerate() {
            if at % READ_AHEAD == 0 {
                let ahead = worth[at..].iter().take(READ_AHEAD);
                let new: Vec<Reference> = ahead.filter(|node| !self.known.contains_key(&node.cid)).copied().collect();
                nodes.expect(kind, &new);
            }
            if !self.node(nodes, child, depth)?.is_empty() {
                matching.push((*child, depth));
            }
        }
        Ok(Matches::Nodes(matching.into()))
    }

    fn remember(&mut self, cid: Cid, known: Matches) -> Matches {
        if let Matches::Entries(_, entries) = &known {
            self.remembered += entries.len();
        }
        if self.remembered > REMEMBERED {
            self.known.clear();
            self.remembered = 0;
        }
        self.known.insert(cid, known.clone());
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::tests::{Nodes, big_file, many_files, write};
    use crate::tree::{Item, Reference};

    fn search(search: &mut Search, root: &Reference, mut nodes: &mut Nodes) -> (Vec<String>, usize) {
        let before = nodes.loaded;
        let mut found = Vec::new();
        search.tree(&mut nodes, root, &mut |entry| found.push(entry.path.to_string())).unwrap();
        (found, nodes.loaded - before)
    }

    #[test]
    fn what_snapshots_share_is_read_once() {
        let items = [many_files(20_000), big_file("e", 40_000, 0)].concat();
        let (root, mut nodes) = write(&items);
        let mut changed = items;
        let Item::Entry(entry) = &mut changed[2 * 777 + 1] else { panic!("no entry") };
        entry.mode = 0;
        let (other, more) = write(&changed);
        nodes.nodes.extend(more.nodes);

        let mut finder = Search::new(Pattern::parse("00077[78]").unwrap());
        let expected = vec!["d/000777".to_owned(), "d/000778".to_owned()];
        let (found, loaded) = search(&mut finder, &root, &mut nodes);
        assert_eq!(found, expected);
        assert!(loaded > 10 && loaded < nodes.nodes.len() / 2, "{loaded} of {} nodes loaded", nodes.nodes.len());
        let (found, loaded) = search(&mut finder, &other, &mut nodes);
        assert_eq!(found, expected);
        assert!(loaded <= 6, "{loaded} nodes loaded again");
    }
}
