//! Commands of the configuration that are run on this machine around a backup.

use std::time::Duration;

use serde_json::Value;
use vsync_protocol::id::{MachineName, VolumeName};

use super::output;
use super::report::{Exit, Failure};
use crate::config::{Command, HookFailure, RunHooks, Volume};
use crate::progress::Progress;
use crate::quiesce::host::{self, HostHook};
use crate::quiesce::{HookFailed, Say};

/// What commands are run around.
pub(super) struct Around<'a> {
    hooks: RunHooks,
    of: String,
    environment: Vec<(&'static str, String)>,
    timeout: Duration,
    failure: HookFailure,
    progress: &'a Progress,
    say: Say,
}

/// What a backup came to: a snapshot.
pub(super) struct Done {
    pub(super) exit: Exit,
    /// The summary of the snapshot, unless there are several.
    pub(super) summary: Option<Value>,
    /// What went wrong around it.
    pub(super) remarks: Vec<String>,
}

impl<'a> Around<'a> {
    /// Around a whole run of the command on `machine`.
    pub(super) fn machine(machine: &MachineName, hooks: &RunHooks, progress: &'a Progress, say: Say) -> Self {
        Self {
            hooks: hooks.clone(),
            of: format!("machine {machine}"),
            environment: vec![("VSYNC_MACHINE", machine.to_string())],
            timeout: host::TIMEOUT,
            failure: HookFailure::Fail,
            progress,
            say,
        }
    }

    /// Around the backup of one volume.
    pub(super) fn volume(
        machine: &MachineName,
        name: &VolumeName,
        volume: Option<&Volume>,
        progress: &'a Progress,
        say: Say,
    ) -> Self {
        let environment = vec![("VSYNC_MACHINE", machine.to_string()), ("VSYNC_VOLUME", name.to_string())];
        Self {
            hooks: volume.map(|volume| volume.run.clone()).unwrap_or_default(),
            of: format!("volume {name}"),
            environment,
            timeout: volume.and_then(|volume| volume.hook_timeout).unwrap_or(host::TIMEOUT),
            failure: volume.map(|volume| volume.hook_failure).unwrap_or_default(),
            progress,
            say,
        }
    }

    /// Runs the commands that there are, and `work` between them, unless the first one fails.
    pub(super) fn run(&self, work: impl FnOnce() -> Result<Done, Failure>) -> Result<Done, Failure> {
        let before = self.command("run-before", self.hooks.before.as_ref(), Vec::new(), &|| {
            // Nothing is lost by not beginning.
            self.progress.is_cancelled()
        });
        let mut done = match before {
            _ if self.progress.is_cancelled() => {
                Err(Failure::new(Exit::Interrupted, "interrupted; nothing was backed up"))
            }
            Err(error) => Err(error.into()),
            Ok(()) => work(),
        };
        let told = told(&done);
        let (name, command) = match done {
            Ok(_) => ("run-after", &self.hooks.after),
            Err(_) => ("run-failed", &self.hooks.failed),
        };
        for (name, command) in [(name, command), ("run-finally", &self.hooks.finally)] {
            // These tidy up: an interrupted backup needs them, too.
            if let Err(error) = self.command(name, command.as_ref(), told.clone(), &|| false) {
                output::say(&error);
                if let Ok(done) = &mut done {
                    done.exit = done.exit.graver(Exit::Hook);
                    done.remarks.push(error.to_string());
                }
            }
        }
        done
    }

