//! Bringing containers back, from the record of what was done to them.

use std::fmt;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::error::{HookFailed, QuiesceError};
use super::hooks::{self, Call};
use super::plan::{Action, Step};
use super::record::{Ledger, Record};
use super::{Hook, Say};
use crate::docker::{ContainerStatus, DockerError, Engine};

/// An engine that restarts is waited for.
const ENGINE_BACK_WITHIN: Duration = Duration::from_secs(60);
const ASK_AGAIN: Duration = Duration::from_millis(300);

/// A stop that was ordered by a process that is gone takes effect within its grace period, and this.
const STOP_SLACK: Duration = Duration::from_secs(5);
/// For containers that have for ever to stop.
const STOP_LONGEST: Duration = Duration::from_secs(300);

/// A container that is not back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotReleased {
    /// What people call it.
    pub container: String,
    /// What the engine said.
    pub reason: String,
    /// The docker command that would bring it back, unless it is gone for good.
    pub to_type: Option<String>,
    id: String,
}

impl fmt::Display for NotReleased {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "container {} is not back: {}", self.container, self.reason)?;
        self.to_type.iter().try_for_each(|command| write!(f, "; type: {command}"))
    }
}

/// What an abandoned record came to.
#[derive(Debug)]
pub struct Undone {
    /// What had been done, and by whom.
    pub record: Record,
    /// Containers that are not back: the record is kept for them.
    pub not_released: Vec<NotReleased>,
    /// Commands afterwards that failed.
    pub failed_hooks: Vec<HookFailed>,
}

/// How a container was found.
enum Back {
    /// It runs again, or somebody else has seen to it.
    Yes,
    /// It was removed.
    Gone,
}

/// Undoes what killed processes of this machine left behind on this engine.
///
/// # Errors
/// When the engine does not say who it is.
pub async fn undo_abandoned(ledger: &Ledger, engine: &Engine, say: &Say) -> Result<Vec<Undone>, QuiesceError> {
    if ledger.is_empty() {
        return Ok(Vec::new());
    }
    let ours = engine.id().await?;
    let mut undone = Vec::new();
    for entry in ledger.abandoned() {
        let record = entry.record.clone();
        if record.engine != ours {
            say(&format!(
                "{} is about another engine, at {}: `vsync unhold` with DOCKER_HOST set to it undoes that",
                entry.path().display(),
                record.host
            ));
            continue;
        }
        say(&format!("undoing what process {} left behind on volume {}", record.process, record.volume));
        let mut not_released = bring_back(engine, &record).await;
        let away = still_held(&record.steps, &not_released);
        let failed_hooks = run_posts(engine, &record, &away, "failed", say).await;
        // Nothing can be done for what somebody removed meanwhile, by no later command either.
        not_released.retain(|stuck| stuck.to_type.is_some());
        let left = still_held(&record.steps, &not_released);
        if left.is_empty() {
            entry.remove();
        } else {
            entry.keep(left);
        }
        undone.push(Undone { record, not_released, failed_hooks });
    }
    Ok(undone)
}

/// Those of `steps` that are named in `not_released`.
pub(super) fn still_held(steps: &[Step], not_released: &[NotReleased]) -> Vec<Step> {
    steps.iter().filter(|step| not_released.iter().any(|stuck| stuck.id == step.id)).cloned().collect()
}

/// Lets every container of the record go on, the last one first.
pub(super) async fn bring_back(engine: &Engine, record: &Record) -> Vec<NotReleased> {
    let mut not_released = Vec::new();
    for step in record.steps.iter().rev() {
        let Some(action) = step.action else { continue };
        let (reason, gone) = match patiently(async || back(engine, step, action, record.at).await).await {
            Ok(Back::Yes) => continue,
            Ok(Back::Gone) => ("somebody removed it".to_owned(), true),
            Err(error) => (chain(&error), false),
        };
        not_released.push(NotReleased {
            container: step.name.clone(),
            reason,
            to_type: (!gone).then(|| format!("docker {} {}", action.undo(), step.name)),
            id: step.id.clone(),
        });
    }
    not_released
}

/// Runs the commands that come after, but for containers that are not back.
pub(super) async fn run_posts(
    engine: &Engine,
    record: &Record,
    held: &[Step],
    outcome: &'static str,
    say: &Say,
) -> Vec<HookFailed> {
    let mut failed = Vec::new();
    for step in &record.steps {
        let Some(hook) = step.post.as_ref().filter(|_| !held.contains(step)) else { continue };
        let environment = hooks::environment(&record.volume, Some(outcome));
        let call = Call { name: "exec-post", hook, environment };
        // It tidies up: only its own time ends it.
        let never = std::future::pending();
        if let Err(error) = hooks::run(engine, step, call, say, never).await {
            failed.extend(fatal(hook, error, say));
        }
    }
    failed
}

