//! Errors of what every command begins with: the command line, the configuration, keys.

use vsync_protocol::registry::RegistryError;

use super::super::context::ContextError;
use super::super::keygen::KeygenError;
use super::super::output;
use super::super::spec::SpecError;
use super::super::time::TimeError;
use super::{Exit, Failure, io_exit};
use crate::config::ConfigError;
use crate::keys::{KeyFileError, KitError};

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let code = match &error {
            ConfigError::Read { source, .. } => io_exit(source),
            ConfigError::NotFound { .. }
            | ConfigError::Invalid { .. }
            | ConfigError::Unknown { .. }
            | ConfigError::WhichServer { .. }
            | ConfigError::NoIdentity { .. }
            | ConfigError::BadIdentity { .. } => Exit::Usage,
        };
        Self::of(&error, code).hint(error.hint())
    }
}

impl From<KeyFileError> for Failure {
    fn from(error: KeyFileError) -> Self {
        let code = match &error {
            KeyFileError::Io { source, .. } => io_exit(source),
            KeyFileError::Exists { .. } => Exit::Failed,
            KeyFileError::Missing { .. } | KeyFileError::Exposed { .. } | KeyFileError::Malformed { .. } => {
                Exit::NotAuthorised
            }
        };
        Self::of(&error, code).hint(error.hint())
    }
}

impl From<KitError> for Failure {
    fn from(error: KitError) -> Self {
        Self::of(&error, Exit::NotAuthorised).hint(error.hint().to_owned())
    }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        Self::of(&error, Exit::Usage).hint("restore the line from git, or run `vsync keygen`".to_owned())
    }
}

impl From<ContextError> for Failure {
    fn from(error: ContextError) -> Self {
        let hint = error.hint();
        match error {
            ContextError::Config(error) => error.into(),
            ContextError::Keys(error) => error.into(),
            ContextError::Registry(error) => error.into(),
            ContextError::ReadRegistry { ref source, .. } => Self::of(&error, io_exit(source)).hint(hint),
            ContextError::NoRegistry { .. } | ContextError::OtherName { .. } | ContextError::NoStateDir => {
                Self::of(&error, Exit::Usage).hint(hint)
            }
            ContextError::OtherRealm { .. } | ContextError::LockedOut { .. } | ContextError::OtherKey { .. } => {
                Self::of(&error, Exit::NotAuthorised).hint(hint)
            }
        }
    }
}

impl From<KeygenError> for Failure {
    fn from(error: KeygenError) -> Self {
        let hint = error.hint();
        match error {
            KeygenError::Keys(error) => error.into(),
            other => Self::of(&other, Exit::Failed).hint(hint),
        }
    }
}

impl From<TimeError> for Failure {
    fn from(error: TimeError) -> Self {
        Self::of(&error, Exit::Usage).hint(output::TIME_FORMS.to_owned())
    }
}

impl From<SpecError> for Failure {
    fn from(error: SpecError) -> Self {
        Self::of(&error, Exit::Usage)
            .hint("write VOLUME, VOLUME@latest~2, VOLUME@ID, VOLUME@TIME, each with :PATH if wanted".to_owned())
    }
}
