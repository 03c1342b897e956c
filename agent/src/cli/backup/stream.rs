//! Backing up what is piped in, or what a command prints.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use thiserror::Error;
use vsync_protocol::id::VolumeName;
use vsync_protocol::tree::VolumeInfo;
use vsync_protocol::wire::JobKind;

use super::super::GlobalArgs;
use super::super::around::Done;
use super::super::job::Job;
use super::super::report::{Exit, Failure};
use super::super::session::Session;
use super::{BackupArgs, Watched, lock};
use crate::backup::Source;
use crate::progress::Progress;

/// The command whose output is backed up did not do its work.
#[derive(Debug, Error)]
#[error("{0}")]
pub(in super::super) struct CommandFailed(pub(in super::super) String);

impl BackupArgs {
    /// Backs a stream up under `name`.
    pub(super) fn streamed(
        &self,
        global: &GlobalArgs,
        session: &Session,
        name: &VolumeName,
        progress: &Arc<Progress>,
    ) -> Result<Exit, Failure> {
        let _lock = lock(session, name)?;
        let job = Job::begin(session, JobKind::Backup, name, None);
        let watched = (&job, progress);
        let done = match (&self.stdin, self.command.split_first()) {
            (None, Some(command)) => self.command_output(global, session, name, watched, command),
            _ => self.stream(global, session, name, &mut std::io::stdin(), watched, || Ok(())),
        };
        job.end_with(done.as_ref().map(|done| (done.exit, &*done.remarks)));
        done.map(|done| done.exit)
    }

    fn stream(
        &self,
        global: &GlobalArgs,
        session: &Session,
        name: &VolumeName,
        reader: &mut (dyn Read + Send),
        watched: Watched<'_>,
        ended: impl FnOnce() -> Result<(), CommandFailed> + Send,
    ) -> Result<Done, Failure> {
        let info =
            VolumeInfo { kind: "stream".into(), driver: None, options: vec![], labels: vec![], quiesce: "none".into() };
        let options = self.options(session, name, info);
        let mut reader = Checked { reader, ended: Some(ended) };
        self.run_one(global, session, Source::Stream(&mut reader), &options, watched, None)
    }

    fn command_output(
        &self,
        global: &GlobalArgs,
        session: &Session,
        name: &VolumeName,
        watched: Watched<'_>,
        (program, arguments): (&String, &[String]),
    ) -> Result<Done, Failure> {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| Failure::new(Exit::Hook, format!("cannot run {program}: {error}")))?;
        let mut output = child.stdout.take().ok_or_else(|| Failure::new(Exit::Failed, "the command has no output"))?;
        let mut child = Some(child);
        let ended = || child.take().map_or(Ok(()), |child| succeeded(child, program));
        let outcome = self.stream(global, session, name, &mut output, watched, ended);
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
