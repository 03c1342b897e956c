//! What every node must look like, whoever has made it.

use vsync_protocol::blob::BlobKind;
use vsync_protocol::id::Cid;
use vsync_protocol::limits::MAX_TREE_DEPTH;
use vsync_protocol::tree::{Child, ChildSummary, Inner, Subtree};

use super::{Node, NodeSource, Reference, TreeError};

/// The children of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Children {
    /// Levels of nodes from them down: 1 for leaves.
    pub depth: usize,
    /// Each, with what the node says of it.
    pub nodes: Vec<(Reference, ChildSummary)>,
}

impl Children {
    /// Those of a root whose clear references are `refs`.
    ///
    /// # Errors
    /// What does not fit.
    pub fn of_root(refs: Vec<Cid>, subtree: Subtree) -> Result<Self, &'static str> {
        let Subtree { children, summaries, depth } = subtree;
        Self::new(depth as usize, refs, children, summaries)
    }

    /// Those of an inner node whose clear references are `refs`, of which `depth` levels begin.
    ///
    /// # Errors
    /// What does not fit.
    pub fn of_inner(depth: usize, refs: Vec<Cid>, inner: Inner) -> Result<Self, &'static str> {
        let Inner { children, summaries } = inner;
        // Nothing would come of reading on, however often such a node is referred to.
        if children.is_empty() {
            return Err(NOTHING);
        }
        Self::new(depth.saturating_sub(1), refs, children, summaries)
    }

    fn new(
        depth: usize,
        refs: Vec<Cid>,
        children: Vec<Child>,
        summaries: Vec<ChildSummary>,
    ) -> Result<Self, &'static str> {
        let references = references(refs, children)?;
        if references.len() != summaries.len() {
            return Err("children and what is said of them differ in number");
        }
        if depth > MAX_TREE_DEPTH || (depth == 0 && !references.is_empty()) {
            return Err("it is deeper than any tree, or than its parent says");
        }
        Ok(Self { depth, nodes: references.into_iter().zip(summaries).collect() })
    }

    /// What they are.
    #[must_use]
    pub const fn kind(&self) -> BlobKind {
        if self.depth == 1 { BlobKind::Leaf } else { BlobKind::Inner }
    }
}

/// What is wrong with a node that holds nothing.
pub(super) const NOTHING: &str = "it holds nothing";

/// Names and keys of what a node refers to, which stand in two places of it.
pub(super) fn references(refs: Vec<Cid>, children: Vec<Child>) -> Result<Vec<Reference>, &'static str> {
    if refs.len() != children.len() {
        return Err("references and children differ in number");
    }
    Ok(refs.into_iter().zip(children).map(|(cid, child)| Reference { cid, child }).collect())
}

/// The opened node, or its name with what went wrong.
pub(crate) fn load<N: NodeSource>(
    source: &mut N,
    kind: BlobKind,
    node: &Reference,
) -> Result<Node, TreeError<N::Error>> {
    source.load(kind, node).map_err(|source| TreeError::Node { cid: node.cid, source })
}

/// What is in the payload of the node `cid`.
pub(crate) fn decode<'b, T, E>(cid: Cid, payload: &'b [u8]) -> Result<T, TreeError<E>>
where
    T: minicbor::Decode<'b, ()>,
    E: std::error::Error + 'static,
{
    minicbor::decode(payload).map_err(|error| TreeError::malformed(cid, error.to_string()))
}

#[cfg(test)]
mod tests {
    use vsync_protocol::id::Pid;
    use vsync_protocol::key::ContentKey;
    use vsync_protocol::tree::EntryPath;

    use super::*;

    #[test]
    fn shapes_that_cannot_be_are_refused() {
        let child = Child { ck: ContentKey::from_bytes([0; 32]), pid: Pid::from_bytes([0; 16]), raw_len: 1 };
        let summary = ChildSummary { first: EntryPath::root(), continues: false, entries: 1, bytes: 0 };
        let of = |depth, refs, children, summaries| {
            Children::new(depth, vec![Cid::of(b"x"); refs], vec![child; children], vec![summary.clone(); summaries])
        };
        for (depth, refs, children, summaries, right) in [
            (1, 2, 2, 2, true),
            (MAX_TREE_DEPTH, 1, 1, 1, true),
            (0, 0, 0, 0, true),
            (1, 2, 1, 2, false),
            (1, 1, 2, 2, false),
            (1, 2, 2, 1, false),
            (0, 1, 1, 1, false),
            (MAX_TREE_DEPTH + 1, 1, 1, 1, false),
        ] {
            let made = of(depth, refs, children, summaries);
            assert_eq!(made.is_ok(), right, "{depth} {refs} {children} {summaries}: {made:?}");
        }
        assert_eq!(of(1, 1, 1, 1).map(|made| made.kind()), Ok(BlobKind::Leaf));
        assert_eq!(of(2, 1, 1, 1).map(|made| made.kind()), Ok(BlobKind::Inner));
        let empty = Inner { children: vec![], summaries: vec![] };
        assert_eq!(Children::of_inner(3, vec![], empty), Err(NOTHING));
    }
}
