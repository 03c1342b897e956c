//! `vsync backup`.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;
use vsync_protocol::id::{MachineName, VolumeName};
use vsync_protocol::tree::VolumeInfo;
use vsync_protocol::wire::JobKind;

use super::GlobalArgs;
use super::around::{Around, Done};
use super::context::Context;
use super::helper;
use super::job::Job;
use super::load::LoadArgs;
use super::output;
use super::progress::Display;
use super::quiesce::{self, Still};
use super::report::{Exit, Failure};
use super::session::Session;
use super::signal::Stop;
use super::summary::{show, summary, with_held};
use super::volumes::{self, Place};
use crate::backup::{Backup, Options, Source, Stillness};
use crate::cache::Cache;
use crate::config::Quiesce;
use crate::docker::VolumeDescription;
use crate::progress::Progress;
use crate::quiesce::{Holder, Released};
use crate::schedule::{Lock, LockError};
use crate::suggest;

/// Who is told of a backup, and what counts for it.
type Watched<'a> = (&'a Job<'a>, &'a Arc<Progress>);

/// Back up volumes, directories or streams
///
/// A volume is a Docker volume, or a directory that has a `path` under [[volumes]] in
/// vsync.toml. Only what changed since the last backup is read, only what the server lacks is
/// sent. Files that cannot be read, or that change meanwhile, are listed: exit code 3.
///
/// Containers that write to the volume are paused or stopped, or run commands, if `quiesce`
/// under [[volumes]] or their label `vsync.quiesce` says so; for as short a time as possible.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vsync backup montagu_orderly_volume
  vsync backup barman_recover --server annex2 --tag nightly=yes
  vsync backup montagu_db_volume --limit-upload 20MiB --cpu 1 --nice 10 --idle-io
  vsync backup montagu_packit_db --quiesce pause
  vsync backup --dry-run
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

    /// What is done to containers that write to the volumes, whatever labels and vsync.toml say
    #[arg(long, env = "VSYNC_QUIESCE", value_name = "MODE")]
    quiesce: Option<Quiesce>,

    /// Print what would be backed up and which containers would be held; do nothing
    #[arg(short = 'n', long, conflicts_with_all = ["stdin", "stdin_from_command"])]
    dry_run: bool,

    /// In a helper: the containers are held like this, by the vsync that started it
    #[arg(long, hide = true, value_name = "MODE", conflicts_with = "quiesce")]
    held: Option<Quiesce>,

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
        if self.dry_run {
            return self.foretell(global);
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
        let volumes = self.volumes(&session.context)?;
        let machine = session.context.config.machine(&session.context.bundle.machine)?;
        // A helper is inside of all that.
        if self.held.is_some() {
            return self.all(global, &session, &volumes).map(|done| done.exit);
        }
        let around = Around::machine(&machine.name, &machine.run, &progress, quiesce::say(global));
        around.run(|| self.all(global, &session, &volumes)).map(|done| done.exit)
    }

    fn all(&self, global: &GlobalArgs, session: &Session, volumes: &[VolumeName]) -> Result<Done, Failure> {
        let mut exit = Exit::Exact;
        for volume in volumes {
            let job = Job::begin(session, JobKind::Backup, volume, None);
            let done = self.volume(global, session, volume, &job);
            job.end(&done);
            let done = done?;
            exit = if done == Exit::Exact { exit } else { done };
        }
        Ok(Done { exit, summary: None })
    }

    /// The volumes asked for, each of which must be this machine's to back up.
    fn volumes(&self, context: &Context) -> Result<Vec<VolumeName>, Failure> {
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

    /// What a run would do.
    fn foretell(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let context = Context::load(global)?;
        let server = &context.config.server(self.server.as_ref())?.machine.name;
        for name in self.volumes(&context)? {
            let place = volumes::locate(global, &context, &name)?;
            let plan = match quiesce::holder(global, &context, &name, &place, self.quiesce)? {
                Some(holder) => Some(volumes::block_on(holder.plan())??),
                None => None,
            };
            let source = quiesce::place_words(&place);
            if global.json {
                let mode = plan.as_ref().map_or(Quiesce::None, |plan| plan.mode);
                let steps = plan.map(|plan| plan.steps).unwrap_or_default();
                let containers: Vec<_> = steps.iter().map(quiesce::step_json).collect();
                output::json(&json!({
                    "message_type": "plan",
                    "volume": name.as_str(),
                    "source": source,
                    "server": server.as_str(),
                    "quiesce": mode.word(),
                    "containers": containers,
                }))?;
                continue;
            }
            output::line(format_args!("would back up {name} from {source} to {server}"))?;
            for step in plan.iter().flat_map(quiesce::describe) {
                output::line(format_args!("  {step}"))?;
            }
        }
        Ok(Exit::Exact)
    }

    fn volume(
        &self,
        global: &GlobalArgs,
        session: &Session,
        volume: &VolumeName,
        job: &Job<'_>,
    ) -> Result<Exit, Failure> {
        let progress = Arc::new(Progress::default());
        Stop::install()?.cancels(progress.clone());
        job.watch(&progress);
        // Whoever started a helper has the lock, and runs the commands around.
        if self.held.is_some() {
            return self.held_volume(global, session, volume, (job, &progress)).map(|done| done.exit);
        }
        let _lock = lock(session, volume)?;
        let context = &session.context;
        let said = context.config.volume(volume);
        let around = Around::volume(&context.bundle.machine, volume, said, &progress, quiesce::say(global));
        around.run(|| self.held_volume(global, session, volume, (job, &progress))).map(|done| done.exit)
    }

    fn held_volume(
        &self,
        global: &GlobalArgs,
        session: &Session,
        volume: &VolumeName,
        watched: Watched<'_>,
    ) -> Result<Done, Failure> {
        let place = volumes::locate(global, &session.context, volume)?;
        let holder = match self.held {
            Some(_) => None,
            None => quiesce::holder(global, &session.context, volume, &place, self.quiesce)?,
        };
        let directory = match &place {
            Place::Directory(path) | Place::Volume(path, _) => path.clone(),
            Place::Helper(description) => return self.with_helper(global, session, description, holder, watched),
        };
        let options = self.options(session, volume, place.info(self.held.unwrap_or_default()));
        let Some(holder) = holder else {
            return self.run_one(global, session, Source::Directory(&directory), &options, watched, None);
        };
        let still = Still::new(holder, watched.1.clone())?;
        self.run_one(global, session, Source::Directory(&directory), &options, watched, Some(still))
    }

    /// A helper reads the volume while it is held here: all the time, as nothing is known of how far it is.
    fn with_helper(
        &self,
        global: &GlobalArgs,
        session: &Session,
        volume: &VolumeDescription,
        holder: Option<Holder>,
        (job, progress): Watched<'_>,
    ) -> Result<Done, Failure> {
        let mut still = holder.map(|holder| Still::new(holder, progress.clone())).transpose()?;
        let mode = match &mut still {
            Some(still) => still.begin()?,
            None => Quiesce::None,
        };
        let outcome = helper::backup(global, session, volume, &self.tag, &self.load.arguments(), (mode, job.id()));
        let (confirmed, released) = match still {
            Some(mut still) => (still.end(), still.finish()),
            None => (Ok(()), Released::default()),
        };
        job.note(|result| result.held = held_millis(&released));
        let exit = outcome.and_then(|(exit, summary)| {
            show(global, &with_held(summary.clone(), &released))?;
            confirmed?;
            Ok((exit, summary))
        });
        let summary = exit.as_ref().ok().map(|(_, summary)| summary.clone());
        let exit = quiesce::judge(global, &released, exit.map(|(exit, _)| exit))?;
        Ok(Done { exit, summary })
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
        mut still: Option<Still>,
    ) -> Result<Done, Failure> {
        job.watch(progress);
        let writer = session.writer()?;
        let mut cache = Cache::open(&session.cache_path(&options.volume))?;
        let display = Display::start(global, "backing up", progress);
        let heads = session.heads();
        let stillness = still.as_mut().map(|still| still as &mut dyn Stillness);
        let backup = Backup {
            writer: &writer,
            options,
            remote: &session.remote,
            heads: &heads,
            progress,
            begun: Instant::now(),
        };
        let outcome = backup.run_still(source, &mut cache, stillness);
        drop(display);
        let released = still.map(Still::finish).unwrap_or_default();
        job.note(|result| result.held = held_millis(&released));
        let outcome = outcome.map_err(Failure::from).and_then(|report| {
            job.note(|result| {
                result.read = progress.read.get();
                // What the server lacked is what was sent, and what the store grew by.
                (result.sent, result.stored) = (report.upload.bytes, report.upload.bytes);
                (result.size, result.files) = (report.totals.bytes, report.totals.entries);
                (result.defects, result.snapshot) = (report.defect_count, Some(report.snapshot));
            });
            let summary = with_held(summary(session.remote.server(), options, &report, progress), &released);
            show(global, &summary)?;
            Ok((if report.defect_count == 0 { Exit::Exact } else { Exit::Defects }, summary))
        });
        let summary = outcome.as_ref().ok().map(|(_, summary)| summary.clone());
        let exit = quiesce::judge(global, &released, outcome.map(|(exit, _)| exit))?;
        Ok(Done { exit, summary })
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
        self.run_one(global, session, Source::Stream(&mut reader), &options, watched, None).map(|done| done.exit)
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

fn held_millis(released: &Released) -> Option<u64> {
    released.held_for.map(|held| u64::try_from(held.as_millis()).unwrap_or(u64::MAX))
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
