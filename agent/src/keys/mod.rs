//! Keys: how they derive from one another, what each machine holds, where they lie on disk.
//!
//! This room does not encrypt, and connects to nothing but a key store. It hands out keys in types that are wiped when
//! dropped and that print as `..`.
//!
//! - [`secret`]: 32 bytes that must not leak
//! - [`derive`]: the hierarchy below the realm's root secret
//! - [`realm`]: the administrator's `realm.key`
//! - [`bundle`]: the key file of one machine
//! - [`file`]: reading and writing files that only their owner may see
//! - [`store`]: the directory that holds all of them
//! - [`vault`]: the server that can hold them instead
//! - [`source`]: secrets from variables, files and commands
//! - [`kit`]: the sheet of paper from which everything can be recovered

pub(crate) mod bundle;
pub(crate) mod derive;
pub(crate) mod file;
pub(crate) mod kit;
pub(crate) mod realm;
pub(crate) mod secret;
pub(crate) mod source;
pub(crate) mod store;
pub(crate) mod vault;

pub use bundle::Bundle;
pub use derive::{EpochSecret, NameKey, RootSecret, WriterKeys, WriterSecret};
pub use file::{Existing, KeyFileError};
pub use kit::{Kit, KitError, KitServer};
pub use realm::{RealmKey, recovery_machine};
pub use secret::Secret;
pub use store::{KeyStore, KeyStoreError};
pub(crate) use vault::VaultError;

// Said in the configuration, and written into key files.
pub use crate::config::Role;
