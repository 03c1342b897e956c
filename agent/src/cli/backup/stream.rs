//! Backing up what is piped in, or what a command prints.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use thiserror::Error;
use vsync_protocol::id::VolumeName;
use vsync_protocol::tree::VolumeInfo;
use vsync_protocol::wire::JobKind;

use super::super::around::Done;
use super::super::job::Job;
use super::super::report::{Exit, Failure};
use super::{Watched, Work, lock};
use crate::backup::Source;
use crate::progress::Progress;

/// The command whose output is backed up did not do its work.
#[derive(Debug, Error)]
#[error("{0}")]
pub(in super::super) struct CommandFailed(pub(in super::super) String);

impl Work<'_> {
    /// Backs a stream up under `name`.
    pub(super) fn streamed(self, name: &VolumeName, progress: &Arc<Progress>) -> Result<Exit, Failure> {
        let _lock = lock(self.session, name)?;
        let job = Job::begin(self.session, JobKind::Backup, name, None);
        let watched = Watched { job: &job, progress };
        let done = match (&self.args.stdin, self.args.command.split_first()) {
            (None, Some((program, arguments))) => {
                self.command_output(name, watched, Command::new(program).args(arguments), program)
            }
            _ => self.stream(name, watched, &mut std::io::stdin(), || Ok(())),
        };
        job.end_with(done.as_ref().map(|done| (done.exit, &*done.remarks)));
        done.map(|done| done.exit)
    }

    fn stream(
        self,
        name: &VolumeName,
        watched: Watched<'_>,
        reader: &mut (dyn Read + Send),
        ended: impl FnOnce() -> Result<(), CommandFailed> + Send,
    ) -> Result<Done, Failure> {
        let info =
            VolumeInfo { kind: "stream".into(), driver: None, options: vec![], labels: vec![], quiesce: "none".into() };
        let options = self.options(name, info);
        let mut reader = Checked { reader, ended: Some(ended) };
        self.run_one(Source::Stream(&mut reader), &options, watched, None)
    }

    fn command_output(
        self,
        name: &VolumeName,
        watched: Watched<'_>,
        command: &mut Command,
        program: &str,
    ) -> Result<Done, Failure> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| Failure::new(Exit::Hook, format!("cannot run {program}: {error}")))?;
        let mut output = child.stdout.take().ok_or_else(|| Failure::new(Exit::Failed, "the command has no output"))?;
        let mut child = Some(child);
        let ended = || child.take().map_or(Ok(()), |child| succeeded(child, program));
        let outcome = self.stream(name, watched, &mut output, ended);
        if let Some(mut child) = child {
            // The backup broke off first: nobody reads what the command still prints.
            let _ = child.kill();
            let _ = child.wait();
        }
        outcome
    }
}

/// Waits for a command whose output has ended.
fn succeeded(mut child: Child, program: &str) -> Result<(), CommandFailed> {
    match child.wait() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(CommandFailed(format!("{program} failed with {status}"))),
        Err(error) => Err(CommandFailed(format!("cannot wait for {program}: {error}"))),
    }
}

/// A stream whose end counts only if it was a good one: a dump that broke off is no backup.
struct Checked<'a, F> {
    reader: &'a mut (dyn Read + Send),
    ended: Option<F>,
}

impl<F: FnOnce() -> Result<(), CommandFailed>> Read for Checked<'_, F> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let len = self.reader.read(buffer)?;
        if len == 0
            && !buffer.is_empty()
            && let Some(ended) = self.ended.take()
        {
            ended().map_err(std::io::Error::other)?;
        }
        Ok(len)
    }
}
