//! Snapshots made by somebody who holds a machine's keys and means harm (B12, A07, A14): signed, sealed and committed as
//! any other, with whatever he likes in them. Whoever restores or looks at one is told what is wrong with it; nothing
//! outside the target is touched, nothing panics, nothing goes on for ever.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use vsync::budget::Budget;
use vsync::chunk::PARAMETERS;
use vsync::keys::KeyStore;
use vsync::remote::{CommitOutcome, Identity, Offer, Remote, ServerAddress};
use vsync::snapshot;
use vsync::tree::Reference;
use vsync::vault::{Sealer, Vault};
use vsync_protocol::blob::BlobKind;
use vsync_protocol::id::Cid;
use vsync_protocol::manifest::{Body, Sealed, SnapshotKind, snapshot_id};
use vsync_protocol::tree::{
    Child, ChildSummary, Entry, EntryKind, EntryPath, Extent, Inner, Leaf, Record, Root, Subtree, Time, VolumeInfo,
    Xattr,
};
use vsync_tests::{Output, Site, Tree, Volume, assert_same};

/// A machine's keys in the wrong hands.
struct Forger<'a> {
    site: &'a Site,
    sealer: Sealer,
    vault: Arc<Vault>,
    blobs: Vec<Offer>,
    budget: Budget,
}

/// What the forger puts at the top.
struct Top {
    root: Root,
    refs: Vec<Cid>,
    entries: u64,
    bytes: u64,
}

fn path(text: &str) -> EntryPath {
    EntryPath::new(text).unwrap()
}

fn entry(name: &str, kind: EntryKind) -> Entry {
    Entry {
        path: path(name),
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: Time { seconds: 1, nanos: 0 },
        ctime: Time::default(),
        inode: 5,
        size: 0,
        target: None,
        device: None,
        xattrs: None,
    }
}

fn file(name: &str, size: u64) -> Record {
    Record::Entry(Box::new(Entry { size, ..entry(name, EntryKind::File) }))
}

fn directory(name: &str) -> Record {
    Record::Entry(Box::new(Entry { mode: 0o755, ..entry(name, EntryKind::Directory) }))
}

fn link(name: &str, kind: EntryKind, target: &str) -> Record {
    Record::Entry(Box::new(Entry { target: Some(target.as_bytes().to_vec()), ..entry(name, kind) }))
}

impl<'a> Forger<'a> {
    fn new(site: &'a Site) -> Self {
        let bundle = Self::store(site).machine(&"host".parse().unwrap()).unwrap();
        let keys = bundle.writer(bundle.epoch).unwrap();
        let vault = Arc::new(Vault::new(bundle.realm_id, bundle.suite, bundle.epoch, keys));
        let sealer = Sealer::new(vault.clone()).unwrap();
        Self { site, sealer, vault, blobs: Vec::new(), budget: Budget::new(1 << 30) }
    }

    fn store(site: &Site) -> KeyStore {
        KeyStore::Directory(site.realm.admin().with_file_name("keys"))
    }

    fn seal(&mut self, kind: BlobKind, refs: &[Cid], plain: &[u8]) -> Reference {
        let sealed = self.sealer.seal(kind, refs, plain).unwrap();
        let child = Child { ck: sealed.ck, pid: self.vault.pid(plain), raw_len: u32::try_from(plain.len()).unwrap() };
        let permit = self.budget.take(sealed.blob.len());
        self.blobs.push(Offer { cid: sealed.cid, blob: sealed.blob, permit });
        Reference { cid: sealed.cid, child }
    }

    fn chunk(&mut self, bytes: &[u8]) -> Reference {
        self.seal(BlobKind::Chunk, &[], bytes)
    }

    fn leaf(&mut self, chunks: &[Reference], records: Vec<Record>) -> Reference {
        self.leaf_of(chunks, records, |_| {})
    }

    /// A leaf whose bytes are changed before they are sealed.
    fn leaf_of(&mut self, chunks: &[Reference], records: Vec<Record>, change: impl Fn(&mut Vec<u8>)) -> Reference {
        let leaf = Leaf { chunks: chunks.iter().map(|chunk| chunk.child).collect(), records };
        let mut payload = minicbor::to_vec(&leaf).unwrap();
        change(&mut payload);
        let refs: Vec<Cid> = chunks.iter().map(|chunk| chunk.cid).collect();
        self.seal(BlobKind::Leaf, &refs, &payload)
    }

    /// A root over `children`, which lie at the bottom of `depth` levels.
    fn top(children: &[Reference], depth: u32) -> Top {
        let summary = |_: &Reference| ChildSummary { first: path("a"), continues: false, entries: 1, bytes: 0 };
        let subtree = Subtree {
            children: children.iter().map(|node| node.child).collect(),
            summaries: children.iter().map(summary).collect(),
            depth,
        };
        let volume = VolumeInfo {
            kind: "directory".into(),
            driver: None,
            options: vec![],
            labels: vec![],
            quiesce: "none".into(),
        };
        let root = Root { volume, directory: None, subtree, defects: vec![], defect_count: 0 };
        Top { root, refs: children.iter().map(|node| node.cid).collect(), entries: 1, bytes: 0 }
    }

