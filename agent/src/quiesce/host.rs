//! Commands on the machine itself, around a backup.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command as Process, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::error::HookFailed;
use crate::config::Command;

/// A command that nobody gave a time is not waited for longer: it may dump a database.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(6 * 3600);

/// How long a command may take to end once it was asked to.
const GRACE: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A command to run on this machine.
#[derive(Debug)]
pub(crate) struct HostHook<'a> {
    /// Which: `run-before`, `run-after`, `run-failed`, `run-finally`.
    pub hook: &'static str,
    /// The volume or machine that it belongs to.
    pub of: String,
    /// What to run.
    pub command: &'a Command,
    /// What it is told in its environment, beside what vsync itself has there: no secrets.
    pub environment: Vec<(&'static str, String)>,
    /// How long it may take.
    pub timeout: Duration,
}

impl HostHook<'_> {
    /// Runs it to its end, the end of its time, or until `cancelled`. What it prints goes to standard error.
    ///
    /// # Errors
    /// When it cannot be run, fails, or takes too long.
    pub(crate) fn run(&self, cancelled: &dyn Fn() -> bool) -> Result<(), HookFailed> {
        let failed = |reason: String| HookFailed { hook: self.hook, of: self.of.clone(), reason };
        let words = self.command.argv();
        let (program, arguments) = words.split_first().ok_or_else(|| failed("there is no command".to_owned()))?;
        let started = Process::new(program)
            .args(arguments)
            .envs(self.environment.iter().map(|(name, value)| (*name, value)))
            .env("VSYNC_HOOK", self.hook)
            .stdin(Stdio::null())
            // Standard output is for results.
            .stdout(io::stderr())
            .stderr(Stdio::inherit())
            // A group of its own, so that it can be ended with all that it started.
            .process_group(0)
            .spawn();
        let mut child = started.map_err(|error| failed(format!("{program} cannot be run: {error}")))?;
        let begun = Instant::now();
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return judge(status).map_err(failed),
                Ok(None) => {}
                Err(error) => return Err(failed(format!("its end was lost: {error}"))),
            }
            if begun.elapsed() >= self.timeout {
                end(&mut child);
                return Err(failed(format!("no end after {} s; it was killed", self.timeout.as_secs())));
            }
            if cancelled() {
                end(&mut child);
                return Err(failed("interrupted".to_owned()));
            }
            thread::sleep(LOOK_AGAIN);
        }
    }
}

fn judge(status: ExitStatus) -> Result<(), String> {
    if status.success() { Ok(()) } else { Err(status.to_string()) }
}

/// Asks a command and all its children to end, and makes them.
fn end(child: &mut Child) {
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let tell = |signal| group.is_some_and(|group| kill_process_group(group, signal).is_ok());
    tell(Signal::TERM);
    let asked = Instant::now();
    while asked.elapsed() < GRACE && matches!(child.try_wait(), Ok(None)) {
        thread::sleep(LOOK_AGAIN);
    }
    tell(Signal::KILL);
    // It was killed: this only collects it.
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str, timeout: Duration, cancelled: bool) -> Result<(), String> {
        let command = Command::Line(line.to_owned());
        let environment = vec![("VSYNC_VOLUME", "data".to_owned())];
        let hook = HostHook { hook: "run-before", of: "volume data".into(), command: &command, environment, timeout };
        hook.run(&|| cancelled).map_err(|error| error.to_string())
    }

    #[test]
    fn a_command_is_run_with_its_environment_and_judged_by_its_end() {
        let long = Duration::from_secs(60);
        assert_eq!(run("[ \"$VSYNC_VOLUME $VSYNC_HOOK\" = 'data run-before' ]", long, false), Ok(()));
        let failed = |reason: &str| Err(format!("run-before of volume data failed: {reason}"));
        assert_eq!(run("exit 3", long, false), failed("exit status: 3"));
        assert_eq!(run("kill -9 $$", long, false), failed("signal: 9 (SIGKILL)"));
        assert_eq!(run("sleep 600", Duration::ZERO, false), failed("no end after 0 s; it was killed"));
        assert_eq!(run("sleep 600", long, true), failed("interrupted"));
        let words = Command::Words(vec!["/nowhere/program".into()]);
        let hook = HostHook {
            hook: "run-after",
            of: "machine host".into(),
            command: &words,
            environment: Vec::new(),
            timeout: long,
        };
        assert!(hook.run(&|| false).unwrap_err().to_string().contains("/nowhere/program cannot be run"));
    }
}
