//! The signed record that makes a tree a snapshot.
//!
//! ```text
//! manifest = "VSM1" ‖ body_len u32 ‖ body ‖ sealed_len u32 ‖ sealed ‖ signature 64
//! ```
//!
//! `body` is CBOR in clear, `sealed` an age file to the realm's readers. The signature,
//! Ed25519 by the source machine, covers everything before it:
//! `"vsync.v1 manifest" ‖ 0x00 ‖ BLAKE3(bytes before the signature)`.

use ed25519_dalek::{Signature, VerifyingKey};
use minicbor::{Decode, Encode};
use thiserror::Error;

use crate::id::{Cid, LogHead, MachineKey, MachineName, ManifestHash, RealmId, SnapshotId, VolumeName};
use crate::key::ContentKey;
use crate::limits::{MAX_MANIFEST_LEN, MAX_RAW_LEN};

/// Starts every manifest.
pub const MAGIC: [u8; 4] = *b"VSM1";

const SIGNATURE_LEN: usize = 64;
const CONTEXT: &[u8] = b"vsync.v1 manifest\0";

/// Whether a snapshot holds all that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum SnapshotKind {
    /// Everything, exactly.
    #[n(0)]
    Full,
    /// Some entries were unreadable or changed while read; the root lists them.
    #[n(1)]
    Partial,
}

/// Where the realm's log stood when somebody last looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct LogPosition {
    /// Entries so far.
    #[n(0)]
    pub index: u64,
    /// The chain's head after them.
    #[n(1)]
    pub head: LogHead,
}

/// What of a manifest is readable by everybody, the server above all: it lists and expires
/// by these fields.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Body {
    /// The realm.
    #[n(0)]
    pub realm: RealmId,
    /// The volume.
    #[n(1)]
    pub volume: VolumeName,
    /// The machine that the data came from.
    #[n(2)]
    pub source: MachineName,
    /// Position in the sequence of this volume's snapshots from this source, from 1.
    #[n(3)]
    pub sequence: u64,
    /// The manifest before it in that sequence.
    #[n(4)]
    pub previous: Option<ManifestHash>,
    /// Key epoch of tree and sealed part.
    #[n(5)]
    pub epoch: u32,
    /// The top node.
    #[n(6)]
    pub root: Cid,
    /// Whether everything is in it.
    #[n(7)]
    pub kind: SnapshotKind,
    /// When the backup began by the source's clock, in milliseconds since 1970. For people
    /// only: nothing is decided by it.
    #[n(8)]
    pub started: i64,
    /// Newest log position that the source knew: any honest machine's manifest is a witness
    /// of the log for the others.
    #[n(9)]
    pub witness: Option<LogPosition>,
    /// Labels, `key=value`, sorted.
    #[n(10)]
    pub tags: Vec<String>,
}

/// The sealed part: what only readers may know.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Sealed {
    /// BLAKE3 of the body's bytes, so that a sealed part fits no other body.
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub body: [u8; 32],
    /// Opens the root.
    #[n(1)]
    pub root_key: ContentKey,
    /// Bytes of the root's plaintext.
    #[n(2)]
    pub root_len: u32,
    /// Entries in the snapshot.
    #[n(3)]
    pub entries: u64,
    /// Bytes of file content, holes included.
    #[n(4)]
    pub bytes: u64,
    /// Files that are not exact.
    #[n(5)]
    pub defects: u64,
    /// How files were cut.
    #[n(6)]
    pub chunker: ChunkerParameters,
    /// Version of the program that made the snapshot.
    #[n(7)]
    pub program: String,
    /// How long the backup took before the commit, in milliseconds.
    #[n(8)]
    pub duration: u64,
}

impl std::fmt::Debug for Sealed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sealed({} entries, {} bytes, key hidden)", self.entries, self.bytes)
    }
}

