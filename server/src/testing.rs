//! What tests of this crate share: a store in a scratch directory with clocks of its own,
//! and a source that backs up into it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use ed25519_dalek::{Signer, SigningKey};
use vsync_protocol::blob::{BlobKind, ENCODED_HEAD_LEN, Header, Suite, TAG_LEN, write_header};
use vsync_protocol::id::{Cid, MachineKey, RealmId, SnapshotId};
use vsync_protocol::manifest::{Body, SnapshotKind, assemble, snapshot_id};

use crate::archive::{Archive, ArchiveError, World};
use crate::catalog::Known;
use crate::clock::{Clock, Moment};
use crate::commit::{Author, CommitError, Outcome, commit};
use crate::pins::SessionPins;
use crate::store::disk::Reserve;
use crate::store::pack::PackBuilder;
use crate::store::steps::Steps;

pub(crate) const REALM: RealmId = RealmId::from_bytes([1; 16]);
pub(crate) const HOUR: u64 = 3_600_000;
pub(crate) const DAY: u64 = 24 * HOUR;
pub(crate) const NO_RESERVE: Reserve = Reserve { bytes: 0, percent: 0 };

/// A blob as the server sees one: a header, and bytes that nobody here can open.
pub(crate) fn blob(kind: BlobKind, refs: &[Cid], content: &[u8]) -> Bytes {
    let mut blob = Vec::new();
    write_header(&mut blob, kind, Suite::ChaCha20Poly1305, 1, refs);
    blob.extend_from_slice(content);
    blob.extend_from_slice(&[0; ENCODED_HEAD_LEN + TAG_LEN]);
    blob.into()
}

/// A tree with a chunk for each of `contents`, two to a leaf; the root is last.
pub(crate) fn tree(contents: &[&str]) -> Vec<Bytes> {
    let mut blobs: Vec<Bytes> = contents.iter().map(|text| blob(BlobKind::Chunk, &[], text.as_bytes())).collect();
    let names = |blobs: &[Bytes]| blobs.iter().map(|blob| Cid::of(blob)).collect::<Vec<_>>();
    let leaves: Vec<Bytes> = names(&blobs).chunks(2).map(|pair| blob(BlobKind::Leaf, pair, b"leaf")).collect();
    let root = blob(BlobKind::Root, &names(&leaves), b"root");
    blobs.extend(leaves);
    blobs.push(root);
    blobs
}

/// A store with clocks that stand still unless told to go.
pub(crate) struct Store {
    pub dir: Arc<tempfile::TempDir>,
    pub archive: Arc<Archive>,
    pub moment: Arc<Mutex<Moment>>,
    pub steps: Steps,
    pub reserve: Reserve,
}

impl Store {
    pub(crate) fn new() -> Self {
        Self::heard_by(Steps::default())
    }

    pub(crate) fn heard_by(steps: Steps) -> Self {
        let moment = Moment { now: 1_800_000_000_000, steady: 1000, boot: "first".to_owned() };
        let (dir, moment) = (Arc::new(tempfile::tempdir().unwrap()), Arc::new(Mutex::new(moment)));
        let archive = Arc::new(open(&path(dir.path()), &moment, &steps, NO_RESERVE).unwrap());
        Self { dir, archive, moment, steps, reserve: NO_RESERVE }
    }

    pub(crate) fn path(&self) -> PathBuf {
        path(self.dir.path())
    }

    /// Ends the store and opens it again.
    pub(crate) fn reopen(self) -> Self {
        let Self { dir, archive, moment, steps, reserve } = self;
        Arc::into_inner(archive).unwrap().close();
        let archive = Arc::new(open(&path(dir.path()), &moment, &steps, reserve).unwrap());
        Self { dir, archive, moment, steps, reserve }
    }

    /// Lets time go by.
    pub(crate) fn pass(&self, millis: u64) {
        let mut moment = self.moment.lock().unwrap();
        moment.now += millis as i64;
        moment.steady += millis;
        drop(moment);
        // A running server looks at its clock all the time.
        let _ = self.archive.time();
    }

    pub(crate) fn upload(&self, pins: &SessionPins, blobs: &[Bytes]) -> Result<(), ArchiveError> {
        let cids: Vec<Cid> = blobs.iter().map(|blob| Cid::of(blob)).collect();
        let here = self.archive.have(pins, &cids)?;
        let mut pack = PackBuilder::default();
        for (blob, _) in blobs.iter().zip(here).filter(|(_, here)| !here) {
            pack.push(Cid::of(blob), Header::parse(blob).unwrap().kind, blob.clone());
        }
        if pack.is_empty() { Ok(()) } else { self.archive.put(pins, pack) }
    }

