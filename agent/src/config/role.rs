//! What a machine of the realm may do.

use std::fmt;

use serde::Deserialize;

/// What a machine can do, by the secrets that it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Stores backups and reads none: holds no secret of the realm.
    Server,
    /// Backs up, and cannot read any backup, its own included.
    Writer,
    /// Backs up and restores.
    Full,
}

impl Role {
    /// The role's name in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Writer => "writer",
            Self::Full => "full",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