    /// Backs it up as the machine would; returns the snapshot's id.
    fn commit(mut self, top: &Top) -> String {
        let payload = minicbor::to_vec(&top.root).unwrap();
        let root = self.seal(BlobKind::Root, &top.refs, &payload);
        let bundle = Self::store(self.site).machine(&"host".parse().unwrap()).unwrap();
        let toml = fs::read_to_string(self.site.realm.admin().join("vsync.toml")).unwrap();
        let line = toml.lines().find(|line| line.starts_with("address")).unwrap();
        let server = ServerAddress {
            name: "store".parse().unwrap(),
            address: line.split('"').nth(1).unwrap().to_owned(),
            key: vsync_protocol::id::MachineKey::from_bytes(
                self.site.realm.identity("store").verifying_key().to_bytes(),
            ),
        };
        let remote = Remote::connect(server, Identity { key: bundle.identity(), realm: bundle.realm_id }).unwrap();
        let volume: vsync_protocol::id::VolumeName = "data".parse().unwrap();
        let upload = remote.upload(volume.clone()).unwrap();
        let (sender, last) = (upload.sender(), upload.last());
        self.blobs.drain(..).for_each(|offer| sender.offer(offer).unwrap());
        drop(sender);
        let (mut uploaded, _) = upload.finish().unwrap();
        let body = Body {
            realm: bundle.realm_id,
            volume,
            source: bundle.machine.clone(),
            sequence: last.map_or(1, |(number, _)| number + 1),
            previous: last.map(|(_, hash)| hash),
            epoch: bundle.epoch,
            root: root.cid,
            kind: SnapshotKind::Full,
            started: i64::MAX,
            witness: None,
            tags: vec![],
        };
        let sealed = Sealed {
            body: [0; 32],
            root_key: root.child.ck,
            root_len: root.child.raw_len,
            entries: top.entries,
            bytes: top.bytes,
            defects: 0,
            chunker: PARAMETERS,
            program: "forger".into(),
            duration: u64::MAX,
        };
        let reader = bundle.recipient(bundle.epoch).unwrap();
        let manifest = snapshot::make(&body, sealed, &reader, &bundle.identity()).unwrap();
        match uploaded.commit(&manifest).unwrap() {
            CommitOutcome::Committed(_) => snapshot_id(&manifest).to_string(),
            CommitOutcome::Missing(cids) => panic!("missing {cids:?}"),
        }
    }
}

/// A target beside something that must stay as it is, and vsync that restores into it.
struct Victim {
    scratch: tempfile::TempDir,
}

impl Victim {
    fn new() -> Self {
        let scratch = vsync_tests::scratch();
        fs::create_dir(scratch.path().join("target")).unwrap();
        fs::create_dir(scratch.path().join("outside")).unwrap();
        fs::write(scratch.path().join("outside/canary"), "untouched").unwrap();
        Self { scratch }
    }

    fn target(&self) -> std::path::PathBuf {
        self.scratch.path().join("target")
    }

    fn outside(&self) -> String {
        self.scratch.path().join("outside").to_str().unwrap().to_owned()
    }

    #[track_caller]
    fn check(&self, what: &str) {
        let names = |path: &Path| {
            let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(self.scratch.path()), ["outside", "target"], "{what}");
        assert_eq!(names(&self.scratch.path().join("outside")), ["canary"], "{what}");
        let canary = self.scratch.path().join("outside/canary");
        assert_eq!(fs::read_to_string(&canary).unwrap(), "untouched", "{what}");
        let meta = fs::metadata(&canary).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::nlink(&meta), 1, "{what}: it has another name");
    }
}

#[track_caller]
fn sane(what: &str, output: &Output) {
    assert!(!output.stderr().contains("panicked"), "{what}: {output}");
    assert!(matches!(output.status(), Some(0 | 1 | 3 | 11 | 13 | 21)), "{what}: {output}");
}

/// Restores the snapshot and looks at it in every other way.
#[track_caller]
fn meet(site: &Site, victim: &Victim, what: &str, id: &str) -> Output {
    meet_all_but(site, victim, what, id, "")
}

/// The same without one command, which would have an end in theory only.
#[track_caller]
fn meet_all_but(site: &Site, victim: &Victim, what: &str, id: &str, left_out: &str) -> Output {
    let vsync = site.host().limit(Duration::from_secs(100)).with(["--patience", "20"]);
    let snapshot = format!("data@{id}");
    let output = vsync.run(["restore", &snapshot, "--to-path", victim.target().to_str().unwrap()]);
    sane(what, &output);
    victim.check(what);
    for words in [
        &["ls", &snapshot, "--json"][..],
        &["verify", &snapshot],
        &["verify", &snapshot, "--read-data"],
        &["dump", &snapshot],
        &["find", "*", "--volume", "data"],
        &["diff", "data@latest~1", &snapshot],
        &["stats", "--json"],
        &["snapshots", "data"],
    ]
    .into_iter()
    .filter(|words| words[0] != left_out)
    {
        let looked = vsync.run(words);
        assert!(!looked.stderr().contains("panicked"), "{what}, {words:?}: {looked}");
        assert!(looked.status().is_some_and(|code| code < 100), "{what}, {words:?}: {looked}");
    }
    output
}

