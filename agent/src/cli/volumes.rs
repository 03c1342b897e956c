//! From a volume's name to a directory that can be read or written.

use std::future::Future;
use std::path::{Path, PathBuf};

use tokio::runtime::Runtime;
use vsync_protocol::id::VolumeName;
use vsync_protocol::tree::VolumeInfo;

use super::GlobalArgs;
use super::context::Context;
use super::helper;
use super::quiesce;
use super::report::{Exit, Failure};
use crate::chunk::Profile;
use crate::config::{self, Config, Quiesce};
use crate::docker::{self, Access, Engine, VolumeDescription};
use crate::suggest;

/// Where a volume's files are.
pub(crate) enum Place {
    /// A directory with a name.
    Directory(PathBuf),
    /// A Docker volume whose directory can be reached.
    Volume(PathBuf, VolumeDescription),
    /// A Docker volume that only a container can reach.
    Helper(VolumeDescription),
}

impl Place {
    /// What a snapshot says of the volume.
    pub(crate) fn info(&self, quiesce: Quiesce) -> VolumeInfo {
        let pairs = |map: &std::collections::BTreeMap<String, String>| {
            map.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
        };
        match self {
            Self::Directory(_) => VolumeInfo {
                kind: "directory".into(),
                driver: None,
                options: vec![],
                labels: vec![],
                quiesce: quiesce.word().into(),
            },
            Self::Volume(_, volume) | Self::Helper(volume) => VolumeInfo {
                kind: "volume".into(),
                driver: Some(volume.driver.clone()),
                options: pairs(&volume.options),
                labels: pairs(&volume.labels),
                quiesce: quiesce.word().into(),
            },
        }
    }
}

/// Runs what talks to the Docker engine.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    Ok(runtime()?.block_on(work))
}

/// Drives the engine's connections, which belong to it.
pub(crate) fn runtime() -> Result<Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::of(&error, Exit::Failed))
}

/// Where the volume `name` of this machine is.
pub(crate) fn locate(global: &GlobalArgs, context: &Context, name: &VolumeName) -> Result<Place, Failure> {
    if let Some(path) = context.config.volume(name).and_then(|volume| volume.path.clone()) {
        // In a container, the machine's directory is mounted as a volume would be.
        let path = docker::mounted_inside(name).unwrap_or(path);
        return if path.try_exists().unwrap_or(true) {
            Ok(Place::Directory(path))
        } else {
            Err(no_directory(name, &path))
        };
    }
    block_on(locate_volume(global, name))?
}

async fn locate_volume(global: &GlobalArgs, name: &VolumeName) -> Result<Place, Failure> {
    let inside = docker::mounted_inside(name);
    let engine = match (Engine::connect().await, inside) {
        (Ok(engine), _) => {
            quiesce::tidy(global, &engine).await;
            engine
        }
        // No engine is needed: the volume is mounted. A helper was told what it is.
        (Err(_), Some(path)) => {
            let volume = helper::told(name, path.clone()).unwrap_or_else(|| VolumeDescription {
                name: name.clone(),
                driver: "local".into(),
                options: std::collections::BTreeMap::default(),
                labels: std::collections::BTreeMap::default(),
                mountpoint: path.clone(),
            });
            return Ok(Place::Volume(path, volume));
        }
        (Err(error), None) => {
            return Err(Failure::from(error).hint(format!(
                "start the Docker engine, or, if {name} is a directory, give it a `path` under [[volumes]] in vsync.toml"
            )));
        }
    };
    let Some(volume) = engine.inspect_volume(name).await? else { return Err(no_such_volume(&engine, name).await) };
    match engine.access_to(&volume).await? {
        Access::Direct(path) | Access::Inside(path) => Ok(Place::Volume(path, volume)),
        Access::Helper => Ok(Place::Helper(volume)),
        Access::Refused { reason } => Err(Failure::new(Exit::Failed, format!("{name} cannot be read: {reason}"))),
    }
}

fn no_directory(name: &VolumeName, path: &Path) -> Failure {
    Failure::new(Exit::NotFound, format!("the directory of {name} is not there: {}", path.display()))
        .hint("mount it, or correct its `path` under [[volumes]] in vsync.toml".to_owned())
}

async fn no_such_volume(engine: &Engine, name: &VolumeName) -> Failure {
    let known = engine.list_volumes().await.unwrap_or_default();
    let near = suggest::suffix(name.as_str(), known.iter().map(|volume| volume.name.as_str()));
    Failure::new(Exit::NotFound, format!("the Docker engine has no volume {name}{near}"))
        .hint("`docker volume ls` lists them; a directory needs a `path` under [[volumes]] in vsync.toml".to_owned())
}

/// How files of a volume are cut, if the configuration says so.
pub(crate) fn profile(config: &Config, name: &VolumeName) -> Option<Profile> {
    match config.volume(name)?.profile {
        config::Profile::Auto => None,
        config::Profile::General => Some(Profile::General),
        config::Profile::Database => Some(Profile::Database),
    }
}
