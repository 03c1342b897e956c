//! Where plaintext becomes blobs and blobs become plaintext. No files, no sockets.

mod open;
mod seal;

use vsync_protocol::blob::Suite;
use vsync_protocol::id::{Cid, Pid, RealmId};
use vsync_protocol::key::ContentKey;
use vsync_protocol::manifest::ChunkerParameters;

use crate::chunk::Cutter;
use crate::keys::WriterKeys;

pub use open::{OpenError, Opener};
pub use seal::{SealError, Sealed, Sealer};

/// The secrets and settings by which one epoch's blobs are sealed.
pub struct Vault {
    /// The realm; authenticated with every blob.
    pub realm: RealmId,
    /// The cipher for new blobs.
    pub suite: Suite,
    /// The key epoch of new blobs.
    pub epoch: u32,
    keys: WriterKeys,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vault(realm {}, epoch {})", self.realm, self.epoch)
    }
}

impl Vault {
    /// The vault of one epoch.
    #[must_use]
    pub const fn new(realm: RealmId, suite: Suite, epoch: u32, keys: WriterKeys) -> Self {
        Self { realm, suite, epoch, keys }
    }

    /// Cuts files as the realm does. `None` for parameters that no vsync writes.
    #[must_use]
    pub fn cutter(&self, parameters: ChunkerParameters) -> Option<Cutter> {
        Cutter::new(parameters, &self.keys.gear)
    }

    /// Recognises a chunk's plaintext.
    #[must_use]
    pub fn pid(&self, plain: &[u8]) -> Pid {
        short(&blake3::keyed_hash(&self.keys.plaintext, plain))
    }

    /// Recognises a tree node: its payload together with the children it refers to.
    #[must_use]
    pub fn node_pid(&self, refs: &[Cid], payload: &[u8]) -> Pid {
        let mut hasher = blake3::Hasher::new_keyed(&self.keys.plaintext);
        refs.iter().for_each(|cid| {
            hasher.update(cid.as_bytes());
        });
        short(&hasher.update(payload).finalize())
    }

    /// The key for exactly these bytes: nothing else is ever encrypted with it.
    fn content_key(&self, header_and_encoded: &[u8]) -> ContentKey {
        ContentKey::from_bytes(*blake3::keyed_hash(&self.keys.convergence, header_and_encoded).as_bytes())
    }
}

fn short(hash: &blake3::Hash) -> Pid {
    let mut pid = [0; Pid::LEN];
    pid.copy_from_slice(&hash.as_bytes()[..Pid::LEN]);
    Pid::from_bytes(pid)
}

/// The AEAD of `suite` under a key that seals a single message, so that the nonce may be zero.
fn cipher(suite: Suite, key: &ContentKey) -> Result<aws_lc_rs::aead::LessSafeKey, aws_lc_rs::error::Unspecified> {
    let algorithm = match suite {
        Suite::ChaCha20Poly1305 => &aws_lc_rs::aead::CHACHA20_POLY1305,
        Suite::Aes256Gcm => &aws_lc_rs::aead::AES_256_GCM,
    };
    aws_lc_rs::aead::UnboundKey::new(algorithm, key.as_bytes()).map(aws_lc_rs::aead::LessSafeKey::new)
}

fn zero_nonce() -> aws_lc_rs::aead::Nonce {
    aws_lc_rs::aead::Nonce::assume_unique_for_key([0; aws_lc_rs::aead::NONCE_LEN])
}

