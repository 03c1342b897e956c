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

use ed25519_dalek::SigningKey;
use serde::Deserialize;
use vsync_protocol::blob::Suite;
use vsync_protocol::id::{MachineName, RealmName};
use vsync_protocol::registry::Realm;
use zeroize::Zeroizing;

use super::bundle::{Bundle, Grant, Role};
use super::derive::RootSecret;
use super::file::{self, KeyFileError};
use super::secret::Secret;

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
        let raw: RawRealm = file::parse(path, &file::read(path)?)?;
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
    fn the_file_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("realm.key");
        let realm = RealmKey::generate("r".parse().unwrap(), Suite::ChaCha20Poly1305).unwrap();
        write(&path, &realm.to_toml(), Existing::Refuse).unwrap();
        assert_eq!(RealmKey::load(&path).unwrap().public(), realm.public());
    }
}
