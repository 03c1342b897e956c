//! `vsync import-privateer`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use vsync_protocol::id::{MachineName, VolumeName};
use vsync_protocol::tree::VolumeInfo;
use vsync_protocol::wire::{JobKind, Listing, Request};

use super::GlobalArgs;
use super::backup::Making;
use super::forget::order;
use super::job::Job;
use super::moved_in;
use super::output;
use super::report::{Exit, Failure};
use super::session::{Session, short};
use super::signal::Stop;
use super::volumes;
use crate::backup::{Options, Report, Source};
use crate::docker::{Access, Engine};
use crate::progress::Progress;

/// Make first snapshots of what privateer has stored
///
/// To be run on the host of privateer's server, as one of the realm's servers that may write
/// (`role = "writer"` in its entry is enough). Every directory CLIENT/VOLUME of privateer's data
/// volume becomes a snapshot, tagged `privateer=CLIENT/VOLUME` and pinned, which is found as
/// `--source CLIENT`. What was imported is skipped, so that it can be run again. With `--as CLIENT`,
/// and that machine's key, its own directories become its own snapshots.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vsync import-privateer privateer_montagu_data
  vsync import-privateer /srv/privateer --dry-run")]
pub(super) struct ImportPrivateerArgs {
    /// privateer's data volume, or a directory like it
    #[arg(value_name = "DATA_VOLUME_OR_PATH")]
    place: PathBuf,

    /// The server to import into [default: this one, else the only one]
    #[arg(long, env = "VSYNC_SERVER", value_name = "NAME")]
    server: Option<MachineName>,

    /// Print what would be imported
    #[arg(short = 'n', long)]
    dry_run: bool,
}

/// One directory of privateer's.
struct Found {
    client: MachineName,
    volume: VolumeName,
    directory: PathBuf,
}

/// What became of it.
enum Outcome {
    Imported(Box<Report>),
    Skipped,
    Listed,
}

impl ImportPrivateerArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let root = self.root()?;
        let (found, odd) = look(&root)?;
        for path in &odd {
            output::say(format_args!("skipped: {} is no CLIENT/VOLUME directory", path.display()));
        }
        if found.is_empty() {
            let heading = format!("{} holds nothing of privateer's: no directory CLIENT/VOLUME", root.display());
            return Err(Failure::new(Exit::NotFound, heading)
                .hint("name the volume that is `data_volume` of this server in privateer.json".to_owned()));
        }
        let context = super::context::Context::load(global)?;
        let me = context.bundle.machine.clone();
        let servers = &context.config.servers;
        let is_server = servers.iter().any(|server| server.machine.name == me);
        let server = self.server.clone().or_else(|| is_server.then(|| me.clone()));
        let session = Session::with(context, server.as_ref())?;
        let work = Work { args: self, global, session: &session, me, is_server };
        let mut exit = if odd.is_empty() { Exit::Exact } else { Exit::Defects };
        for found in found {
            let outcome = work.import(&found)?;
            if matches!(&outcome, Outcome::Imported(report) if report.defect_count > 0) {
                exit = Exit::Defects;
            }
            work.show(&found, &outcome)?;
        }
        Ok(exit)
    }

    /// Where privateer's directories are.
    fn root(&self) -> Result<PathBuf, Failure> {
        if self.place.is_dir() {
            return Ok(self.place.clone());
        }
        let name = self.place.to_str().and_then(|name| name.parse::<VolumeName>().ok());
        let Some(name) = name else {
            return Err(Failure::new(Exit::NotFound, format!("there is no directory {}", self.place.display())));
        };
        volumes::block_on(async {
            let engine = Engine::connect().await?;
            let Some(volume) = engine.inspect_volume(&name).await? else {
                let heading = format!("there is neither a volume nor a directory {name}");
                return Err(Failure::new(Exit::NotFound, heading).hint(
                    "`docker volume ls` lists volumes; privateer.json names its own as `data_volume`".to_owned(),
                ));
            };
            match engine.access_to(&volume).await? {
                Access::Direct(path) | Access::Inside(path) => Ok(path),
                Access::Helper => Err(Failure::new(
                    Exit::Failed,
                    format!("the directory {} of volume {name} cannot be read from here", volume.mountpoint.display()),
                )
                .hint("run this as root on the machine of the Docker engine".to_owned())),
                Access::Refused { reason } => {
                    Err(Failure::new(Exit::Failed, format!("{name} cannot be read: {reason}")))
                }
            }
        })?
    }
}

/// The directories CLIENT/VOLUME below `root`, and what else is there.
fn look(root: &Path) -> Result<(Vec<Found>, Vec<PathBuf>), Failure> {
    let (mut found, mut odd) = (Vec::new(), Vec::new());
    for (client, path) in directories(root, &mut odd)? {
        let Ok(client) = client.parse::<MachineName>() else {
            odd.push(path);
            continue;
        };
        for (volume, directory) in directories(&path, &mut odd)? {
            match volume.parse() {
                Ok(volume) => found.push(Found { client: client.clone(), volume, directory }),
                Err(_) => odd.push(directory),
            }
        }
    }
    Ok((found, odd))
}

