//! Holding the containers of a volume, and letting them go.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use vsync_protocol::id::VolumeName;

use super::error::{HookFailed, QuiesceError};
use super::plan::{Action, Plan, Purpose, Step, plan};
use super::record::{Entry, Ledger, Record};
use super::undo::{self, NotReleased};
use super::wish::Wish;
use super::{Say, hooks, registry};
use crate::config::Quiesce;
use crate::docker::{ContainerFacts, ContainerStatus, ContainerUser, Engine, VolumeDescription, rescue};

/// How often one looks whether another hold is over, or whether somebody asked to stop.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How often the containers are looked at anew when one has changed before it was held.
const ATTEMPTS: usize = 5;

/// How long `Drop` may take.
const RESCUE_WITHIN: Duration = Duration::from_secs(120);

/// What is to stand still.
#[derive(Clone, Debug)]
pub enum Target {
    /// A Docker volume.
    Volume(VolumeDescription),
    /// A directory of this machine.
    Directory(VolumeName, PathBuf),
}

impl Target {
    fn name(&self) -> &VolumeName {
        match self {
            Self::Volume(volume) => &volume.name,
            Self::Directory(name, _) => name,
        }
    }
}

/// Can hold the containers of one volume.
#[derive(Clone)]
pub struct Holder {
    /// The engine that runs them.
    pub engine: Engine,
    /// Where it is written down.
    pub ledger: Ledger,
    /// What stands still when its containers do.
    pub target: Target,
    /// What it stands still for.
    pub purpose: Purpose,
    /// What the configuration says of the volume.
    pub wish: Wish,
    /// What the command line says, which beats all.
    pub over: Option<Quiesce>,
    /// Whom to tell.
    pub say: Say,
}

impl Holder {
    /// What would be done now.
    ///
    /// # Errors
    /// When a container could not be brought back, has a label that makes no sense, or the engine fails.
    pub async fn plan(&self) -> Result<Plan, QuiesceError> {
        let users = self.users().await?;
        plan(self.purpose, &self.wish, self.over, &users)
    }

    async fn users(&self) -> Result<Vec<(ContainerUser, ContainerFacts)>, QuiesceError> {
        let users = match &self.target {
            Target::Volume(volume) => self.engine.users_of(volume).await?,
            Target::Directory(_, path) => self.engine.users_of_directory(path).await?,
        };
        let mut pairs = Vec::new();
        for user in users {
            // One that is gone by now uses nothing.
            if let Some(facts) = self.engine.container(&user.id).await? {
                pairs.push((user, facts));
            }
        }
        Ok(pairs)
    }

    /// Writes down what will be done, and does it. Whatever goes wrong, the containers are as they were.
    ///
    /// # Errors
    /// As [`Self::plan`]; when a command in a container fails, or `cancelled` says so.
    pub async fn hold(&self, cancelled: &(dyn Fn() -> bool + Sync)) -> Result<Hold, QuiesceError> {
        for _ in 1..ATTEMPTS {
            match self.try_to_hold(cancelled).await {
                // One that crashes again and again has changed between our look and our deed.
                Err(QuiesceError::Act { container, to_type, .. })
                    if to_type.is_empty() && !cancelled() && self.has_ended(&container).await => {}
                outcome => return outcome,
            }
        }
        self.try_to_hold(cancelled).await
    }

    async fn has_ended(&self, container: &str) -> bool {
        let now = self.engine.container(container).await.ok().flatten();
        now.is_none_or(|now| matches!(now.status, ContainerStatus::Restarting | ContainerStatus::Down))
    }

    async fn try_to_hold(&self, cancelled: &(dyn Fn() -> bool + Sync)) -> Result<Hold, QuiesceError> {
        let (plan, entry) = self.reserve(cancelled).await?;
        let mut hold = Hold::new(self.clone(), plan, entry);
        match hold.take(cancelled).await {
            Ok(()) => Ok(hold),
            Err(error) => {
                let released = hold.release("failed").await;
                Err(released.blame(error))
            }
        }
    }

