//! What can go wrong between here and the keys in a Vault server.

use std::path::PathBuf;

use thiserror::Error;

use crate::keys::source::SecretError;

/// A key could not be read from Vault, or not written to it. Never quotes a secret.
#[derive(Debug, Error)]
pub enum VaultError {
    /// No answer.
    #[error("Vault at {url} does not answer")]
    Unreachable { url: String, source: Box<ureq::Error> },
    /// It answers, but is not the one that is trusted.
    #[error("Vault at {url} cannot be trusted")]
    Tls { url: String, source: Box<ureq::Error> },
    /// The certificates to trust cannot be had.
    #[error("cannot take the certificates to trust from {}: {reason}", path.display())]
    Ca { path: PathBuf, reason: String },
    /// It is sealed, or not set up.
    #[error("Vault at {url} is sealed")]
    Sealed { url: String },
    /// Another server of its cluster has to be asked.
    #[error("Vault at {url} is a standby and sends us elsewhere")]
    Standby { url: String },
    /// Nobody said who we are.
    #[error("there is no token for Vault at {url}")]
    NoToken { url: String },
    /// A token or a secret was given in a way that does not work.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The token is not valid.
    #[error("Vault at {url} does not know the token (from {origin}): it is wrong, revoked or expired")]
    WrongToken {
        url: String,
        /// Where the token was taken from.
        origin: String,
    },
    /// The role or its secret is not valid.
    #[error("Vault at {url} refuses the AppRole login at auth/{mount}: {reason}")]
    Login {
        url: String,
        /// Where the method is mounted.
        mount: String,
        /// What the server said.
        reason: String,
    },
    /// The token is valid, but may not do this.
    #[error("the token may not {action} {path} in Vault at {url}")]
    Denied {
        url: String,
        /// What was tried.
        action: &'static str,
        /// The path, with the mount.
        path: String,
    },
    /// Nothing is mounted there.
    #[error("Vault at {url} has no key/value engine at {mount}, or none that this token may see")]
    NoMount { url: String, mount: String },
    /// The version of the engine is not known.
    #[error("Vault at {url} does not tell the version of the engine at {mount}")]
    UnknownVersion { url: String, mount: String },
    /// There is no such key.
    #[error("there is no key at {path} in Vault at {url}")]
    Missing {
        url: String,
        /// The path, with the mount.
        path: String,
    },
    /// There is a key already, and replacing it was not asked for.
    #[error("{path} exists already in Vault at {url}; nothing was overwritten")]
    Exists {
        url: String,
        /// The path, with the mount.
        path: String,
    },
    /// Somebody else wrote at the same moment.
    #[error("{path} in Vault at {url} was changed by somebody else meanwhile")]
    Raced {
        url: String,
        /// The path, with the mount.
        path: String,
    },
    /// What is there is not a key of ours.
    #[error("{path} in Vault at {url} holds no key of vsync: it has no field `key`")]
    Foreign {
        url: String,
        /// The path, with the mount.
        path: String,
    },
    /// Anything else.
    #[error("Vault at {url} answers {status} to {action} {path}: {reason}")]
    Refused {
        url: String,
        /// The HTTP status.
        status: u16,
        /// What was tried.
        action: &'static str,
        /// The path, with the mount.
        path: String,
        /// What the server said.
        reason: String,
    },
}

impl VaultError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unreachable { .. } => "check `url` under [keys], and whether the server runs: `curl URL/v1/sys/health`".into(),
            Self::Tls { .. } => {
                "if the server has a certificate of your own, name that in `ca` under [keys]; else check its name and date"
                    .into()
            }
            Self::Ca { .. } => "give a PEM file with certificates as `ca` under [keys], or install ca-certificates".into(),
            Self::Sealed { .. } => "unseal it (`vault operator unseal`), then run the same command again".into(),
            Self::Standby { .. } => "set `url` under [keys] to the address of the active server".into(),
            Self::NoToken { .. } => {
                "set VSYNC_VAULT_TOKEN, VSYNC_VAULT_TOKEN_FILE or VSYNC_VAULT_TOKEN_COMMAND, or `vault login`".into()
            }
            Self::Secret(_) => "set one of the variable, its _FILE and its _COMMAND, so that it gives the secret".into(),
            Self::WrongToken { .. } => "log in again (`vault login`), or give another token".into(),
            Self::Login { .. } => "compare `role-id` under [keys], and make a new secret id for the role".into(),
            Self::Denied { path, .. } => format!("have the token's policy allow read, create and update on {path}"),
            Self::NoMount { mount, .. } => {
                format!("correct `prefix` or `mount` under [keys], or `vault secrets enable -path={mount} kv-v2`")
            }
            Self::UnknownVersion { .. } => "say `kv = 1` or `kv = 2` under [keys]".into(),
            Self::Missing { path, .. } if path.ends_with("/realm") => {
                "run `vsync init` once for the realm; if its key was lost, `vsync init --kit FILE` brings it back".into()
            }
            Self::Missing { .. } => "run `vsync keygen` where the realm's key can be read".into(),
            Self::Foreign { .. } => "give another `prefix` under [keys]".into(),
            Self::Raced { .. } => "run the same command again".into(),
            Self::Exists { .. } | Self::Refused { .. } => return None,
        })
    }
}
