//! `vsync restore`.

mod outcome;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Zoned;
use vsync_protocol::id::{MachineName, VolumeName};
use vsync_protocol::tree::EntryPath;
use vsync_protocol::wire::JobKind;

use super::GlobalArgs;
use super::ground;
use super::helper::Helper;
use super::job::Job;
use super::load::LoadArgs;
use super::output;
use super::quiesce;
use super::report::{Exit, Failure, io_exit};
use super::session::Session;
use super::signal::Stop;
use super::spec::{At, Bare, Spec};
use super::time;
use super::volumes;
use crate::docker::{Access, DockerError, Engine, VolumeDescription};
use crate::progress::Progress;
use crate::quiesce::Hold;
use crate::restore::{self, Options, Selection};
use crate::snapshot::Snapshot;

/// Restore a snapshot into a volume or a directory
///
/// A new volume gets the driver, options and labels that the snapshot's volume had. In one that
/// exists, files are compared with the snapshot: only chunks that differ are fetched, and what
/// the snapshot does not have is deleted. So it is in a directory that this machine restored into
/// before, or that the configuration names for the volume; any other must be empty, unless --delete
/// is given. A part (:PATH, --include, --exclude) deletes nothing. An interrupted restore goes on
/// when it is run again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vsync restore barman_recover --server annex2 --to-volume montagu_db_volume
  vsync restore barman_recover@latest~1 --to-volume montagu_db_volume --dry-run
  vsync restore barman_recover --at 2026-11-19 --to-path /tmp/db
  vsync restore montagu_orderly_volume:archive/2026 --to-path /tmp/archive
  vsync restore montagu_orderly_volume --include '*.rds' --to-path /tmp/rds
  vsync restore barman_recover --to-volume montagu_db_volume --limit-download 50MiB")]
pub(super) struct RestoreArgs {
    /// What to restore: VOLUME[@SNAPSHOT][:PATH]; a snapshot is an id, `latest`, `latest~2` or a time
    #[arg(value_name = "VOLUME[@SNAPSHOT][:PATH]")]
    what: String,

    /// The server to restore from [default: the only one]
    #[arg(long, env = "VSYNC_SERVER", value_name = "NAME")]
    server: Option<MachineName>,

    /// The machine whose backup it is [default: the only one that has it]
    #[arg(long, env = "VSYNC_SOURCE", value_name = "NAME")]
    source: Option<MachineName>,

    /// Restore into this Docker volume [default: the volume's own name, unless it is a directory here]
    #[arg(long, value_name = "NAME", conflicts_with = "to_path")]
    to_volume: Option<VolumeName>,

    /// Restore into this directory
    #[arg(long, value_name = "DIR")]
    to_path: Option<PathBuf>,

    /// Delete what the snapshot does not have, whatever is in the directory
    #[arg(long, requires = "to_path")]
    delete: bool,

    /// The last snapshot not after this time
    #[arg(long, value_name = "TIME")]
    at: Option<String>,

    /// Only entries that fit; may be repeated
    #[arg(long, value_name = "PATTERN")]
    include: Vec<String>,

    /// No entries that fit; may be repeated
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,

    /// Label for a new volume, instead of the one it had; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,

    /// Stop containers that use the volume, and start them again afterwards
    #[arg(long)]
    stop_containers: bool,

    /// Print what would be deleted, changed and created, and how much of it; change nothing
    ///
    /// Of each the first 20 paths; with --json, all of them, one line for each.
    #[arg(short = 'n', long)]
    dry_run: bool,

    /// Read everything again afterwards and compare it with the snapshot
    ///
    /// Content, kinds, owners, modes, times, attributes, links, and that nothing else is there. What
    /// differs is named, and the exit code is 13.
    #[arg(long)]
    verify: bool,

    #[command(flatten)]
    load: LoadArgs,
}

