//! The tree of a snapshot, node by node: each is fetched, opened and read, and what its
//! parent says of it is compared with what is in it.

use std::collections::HashSet;
use std::rc::Rc;

use vsync_protocol::blob::BlobKind;
use vsync_protocol::id::{Cid, SnapshotId};
use vsync_protocol::tree::{Child, ChildSummary, Entry, EntryKind, EntryPath, Extent, Inner, Leaf, Record, Root};

use super::chunks::{Bad, ChunkCheck, Use};
use super::{Checked, Damage, VerifyError, VerifyReport, fatal, short};
use crate::progress::Progress;
use crate::remote::NodeError;
use crate::tree::{Children, Node, NodeSource, Reference};

/// Nodes asked for ahead.
const READ_AHEAD: usize = 16;

/// The nodes above a place, the nearest first.
pub(super) struct Above {
    cid: Cid,
    next: Option<Rc<Self>>,
}

/// What is in and below a node. Facts of neighbours add up to those of their parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    entries: u64,
    bytes: u64,
    /// Path of the first record, and whether it continues that file.
    first: EntryPath,
    continues: bool,
    /// The last entry, or the file continued if there is none.
    last: EntryPath,
    /// Bytes of the file that it continues.
    head: u64,
    /// A file at the end whose content may go on: its length, and what there is of it.
    tail: Option<(u64, u64)>,
}

/// How much a manifest says that a tree holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) entries: u64,
    pub(super) bytes: u64,
}

/// What is looked at, and what is found.
pub(super) struct Work<'a> {
    pub(super) id: SnapshotId,
    pub(super) checked: &'a mut Checked,
    pub(super) report: &'a mut VerifyReport,
    pub(super) progress: &'a Progress,
}

/// A node below another, and what that says of it.
struct Below<'a> {
    depth: usize,
    kind: BlobKind,
    reference: &'a Reference,
    summary: &'a ChildSummary,
}

impl Below<'_> {
    fn location(&self) -> Location {
        Location { path: self.summary.first.clone(), entries: self.summary.entries }
    }
}

/// A tree being looked at.
pub(super) struct Structure<'a, N, C> {
    id: SnapshotId,
    nodes: N,
    chunks: C,
    checked: &'a mut Checked,
    report: &'a mut VerifyReport,
    progress: &'a Progress,
    /// Nodes with damage in or below them: they are not remembered as checked.
    tainted: HashSet<Cid>,
}

impl<'a, N: NodeSource<Error = NodeError>, C: ChunkCheck> Structure<'a, N, C> {
    pub(super) fn new(nodes: N, chunks: C, Work { id, checked, report, progress }: Work<'a>) -> Self {
        Self { id, nodes, chunks, checked, report, progress, tainted: HashSet::new() }
    }

    /// Looks at the tree below `root`, which is said to hold so much.
    pub(super) fn run(&mut self, root: &Reference, totals: Totals) -> Result<(), VerifyError> {
        self.root(root, totals)?;
        let bad = self.chunks.finish(self.report)?;
        self.note(bad);
        Ok(())
    }

    fn root(&mut self, reference: &Reference, totals: Totals) -> Result<(), VerifyError> {
        let above = Rc::new(Above { cid: reference.cid, next: None });
        let whole = |entries| Location { path: EntryPath::root(), entries };
        let Some(node) = self.load(BlobKind::Root, reference, &above, whole(totals.entries))? else {
            return Ok(());
        };
        let root: Root = match minicbor::decode(&node.payload) {
            Ok(root) => root,
            Err(error) => {
                self.damage(&above, whole(totals.entries), error.to_string());
                return Ok(());
            }
        };
        let stream = root.volume.kind == "stream";
        let facts = self.children(&above, Children::of_root(node.refs, root.subtree))?;
        if self.tainted.contains(&reference.cid) {
            return Ok(());
        }
        let (entries, bytes) = facts.as_ref().map_or((0, 0), |facts| (facts.entries, facts.bytes));
        if (Totals { entries, bytes }) != totals {
            let reason = format!(
                "the manifest speaks of {} entries and {} bytes, the tree holds {entries} and {bytes}",
                totals.entries, totals.bytes
            );
            self.damage(&above, whole(entries), reason);
        }
        if let Some(Facts { tail: Some((len, content)), last, .. }) = facts
            && len != content
            && !stream
        {
            self.damage(&above, Location { path: last, entries: 1 }, wrong_length(len, content));
        }
        Ok(())
    }

