//! The hierarchy of keys. It is part of the format: a change makes old backups unreadable.
//!
//! `D(context, material) = blake3::derive_key("vsync.v1 2026-11 " ‖ context, material)`
//!
//! ```text
//! RRS    realm root secret, 32 random bytes: in the recovery kit and in realm.key
//!   realm id = D("realm id", RRS)[..16]                                           public
//!   KN       = D("name blind", RRS)                                               all but servers
//!   AK       = D("admin signing", RRS)             Ed25519 seed: signs vsync.pub
//!   RK       = D("recovery identity", RRS)         Ed25519 seed: as whom the recovery kit connects
//!   ES_e     = D("epoch secret", RRS ‖ le32(e))        e counts from 1            readers
//!     RID_e  = D("read identity", ES_e)                X25519 scalar of an age identity
//!     WS_e   = D("writer secret", ES_e)                                           writers
//!       KC_e = D("convergence", WS_e)                  keys of blobs
//!       KG_e = D("gear table", WS_e)                   2048 bytes of its output: 256 × u64, little-endian
//!       KP_e = D("local plaintext id", WS_e)           never leaves the machine
//! ```
//!
//! Every step is one-way: whoever holds `WS_e` can write epoch `e` and read nothing.

use std::fmt;

use age::x25519::{Identity, Recipient};
use bech32::{Bech32, Hrp};
use ed25519_dalek::SigningKey;
use vsync_protocol::id::RealmId;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::secret::Secret;

/// The full context string of a derivation; always a constant, as `derive_key` demands.
macro_rules! context {
    ($purpose:literal) => {
        concat!("vsync.v1 2026-11 ", $purpose)
    };
}

fn derive(context: &str, material: &[u8]) -> Secret {
    Secret::new(blake3::derive_key(context, material))
}

/// The realm's root secret: everything else follows from it.
#[derive(Debug)]
pub struct RootSecret(Secret);

impl RootSecret {
    /// Wraps a root secret that was read from a kit or a key file.
    #[must_use]
    pub const fn new(secret: Secret) -> Self {
        Self(secret)
    }

    /// The bytes, for the recovery kit and `realm.key`.
    #[must_use]
    pub const fn secret(&self) -> &Secret {
        &self.0
    }

    /// The realm's public identifier.
    #[must_use]
    pub fn realm_id(&self) -> RealmId {
        let mut id = [0; RealmId::LEN];
        id.copy_from_slice(&derive(context!("realm id"), self.0.expose()).expose()[..RealmId::LEN]);
        RealmId::from_bytes(id)
    }

    /// The key that hides names of volumes; the same in all epochs.
    #[must_use]
    pub fn name_key(&self) -> NameKey {
        NameKey(derive(context!("name blind"), self.0.expose()))
    }

    /// The key that signs `vsync.pub`, so that a holder of the recovery kit can believe a
    /// server that hands it over.
    #[must_use]
    pub fn admin_key(&self) -> SigningKey {
        SigningKey::from_bytes(derive(context!("admin signing"), self.0.expose()).expose())
    }

    /// The identity as which a holder of the recovery kit connects to servers.
    #[must_use]
    pub fn recovery_key(&self) -> SigningKey {
        SigningKey::from_bytes(derive(context!("recovery identity"), self.0.expose()).expose())
    }

    /// The secret of key epoch `epoch`, which counts from 1.
    #[must_use]
    pub fn epoch(&self, epoch: u32) -> EpochSecret {
        let mut material = Zeroizing::new([0; 36]);
        material[..32].copy_from_slice(self.0.expose());
        material[32..].copy_from_slice(&epoch.to_le_bytes());
        EpochSecret(derive(context!("epoch secret"), &*material))
    }
}

/// Hides the names of volumes from servers. Held by every machine that reads or writes.
#[derive(Debug)]
pub struct NameKey(Secret);

impl NameKey {
    /// Wraps a key that was read from a key file.
    #[must_use]
    pub const fn new(secret: Secret) -> Self {
        Self(secret)
    }

    /// The bytes, for key files.
    #[must_use]
    pub const fn secret(&self) -> &Secret {
        &self.0
    }

    /// What a server sees instead of `name`: the first 16 bytes of keyed BLAKE3.
    #[must_use]
    pub fn blind(&self, name: &str) -> [u8; 16] {
        let mut blinded = [0; 16];
        blinded.copy_from_slice(&blake3::keyed_hash(self.0.expose(), name.as_bytes()).as_bytes()[..16]);
        blinded
    }
}

/// The secret of one epoch: its holder reads and writes the epoch's backups.
#[derive(Debug)]
pub struct EpochSecret(Secret);

impl EpochSecret {
    /// Wraps a secret that was read from a key file.
    #[must_use]
    pub const fn new(secret: Secret) -> Self {
        Self(secret)
    }

    /// The bytes, for key files.
    #[must_use]
    pub const fn secret(&self) -> &Secret {
        &self.0
    }

    /// What a machine needs to write in this epoch.
    #[must_use]
    pub fn writer(&self) -> WriterSecret {
        WriterSecret(derive(context!("writer secret"), self.0.expose()))
    }

