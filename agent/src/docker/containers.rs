//! Which containers use a volume.

use std::path::Path;

use bollard::models::{ContainerSummary, ContainerSummaryStateEnum as State, MountPoint};
use bollard::query_parameters::ListContainersOptionsBuilder;

use super::engine::Engine;
use super::error::DockerError;
use super::volume::VolumeDescription;

/// A container that has a volume mounted, or will have when it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerUser {
    /// The engine's id of the container.
    pub id: String,
    /// Its name, without the leading slash.
    pub name: String,
    /// Its processes exist, so the volume's files may be open. True for paused and restarting containers, too.
    pub running: bool,
    /// Its processes are frozen.
    pub paused: bool,
}

impl Engine {
    /// Containers that use the volume, sorted by name: by its name, or by binding its directory.
    pub async fn users_of(&self, volume: &VolumeDescription) -> Result<Vec<ContainerUser>, DockerError> {
        // The engine's own filter knows nothing of containers that bind the volume's directory by path.
        let options = ListContainersOptionsBuilder::default().all(true).build();
        let containers = self.client().list_containers(Some(options)).await.map_err(|source| DockerError::List {
            what: "containers",
            host: self.host().to_owned(),
            command: "ps --all",
            source: Box::new(source),
        })?;
        let mut users: Vec<_> =
            containers.into_iter().filter(|container| uses(container, volume)).map(ContainerUser::from).collect();
        users.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(users)
    }
}

impl From<ContainerSummary> for ContainerUser {
    fn from(container: ContainerSummary) -> Self {
        let id = container.id.unwrap_or_default();
        // Containers that are linked to have several names, all but one with a second slash.
        let name = container.names.unwrap_or_default().iter().find_map(|name| plain_name(name));
        Self {
            name: name.unwrap_or_else(|| id.clone()),
            id,
            running: matches!(
                container.state,
                Some(State::RUNNING | State::PAUSED | State::RESTARTING | State::STOPPING)
            ),
            paused: container.state == Some(State::PAUSED),
        }
    }
}

fn plain_name(name: &str) -> Option<String> {
    let name = name.strip_prefix('/').unwrap_or(name);
    (!name.contains('/')).then(|| name.to_owned())
}

fn uses(container: &ContainerSummary, volume: &VolumeDescription) -> bool {
    container.mounts.iter().flatten().any(|mount| mounts_volume(mount, volume))
}

fn mounts_volume(mount: &MountPoint, volume: &VolumeDescription) -> bool {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    match text(&mount.typ).as_str() {
        "volume" => text(&mount.name) == volume.name.as_str(),
        "bind" => {
            let below = !volume.mountpoint.as_os_str().is_empty();
            below && Path::new(&text(&mount.source)).starts_with(&volume.mountpoint)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn mount(kind: &str, name: &str, source: &str) -> MountPoint {
        MountPoint {
            typ: Some(kind.into()),
            name: Some(name.into()),
            source: Some(source.into()),
            ..Default::default()
        }
    }

    #[test]
    fn a_volume_is_used_by_name_or_by_directory() {
        let volume = VolumeDescription {
            name: "data".parse().unwrap(),
            driver: "local".into(),
            options: BTreeMap::new(),
            labels: BTreeMap::new(),
            mountpoint: "/d/volumes/data/_data".into(),
        };
        let table = [
            (mount("volume", "data", "/elsewhere"), true),
            (mount("volume", "data2", "/d/volumes/data2/_data"), false),
            (mount("bind", "", "/d/volumes/data/_data"), true),
            (mount("bind", "", "/d/volumes/data/_data/base"), true),
            (mount("bind", "", "/d/volumes/data/_data2"), false),
            (mount("bind", "", "/d"), false),
            (mount("tmpfs", "", ""), false),
        ];
        for (mount, expected) in table {
            assert_eq!(mounts_volume(&mount, &volume), expected, "{mount:?}");
        }
    }

    #[test]
    fn a_linked_container_keeps_its_own_name() {
        let container =
            ContainerSummary { names: Some(vec!["/web/db".into(), "/db".into()]), ..ContainerSummary::default() };
        assert_eq!(ContainerUser::from(container).name, "db");
    }
}
