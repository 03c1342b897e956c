//! `vsync unhold`.

use serde_json::json;

use super::GlobalArgs;
use super::context::state_dir;
use super::output;
use super::quiesce;
use super::report::{Exit, Failure};
use super::volumes::block_on;
use crate::docker::Engine;
use crate::quiesce::{Ledger, Undone, undo_abandoned};

/// Let containers go on that a killed vsync left paused or stopped
///
/// Before vsync pauses or stops a container it writes that down, so that whatever becomes of
/// vsync, the next command that talks to Docker undoes it. This one does nothing else. What
/// was paused or stopped by somebody else stays so; what is held by a vsync that still runs,
/// too. Exit code 22: a container is not back; it is printed what to type.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vsync unhold
  vsync unhold --json
  DOCKER_HOST=tcp://10.0.0.7:2375 vsync unhold")]
pub(super) struct UnholdArgs {}

impl UnholdArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let ledger = Ledger::below(&state_dir(global)?);
        let say = quiesce::say(global);
        let undone = block_on(async {
            let engine = Engine::connect().await?;
            Ok::<_, Failure>(undo_abandoned(&ledger, &engine, &say).await?)
        })??;
        undone.iter().try_for_each(|undone| show(global, undone))?;
        if undone.is_empty() && !global.quiet && !global.json {
            output::line("nothing is held")?;
        }
        Ok(if undone.iter().any(|undone| !undone.not_released.is_empty()) {
            Exit::Container
        } else if undone.iter().any(|undone| !undone.failed_hooks.is_empty()) {
            Exit::Hook
        } else {
            Exit::Exact
        })
    }
}

fn show(global: &GlobalArgs, undone: &Undone) -> Result<(), Failure> {
    quiesce::tell_undone(undone);
    let is_back = |name: &str| undone.not_released.iter().all(|stuck| stuck.container != name);
    if global.json {
        let containers: Vec<_> = undone
            .record
            .steps
            .iter()
            .map(|step| {
                let action = step.action.map(crate::quiesce::Action::word);
                json!({"container": step.name, "action": action, "undone": is_back(&step.name)})
            })
            .collect();
        let failed: Vec<_> = undone.failed_hooks.iter().map(ToString::to_string).collect();
        return output::json(&json!({
            "message_type": "unheld",
            "volume": undone.record.volume,
            "process": undone.record.process,
            "containers": containers,
            "failed_hooks": failed,
        }));
    }
    if global.quiet {
        return Ok(());
    }
    let names = undone.record.steps.iter().map(|step| step.name.as_str()).filter(|name| is_back(name));
    names.into_iter().try_for_each(|name| output::line(format_args!("{name} is as it was")))
}
