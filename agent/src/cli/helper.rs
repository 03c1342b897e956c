//! Volumes that only a container can reach: the same command runs in a helper container.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use vsync_protocol::id::{JobId, VolumeName};
use zeroize::Zeroizing;

use super::GlobalArgs;
use super::job;
use super::load::LoadArgs;
use super::report::{Exit, Failure};
use super::session::Session;
use super::signal;
use super::volumes;
use crate::config::Quiesce;
use crate::docker::{
    CONFIG_INSIDE, DEFAULT_IMAGE, Engine, HelperFile, HelperJob, HelperOutput, STATE_INSIDE, VOLUMES_INSIDE,
    VolumeDescription, VolumeUse,
};
use crate::keys::{KeyStore, recovery_machine};

/// A volume whose files a helper container reaches.
#[derive(Clone, Copy)]
pub(super) struct Helper<'a> {
    pub(super) global: &'a GlobalArgs,
    pub(super) session: &'a Session,
    pub(super) volume: &'a VolumeDescription,
}

/// What a helper is told of the backup that it makes.
pub(super) struct HelperBackup<'a> {
    pub(super) tags: &'a [String],
    pub(super) load: &'a LoadArgs,
    /// How what uses the volume is held, by us.
    pub(super) held: Quiesce,
    pub(super) job: JobId,
}

impl Helper<'_> {
    /// Backs the volume up, and returns the summary of the snapshot.
    pub(super) fn backup(self, backup: &HelperBackup<'_>) -> Result<(Exit, Value), Failure> {
        let HelperBackup { tags, load, held, job } = backup;
        let mut arguments = vec!["backup".to_owned(), self.volume.name.to_string()];
        tags.iter().for_each(|tag| arguments.extend(["--tag".to_owned(), tag.clone()]));
        arguments.extend(load.arguments());
        // What it says is put into words here.
        arguments.extend(["--held", held.word(), "--json"].map(str::to_owned));
        if !self.global.json {
            arguments.push("--no-progress".to_owned());
        }
        let mut said = Said { json: self.global.json, ..Said::default() };
        let mut listen = |output: HelperOutput<'_>| said.take(output);
        let exit = volumes::block_on(self.run(VolumeUse::Read, arguments, Some(*job), &mut listen))??;
        match (said.summary(), said.failure) {
            (Some(summary), None) => Ok((exit, summary)),
            (_, Some(failure)) => Err(Failure { code: exit, ..failure }),
            (None, None) => {
                let code = if exit == Exit::Exact { Exit::Failed } else { exit };
                let heading = format!("the helper container for {} ended without a word", self.volume.name);
                Err(Failure::new(code, heading))
            }
        }
    }

    /// Restores `what` into the volume.
    pub(super) async fn restore(self, what: &[String], job: Option<JobId>) -> Result<Exit, Failure> {
        let mut arguments = vec!["restore".to_owned()];
        arguments.extend(what.iter().cloned());
        // Whoever names a volume wants it as the snapshot is.
        let path = format!("{VOLUMES_INSIDE}/{}", self.volume.name);
        arguments.extend(["--to-path".to_owned(), path, "--delete".to_owned()]);
        if self.global.json {
            arguments.push("--json".to_owned());
        }
        self.run(VolumeUse::Write, arguments, job, &mut pass_on).await
    }

    async fn run(
        self,
        volume_use: VolumeUse,
        mut arguments: Vec<String>,
        job: Option<JobId>,
        listen: &mut dyn FnMut(HelperOutput<'_>),
    ) -> Result<Exit, Failure> {
        let Self { global, session, volume } = self;
        let server = session.context.config.server(Some(session.remote.server()))?;
        if server.address.is_none() {
            return Err(Failure::new(
                Exit::Failed,
                format!(
                    "volume {} can only be reached by a container, which cannot use the embedded server",
                    volume.name
                ),
            )
            .hint("use a server with an address, or a volume of the local driver without options".to_owned()));
        }
        if session.context.bundle.machine == recovery_machine() {
            return Err(Failure::new(
                Exit::Failed,
                format!("volume {} can only be reached by a container, which cannot use the recovery kit", volume.name),
            )
            .hint(
                "restore with --to-path, or make this machine part of the realm again: `vsync init --kit FILE`"
                    .to_owned(),
            ));
        }
        arguments.extend(["--server".to_owned(), session.remote.server().to_string()]);
        if global.quiet {
            arguments.push("--quiet".to_owned());
        }
        let image = std::env::var("VSYNC_IMAGE").unwrap_or_else(|_| DEFAULT_IMAGE.to_owned());
        let helper = HelperJob {
            image,
            volume: volume.name.clone(),
            volume_use,
            arguments,
            environment: environment(session, job),
            files: files(session, volume)?,
        };
        let engine = Engine::connect().await?;
        let code = tokio::select! {
            code = engine.run_helper(&helper, listen) => code?,
            // The helper goes with what waited for it.
            () = signal::asked() => {
                return Err(Failure::new(Exit::Interrupted, format!("interrupted: the helper container for {} was stopped", volume.name)));
            }
        };
        Exit::from_code(code).ok_or_else(|| {
            Failure::new(Exit::Failed, format!("the helper container for {} ended with code {code}", volume.name))
        })
    }
}

