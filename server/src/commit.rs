//! Whether a manifest may become a snapshot: it is its source's, it follows the last one,
//! and everything that its tree needs is here.

use std::collections::{HashMap, HashSet};

use ed25519_dalek::{Signer, SigningKey};
use thiserror::Error;
use vsync_protocol::blob::{BlobKind, Header};
use vsync_protocol::id::{Cid, MachineKey, MachineName, ManifestHash, RealmId, VolumeName};
use vsync_protocol::limits::{MAX_CIDS, MAX_TREE_DEPTH};
use vsync_protocol::log::Receipt;
use vsync_protocol::manifest::{Body, Manifest, ManifestError};

use crate::archive::{Archive, ArchiveError};
use crate::catalog::{Accepted, Location, Snapshot};

/// Who commits, and to what.
pub struct Author<'a> {
    /// The key by which the machine is connected.
    pub key: MachineKey,
    /// The machine's name.
    pub name: &'a MachineName,
    /// The volume that the session is for.
    pub volume: &'a VolumeName,
}

/// What became of a manifest.
#[derive(Debug)]
pub enum Outcome {
    /// It is a snapshot.
    Committed(Receipt),
    /// It is not, because these blobs are not here; there may be more.
    Missing(Vec<Cid>),
}

/// Why a manifest is not acceptable.
#[derive(Debug, Error)]
pub enum CommitError {
    /// It cannot be read, or its signature is not that of the machine.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// It is of another realm.
    #[error("the manifest is of realm {0}, this server keeps another")]
    Realm(RealmId),
    /// It speaks for another machine or volume than the session.
    #[error("the manifest is of {source_name}:{volume}, the session is not")]
    Other {
        /// The machine it claims.
        source_name: MachineName,
        /// The volume it claims.
        volume: VolumeName,
    },
    /// It does not follow the last one.
    #[error("the manifest of {volume} has number {sequence}, the last accepted is {last}")]
    Sequence {
        /// The volume.
        volume: VolumeName,
        /// Its number.
        sequence: u64,
        /// The number of the last accepted one, 0 if there is none.
        last: u64,
    },
    /// The tree cannot be.
    #[error("the tree is malformed at node {node}: {what}")]
    Tree {
        /// Where.
        node: Cid,
        /// What is wrong there.
        what: &'static str,
    },
    /// The store failed.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

/// Commits `manifest` if it is acceptable and its tree is whole, and signs a receipt with
/// `identity`. Committing it again gives the same receipt.
///
/// # Errors
/// When it is not acceptable, or the store fails.
pub fn commit(
    archive: &Archive,
    realm: RealmId,
    identity: &SigningKey,
    author: &Author<'_>,
    manifest: Vec<u8>,
) -> Result<Outcome, CommitError> {
    let body = check(realm, author, &manifest)?;
    let snapshot = Snapshot::of(manifest)?;
    let hash = snapshot.hash;
    let sign = |accepted: Accepted| Outcome::Committed(receipt(identity, realm, hash, accepted));
    if let Some(accepted) = archive.catalog().accepted(hash).map_err(ArchiveError::from)? {
        return Ok(sign(accepted));
    }
    follows(&body, archive.catalog().last(&body.volume, &body.source).map_err(ArchiveError::from)?)?;
    loop {
        let walk = Walk::new(archive)?;
        let generation = walk.generation;
        let missing = walk.close(body.root)?;
        if !missing.is_empty() {
            return Ok(Outcome::Missing(missing));
        }
        // None: something became absent meanwhile, by damage or by garbage collection. That is
        // rare, so that this ends.
        if let Some(accepted) = archive.commit(snapshot.clone(), generation, |last| follows(&body, last))? {
            return Ok(sign(accepted));
        }
    }
}

fn check(realm: RealmId, author: &Author<'_>, manifest: &[u8]) -> Result<Body, CommitError> {
    let manifest = Manifest::parse(manifest)?;
    if manifest.body.realm != realm {
        return Err(CommitError::Realm(manifest.body.realm));
    }
    if manifest.body.source != *author.name || manifest.body.volume != *author.volume {
        return Err(CommitError::Other { source_name: manifest.body.source, volume: manifest.body.volume });
    }
    manifest.verify([author.key])?;
    Ok(manifest.body)
}

fn follows(body: &Body, last: Option<(u64, ManifestHash)>) -> Result<(), CommitError> {
    let (number, previous) = last.map_or((0, None), |(number, hash)| (number, Some(hash)));
    if number.checked_add(1) == Some(body.sequence) && body.previous == previous {
        return Ok(());
    }
    Err(CommitError::Sequence { volume: body.volume.clone(), sequence: body.sequence, last: number })
}

fn receipt(identity: &SigningKey, realm: RealmId, manifest: ManifestHash, accepted: Accepted) -> Receipt {
    let Accepted { position: log, at } = accepted;
    let signature = identity.sign(&Receipt::message(realm, manifest, log, at)).to_bytes();
    Receipt { realm, manifest, log, at, signature }
}

/// A walk over everything that a root needs. It reads nodes only, by their clear
/// references, and stops at nodes that an earlier walk found whole.
struct Walk<'a> {
    archive: &'a Archive,
    generation: u64,
    /// Whether everything below a node seen in this walk is here.
    seen: HashMap<Cid, bool>,
    missing: HashSet<Cid>,
}

