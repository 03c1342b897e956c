//! Helpers: vsync commands that run in a container of their own, next to the volume.
//!
//! What a helper must know secretly arrives as files, through the engine's archive API, before it starts. Neither its
//! command line nor its environment may carry secrets: `docker inspect` shows both. The files live in the container's
//! own layer, and go with it, so a helper is removed whatever happens, and what a crash left behind is swept later.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bollard::body_stream;
use bollard::container::{AttachContainerResults, LogOutput};
use bollard::errors::Error as EngineError;
use bollard::models::{ContainerCreateBody, HostConfig, HostConfigLogConfig, Mount, MountType, MountVolumeOptions};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder,
    UploadToContainerOptionsBuilder, WaitContainerOptionsBuilder,
};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use vsync_protocol::id::VolumeName;
use zeroize::Zeroizing;

use super::engine::Engine;
use super::error::{DockerError, found};
use super::tar::{Archive, BadPath};
use super::{CONFIG_INSIDE, STATE_INSIDE, STATE_VOLUME, VOLUMES_INSIDE, rescue};

/// A vsync command to run next to a volume.
#[derive(Debug)]
pub struct HelperJob {
    /// The image whose entry point is vsync; [`DEFAULT_IMAGE`](super::DEFAULT_IMAGE) unless configured.
    pub image: String,
    /// The volume, mounted at `/vsync/volumes/<name>`. It must exist.
    pub volume: VolumeName,
    /// What the command does to the volume.
    pub volume_use: VolumeUse,
    /// Arguments for the image's entry point. Visible to all: no secrets.
    pub arguments: Vec<String>,
    /// Environment. Visible to those who may talk to the engine: no secrets.
    pub environment: BTreeMap<String, String>,
    /// Files for `/vsync/config`, keys among them.
    pub files: Vec<HelperFile>,
}

/// What a helper does to its volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeUse {
    /// Backup: the volume is mounted read-only.
    Read,
    /// Restore.
    Write,
}