fn associated_data(realm: RealmId, header: &[u8]) -> aws_lc_rs::aead::Aad<Vec<u8>> {
    aws_lc_rs::aead::Aad::from([realm.as_bytes(), header].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use chacha20poly1305::ChaCha20Poly1305;
    use chacha20poly1305::aead::{Aead, KeyInit, Payload};
    use proptest::prelude::*;
    use std::sync::Arc;
    use vsync_protocol::blob::{BlobKind, Header, TAG_LEN};
    use vsync_protocol::tree::Child;

    fn keys() -> WriterKeys {
        WriterKeys { convergence: [1; 32], gear: Box::new([0; 256]), plaintext: [2; 32] }
    }

    fn vault(suite: Suite) -> Arc<Vault> {
        Arc::new(Vault::new(RealmId::from_bytes([7; 16]), suite, 1, keys()))
    }

    fn sealed(suite: Suite, kind: BlobKind, refs: &[Cid], plain: &[u8]) -> (Sealed, Child) {
        let vault = vault(suite);
        let sealed = Sealer::new(vault.clone()).unwrap().seal(kind, refs, plain).unwrap();
        let child = Child { ck: sealed.ck, pid: vault.pid(plain), raw_len: plain.len() as u32 };
        (sealed, child)
    }

    fn open(suite: Suite, kind: BlobKind, sealed: &Sealed, child: &Child) -> Result<Vec<u8>, OpenError> {
        Opener::new(vault(suite)).unwrap().open(kind, sealed.cid, child, sealed.blob.to_vec())
    }

    /// The bytes of both suites, for ever.
    #[test]
    fn golden_blobs() {
        let refs = [Cid::of(b"child")];
        for (suite, cid) in [
            (Suite::ChaCha20Poly1305, "64dc80fc26a8f0592f7e48aecaf9c3466a271d8482c0f4f866d166c660e05fa9"),
            (Suite::Aes256Gcm, "22235d165091da4b4368c123e4a828db36a81091b9ab4436ec1de5d47375b349"),
        ] {
            let (sealed, _) = sealed(suite, BlobKind::Leaf, &refs, b"the quick brown fox");
            assert_eq!(sealed.cid.to_string(), cid, "{suite:?}");
        }
    }

    /// Blobs that were sealed once open for ever, whatever zstd makes of the same bytes today.
    /// `tests/reader.py` opens them too.
    #[test]
    fn golden_sealed_blobs_open() {
        let bytes = |hex: &str| -> Vec<u8> {
            (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect()
        };
        let lines = include_str!("blob.golden").lines().filter(|line| !line.starts_with('#'));
        let mut opened = 0;
        for line in lines {
            let [kind, suite, ck, blob, plain] = line.split(' ').map(bytes).collect::<Vec<_>>().try_into().unwrap();
            let (kind, suite) = (BlobKind::from_code(kind[0]).unwrap(), Suite::from_code(suite[0]).unwrap());
            let child = Child {
                ck: ContentKey::from_slice(&ck).unwrap(),
                pid: Pid::from_bytes([0; 16]),
                raw_len: plain.len() as u32,
            };
            let sealed = Sealed { cid: Cid::of(&blob), ck: child.ck, blob: blob.into() };
            assert_eq!(open(suite, kind, &sealed, &child).unwrap(), plain, "{line}");
            opened += 1;
        }
        assert_eq!(opened, 4);
    }

    /// Suite 1 is the cipher of RFC 8439 as another implementation has it.
    #[test]
    fn suite_1_is_what_rustcrypto_computes() {
        let plain = vec![b'a'; 5000];
        let (sealed, child) = sealed(Suite::ChaCha20Poly1305, BlobKind::Chunk, &[], &plain);
        let header_len = Header::parse(&sealed.blob).unwrap().len();
        let (header, body) = sealed.blob.split_at(header_len);
        let aad = [[7; 16].as_slice(), header].concat();
        let encoded = ChaCha20Poly1305::new(child.ck.as_bytes().into())
            .decrypt(&[0; 12].into(), Payload { msg: body, aad: &aad })
            .unwrap();
        assert_eq!(encoded.len() + TAG_LEN, body.len());
        assert_eq!(vault(Suite::ChaCha20Poly1305).content_key(&[header, &encoded].concat()), child.ck);
    }

    #[test]
    fn equal_content_seals_to_equal_blobs_and_other_content_never_to_the_same_key() {
        let seal = |plain: &[u8]| sealed(Suite::Aes256Gcm, BlobKind::Chunk, &[], plain).0;
        assert_eq!(seal(b"abc").blob, seal(b"abc").blob);
        assert_ne!(seal(b"abc").ck, seal(b"abd").ck);
    }

    #[test]
    fn no_bit_of_a_blob_can_be_changed() {
        let plain = b"some text, some text, some text".repeat(3);
        let (good, child) = sealed(Suite::ChaCha20Poly1305, BlobKind::Chunk, &[], &plain);
        for bit in 0..good.blob.len() * 8 {
            let mut blob = good.blob.to_vec();
            blob[bit / 8] ^= 1 << (bit % 8);
            // Even a server that names the damaged bytes correctly is found out.
            for cid in [good.cid, Cid::of(&blob)] {
                let bad = Sealed { cid, ck: good.ck, blob: blob.clone().into() };
                assert!(open(Suite::ChaCha20Poly1305, BlobKind::Chunk, &bad, &child).is_err(), "bit {bit}");
            }
        }
    }

    #[test]
    fn a_blob_is_not_taken_for_another_kind_length_or_realm() {
        let (good, child) = sealed(Suite::Aes256Gcm, BlobKind::Chunk, &[], b"content");
        assert!(open(Suite::Aes256Gcm, BlobKind::Leaf, &good, &child).is_err());
        let longer = Child { raw_len: 8, ..child };
        assert!(open(Suite::Aes256Gcm, BlobKind::Chunk, &good, &longer).is_err());
        let other = Arc::new(Vault::new(RealmId::from_bytes([8; 16]), Suite::Aes256Gcm, 1, keys()));
        assert!(Opener::new(other).unwrap().open(BlobKind::Chunk, good.cid, &child, good.blob.to_vec()).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_sealed_opens(
            plain in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..5000),
                (any::<u8>(), 0_usize..200_000).prop_map(|(byte, len)| vec![byte; len]),
            ],
            refs in 0_usize..5,
        ) {
            let refs: Vec<Cid> = (0..refs).map(|n| Cid::of(&[n as u8])).collect();
            for suite in [Suite::ChaCha20Poly1305, Suite::Aes256Gcm] {
                let (sealed, child) = sealed(suite, BlobKind::Leaf, &refs, &plain);
                prop_assert_eq!(open(suite, BlobKind::Leaf, &sealed, &child).unwrap(), &plain[..]);
            }
        }
    }
}