/// The directories in `path` by name; the rest is odd. No link is followed.
fn directories(path: &Path, odd: &mut Vec<PathBuf>) -> Result<Vec<(String, PathBuf)>, Failure> {
    let failed = |error: std::io::Error| Failure {
        causes: vec![error.to_string()],
        ..Failure::new(Exit::Failed, format!("cannot list {}", path.display()))
    };
    let mut directories = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let is_directory = entry.file_type().map_err(failed)?.is_dir();
        match entry.file_name().into_string() {
            // ext4's own, where a whole file system is the volume.
            Ok(name) if name == "lost+found" => {}
            Ok(name) if is_directory => directories.push((name, entry.path())),
            _ => odd.push(entry.path()),
        }
    }
    directories.sort();
    Ok(directories)
}

struct Work<'a> {
    args: &'a ImportPrivateerArgs,
    global: &'a GlobalArgs,
    session: &'a Session,
    me: MachineName,
    is_server: bool,
}

impl Work<'_> {
    fn import(&self, found: &Found) -> Result<Outcome, Failure> {
        let own = found.client == self.me;
        if !own && !self.is_server {
            let heading = format!("{} cannot vouch for what is {}'s: only servers can", self.me, found.client);
            return Err(Failure::new(Exit::NotAuthorised, heading)
                .hint("run this as one of the realm's servers (`--as NAME`)".to_owned()));
        }
        let tag = moved_in::tag(&found.client, &found.volume);
        if self.is_there(found, &tag)? {
            return Ok(Outcome::Skipped);
        }
        if self.args.dry_run {
            return Ok(Outcome::Listed);
        }
        let job = Job::begin(self.session, JobKind::Backup, &found.volume, None);
        let report = self.back_up(found, tag, &job);
        let exact = |report: &Report| report.defect_count == 0;
        let exit = |report| (if exact(report) { Exit::Exact } else { Exit::Defects }, &[] as &[String]);
        job.end_with(report.as_ref().map(exit));
        let report = report?;
        // The history that starts here is the only one: no rule of retention was made for it.
        if !own {
            order(self.session, &Request::Pin { id: report.snapshot })?;
        }
        Ok(Outcome::Imported(Box::new(report)))
    }

    fn is_there(&self, found: &Found, tag: &str) -> Result<bool, Failure> {
        let listing =
            Listing { volume: Some(found.volume.clone()), source: Some(self.me.clone()), ..Listing::default() };
        let tagged = |tags: &[String]| tags.iter().any(|known| known == tag);
        let listed = self.session.list(&listing, |listed| tagged(&listed.body.tags))?;
        Ok(listed.iter().any(|listed| tagged(&listed.body.tags)))
    }

    fn back_up(&self, found: &Found, tag: String, job: &Job<'_>) -> Result<Report, Failure> {
        let Found { volume, directory, .. } = found;
        let session = self.session;
        session.writer().map_err(|failure| {
            failure.hint(format!(
                "give {me} `role = \"writer\"` in vsync.toml, make its keys with `vsync keygen {me} --rotate`, bring key \
                 file and vsync.pub here and restart the server",
                me = self.me
            ))
        })?;
        let progress = Arc::new(Progress::default());
        Stop::install()?.cancels(progress.clone());
        job.watch(&progress);
        let options = Options {
            volume: volume.clone(),
            // privateer kept nothing else of it.
            info: VolumeInfo {
                kind: "volume".into(),
                driver: Some("local".into()),
                options: vec![],
                labels: vec![],
                quiesce: "none".into(),
            },
            tags: vec![tag],
            profile: volumes::profile(&session.context.config, volume),
        };
        let making = Making { global: self.global, session, verb: "importing", progress: &progress };
        let report = making.run(Source::Directory(directory), &options, None)?;
        job.made(&report, progress.read.get());
        Ok(report)
    }

    fn show(&self, found: &Found, outcome: &Outcome) -> Result<(), Failure> {
        let Found { client, volume, .. } = found;
        let (word, report) = match outcome {
            Outcome::Imported(report) => ("imported", Some(report)),
            Outcome::Skipped => ("skipped", None),
            Outcome::Listed => ("would import", None),
        };
        if self.global.json {
            return output::json(&json!({
                "message_type": "import",
                "client": client.as_str(),
                "volume": volume.as_str(),
                "done": word,
                "snapshot_id": report.map(|report| report.snapshot.to_string()),
                "total_files": report.map(|report| report.totals.entries),
                "total_bytes": report.map(|report| report.totals.bytes),
                "defect_count": report.map(|report| report.defect_count),
            }));
        }
        for (path, reason) in report.iter().flat_map(|report| &report.defects) {
            output::say(format_args!("not exact: {client}/{volume}/{path}: {reason}"));
        }
        if self.global.quiet {
            return Ok(());
        }
        match report {
            Some(report) => output::line(format_args!(
                "imported {client}/{volume}: snapshot {}, {} in {} entries",
                short(report.snapshot),
                output::size(report.totals.bytes),
                report.totals.entries
            )),
            None if matches!(outcome, Outcome::Skipped) => {
                output::line(format_args!("skipped {client}/{volume}: it was imported before"))
            }
            None => output::line(format_args!("would import {client}/{volume}")),
        }
    }
}
