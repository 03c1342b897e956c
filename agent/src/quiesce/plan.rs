//! What will be done to which containers: a function of wishes and facts, without an engine.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::QuiesceError;
use super::wish::Wish;
use crate::config::{Command, HookFailure, Quiesce};
use crate::docker::{ContainerFacts, ContainerRole, ContainerStatus, ContainerUser};

/// Why a volume is to stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It is read: containers that only read it, too, are left alone.
    Backup,
    /// It is overwritten: nobody may have it open.
    Restore,
}

/// What will be done, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// One step for each container.
    pub steps: Vec<Step>,
    /// What the snapshot may claim: the weakest that is done to a container that can write.
    pub mode: Quiesce,
}

/// What will be done to one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was started: if that changes, somebody else has taken it over. Empty: it does not matter.
    pub started_at: String,
    /// How it is held.
    pub action: Option<Action>,
    /// A command in it before.
    pub pre: Option<Hook>,
    /// A command in it afterwards, whatever happened.
    pub post: Option<Hook>,
}

/// How a container is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Its processes are frozen.
    Pause,
    /// It is stopped.
    Stop {
        /// How long it may take, if somebody said so.
        timeout: Option<Duration>,
        /// How long its own setting lets it take; `None` is for ever.
        grace: Option<Duration>,
    },
}

impl Action {
    /// "pause" or "stop".
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Stop { .. } => "stop",
        }
    }

    /// The docker command that undoes it.
    #[must_use]
    pub const fn undo(self) -> &'static str {
        match self {
            Self::Pause => "unpause",
            Self::Stop { .. } => "start",
        }
    }
}

/// A command for the inside of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// What to run.
    pub command: Command,
    /// Who runs it; the container's own user if not given.
    pub user: Option<String>,
    /// How long it may take.
    pub timeout: Duration,
    /// What its failure means.
    pub failure: HookFailure,
}

/// A command that nobody gave a time is not waited for longer.
const HOOK_TIMEOUT: Duration = Duration::from_secs(10 * 60);

impl Plan {
    /// Whether nothing is to be done.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

/// Plans for `users` of a volume of which `volume` is said. `over` is said for this once, and beats all.
///
/// # Errors
/// When a container could not be brought back as it is, or has a label that makes no sense.
pub fn plan(
    purpose: Purpose,
    volume: &Wish,
    over: Option<Quiesce>,
    users: &[(ContainerUser, ContainerFacts)],
) -> Result<Plan, QuiesceError> {
    let asked = over.unwrap_or_else(|| volume.mode());
    let mut steps = Vec::new();
    let mut modes = Vec::new();
    for (user, facts) in users {
        if user.role == ContainerRole::Ourselves || facts.status == ContainerStatus::Down {
            continue;
        }
        match purpose {
            Purpose::Restore => steps.push(to_restore(user, facts)?),
            Purpose::Backup => {
                let (mode, step) = to_back_up(volume, over, user, facts)?;
                if !user.read_only {
                    modes.push(mode);
                }
                steps.extend(step);
            }
        }
    }
    let mode = modes.into_iter().min_by_key(|mode| strength(*mode)).unwrap_or(asked);
    Ok(Plan { steps, mode })
}

fn to_back_up(
    volume: &Wish,
    over: Option<Quiesce>,
    user: &ContainerUser,
    facts: &ContainerFacts,
) -> Result<(Quiesce, Option<Step>), QuiesceError> {
    let refused = |reason| Err(QuiesceError::Refused { container: user.name.clone(), reason });
    let own = Wish::of_labels(&facts.labels)
        .map_err(|mistake| QuiesceError::Label { container: user.name.clone(), mistake })?;
    let bystander = user.read_only && !own.is_about_it();
    let wish = own.over(volume);
    let mode = over.unwrap_or_else(|| wish.mode());
    if mode == Quiesce::None || bystander {
        return Ok((mode, None));
    }
    if user.role == ContainerRole::Helper {
        return refused(HELPER);
    }
    // Frozen by somebody else, and to stay so: nothing can run in it, and nothing needs to.
    if facts.status == ContainerStatus::Paused {
        return Ok((Quiesce::Pause, None));
    }
    let action = match (mode, facts.status) {
        (Quiesce::None | Quiesce::Hooks, _) => None,
        (Quiesce::Pause, ContainerStatus::Running) => Some(Action::Pause),
        // What the engine starts again and again cannot be paused, only be kept from starting.
        (Quiesce::Pause | Quiesce::Stop, _) => Some(to_stop(&wish, user, facts)?),
    };
    let hook = |command: &Option<Command>| {
        command.clone().map(|command| Hook {
            command,
            user: wish.user.clone(),
            timeout: wish.timeout.unwrap_or(HOOK_TIMEOUT),
            failure: wish.failure.unwrap_or_default(),
        })
    };
    let (pre, post) = (hook(&wish.pre), hook(&wish.post));
    let step = Step { action, pre, post, ..Step::of(user, facts) };
    let idle = step.action.is_none() && step.pre.is_none() && step.post.is_none();
    Ok((mode, (!idle).then_some(step)))
}

fn to_restore(user: &ContainerUser, facts: &ContainerFacts) -> Result<Step, QuiesceError> {
    let refused = |reason| Err(QuiesceError::Refused { container: user.name.clone(), reason });
    if user.role == ContainerRole::Helper {
        return refused(HELPER);
    }
    if facts.status == ContainerStatus::Paused {
        return refused("somebody paused it; unpause it with `docker unpause`, then try again");
    }
    // Only the time that it may take to stop is of interest.
    let wish = Wish::of_labels(&facts.labels).unwrap_or_default();
    Ok(Step { action: Some(to_stop(&wish, user, facts)?), ..Step::of(user, facts) })
}

fn to_stop(wish: &Wish, user: &ContainerUser, facts: &ContainerFacts) -> Result<Action, QuiesceError> {
    let refused = |reason| Err(QuiesceError::Refused { container: user.name.clone(), reason });
    if facts.auto_remove {
        return refused("it was run with --rm and would be gone; stop it yourself, and run it again afterwards");
    }
    if facts.swarm_task {
        return refused("its Swarm service would replace it at once; scale the service to 0 first");
    }
    Ok(Action::Stop { timeout: wish.stop_timeout, grace: facts.grace })
}

impl Step {
    fn of(user: &ContainerUser, facts: &ContainerFacts) -> Self {
        // One that is started again and again has no such time.
        let restarts = facts.status == ContainerStatus::Restarting;
        Self {
            id: user.id.clone(),
            name: user.name.clone(),
            started_at: if restarts { String::new() } else { facts.started_at.clone() },
            action: None,
            pre: None,
            post: None,
        }
    }
}

const HELPER: &str = "it is a vsync helper at work on the volume; wait for it to end, then try again";

const fn strength(mode: Quiesce) -> u8 {
    match mode {
        Quiesce::None => 0,
        Quiesce::Hooks => 1,
        Quiesce::Pause => 2,
        Quiesce::Stop => 3,
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