/// A file that is handed to a helper, readable by it alone.
#[derive(Clone)]
pub struct HelperFile {
    /// Path below `/vsync/config`.
    pub path: String,
    /// Its contents, wiped when dropped.
    pub contents: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for HelperFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HelperFile").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Some output of a helper, as it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HelperOutput<'a> {
    /// For our standard output.
    Out(&'a [u8]),
    /// For our standard error.
    Err(&'a [u8]),
}

impl Engine {
    /// Runs a helper to its end, passing on its output, and returns its exit code.
    ///
    /// If the future is dropped, the helper is killed and removed.
    pub async fn run_helper(
        &self,
        job: &HelperJob,
        output: &mut dyn FnMut(HelperOutput<'_>),
    ) -> Result<u8, DockerError> {
        let files = config_archive(&job.files)?;
        if self.inspect_volume(&job.volume).await?.is_none() {
            let host = self.host().to_owned();
            return Err(DockerError::NoSuchVolume { volume: job.volume.clone(), host });
        }
        self.ensure_helper_image(&job.image).await?;
        self.sweep_helpers().await;

        let helper = Helper::create(self, job).await?;
        let exit_code = helper.run(files, output).await;
        let removed = helper.remove().await;
        let exit_code = exit_code?;
        // The command is done: a container that stays behind is a nuisance, not a failed backup.
        if let Err(error) = removed {
            tracing::warn!(%error, "A helper was left behind");
        }
        Ok(exit_code)
    }
}

/// A helper's container. Removed when dropped, with what it was handed.
struct Helper {
    engine: Engine,
    name: String,
    removed: bool,
}

impl Helper {
    async fn create(engine: &Engine, job: &HelperJob) -> Result<Self, DockerError> {
        let name = format!("vsync-helper-{}-{}", job.volume, unique());
        // The guard exists before the container does, as creating may be cancelled on its way.
        let helper = Self { engine: engine.clone(), name, removed: false };
        let options = CreateContainerOptionsBuilder::default().name(&helper.name).build();
        let created = engine.client().create_container(Some(options), container_for(job)).await;
        created.map_err(DockerError::container("create", &helper.name))?;
        Ok(helper)
    }

    async fn run(&self, files: Bytes, output: &mut dyn FnMut(HelperOutput<'_>)) -> Result<u8, DockerError> {
        let engine = self.engine.client();
        let failed = |action| DockerError::container(action, &self.name);

        let into_root = UploadToContainerOptionsBuilder::default().path("/").build();
        // A stream, because the engine client may log bodies that it holds as a whole.
        let upload = engine.upload_to_container(&self.name, Some(into_root), body_stream(stream::iter([files])));
        upload.await.map_err(failed("hand files to"))?;

        // Attached before it starts, or its first words would be lost: it has no log.
        let everything = AttachContainerOptionsBuilder::default().stream(true).stdout(true).stderr(true).build();
        let attached = engine.attach_container(&self.name, Some(everything)).await.map_err(failed("attach to"))?;
        engine.start_container(&self.name, None).await.map_err(failed("start"))?;
        pass_on(attached, output).await.map_err(failed("read the output of"))?;
        self.exit_code().await
    }

    async fn exit_code(&self) -> Result<u8, DockerError> {
        let ended = WaitContainerOptionsBuilder::default().condition("not-running").build();
        let answer = self.engine.client().wait_container(&self.name, Some(ended)).boxed().next().await;
        let lost = |reason: String| DockerError::HelperLost { container: self.name.clone(), reason };
        let code = match answer {
            Some(Ok(answer)) => answer.status_code,
            // The client library takes any code but 0 for an error.
            Some(Err(EngineError::DockerContainerWaitError { code, error })) if error.is_empty() => code,
            Some(Err(error)) => return Err(lost(error.to_string())),
            None => return Err(lost("the engine closed the connection".into())),
        };
        u8::try_from(code).map_err(|_| lost(format!("exit code {code}")))
    }

    async fn remove(mut self) -> Result<(), DockerError> {
        remove(&self.engine, &self.name).await?;
        self.removed = true;
        Ok(())
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if self.removed {
            return;
        }
        let name = self.name.clone();
        rescue::run_now(&self.engine, &format!("remove helper {name}"), RESCUE_WITHIN, async move |engine| {
            if let Err(error) = remove(&engine, &name).await {
                tracing::error!(%error, "A helper was left behind");
            }
        });
    }
}

/// Kills and removes a container. One that is gone already is fine.
pub(super) async fn remove(engine: &Engine, container: &str) -> Result<(), DockerError> {
    let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
    let answer = engine.client().remove_container(container, Some(options)).await;
    found(answer).map(|_| ()).map_err(DockerError::container("remove", container))
}

async fn pass_on(
    mut attached: AttachContainerResults,
    output: &mut dyn FnMut(HelperOutput<'_>),
) -> Result<(), EngineError> {
    while let Some(piece) = attached.output.next().await {
        match piece? {
            LogOutput::StdErr { message } => output(HelperOutput::Err(&message)),
            LogOutput::StdOut { message } | LogOutput::Console { message } => output(HelperOutput::Out(&message)),
            LogOutput::StdIn { .. } => {}
        }
    }
    Ok(())
}

/// The files below `/vsync/config`, and the directories that lead to them, for the helper's root alone.
fn config_archive(files: &[HelperFile]) -> Result<Bytes, DockerError> {
    let write = || {
        let mut archive = Archive::default();
        archive.directory("vsync", 0o755)?;
        let config = CONFIG_INSIDE.trim_start_matches('/');
        archive.directory(config, 0o700)?;
        for file in files {
            let path = format!("{config}/{}", file.path);
            let ends = path.match_indices('/').map(|(end, _)| end).filter(|&end| end > config.len());
            for end in ends {
                archive.directory(&path[..end], 0o700)?;
            }
            archive.file(&path, 0o600, &file.contents)?;
        }
        Ok(archive.finish())
    };
    write().map_err(|BadPath(path)| DockerError::HelperFile { path })
}

fn container_for(job: &HelperJob) -> ContainerCreateBody {
    ContainerCreateBody {
        image: Some(job.image.clone()),
        cmd: Some(job.arguments.clone()),
        env: Some(job.environment.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        user: Some("0:0".to_owned()),
        labels: Some(HashMap::from([(HELPER_LABEL.to_owned(), job.volume.to_string())])),
        host_config: Some(host_config(job)),
        ..Default::default()
    }
}

fn host_config(job: &HelperJob) -> HostConfig {
    let volume_at = format!("{VOLUMES_INSIDE}/{}", job.volume);
    HostConfig {
        mounts: Some(vec![
            mount(job.volume.as_str(), volume_at, job.volume_use),
            mount(STATE_VOLUME, STATE_INSIDE.to_owned(), VolumeUse::Write),
        ]),
        // As if we ran on the engine's machine: its routes to the server, and its numbers of users and groups.
        network_mode: Some("host".to_owned()),
        userns_mode: Some("host".to_owned()),
        cap_drop: Some(vec!["ALL".to_owned()]),
        cap_add: Some(capabilities(job.volume_use).iter().map(|&name| name.to_owned()).collect()),
        // SELinux would keep us from files that are labelled for the containers that own them.
        security_opt: Some(vec!["no-new-privileges".to_owned(), "label=disable".to_owned()]),
        // We listen to it; the engine need not keep what it says.
        log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
        ..Default::default()
    }
}

fn mount(volume: &str, target: String, volume_use: VolumeUse) -> Mount {
    Mount {
        typ: Some(MountType::VOLUME),
        source: Some(volume.to_owned()),
        target: Some(target),
        read_only: Some(volume_use == VolumeUse::Read),
        // An empty volume is to stay as it is, and not become a copy of the image's directory.
        volume_options: Some(MountVolumeOptions { no_copy: Some(true), ..Default::default() }),
        ..Default::default()
    }
}

/// What root needs to read, or to recreate, files of any owner.
fn capabilities(volume_use: VolumeUse) -> &'static [&'static str] {
    match volume_use {
        VolumeUse::Read => &["DAC_READ_SEARCH", "FOWNER"], // FOWNER to leave access times alone
        VolumeUse::Write => &["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "MKNOD", "SETFCAP"],
    }
}

/// Helpers of the same volume may run at the same time, from several processes.
fn unique() -> String {
    getrandom::u32().map_or_else(|_| std::process::id().to_string(), |number| format!("{number:08x}"))
}

/// Marks a helper's container; its value is the volume's name.
pub(super) const HELPER_LABEL: &str = "vsync.helper";
const RESCUE_WITHIN: Duration = Duration::from_secs(30);
