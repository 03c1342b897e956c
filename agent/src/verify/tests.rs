use std::collections::HashSet;

use vsync_protocol::blob::BlobKind;
use vsync_protocol::tree::{Entry, EntryKind};

use super::chunks::{Bad, ChunkCheck, Use};
use super::*;
use crate::tree::tests::{Nodes, big_file, chunk, many_files, write};
use crate::tree::{Item, Node, NodeSource, Reference};

/// Nodes of which some are missing.
struct Holey<'a>(&'a mut Nodes, &'a HashSet<Cid>);

impl NodeSource for Holey<'_> {
    type Error = NodeError;

    fn load(&mut self, kind: BlobKind, node: &Reference) -> Result<Node, NodeError> {
        if self.1.contains(&node.cid) {
            return Err(NodeError::Absent(node.cid));
        }
        (&mut *self.0).load(kind, node).map_err(|_| NodeError::Absent(node.cid))
    }
}

/// Chunks of which some are missing; found out at the end, as on a slow line.
#[derive(Default)]
struct Chunks<'a> {
    missing: Option<&'a HashSet<Cid>>,
    late: Vec<Bad>,
}

impl ChunkCheck for Chunks<'_> {
    fn check(&mut self, chunk: &Reference, at: Use, report: &mut VerifyReport) -> Result<Vec<Bad>, RemoteError> {
        report.held += 1;
        if self.missing.is_some_and(|missing| missing.contains(&chunk.cid)) {
            self.late.push(Bad { cid: chunk.cid, at, reason: "missing".into() });
        }
        Ok(vec![])
    }

    fn finish(&mut self, _: &mut VerifyReport) -> Result<Vec<Bad>, RemoteError> {
        Ok(std::mem::take(&mut self.late))
    }
}

/// Verifies trees one after the other, as one run does.
struct Run {
    checked: Checked,
    missing: HashSet<Cid>,
}

impl Run {
    fn new(missing: impl IntoIterator<Item = Cid>) -> Self {
        Self { checked: Checked::default(), missing: missing.into_iter().collect() }
    }

    fn verify(&mut self, items: &[Item]) -> VerifyReport {
        let (root, mut nodes) = write(items);
        let entries = items.iter().filter(|item| matches!(item, Item::Entry(_))).count() as u64;
        let pieces = items.iter().map(|item| if let Item::Piece(piece) = item { piece.len() } else { 0 });
        let totals = Totals { entries, bytes: pieces.sum() };
        let mut report = VerifyReport::default();
        let chunks = Chunks { missing: Some(&self.missing), late: vec![] };
        let source = Holey(&mut nodes, &self.missing);
        let id = SnapshotId::from_bytes([1; 16]);
        let work = Work { id, checked: &mut self.checked, report: &mut report, progress: &Progress::default() };
        Structure::new(source, chunks, work).run(&root, totals).unwrap();
        report
    }
}

/// Items whose files are as long as their entries say.
fn sized(mut items: Vec<Item>) -> Vec<Item> {
    let mut size = 0;
    for item in items.iter_mut().rev() {
        match item {
            Item::Piece(piece) => size += piece.len(),
            Item::Entry(entry) => entry.size = std::mem::take(&mut size),
        }
    }
    items
}

fn volume() -> Vec<Item> {
    sized([many_files(3000), big_file("e", 20_000, 1 << 30), big_file("f", 10, 1 << 31)].concat())
}

fn entry(items: &mut [Item], path: &str) -> usize {
    let is = |item: &Item| matches!(item, Item::Entry(entry) if entry.path.as_bytes() == path.as_bytes());
    items.iter().position(is).unwrap()
}

fn entry_mut(item: &mut Item) -> &mut Entry {
    let Item::Entry(entry) = item else { panic!("no entry") };
    entry
}

#[test]
fn a_whole_tree_has_no_damage_and_is_read_once() {
    let mut run = Run::new([]);
    let first = run.verify(&volume());
    assert_eq!(first.damage, []);
    assert!(first.nodes > 20 && first.held == 23_010, "{first:?}");
    assert_eq!(run.verify(&volume()).nodes, 1);

    let mut changed = volume();
    let at = entry(&mut changed, "e");
    changed[at + 7000] = Item::Piece(chunk(1 << 41));
    let second = run.verify(&changed);
    assert_eq!((second.damage.len(), second.held), (0, 1));
    assert!(second.nodes <= 8, "{} nodes read again", second.nodes);
}

#[test]
fn missing_chunks_are_named_by_file_in_each_snapshot() {
    let mut items = volume();
    let at = entry(&mut items, "e") + 12_345;
    let Item::Piece(crate::tree::Piece::Chunk(lost)) = items[at] else { panic!("no chunk") };
    let mut run = Run::new([lost.cid]);
    for _ in 0..2 {
        let report = run.verify(&items);
        let found: Vec<_> = report.damage.iter().map(|damage| (damage.path.to_string(), damage.blob)).collect();
        assert_eq!(found, [("e".to_owned(), lost.cid)]);
    }
    // The rest of it was not looked at twice.
    assert!(run.verify(&items).nodes <= 5);
}

#[test]
fn missing_nodes_are_named_and_their_neighbours_still_looked_at() {
    let (_, nodes) = write(&volume());
    let mut leaves: Vec<_> = nodes.nodes.iter().filter(|(_, node)| node.0 == BlobKind::Leaf).map(|it| *it.0).collect();
    leaves.sort();
    let report = Run::new([leaves[2]]).verify(&volume());
    assert_eq!((report.damage.len(), report.damage[0].blob), (1, leaves[2]));
    assert_eq!(report.nodes as usize, nodes.nodes.len() - 1);
}

#[test]
fn sums_that_do_not_agree_are_damage() {
    let mut items = volume();
    let at = entry(&mut items, "e");
    entry_mut(&mut items[at]).size += 1;
    let report = Run::new([]).verify(&items);
    assert_eq!(report.damage_count, 1);
    assert_eq!(report.damage[0].path.to_string(), "e");

    let mut items = volume();
    let at = entry(&mut items, "f");
    entry_mut(&mut items[at]).kind = EntryKind::Fifo;
    let report = Run::new([]).verify(&items);
    assert_eq!((report.damage_count, report.damage[0].path.to_string()), (1, "f".into()));
}

#[test]
fn samples_are_read_from_text_and_choose_a_share() {
    let seeded = |text: &str| text.parse::<Sample>().unwrap().with(7, 1000);
    let share = |sample: &Sample| (0..10_000_u32).filter(|n| sample.takes(&Cid::of(&n.to_le_bytes()))).count();
    for (text, expected) in [("5%", 500), ("100%", 10_000), ("2/4", 2500), ("250", 2500), ("1G", 10_000)] {
        let count = share(&seeded(text));
        assert!(count.abs_diff(expected) < 300, "{text}: {count}");
    }
    let parts: usize = ["1/3", "2/3", "3/3"].map(|text| share(&seeded(text))).iter().sum();
    assert_eq!(parts, 10_000);
    assert_eq!("10GiB".parse(), Ok(Sample::Bytes(10 << 30)));
    for bad in ["", "0%", "101%", "0/3", "4/3", "1/", "x", "10X", "-5"] {
        assert!(bad.parse::<Sample>().is_err(), "{bad}");
    }
}