    /// Backs a volume up from the machine "one".
    pub(crate) fn back_up(&self, volume: &str, blobs: &[Bytes]) -> SnapshotId {
        self.try_back_up(volume, blobs).unwrap()
    }

    pub(crate) fn try_back_up(&self, volume: &str, blobs: &[Bytes]) -> Result<SnapshotId, CommitError> {
        let pins = self.archive.session_pins();
        self.upload(&pins, blobs)?;
        match self.commit(volume, blobs, SnapshotKind::Full)? {
            (id, Outcome::Committed(_)) => Ok(id),
            (_, Outcome::Missing(missing)) => panic!("missing {missing:?}"),
        }
    }

    pub(crate) fn commit(
        &self,
        volume: &str,
        blobs: &[Bytes],
        kind: SnapshotKind,
    ) -> Result<(SnapshotId, Outcome), CommitError> {
        let manifest = self.manifest(volume, Cid::of(blobs.last().unwrap()), kind);
        let id = snapshot_id(&manifest);
        let key = SigningKey::from_bytes(&[3; 32]);
        let author = Author {
            key: MachineKey::from_bytes(key.verifying_key().to_bytes()),
            name: &"one".parse().unwrap(),
            volume: &volume.parse().unwrap(),
        };
        commit(&self.archive, REALM, &SigningKey::from_bytes(&[9; 32]), &author, manifest).map(|outcome| (id, outcome))
    }

    fn manifest(&self, volume: &str, root: Cid, kind: SnapshotKind) -> Vec<u8> {
        let (volume, source) = (volume.parse().unwrap(), "one".parse().unwrap());
        let last = self.archive.catalog().last(&volume, &source).unwrap();
        let body = Body {
            realm: REALM,
            volume,
            source,
            sequence: last.map_or(1, |(number, _)| number + 1),
            previous: last.map(|(_, hash)| hash),
            epoch: 1,
            root,
            kind,
            started: 0,
            witness: None,
            tags: Vec::new(),
        };
        let key = SigningKey::from_bytes(&[3; 32]);
        assemble(&minicbor::to_vec(&body).unwrap(), b"sealed", |message| key.sign(message).to_bytes())
    }

    /// Reads everything that any snapshot needs; returns the snapshots that are not
    /// forgotten. Panics when anything is missing or damaged.
    pub(crate) fn check(&self) -> Vec<SnapshotId> {
        let known = self.archive.catalog().standing_after(0, 1_000_000).unwrap();
        let mut read = HashMap::new();
        for known in &known {
            self.read_tree(known.body().unwrap().root, &mut read);
        }
        known.iter().map(Known::id).collect()
    }

    fn read_tree(&self, node: Cid, read: &mut HashMap<Cid, Bytes>) {
        if read.contains_key(&node) {
            return;
        }
        let location = self.archive.catalog().locate_one(node).unwrap();
        let location = location.unwrap_or_else(|| panic!("{node} is absent"));
        let blob = self.archive.read(node, &location).unwrap().unwrap_or_else(|| panic!("{node} is damaged"));
        read.insert(node, blob.clone());
        Header::parse(&blob).unwrap().refs().for_each(|child| self.read_tree(child, read));
    }

    pub(crate) fn here(&self, blobs: &[Bytes]) -> Vec<bool> {
        let cids: Vec<Cid> = blobs.iter().map(|blob| Cid::of(blob)).collect();
        self.archive.catalog().have(&cids).unwrap()
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join("store")
}

pub(crate) fn open(
    path: &Path,
    moment: &Arc<Mutex<Moment>>,
    steps: &Steps,
    reserve: Reserve,
) -> Result<Archive, ArchiveError> {
    let moment = Arc::clone(moment);
    let clock = Clock::of(move || moment.lock().unwrap().clone());
    Archive::open_in(World { clock, steps: steps.clone() }, path, REALM, reserve)
}

/// Compares bytes with what `pinned` says of them: lines `name: hex`, and `#` before a comment.
pub(crate) fn assert_golden(found: &[(&str, Vec<u8>)], pinned: &str) {
    let mut pinned = pinned.lines().filter(|line| !line.starts_with('#'));
    for (name, bytes) in found {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let line = pinned.next().unwrap_or("(no such line)");
        assert_eq!(format!("{name}: {hex}"), line, "{name} is not what older versions read and write");
    }
    assert_eq!(pinned.next(), None, "pinned, but not made any more");
}