    fn command(
        &self,
        hook: &'static str,
        command: Option<&Command>,
        more: Vec<(&'static str, String)>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(), HookFailed> {
        let Some(command) = command else { return Ok(()) };
        let environment = self.environment.iter().cloned().chain(more).collect();
        let hook = HostHook { hook, of: self.of.clone(), command, environment, timeout: self.timeout };
        match (hook.run(cancelled), self.failure) {
            (Err(error), HookFailure::Continue) if !cancelled() => {
                (self.say)(&format!("{error}; going on"));
                Ok(())
            }
            (outcome, _) => outcome,
        }
    }
}

/// What the commands afterwards are told.
fn told(done: &Result<Done, Failure>) -> Vec<(&'static str, String)> {
    let (outcome, code) = match done {
        Ok(Done { exit: Exit::Exact, .. }) => ("success", Exit::Exact),
        Ok(Done { exit: Exit::Defects, .. }) => ("defects", Exit::Defects),
        // A snapshot was made, but not all around it went well.
        Ok(Done { exit, .. }) => ("warning", *exit),
        Err(failure) => ("failed", failure.code),
    };
    let mut told = vec![("VSYNC_OUTCOME", outcome.to_owned()), ("VSYNC_EXIT_CODE", (code as u8).to_string())];
    match done {
        Ok(done) => {
            let id = done.summary.as_ref().and_then(|summary| summary["snapshot_id"].as_str());
            told.extend(id.map(|id| ("VSYNC_SNAPSHOT", id.to_owned())));
        }
        Err(failure) => told.push(("VSYNC_ERROR", failure.heading.clone())),
    }
    told
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::Arc;

    use super::*;

    fn hooks(log: &Path, failing: &str) -> RunHooks {
        let line = |hook: &str| {
            let words = "$VSYNC_HOOK $VSYNC_VOLUME $VSYNC_OUTCOME $VSYNC_EXIT_CODE $VSYNC_SNAPSHOT";
            let end = if hook == failing { "; exit 1" } else { "" };
            Some(Command::Line(format!("echo {words} >>{}{end}", log.display())))
        };
        RunHooks {
            before: line("run-before"),
            after: line("run-after"),
            failed: line("run-failed"),
            finally: line("run-finally"),
        }
    }

    /// The exit code, and what was run.
    fn run(failing: &str, failure: HookFailure, outcome: Result<Exit, Exit>) -> (Exit, Vec<String>) {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let progress = Progress::default();
        let around = Around {
            hooks: hooks(&log, failing),
            of: "volume data".into(),
            environment: vec![("VSYNC_VOLUME", "data".into())],
            timeout: Duration::from_secs(60),
            failure,
            progress: &progress,
            say: Arc::new(|_| {}),
        };
        let work = || {
            let summary = Some(serde_json::json!({"snapshot_id": "1a2b"}));
            outcome
                .map(|exit| Done { exit, summary, remarks: Vec::new() })
                .map_err(|exit| Failure::new(exit, "it broke"))
        };
        let exit = around.run(work).map_or_else(|failure| failure.code, |done| done.exit);
        let lines = fs::read_to_string(&log).unwrap().lines().map(|line| line.trim_end().to_owned()).collect();
        (exit, lines)
    }

    #[test]
    fn each_outcome_has_its_commands() {
        let good = ["run-before data", "run-after data success 0 1a2b", "run-finally data success 0 1a2b"];
        let (exit, lines) = run("", HookFailure::Fail, Ok(Exit::Exact));
        assert_eq!((exit, lines.as_slice()), (Exit::Exact, &good.map(str::to_owned)[..]));
        let (exit, lines) = run("", HookFailure::Fail, Err(Exit::Unreachable));
        assert_eq!(exit, Exit::Unreachable);
        assert_eq!(lines, ["run-before data", "run-failed data failed 10", "run-finally data failed 10"]);
        let (exit, lines) = run("", HookFailure::Fail, Ok(Exit::Container));
        assert_eq!((exit, lines[1].as_str()), (Exit::Container, "run-after data warning 22 1a2b"));
    }

    #[test]
    fn a_command_that_fails_counts_unless_it_need_not() {
        let (exit, lines) = run("run-before", HookFailure::Fail, Ok(Exit::Exact));
        assert_eq!(exit, Exit::Hook);
        assert_eq!(lines, ["run-before data", "run-failed data failed 20", "run-finally data failed 20"]);
        let (exit, lines) = run("run-after", HookFailure::Fail, Ok(Exit::Defects));
        assert_eq!((exit, lines.len()), (Exit::Hook, 3));
        let (exit, _) = run("run-finally", HookFailure::Fail, Err(Exit::NoSpace));
        assert_eq!(exit, Exit::NoSpace, "what failed first is told");
        for failing in ["run-before", "run-after", "run-finally"] {
            assert_eq!(run(failing, HookFailure::Continue, Ok(Exit::Exact)).0, Exit::Exact, "{failing}");
        }
    }

    #[test]
    fn an_interruption_is_no_failure_of_a_command() {
        for failure in [HookFailure::Fail, HookFailure::Continue] {
            let progress = Progress::default();
            let around = Around {
                hooks: RunHooks { before: Some(Command::Line("sleep 600".into())), ..RunHooks::default() },
                of: "volume data".into(),
                environment: Vec::new(),
                timeout: Duration::from_secs(60),
                failure,
                progress: &progress,
                say: Arc::new(|line: &str| assert!(line.is_empty(), "it is not told that a command failed: {line}")),
            };
            progress.cancel();
            let failure = around.run(|| panic!("nothing is begun")).err().unwrap();
            assert_eq!(failure.code, Exit::Interrupted);
        }
    }
}
