//! `realm.key`: the administrator's key file, from which all others are made.
//!
//! ```toml
//! realm = "montagu"
//! suite = 1
//! epoch = 1
//! root = "<64 hex>"
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use ed25519_dalek::{Signer, SigningKey};
use serde::Deserialize;
use vsync_protocol::blob::Suite;
use vsync_protocol::id::{MachineKey, MachineName, RealmName};
use vsync_protocol::registry::{self, RECOVERY_MACHINE, Realm, Registry};
use zeroize::Zeroizing;

use super::bundle::{Bundle, Grant};
use super::derive::RootSecret;
use super::file::{self, KeyFileError};
use super::secret::Secret;
use crate::config::Role;

/// The realm's root secret, and what goes with it.
#[derive(Debug)]
pub struct RealmKey {
    /// The realm's name.
    pub name: RealmName,
    /// The cipher of its blobs.
    pub suite: Suite,
    /// The current key epoch, from 1.
    pub epoch: u32,
    /// The root secret.
    pub root: RootSecret,
}

impl RealmKey {
    /// A new realm, in epoch 1.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn generate(name: RealmName, suite: Suite) -> Result<Self, getrandom::Error> {
        Ok(Self { name, suite, epoch: 1, root: RootSecret::new(Secret::random()?) })
    }

    /// Reads `realm.key` at `path`.
    ///
    /// # Errors
    /// When it is missing, open to others, or not such a file.
    pub fn load(path: &Path) -> Result<Self, KeyFileError> {
        Self::parse(path, &file::read(path)?)
    }

    /// Reads the text of `realm.key`; `path` is for messages.
    ///
    /// # Errors
    /// When the text is not that of a `realm.key`.
    pub fn parse(path: &Path, text: &str) -> Result<Self, KeyFileError> {
        let raw: RawRealm = file::parse(path, text)?;
        let malformed =
            |problem: &str| KeyFileError::Malformed { path: path.to_owned(), line: None, problem: problem.to_owned() };
        if raw.epoch == 0 {
            return Err(malformed("`epoch` counts from 1"));
        }
        Ok(Self {
            name: raw.realm.parse().map_err(|_| malformed("`realm` is not a name"))?,
            suite: Suite::from_code(raw.suite).ok_or_else(|| malformed("`suite` is not known to this version"))?,
            epoch: raw.epoch,
            root: RootSecret::new(raw.root),
        })
    }

    /// The text of the file.
    #[must_use]
    pub fn to_toml(&self) -> Zeroizing<String> {
        Zeroizing::new(format!(
            "# The root secret of realm {0}: whoever has it reads every backup. Never in git.\n\
             realm = \"{0}\"\nsuite = {1}\nepoch = {2}\nroot = \"{3}\"\n",
            self.name,
            self.suite as u8,
            self.epoch,
            *self.root.secret().to_hex()
        ))
    }

    /// What `vsync.pub` says of the realm.
    #[must_use]
    pub fn public(&self) -> Realm {
        Realm {
            name: self.name.clone(),
            id: self.root.realm_id(),
            epoch: self.epoch,
            suite: self.suite,
            readers: (1..=self.epoch).map(|epoch| (epoch, self.root.epoch(epoch).recipient().to_string())).collect(),
        }
    }

    /// The `vsync.pub` of a realm that has no machines yet but the one that the recovery kit is.
    #[must_use]
    pub fn registry(&self) -> Registry {
        let mut registry = Registry::new(self.public());
        let enrolled = registry.enrol(recovery_machine(), self.recovery_key());
        debug_assert!(enrolled.is_ok(), "nobody has the key yet");
        registry
    }

    /// The public key of the identity as which the recovery kit connects.
    #[must_use]
    pub fn recovery_key(&self) -> MachineKey {
        public(&self.root.recovery_key())
    }

    /// The text of `vsync.pub`, signed.
    #[must_use]
    pub fn sign(&self, registry: &Registry) -> String {
        let key = self.root.admin_key();
        registry::signed(&registry.to_string(), |message| key.sign(message).to_bytes())
    }

    /// Whether `text` is a `vsync.pub` as this realm's administrator signed it.
    #[must_use]
    pub fn is_signed(&self, text: &str) -> bool {
        registry::is_signed(text, public(&self.root.admin_key()))
    }

    /// What a holder of the recovery kit works with: an identity of its own, and the keys of all epochs.
    #[must_use]
    pub fn recovery_bundle(&self) -> Bundle {
        self.bundle(recovery_machine(), Role::Full, self.root.recovery_key())
    }

    /// The keys of `machine` in `role`, with all epochs so far.
    #[must_use]
    pub fn bundle(&self, machine: MachineName, role: Role, identity: SigningKey) -> Bundle {
        let grant = |epoch| {
            let secret = self.root.epoch(epoch);
            match role {
                Role::Server => None,
                Role::Writer => Some(Grant::Write { reader: secret.recipient(), secret: secret.writer() }),
                Role::Full => Some(Grant::Full(secret)),
            }
        };
        let grants: BTreeMap<_, _> = (1..=self.epoch).filter_map(|epoch| Some((epoch, grant(epoch)?))).collect();
        Bundle {
            machine,
            realm: self.name.clone(),
            realm_id: self.root.realm_id(),
            role,
            suite: self.suite,
            epoch: self.epoch,
            identity,
            name_key: (role != Role::Server).then(|| self.root.name_key()),
            grants,
        }
    }
}

/// The name of the recovery kit among the machines.
#[must_use]
pub fn recovery_machine() -> MachineName {
    RECOVERY_MACHINE.parse().unwrap_or_else(|_| unreachable!("a constant that is a name"))
}

fn public(key: &SigningKey) -> MachineKey {
    MachineKey::from_bytes(key.verifying_key().to_bytes())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRealm {
    realm: String,
    suite: u8,
    epoch: u32,
    root: Secret,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::file::{Existing, write};

    #[test]
    fn a_new_registry_lets_the_kit_in_and_is_signed() {
        let realm = RealmKey::generate("r".parse().unwrap(), Suite::ChaCha20Poly1305).unwrap();
        let (registry, bundle) = (realm.registry(), realm.recovery_bundle());
        assert_eq!(registry.machine_of(&bundle.public_key()), Some(&recovery_machine()));
        assert_ne!(realm.root.admin_key().as_bytes(), realm.root.recovery_key().as_bytes());
        let text = realm.sign(&registry);
        assert!(realm.is_signed(&text));
        let other = RealmKey::generate("r".parse().unwrap(), Suite::ChaCha20Poly1305).unwrap();
        assert!(!other.is_signed(&text));
    }

    #[test]
    fn the_file_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("realm.key");
        let realm = RealmKey::generate("r".parse().unwrap(), Suite::ChaCha20Poly1305).unwrap();
        write(&path, &realm.to_toml(), Existing::Refuse).unwrap();
        assert_eq!(RealmKey::load(&path).unwrap().public(), realm.public());
    }
}