/// What a helper says in JSON, as it comes.
#[derive(Default)]
struct Said {
    /// What is asked for here, too: then all but the summary is passed on at once.
    json: bool,
    /// The line that came last, whole or not.
    last: Vec<u8>,
    pending: Vec<u8>,
    failure: Option<Failure>,
}

impl Said {
    fn take(&mut self, output: HelperOutput<'_>) {
        match output {
            HelperOutput::Out(bytes) => {
                for part in bytes.split_inclusive(|&byte| byte == b'\n') {
                    if self.last.ends_with(b"\n") {
                        let line = std::mem::take(&mut self.last);
                        if self.json {
                            pass_on(HelperOutput::Out(&line));
                        }
                    }
                    self.last.extend_from_slice(part);
                }
            }
            HelperOutput::Err(bytes) => {
                self.pending.extend_from_slice(bytes);
                while let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') {
                    let line: Vec<u8> = self.pending.drain(..=end).collect();
                    self.line(&line);
                }
            }
        }
    }

    /// Its error becomes ours; everything else is passed on.
    fn line(&mut self, line: &[u8]) {
        let value: Option<Value> = serde_json::from_slice(line).ok();
        match value.filter(|value| value["message_type"] == "exit_error") {
            Some(error) => {
                let text = |key: &str| error[key].as_str().map(str::to_owned);
                let heading = text("message").unwrap_or_default();
                self.failure = Some(Failure::new(Exit::Failed, heading).hint(text("hint")));
            }
            None => pass_on(HelperOutput::Err(line)),
        }
    }

    /// The last line.
    fn summary(&self) -> Option<Value> {
        let last = serde_json::from_slice::<Value>(&self.last).ok();
        last.filter(|value| value["message_type"] == "summary")
    }
}

fn environment(session: &Session, job: Option<JobId>) -> BTreeMap<String, String> {
    let variables = [
        ("VSYNC_CONFIG", format!("{CONFIG_INSIDE}/vsync.toml")),
        ("VSYNC_KEYS", format!("{CONFIG_INSIDE}/keys")),
        ("VSYNC_AS", session.context.bundle.machine.to_string()),
        ("VSYNC_STATE_DIR", STATE_INSIDE.to_owned()),
    ];
    // The helper tells of its work as of this command's.
    let job = job.map(|job| (job::VARIABLE, job.to_string()));
    variables.into_iter().chain(job).map(|(name, value)| (name.to_owned(), value)).collect()
}

/// What the engine says of the volume, for a helper, which cannot ask it.
#[derive(Serialize, Deserialize)]
struct Told {
    driver: String,
    options: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
}

const TOLD: &str = "volume.json";

/// The volume that this process was started for as a helper, mounted at `path`.
pub(super) fn told(name: &VolumeName, path: PathBuf) -> Option<VolumeDescription> {
    let text = std::fs::read(Path::new(CONFIG_INSIDE).join(TOLD)).ok()?;
    let Told { driver, options, labels } = serde_json::from_slice(&text).ok()?;
    Some(VolumeDescription { name: name.clone(), driver, options, labels, mountpoint: path })
}

/// Configuration, this machine's keys and no others, and what the volume is.
fn files(session: &Session, volume: &VolumeDescription) -> Result<Vec<HelperFile>, Failure> {
    let context = &session.context;
    let machine = &context.bundle.machine;
    let read = |path: &Path| std::fs::read(path).map(Zeroizing::new).map_err(|error| Failure::of(&error, Exit::Failed));
    let told = Told { driver: volume.driver.clone(), options: volume.options.clone(), labels: volume.labels.clone() };
    let told = serde_json::to_vec(&told).map_err(|error| Failure::of(&error, Exit::Failed))?;
    Ok(vec![
        HelperFile { path: TOLD.into(), contents: Zeroizing::new(told) },
        HelperFile { path: "vsync.toml".into(), contents: read(&context.config.path)? },
        HelperFile { path: "vsync.pub".into(), contents: read(&context.config.registry_path())? },
        HelperFile {
            path: format!("keys/machines/{machine}.key"),
            contents: Zeroizing::new(KeyStore::new(&context.config.keys).machine_text(machine)?.as_bytes().to_vec()),
        },
    ])
}

/// What the helper prints is what this command prints.
fn pass_on(output: HelperOutput<'_>) {
    // If it cannot be printed, the exit code still tells.
    let _ = match output {
        HelperOutput::Out(bytes) => std::io::stdout().write_all(bytes),
        HelperOutput::Err(bytes) => std::io::stderr().write_all(bytes),
    };
}
