//! The key file of one machine: its identity, and as much of the realm's secrets as its role needs.
//!
//! ```toml
//! machine = "production2"
//! realm = "montagu"
//! realm-id = "<32 hex>"
//! role = "full"
//! suite = 1
//! epoch = 1                    # in which to write now
//! identity = "<64 hex>"        # Ed25519 seed
//! name-key = "<64 hex>"        # roles writer and full
//!
//! [[epochs]]
//! epoch = 1
//! secret = "<64 hex>"          # role full
//! writer = "<64 hex>"          # role writer, which cannot read
//! reader = "age1…"             # role writer: to whom it seals
//! ```

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use age::x25519::{Identity, Recipient};
use ed25519_dalek::SigningKey;
use serde::Deserialize;
use vsync_protocol::blob::Suite;
use vsync_protocol::id::{MachineKey, MachineName, RealmId, RealmName};
use zeroize::Zeroizing;

use super::derive::{EpochSecret, NameKey, WriterKeys, WriterSecret};
use super::file::{self, KeyFileError};
use super::secret::Secret;
use crate::config::Role;

/// What a machine holds of one epoch.
#[derive(Debug)]
pub(super) enum Grant {
    /// To write only.
    Write { secret: WriterSecret, reader: Recipient },
    /// To read and write.
    Full(EpochSecret),
}

/// The keys of one machine.
#[derive(Debug)]
pub struct Bundle {
    /// Whose keys these are.
    pub machine: MachineName,
    /// The realm's name when they were made.
    pub realm: RealmName,
    /// The realm's identifier.
    pub realm_id: RealmId,
    /// How much of the realm's secrets is here.
    pub role: Role,
    /// The cipher of new blobs.
    pub suite: Suite,
    /// The epoch in which to write, from 1.
    pub epoch: u32,
    pub(super) identity: SigningKey,
    pub(super) name_key: Option<NameKey>,
    pub(super) grants: BTreeMap<u32, Grant>,
}

impl Bundle {
    /// Reads the key file at `path`.
    ///
    /// # Errors
    /// When it is missing, open to others (`mode & 0o077`), or not a key file.
    pub fn load(path: &Path) -> Result<Self, KeyFileError> {
        Self::parse(path, &file::read(path)?)
    }

    /// Reads the text of a key file; `path` is for messages.
    ///
    /// # Errors
    /// When the text is not that of a key file, or holds more or less than its role calls for.
    pub fn parse(path: &Path, text: &str) -> Result<Self, KeyFileError> {
        let raw: RawBundle = file::parse(path, text)?;
        raw.check().map_err(|problem| KeyFileError::Malformed { path: path.to_owned(), line: None, problem })
    }

    /// The key with which the machine signs and proves who it is.
    #[must_use]
    pub fn identity(&self) -> SigningKey {
        self.identity.clone()
    }

    /// The public half of [`Self::identity`], as in `vsync.pub`.
    #[must_use]
    pub fn public_key(&self) -> MachineKey {
        MachineKey::from_bytes(self.identity.verifying_key().to_bytes())
    }

    /// What writes in `epoch`; `None` without that right.
    #[must_use]
    pub fn writer(&self, epoch: u32) -> Option<WriterKeys> {
        self.grants.get(&epoch).map(|grant| match grant {
            Grant::Write { secret, .. } => secret.keys(),
            Grant::Full(secret) => secret.writer().keys(),
        })
    }

    /// Opens the manifests of `epoch`; `None` without that right.
    #[must_use]
    pub fn reader(&self, epoch: u32) -> Option<Identity> {
        match self.grants.get(&epoch)? {
            Grant::Write { .. } => None,
            Grant::Full(secret) => Some(secret.identity()),
        }
    }

    /// To whom the manifests of `epoch` are sealed; `None` if the machine may not write in it.
    #[must_use]
    pub fn recipient(&self, epoch: u32) -> Option<Recipient> {
        self.grants.get(&epoch).map(|grant| match grant {
            Grant::Write { reader, .. } => reader.clone(),
            Grant::Full(secret) => secret.recipient(),
        })
    }

    /// The epochs of which something is held, ascending.
    pub fn epochs(&self) -> impl Iterator<Item = u32> {
        self.grants.keys().copied()
    }

