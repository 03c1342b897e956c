//! Which configuration, and which machine of it this is.

use std::path::{Path, PathBuf};

use vsync_protocol::id::MachineName;

use super::problem::ConfigError;

/// Name of the configuration.
pub(crate) const FILE_NAME: &str = "vsync.toml";

/// Where a configuration for the whole machine is.
pub(crate) const SYSTEM_PATH: &str = "/etc/vsync/vsync.toml";

/// The configuration to use: the one given, else that of the current directory, else the system's.
///
/// # Errors
/// When none was given and there is none. One that was given need not exist yet.
pub(crate) fn config(given: Option<&Path>) -> Result<PathBuf, ConfigError> {
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    let looked = vec![PathBuf::from(FILE_NAME), PathBuf::from(SYSTEM_PATH)];
    let found = looked.iter().find(|path| path.is_file()).cloned();
    found.ok_or(ConfigError::NotFound { looked })
}

/// The file that says which machine this is, beside the configuration at `config`.
#[must_use]
pub(crate) fn identity_path(config: &Path) -> PathBuf {
    config.with_file_name(".vsync_identity")
}

/// The name of this machine: the one given, else what `vsync configure` wrote.
///
/// # Errors
/// When none was given and none was written, or something else was.
pub(crate) fn identity(config: &Path, given: Option<&MachineName>) -> Result<MachineName, ConfigError> {
    if let Some(name) = given {
        return Ok(name.clone());
    }
    let path = identity_path(config);
    match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map_err(|_| ConfigError::BadIdentity { path }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(ConfigError::NoIdentity { path }),
        Err(source) => Err(ConfigError::Read { path, source }),
    }
}
