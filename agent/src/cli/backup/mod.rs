//! `vsync backup`.

mod stream;

use std::cell::Cell;
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;
use vsync_protocol::id::{MachineName, VolumeName};
use vsync_protocol::tree::VolumeInfo;
use vsync_protocol::wire::JobKind;

use super::GlobalArgs;
use super::around::{Around, Done};
use super::context::Context;
use super::helper::{Helper, HelperBackup};
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
use crate::backup::{Backup, Options, Report, Source, Stillness};
use crate::cache::Cache;
use crate::config::Quiesce;
use crate::docker::VolumeDescription;
use crate::progress::Progress;
use crate::quiesce::{Holder, Released};
use crate::schedule::{Lock, LockError};
use crate::suggest;

pub(super) use stream::CommandFailed;

/// Who is told of a backup, and what counts for it.
#[derive(Clone, Copy)]
struct Watched<'a> {
    job: &'a Job<'a>,
    progress: &'a Arc<Progress>,
}

/// What all backups of one command have in common.
#[derive(Clone, Copy)]
struct Work<'a> {
    args: &'a BackupArgs,
    global: &'a GlobalArgs,
    session: &'a Session,
}

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
        // Whatever becomes of this one: no application stays down because of the last.
        if self.held.is_none() {
            quiesce::tidy_first(global);
        }
        let session = Session::open(global, self.server.as_ref())?;
        session.remote.limit(self.load.limits());
        let progress = Arc::new(Progress::default());
        Stop::install()?.cancels(progress.clone());
        let work = Work { args: self, global, session: &session };
        if let Some(name) = self.stdin.as_ref().or(self.stdin_from_command.as_ref()) {
            return work.streamed(name, &progress);
        }
        let volumes = self.volumes(&session.context)?;
        let all = || work.all(&volumes, &progress);
        // A helper is inside of all that.
        if self.held.is_some() {
            return all().map(|done| done.exit);
        }
        let machine = session.context.config.machine(&session.context.bundle.machine)?;
        let around = Around::machine(&machine.name, &machine.run, &progress, quiesce::say(global));
        let begun = Cell::new(false);
        let done = around.run(|| {
            begun.set(true);
            all()
        });
        let done = done.map(|done| done.exit);
        // No volume came to have a record of its own.
        if !begun.get() {
            volumes.iter().for_each(|volume| Job::begin(&session, JobKind::Backup, volume, None).end(&done));
        }
        done
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
}