    /// Hides names from servers; `None` for a mere server.
    #[must_use]
    pub const fn name_key(&self) -> Option<&NameKey> {
        self.name_key.as_ref()
    }

    /// The text of the key file.
    #[must_use]
    pub fn to_toml(&self) -> Zeroizing<String> {
        let Self { machine, realm, realm_id, role, suite, epoch, .. } = self;
        // Reserved with room to spare, so that growing leaves no copy behind.
        let mut text = Zeroizing::new(String::with_capacity(1024 + 256 * self.grants.len()));
        let seed = Secret::new(self.identity.to_bytes());
        let _ = write!(
            text,
            "# Keys of {machine}. Secret: for this machine's administrator only, never in git.\n\
             machine = \"{machine}\"\nrealm = \"{realm}\"\nrealm-id = \"{realm_id}\"\nrole = \"{role}\"\n\
             suite = {}\nepoch = {epoch}\nidentity = \"{}\"\n",
            *suite as u8,
            *seed.to_hex()
        );
        if let Some(key) = &self.name_key {
            let _ = writeln!(text, "name-key = \"{}\"", *key.secret().to_hex());
        }
        for (epoch, grant) in &self.grants {
            let _ = writeln!(text, "\n[[epochs]]\nepoch = {epoch}");
            let _ = match grant {
                Grant::Full(secret) => writeln!(text, "secret = \"{}\"", *secret.secret().to_hex()),
                Grant::Write { secret, reader } => {
                    writeln!(text, "writer = \"{}\"\nreader = \"{reader}\"", *secret.secret().to_hex())
                }
            };
        }
        text
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RawBundle {
    machine: String,
    realm: String,
    realm_id: String,
    role: Role,
    suite: u8,
    epoch: u32,
    identity: Secret,
    name_key: Option<Secret>,
    #[serde(default)]
    epochs: Vec<RawGrant>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGrant {
    epoch: u32,
    secret: Option<Secret>,
    writer: Option<Secret>,
    reader: Option<String>,
}

impl RawBundle {
    fn check(self) -> Result<Bundle, String> {
        let role = self.role;
        if self.name_key.is_none() != (role == Role::Server) {
            return Err(format!("`name-key` does not fit role {role}"));
        }
        let mut grants = BTreeMap::new();
        for raw in self.epochs {
            let epoch = raw.epoch;
            if grants.insert(epoch, raw.check(role)?).is_some() {
                return Err(format!("epoch {epoch} occurs twice"));
            }
        }
        if role != Role::Server && !grants.contains_key(&self.epoch) {
            return Err(format!("no secret of the current epoch {}", self.epoch));
        }
        Ok(Bundle {
            machine: self.machine.parse().map_err(|_| "`machine` is not a name")?,
            realm: self.realm.parse().map_err(|_| "`realm` is not a name")?,
            realm_id: self.realm_id.parse().map_err(|_| "`realm-id` is not 32 hexadecimal digits")?,
            role,
            suite: Suite::from_code(self.suite).ok_or("`suite` is not known to this version of vsync")?,
            epoch: self.epoch,
            identity: SigningKey::from_bytes(self.identity.expose()),
            name_key: self.name_key.map(NameKey::new),
            grants,
        })
    }
}

impl RawGrant {
    fn check(self, role: Role) -> Result<Grant, String> {
        match (role, self.secret, self.writer, self.reader) {
            (Role::Full, Some(secret), None, None) => Ok(Grant::Full(EpochSecret::new(secret))),
            (Role::Writer, None, Some(secret), Some(reader)) => {
                let reader = reader.parse().map_err(|_| "`reader` is not an age recipient")?;
                Ok(Grant::Write { secret: WriterSecret::new(secret), reader })
            }
            _ => Err(format!("the secrets of epoch {} do not fit role {role}", self.epoch)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::RootSecret;
    use crate::keys::realm::RealmKey;

    fn realm() -> RealmKey {
        let mut realm = RealmKey::generate("montagu".parse().unwrap(), Suite::Aes256Gcm).unwrap();
        realm.epoch = 2;
        realm
    }

    fn bundle(realm: &RealmKey, role: Role) -> Bundle {
        realm.bundle("uat".parse().unwrap(), role, SigningKey::from_bytes(&[7; 32]))
    }

    fn reread(bundle: &Bundle) -> Bundle {
        Bundle::parse(Path::new("uat.key"), &bundle.to_toml()).unwrap()
    }

    #[test]
    fn every_role_comes_back_from_its_text() {
        let realm = realm();
        for role in [Role::Server, Role::Writer, Role::Full] {
            let (made, read) = (bundle(&realm, role), reread(&bundle(&realm, role)));
            assert_eq!(*read.to_toml(), *made.to_toml());
            assert_eq!(read.public_key(), made.public_key());
            assert_eq!((read.role, read.suite, read.epoch), (role, Suite::Aes256Gcm, 2));
        }
    }

    /// Key files are kept for as long as backups are.
    #[test]
    fn golden_key_files_stay() {
        let root = RootSecret::new(Secret::new(std::array::from_fn(|at| u8::try_from(at).unwrap())));
        let mut realm = RealmKey { root, ..realm() };
        assert_eq!(*realm.to_toml(), include_str!("realm.golden"));
        assert_eq!(*bundle(&realm, Role::Full).to_toml(), include_str!("bundle.golden"));
        realm.epoch = 1;
        assert_eq!(*bundle(&realm, Role::Writer).to_toml(), include_str!("writer.golden"));
        let path = Path::new("golden");
        assert_eq!(RealmKey::parse(path, include_str!("realm.golden")).unwrap().root.realm_id(), realm.root.realm_id());
        for text in [include_str!("bundle.golden"), include_str!("writer.golden")] {
            assert_eq!(*Bundle::parse(path, text).unwrap().to_toml(), text);
        }
    }

    #[test]
    fn a_writer_holds_nothing_that_reads() {
        let realm = realm();
        let (writer, full) = (bundle(&realm, Role::Writer), bundle(&realm, Role::Full));
        let text = writer.to_toml();
        assert!(!text.contains(realm.root.secret().to_hex().as_str()));
        for epoch in 1..=2 {
            assert!(!text.contains(realm.root.epoch(epoch).secret().to_hex().as_str()));
            assert!(writer.reader(epoch).is_none());
            assert_eq!(writer.recipient(epoch), full.reader(epoch).map(|identity| identity.to_public()));
            assert_eq!(writer.writer(epoch).unwrap().convergence, full.writer(epoch).unwrap().convergence);
        }
    }

    #[test]
    fn a_server_holds_nothing_of_the_realm() {
        let realm = realm();
        let server = bundle(&realm, Role::Server);
        assert!(server.writer(1).is_none() && server.recipient(1).is_none() && server.name_key().is_none());
        assert!(!server.to_toml().contains(realm.root.name_key().secret().to_hex().as_str()));
    }

    #[test]
    fn errors_name_the_field_and_never_the_value() {
        let good = bundle(&realm(), Role::Full).to_toml();
        let hex = Secret::new([7; 32]).to_hex();
        for (from, to, message) in [
            ("identity = \"", "identity = \"0", "key file uat.key, line 8: expected 64 hexadecimal digits"),
            ("realm-id = \"", "realm-id = \"x", "key file uat.key: `realm-id` is not 32 hexadecimal digits"),
            ("role = \"full\"", "role = \"writer\"", "key file uat.key: the secrets of epoch 1 do not fit role writer"),
            ("role = \"full\"", "role = \"server\"", "key file uat.key: `name-key` does not fit role server"),
            ("epoch = 2\nid", "epoch = 3\nid", "key file uat.key: no secret of the current epoch 3"),
            ("epoch = 2\nsecret", "epoch = 1\nsecret", "key file uat.key: epoch 1 occurs twice"),
            ("suite = 2", "suite = 77", "key file uat.key: `suite` is not known to this version of vsync"),
            ("suite = 2", &format!("suite = \"{}\"", *hex), "key file uat.key, line 6: not a key file"),
        ] {
            let bad = good.replace(from, to);
            assert_ne!(bad, *good, "{from}");
            let error = Bundle::parse(Path::new("uat.key"), &bad).unwrap_err().to_string();
            assert_eq!(error, message);
            assert!(!error.contains(hex.as_str()));
        }
    }
}
