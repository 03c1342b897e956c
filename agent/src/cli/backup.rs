//! `vsync backup`.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use serde_json::json;
use vsync_protocol::id::{MachineName, VolumeName};
use vsync_protocol::tree::VolumeInfo;
use vsync_protocol::wire::JobKind;

use super::GlobalArgs;
use super::helper;
use super::job::Job;
use super::load::LoadArgs;
use super::output;
use super::progress::Display;
use super::report::{Exit, Failure};
use super::session::{Session, short};
use super::signal::Stop;
use super::volumes::{self, Place};
use crate::backup::{self, Options, Report, Source};
use crate::cache::Cache;
use crate::progress::Progress;
use crate::schedule::{Lock, LockError};
use crate::suggest;

/// How many defects are printed; the snapshot lists more.
const SHOWN_DEFECTS: usize = 20;

/// Who is told of a backup, and what counts for it.
type Watched<'a> = (&'a Job<'a>, &'a Arc<Progress>);

/// Back up volumes, directories or streams
///
/// A volume is a Docker volume, or a directory that has a `path` under [[volumes]] in
/// vsync.toml. Only what changed since the last backup is read, only what the server lacks is
/// sent. Files that cannot be read, or that change meanwhile, are listed: exit code 3.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vsync backup montagu_orderly_volume
  vsync backup barman_recover --server annex2 --tag nightly=yes
  vsync backup montagu_db_volume --limit-upload 20MiB --cpu 1 --nice 10 --idle-io
  pg_dump montagu | vsync backup --stdin montagu_dump
  vsync backup --stdin-from-command montagu_dump -- pg_dump montagu")]
pub(super) struct BackupArgs {
    /// Volumes to back up [default: all that vsync.toml lists for this machine]
    #[arg(value_name = "VOLUME", conflicts_with_all = ["stdin", "stdin_from_command"])]
    volumes: Vec<VolumeName>,

    /// The server to back up to [default: the only one]
    #[arg(long, env = "VSYNC_SERVER", value_name = "NAME")]
    server: Option<MachineName>,

    /// Label the snapshot; may be repeated
    #[arg(long, env = "VSYNC_TAG", value_name = "KEY=VALUE", value_delimiter = ',')]
    tag: Vec<String>,

    /// Back up standard input under this name
    #[arg(long, value_name = "NAME")]
    stdin: Option<VolumeName>,

    /// Back up what a command prints under this name; the backup fails if the command does
    #[arg(long, value_name = "NAME", requires = "command", conflicts_with = "stdin")]
    stdin_from_command: Option<VolumeName>,

    /// The command for --stdin-from-command, after `--`
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,

    #[command(flatten)]
    load: LoadArgs,
}