impl<'a> Walk<'a> {
    fn new(archive: &'a Archive) -> Result<Self, CommitError> {
        // Read first: damage found while walking begins a new generation, and what this
        // walk says of its own is then worth nothing.
        let generation = archive.catalog().generation().map_err(ArchiveError::from)?;
        Ok(Self { archive, generation, seen: HashMap::new(), missing: HashSet::new() })
    }

    /// Walks from `root` and returns some of what is missing, at most [`MAX_CIDS`].
    fn close(mut self, root: Cid) -> Result<Vec<Cid>, CommitError> {
        match self.locate(&[root])?.first().copied().flatten() {
            Some(location) if location.kind != BlobKind::Root => {
                return Err(CommitError::Tree { node: root, what: "it is not a root" });
            }
            location => self.node(root, location, 1)?,
        };
        let whole: Vec<Cid> = self.seen.into_iter().filter_map(|(cid, whole)| whole.then_some(cid)).collect();
        if !whole.is_empty() {
            self.archive.catalog().add_closed(whole, self.generation).map_err(ArchiveError::from)?;
        }
        Ok(self.missing.into_iter().take(MAX_CIDS).collect())
    }

    /// Whether the node at `location` and everything below it is here.
    fn node(&mut self, node: Cid, location: Option<Location>, depth: usize) -> Result<bool, CommitError> {
        let Some(location) = location else {
            self.missing.insert(node);
            return Ok(false);
        };
        if location.closed == self.generation {
            return Ok(true);
        }
        if let Some(&whole) = self.seen.get(&node) {
            return Ok(whole);
        }
        if depth > MAX_TREE_DEPTH {
            return Err(CommitError::Tree { node, what: "it lies too deep" });
        }
        let whole = self.children(node, &location, depth)?;
        self.seen.insert(node, whole);
        Ok(whole)
    }

    fn children(&mut self, node: Cid, location: &Location, depth: usize) -> Result<bool, CommitError> {
        let Some(children) = self.references(node, location)? else {
            self.archive.recheck(node)?;
            self.missing.insert(node);
            return Ok(false);
        };
        let mut whole = true;
        for children in children.chunks(MAX_CIDS) {
            for (&child, found) in children.iter().zip(self.locate(children)?) {
                if self.missing.len() >= MAX_CIDS {
                    return Ok(false);
                }
                if found.is_some_and(|found| !location.kind.may_refer_to(found.kind)) {
                    return Err(CommitError::Tree { node, what: "it refers to a blob of a wrong kind" });
                }
                whole &= match found {
                    Some(found) if found.kind == BlobKind::Chunk => true,
                    found => self.node(child, found, depth + 1)?,
                };
            }
        }
        Ok(whole)
    }

    /// The children that a node names, read from its bytes, which are hashed again; none
    /// when they are damaged.
    fn references(&self, node: Cid, location: &Location) -> Result<Option<Vec<Cid>>, CommitError> {
        let Some(blob) = self.archive.read_moved(node, location)? else { return Ok(None) };
        let header = Header::parse(&blob).map_err(|_| CommitError::Tree { node, what: "it is no blob" })?;
        if header.kind != location.kind {
            return Err(CommitError::Tree { node, what: "its kind is not what the catalog says" });
        }
        Ok(Some(header.refs().collect()))
    }

    fn locate(&self, cids: &[Cid]) -> Result<Vec<Option<Location>>, CommitError> {
        Ok(self.archive.catalog().locate(cids).map_err(ArchiveError::from)?)
    }
}
