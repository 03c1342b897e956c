//! `vsync import`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use vsync_protocol::id::VolumeName;

use super::GlobalArgs;
use super::output;
use super::progress::Display;
use super::report::{Exit, Failure};
use super::signal::Stop;
use super::volumes;
use crate::docker::{Access, DockerError, Engine, VolumeDescription};
use crate::progress::Progress;
use crate::unpack::{self, UnpackReport};

/// Unpack a tar archive into a new Docker volume
///
/// Takes archives of `vsync export`, of privateer, of GNU tar with --xattrs, --acls and
/// --sparse, compressed with gzip or zstd or not. Needs no configuration. A volume that exists is
/// refused, and one that could not be filled is removed again. An archive that names places
/// outside of the volume is refused.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vsync import production-redis_data-20261120-020000.tar redis_data
  xz -dc old.tar.xz | vsync import - restored
  vsync import offen-backup.tar.gz redis_data --strip-components 2")]
pub(super) struct ImportArgs {
    /// The archive; `-` for stdin
    #[arg(value_name = "TARFILE")]
    file: PathBuf,

    /// The volume, which must not exist
    #[arg(value_name = "VOLUME", required_unless_present = "to_path", conflicts_with = "to_path")]
    volume: Option<VolumeName>,

    /// Unpack into this directory, which must be empty or absent, instead of a volume
    #[arg(long, value_name = "DIR")]
    to_path: Option<PathBuf>,

    /// Leave out so many components at the beginning of each name
    #[arg(long, value_name = "N", default_value_t = 0)]
    strip_components: usize,

    /// Label for the new volume; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = super::restore::label)]
    label: Vec<(String, String)>,
}

impl ImportArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        match (&self.volume, &self.to_path) {
            (Some(volume), _) => self.fill_volume(global, volume),
            (None, Some(path)) => {
                std::fs::create_dir_all(path).map_err(|error| {
                    Failure::of(&error, Exit::Failed)
                        .hint(format!("choose a directory that can be made, not {}", path.display()))
                })?;
                self.unpack(global, path, &path.display().to_string())
            }
            (None, None) => Err(Failure::new(Exit::Usage, "no volume given")),
        }
    }

    fn fill_volume(&self, global: &GlobalArgs, name: &VolumeName) -> Result<Exit, Failure> {
        // Before anything is made.
        let input = self.open()?;
        // It talks to the engine before and afterwards, and does not wait for what takes long.
        let runtime = volumes::runtime()?;
        let (engine, volume, access) = runtime.block_on(self.create(name))?;
        let outcome = match access {
            Ok(Access::Direct(path) | Access::Inside(path)) => {
                self.unpack_from(global, input, &path, &format!("volume {name}"))
            }
            Ok(Access::Helper) => Err(Failure::new(
                Exit::Failed,
                format!("the directory {} of volume {name} cannot be written from here", volume.mountpoint.display()),
            )
            .hint("run this as root on the machine of the Docker engine".to_owned())),
            Ok(Access::Refused { reason }) => {
                Err(Failure::new(Exit::Failed, format!("volume {name} cannot be written: {reason}")))
            }
            Err(error) => Err(error.into()),
        };
        if outcome.is_err()
            && let Err(error) = runtime.block_on(engine.remove_volume(name))
        {
            output::say(format_args!("volume {name} is incomplete and could not be removed again: {error}"));
        }
        outcome
    }

    /// Makes the volume, and finds out how it can be written.
    async fn create(
        &self,
        name: &VolumeName,
    ) -> Result<(Engine, VolumeDescription, Result<Access, DockerError>), Failure> {
        let engine = Engine::connect().await?;
        if engine.inspect_volume(name).await?.is_some() {
            return Err(Failure::new(Exit::Failed, format!("volume {name} exists already; nothing was changed"))
                .hint(format!("choose another name, or remove it first: `docker volume rm {name}`")));
        }
        let labels: BTreeMap<String, String> = self.label.iter().cloned().collect();
        let volume = engine.create_volume(name, "local", &BTreeMap::default(), &labels).await?;
        let access = engine.access_to(&volume).await;
        Ok((engine, volume, access))
    }

    fn open(&self) -> Result<Box<dyn Read>, Failure> {
        if self.file == Path::new("-") {
            return Ok(Box::new(io::stdin()));
        }
        let failed = |error: io::Error| {
            let code = if error.kind() == io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Failed };
            Failure {
                causes: vec![error.to_string()],
                ..Failure::new(code, format!("cannot read {}", self.file.display()))
            }
        };
        let file = File::open(&self.file).map_err(failed)?;
        if file.metadata().map_err(failed)?.is_dir() {
            return Err(Failure::new(Exit::Usage, format!("{} is a directory, not an archive", self.file.display())));
        }
        Ok(Box::new(file))
    }

    fn unpack(&self, global: &GlobalArgs, directory: &Path, target: &str) -> Result<Exit, Failure> {
        self.unpack_from(global, self.open()?, directory, target)
    }

    fn unpack_from(
        &self,
        global: &GlobalArgs,
        input: Box<dyn Read>,
        directory: &Path,
        target: &str,
    ) -> Result<Exit, Failure> {
        let progress = Arc::new(Progress::default());
        Stop::install()?.cancels(progress.clone());
        let display = Display::start(global, "importing", &progress);
        let report = unpack::run(input, directory, self.strip_components, &progress);
        drop(display);
        let report = report?;
        self.show(global, &report, target)?;
        Ok(if report.is_exact() { Exit::Exact } else { Exit::Defects })
    }

    fn show(&self, global: &GlobalArgs, report: &UnpackReport, target: &str) -> Result<(), Failure> {
        if global.json {
            return output::json(&json!({
                "message_type": "summary",
                "target": target,
                "total_files": report.entries,
                "total_bytes": report.bytes,
                "unrestored": report.unrestored.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "lost": report.lost.iter().map(|(path, what)| format!("{path}: {what}")).collect::<Vec<_>>(),
                "total_duration": report.duration.as_secs_f64(),
            }));
        }
        output::print_first("not restored", &report.unrestored, report.unrestored.len() as u64);
        output::print_first("not restored", report.lost.iter().map(output::reason), report.lost.len() as u64);
        if global.quiet {
            return Ok(());
        }
        output::line(format_args!(
            "imported {} into {target}: {} in {} entries in {}",
            self.file.display(),
            output::size(report.bytes),
            report.entries,
            output::duration(report.duration)
        ))
    }
}
