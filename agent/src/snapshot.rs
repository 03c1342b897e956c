//! Making and opening manifests: the signed record that makes a tree a snapshot.

use ed25519_dalek::{Signer, SigningKey};
use thiserror::Error;
use vsync_protocol::encode;
use vsync_protocol::id::{MachineKey, Pid, RealmId, SnapshotId};
use vsync_protocol::manifest::{self, Body, Manifest, ManifestError, Sealed};
use vsync_protocol::tree::Child;

use crate::tree::Reference;

/// Why a snapshot could not be made or opened.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// The manifest is damaged or not signed by its source.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// It belongs to another realm.
    #[error("snapshot {0} belongs to another realm")]
    Realm(SnapshotId),
    /// This machine may not read, or not this epoch.
    #[error("snapshot {snapshot} of key epoch {epoch} cannot be read here: this machine holds no reader key for it")]
    NotReader {
        /// The snapshot.
        snapshot: SnapshotId,
        /// Its epoch.
        epoch: u32,
    },
    /// The sealed part does not open, or belongs to another manifest.
    #[error("the sealed part of snapshot {snapshot} is damaged: {reason}")]
    Sealed {
        /// The snapshot.
        snapshot: SnapshotId,
        /// What is wrong.
        reason: String,
    },
    /// age refused to seal.
    #[error("cannot seal the manifest: {0}")]
    Seal(String),
}

/// Signs and seals a manifest.
///
/// # Errors
/// When age fails.
pub fn make(
    body: &Body,
    sealed: Sealed,
    reader: &age::x25519::Recipient,
    key: &SigningKey,
) -> Result<Vec<u8>, SnapshotError> {
    let body = encode(body);
    let sealed = Sealed { body: *blake3::hash(&body).as_bytes(), ..sealed };
    let plain = zeroize::Zeroizing::new(encode(&sealed));
    let sealed = age::encrypt(reader, &plain).map_err(|error| SnapshotError::Seal(error.to_string()))?;
    Ok(manifest::assemble(&body, &sealed, |message| key.sign(message).to_bytes()))
}

/// What a reader knows of a snapshot.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// The clear part of its manifest.
    pub body: Body,
    /// The sealed part.
    pub sealed: Sealed,
}

impl Snapshot {
    /// Checks a manifest's signature and opens its sealed part.
    ///
    /// # Errors
    /// When anything about it is not as its source made it, or this machine may not read it.
    pub fn open(
        bytes: &[u8],
        realm: RealmId,
        signers: impl IntoIterator<Item = MachineKey>,
        reader: Option<&age::x25519::Identity>,
    ) -> Result<Self, SnapshotError> {
        let parsed = Manifest::parse(bytes)?;
        let id = manifest::snapshot_id(bytes);
        if parsed.body.realm != realm {
            return Err(SnapshotError::Realm(id));
        }
        parsed.verify(signers)?;
        let reader = reader.ok_or(SnapshotError::NotReader { snapshot: id, epoch: parsed.body.epoch })?;
        let damaged = |reason: String| SnapshotError::Sealed { snapshot: id, reason };
        let plain = age::decrypt(reader, parsed.sealed).map_err(|error| damaged(error.to_string()))?;
        let sealed: Sealed = minicbor::decode(&plain).map_err(|error| damaged(error.to_string()))?;
        if sealed.body != parsed.body_hash() {
            return Err(damaged("it was sealed for another manifest".into()));
        }
        Ok(Self { id, body: parsed.body, sealed })
    }

    /// Its top node.
    #[must_use]
    pub const fn root(&self) -> Reference {
        let child = Child { ck: self.sealed.root_key, pid: Pid::from_bytes([0; 16]), raw_len: self.sealed.root_len };
        Reference { cid: self.body.root, child }
    }
}

#[cfg(test)]
mod tests {
    use vsync_protocol::key::ContentKey;

    use super::*;
    use crate::keys::{RootSecret, Secret};

    /// A manifest that another implementation made opens for ever.
    #[test]
    fn golden_snapshot_opens() {
        let hex: String = include_str!("snapshot.golden").lines().filter(|line| !line.starts_with('#')).collect();
        let digits = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        let manifest: Vec<u8> = (0..hex.len()).step_by(2).map(digits).collect();
        let root = RootSecret::new(Secret::new(std::array::from_fn(|at| u8::try_from(at).unwrap())));
        let signer = MachineKey::from_bytes(SigningKey::from_bytes(&[3; 32]).verifying_key().to_bytes());
        let reader = root.epoch(1).identity();
        let open = |signer| Snapshot::open(&manifest, root.realm_id(), [signer], Some(&reader));
        let snapshot = open(signer).unwrap();
        let Snapshot { body, sealed, .. } = &snapshot;
        assert_eq!((body.volume.as_str(), body.source.as_str(), body.sequence), ("barman_recover", "annex2", 2));
        assert_eq!((body.kind, body.witness.unwrap().index), (manifest::SnapshotKind::Partial, 300));
        assert_eq!((snapshot.root().child.ck, snapshot.root().child.raw_len), (ContentKey::from_bytes([5; 32]), 300));
        assert_eq!((sealed.entries, sealed.bytes, sealed.defects), (7, 1 << 33, 1));
        assert_eq!((sealed.chunker.average, sealed.chunker.fixed), (64 << 10, 32 << 10));
        assert!(open(MachineKey::from_bytes([3; 32])).is_err());
    }
}
