//! What is backed up and where it is restored: a Docker volume, or a directory.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::timeout;
use vsync_protocol::id::VolumeName;

use super::super::report::{Exit, Failure};
use super::super::volumes;
use crate::docker::{Access, Engine, VolumeDescription};
use crate::suggest;

/// An engine that takes longer is none, for a demonstration.
const ENGINE_WITHIN: Duration = Duration::from_secs(2);

/// Marks volumes that quickstart made, and may write to.
const LABEL: &str = "vsync.quickstart";

const DEMO: &str = "vsync-quickstart-demo";

/// What is backed up.
pub(super) struct Target {
    pub(super) name: VolumeName,
    /// Where its files are.
    pub(super) path: PathBuf,
    /// The Docker volume, if it is one.
    pub(super) volume: Option<VolumeDescription>,
    /// Made for the demonstration, so that it may be changed.
    pub(super) ours: bool,
}

impl Target {
    /// What the user named; else a demonstration volume, in Docker if that can be.
    pub(super) fn find(given: Option<&str>, home: &Path) -> Result<Self, Failure> {
        let Some(given) = given else { return Self::demo(home) };
        let path = Path::new(given);
        if path.components().count() > 1 || path.is_absolute() || path.is_dir() {
            return Self::directory(path, home);
        }
        let name: VolumeName =
            given.parse().map_err(|error: vsync_protocol::id::BadName| Failure::of(&error, Exit::Usage))?;
        volumes::block_on(Self::docker(name))?
    }

    /// A directory of the user's.
    fn directory(path: &Path, home: &Path) -> Result<Self, Failure> {
        let path = path.canonicalize().map_err(|error| Failure {
            causes: vec![error.to_string()],
            ..Failure::new(Exit::NotFound, format!("there is no directory {}", path.display()))
        })?;
        if !path.is_dir() {
            return Err(Failure::new(Exit::Usage, format!("{} is not a directory", path.display())));
        }
        if home.starts_with(&path) {
            let heading = format!("{} holds {}, where its own backups would go", path.display(), home.display());
            return Err(Failure::new(Exit::Usage, heading).hint("run this from a directory outside of it".to_owned()));
        }
        Ok(Self { name: name_of(&path), path, volume: None, ours: false })
    }

    /// A Docker volume of the user's.
    async fn docker(name: VolumeName) -> Result<Self, Failure> {
        let engine = Engine::connect().await.map_err(|error| {
            Failure::from(error).hint(format!("start the Docker engine; or, if {name} is a directory, write ./{name}"))
        })?;
        let Some(volume) = engine.inspect_volume(&name).await? else {
            let known = engine.list_volumes().await.unwrap_or_default();
            let near = suggest::suffix(name.as_str(), known.iter().map(|volume| volume.name.as_str()));
            return Err(Failure::new(Exit::NotFound, format!("the Docker engine has no volume {name}{near}"))
                .hint("`docker volume ls` lists them; a directory is given with a slash: ./NAME".to_owned()));
        };
        let path = reach(&engine, &volume).await?;
        let ours = volume.labels.contains_key(LABEL);
        Ok(Self { name, path, volume: Some(volume), ours })
    }

    fn demo(home: &Path) -> Result<Self, Failure> {
        if let Some(target) = volumes::block_on(Self::demo_volume())?? {
            return Ok(target);
        }
        let path = home.join("demo");
        fs::create_dir_all(&path).map_err(|error| Failure::of(&error, Exit::Failed))?;
        let name = "demo".parse().map_err(|error: vsync_protocol::id::BadName| Failure::of(&error, Exit::Failed))?;
        Ok(Self { name, path, volume: None, ours: true })
    }