    /// The age identity that opens the epoch's manifests.
    #[must_use]
    pub fn identity(&self) -> Identity {
        // The text form is the only way into the `age` crate; stock `age` reads it too.
        let scalar = derive(context!("read identity"), self.0.expose());
        let text = bech32::encode_upper::<Bech32>(Hrp::parse_unchecked("age-secret-key-"), scalar.expose());
        let text = Zeroizing::new(text.unwrap_or_default());
        text.parse().unwrap_or_else(|_| unreachable!("any 32 bytes make an age identity"))
    }

    /// The public half of [`Self::identity`], to which writers seal.
    #[must_use]
    pub fn recipient(&self) -> Recipient {
        self.identity().to_public()
    }
}

/// The secret of one epoch's writers; it reads nothing.
#[derive(Debug)]
pub struct WriterSecret(Secret);

impl WriterSecret {
    /// Wraps a secret that was read from a key file.
    #[must_use]
    pub const fn new(secret: Secret) -> Self {
        Self(secret)
    }

    /// The bytes, for key files.
    #[must_use]
    pub const fn secret(&self) -> &Secret {
        &self.0
    }

    /// The keys that the backup pipeline works with.
    #[must_use]
    pub fn keys(&self) -> WriterKeys {
        let secret = self.0.expose();
        WriterKeys {
            convergence: blake3::derive_key(context!("convergence"), secret),
            gear: gear_table(secret),
            plaintext: blake3::derive_key(context!("local plaintext id"), secret),
        }
    }
}

fn gear_table(secret: &[u8; 32]) -> Box<[u64; 256]> {
    let mut bytes = Zeroizing::new([0; 2048]);
    blake3::Hasher::new_derive_key(context!("gear table")).update(secret).finalize_xof().fill(&mut *bytes);
    let mut table = Box::new([0; 256]);
    for (entry, bytes) in table.iter_mut().zip(bytes.chunks_exact(8)) {
        *entry = bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
    }
    table
}

/// The working keys of one epoch's writers.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct WriterKeys {
    /// `KC`: keys the hash from which each blob's own key comes.
    pub convergence: [u8; 32],
    /// `KG`: the chunker's gear table.
    pub gear: Box<[u64; 256]>,
    /// `KP`: keys the ids by which unchanged plaintext is recognised.
    pub plaintext: [u8; 32],
}

impl fmt::Debug for WriterKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WriterKeys(..)")
    }
}

#[cfg(test)]
mod tests {
    use age::secrecy::ExposeSecret;

    use super::*;

    fn root() -> RootSecret {
        RootSecret::new(Secret::new(std::array::from_fn(|at| u8::try_from(at).unwrap())))
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// These values are the format: they never change. They were computed a second time, by
    /// the `blake3` and `pyrage` packages of Python; `independent_reader.rs` repeats that.
    #[test]
    fn golden_derivations() {
        let (root, epoch, second) = (root(), root().epoch(1), root().epoch(2));
        let (writer, keys) = (epoch.writer(), epoch.writer().keys());
        let table: Vec<u8> = keys.gear.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        let derived = [
            ("realm id", root.realm_id().to_string()),
            ("name key", root.name_key().secret().to_hex().to_string()),
            ("name", hex(&root.name_key().blind("montagu_db_volume"))),
            ("epoch 1", epoch.secret().to_hex().to_string()),
            ("epoch 2", second.secret().to_hex().to_string()),
            ("identity 1", epoch.identity().to_string().expose_secret().to_owned()),
            ("recipient 1", epoch.recipient().to_string()),
            ("writer 1", writer.secret().to_hex().to_string()),
            ("convergence 1", hex(&keys.convergence)),
            ("gear 1, first", format!("{:016x}", keys.gear[0])),
            ("gear 1, last", format!("{:016x}", keys.gear[255])),
            ("gear 1, hash", blake3::hash(&table).to_string()),
            ("plaintext 1", hex(&keys.plaintext)),
            ("admin", hex(root.admin_key().as_bytes())),
            ("recovery", hex(root.recovery_key().as_bytes())),
        ];
        let pinned = include_str!("derive.golden");
        let written: String = derived.iter().map(|(what, value)| format!("{what}: {value}\n")).collect();
        assert_eq!(written, pinned);
    }

    #[test]
    fn the_gear_table_starts_with_the_32_bytes_of_its_key() {
        let writer = root().epoch(1).writer();
        let key = blake3::derive_key("vsync.v1 2026-11 gear table", writer.secret().expose());
        let start: Vec<u8> = writer.keys().gear[..4].iter().flat_map(|entry| entry.to_le_bytes()).collect();
        assert_eq!(start, key);
    }

    #[test]
    fn nothing_secret_prints() {
        let epoch = root().epoch(1);
        let printed = format!("{:?} {epoch:?} {:?} {:?}", root(), epoch.writer(), epoch.writer().keys());
        assert_eq!(printed, "RootSecret(..) EpochSecret(..) WriterSecret(..) WriterKeys(..)");
    }
}
