//! Errors of the Docker engine, and of making a volume stand still.

use super::{Exit, Failure};
use crate::docker::DockerError;
use crate::quiesce::{HookFailed, QuiesceError};

impl From<QuiesceError> for Failure {
    fn from(error: QuiesceError) -> Self {
        let (code, hint) = match &error {
            // Their words say what to do.
            QuiesceError::Docker(_) | QuiesceError::Refused { .. } => (Exit::Failed, None),
            QuiesceError::Label { container, .. } => (
                Exit::Usage,
                Some(format!(
                    "run {container} again with the label set right, or have it ignored for once: --quiesce MODE"
                )),
            ),
            QuiesceError::Record { .. } => {
                (Exit::Failed, Some("nothing was held; give another --state-dir, or make room there".to_owned()))
            }
            QuiesceError::Act { to_type, container, .. } if to_type.is_empty() => {
                (Exit::Failed, Some(format!("those before it go on; look at `docker inspect {container}`")))
            }
            QuiesceError::Act { to_type, .. } => (Exit::Container, Some(to_type.join("\n         "))),
            QuiesceError::Hook(_) => {
                (Exit::Hook, Some("no snapshot was made; repair it, or set hook-failure to continue".to_owned()))
            }
            QuiesceError::Moved { .. } => (
                Exit::Failed,
                Some("what was read is no moment of it; run the same command again, and leave it alone".to_owned()),
            ),
            QuiesceError::Interrupted => (Exit::Interrupted, None),
        };
        Self::of(&error, code).hint(hint)
    }
}

impl From<HookFailed> for Failure {
    fn from(error: HookFailed) -> Self {
        let hint = "nothing was backed up; repair it, or set hook-failure to continue".to_owned();
        Self::of(&error, Exit::Hook).hint(hint)
    }
}

impl From<DockerError> for Failure {
    fn from(error: DockerError) -> Self {
        // Their own words say what to do.
        let code = match &error {
            DockerError::NoSuchVolume { .. } => Exit::NotFound,
            DockerError::Unreachable { .. }
            | DockerError::Silent { .. }
            | DockerError::List { .. }
            | DockerError::Volume { .. }
            | DockerError::Container { .. }
            | DockerError::Image { .. }
            | DockerError::NoImage { .. }
            | DockerError::Program { .. }
            | DockerError::NoProgram { .. }
            | DockerError::HelperFile { .. }
            | DockerError::NotOurs { .. }
            | DockerError::NotReady { .. }
            | DockerError::HelperLost { .. } => Exit::Failed,
        };
        Self::of(&error, code)
    }
}