pub(super) fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl RestoreArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let now = Zoned::now();
        let spec = self.spec(&now)?;
        self.load.settle()?;
        let session = Session::open(global, self.server.as_ref())?;
        session.remote.limit(self.load.limits());
        let snapshot = session.find(&spec, self.source.as_ref())?;
        let selection = Selection::new(spec.path, &self.include, &self.exclude)?;
        // A dry run says what differs, not what should.
        let records = Some(session.records()).filter(|_| !self.dry_run);
        let options = Options { selection, dry_run: self.dry_run, records };
        // Heard before anything is stopped for it.
        let progress = Arc::new(Progress::default());
        Stop::install()?.cancels(progress.clone());
        let body = &snapshot.body;
        // What changes nothing is nothing to record.
        let job = (!self.dry_run).then(|| Job::begin(&session, JobKind::Restore, &body.volume, Some(&body.source)));
        let work = Work { args: self, global, session: &session, snapshot: &snapshot, options, job, progress };
        let done = work.run();
        if let Some(job) = work.job {
            job.end(&done);
        }
        done
    }

    fn spec(&self, now: &Zoned) -> Result<Spec, Failure> {
        let spec = Spec::parse(&self.what, Bare::Volume, now)?;
        match &self.at {
            None => Ok(spec),
            Some(_) if spec.at != At::Latest(0) => {
                Err(Failure::new(Exit::Usage, "--at and a snapshot after @ are two answers to one question"))
            }
            Some(at) => Ok(Spec { at: At::Time(time::parse(at, now)?), ..spec }),
        }
    }
}

struct Work<'a> {
    args: &'a RestoreArgs,
    global: &'a GlobalArgs,
    session: &'a Session,
    snapshot: &'a Snapshot,
    options: Options,
    /// None for a dry run.
    job: Option<Job<'a>>,
    progress: Arc<Progress>,
}

/// Where a restore goes.
struct Destination<'a> {
    directory: &'a Path,
    /// What the command calls it.
    name: &'a str,
    /// False in a dry run into what there is not; the directory is an empty one then.
    exists: bool,
}

/// A volume that may be written now.
struct Ready {
    volume: VolumeDescription,
    created: bool,
    hold: Option<Hold>,
    access: Result<Access, DockerError>,
}