    /// Plans, and writes the plan down, at a moment when nobody else holds one of these containers: what another
    /// process paused would look as if somebody wanted it so.
    async fn reserve(&self, cancelled: &(dyn Fn() -> bool + Sync)) -> Result<(Plan, Option<Entry>), QuiesceError> {
        let mut waiting = false;
        loop {
            let turn = self.ledger.turn()?;
            undo::undo_abandoned(&self.ledger, &self.engine, &self.say).await?;
            let users = self.users().await?;
            let live = self.ledger.live();
            let busy =
                |record: &&Record| record.steps.iter().any(|step| users.iter().any(|(user, _)| user.id == step.id));
            if let Some(other) = live.iter().find(busy) {
                if !waiting {
                    let (volume, process) = (&other.volume, other.process);
                    (self.say)(&format!("waiting until process {process} is done with the containers of {volume}"));
                }
                waiting = true;
                drop(turn);
                if cancelled() {
                    return Err(QuiesceError::Interrupted);
                }
                tokio::time::sleep(LOOK_AGAIN).await;
                continue;
            }
            let plan = plan(self.purpose, &self.wish, self.over, &users)?;
            if plan.is_empty() {
                return Ok((plan, None));
            }
            let engine = self.engine.id().await?;
            let volume = self.target.name().to_string();
            let entry = self.ledger.write(Record::new(engine, self.engine.host(), volume, plan.steps.clone()))?;
            return Ok((plan, Some(entry)));
        }
    }
}

/// Containers that are held, until this is released or dropped.
#[must_use = "dropping this lets the containers go on"]
pub struct Hold {
    holder: Holder,
    plan: Plan,
    entry: Option<Entry>,
    key: u64,
    begun: Option<Instant>,
    /// Containers that were told to stand still, in that order.
    held: Vec<(String, Action)>,
}

/// What a hold came to.
#[derive(Debug, Default)]
pub struct Released {
    /// How long the containers did not run; for commands alone, from the first to the last.
    pub held_for: Option<Duration>,
    /// What was held, and how: "pause" or "stop".
    pub containers: Vec<(String, &'static str)>,
    /// Containers that are not back.
    pub not_released: Vec<NotReleased>,
    /// Commands afterwards that failed.
    pub failed_hooks: Vec<HookFailed>,
}

impl Released {
    /// Adds what another hold of the same volume came to.
    pub fn add(&mut self, other: Self) {
        if let Some(more) = other.held_for {
            self.held_for = Some(self.held_for.unwrap_or_default() + more);
        }
        other.containers.into_iter().for_each(|container| {
            if !self.containers.contains(&container) {
                self.containers.push(container);
            }
        });
        self.not_released.extend(other.not_released);
        self.failed_hooks.extend(other.failed_hooks);
    }

    /// `error`, with what became of the containers because of it.
    fn blame(self, error: QuiesceError) -> QuiesceError {
        match error {
            QuiesceError::Act { action, container, source, .. } => {
                let to_type = self.not_released.into_iter().map(|stuck| stuck.to_string()).collect();
                QuiesceError::Act { action, container, to_type, source }
            }
            error => {
                self.not_released.iter().for_each(|stuck| tracing::error!("{stuck}"));
                error
            }
        }
    }
}

impl Hold {
    fn new(holder: Holder, plan: Plan, entry: Option<Entry>) -> Self {
        let key = entry.as_ref().map_or(0, |entry| registry::enter(holder.purpose, &holder.engine, &entry.record));
        Self { holder, plan, entry, key, begun: None, held: Vec::new() }
    }

    /// What is done.
    #[must_use]
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    async fn take(&mut self, cancelled: &(dyn Fn() -> bool + Sync)) -> Result<(), QuiesceError> {
        let Holder { engine, say, target, .. } = self.holder.clone();
        for step in &self.plan.steps {
            let Some(hook) = &step.pre else { continue };
            let environment = hooks::environment(target.name().as_str(), None);
            let call = hooks::Call { name: "exec-pre", hook, environment };
            let interrupt = until(cancelled);
            let outcome = hooks::run(&engine, step, call, &say, interrupt).await;
            if cancelled() {
                return Err(QuiesceError::Interrupted);
            }
            if let Err(error) = outcome
                && let Some(fatal) = undo::fatal(hook, error, &say)
            {
                return Err(fatal.into());
            }
        }
        self.begun = (!self.plan.is_empty()).then(Instant::now);
        for index in 0..self.plan.steps.len() {
            if cancelled() {
                return Err(QuiesceError::Interrupted);
            }
            let step = self.plan.steps[index].clone();
            let Some(action) = step.action else { continue };
            self.held.push((step.name.clone(), action));
            // Not cancelled on its way: the engine would go on with it, and it would be started too early.
            let done = match action {
                Action::Pause => engine.pause(&step.id, &step.name).await,
                Action::Stop { timeout, grace } => engine.stop(&step.id, &step.name, timeout, grace).await,
            };
            done.map_err(|source| QuiesceError::Act {
                action: action.word(),
                container: step.name.clone(),
                to_type: Vec::new(),
                source: Box::new(source),
            })?;
            self.recognise(index).await?;
        }
        if cancelled() { Err(QuiesceError::Interrupted) } else { Ok(()) }
    }