/// A failure that counts; one that does not is told.
pub(super) fn fatal(hook: &Hook, error: HookFailed, say: &Say) -> Option<HookFailed> {
    match hook.failure {
        crate::config::HookFailure::Fail => Some(error),
        crate::config::HookFailure::Continue => {
            say(&format!("{error}; going on"));
            None
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(error.source(), |cause| (*cause).source());
    sources.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Tries until the engine answers: one that restarts is away for a moment.
pub(super) async fn patiently<T>(mut attempt: impl AsyncFnMut() -> Result<T, DockerError>) -> Result<T, DockerError> {
    let begun = Instant::now();
    loop {
        match attempt().await {
            Err(error) if error.is_engine_away() && begun.elapsed() < ENGINE_BACK_WITHIN => {
                tracing::info!("{error}; waiting for the engine");
                tokio::time::sleep(ASK_AGAIN).await;
            }
            outcome => return outcome,
        }
    }
}

async fn back(engine: &Engine, step: &Step, action: Action, since: i64) -> Result<Back, DockerError> {
    loop {
        let Some(now) = engine.container(&step.id).await? else { return Ok(Back::Gone) };
        // Without a time, it was being started again and again.
        if !step.started_at.is_empty() && now.started_at != step.started_at {
            return Ok(Back::Yes);
        }
        match (action, now.status) {
            (Action::Pause, ContainerStatus::Paused) => {
                let Err(error) = engine.unpause(&step.id, &step.name).await else { return Ok(Back::Yes) };
                // A signal and the owner of the hold may undo it at the same time: one of them comes too late.
                match engine.container(&step.id).await? {
                    Some(now) if now.status == ContainerStatus::Paused => return Err(error),
                    Some(_) => {}
                    None => return Ok(Back::Gone),
                }
            }
            (Action::Stop { .. }, ContainerStatus::Down) => engine.start(&step.id, &step.name).await?,
            // A stop may be under way that nobody waits for any more; to start it now would do nothing.
            (Action::Stop { timeout, grace }, ContainerStatus::Running | ContainerStatus::Restarting)
                if may_still_stop(timeout.or(grace), since) =>
            {
                tokio::time::sleep(ASK_AGAIN).await;
                continue;
            }
            // An engine that was restarted has ended what was frozen, and started what its policy says: as it would
            // have done without us.
            (Action::Pause, ContainerStatus::Down) => {
                tracing::warn!(container = step.name, "It was paused and has ended since; it is left so");
            }
            // As it should be, or somebody else's doing.
            (Action::Pause, ContainerStatus::Running | ContainerStatus::Restarting)
            | (Action::Stop { .. }, ContainerStatus::Running | ContainerStatus::Restarting | ContainerStatus::Paused) =>
                {}
        }
        return Ok(Back::Yes);
    }
}

fn may_still_stop(grace: Option<Duration>, since: i64) -> bool {
    let grace = grace.unwrap_or(STOP_LONGEST).min(STOP_LONGEST);
    Timestamp::now().as_millisecond() - since < i64::try_from((grace + STOP_SLACK).as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// An engine that gives these answers, one after the other, and its address.
    fn engine(answers: &'static [(u16, &'static str)]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("tcp://{}", listener.local_addr().unwrap());
        thread::spawn(move || {
            for (status, body) in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = BufReader::new(stream.try_clone().unwrap()).lines();
                while request.next().is_some_and(|line| !line.unwrap().is_empty()) {}
                let len = body.len();
                let kind = "Content-Type: application/json";
                write!(
                    stream,
                    "HTTP/1.1 {status} x\r\n{kind}\r\nConnection: close\r\nContent-Length: {len}\r\n\r\n{body}"
                )
                .unwrap();
            }
        });
        address
    }

    const VERSION: (u16, &str) = (200, r#"{"ApiVersion":"1.45"}"#);
    const PAUSED: (u16, &str) = (200, r#"{"Id":"1","State":{"Running":true,"Paused":true}}"#);
    const RUNNING: (u16, &str) = (200, r#"{"Id":"1","State":{"Running":true,"Paused":false}}"#);
    const REFUSED: (u16, &str) = (500, r#"{"message":"container 1 is not paused"}"#);
    const GONE: (u16, &str) = (404, r#"{"message":"no such container"}"#);

    async fn unpaused(answers: &'static [(u16, &'static str)]) -> Result<Back, DockerError> {
        let engine = Engine::connect_to(&engine(answers)).await.unwrap();
        let (id, name) = ("1".to_owned(), "db".to_owned());
        let action = Some(Action::Pause);
        let step = Step { id, name, started_at: String::new(), action, pre: None, post: None };
        back(&engine, &step, Action::Pause, 0).await
    }

    #[tokio::test]
    async fn a_container_that_somebody_else_has_just_let_go_is_back() {
        assert!(matches!(unpaused(&[VERSION, PAUSED, REFUSED, RUNNING]).await, Ok(Back::Yes)));
        assert!(matches!(unpaused(&[VERSION, PAUSED, REFUSED, GONE]).await, Ok(Back::Gone)));
        assert!(unpaused(&[VERSION, PAUSED, REFUSED, PAUSED]).await.is_err());
    }
}
