//! Writing and reading the description of a snapshot, apart from sealing it.

use std::collections::HashMap;
use std::convert::Infallible;

use vsync::tree::{Node, NodeSink, NodeSource, Piece, Reference, TreeReader, TreeWriter};
use vsync_benches::{Amount, Harness};
use vsync_protocol::blob::BlobKind;
use vsync_protocol::id::{Cid, Pid};
use vsync_protocol::key::ContentKey;
use vsync_protocol::tree::{Child, Entry, EntryKind, EntryPath, Time, VolumeInfo};

/// Files of one chunk each: what a volume of many small files looks like.
const FILES: usize = 100_000;

#[derive(Default)]
struct Nodes(HashMap<Cid, (Vec<Cid>, Vec<u8>)>);

impl NodeSink for Nodes {
    type Error = Infallible;

    fn store(&mut self, _: BlobKind, refs: &[Cid], payload: &[u8]) -> Result<Reference, Infallible> {
        let cid = Cid::of(payload);
        self.0.insert(cid, (refs.to_vec(), payload.to_vec()));
        Ok(Reference { cid, child: child(cid, payload.len()) })
    }
}

impl NodeSource for &Nodes {
    type Error = std::io::Error;

    fn load(&mut self, _: BlobKind, node: &Reference) -> Result<Node, std::io::Error> {
        let (refs, payload) = &self.0[&node.cid];
        Ok(Node { refs: refs.clone(), payload: payload.clone() })
    }
}

pub(crate) fn run(harness: &Harness) {
    if !harness.wants("tree") {
        return;
    }
    let files: Vec<(Entry, Piece)> = (0..FILES).map(file).collect();
    let entries = Amount::Items(FILES);
    harness.run_with("tree/write", entries, || files.clone(), write);
    let (root, nodes) = write(files);
    harness.run("tree/read", entries, || read(&root, &nodes));
}

fn write(files: Vec<(Entry, Piece)>) -> (Reference, Nodes) {
    let mut writer = TreeWriter::new(Nodes::default());
    for (entry, piece) in files {
        let Ok(()) = writer.entry(entry);
        let Ok(()) = writer.piece(piece);
    }
    let info =
        VolumeInfo { kind: "directory".into(), driver: None, options: vec![], labels: vec![], quiesce: "none".into() };
    let Ok((root, _, nodes)) = writer.finish(info, None, vec![], 0);
    (root, nodes)
}

fn read(root: &Reference, nodes: &Nodes) -> usize {
    let (_, mut reader) = TreeReader::open(nodes, root, &EntryPath::root()).expect("a tree");
    let mut items = 0;
    while reader.next_item().expect("an intact tree").is_some() {
        items += 1;
    }
    items
}

fn file(number: usize) -> (Entry, Piece) {
    let path = EntryPath::new(format!("archive/{:04}/report-{number:08}.rds", number / 50)).expect("a path");
    let time = Time { seconds: 1_700_000_000 + number as i64, nanos: number as u32 };
    let entry = Entry {
        path,
        kind: EntryKind::File,
        mode: 0o644,
        uid: 1000,
        gid: 1000,
        mtime: time,
        ctime: time,
        inode: number as u64,
        size: 16_384,
        target: None,
        device: None,
        xattrs: None,
    };
    let cid = Cid::of(&number.to_le_bytes());
    (entry, Piece::Chunk(Reference { cid, child: child(cid, 16_384) }))
}

fn child(cid: Cid, len: usize) -> Child {
    let mut pid = [0; Pid::LEN];
    pid.copy_from_slice(&cid.as_bytes()[..Pid::LEN]);
    Child { ck: ContentKey::from_bytes(*cid.as_bytes()), pid: Pid::from_bytes(pid), raw_len: len as u32 }
}