    /// A container that was started anew between our look and our deed is still ours to bring back.
    async fn recognise(&mut self, index: usize) -> Result<(), QuiesceError> {
        let step = &mut self.plan.steps[index];
        let now = self.holder.engine.container(&step.id).await?;
        if step.started_at.is_empty() || now.is_none_or(|now| now.started_at == step.started_at) {
            return Ok(());
        }
        step.started_at.clear();
        match &mut self.entry {
            Some(entry) => entry.rewrite(self.plan.steps.clone()),
            None => Ok(()),
        }
    }

    /// Makes sure that nothing ran since the hold began: an engine that restarts lets everything go on, and anybody
    /// may start a container.
    ///
    /// # Errors
    /// When something did, or the engine does not say.
    pub async fn confirm(&self) -> Result<(), QuiesceError> {
        let moved = |container: &str, what| QuiesceError::Moved {
            volume: self.holder.target.name().to_string(),
            container: container.to_owned(),
            what,
        };
        // Its containers could not be let go without it, anyway.
        undo::patiently(async || self.holder.engine.id().await).await?;
        for step in &self.plan.steps {
            let Some(action) = step.action else { continue };
            let now = self.holder.engine.container(&step.id).await?;
            let expected = match action {
                Action::Pause => ContainerStatus::Paused,
                Action::Stop { .. } => ContainerStatus::Down,
            };
            let still = match now {
                // What is gone writes no more, but what was frozen may have been woken to be ended.
                None => action != Action::Pause,
                Some(now) => {
                    let same = step.started_at.is_empty() || now.started_at == step.started_at;
                    same && now.status == expected
                }
            };
            if !still {
                return Err(moved(&step.name, "went on before its time"));
            }
        }
        if self.begun.is_none() && self.plan.mode == Quiesce::None {
            return Ok(());
        }
        match self.holder.plan().await?.steps.iter().find(|step| step.action.is_some()) {
            Some(step) => Err(moved(&step.name, "was started")),
            None => Ok(()),
        }
    }

    /// Of what was to be done, what was: nobody waits for a container to stop that was never told to.
    fn done(&self, record: &Record) -> Record {
        let mut record = record.clone();
        for step in &mut record.steps {
            let was_told = self.held.iter().any(|(name, _)| *name == step.name);
            step.action = step.action.filter(|_| was_told);
        }
        record
    }

    /// Lets the containers go on, the last one first, and runs the commands that come after. `outcome` is what those
    /// are told: "read" or "failed".
    pub async fn release(mut self, outcome: &'static str) -> Released {
        let Some(entry) = self.entry.take() else { return Released::default() };
        let Holder { engine, say, .. } = &self.holder;
        let not_released = undo::bring_back(engine, &self.done(&entry.record)).await;
        registry::leave(self.key);
        let released = self.begun.map(|begun| begun.elapsed());
        let left: Vec<Step> = undo::still_held(&entry.record.steps, &not_released);
        let failed_hooks = undo::run_posts(engine, &entry.record, &left, outcome, say).await;
        let can_be_tried: Vec<NotReleased> =
            not_released.iter().filter(|stuck| stuck.to_type.is_some()).cloned().collect();
        match undo::still_held(&entry.record.steps, &can_be_tried) {
            left if left.is_empty() => entry.remove(),
            left => entry.keep(left),
        }
        let containers = self.held.iter().map(|(name, action)| (name.clone(), action.word())).collect();
        Released { held_for: released, containers, not_released, failed_hooks }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Some(entry) = self.entry.take() else { return };
        let record = self.done(&entry.record);
        let what = format!("let the containers of volume {} go on", record.volume);
        let say = self.holder.say.clone();
        rescue::run_now(&self.holder.engine, &what, RESCUE_WITHIN, async move |engine| {
            let not_released = undo::bring_back(&engine, &record).await;
            not_released.iter().for_each(|stuck| tracing::error!("{stuck}"));
            let left = undo::still_held(&record.steps, &not_released);
            for failed in undo::run_posts(&engine, &record, &left, "failed", &say).await {
                tracing::error!("{failed}");
            }
            if left.is_empty() { entry.remove() } else { entry.keep(left) }
        });
        registry::leave(self.key);
    }
}

/// Waits until `cancelled` says so.
async fn until(cancelled: &(dyn Fn() -> bool + Sync)) {
    while !cancelled() {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
