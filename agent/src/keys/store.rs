//! The key store: every private key of a realm, in one directory that git ignores, or in Vault.
//!
//! ```text
//! keys/.gitignore            "*"
//! keys/realm.key             the administrator's
//! keys/machines/NAME.key     each machine's
//! ```
//!
//! A machine other than the administrator's needs its own file only. Callers see keys, not
//! paths, so that [`vault`](super::vault) can stand in.

use std::path::{Path, PathBuf};

use thiserror::Error;
use vsync_protocol::id::MachineName;
use zeroize::Zeroizing;

use super::bundle::Bundle;
use super::file::{self, Existing, KeyFileError};
use super::realm::RealmKey;
use super::vault::{VaultError, VaultStore};
use crate::config::KeysConfig;

/// A key store, which need not exist yet.
#[derive(Debug)]
pub enum KeyStore {
    /// A directory.
    Directory(PathBuf),
    /// A Vault server.
    Vault(Box<VaultStore>),
}

/// Keys could not be read or written.
#[derive(Debug, Error)]
pub enum KeyStoreError {
    /// The directory failed, or what is in the store is no key.
    #[error(transparent)]
    File(#[from] KeyFileError),
    /// The Vault server failed.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

impl KeyStoreError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::File(error) => error.hint(),
            Self::Vault(error) => error.hint(),
        }
    }

    const fn is_missing(&self) -> bool {
        matches!(self, Self::File(KeyFileError::Missing { .. }) | Self::Vault(VaultError::Missing { .. }))
    }
}

impl KeyStore {
    /// The store that a configuration names. Nothing is read or made yet.
    #[must_use]
    pub fn new(config: &KeysConfig) -> Self {
        match config {
            KeysConfig::Directory(path) => Self::Directory(path.clone()),
            KeysConfig::Vault(vault) => Self::Vault(Box::new(VaultStore::new(vault.clone()))),
        }
    }

    /// Where the realm's root secret is, in words.
    #[must_use]
    pub fn realm_place(&self) -> String {
        self.place("realm")
    }

    /// Where the keys of `machine` are, in words.
    #[must_use]
    pub fn machine_place(&self, machine: &MachineName) -> String {
        self.place(&key_of(machine))
    }

    fn place(&self, key: &str) -> String {
        match self {
            Self::Directory(directory) => path(directory, key).display().to_string(),
            Self::Vault(vault) => format!("Vault at {}", vault.place(key)),
        }
    }

    /// The realm's root secret.
    ///
    /// # Errors
    /// When it is missing, open to others, or damaged; when the store cannot be reached.
    pub fn realm(&self) -> Result<RealmKey, KeyStoreError> {
        Ok(match self {
            Self::Directory(directory) => RealmKey::load(&path(directory, "realm"))?,
            Self::Vault(vault) => RealmKey::parse(Path::new(&self.realm_place()), &vault.read("realm")?)?,
        })
    }

    /// Whether the realm's root secret is here.
    ///
    /// # Errors
    /// When it is damaged, or the store cannot be reached.
    pub fn has_realm(&self) -> Result<bool, KeyStoreError> {
        match self.realm() {
            Err(error) if error.is_missing() => Ok(false),
            result => result.map(|_| true),
        }
    }

    /// The keys of `machine`.
    ///
    /// # Errors
    /// When they are missing, open to others, damaged, or another machine's; when the store cannot be reached.
    pub fn machine(&self, machine: &MachineName) -> Result<Bundle, KeyStoreError> {
        let (place, text) = (self.machine_place(machine), self.machine_text(machine)?);
        let bundle = Bundle::parse(Path::new(&place), &text)?;
        if bundle.machine != *machine {
            let problem = format!("it is the key of {}, not of {machine}", bundle.machine);
            return Err(KeyFileError::Malformed { path: place.into(), line: None, problem }.into());
        }
        Ok(bundle)
    }

    /// The text of the key file of `machine`.
    ///
    /// # Errors
    /// As [`Self::machine`], but that it is not looked at.
    pub fn machine_text(&self, machine: &MachineName) -> Result<Zeroizing<String>, KeyStoreError> {
        let key = key_of(machine);
        Ok(match self {
            Self::Directory(directory) => file::read(&path(directory, &key))?,
            Self::Vault(vault) => vault.read(&key)?,
        })
    }