impl BackupArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        if let Some(tag) = self.tag.iter().find(|tag| !tag.contains('=')) {
            return Err(Failure::new(Exit::Usage, format!("tag {tag:?} is not of the form KEY=VALUE")));
        }
        if global.recovery.kit.is_some() {
            return Err(Failure::new(Exit::Usage, "the recovery kit only reads")
                .hint("to back up again, bring the realm back: `vsync init --kit FILE`".to_owned()));
        }
        self.load.settle()?;
        let session = Session::open(global, self.server.as_ref())?;
        session.remote.limit(self.load.limits());
        let progress = Arc::new(Progress::default());
        Stop::install()?.cancels(progress.clone());
        if let Some(name) = &self.stdin {
            let job = Job::begin(&session, JobKind::Backup, name, None);
            let done = self.stream(global, &session, name, &mut std::io::stdin(), (&job, &progress), || Ok(()));
            job.end(&done);
            return done;
        }
        if let Some(name) = &self.stdin_from_command {
            let job = Job::begin(&session, JobKind::Backup, name, None);
            let done = self.command_output(global, &session, name, (&job, &progress));
            job.end(&done);
            return done;
        }
        let mut exit = Exit::Exact;
        for volume in self.volumes(&session)? {
            let job = Job::begin(&session, JobKind::Backup, &volume, None);
            let done = self.volume(global, &session, &volume, &job);
            job.end(&done);
            let done = done?;
            exit = if done == Exit::Exact { exit } else { done };
        }
        Ok(exit)
    }

    /// The volumes asked for, each of which must be this machine's to back up.
    fn volumes(&self, session: &Session) -> Result<Vec<VolumeName>, Failure> {
        let context = &session.context;
        let machine = context.config.machine(&context.bundle.machine)?;
        if self.volumes.is_empty() && machine.backup.is_empty() {
            return Err(Failure::new(Exit::Usage, format!("{} has no volumes to back up", machine.name))
                .hint(format!("list them under `backup` of {} in {}", machine.name, context.config.path.display())));
        }
        for volume in &self.volumes {
            if !machine.backup.contains(volume) {
                let near = suggest::suffix(volume.as_str(), machine.backup.iter().map(VolumeName::as_str));
                let heading = format!("{} does not back up {volume}{near}", machine.name);
                return Err(Failure::new(Exit::NotFound, heading).hint(format!(
                    "list it under `backup` of {} in {}",
                    machine.name,
                    context.config.path.display()
                )));
            }
        }
        Ok(if self.volumes.is_empty() { machine.backup.clone() } else { self.volumes.clone() })
    }

    fn volume(
        &self,
        global: &GlobalArgs,
        session: &Session,
        volume: &VolumeName,
        job: &Job<'_>,
    ) -> Result<Exit, Failure> {
        let _lock = lock(session, volume)?;
        let place = volumes::locate(&session.context, volume)?;
        let directory = match &place {
            Place::Directory(path) | Place::Volume(path, _) => path.clone(),
            Place::Helper(description) => {
                return helper::backup(global, session, description, &self.tag, &self.load.arguments(), Some(job.id()));
            }
        };
        let progress = Arc::new(Progress::default());
        Stop::install()?.cancels(progress.clone());
        let options = self.options(session, volume, place.info());
        self.run_one(global, session, Source::Directory(&directory), &options, (job, &progress))
    }

    fn options(&self, session: &Session, volume: &VolumeName, info: VolumeInfo) -> Options {
        let mut tags = self.tag.clone();
        tags.sort();
        let profile = volumes::profile(&session.context.config, volume);
        Options { volume: volume.clone(), info, tags, profile }
    }

    fn run_one(
        &self,
        global: &GlobalArgs,
        session: &Session,
        source: Source<'_>,
        options: &Options,
        (job, progress): Watched<'_>,
    ) -> Result<Exit, Failure> {
        job.watch(progress);
        let writer = session.writer()?;
        let mut cache = Cache::open(&session.cache_path(&options.volume))?;
        let display = Display::start(global, "backing up", progress);
        let outcome = backup::run(source, &writer, options, &session.remote, &mut cache, &session.heads(), progress);
        drop(display);
        let report = outcome?;
        job.note(|result| {
            result.read = progress.read.get();
            // What the server lacked is what was sent, and what the store grew by.
            (result.sent, result.stored) = (report.upload.bytes, report.upload.bytes);
            (result.size, result.files) = (report.totals.bytes, report.totals.entries);
            (result.defects, result.snapshot) = (report.defect_count, Some(report.snapshot));
        });
        show(global, session, options, &report, progress)?;
        Ok(if report.defect_count == 0 { Exit::Exact } else { Exit::Defects })
    }

    fn stream(
        &self,
        global: &GlobalArgs,
        session: &Session,
        name: &VolumeName,
        reader: &mut (dyn Read + Send),
        watched: Watched<'_>,
        ended: impl FnOnce() -> Result<(), String> + Send,
    ) -> Result<Exit, Failure> {
        let info =
            VolumeInfo { kind: "stream".into(), driver: None, options: vec![], labels: vec![], quiesce: "none".into() };
        let _lock = lock(session, name)?;
        let options = self.options(session, name, info);
        let mut reader = Checked { reader, ended: Some(ended) };
        self.run_one(global, session, Source::Stream(&mut reader), &options, watched)
    }

    fn command_output(
        &self,
        global: &GlobalArgs,
        session: &Session,
        name: &VolumeName,
        watched: Watched<'_>,
    ) -> Result<Exit, Failure> {
        let (program, arguments) =
            self.command.split_first().ok_or_else(|| Failure::new(Exit::Usage, "no command given"))?;
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

/// Two backups of a volume at once would read everything twice, and one of them be refused at its end.
fn lock(session: &Session, volume: &VolumeName) -> Result<Lock, Failure> {
    Lock::take(&session.context.volume_lock(volume)).map_err(|error| {
        let held = matches!(error, LockError::Held { .. });
        let failure = Failure::from(error);
        if held {
            Failure { heading: format!("another backup of {volume} is running on this machine"), ..failure }
        } else {
            failure
        }
    })
}

/// Waits for a command whose output has ended.
fn succeeded(mut child: Child, program: &str) -> Result<(), String> {
    match child.wait() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{program} failed with {status}")),
        Err(error) => Err(format!("cannot wait for {program}: {error}")),
    }
}

/// A stream whose end counts only if it was a good one: a dump that broke off is no backup.
struct Checked<'a, F> {
    reader: &'a mut (dyn Read + Send),
    ended: Option<F>,
}

impl<F: FnOnce() -> Result<(), String>> Read for Checked<'_, F> {
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

fn show(
    global: &GlobalArgs,
    session: &Session,
    options: &Options,
    report: &Report,
    progress: &Progress,
) -> Result<(), Failure> {
    if global.json {
        return output::json(&json!({
            "message_type": "summary",
            "snapshot_id": report.snapshot.to_string(),
            "parent": report.parent.map(|id| id.to_string()),
            "volume": options.volume.as_str(),
            "server": session.remote.server().as_str(),
            "total_files_processed": report.totals.entries,
            "total_bytes_processed": report.totals.bytes,
            "files_unmodified": progress.unchanged.get(),
            "files_opened": progress.opened.get(),
            "bytes_read": progress.read.get(),
            "data_blobs": report.upload.blobs,
            "data_added_packed": report.upload.bytes,
            "total_duration": report.duration.as_secs_f64(),
            "defects": report.defects.iter().map(|(path, reason)| json!({"path": path.to_string(), "reason": reason})).collect::<Vec<_>>(),
            "defect_count": report.defect_count,
        }));
    }
    for (path, reason) in report.defects.iter().take(SHOWN_DEFECTS) {
        eprintln!("not exact: {}: {reason}", if path.is_root() { ".".to_owned() } else { path.to_string() });
    }
    if report.defect_count > SHOWN_DEFECTS as u64 {
        eprintln!("not exact: {} more", report.defect_count - SHOWN_DEFECTS as u64);
    }
    if global.quiet {
        return Ok(());
    }
    output::line(format_args!(
        "snapshot {} of {} on {}: {} in {} entries, {} read, {} sent in {}",
        short(report.snapshot),
        options.volume,
        session.remote.server(),
        output::size(report.totals.bytes),
        report.totals.entries,
        output::size(progress.read.get()),
        output::size(report.upload.bytes),
        output::duration(report.duration),
    ))
}
