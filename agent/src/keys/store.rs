//! The key store: every private key of a realm, in one directory that git ignores.
//!
//! ```text
//! keys/.gitignore            "*"
//! keys/realm.key             the administrator's
//! keys/machines/NAME.key     each machine's
//! ```
//!
//! A machine other than the administrator's needs its own file only. Callers see keys, not
//! paths, so that another kind of store can stand in.

use std::path::PathBuf;

use vsync_protocol::id::MachineName;

use super::bundle::Bundle;
use super::file::{self, Existing, KeyFileError};
use super::realm::RealmKey;

/// A key store in a directory, which need not exist yet.
#[derive(Clone, Debug)]
pub struct KeyStore {
    directory: PathBuf,
}

impl KeyStore {
    /// The store in `directory`. Nothing is read or made yet.
    #[must_use]
    pub const fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Where the realm's root secret is.
    #[must_use]
    pub fn realm_path(&self) -> PathBuf {
        self.directory.join("realm.key")
    }

    /// Where the keys of `machine` are.
    #[must_use]
    pub fn machine_path(&self, machine: &MachineName) -> PathBuf {
        self.directory.join("machines").join(format!("{machine}.key"))
    }

    /// The realm's root secret.
    ///
    /// # Errors
    /// When it is missing, open to others, or damaged.
    pub fn realm(&self) -> Result<RealmKey, KeyFileError> {
        RealmKey::load(&self.realm_path())
    }

    /// The keys of `machine`.
    ///
    /// # Errors
    /// When they are missing, open to others, or damaged.
    pub fn machine(&self, machine: &MachineName) -> Result<Bundle, KeyFileError> {
        Bundle::load(&self.machine_path(machine))
    }

    /// As [`Self::machine`], where it is no error that there are none.
    ///
    /// # Errors
    /// When they are open to others, or damaged.
    pub fn find_machine(&self, machine: &MachineName) -> Result<Option<Bundle>, KeyFileError> {
        match self.machine(machine) {
            Err(KeyFileError::Missing { .. }) => Ok(None),
            result => result.map(Some),
        }
    }

    /// Stores a realm's root secret; one that is there is never replaced.
    ///
    /// # Errors
    /// When there is one already, or the file system refuses.
    pub fn put_realm(&self, realm: &RealmKey) -> Result<(), KeyFileError> {
        self.create()?;
        file::write(&self.realm_path(), &realm.to_toml(), Existing::Refuse)
    }

    /// Stores the keys of a machine.
    ///
    /// # Errors
    /// When there are some already and `existing` refuses, or the file system does.
    pub fn put_machine(&self, bundle: &Bundle, existing: Existing) -> Result<(), KeyFileError> {
        self.create()?;
        file::create_directory(&self.directory.join("machines"))?;
        file::write(&self.machine_path(&bundle.machine), &bundle.to_toml(), existing)
    }

    fn create(&self) -> Result<(), KeyFileError> {
        file::create_directory(&self.directory)?;
        match file::write_public(&self.directory.join(".gitignore"), "*\n", Existing::Refuse) {
            Err(KeyFileError::Exists { .. }) => Ok(()),
            result => result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use ed25519_dalek::SigningKey;
    use vsync_protocol::blob::Suite;

    use super::*;
    use crate::keys::Role;

    #[test]
    fn a_store_is_private_ignored_by_git_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let store = KeyStore::new(dir.path().join("keys"));
        let realm = RealmKey::generate("r".parse().unwrap(), Suite::ChaCha20Poly1305).unwrap();
        let bundle = realm.bundle("uat".parse().unwrap(), Role::Full, SigningKey::from_bytes(&[1; 32]));
        assert!(store.find_machine(&bundle.machine).unwrap().is_none());
        store.put_realm(&realm).unwrap();
        store.put_machine(&bundle, Existing::Refuse).unwrap();

        let mode = |path: PathBuf| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(dir.path().join("keys")), 0o700);
        assert_eq!(mode(dir.path().join("keys/machines")), 0o700);
        assert_eq!(mode(store.realm_path()), 0o600);
        assert_eq!(mode(store.machine_path(&bundle.machine)), 0o600);
        assert_eq!(fs::read_to_string(dir.path().join("keys/.gitignore")).unwrap(), "*\n");

        assert!(matches!(store.put_realm(&realm), Err(KeyFileError::Exists { .. })));
        assert!(matches!(store.put_machine(&bundle, Existing::Refuse), Err(KeyFileError::Exists { .. })));
        assert_eq!(store.machine(&bundle.machine).unwrap().public_key(), bundle.public_key());
    }
}
