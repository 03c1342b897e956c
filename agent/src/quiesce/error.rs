//! Why a volume was not made to stand still, or did not stay so.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::wish::LabelMistake;
use crate::docker::DockerError;

/// Why a volume was not made to stand still, or did not stay so.
#[derive(Debug, Error)]
pub enum QuiesceError {
    /// The engine.
    #[error(transparent)]
    Docker(#[from] DockerError),
    /// A container could not be brought back as it was.
    #[error("container {container} was left alone: {reason}")]
    Refused {
        /// Its name.
        container: String,
        /// Why, and what to do.
        reason: &'static str,
    },
    /// A label that cannot be obeyed.
    #[error("container {container} has the label {mistake}")]
    Label {
        /// Its name.
        container: String,
        /// What is wrong with it.
        mistake: LabelMistake,
    },
    /// What will be done could not be written down, so it was not done.
    #[error("cannot write down what is done to containers in {}", path.display())]
    Record {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A container would not be paused or stopped. Those before it were brought back, but for those listed.
    #[error("could not {action} container {container}")]
    Act {
        /// "pause" or "stop".
        action: &'static str,
        /// Its name.
        container: String,
        /// Docker commands for those that did not come back.
        to_type: Vec<String>,
        /// The engine's reason.
        source: Box<DockerError>,
    },
    /// A command failed.
    #[error(transparent)]
    Hook(#[from] HookFailed),
    /// Something ran while the volume was read.
    #[error("volume {volume} did not stand still while it was read: container {container} {what}")]
    Moved {
        /// The volume.
        volume: String,
        /// The container's name.
        container: String,
        /// What it did.
        what: &'static str,
    },
    /// Somebody asked to stop.
    #[error("interrupted; the containers go on, and there is no snapshot")]
    Interrupted,
}

/// A command that did not do its work.
#[derive(Debug, Error)]
#[error("{hook} of {of} failed: {reason}")]
pub struct HookFailed {
    /// Which: `exec-pre`, `run-after` …
    pub hook: &'static str,
    /// The container, volume or machine.
    pub of: String,
    /// How it ended.
    pub reason: String,
}
