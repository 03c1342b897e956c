//! Containers stopped for the time of a restore, and the promise to start them again.

use std::time::Duration;

use bollard::models::ContainerInspectResponse;
use bollard::query_parameters::StopContainerOptions;

use super::engine::Engine;
use super::error::{DockerError, NotRestarted};
use super::rescue;
use super::{ContainerRole, ContainerUser};

/// Containers that were running and are now stopped.
///
/// Call [`restart`](Self::restart) to learn which ones could not be started again; `Drop` is the net.
#[must_use = "dropping this starts the containers again"]
#[derive(Debug)]
pub struct StoppedContainers {
    engine: Engine,
    /// In the order in which they were stopped.
    stopped: Vec<Container>,
}

/// A container that stayed stopped.
#[derive(Debug)]
pub struct RestartFailure {
    /// Its name.
    pub container: String,
    /// Why.
    pub error: DockerError,
}

impl Engine {
    /// Stops those of `users` that run, in the given order, each with its own stop signal and grace period.
    ///
    /// Containers that could not be brought back as they are now are refused, before anything is stopped. If one will
    /// not stop, those before it are started again.
    pub async fn stop_containers(&self, users: &[ContainerUser]) -> Result<StoppedContainers, DockerError> {
        let mut plan = Vec::new();
        for user in users {
            let inspected = self.client().inspect_container(&user.id, None).await;
            let inspected = inspected.map_err(DockerError::container("inspect", &user.name))?;
            plan.extend(Container::to_stop(user, inspected)?);
        }
        let mut held = StoppedContainers { engine: self.clone(), stopped: Vec::new() };
        for container in plan {
            // Recorded first: if we are cancelled while it stops, it is started again.
            held.stopped.push(container.clone());
            if let Err(source) = container.stop(self).await {
                let failures = held.restart().await;
                let not_restarted = failures.into_iter().map(|failure| failure.container).collect();
                return Err(DockerError::Stop {
                    container: container.name,
                    not_restarted: NotRestarted(not_restarted),
                    source: Box::new(source),
                });
            }
        }
        Ok(held)
    }
}

impl StoppedContainers {
    /// Names of the containers, in the order in which they were stopped.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.stopped.iter().map(|container| container.name.as_str())
    }

    /// Starts the containers in reverse order, and tells which ones would not start.
    pub async fn restart(mut self) -> Vec<RestartFailure> {
        let mut failures = Vec::new();
        // Forgotten only once it was tried: what is left when we are cancelled is left to `Drop`.
        while let Some(container) = self.stopped.last() {
            if let Err(error) = container.start(&self.engine).await {
                failures.push(RestartFailure { container: container.name.clone(), error });
            }
            self.stopped.pop();
        }
        failures
    }
}

impl Drop for StoppedContainers {
    fn drop(&mut self) {
        if self.stopped.is_empty() {
            return;
        }
        let stopped = std::mem::take(&mut self.stopped);
        let names: Vec<_> = stopped.iter().map(|container| container.name.as_str()).collect();
        let what = format!("start {} again", names.join(", "));
        rescue::run_now(&self.engine, &what, RESCUE_WITHIN, async move |engine| {
            for container in stopped.iter().rev() {
                if let Err(error) = container.start(&engine).await {
                    tracing::error!(container = container.name, %error, "A container stayed stopped");
                }
            }
        });
    }
}

/// A running container that may be stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Container {
    id: String,
    name: String,
    /// How long the engine lets it end by itself; `None` is for ever.
    grace: Option<Duration>,
}

impl Container {
    /// What to stop for a user of the volume: nothing if it does not run, or if it is the one that we run in.
    fn to_stop(user: &ContainerUser, inspected: ContainerInspectResponse) -> Result<Option<Self>, DockerError> {
        let state = inspected.state.unwrap_or_default();
        let is = |flag: Option<bool>| flag == Some(true);
        let runs = is(state.running) || is(state.restarting);
        if !runs || user.role == ContainerRole::Ourselves {
            return Ok(None);
        }
        let config = inspected.config.unwrap_or_default();
        let refused = |reason| Err(DockerError::Unstoppable { container: user.name.clone(), reason });
        if user.role == ContainerRole::Helper {
            return refused("it is a vsync helper at work on the volume; wait for it to end, then try again");
        }
        if is(inspected.host_config.unwrap_or_default().auto_remove) {
            return refused("it was run with --rm and would be gone; stop it yourself, and run it again afterwards");
        }
        if config.labels.unwrap_or_default().contains_key(SWARM_TASK) {
            return refused("its Swarm service would replace it at once; scale the service to 0 first");
        }
        if is(state.paused) {
            return refused("somebody paused it; unpause it with `docker unpause`, then try again");
        }
        let grace = match config.stop_timeout {
            Some(seconds) => u64::try_from(seconds).ok().map(Duration::from_secs),
            None => Some(ENGINE_GRACE),
        };
        Ok(Some(Self { id: user.id.clone(), name: user.name.clone(), grace }))
    }