    /// `None` where there is no engine, or none whose volumes this process can reach.
    async fn demo_volume() -> Result<Option<Self>, Failure> {
        let Ok(Some(engine)) = timeout(ENGINE_WITHIN, Engine::try_connect()).await else { return Ok(None) };
        let name: VolumeName =
            DEMO.parse().map_err(|error: vsync_protocol::id::BadName| Failure::of(&error, Exit::Failed))?;
        let (volume, made) = match engine.inspect_volume(&name).await? {
            Some(volume) if volume.labels.contains_key(LABEL) => (volume, false),
            // Somebody's own, by chance: it stays untouched.
            Some(_) => return Ok(None),
            None => (create(&engine, &name, "local", &BTreeMap::new(), BTreeMap::new()).await?, true),
        };
        match reach(&engine, &volume).await {
            Ok(path) => Ok(Some(Self { name, path, volume: Some(volume), ours: true })),
            Err(failure) => {
                tracing::info!("using a directory: {failure}");
                if made {
                    engine.remove_volume(&name).await?;
                }
                Ok(None)
            }
        }
    }

    /// Where to restore to: a place like this one, that quickstart made.
    pub(super) fn counterpart(&self, home: &Path) -> Result<Self, Failure> {
        match &self.volume {
            Some(volume) => volumes::block_on(self.restored_volume(volume))?,
            None => {
                let path = home.join("restored").join(self.name.as_str());
                fs::create_dir_all(&path).map_err(|error| Failure::of(&error, Exit::Failed))?;
                Ok(Self { name: self.name.clone(), path, volume: None, ours: true })
            }
        }
    }

    async fn restored_volume(&self, volume: &VolumeDescription) -> Result<Self, Failure> {
        let engine = Engine::connect().await?;
        let name = format!("{}-restored", self.name);
        let name: VolumeName =
            name.parse().map_err(|error: vsync_protocol::id::BadName| Failure::of(&error, Exit::Usage))?;
        let restored = match engine.inspect_volume(&name).await? {
            Some(there) if there.labels.contains_key(LABEL) => there,
            Some(_) => {
                return Err(Failure::new(
                    Exit::Failed,
                    format!("volume {name} exists, and quickstart did not make it"),
                )
                .hint(format!("rename or remove it: docker volume rm {name}")));
            }
            None => create(&engine, &name, &volume.driver, &volume.options, volume.labels.clone()).await?,
        };
        let path = reach(&engine, &restored).await?;
        Ok(Self { name, path, volume: Some(restored), ours: true })
    }

    /// How it is called in sentences.
    pub(super) fn shown(&self) -> String {
        match &self.volume {
            Some(_) => format!("Docker volume {}", self.name),
            None => self.path.display().to_string(),
        }
    }
}

async fn create(
    engine: &Engine,
    name: &VolumeName,
    driver: &str,
    options: &BTreeMap<String, String>,
    mut labels: BTreeMap<String, String>,
) -> Result<VolumeDescription, Failure> {
    labels.insert(LABEL.to_owned(), "made by vsync quickstart".to_owned());
    Ok(engine.create_volume(name, driver, options, &labels).await?)
}

/// The files of a volume; the embedded server of a quickstart cannot serve helper containers.
async fn reach(engine: &Engine, volume: &VolumeDescription) -> Result<PathBuf, Failure> {
    let name = &volume.name;
    match engine.access_to(volume).await? {
        Access::Direct(path) | Access::Inside(path) => Ok(path),
        Access::Helper => {
            Err(Failure::new(Exit::Failed, format!("the files of volume {name} cannot be reached from here")).hint(
                "run this as root on the machine of the Docker engine, or with a directory: vsync quickstart DIR"
                    .to_owned(),
            ))
        }
        Access::Refused { reason } => Err(Failure::new(Exit::Failed, format!("{name} cannot be read: {reason}"))),
    }
}

/// A name for a directory: its own, as far as that is one.
fn name_of(path: &Path) -> VolumeName {
    let last = path.file_name().unwrap_or_default().to_string_lossy();
    let kept: String =
        last.chars().map(|c| if c.is_ascii_alphanumeric() || "_.-".contains(c) { c } else { '-' }).collect();
    let kept: String = kept.trim_start_matches(['-', '_', '.']).chars().take(100).collect();
    kept.parse().or_else(|_| "directory".parse()).unwrap_or_else(|_| unreachable!("a constant that is a name"))
}