impl Work<'_> {
    fn run(&self) -> Result<Exit, Failure> {
        match &self.args.to_path {
            Some(path) => self.restore_to_directory(path),
            None => {
                let own = &self.snapshot.body.volume;
                let here = self.session.context.config.volume(own).and_then(|volume| volume.path.as_ref());
                match (&self.args.to_volume, here) {
                    (Some(volume), _) => self.restore_to_volume(volume),
                    (None, None) => self.restore_to_volume(own),
                    (None, Some(path)) => {
                        let heading = format!("{own} is a directory, {}, and no Docker volume", path.display());
                        let hint = format!("say where to: `--to-path {}`, or `--to-volume NAME`", path.display());
                        Err(Failure::new(Exit::Usage, heading).hint(hint))
                    }
                }
            }
        }
    }

    fn restore_to_directory(&self, path: &Path) -> Result<Exit, Failure> {
        if !self.args.dry_run {
            std::fs::create_dir_all(path).map_err(|error| {
                Failure::of(&error, Exit::Failed)
                    .hint(format!("choose a directory that can be made, not {}", path.display()))
            })?;
        }
        let name = path.display().to_string();
        if !path.exists() {
            return self.restore_to_nothing(&name);
        }
        if self.options.selection.is_all() && !self.args.dry_run {
            ground::claim(self.session, self.snapshot, path, self.args.delete)?;
        }
        self.restore(&Destination { directory: path, name: &name, exists: true })
    }

    /// A dry run into a place that does not exist: compared with an empty directory.
    fn restore_to_nothing(&self, target: &str) -> Result<Exit, Failure> {
        let empty = tempfile::tempdir().map_err(|error| Failure::of(&error, io_exit(&error)))?;
        self.restore(&Destination { directory: empty.path(), name: target, exists: false })
    }

    fn restore_to_volume(&self, name: &VolumeName) -> Result<Exit, Failure> {
        // It talks to the engine before and afterwards, and does not wait for what takes hours.
        let runtime = volumes::runtime()?;
        let target = format!("volume {name}");
        let Some(Ready { volume, created, hold, access }) = runtime.block_on(self.prepare(name))? else {
            return self.restore_to_nothing(&target);
        };
        let exit = match access {
            Ok(Access::Direct(path) | Access::Inside(path)) => {
                self.restore(&Destination { directory: &path, name: &target, exists: true })
            }
            Ok(Access::Helper) => {
                let job = self.job.as_ref().map(Job::id);
                let helper = Helper { global: self.global, session: self.session, volume: &volume };
                runtime.block_on(helper.restore(&self.helper_arguments(), job))
            }
            Ok(Access::Refused { reason }) => {
                Err(Failure::new(Exit::Failed, format!("{target} cannot be written: {reason}")))
            }
            Err(error) => Err(error.into()),
        };
        if created && exit.is_err() && !self.args.dry_run {
            self.note(&format!("{target} is new and incomplete; run the same command again to go on"));
        }
        match hold {
            Some(hold) => quiesce::judge(self.global, &runtime.block_on(hold.release("restored")), exit),
            None => exit,
        }
    }

    /// Makes the volume if need be, and has nobody use it; none for a dry run into one that does not exist.
    async fn prepare(&self, name: &VolumeName) -> Result<Option<Ready>, Failure> {
        let engine = quiesce::engine(self.global).await?;
        let (volume, created) = match engine.inspect_volume(name).await? {
            Some(volume) => (volume, false),
            None if self.args.dry_run => {
                self.note(&format!("volume {name} would be created"));
                return Ok(None);
            }
            None => (self.create(&engine, name).await?, true),
        };
        let hold = self.clear_the_way(&engine, &volume).await?;
        // Whatever it is, containers that were stopped are started again.
        let access = engine.access_to(&volume).await;
        Ok(Some(Ready { volume, created, hold, access }))
    }

    /// A volume as the snapshot describes its own.
    async fn create(&self, engine: &Engine, name: &VolumeName) -> Result<VolumeDescription, Failure> {
        let vault = self.session.vault(self.snapshot)?;
        let (root, _) = restore::open_tree(&self.session.remote, &vault, self.snapshot, &EntryPath::root())?;
        let options: BTreeMap<String, String> = root.volume.options.into_iter().collect();
        // Under its own name it is the volume itself that comes back; under another, a second
        // door to the same place.
        if let Some(device) = mounted_from(&options)
            && *name != self.snapshot.body.volume
        {
            let heading = format!("volume {name} would be a mount of {device}, like the one that was backed up");
            return Err(Failure::new(Exit::Failed, heading).hint(
                "what is at that place would be overwritten: make the volume as you want it (`docker volume create`) \
                 and restore into it, or use --to-path"
                    .to_owned(),
            ));
        }
        let mut labels: BTreeMap<String, String> = root.volume.labels.into_iter().collect();
        labels.extend(self.args.label.iter().cloned());
        let driver = root.volume.driver.unwrap_or_else(|| "local".to_owned());
        self.note(&format!("creating volume {name}"));
        Ok(engine.create_volume(name, &driver, &options, &labels).await?)
    }

    /// No container may have the volume open while it is written.
    async fn clear_the_way(&self, engine: &Engine, volume: &VolumeDescription) -> Result<Option<Hold>, Failure> {
        let users: Vec<_> = engine.users_of(volume).await?.into_iter().filter(|user| user.is_in_the_way()).collect();
        if users.is_empty() || self.args.dry_run {
            return Ok(None);
        }
        let names: Vec<&str> = users.iter().map(|user| user.name.as_str()).collect();
        if !self.args.stop_containers {
            let heading = format!("volume {} is in use by running containers: {}", volume.name, names.join(", "));
            return Err(Failure::new(Exit::Failed, heading).hint(format!(
                "stop them (`docker stop {}`), or let this command do it: --stop-containers",
                names.join(" ")
            )));
        }
        self.note(&format!("stopping {}", names.join(", ")));
        Ok(Some(quiesce::hold_for_restore(self.global, engine, volume, &self.progress).await?))
    }

    fn note(&self, text: &str) {
        if !self.global.quiet && !self.global.json {
            output::say(text);
        }
    }

    fn helper_arguments(&self) -> Vec<String> {
        let args = self.args;
        let volume = &self.snapshot.body.volume;
        let place = if self.options.selection.start().is_root() {
            String::new()
        } else {
            format!(":{}", String::from_utf8_lossy(self.options.selection.start().as_bytes()))
        };
        let mut arguments = vec![format!("{volume}@{}{place}", self.snapshot.id)];
        arguments.extend(args.load.arguments());
        for (flag, values) in [("--include", &args.include), ("--exclude", &args.exclude)] {
            values.iter().for_each(|value| arguments.extend([flag.to_owned(), value.clone()]));
        }
        if args.dry_run {
            arguments.push("--dry-run".to_owned());
        }
        if args.verify {
            arguments.push("--verify".to_owned());
        }
        arguments
    }
}

/// Where a volume with these options keeps its files, if that is not a place of its own: a
/// bound directory, a share. A second volume with the same options is the same place.
fn mounted_from(options: &BTreeMap<String, String>) -> Option<&str> {
    let kind = options.get("type").map_or("none", String::as_str);
    options.get("device").map(String::as_str).filter(|_| !matches!(kind, "tmpfs" | "ramfs"))
}