    /// Looks after all children of a node; adds up what is in them.
    fn children(
        &mut self,
        above: &Rc<Above>,
        children: Result<Children, &'static str>,
    ) -> Result<Option<Facts>, VerifyError> {
        let children = match children {
            Ok(children) => children,
            Err(reason) => {
                self.damage(above, Location { path: EntryPath::root(), entries: 0 }, reason.into());
                return Ok(None);
            }
        };
        let (kind, depth) = (children.kind(), children.depth);
        let (references, summaries): (Vec<Reference>, Vec<ChildSummary>) = children.nodes.into_iter().unzip();
        let mut sum: Option<Facts> = None;
        // Beside a damaged node nothing adds up: what is below the others is still looked at.
        let mut whole = true;
        for (at, (reference, summary)) in references.iter().zip(&summaries).enumerate() {
            if at % READ_AHEAD == 0 {
                self.announce(kind, &references[at..]);
            }
            let facts = self.child(above, &Below { depth, kind, reference, summary })?;
            let joined = match (sum.take(), facts) {
                (_, None) => Ok(None),
                (None, facts) => Ok(facts),
                (Some(before), Some(facts)) => before.join(facts).map(Some),
            };
            sum = joined.unwrap_or_else(|(path, reason)| {
                self.damage(above, Location { path, entries: 1 }, reason);
                None
            });
            whole &= sum.is_some();
        }
        Ok(sum.filter(|_| whole))
    }

    fn announce(&mut self, kind: BlobKind, nodes: &[Reference]) {
        let ahead = nodes.iter().take(READ_AHEAD);
        let new: Vec<Reference> = ahead.filter(|node| !self.checked.nodes.contains_key(&node.cid)).copied().collect();
        self.nodes.expect(kind, &new);
    }

    fn child(&mut self, above: &Rc<Above>, below: &Below<'_>) -> Result<Option<Facts>, VerifyError> {
        let Below { reference, summary, .. } = below;
        if self.progress.is_cancelled() {
            return Err(VerifyError::Interrupted);
        }
        if self.tainted.contains(&reference.cid) {
            // Once is enough: a tree may refer to a node in more ways than can be gone.
            self.damage(above, below.location(), format!("node {} in it is damaged, as said before", reference.cid));
            return Ok(None);
        }
        let facts = if let Some(facts) = self.checked.nodes.get(&reference.cid) {
            let facts = facts.clone();
            self.progress.entries.add(facts.entries);
            self.progress.bytes.add(facts.bytes);
            Some(facts)
        } else {
            let here = Rc::new(Above { cid: reference.cid, next: Some(above.clone()) });
            self.node(&here, below)?
        };
        let Some(facts) = facts else { return Ok(None) };
        let said = (summary.entries, summary.bytes, &summary.first, summary.continues);
        if said != (facts.entries, facts.bytes, &facts.first, facts.continues) {
            let location = Location { path: summary.first.clone(), entries: facts.entries };
            self.damage(above, location, format!("it does not say what is in node {}", reference.cid));
            return Ok(None);
        }
        Ok(Some(facts))
    }

    fn node(&mut self, here: &Rc<Above>, below: &Below<'_>) -> Result<Option<Facts>, VerifyError> {
        let &Below { depth, kind, reference, summary } = below;
        let Some(node) = self.load(kind, reference, here, below.location())? else { return Ok(None) };
        let facts = if kind == BlobKind::Inner {
            match minicbor::decode::<Inner>(&node.payload) {
                Ok(inner) => self.children(here, Children::of_inner(depth, node.refs, inner))?,
                Err(error) => {
                    self.damage(here, below.location(), error.to_string());
                    None
                }
            }
        } else {
            match minicbor::decode::<Leaf>(&node.payload) {
                Ok(leaf) => self.leaf(here, &node.refs, leaf, summary)?,
                Err(error) => {
                    self.damage(here, below.location(), error.to_string());
                    None
                }
            }
        };
        if let Some(facts) = &facts
            && !self.tainted.contains(&reference.cid)
        {
            self.checked.node(reference.cid, facts.clone());
        }
        Ok(facts)
    }

    fn leaf(
        &mut self,
        here: &Rc<Above>,
        refs: &[Cid],
        leaf: Leaf,
        summary: &ChildSummary,
    ) -> Result<Option<Facts>, VerifyError> {
        let mut reading = Reading::begin(refs, &leaf.chunks, summary);
        for record in leaf.records {
            let used = match reading.record(record) {
                Ok(used) => used,
                Err((path, reason)) => {
                    self.damage(here, Location { path, entries: 1 }, reason);
                    return Ok(None);
                }
            };
            for chunk in used {
                if self.checked.chunk(&chunk.cid) {
                    let at = Use { path: reading.path().clone(), above: here.clone() };
                    let bad = self.chunks.check(&chunk, at, self.report)?;
                    self.note(bad);
                }
            }
        }
        let facts = reading.facts;
        if let Some(facts) = &facts {
            self.progress.entries.add(facts.entries);
            self.progress.bytes.add(facts.bytes);
        }
        Ok(facts)
    }