/// Paths that lead out of the volume, each as long as what stands in its place when the leaf is made.
const PATHS: [(&str, &str); 9] = [
    ("XX/evil", "../evil"),
    ("Xabs/evil", "/abs/evil"),
    ("aX/b", "a//b"),
    ("a/X/b", "a/./b"),
    ("a/XX/b", "a/../b"),
    ("aXb", "a\0b"),
    ("X", "."),
    ("XX", ".."),
    ("a/X", "a/."),
];

#[test]
fn paths_that_lead_out_are_refused_before_anything_is_written() {
    let site = Site::new(21);
    for (good, bad) in PATHS {
        let mut forger = Forger::new(&site);
        let chunk = forger.chunk(b"evil");
        let records = vec![file("A-first", 0), file(good, 4), Record::Extents(vec![Extent::Chunk(0)])];
        let leaf = forger.leaf_of(&[chunk], records, |payload| {
            let at = payload.windows(good.len()).rposition(|window| window == good.as_bytes()).unwrap();
            payload[at..at + good.len()].copy_from_slice(bad.as_bytes());
        });
        let id = forger.commit(&Forger::top(&[leaf], 1));
        let victim = Victim::new();
        let output = meet(&site, &victim, bad, &id).code(13);
        assert!(output.stderr().contains("malformed"), "{bad:?}: {output}");
        assert_eq!(fs::read_dir(victim.target()).unwrap().count(), 0, "{bad:?}: something was written");
    }
}

#[test]
fn links_lead_nowhere() {
    let site = Site::new(22);
    type Make = fn(&str) -> Vec<Record>;
    let cases: [(&str, Make); 8] = [
        ("a file below a symlink", |out| vec![link("a", EntryKind::Symlink, out), file("a/canary", 0)]),
        ("a directory below a symlink", |out| vec![link("a", EntryKind::Symlink, out), directory("a/new")]),
        ("a symlink below a symlink", |out| {
            vec![
                link("a", EntryKind::Symlink, ".."),
                link("a/outside", EntryKind::Symlink, out),
                file("a/outside/x", 0),
            ]
        }),
        ("a hard link to a file outside", |out| vec![link("a", EntryKind::HardLink, &format!("{out}/canary"))]),
        ("a hard link with ..", |_| vec![link("a", EntryKind::HardLink, "../outside/canary")]),
        ("a hard link through a symlink", |out| {
            vec![link("a", EntryKind::Symlink, out), link("b", EntryKind::HardLink, "a/canary")]
        }),
        ("a hard link to itself", |_| vec![link("a", EntryKind::HardLink, "a")]),
        ("a hard link to nothing", |_| vec![link("a", EntryKind::HardLink, "")]),
    ];
    for (what, make) in cases {
        let victim = Victim::new();
        let mut forger = Forger::new(&site);
        let leaf = forger.leaf(&[], make(&victim.outside()));
        let id = forger.commit(&Forger::top(&[leaf], 1));
        let output = meet(&site, &victim, what, &id);
        assert_ne!(output.status(), Some(0), "{what}: {output}");
    }
    // A hard link to a symlink is one more name of the link itself.
    let victim = Victim::new();
    let mut forger = Forger::new(&site);
    let canary = format!("{}/canary", victim.outside());
    let leaf = forger.leaf(&[], vec![link("a", EntryKind::Symlink, &canary), link("b", EntryKind::HardLink, "a")]);
    let id = forger.commit(&Forger::top(&[leaf], 1));
    meet(&site, &victim, "a hard link to a symlink", &id);
}

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

/// A14, B24: files whose content is a blob, a node, a manifest, a pack or a log of the same realm are files.
#[test]
fn content_that_looks_like_vsyncs_own_is_content() {
    let site = Site::new(24);
    site.data.write("file", "content").random("random", 300_000);
    site.backup();
    let volume = Leaf::default();
    site.data.write("a leaf", minicbor::to_vec(&volume).unwrap());
    let store = site.store();
    let mut copied = 0;
    for room in ["packs", "manifests", "log"] {
        let mut below = vec![store.join(room)];
        while let Some(place) = below.pop() {
            if place.is_dir() {
                below.extend(fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().path()));
            } else {
                copied += 1;
                site.data.write(format!("{room}-{copied}"), fs::read(&place).unwrap());
            }
        }
    }
    assert!(copied >= 3);
    site.backup();
    let target = vsync_tests::scratch();
    site.restore(&["data"], target.path());
    assert_same(&Tree::read(site.data.path()), &Tree::read(target.path()));
    site.host().run(["verify", "data", "--read-data"]).success();
}
