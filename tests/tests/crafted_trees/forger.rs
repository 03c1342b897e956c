//! Trees as only a forger makes them.

use std::fs;
use std::sync::Arc;

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
    Child, ChildSummary, Entry, EntryKind, EntryPath, Leaf, Record, Root, Subtree, Time, VolumeInfo,
};
use vsync_tests::Site;

/// A machine's keys in the wrong hands.
pub(crate) struct Forger<'a> {
    site: &'a Site,
    sealer: Sealer,
    vault: Arc<Vault>,
    blobs: Vec<Offer>,
    budget: Budget,
}

/// What the forger puts at the top.
pub(crate) struct Top {
    pub(crate) root: Root,
    pub(crate) refs: Vec<Cid>,
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
}

pub(crate) fn path(text: &str) -> EntryPath {
    EntryPath::new(text).unwrap()
}

pub(crate) fn entry(name: &str, kind: EntryKind) -> Entry {
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

pub(crate) fn file(name: &str, size: u64) -> Record {
    Record::Entry(Box::new(Entry { size, ..entry(name, EntryKind::File) }))
}

pub(crate) fn directory(name: &str) -> Record {
    Record::Entry(Box::new(Entry { mode: 0o755, ..entry(name, EntryKind::Directory) }))
}

pub(crate) fn link(name: &str, kind: EntryKind, target: &str) -> Record {
    Record::Entry(Box::new(Entry { target: Some(target.as_bytes().to_vec()), ..entry(name, kind) }))
}

impl<'a> Forger<'a> {
    pub(crate) fn new(site: &'a Site) -> Self {
        let bundle = Self::store(site).machine(&"host".parse().unwrap()).unwrap();
        let keys = bundle.writer(bundle.epoch).unwrap();
        let vault = Arc::new(Vault::new(bundle.realm_id, bundle.suite, bundle.epoch, keys));
        let sealer = Sealer::new(vault.clone()).unwrap();
        Self { site, sealer, vault, blobs: Vec::new(), budget: Budget::new(1 << 30) }
    }

    pub(crate) fn store(site: &Site) -> KeyStore {
        KeyStore::Directory(site.realm.admin().with_file_name("keys"))
    }

    pub(crate) fn seal(&mut self, kind: BlobKind, refs: &[Cid], plain: &[u8]) -> Reference {
        let sealed = self.sealer.seal(kind, refs, plain).unwrap();
        let child = Child { ck: sealed.ck, pid: self.vault.pid(plain), raw_len: u32::try_from(plain.len()).unwrap() };
        let permit = self.budget.take(sealed.blob.len());
        self.blobs.push(Offer { cid: sealed.cid, blob: sealed.blob, permit });
        Reference { cid: sealed.cid, child }
    }

    pub(crate) fn chunk(&mut self, bytes: &[u8]) -> Reference {
        self.seal(BlobKind::Chunk, &[], bytes)
    }

    pub(crate) fn leaf(&mut self, chunks: &[Reference], records: Vec<Record>) -> Reference {
        self.leaf_of(chunks, records, |_| {})
    }

    /// A leaf whose bytes are changed before they are sealed.
    pub(crate) fn leaf_of(
        &mut self,
        chunks: &[Reference],
        records: Vec<Record>,
        change: impl Fn(&mut Vec<u8>),
    ) -> Reference {
        let leaf = Leaf { chunks: chunks.iter().map(|chunk| chunk.child).collect(), records };
        let mut payload = minicbor::to_vec(&leaf).unwrap();
        change(&mut payload);
        let refs: Vec<Cid> = chunks.iter().map(|chunk| chunk.cid).collect();
        self.seal(BlobKind::Leaf, &refs, &payload)
    }

    /// A root over `children`, which lie at the bottom of `depth` levels.
    pub(crate) fn top(children: &[Reference], depth: u32) -> Top {
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
    pub(crate) fn commit(mut self, top: &Top) -> String {
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
