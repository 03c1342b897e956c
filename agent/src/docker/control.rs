//! What may be done to a container from outside: look at it, freeze it, stop it, and bring it back.
//!
//! Single acts that keep no promises; `quiesce` makes and keeps those.

use std::collections::BTreeMap;
use std::time::Duration;

use bollard::models::ContainerInspectResponse;
use bollard::query_parameters::StopContainerOptionsBuilder;

use super::engine::Engine;
use super::error::{DockerError, found};

/// A container as it is at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerFacts {
    /// The engine's id of it.
    pub id: String,
    /// Its name, without the leading slash.
    pub name: String,
    /// Whether it runs.
    pub status: ContainerStatus,
    /// When it was last started, in the engine's words: the same as long as nobody starts it again.
    pub started_at: String,
    /// It disappears when it stops.
    pub auto_remove: bool,
    /// A Swarm service replaces it when it stops.
    pub swarm_task: bool,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// How long the engine lets it end by itself; `None` is for ever.
    pub grace: Option<Duration>,
}

/// Whether a container runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerStatus {
    /// Its processes run.
    Running,
    /// Its processes are frozen.
    Paused,
    /// It ended, and the engine will start it again.
    Restarting,
    /// It has no processes.
    Down,
}

impl ContainerFacts {
    fn new(container: &str, inspected: ContainerInspectResponse) -> Self {
        let state = inspected.state.unwrap_or_default();
        let is = |flag: Option<bool>| flag == Some(true);
        let status = if is(state.restarting) {
            ContainerStatus::Restarting
        } else if is(state.paused) {
            ContainerStatus::Paused
        } else if is(state.running) {
            ContainerStatus::Running
        } else {
            ContainerStatus::Down
        };
        let config = inspected.config.unwrap_or_default();
        let labels: BTreeMap<_, _> = config.labels.unwrap_or_default().into_iter().collect();
        let grace = match config.stop_timeout {
            Some(seconds) => u64::try_from(seconds).ok().map(Duration::from_secs),
            None => Some(ENGINE_GRACE),
        };
        let name = inspected.name.unwrap_or_default();
        Self {
            id: inspected.id.unwrap_or_else(|| container.to_owned()),
            name: name.strip_prefix('/').unwrap_or(&name).to_owned(),
            status,
            started_at: state.started_at.unwrap_or_default(),
            auto_remove: is(inspected.host_config.unwrap_or_default().auto_remove),
            swarm_task: labels.contains_key(SWARM_TASK),
            labels,
            grace,
        }
    }
}

impl Engine {
    /// The engine's own id: the same whatever address it is reached at.
    pub async fn id(&self) -> Result<String, DockerError> {
        let info = self
            .client()
            .info()
            .await
            .map_err(|source| DockerError::Unreachable { host: self.host().to_owned(), source: Box::new(source) })?;
        Ok(info.id.unwrap_or_default())
    }

    /// Looks at a container, if it is there.
    pub async fn container(&self, container: &str) -> Result<Option<ContainerFacts>, DockerError> {
        let inspected = found(self.client().inspect_container(container, None).await);
        let inspected = inspected.map_err(DockerError::container("inspect", container))?;
        Ok(inspected.map(|inspected| ContainerFacts::new(container, inspected)))
    }

    /// Freezes its processes. When this returns, none of them runs any more.
    pub async fn pause(&self, id: &str, name: &str) -> Result<(), DockerError> {
        self.client().pause_container(id).await.map_err(DockerError::container("pause", name))
    }

    /// Lets frozen processes go on.
    pub async fn unpause(&self, id: &str, name: &str) -> Result<(), DockerError> {
        self.client().unpause_container(id).await.map_err(DockerError::container("unpause", name))
    }

    /// Stops a container with its own stop signal: it has `timeout`, or its own grace period, until it is killed.
    pub async fn stop(
        &self,
        id: &str,
        name: &str,
        timeout: Option<Duration>,
        grace: Option<Duration>,
    ) -> Result<(), DockerError> {
        let patience = timeout.or(grace).map_or(FOR_EVER, |grace| grace + ENGINE_WORK);
        let client = self.client().clone().with_timeout(patience);
        // No `t`: the engine then applies the container's own grace period, and answers only when it is over.
        let options = timeout.map(|timeout| {
            let seconds = i32::try_from(timeout.as_secs()).unwrap_or(i32::MAX);
            StopContainerOptionsBuilder::default().t(seconds).build()
        });
        client.stop_container(id, options).await.map_err(DockerError::container("stop", name))
    }

    /// Starts a container.
    pub async fn start(&self, id: &str, name: &str) -> Result<(), DockerError> {
        self.client().start_container(id, None).await.map_err(DockerError::container("start", name))
    }
}

const SWARM_TASK: &str = "com.docker.swarm.task.id";
/// How long an engine waits for a container that says nothing about it.
const ENGINE_GRACE: Duration = Duration::from_secs(10);
/// What the engine may need beyond the grace period, to kill and to unmount.
const ENGINE_WORK: Duration = Duration::from_secs(120);
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use bollard::models::{ContainerConfig, ContainerState, HostConfig};

    use super::*;

    fn inspected(state: ContainerState, config: ContainerConfig) -> ContainerFacts {
        let answer = ContainerInspectResponse {
            id: Some("1".into()),
            name: Some("/db".into()),
            state: Some(state),
            config: Some(config),
            host_config: Some(HostConfig { auto_remove: Some(true), ..Default::default() }),
            ..Default::default()
        };
        ContainerFacts::new("db", answer)
    }

    #[test]
    fn a_container_is_what_its_flags_say() {
        let state = |running, paused, restarting| ContainerState {
            running: Some(running),
            paused: Some(paused),
            restarting: Some(restarting),
            ..Default::default()
        };
        for (state, status) in [
            (state(true, false, false), ContainerStatus::Running),
            (state(true, true, false), ContainerStatus::Paused),
            (state(true, false, true), ContainerStatus::Restarting),
            (state(false, false, false), ContainerStatus::Down),
            (ContainerState::default(), ContainerStatus::Down),
        ] {
            let facts = inspected(state, ContainerConfig::default());
            assert_eq!((facts.status, facts.name.as_str(), facts.auto_remove), (status, "db", true));
        }
    }

    #[test]
    fn the_grace_period_is_the_containers_own() {
        for (stop_timeout, grace) in
            [(None, Some(ENGINE_GRACE)), (Some(300), Some(Duration::from_secs(300))), (Some(-1), None)]
        {
            let labels = HashMap::from([(SWARM_TASK.to_owned(), "x".to_owned())]);
            let config = ContainerConfig { stop_timeout, labels: Some(labels), ..Default::default() };
            let facts = inspected(ContainerState::default(), config);
            assert_eq!((facts.grace, facts.swarm_task), (grace, true));
        }
    }
}
