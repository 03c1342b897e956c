//! The realm's log: an append-only chain of what became and ceased to be a snapshot, and
//! the signed receipts by which a server commits itself to it.

use ed25519_dalek::{Signature, VerifyingKey};
use minicbor::{Decode, Encode};

use crate::id::{LogHead, MachineKey, ManifestHash, RealmId};
use crate::manifest::LogPosition;

/// The head before the first entry.
pub const GENESIS: LogHead = LogHead::from_bytes([0; 32]);

const CHAIN_CONTEXT: &[u8] = b"vsync.v1 log\0";
const RECEIPT_CONTEXT: &[u8] = b"vsync.v1 receipt\0";

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum LogEntry {
    /// A snapshot was accepted.
    #[n(0)]
    Commit {
        /// Its manifest.
        #[n(0)]
        manifest: ManifestHash,
        /// When, in milliseconds since 1970 by the server's clock.
        #[n(1)]
        at: i64,
    },
    /// A snapshot was given up.
    #[n(1)]
    Forget {
        /// Its manifest.
        #[n(0)]
        manifest: ManifestHash,
        /// When, in milliseconds since 1970 by the server's clock.
        #[n(1)]
        at: i64,
        /// By which policy or order.
        #[n(2)]
        reason: String,
    },
    /// A snapshot that was given up is one again; its data was still there.
    #[n(2)]
    Undelete {
        /// Its manifest.
        #[n(0)]
        manifest: ManifestHash,
        /// When, in milliseconds since 1970 by the server's clock.
        #[n(1)]
        at: i64,
        /// By whose order.
        #[n(2)]
        by: String,
    },
    /// No policy may give a snapshot up.
    #[n(3)]
    Pin {
        /// Its manifest.
        #[n(0)]
        manifest: ManifestHash,
        /// When, in milliseconds since 1970 by the server's clock.
        #[n(1)]
        at: i64,
        /// By whose order.
        #[n(2)]
        by: String,
    },
    /// Policies decide about a snapshot again.
    #[n(4)]
    Unpin {
        /// Its manifest.
        #[n(0)]
        manifest: ManifestHash,
        /// When, in milliseconds since 1970 by the server's clock.
        #[n(1)]
        at: i64,
        /// By whose order.
        #[n(2)]
        by: String,
    },
}

impl LogEntry {
    /// The snapshot that the entry is about.
    #[must_use]
    pub const fn manifest(&self) -> ManifestHash {
        match self {
            Self::Commit { manifest, .. }
            | Self::Forget { manifest, .. }
            | Self::Undelete { manifest, .. }
            | Self::Pin { manifest, .. }
            | Self::Unpin { manifest, .. } => *manifest,
        }
    }

    /// When it was made, in milliseconds since 1970 by the server's clock.
    #[must_use]
    pub const fn at(&self) -> i64 {
        match self {
            Self::Commit { at, .. }
            | Self::Forget { at, .. }
            | Self::Undelete { at, .. }
            | Self::Pin { at, .. }
            | Self::Unpin { at, .. } => *at,
        }
    }
}

/// The chain's head after `entry`, an encoded [`LogEntry`], is appended to `head`.
#[must_use]
pub fn chain(head: LogHead, entry: &[u8]) -> LogHead {
    let mut hasher = blake3::Hasher::new();
    hasher.update(CHAIN_CONTEXT).update(head.as_bytes()).update(entry);
    LogHead::from_bytes(*hasher.finalize().as_bytes())
}

/// A server's signed word that a manifest is durable and where the log stands with it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Receipt {
    /// The realm.
    #[n(0)]
    pub realm: RealmId,
    /// What was accepted.
    #[n(1)]
    pub manifest: ManifestHash,
    /// The log after it.
    #[n(2)]
    pub log: LogPosition,
    /// When it was accepted, in milliseconds since 1970 by the server's clock.
    #[n(3)]
    pub at: i64,
    /// Ed25519 by the server's identity over [`Receipt::message`].
    #[n(4)]
    #[cbor(with = "minicbor::bytes")]
    pub signature: [u8; 64],
}

impl Receipt {
    /// The bytes that the server signs.
    #[must_use]
    pub fn message(realm: RealmId, manifest: ManifestHash, log: LogPosition, at: i64) -> Vec<u8> {
        let mut message = RECEIPT_CONTEXT.to_vec();
        message.extend_from_slice(realm.as_bytes());
        message.extend_from_slice(manifest.as_bytes());
        message.extend_from_slice(&log.index.to_le_bytes());
        message.extend_from_slice(log.head.as_bytes());
        message.extend_from_slice(&at.to_le_bytes());
        message
    }

