//! What can go wrong between vsync and a Docker engine.

use std::io;
use std::path::PathBuf;

use bollard::errors::Error as EngineError;
use thiserror::Error;
use vsync_protocol::id::VolumeName;

/// A failure that names the volume, container or image, what was tried, and what to do next.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DockerError {
    /// Nothing listens, or what listens is not a Docker engine.
    #[error(
        "no Docker engine answers at {host}; start it, set DOCKER_HOST to the engine's address, or run vsync in a \
         container with the volume mounted at /vsync/volumes/<name>"
    )]
    Unreachable {
        /// Address that was tried.
        host: String,
        /// The engine client's reason.
        source: Box<EngineError>,
    },

    /// Something accepted the connection but did not answer.
    #[error(
        "the Docker engine at {host} did not answer within {seconds} s; look at it with `docker version`, or set \
         DOCKER_HOST to the address of another"
    )]
    Silent {
        /// Address that was tried.
        host: String,
        /// How long we waited.
        seconds: u64,
    },

    /// The engine refused to list something.
    #[error("cannot list the {what} of the engine at {host}; try `docker {command}`")]
    List {
        /// "volumes" or "containers".
        what: &'static str,
        /// The engine's address.
        host: String,
        /// The docker command that does the same.
        command: &'static str,
        /// The engine's reason.
        source: Box<EngineError>,
    },

    /// The engine refused an operation on a volume.
    #[error("cannot {action} volume {volume}; `docker volume inspect {volume}` may tell more")]
    Volume {
        /// What was tried: "inspect", "create", "remove".
        action: &'static str,
        /// The volume.
        volume: VolumeName,
        /// The engine's reason.
        source: Box<EngineError>,
    },

    /// The volume does not exist, and running a helper would silently create it, empty.
    #[error("there is no volume {volume} on the engine at {host}; `docker volume ls` shows those that exist")]
    NoSuchVolume {
        /// The volume.
        volume: VolumeName,
        /// The engine's address.
        host: String,
    },

    /// The engine refused an operation on a container.
    #[error("cannot {action} container {container}; `docker inspect {container}` may tell more")]
    Container {
        /// What was tried: "create", "start", "stop", …
        action: &'static str,
        /// Name of the container, or its id.
        container: String,
        /// The engine's reason.
        source: Box<EngineError>,
    },

    /// The engine refused an operation on an image.
    #[error("cannot {action} the helper image {image}; `docker image inspect {image}` may tell more")]
    Image {
        /// What was tried: "inspect", "import".
        action: &'static str,
        /// The image's reference.
        image: String,
        /// The engine's reason.
        source: Box<EngineError>,
    },

    /// No image, and no program that would run in an image of our making.
    #[error(
        "the helper image {image} is missing, and cannot be made from {program}: {reason}. Pull it, build it as \
         deploy/Dockerfile says (`docker build -t {image} -f deploy/Dockerfile target/image`), or name another with \
         --image or VSYNC_IMAGE"
    )]
    NoImage {
        /// The image's reference.
        image: String,
        /// The program that was to be its only content.
        program: PathBuf,
        /// Why the program will not do.
        reason: String,
    },

    /// A container that was to stay would run something that its image does not have.
    #[error(
        "the image {image} has no {program}, which {by} runs. Use vsync under systemd instead (deploy/systemd), or \
         name an image that has it (--image or VSYNC_IMAGE)"
    )]
    NoProgram {
        /// The image's reference.
        image: String,
        /// What its command begins with.
        program: String,
        /// What would run it.
        by: String,
    },

    /// The program that the helper image is made from could not be read.
    #[error("cannot read {program} to make the helper image of it; check that it exists and may be read")]
    Program {
        /// The program's path.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// A file for a helper has a path that is not plain, relative and short.
    #[error("{path:?} cannot be handed to a helper; use a relative path of at most 80 bytes, without \"..\"")]
    HelperFile {
        /// The offending path.
        path: String,
    },

    /// A container has the name that ours would have.
    #[error(
        "there is a container {container} that vsync did not make; rename it, or give ours another name in vsync.toml \
         (`container` of the server, `schedule-container` of the machine)"
    )]
    NotOurs {
        /// Name of the container.
        container: String,
    },

    /// A container that was to stay did not come to work.
    #[error("container {container} did not come to work, and was removed again. It said:\n{log}")]
    NotReady {
        /// Name of the container.
        container: String,
        /// The last lines that it printed.
        log: String,
    },

    /// The helper ended, and the engine does not know how.
    #[error("the end of helper {container} was lost: {reason}. What it did is not known; look at `docker ps -a`")]
    HelperLost {
        /// Name of the helper's container.
        container: String,
        /// What the engine said.
        reason: String,
    },
}

impl DockerError {
    /// The engine itself did not answer: it may be restarting, and trying again may help.
    #[must_use]
    pub fn is_engine_away(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Silent { .. } => true,
            Self::Container { source, .. } | Self::List { source, .. } | Self::Volume { source, .. } => {
                !matches!(**source, EngineError::DockerResponseServerError { .. })
            }
            Self::NoSuchVolume { .. }
            | Self::Image { .. }
            | Self::NoImage { .. }
            | Self::NoProgram { .. }
            | Self::Program { .. }
            | Self::HelperFile { .. }
            | Self::NotOurs { .. }
            | Self::NotReady { .. }
            | Self::HelperLost { .. } => false,
        }
    }

    /// For `map_err`: an engine's refusal to do `action` to a volume.
    pub(super) fn volume(action: &'static str, volume: &VolumeName) -> impl FnOnce(EngineError) -> Self {
        let volume = volume.clone();
        move |source| Self::Volume { action, volume, source: Box::new(source) }
    }

    /// For `map_err`: an engine's refusal to do `action` to a container.
    pub(super) fn container(action: &'static str, container: &str) -> impl FnOnce(EngineError) -> Self {
        let container = container.to_owned();
        move |source| Self::Container { action, container, source: Box::new(source) }
    }

    /// For `map_err`: an engine's refusal to do `action` to an image.
    pub(super) fn image(action: &'static str, image: &str) -> impl FnOnce(EngineError) -> Self {
        let image = image.to_owned();
        move |source| Self::Image { action, image, source: Box::new(source) }
    }
}

/// Turns the engine's "no such thing" into `None`.
pub(super) fn found<T>(answer: Result<T, EngineError>) -> Result<Option<T>, EngineError> {
    match answer {
        Ok(thing) => Ok(Some(thing)),
        Err(EngineError::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
        Err(other) => Err(other),
    }
}
