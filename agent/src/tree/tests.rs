use std::collections::HashMap;
use std::convert::Infallible;

use proptest::prelude::*;
use vsync_protocol::blob::BlobKind;
use vsync_protocol::id::{Cid, Pid};
use vsync_protocol::key::ContentKey;
use vsync_protocol::tree::{Child, Entry, EntryKind, EntryPath, Time, VolumeInfo};

use super::*;

/// Nodes in memory, unsealed: what a tree is like apart from keys.
#[derive(Default, Clone)]
pub(crate) struct Nodes {
    pub(crate) nodes: HashMap<Cid, (BlobKind, Vec<Cid>, Vec<u8>)>,
    pub(crate) loaded: usize,
}

impl NodeSink for Nodes {
    type Error = Infallible;

    fn store(&mut self, kind: BlobKind, refs: &[Cid], payload: &[u8]) -> Result<Reference, Infallible> {
        let names: Vec<u8> = refs.iter().flat_map(|cid| *cid.as_bytes()).collect();
        let cid = Cid::of(&[names.as_slice(), payload].concat());
        self.nodes.insert(cid, (kind, refs.to_vec(), payload.to_vec()));
        Ok(Reference { cid, child: child(payload.len() as u32, 0) })
    }
}

impl NodeSource for &mut Nodes {
    type Error = std::io::Error;

    fn load(&mut self, kind: BlobKind, node: &Reference) -> Result<Node, std::io::Error> {
        self.loaded += 1;
        let (stored, refs, payload) = &self.nodes[&node.cid];
        assert_eq!(*stored, kind);
        Ok(Node { refs: refs.clone(), payload: payload.clone() })
    }
}

fn child(raw_len: u32, seed: u64) -> Child {
    let hash = *blake3::hash(&seed.to_le_bytes()).as_bytes();
    Child { ck: ContentKey::from_bytes(hash), pid: Pid::from_slice(&hash[..16]).unwrap(), raw_len }
}

pub(crate) fn chunk(seed: u64) -> Piece {
    let child = child(65_536, seed);
    Piece::Chunk(Reference { cid: Cid::of(child.ck.as_bytes()), child })
}

pub(crate) fn entry(path: &str, kind: EntryKind) -> Entry {
    Entry {
        path: EntryPath::new(path).unwrap(),
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: Time::default(),
        ctime: Time::default(),
        inode: 1,
        size: 0,
        target: None,
        device: None,
        xattrs: None,
    }
}

pub(crate) fn volume() -> VolumeInfo {
    VolumeInfo { kind: "directory".into(), driver: None, options: vec![], labels: vec![], quiesce: "none".into() }
}

pub(crate) fn write(items: &[Item]) -> (Reference, Nodes) {
    let mut writer = TreeWriter::new(Nodes::default());
    for item in items {
        let Ok(()) = match item {
            Item::Entry(entry) => writer.entry((**entry).clone()),
            Item::Piece(piece) => writer.piece(*piece),
        };
    }
    let Ok((root, _, nodes)) = writer.finish(volume(), None, vec![], 0);
    (root, nodes)
}

fn read(root: &Reference, nodes: &mut Nodes, from: &str) -> Vec<Item> {
    let (_, mut reader) = TreeReader::open(nodes, root, &EntryPath::new(from).unwrap()).unwrap();
    std::iter::from_fn(|| reader.next_item().unwrap()).collect()
}

pub(crate) fn big_file(name: &str, chunks: u64, seed: u64) -> Vec<Item> {
    let mut items = vec![Item::Entry(Box::new(entry(name, EntryKind::File)))];
    items.extend((0..chunks).map(|n| Item::Piece(chunk(seed + n))));
    items
}

pub(crate) fn many_files(count: usize) -> Vec<Item> {
    let mut items = vec![Item::Entry(Box::new(entry("d", EntryKind::Directory)))];
    items.extend((0..count).flat_map(|n| big_file(&format!("d/{n:06}"), 1, n as u64 * 7)));
    items
}

fn new_nodes(before: &Nodes, after: &Nodes) -> usize {
    after.nodes.keys().filter(|cid| !before.nodes.contains_key(cid)).count()
}

#[test]
fn one_changed_chunk_rewrites_one_leaf_and_its_ancestors() {
    let items = big_file("big", 40_000, 0);
    let (root, before) = write(&items);
    let mut changed = items.clone();
    for place in [1, 777, 20_000, 40_000] {
        let old = std::mem::replace(&mut changed[place], Item::Piece(chunk(1 << 40)));
        let (other, after) = write(&changed);
        assert_ne!(other, root);
        let rewritten = new_nodes(&before, &after);
        // The leaf, at most two levels above it, the root; twice that where the change makes
        // or unmakes a boundary.
        assert!((2..=8).contains(&rewritten), "{rewritten} nodes rewritten for chunk {place}");
        changed[place] = old;
    }
}

