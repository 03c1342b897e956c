//! Commands that run inside somebody's container.

use std::fs;

use bollard::container::LogOutput;
use bollard::exec::{CreateExecOptions, StartExecResults};
use futures_util::StreamExt;
use rustix::process::{Pid, Signal, kill_process_group};

use super::engine::Engine;
use super::error::DockerError;
use super::helper::HelperOutput;

/// A command for a container. All of it is visible to those who may talk to the engine: no secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecJob {
    /// The program and its arguments.
    pub words: Vec<String>,
    /// Who runs it; the container's own user if not given.
    pub user: Option<String>,
    /// Environment beside the container's own, `NAME=value`.
    pub environment: Vec<String>,
}

/// A command that was created in a container, and perhaps started.
#[derive(Clone, Debug)]
pub struct Exec {
    id: String,
    /// Id of the container.
    container: String,
    /// Its name, for errors.
    name: String,
}

impl Engine {
    /// Prepares a command in a running container.
    pub async fn create_exec(&self, container: &str, name: &str, job: ExecJob) -> Result<Exec, DockerError> {
        let options = CreateExecOptions {
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            env: Some(job.environment),
            cmd: Some(job.words),
            user: job.user,
            ..Default::default()
        };
        let created = self.client().create_exec(container, options).await;
        let created = created.map_err(DockerError::container("run a command in", name))?;
        Ok(Exec { id: created.id, container: container.to_owned(), name: name.to_owned() })
    }

    /// Runs it to its end, passing on its output, and returns its exit code.
    pub async fn run_exec(
        &self,
        exec: &Exec,
        output: &mut (dyn FnMut(HelperOutput<'_>) + Send),
    ) -> Result<i64, DockerError> {
        let failed = || DockerError::container("run a command in", &exec.name);
        if let StartExecResults::Attached { output: mut stream, .. } =
            self.client().start_exec(&exec.id, None).await.map_err(failed())?
        {
            while let Some(piece) = stream.next().await {
                match piece.map_err(failed())? {
                    LogOutput::StdErr { message } => output(HelperOutput::Err(&message)),
                    LogOutput::StdOut { message } | LogOutput::Console { message } => {
                        output(HelperOutput::Out(&message));
                    }
                    LogOutput::StdIn { .. } => {}
                }
            }
        }
        let ended = self.client().inspect_exec(&exec.id).await.map_err(failed())?;
        // Without a code, the engine lost it: that is no success.
        Ok(ended.exit_code.unwrap_or(-1))
    }

    /// Kills a command that takes too long, and says whether it did: an engine has no word for that, so it is done on
    /// this machine, if the engine runs here and we may.
    pub async fn kill_exec(&self, exec: &Exec) -> bool {
        let Ok(inspected) = self.client().inspect_exec(&exec.id).await else { return false };
        let pid = inspected.pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let Some(pid) = pid.filter(|_| inspected.running == Some(true)) else { return false };
        // The number means nothing elsewhere: the process of that number must be the container's.
        let groups = fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero())).unwrap_or_default();
        // The runtime gives each command a session, so its children go with it.
        groups.contains(&exec.container) && kill_process_group(pid, Signal::KILL).is_ok()
    }
}