impl Work<'_> {
    /// Backs one volume up after the other. One that fails hinders no other.
    fn all(self, volumes: &[VolumeName], progress: &Progress) -> Result<Done, Failure> {
        let mut all = Done { exit: Exit::Exact, summary: None, remarks: Vec::new() };
        let mut failed: Vec<&str> = Vec::new();
        for volume in volumes {
            let done = if progress.is_cancelled() {
                Err(Failure::new(Exit::Interrupted, format!("interrupted; {volume} was not backed up")))
            } else {
                self.volume(volume, progress)
            };
            match done {
                Ok(done) => {
                    all.exit = all.exit.graver(done.exit);
                    all.remarks.extend(done.remarks);
                }
                Err(failure) if failure.code == Exit::Interrupted || volumes.len() == 1 => {
                    return Err(Failure { code: all.exit.graver(failure.code), ..failure });
                }
                Err(failure) => {
                    all.exit = all.exit.graver(failure.code);
                    failure.print_of(volume, self.global.json);
                    failed.push(volume.as_str());
                }
            }
        }
        if failed.is_empty() {
            return Ok(all);
        }
        let (count, names) = (volumes.len(), failed.join(", "));
        Err(Failure::new(all.exit, format!("{} of {count} volumes were not backed up: {names}", failed.len())))
    }

    fn volume(self, volume: &VolumeName, whole: &Progress) -> Result<Done, Failure> {
        let Self { args, global, session } = self;
        // Whoever started a helper has the lock, and runs the commands around. Without the lock there is no job:
        // that of another is under way.
        let _lock = if args.held.is_none() { Some(lock(session, volume)?) } else { None };
        let progress = Arc::new(whole.of_a_part());
        let job = Job::begin(session, JobKind::Backup, volume, None);
        job.watch(&progress);
        let work = || self.held_volume(volume, Watched { job: &job, progress: &progress });
        let done = if args.held.is_some() {
            work()
        } else {
            let said = session.context.config.volume(volume);
            let machine = &session.context.bundle.machine;
            Around::volume(machine, volume, said, &progress, quiesce::say(global)).run(work)
        };
        job.end_with(done.as_ref().map(|done| (done.exit, &*done.remarks)));
        done
    }

    fn held_volume(self, volume: &VolumeName, watched: Watched<'_>) -> Result<Done, Failure> {
        let Self { args, global, session } = self;
        let place = volumes::locate(global, &session.context, volume)?;
        let holder = match args.held {
            Some(_) => None,
            None => quiesce::holder(global, &session.context, volume, &place, args.quiesce)?,
        };
        let directory = match &place {
            Place::Directory(path) | Place::Volume(path, _) => path.clone(),
            Place::Helper(description) => return self.with_helper(description, holder, watched),
        };
        let options = self.options(volume, place.info(args.held.unwrap_or_default()));
        let still = holder.map(|holder| Still::new(holder, watched.progress.clone())).transpose()?;
        self.run_one(Source::Directory(&directory), &options, watched, still)
    }

    /// A helper reads the volume while it is held here: all the time, as nothing is known of how far it is.
    fn with_helper(
        self,
        volume: &VolumeDescription,
        holder: Option<Holder>,
        Watched { job, progress }: Watched<'_>,
    ) -> Result<Done, Failure> {
        let Self { args, global, session } = self;
        let mut still = holder.map(|holder| Still::new(holder, progress.clone())).transpose()?;
        let held = match &mut still {
            Some(still) => still.begin()?,
            None => Quiesce::None,
        };
        let helper = Helper { global, session, volume };
        let outcome = helper.backup(&HelperBackup { tags: &args.tag, load: &args.load, held, job: job.id() });
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
        Ok(Done { exit, summary, remarks: quiesce::remarks(&released) })
    }

    fn options(self, volume: &VolumeName, info: VolumeInfo) -> Options {
        let mut tags = self.args.tag.clone();
        tags.sort();
        let profile = volumes::profile(&self.session.context.config, volume);
        Options { volume: volume.clone(), info, tags, profile }
    }

    fn run_one(
        self,
        source: Source<'_>,
        options: &Options,
        Watched { job, progress }: Watched<'_>,
        mut still: Option<Still>,
    ) -> Result<Done, Failure> {
        let Self { global, session, .. } = self;
        job.watch(progress);
        let stillness = still.as_mut().map(|still| still as &mut dyn Stillness);
        let made = Making { global, session, verb: "backing up", progress }.run(source, options, stillness);
        let released = still.map(Still::finish).unwrap_or_default();
        job.note(|result| result.held = held_millis(&released));
        let outcome = made.and_then(|report| {
            job.made(&report, progress.read.get());
            let summary = with_held(summary(session.remote.server(), options, &report, progress), &released);
            show(global, &summary)?;
            Ok((if report.defect_count == 0 { Exit::Exact } else { Exit::Defects }, summary))
        });
        let summary = outcome.as_ref().ok().map(|(_, summary)| summary.clone());
        let exit = quiesce::judge(global, &released, outcome.map(|(exit, _)| exit))?;
        Ok(Done { exit, summary, remarks: quiesce::remarks(&released) })
    }
}

/// Makes a snapshot, and shows how far it is.
pub(super) struct Making<'a> {
    pub(super) global: &'a GlobalArgs,
    pub(super) session: &'a Session,
    /// What the display says.
    pub(super) verb: &'static str,
    pub(super) progress: &'a Arc<Progress>,
}

impl Making<'_> {
    pub(super) fn run(
        &self,
        source: Source<'_>,
        options: &Options,
        stillness: Option<&mut dyn Stillness>,
    ) -> Result<Report, Failure> {
        let Self { global, session, verb, progress } = *self;
        let writer = session.writer()?;
        let mut cache = Cache::open(&session.cache_path(&options.volume))?;
        let display = Display::start(global, verb, progress);
        let (remote, heads) = (&session.remote, &session.heads());
        let backup = Backup { writer: &writer, options, remote, heads, progress, begun: Instant::now() };
        let made = backup.run_still(source, &mut cache, stillness);
        drop(display);
        Ok(made?)
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