#[test]
fn an_insertion_leaves_the_nodes_elsewhere_alone() {
    let items = big_file("big", 40_000, 0);
    let (_, before) = write(&items);
    let mut changed = items;
    (0..100).for_each(|n| changed.insert(5000, Item::Piece(chunk((1 << 41) + n))));
    let (_, after) = write(&changed);
    let rewritten = new_nodes(&before, &after);
    assert!(rewritten <= 12, "{rewritten} of {} nodes rewritten", after.nodes.len());
}

#[test]
fn looking_at_one_entry_of_many_loads_few_nodes() {
    let (root, mut nodes) = write(&many_files(50_000));
    let (_, mut reader) = TreeReader::open(&mut nodes, &root, &EntryPath::new("d/031415").unwrap()).unwrap();
    let Some(Item::Entry(found)) = reader.next_item().unwrap() else { panic!("no entry") };
    assert_eq!(found.path.as_bytes(), b"d/031415");
    drop(reader);
    assert!(nodes.loaded <= 5, "{} nodes loaded of {}", nodes.loaded, nodes.nodes.len());
}

fn names(items: &mut TreeReader<&mut Nodes>, below: Option<&str>, count: usize) -> Vec<String> {
    let below = below.map(|below| EntryPath::new(below).unwrap());
    let next = || Some(items.next_entry(below.as_ref()).unwrap()?.path.to_string());
    std::iter::from_fn(next).take(count).collect()
}

#[test]
fn a_large_directory_or_file_is_passed_over_without_reading_it() {
    let mut items = many_files(50_000);
    items.push(Item::Entry(Box::new(entry("e", EntryKind::Directory))));
    items.extend(big_file("f", 40_000, 0));
    items.push(Item::Entry(Box::new(entry("g", EntryKind::File))));
    let (root, mut nodes) = write(&items);
    let all = nodes.nodes.len();
    let (_, mut reader) = TreeReader::open(&mut nodes, &root, &EntryPath::root()).unwrap();
    assert_eq!(names(&mut reader, None, 1), ["d"]);
    assert_eq!(names(&mut reader, Some("d"), 9), ["e", "f", "g"]);
    drop(reader);
    assert!(nodes.loaded <= 12, "{} nodes loaded of {all}", nodes.loaded);
    let (_, mut reader) = TreeReader::open(&mut nodes, &root, &EntryPath::new("d/049998").unwrap()).unwrap();
    assert_eq!(names(&mut reader, None, 9), ["d/049998", "d/049999", "e", "f", "g"]);
}

#[test]
fn an_empty_volume_is_a_root_alone() {
    let (root, mut nodes) = write(&[]);
    assert_eq!(nodes.nodes.len(), 1);
    assert_eq!(read(&root, &mut nodes, ""), vec![]);
}

pub(crate) fn items() -> impl Strategy<Value = Vec<Item>> {
    let pieces = proptest::collection::vec((any::<u16>(), 1_u64..1 << 40), 0..200);
    proptest::collection::btree_map("[a-c]{1,2}(/[a-c]{1,3}){0,3}", pieces, 0..60).prop_map(|files| {
        let sorted: std::collections::BTreeMap<EntryPath, _> =
            files.into_iter().map(|(path, pieces)| (EntryPath::new(path).unwrap(), pieces)).collect();
        let mut items = Vec::new();
        for (path, pieces) in sorted {
            items.push(Item::Entry(Box::new(Entry { path, ..entry("x", EntryKind::File) })));
            items.extend(pieces.into_iter().map(|(seed, hole)| {
                Item::Piece(if seed % 8 == 0 { Piece::Hole(hole) } else { chunk(u64::from(seed)) })
            }));
        }
        items
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_is_written_is_read_and_any_place_can_be_found(items in items()) {
        let (root, mut nodes) = write(&items);
        prop_assert_eq!(&read(&root, &mut nodes, ""), &items);
        for (at, item) in items.iter().enumerate() {
            let Item::Entry(entry) = item else { continue };
            let path = String::from_utf8(entry.path.as_bytes().to_vec()).unwrap();
            prop_assert_eq!(&read(&root, &mut nodes, &path), &items[at..], "from {}", path);
        }
    }
}
