//! Errors of key stores.

use super::{Exit, Failure};
use crate::keys::{KeyStoreError, VaultError};

impl From<KeyStoreError> for Failure {
    fn from(error: KeyStoreError) -> Self {
        match error {
            KeyStoreError::File(error) => error.into(),
            KeyStoreError::Vault(error) => error.into(),
        }
    }
}

impl From<VaultError> for Failure {
    fn from(error: VaultError) -> Self {
        let code = match &error {
            VaultError::Unreachable { .. }
            | VaultError::Tls { .. }
            | VaultError::Sealed { .. }
            | VaultError::Standby { .. } => Exit::Unreachable,
            VaultError::NoMount { .. } | VaultError::UnknownVersion { .. } | VaultError::Ca { .. } => Exit::Usage,
            VaultError::NoToken { .. }
            | VaultError::Secret(_)
            | VaultError::WrongToken { .. }
            | VaultError::Login { .. }
            | VaultError::Denied { .. }
            | VaultError::Missing { .. }
            | VaultError::Foreign { .. } => Exit::NotAuthorised,
            VaultError::Exists { .. } | VaultError::Raced { .. } | VaultError::Refused { .. } => Exit::Failed,
        };
        Self::of(&error, code).hint(error.hint())
    }
}
