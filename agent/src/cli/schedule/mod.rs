//! `vsync schedule`: backups at the times that vsync.toml says.

mod container;
mod run;
mod status;
mod task;

use std::path::PathBuf;

use clap::Subcommand;
use jiff::Timestamp;

use super::GlobalArgs;
use super::context::Context;
use super::report::{Exit, Failure};
use crate::config::{Machine, Schedule};
use crate::schedule::{LockError, StateError};

/// Back up at the times that vsync.toml says
#[derive(Debug, Subcommand)]
pub(super) enum ScheduleCommand {
    Run(run::RunArgs),
    Start(container::StartArgs),
    Stop(container::StopArgs),
    Status(status::StatusArgs),
}

impl ScheduleCommand {
    pub(super) fn run(self, global: &GlobalArgs) -> Result<Exit, Failure> {
        match self {
            Self::Run(args) => args.run(global),
            Self::Start(args) => args.run(global),
            Self::Stop(args) => args.run(global),
            Self::Status(args) => args.run(global),
        }
    }
}

/// Where the schedule of this machine keeps what it knows.
fn state_path(context: &Context) -> PathBuf {
    schedule_dir(context).join(format!("{}.json", context.bundle.machine))
}

/// The lock of the one process that runs the schedule of this machine.
fn runner_path(context: &Context) -> PathBuf {
    schedule_dir(context).join(format!("{}.lock", context.bundle.machine))
}

fn schedule_dir(context: &Context) -> PathBuf {
    context.realm_dir().join("schedule")
}

fn own_machine(context: &Context) -> Result<&Machine, Failure> {
    Ok(context.config.machine(&context.bundle.machine)?)
}

/// An entry in words: `montagu_outpack_volume to annex2`.
fn name_of(entry: &Schedule) -> String {
    format!("{} to {}", entry.volume, entry.server)
}

/// A moment in a log.
fn moment(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        let hint = match &error {
            StateError::Damaged { path, .. } => {
                Some(format!("remove {}: the schedule then begins anew, and catches nothing up", path.display()))
            }
            StateError::Read { .. } | StateError::Write(_) => None,
        };
        Self::of(&error, Exit::Failed).hint(hint)
    }
}

impl From<LockError> for Failure {
    fn from(error: LockError) -> Self {
        let hint = match &error {
            LockError::Held { holder, .. } => Some(format!("wait for {holder} to end")),
            LockError::Io { .. } => Some("give another --state-dir, or make room there".to_owned()),
        };
        Self::of(&error, Exit::Failed).hint(hint)
    }
}
