//! Trees that cannot be.

use vsync::tree::Reference;
use vsync_protocol::blob::BlobKind;
use vsync_protocol::tree::{ChildSummary, Entry, EntryKind, Extent, Inner, Record, Time, Xattr};
use vsync_tests::{Site, Tree, Volume, assert_same};

use super::forger::{Forger, Top, directory, entry, file, path};
use super::victim::{Victim, meet_all_but};

/// What a forger puts together, and whether a restore may still be exact.
type Case = (&'static str, fn(&mut Forger<'_>) -> Top, bool);

const CASES: [Case; 24] = [
    (
        "two entries of one name",
        |it| {
            let leaf = it.leaf(&[], vec![file("a", 0), file("a", 0)]);
            Forger::top(&[leaf], 1)
        },
        false,
    ),
    (
        "a file, and a directory of its name",
        |it| {
            let leaf = it.leaf(&[], vec![file("a", 0), directory("a")]);
            Forger::top(&[leaf], 1)
        },
        false,
    ),
    (
        "entries out of order",
        |it| {
            let leaf = it.leaf(&[], vec![file("b", 0), file("a", 0)]);
            Forger::top(&[leaf], 1)
        },
        false,
    ),
    (
        "an entry for the volume itself",
        |it| {
            let leaf = it.leaf_of(&[], vec![file("b", 0)], |payload| {
                let at = payload.windows(2).position(|window| window == [0x41, b'b']).unwrap();
                drop(payload.splice(at..at + 2, [0x40]));
            });
            Forger::top(&[leaf], 1)
        },
        false,
    ),
    (
        "a child of a file",
        |it| {
            let leaf = it.leaf(&[], vec![file("a", 0), file("a/b", 0)]);
            Forger::top(&[leaf], 1)
        },
        false,
    ),
    (
        "content of no file",
        |it| {
            let chunk = it.chunk(b"x");
            let leaf = it.leaf(&[chunk], vec![directory("a"), Record::Extents(vec![Extent::Chunk(0)])]);
            Forger::top(&[leaf], 1)
        },
        false,
    ),
    (
        "a chunk that is not referred to",
        |it| {
            let leaf = it.leaf(&[], vec![file("a", 5), Record::Extents(vec![Extent::Chunk(7)])]);
            Forger::top(&[leaf], 1)
        },
        false,
    ),
    (
        "a hole of no length",
        |it| {
            let leaf = it.leaf(&[], vec![file("a", 5), Record::Extents(vec![Extent::Hole(0)])]);
            Forger::top(&[leaf], 1)
        },
        false,
    ),
    (
        "holes longer than any file",
        |it| {
            let holes = vec![Extent::Hole((1 << 63) - 1); 3];
            let leaf = it.leaf(&[], vec![file("a", 5), Record::Extents(holes)]);
            Forger::top(&[leaf], 1)
        },
        false,
    ),
    (
        "files of all the bytes there are",
        |it| {
            let hole = || Record::Extents(vec![Extent::Hole((1 << 63) - 1)]);
            let leaf =
                it.leaf(&[], vec![file("a", u64::MAX), hole(), file("b", u64::MAX), hole(), file("c", 1), hole()]);
            Top { entries: u64::MAX, bytes: u64::MAX, ..Forger::top(&[leaf], 1) }
        },
        true,
    ),
    (
        "a leaf without records, many times",
        |it| {
            let leaf = it.leaf(&[], vec![]);
            Forger::top(&[leaf; 2000], 1)
        },
        false,
    ),
    (
        "levels of nodes without children",
        |it| {
            let payload = minicbor::to_vec(Inner::default()).unwrap();
            let inner = it.seal(BlobKind::Inner, &[], &payload);
            Forger::top(&[inner; 2000], 2)
        },
        false,
    ),
    (
        "a leaf many times",
        |it| {
            let leaf = it.leaf(&[], vec![file("a", 0)]);
            Forger::top(&[leaf; 2000], 1)
        },
        false,
    ),
    (
        "levels that fold into themselves",
        |it| {
            let chunk = it.chunk(b"x");
            let leaf = it.leaf(&[chunk], vec![file("a", 1), Record::Extents(vec![Extent::Chunk(0)])]);
            let mut node = leaf;
            for _ in 0..10 {
                let summary = ChildSummary { first: path("a"), continues: false, entries: u64::MAX, bytes: u64::MAX };
                let inner = Inner { children: vec![node.child; 300], summaries: vec![summary; 300] };
                node = it.seal(BlobKind::Inner, &[node.cid; 300], &minicbor::to_vec(&inner).unwrap());
            }
            Forger::top(&[node], 11)
        },
        false,
    ),
    (
        "a depth of nothing",
        |it| {
            let leaf = it.leaf(&[], vec![file("a", 0)]);
            Forger::top(&[leaf], 0)
        },
        false,
    ),
    (
        "a depth of 17",
        |it| {
            let leaf = it.leaf(&[], vec![file("a", 0)]);
            Forger::top(&[leaf], 17)
        },
        false,
    ),
    (
        "a depth of 2^32 - 1",
        |it| {
            let leaf = it.leaf(&[], vec![file("a", 0)]);
            Forger::top(&[leaf], u32::MAX)
        },
        false,
    ),
    (
        "a leaf where an inner node should be",
        |it| {
            let leaf = it.leaf(&[], vec![file("a", 0)]);
            Forger::top(&[leaf], 2)
        },
        false,
    ),
    (
        "fewer summaries than children",
        |it| {
            let leaf = it.leaf(&[], vec![file("a", 0)]);
            let mut top = Forger::top(&[leaf; 2], 1);
            top.root.subtree.summaries.pop();
            top
        },
        false,
    ),
    (
        "fewer references than children",
        |it| {
            let leaf = it.leaf(&[], vec![file("a", 0)]);
            let mut top = Forger::top(&[leaf; 2], 1);
            top.refs.pop();
            top
        },
        false,
    ),
    (
        "a chunk with another's key",
        |it| {
            let (one, two) = (it.chunk(b"one"), it.chunk(b"two"));
            let mixed = Reference { cid: one.cid, child: two.child };
            let leaf = it.leaf(&[mixed], vec![file("a", 3), Record::Extents(vec![Extent::Chunk(0)])]);
            Forger::top(&[leaf], 1)
        },
        false,
    ),
    (
        "a chunk of another length",
        |it| {
            let mut chunk = it.chunk(b"three");
            chunk.child.raw_len = 4;
            let leaf = it.leaf(&[chunk], vec![file("a", 4), Record::Extents(vec![Extent::Chunk(0)])]);
            Forger::top(&[leaf], 1)
        },
        false,
    ),
    (
        "metadata beyond all bounds",
        |it| {
            let odd = Entry {
                mode: u32::MAX,
                uid: u32::MAX,
                gid: u32::MAX - 1,
                mtime: Time { seconds: i64::MIN, nanos: u32::MAX },
                ctime: Time { seconds: i64::MAX, nanos: u32::MAX },
                inode: u64::MAX,
                device: Some(u64::MAX),
                target: Some(vec![0xff; 300]),
                ..entry("a", EntryKind::File)
            };
            let node = |name, kind| Record::Entry(Box::new(Entry { path: path(name), kind, ..odd.clone() }));
            let records = vec![
                node("a", EntryKind::File),
                node("b", EntryKind::Directory),
                node("c", EntryKind::Fifo),
                node("d", EntryKind::Socket),
            ];
            let leaf = it.leaf(&[], records);
            Forger::top(&[leaf], 1)
        },
        true,
    ),
    (
        "attributes that no system takes",
        |it| {
            let xattr = |name: &[u8], len| Xattr { name: name.to_vec(), value: vec![7; len] };
            let long = [&b"user."[..], &[b'x'; 400]].concat();
            let xattrs = vec![
                xattr(b"", 1),
                xattr(b"nonsense", 1),
                xattr(&long, 1),
                xattr(b"user.large", 1 << 20),
                xattr(b"user.\0", 1),
            ];
            let file = Entry { xattrs: Some(xattrs), ..entry("a", EntryKind::File) };
            let leaf = it.leaf(&[], vec![Record::Entry(Box::new(file))]);
            Forger::top(&[leaf], 1)
        },
        true,
    ),
];

#[test]
fn trees_that_cannot_be_are_refused() {
    // Of its size, too, a machine may say what it likes; the sum of all is shown.
    let other = Volume::new(1023);
    other.write("file", "content");
    let path = other.path().to_owned();
    let site = Site::with(23, |realm| realm.client("host2", &["other"]).directory("other", &path));
    site.realm.vsync("host2").run(["backup", "other"]).success();
    for (what, make, may_work) in CASES {
        let mut forger = Forger::new(&site);
        let top = make(&mut forger);
        let id = forger.commit(&top);
        // A file of zeros without an end is dumped without an end.
        let left_out = if top.bytes == u64::MAX { "dump" } else { "" };
        let output = meet_all_but(&site, &Victim::new(), what, &id, left_out);
        assert!(may_work || output.status() != Some(0), "{what}: {output}");
    }
    // The volume goes on, and so do orders about it.
    site.data.write("file", "content");
    site.backup();
    let target = vsync_tests::scratch();
    site.restore(&["data"], target.path());
    assert_same(&Tree::read(site.data.path()), &Tree::read(target.path()));
}