    /// As [`Self::machine`], where it is no error that there are none.
    ///
    /// # Errors
    /// When they are open to others, or damaged; when the store cannot be reached.
    pub fn find_machine(&self, machine: &MachineName) -> Result<Option<Bundle>, KeyStoreError> {
        match self.machine(machine) {
            Err(error) if error.is_missing() => Ok(None),
            result => result.map(Some),
        }
    }

    /// Stores a realm's root secret; one that is there is never replaced.
    ///
    /// # Errors
    /// When there is one already, or the store refuses.
    pub fn put_realm(&self, realm: &RealmKey) -> Result<(), KeyStoreError> {
        self.put("realm", &realm.to_toml(), Existing::Refuse)
    }

    /// Stores the keys of a machine.
    ///
    /// # Errors
    /// When there are some already and `existing` refuses, or the store does.
    pub fn put_machine(&self, bundle: &Bundle, existing: Existing) -> Result<(), KeyStoreError> {
        self.put(&key_of(&bundle.machine), &bundle.to_toml(), existing)
    }

    fn put(&self, key: &str, text: &str, existing: Existing) -> Result<(), KeyStoreError> {
        match self {
            Self::Directory(directory) => {
                create(directory)?;
                let path = path(directory, key);
                file::create_directory(path.parent().unwrap_or(directory))?;
                file::write(&path, text, existing)?;
            }
            Self::Vault(vault) => vault.write(key, text, existing)?,
        }
        Ok(())
    }
}

/// What the keys of a machine are called in the store.
fn key_of(machine: &MachineName) -> String {
    format!("machines/{machine}")
}

fn path(directory: &Path, key: &str) -> PathBuf {
    directory.join(format!("{key}.key"))
}

fn create(directory: &Path) -> Result<(), KeyFileError> {
    file::create_directory(directory)?;
    match file::write_public(&directory.join(".gitignore"), "*\n", Existing::Refuse) {
        Err(KeyFileError::Exists { .. }) => Ok(()),
        result => result,
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
        let store = KeyStore::Directory(dir.path().join("keys"));
        let realm = RealmKey::generate("r".parse().unwrap(), Suite::ChaCha20Poly1305).unwrap();
        let bundle = realm.bundle("uat".parse().unwrap(), Role::Full, SigningKey::from_bytes(&[1; 32]));
        assert!(store.find_machine(&bundle.machine).unwrap().is_none());
        store.put_realm(&realm).unwrap();
        store.put_machine(&bundle, Existing::Refuse).unwrap();

        let mode = |path: PathBuf| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(dir.path().join("keys")), 0o700);
        assert_eq!(mode(dir.path().join("keys/machines")), 0o700);
        assert_eq!(mode(dir.path().join("keys/realm.key")), 0o600);
        assert_eq!(mode(dir.path().join("keys/machines/uat.key")), 0o600);
        assert_eq!(fs::read_to_string(dir.path().join("keys/.gitignore")).unwrap(), "*\n");

        assert!(matches!(store.put_realm(&realm), Err(KeyStoreError::File(KeyFileError::Exists { .. }))));
        assert!(matches!(
            store.put_machine(&bundle, Existing::Refuse),
            Err(KeyStoreError::File(KeyFileError::Exists { .. }))
        ));
        assert_eq!(store.machine(&bundle.machine).unwrap().public_key(), bundle.public_key());
    }
    #[test]
    fn the_key_of_another_machine_is_not_this_ones() {
        let dir = tempfile::tempdir().unwrap();
        let store = KeyStore::Directory(dir.path().to_owned());
        let realm = RealmKey::generate("r".parse().unwrap(), Suite::ChaCha20Poly1305).unwrap();
        let bundle = realm.bundle("uat".parse().unwrap(), Role::Full, SigningKey::from_bytes(&[1; 32]));
        store.put_machine(&bundle, Existing::Refuse).unwrap();
        fs::rename(dir.path().join("machines/uat.key"), dir.path().join("machines/science.key")).unwrap();
        let refused = store.machine(&"science".parse().unwrap()).err().unwrap();
        assert!(refused.to_string().ends_with("it is the key of uat, not of science"), "{refused}");
    }
}