    fn load(
        &mut self,
        kind: BlobKind,
        node: &Reference,
        here: &Rc<Above>,
        location: Location,
    ) -> Result<Option<Node>, VerifyError> {
        match self.nodes.load(kind, node) {
            Ok(loaded) => {
                self.report.nodes += 1;
                Ok(Some(loaded))
            }
            Err(error) => {
                let reason = fatal(error)?;
                self.damage(here, location, reason);
                Ok(None)
            }
        }
    }

    fn note(&mut self, bad: Vec<Bad>) {
        for Bad { cid, at, reason } in bad {
            self.checked.chunks.remove(&short(&cid));
            self.taint(&at.above);
            self.report.add(Damage { snapshot: self.id, path: at.path, entries: 1, blob: cid, reason });
        }
    }

    /// Notes damage of the node that `here` begins with.
    fn damage(&mut self, here: &Rc<Above>, location: Location, reason: String) {
        self.taint(here);
        let Location { path, entries } = location;
        self.report.add(Damage { snapshot: self.id, path, entries, blob: here.cid, reason });
    }

    fn taint(&mut self, here: &Rc<Above>) {
        let mut next = Some(here);
        while let Some(above) = next {
            self.tainted.insert(above.cid);
            self.checked.nodes.remove(&above.cid);
            next = above.next.as_ref();
        }
    }
}

/// What a node is about, for people.
struct Location {
    path: EntryPath,
    entries: u64,
}

type Wrong = (EntryPath, String);

impl Facts {
    /// The facts of two neighbours together.
    fn join(self, next: Self) -> Result<Self, Wrong> {
        let in_order = if next.continues { next.first == self.last } else { next.first > self.last };
        if !in_order {
            return Err((next.first, "it is out of order".into()));
        }
        let ends = next.entries > 0;
        let tail = match self.tail {
            Some((len, content)) if ends && len != content.saturating_add(next.head) => {
                return Err((self.last, wrong_length(len, content.saturating_add(next.head))));
            }
            Some((len, content)) if !ends => Some((len, content.saturating_add(next.head))),
            // Of a node that begins inside a file, the length is known to an earlier one.
            _ if !ends => None,
            _ => next.tail,
        };
        let head = if self.entries == 0 { self.head.saturating_add(next.head) } else { self.head };
        let entries = self.entries + next.entries;
        Ok(Self { entries, bytes: self.bytes.saturating_add(next.bytes), last: next.last, head, tail, ..self })
    }
}

fn wrong_length(len: u64, content: u64) -> String {
    format!("its length is {len}, but its content has {content} bytes")
}

/// A leaf being read.
struct Reading<'a> {
    refs: &'a [Cid],
    chunks: &'a [Child],
    summary: &'a ChildSummary,
    facts: Option<Facts>,
}

impl<'a> Reading<'a> {
    const fn begin(refs: &'a [Cid], chunks: &'a [Child], summary: &'a ChildSummary) -> Self {
        Self { refs, chunks, summary, facts: None }
    }

    /// The entry whose records are read.
    fn path(&self) -> &EntryPath {
        self.facts.as_ref().map_or(&self.summary.first, |facts| &facts.last)
    }

    /// Takes the next record; returns the chunks in it.
    fn record(&mut self, record: Record) -> Result<Vec<Reference>, Wrong> {
        match record {
            Record::Entry(entry) => self.entry(&entry).map(|()| Vec::new()),
            Record::Extents(extents) => self.extents(&extents),
        }
    }

    fn entry(&mut self, entry: &Entry) -> Result<(), Wrong> {
        let facts = Facts {
            entries: 1,
            bytes: 0,
            first: entry.path.clone(),
            continues: false,
            last: entry.path.clone(),
            head: 0,
            tail: (entry.kind == EntryKind::File).then_some((entry.size, 0)),
        };
        self.facts = Some(match self.facts.take() {
            None => facts,
            Some(before) => before.join(facts)?,
        });
        Ok(())
    }

    fn extents(&mut self, extents: &[Extent]) -> Result<Vec<Reference>, Wrong> {
        let path = self.path().clone();
        let mut used = Vec::new();
        let mut bytes: u64 = 0;
        for extent in extents {
            let len = match *extent {
                Extent::Hole(len) => len,
                Extent::Chunk(position) => {
                    let at = position as usize;
                    let (Some(cid), Some(child)) = (self.refs.get(at), self.chunks.get(at)) else {
                        return Err((path, "an extent without a chunk".into()));
                    };
                    used.push(Reference { cid: *cid, child: *child });
                    u64::from(child.raw_len)
                }
            };
            bytes = bytes.saturating_add(len);
        }
        let more = Facts {
            entries: 0,
            bytes,
            first: path.clone(),
            continues: true,
            last: path.clone(),
            head: bytes,
            tail: None,
        };
        self.facts = Some(match self.facts.take() {
            None => more,
            Some(before) if before.entries > 0 && before.tail.is_none() => {
                return Err((path, "content that belongs to no file".into()));
            }
            Some(before) => before.join(more)?,
        });
        Ok(used)
    }
}