    /// Whether `server` signed this receipt.
    #[must_use]
    pub fn is_signed_by(&self, server: MachineKey) -> bool {
        let message = Self::message(self.realm, self.manifest, self.log, self.at);
        VerifyingKey::from_bytes(server.as_bytes())
            .is_ok_and(|key| key.verify_strict(&message, &Signature::from_bytes(&self.signature)).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::{Signer, SigningKey};

    #[test]
    fn the_chain_depends_on_every_entry_and_their_order() {
        let entry = |byte: u8| {
            minicbor::to_vec(LogEntry::Commit { manifest: ManifestHash::from_bytes([byte; 32]), at: 0 }).unwrap()
        };
        let ab = chain(chain(GENESIS, &entry(1)), &entry(2));
        let ba = chain(chain(GENESIS, &entry(2)), &entry(1));
        assert_ne!(ab, ba);
    }

    /// The chain and a receipt, for ever.
    #[test]
    fn golden_chain_and_receipt() {
        let (realm, manifest) = (RealmId::from_bytes([1; 16]), ManifestHash::from_bytes([2; 32]));
        let commit = minicbor::to_vec(LogEntry::Commit { manifest, at: 1_795_000_000_000 }).unwrap();
        let forget = LogEntry::Forget { manifest, at: 1_795_000_000_001, reason: "keep-daily 30".into() };
        let forget = minicbor::to_vec(forget).unwrap();
        let (one, two) = (chain(GENESIS, &commit), chain(chain(GENESIS, &commit), &forget));
        let log = LogPosition { index: 2, head: two };
        let message = Receipt::message(realm, manifest, log, 1_795_000_000_001);
        let signature = SigningKey::from_bytes(&[5; 32]).sign(&message).to_bytes();
        let receipt = Receipt { realm, manifest, log, at: 1_795_000_000_001, signature };
        let (at, by) = (1_795_000_000_002, "office".to_owned());
        let found = [
            ("commit", commit),
            ("head after it", one.as_bytes().to_vec()),
            ("forget", forget),
            ("head after both", two.as_bytes().to_vec()),
            ("signed message", message),
            ("receipt", minicbor::to_vec(receipt).unwrap()),
            ("undelete", minicbor::to_vec(LogEntry::Undelete { manifest, at, by: by.clone() }).unwrap()),
            ("pin", minicbor::to_vec(LogEntry::Pin { manifest, at, by: by.clone() }).unwrap()),
            ("unpin", minicbor::to_vec(LogEntry::Unpin { manifest, at, by }).unwrap()),
        ];
        crate::testing::assert_golden(&found, include_str!("log.golden"));
    }

    #[test]
    fn entries_keep_their_numbers() {
        let (manifest, at, text) = (ManifestHash::from_bytes([7; 32]), 9, "x".to_owned());
        for (number, entry) in [
            LogEntry::Commit { manifest, at },
            LogEntry::Forget { manifest, at, reason: text.clone() },
            LogEntry::Undelete { manifest, at, by: text.clone() },
            LogEntry::Pin { manifest, at, by: text.clone() },
            LogEntry::Unpin { manifest, at, by: text },
        ]
        .into_iter()
        .enumerate()
        {
            let bytes = minicbor::to_vec(&entry).unwrap();
            assert_eq!(bytes[..2], [0x82, number as u8]);
            assert_eq!(minicbor::decode::<LogEntry>(&bytes).unwrap(), entry);
            assert_eq!((entry.manifest(), entry.at()), (manifest, at));
        }
    }

    #[test]
    fn a_receipt_is_bound_to_its_fields() {
        let key = SigningKey::from_bytes(&[5; 32]);
        let server = MachineKey::from_bytes(key.verifying_key().to_bytes());
        let (realm, manifest) = (RealmId::from_bytes([1; 16]), ManifestHash::from_bytes([2; 32]));
        let log = LogPosition { index: 7, head: GENESIS };
        let signature = key.sign(&Receipt::message(realm, manifest, log, 9)).to_bytes();
        let receipt = Receipt { realm, manifest, log, at: 9, signature };
        assert!(receipt.is_signed_by(server));
        assert!(!Receipt { at: 10, ..receipt.clone() }.is_signed_by(server));
        assert!(!receipt.is_signed_by(MachineKey::from_bytes([4; 32])));
    }
}