/// How files were cut into chunks. Sizes in bytes, powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct ChunkerParameters {
    /// 1: FastCDC 2020 with the realm's gear table for general files, and chunks of fixed
    /// size for files that are rewritten in pages.
    #[n(0)]
    pub algorithm: u32,
    /// Least size of a content-defined chunk.
    #[n(1)]
    pub min: u32,
    /// Size aimed at.
    #[n(2)]
    pub average: u32,
    /// Largest size.
    #[n(3)]
    pub max: u32,
    /// Normalisation level, 0 to 3.
    #[n(4)]
    pub normalization: u32,
    /// Size of a fixed chunk.
    #[n(5)]
    pub fixed: u32,
}

/// Why bytes are not an acceptable manifest.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ManifestError {
    /// Lengths or magic are wrong.
    #[error("not a manifest of format 1")]
    Layout,
    /// The clear part cannot be decoded.
    #[error("unreadable manifest: {0}")]
    Body(String),
    /// The signature is not by that key.
    #[error("the manifest of {volume} from {source_name} is not signed by any key of {source_name} in vsync.pub")]
    Signature {
        /// The volume it claims.
        volume: VolumeName,
        /// The machine it claims.
        source_name: MachineName,
    },
}

/// A manifest taken apart; its signature may not have been checked yet.
#[derive(Clone, Debug)]
pub struct Manifest<'a> {
    /// The clear part.
    pub body: Body,
    /// The age file.
    pub sealed: &'a [u8],
    body_bytes: &'a [u8],
    signed: &'a [u8],
    signature: [u8; SIGNATURE_LEN],
}

impl<'a> Manifest<'a> {
    /// Takes a manifest apart.
    ///
    /// # Errors
    /// When its layout is wrong. The signature is not checked here.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ManifestError> {
        if bytes.len() > MAX_MANIFEST_LEN {
            return Err(ManifestError::Layout);
        }
        let (signed, signature) = bytes.split_last_chunk::<SIGNATURE_LEN>().ok_or(ManifestError::Layout)?;
        let rest = signed.strip_prefix(&MAGIC).ok_or(ManifestError::Layout)?;
        let (body_bytes, rest) = split_counted(rest).ok_or(ManifestError::Layout)?;
        let (sealed, rest) = split_counted(rest).ok_or(ManifestError::Layout)?;
        if !rest.is_empty() {
            return Err(ManifestError::Layout);
        }
        let body: Body = minicbor::decode(body_bytes).map_err(|error| ManifestError::Body(error.to_string()))?;
        Ok(Self { body, sealed, body_bytes, signed, signature: *signature })
    }

    /// Checks that one of `keys` made the signature.
    ///
    /// # Errors
    /// When none did.
    pub fn verify(&self, keys: impl IntoIterator<Item = MachineKey>) -> Result<(), ManifestError> {
        let message = signed_message(self.signed);
        let signature = Signature::from_bytes(&self.signature);
        let good = keys
            .into_iter()
            .filter_map(|key| VerifyingKey::from_bytes(key.as_bytes()).ok())
            .any(|key| key.verify_strict(&message, &signature).is_ok());
        if good {
            return Ok(());
        }
        Err(ManifestError::Signature { volume: self.body.volume.clone(), source_name: self.body.source.clone() })
    }

    /// BLAKE3 of the body's bytes, as [`Sealed::body`] must repeat it.
    #[must_use]
    pub fn body_hash(&self) -> [u8; 32] {
        *blake3::hash(self.body_bytes).as_bytes()
    }
}

/// The hash that names a manifest, and with it its snapshot.
#[must_use]
pub fn manifest_hash(manifest: &[u8]) -> ManifestHash {
    ManifestHash::from_bytes(*blake3::hash(manifest).as_bytes())
}

/// The snapshot that `manifest` makes.
#[must_use]
pub fn snapshot_id(manifest: &[u8]) -> SnapshotId {
    manifest_hash(manifest).into()
}