    async fn stop(&self, engine: &Engine) -> Result<(), bollard::errors::Error> {
        // No `t`: the engine then applies the container's own grace period, and answers only when it is over.
        let patience = self.grace.map_or(FOR_EVER, |grace| grace + ENGINE_WORK);
        let client = engine.client().clone().with_timeout(patience);
        client.stop_container(&self.id, None::<StopContainerOptions>).await
    }

    async fn start(&self, engine: &Engine) -> Result<(), DockerError> {
        engine.client().start_container(&self.id, None).await.map_err(DockerError::container("start", &self.name))
    }
}

const SWARM_TASK: &str = "com.docker.swarm.task.id";
/// How long an engine waits for a container that says nothing about it.
const ENGINE_GRACE: Duration = Duration::from_secs(10);
/// What the engine may need beyond the grace period, to kill and to unmount.
const ENGINE_WORK: Duration = Duration::from_secs(120);
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);
const RESCUE_WITHIN: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use bollard::models::{ContainerConfig, ContainerState, HostConfig};

    use super::*;

    fn running() -> ContainerInspectResponse {
        ContainerInspectResponse {
            state: Some(ContainerState { running: Some(true), ..Default::default() }),
            config: Some(ContainerConfig::default()),
            host_config: Some(HostConfig::default()),
            ..Default::default()
        }
    }

    fn with_config(config: ContainerConfig) -> ContainerInspectResponse {
        ContainerInspectResponse { config: Some(config), ..running() }
    }

    fn plan(inspected: ContainerInspectResponse) -> Result<Option<Container>, String> {
        plan_for(ContainerRole::Application, inspected)
    }

    fn plan_for(role: ContainerRole, inspected: ContainerInspectResponse) -> Result<Option<Container>, String> {
        let user = ContainerUser { id: "1".into(), name: "db".into(), running: true, paused: false, role };
        Container::to_stop(&user, inspected).map_err(|error| error.to_string())
    }

    #[test]
    fn only_what_runs_is_stopped_and_with_its_own_grace() {
        let container = |grace| Ok(Some(Container { id: "1".into(), name: "db".into(), grace }));
        assert_eq!(plan(ContainerInspectResponse::default()), Ok(None));
        assert_eq!(plan_for(ContainerRole::Ourselves, running()), Ok(None));
        assert_eq!(plan(running()), container(Some(ENGINE_GRACE)));
        let stop_timeout = |seconds| with_config(ContainerConfig { stop_timeout: Some(seconds), ..Default::default() });
        assert_eq!(plan(stop_timeout(300)), container(Some(Duration::from_secs(300))));
        assert_eq!(plan(stop_timeout(-1)), container(None));
    }

    #[test]
    fn what_could_not_be_brought_back_is_not_stopped() {
        let removed = HostConfig { auto_remove: Some(true), ..Default::default() };
        let paused = ContainerState { running: Some(true), paused: Some(true), ..Default::default() };
        let task = HashMap::from([(SWARM_TASK.to_owned(), "x".to_owned())]);
        let table = [
            (ContainerInspectResponse { host_config: Some(removed), ..running() }, "--rm"),
            (ContainerInspectResponse { state: Some(paused), ..running() }, "docker unpause"),
            (with_config(ContainerConfig { labels: Some(task), ..Default::default() }), "scale the service"),
        ];
        for (inspected, expected) in table {
            let error = plan(inspected).unwrap_err();
            assert!(error.starts_with("Container db was not stopped") && error.contains(expected), "{error}");
        }
        let error = plan_for(ContainerRole::Helper, running()).unwrap_err();
        assert!(error.contains("vsync helper at work"), "{error}");
    }
}
