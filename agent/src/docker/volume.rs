//! Volumes: find, describe, create, remove.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use bollard::models::{Volume, VolumeCreateRequest};
use bollard::query_parameters::{ListVolumesOptions, RemoveVolumeOptions};
use vsync_protocol::id::VolumeName;

use super::engine::Engine;
use super::error::{DockerError, found};

/// All that is needed to create the same volume again, and to find its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeDescription {
    /// Its name.
    pub name: VolumeName,
    /// The driver: `local` unless a plugin is in use.
    pub driver: String,
    /// The driver's options.
    pub options: BTreeMap<String, String>,
    /// Labels of the volume.
    pub labels: BTreeMap<String, String>,
    /// Its directory as the engine sees it, which may be on another machine or in another mount namespace.
    pub mountpoint: PathBuf,
}

impl VolumeDescription {
    fn new(name: VolumeName, volume: Volume) -> Self {
        Self {
            name,
            driver: volume.driver,
            options: volume.options.into_iter().collect(),
            labels: volume.labels.into_iter().collect(),
            mountpoint: volume.mountpoint.into(),
        }
    }
}

impl Engine {
    /// Describes a volume, if it exists.
    pub async fn inspect_volume(&self, name: &VolumeName) -> Result<Option<VolumeDescription>, DockerError> {
        let volume = self.raw_volume(name).await?;
        Ok(volume.map(|volume| VolumeDescription::new(name.clone(), volume)))
    }

    /// Describes all volumes, sorted by name. Volumes whose names vsync cannot hold are left out, with a warning.
    pub async fn list_volumes(&self) -> Result<Vec<VolumeDescription>, DockerError> {
        let answer =
            self.client().list_volumes(None::<ListVolumesOptions>).await.map_err(|source| DockerError::List {
                what: "volumes",
                host: self.host().to_owned(),
                command: "volume ls",
                source: Box::new(source),
            })?;
        for warning in answer.warnings.unwrap_or_default() {
            tracing::warn!("The engine warns about its list of volumes: {warning}");
        }
        let mut volumes: Vec<_> = answer.volumes.unwrap_or_default().into_iter().filter_map(named).collect();
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }

    /// Creates a volume. The engine answers with the existing one if its driver is the same, so look first.
    pub async fn create_volume(
        &self,
        name: &VolumeName,
        driver: &str,
        options: &BTreeMap<String, String>,
        labels: &BTreeMap<String, String>,
    ) -> Result<VolumeDescription, DockerError> {
        let request = VolumeCreateRequest {
            name: Some(name.to_string()),
            driver: Some(driver.to_owned()),
            driver_opts: Some(owned(options)),
            labels: Some(owned(labels)),
            ..Default::default()
        };
        let volume = self.client().create_volume(request).await.map_err(DockerError::volume("create", name))?;
        Ok(VolumeDescription::new(name.clone(), volume))
    }

    /// Removes a volume that no container refers to.
    pub async fn remove_volume(&self, name: &VolumeName) -> Result<(), DockerError> {
        self.client()
            .remove_volume(name.as_str(), None::<RemoveVolumeOptions>)
            .await
            .map_err(DockerError::volume("remove", name))
    }

    pub(super) async fn raw_volume(&self, name: &VolumeName) -> Result<Option<Volume>, DockerError> {
        found(self.client().inspect_volume(name.as_str()).await).map_err(DockerError::volume("inspect", name))
    }
}

fn named(volume: Volume) -> Option<VolumeDescription> {
    match volume.name.parse() {
        Ok(name) => Some(VolumeDescription::new(name, volume)),
        Err(error) => {
            tracing::warn!(%error, "Leaving out a volume");
            None
        }
    }
}

fn owned(map: &BTreeMap<String, String>) -> HashMap<String, String> {
    map.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}