/// Puts a manifest together; `sign` makes an Ed25519 signature of the message it is given.
#[must_use]
pub fn assemble(body: &[u8], sealed: &[u8], sign: impl FnOnce(&[u8]) -> [u8; 64]) -> Vec<u8> {
    let mut manifest = Vec::with_capacity(12 + body.len() + sealed.len() + SIGNATURE_LEN);
    manifest.extend_from_slice(&MAGIC);
    for part in [body, sealed] {
        manifest.extend_from_slice(&(part.len() as u32).to_le_bytes());
        manifest.extend_from_slice(part);
    }
    let signature = sign(&signed_message(&manifest));
    manifest.extend_from_slice(&signature);
    manifest
}

fn signed_message(signed: &[u8]) -> Vec<u8> {
    [CONTEXT, blake3::hash(signed).as_bytes()].concat()
}

fn split_counted(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_le_bytes(*len) as usize)
}

const _: () = assert!(MAX_MANIFEST_LEN < MAX_RAW_LEN);

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::{Signer, SigningKey};

    fn body() -> Body {
        Body {
            realm: RealmId::from_bytes([1; 16]),
            volume: "barman_recover".parse().unwrap(),
            source: "annex2".parse().unwrap(),
            sequence: 1,
            previous: None,
            epoch: 1,
            root: Cid::of(b"root"),
            kind: SnapshotKind::Full,
            started: 1_795_000_000_000,
            witness: None,
            tags: vec!["nightly=yes".into()],
        }
    }

    fn manifest(key: &SigningKey) -> Vec<u8> {
        assemble(&minicbor::to_vec(body()).unwrap(), b"sealed", |message| key.sign(message).to_bytes())
    }

    #[test]
    fn signed_and_read_back() {
        let key = SigningKey::from_bytes(&[3; 32]);
        let public = MachineKey::from_bytes(key.verifying_key().to_bytes());
        let bytes = manifest(&key);
        let parsed = Manifest::parse(&bytes).unwrap();
        assert_eq!(parsed.body, body());
        assert_eq!(parsed.sealed, b"sealed");
        parsed.verify([MachineKey::from_bytes([0; 32]), public]).unwrap();
        assert!(parsed.verify([MachineKey::from_bytes([9; 32])]).is_err());
    }

    /// A manifest and the CBOR of its sealed part, for ever. Ed25519 signs without chance, so all of it is fixed.
    #[test]
    fn golden_manifest() {
        let chunker =
            ChunkerParameters { algorithm: 1, min: 1024, average: 4096, max: 65_536, normalization: 1, fixed: 8192 };
        let sealed = Sealed {
            body: [4; 32],
            root_key: ContentKey::from_bytes([5; 32]),
            root_len: 300,
            entries: 7,
            bytes: 1 << 33,
            defects: 1,
            chunker,
            program: "vsync 1.2.3".into(),
            duration: 1500,
        };
        let second = Body {
            sequence: 2,
            previous: Some(ManifestHash::from_bytes([6; 32])),
            kind: SnapshotKind::Partial,
            started: -1,
            witness: Some(LogPosition { index: 300, head: LogHead::from_bytes([7; 32]) }),
            ..body()
        };
        let first = manifest(&SigningKey::from_bytes(&[3; 32]));
        let found = [
            ("sealed part", minicbor::to_vec(&sealed).unwrap()),
            ("second body", minicbor::to_vec(&second).unwrap()),
            ("signed message", signed_message(&first[..first.len() - SIGNATURE_LEN])),
            ("manifest", first.clone()),
            ("snapshot", snapshot_id(&first).as_bytes().to_vec()),
        ];
        crate::testing::assert_golden(&found, include_str!("manifest.golden"));
        assert_eq!(minicbor::decode::<Sealed>(&found[0].1).unwrap(), sealed);
        assert_eq!(minicbor::decode::<Body>(&found[1].1).unwrap(), second);
    }

    #[test]
    fn no_bit_can_be_changed() {
        let key = SigningKey::from_bytes(&[3; 32]);
        let public = MachineKey::from_bytes(key.verifying_key().to_bytes());
        let good = manifest(&key);
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let accepted = Manifest::parse(&bad).and_then(|parsed| parsed.verify([public]));
            assert!(accepted.is_err(), "bit {bit}");
        }
    }
}
