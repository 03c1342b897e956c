//! The connection to an engine.

use std::env;
use std::sync::Arc;
use std::time::Duration;

use bollard::Docker;
use tokio::time::timeout;

use super::error::DockerError;

/// A Docker engine that has answered. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Engine {
    client: Docker,
    host: Arc<str>,
}

impl Engine {
    /// Connects to the engine that `DOCKER_HOST` names, else to the one of this machine.
    pub async fn connect() -> Result<Self, DockerError> {
        let host = env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty());
        Self::connect_to(host.as_deref().unwrap_or(DEFAULT_HOST)).await
    }

    /// Connects to the engine at `host`, such as `unix:///var/run/docker.sock` or `tcp://10.0.0.7:2375`.
    pub async fn connect_to(host: &str) -> Result<Self, DockerError> {
        let engine = Self::open(host)?;
        // Without negotiation, engines older than the client library refuse requests that carry its version.
        let negotiated = timeout(ANSWER_WITHIN, engine.client.negotiate_version()).await;
        match negotiated {
            Ok(Ok(client)) => Ok(Self { client, host: engine.host }),
            Ok(Err(source)) => Err(DockerError::Unreachable { host: host.to_owned(), source: Box::new(source) }),
            Err(_) => Err(DockerError::Silent { host: host.to_owned(), seconds: ANSWER_WITHIN.as_secs() }),
        }
    }

    /// Connects if an engine answers. For callers that can do without one.
    pub async fn try_connect() -> Option<Self> {
        let engine = Self::connect().await;
        if let Err(error) = &engine {
            tracing::debug!(%error, "Continuing without a Docker engine");
        }
        engine.ok()
    }

    /// Address of the engine.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn client(&self) -> &Docker {
        &self.client
    }

    /// Prepares a connection of its own, for a thread that must not share the sockets of our runtime.
    pub(super) fn open(host: &str) -> Result<Self, DockerError> {
        let client = Docker::connect_with_host(host)
            .map_err(|source| DockerError::Unreachable { host: host.to_owned(), source: Box::new(source) })?;
        Ok(Self { client, host: host.into() })
    }
}

const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";

/// An engine answers `/version` in milliseconds; a dead address should not hold up a command for long.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
