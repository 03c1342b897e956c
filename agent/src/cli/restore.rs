//! `vsync restore`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Zoned;
use serde_json::json;
use vsync_protocol::id::{MachineName, VolumeName};
use vsync_protocol::tree::EntryPath;
use vsync_protocol::wire::JobKind;

use super::GlobalArgs;
use super::ground;
use super::helper;
use super::job::Job;
use super::load::LoadArgs;
use super::output;
use super::progress::Display;
use super::quiesce;
use super::report::{Exit, Failure, io_exit};
use super::session::{Session, short, timestamp};
use super::signal::Stop;
use super::spec::{At, Bare, Spec};
use super::time;
use super::volumes;
use crate::docker::{Access, DockerError, Engine, VolumeDescription};
use crate::progress::Progress;
use crate::quiesce::Hold;
use crate::restore::{self, Options, Report, Selection};
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

    /// Restore into this Docker volume [default: the volume's own name]
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

    /// Print what would be done, and how much of it; change nothing
    #[arg(short = 'n', long)]
    dry_run: bool,

    /// Read everything again afterwards and compare it with the snapshot
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
                let volume = self.args.to_volume.clone().unwrap_or_else(|| self.snapshot.body.volume.clone());
                self.restore_to_volume(&volume)
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
        if !path.exists() {
            return self.restore_to_nothing(&path.display().to_string());
        }
        if self.options.selection.is_all() && !self.args.dry_run {
            ground::claim(self.session, self.snapshot, path, self.args.delete)?;
        }
        self.restore(path, &path.display().to_string())
    }

    /// A dry run into a place that does not exist: compared with an empty directory.
    fn restore_to_nothing(&self, target: &str) -> Result<Exit, Failure> {
        let empty = tempfile::tempdir().map_err(|error| Failure::of(&error, io_exit(&error)))?;
        self.restore(empty.path(), target)
    }

    fn restore_to_volume(&self, name: &VolumeName) -> Result<Exit, Failure> {
        // It talks to the engine before and afterwards, and does not wait for what takes hours.
        let runtime = volumes::runtime()?;
        let target = format!("volume {name}");
        let Some(Ready { volume, created, hold, access }) = runtime.block_on(self.prepare(name))? else {
            return self.restore_to_nothing(&target);
        };
        let exit = match access {
            Ok(Access::Direct(path) | Access::Inside(path)) => self.restore(&path, &target),
            Ok(Access::Helper) => {
                let job = self.job.as_ref().map(Job::id);
                runtime.block_on(helper::restore(self.global, self.session, &volume, &self.helper_arguments(), job))
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

    fn restore(&self, directory: &Path, target: &str) -> Result<Exit, Failure> {
        let vault = self.session.vault(self.snapshot)?;
        let progress = &self.progress;
        if let Some(job) = &self.job {
            job.watch(progress);
        }
        let verb = if self.args.dry_run { "comparing" } else { "restoring" };
        let display = Display::start(self.global, verb, progress);
        let report = restore::run(&self.session.remote, &vault, self.snapshot, directory, &self.options, progress);
        drop(display);
        let report = report?;
        if let Some(job) = &self.job {
            job.note(|result| {
                (result.size, result.files) = (report.bytes, report.entries);
                (result.sent, result.snapshot) = (progress.written.get(), Some(self.snapshot.id));
                let inexact = report.damaged.len() + report.unrestored.len() + report.left.len();
                result.defects = inexact as u64 + self.defects(&report);
            });
        }
        self.show(&report, target)?;
        if self.args.verify && !self.args.dry_run {
            return self.verify(directory, target, &report);
        }
        Ok(exit_of(&report))
    }

    /// Compares once more, from the disk: nothing may be left to do.
    fn verify(&self, directory: &Path, target: &str, restored: &Report) -> Result<Exit, Failure> {
        let vault = self.session.vault(self.snapshot)?;
        let progress = Arc::new(Progress::default());
        let selection = Selection::new(self.options.selection.start(), &self.args.include, &self.args.exclude)?;
        let options = Options { selection, dry_run: true, records: None };
        let display = Display::start(self.global, "verifying", &progress);
        let report = restore::run(&self.session.remote, &vault, self.snapshot, directory, &options, &progress);
        drop(display);
        let report = report?;
        let differing = report.files_restored;
        if differing > 0 && restored.damaged.is_empty() {
            return Err(Failure::new(
                Exit::Damage,
                format!("{target}: {differing} files differ from the snapshot after the restore"),
            )
            .hint("somebody may be writing to it; run the same command again".to_owned()));
        }
        self.note(&format!("verified: {} files read back and equal", report.files_unchanged));
        Ok(exit_of(restored))
    }

    fn show(&self, report: &Report, target: &str) -> Result<(), Failure> {
        if self.global.json {
            return output::json(&self.summary(report, target));
        }
        for (label, list) in [("damaged", &report.damaged), ("left as it is", &report.left)] {
            output::print_first(label, list.iter().map(output::reason), list.len() as u64);
        }
        output::print_first("not restored", &report.unrestored, report.unrestored.len() as u64);
        output::print_first(
            "not exact in the snapshot",
            report.defects.iter().map(output::reason),
            self.defects(report),
        );
        if self.global.quiet {
            return Ok(());
        }
        let body = &self.snapshot.body;
        output::line(format_args!(
            "{} {} of {} from {} ({}) {} {target}: {} in {} entries, {} files {}, {} unchanged, {} deleted, {} {} in {}",
            if self.args.dry_run { "would restore" } else { "restored" },
            short(self.snapshot.id),
            body.volume,
            body.source,
            time::format(timestamp(body.started), &Zoned::now()),
            "into",
            output::size(report.bytes),
            report.entries,
            report.files_restored,
            if self.args.dry_run { "to write" } else { "written" },
            report.files_unchanged,
            report.deleted,
            output::size(report.bytes_fetched),
            if self.args.dry_run { "to fetch" } else { "fetched" },
            output::duration(report.duration),
        ))
    }

    /// How much of what was selected the snapshot has not exactly; of a whole one it lists only the first.
    fn defects(&self, report: &Report) -> u64 {
        let listed = report.defects.len() as u64;
        if self.options.selection.is_all() { listed.max(self.snapshot.sealed.defects) } else { listed }
    }

    fn summary(&self, report: &Report, target: &str) -> serde_json::Value {
        let list = |list: &[(EntryPath, String)]| {
            list.iter().map(|(path, reason)| json!({"path": path.to_string(), "reason": reason})).collect::<Vec<_>>()
        };
        json!({
            "message_type": "summary",
            "snapshot_id": self.snapshot.id.to_string(),
            "target": target,
            "dry_run": self.args.dry_run,
            "total_files": report.entries,
            "files_restored": report.files_restored,
            "files_skipped": report.files_unchanged,
            "files_deleted": report.deleted,
            "total_bytes": report.bytes,
            "bytes_restored": report.bytes_fetched,
            "files_opened": report.files_opened,
            "bytes_read": report.bytes_read,
            "bytes_skipped": report.bytes.saturating_sub(report.bytes_fetched),
            "damaged": list(&report.damaged),
            "left": list(&report.left),
            "defects": list(&report.defects),
            "unrestored": report.unrestored.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "total_duration": report.duration.as_secs_f64(),
        })
    }
}

/// Where a volume with these options keeps its files, if that is not a place of its own: a
/// bound directory, a share. A second volume with the same options is the same place.
fn mounted_from(options: &BTreeMap<String, String>) -> Option<&str> {
    let kind = options.get("type").map_or("none", String::as_str);
    options.get("device").map(String::as_str).filter(|_| !matches!(kind, "tmpfs" | "ramfs"))
}

fn exit_of(report: &Report) -> Exit {
    if !report.damaged.is_empty() {
        Exit::Damage
    } else if report.is_exact() {
        Exit::Exact
    } else {
        Exit::Defects
    }
}
