//! Between commands and `quiesce`: which containers, in what words, with which exit code.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::runtime::Runtime;
use vsync_protocol::id::VolumeName;

use super::GlobalArgs;
use super::context::{Context, state_dir};
use super::output;
use super::report::{Exit, Failure};
use super::volumes::{self, Place, block_on};
use crate::backup::Stillness;
use crate::config::Quiesce;
use crate::docker::{Engine, VolumeDescription};
use crate::progress::Progress;
use crate::quiesce::{
    Hold, Holder, Ledger, Plan, Purpose, QuiesceError, Released, Say, Step, Target, Undone, Wish, undo_abandoned,
};

/// Tells a person on standard error.
pub(super) fn say(global: &GlobalArgs) -> Say {
    let quiet = global.quiet;
    Arc::new(move |line: &str| {
        if !quiet {
            // If it cannot be printed, there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    })
}

/// Connects to the engine, and undoes what a killed process left behind there.
pub(super) async fn engine(global: &GlobalArgs) -> Result<Engine, Failure> {
    let engine = Engine::connect().await?;
    tidy(global, &engine).await;
    Ok(engine)
}

/// Undoes what a killed process left behind. Failures are told, and hinder nobody: `vsync unhold` is for them.
pub(super) async fn tidy(global: &GlobalArgs, engine: &Engine) {
    let Ok(state) = state_dir(global) else { return };
    match undo_abandoned(&Ledger::below(&state), engine, &say(global)).await {
        Ok(undone) => {
            undone.iter().for_each(tell_undone);
        }
        Err(error) => tracing::error!("could not undo what a killed process left behind: {error}"),
    }
}

/// The same, before anything that may take long or fail. Nobody is asked if nothing was left behind.
pub(super) fn tidy_first(global: &GlobalArgs) {
    if state_dir(global).map_or(true, |state| Ledger::below(&state).is_empty()) {
        return;
    }
    if let Err(failure) = block_on(engine(global)).flatten() {
        tracing::error!("could not undo what a killed process left behind: {failure}");
    }
}

/// Tells of what is not undone, also when nothing else is told.
pub(super) fn tell_undone(undone: &Undone) {
    undone.not_released.iter().for_each(output::say);
    undone.failed_hooks.iter().for_each(output::say);
}

/// What can hold the containers of a volume that is backed up; `None` if nobody wants any held.
pub(super) fn holder(
    global: &GlobalArgs,
    context: &Context,
    name: &VolumeName,
    place: &Place,
    over: Option<Quiesce>,
) -> Result<Option<Holder>, Failure> {
    let wish = context.config.volume(name).map(Wish::of_volume).unwrap_or_default();
    let asked = over.unwrap_or_else(|| wish.mode());
    let target = match place {
        // Nobody's labels are looked for unless somebody says that containers use the directory.
        Place::Directory(_) if asked == Quiesce::None => return Ok(None),
        Place::Directory(path) => Target::Directory(name.clone(), path.clone()),
        Place::Volume(_, volume) | Place::Helper(volume) => Target::Volume(volume.clone()),
    };
    if over == Some(Quiesce::None) {
        return Ok(None);
    }
    let engine = match block_on(Engine::connect())? {
        Ok(engine) => engine,
        // A volume mounted into our own container can be read without one.
        Err(error) if asked == Quiesce::None => {
            tracing::warn!("the labels of containers that use {name} are not known, and nothing is held: {error}");
            return Ok(None);
        }
        Err(error) => {
            return Err(Failure::from(error).hint(format!(
                "{name} is to be held with quiesce = \"{}\", which needs the engine; or give --quiesce none",
                asked.word()
            )));
        }
    };
    let ledger = Ledger::below(&context.state_dir);
    Ok(Some(Holder { engine, ledger, target, purpose: Purpose::Backup, wish, over, say: say(global) }))
}

/// Holds what uses a volume that is overwritten.
pub(super) async fn hold_for_restore(
    global: &GlobalArgs,
    engine: &Engine,
    volume: &VolumeDescription,
    progress: &Progress,
) -> Result<Hold, Failure> {
    let holder = Holder {
        engine: engine.clone(),
        ledger: Ledger::below(&state_dir(global)?),
        target: Target::Volume(volume.clone()),
        purpose: Purpose::Restore,
        wish: Wish::default(),
        over: None,
        say: say(global),
    };
    Ok(holder.hold(&|| progress.is_cancelled()).await?)
}

/// Holds a volume's containers for a backup.
pub(super) struct Still {
    holder: Holder,
    progress: Arc<Progress>,
    hold: Option<Hold>,
    /// Of all times that it was held.
    came_to: Released,
    /// Drives the engine's connections.
    runtime: Runtime,
}

impl Still {
    pub(super) fn new(mut holder: Holder, progress: Arc<Progress>) -> Result<Self, Failure> {
        let runtime = volumes::runtime()?;
        // Connections belong to the runtime that made them.
        holder.engine = runtime.block_on(Engine::connect_to(holder.engine.host()))?;
        Ok(Self { holder, progress, hold: None, came_to: Released::default(), runtime })
    }

    fn let_go(&mut self, outcome: &'static str) -> Result<(), QuiesceError> {
        let Some(hold) = self.hold.take() else { return Ok(()) };
        let (confirmed, released) = self.runtime.block_on(async {
            let confirmed = hold.confirm().await;
            let outcome = if confirmed.is_ok() { outcome } else { "failed" };
            (confirmed, hold.release(outcome).await)
        });
        self.came_to.add(released);
        // They were let go already when somebody asked to stop.
        if self.progress.is_cancelled() { Err(QuiesceError::Interrupted) } else { confirmed }
    }

    /// Lets everything go that is still held, and tells what it came to.
    pub(super) fn finish(mut self) -> Released {
        // What it could complain about is only of interest for a snapshot.
        let _ = self.let_go("failed");
        self.came_to
    }
}

impl Stillness for Still {
    fn is_needed(&mut self) -> Result<bool, QuiesceError> {
        Ok(!self.runtime.block_on(self.holder.plan())?.is_empty())
    }

    fn begin(&mut self) -> Result<Quiesce, QuiesceError> {
        let cancelled = || self.progress.is_cancelled();
        let hold = self.runtime.block_on(self.holder.hold(&cancelled))?;
        let mode = hold.plan().mode;
        self.hold = Some(hold);
        Ok(mode)
    }

    fn end(&mut self) -> Result<(), QuiesceError> {
        self.let_go("read")
    }

    fn lasted(&self) -> Option<Duration> {
        self.came_to.held_for
    }
}

/// Tells what a hold came to, and which exit code that makes of `exit`.
pub(super) fn judge(global: &GlobalArgs, released: &Released, exit: Result<Exit, Failure>) -> Result<Exit, Failure> {
    if let Some(held_for) = released.held_for
        && !global.quiet
        && !global.json
    {
        let names: Vec<String> = released.containers.iter().map(|(name, how)| format!("{name} ({how})")).collect();
        let who = if names.is_empty() { "between its commands".to_owned() } else { names.join(", ") };
        output::say(format_args!("held for {}: {who}", output::duration(held_for)));
    }
    released.failed_hooks.iter().for_each(output::say);
    released.not_released.iter().for_each(output::say);
    let stuck = !released.not_released.is_empty();
    // Nothing else matters as much as an application that is down.
    let exit = exit.map_err(|failure| if stuck { Failure { code: Exit::Container, ..failure } } else { failure })?;
    Ok(if !released.not_released.is_empty() {
        Exit::Container
    } else if !released.failed_hooks.is_empty() {
        Exit::Hook
    } else {
        exit
    })
}

/// What a hold left wrong, in words.
pub(super) fn remarks(released: &Released) -> Vec<String> {
    let hooks = released.failed_hooks.iter().map(ToString::to_string);
    released.not_released.iter().map(ToString::to_string).chain(hooks).collect()
}

/// What a hold came to, for programs.
pub(super) fn held_json(released: &Released) -> serde_json::Value {
    json!(released.containers.iter().map(|(name, how)| json!({"container": name, "action": how})).collect::<Vec<_>>())
}

/// A step, for programs.
pub(super) fn step_json(step: &Step) -> serde_json::Value {
    json!({
        "container": step.name,
        "action": step.action.map(|action| action.word()),
        "exec_pre": step.pre.is_some(),
        "exec_post": step.post.is_some(),
    })
}

/// What would be done, in words, a line for each container.
pub(super) fn describe(plan: &Plan) -> Vec<String> {
    plan.steps.iter().map(describe_step).collect()
}

fn describe_step(step: &Step) -> String {
    let mut acts = Vec::new();
    if step.pre.is_some() {
        acts.push("run exec-pre in");
    }
    acts.extend(step.action.map(|action| action.word()));
    if step.post.is_some() {
        acts.push("run exec-post in");
    }
    format!("would {} container {}", acts.join(", "), step.name)
}

/// Findings about the labels of the containers that use a volume.
pub(super) async fn label_mistakes(engine: &Engine, volume: &VolumeDescription) -> Result<Vec<String>, Failure> {
    let mut mistakes = Vec::new();
    for user in engine.users_of(volume).await? {
        let Some(facts) = engine.container(&user.id).await? else { continue };
        if let Err(mistake) = Wish::of_labels(&facts.labels) {
            mistakes.push(format!("container {} has the label {mistake}", user.name));
        }
        let unknown = crate::quiesce::unknown_labels(&facts.labels);
        mistakes.extend(unknown.map(|(label, near)| {
            format!("container {} has the label {label}, which means nothing to vsync{near}", user.name)
        }));
    }
    Ok(mistakes)
}

/// Where the volume's files are, for a dry run.
pub(super) fn place_words(place: &Place) -> String {
    let shown = |path: &Path| path.display().to_string();
    match place {
        Place::Directory(path) | Place::Volume(path, _) => shown(path),
        Place::Helper(_) => "a helper container".to_owned(),
    }
}
