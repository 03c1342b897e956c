//! Which containers use a volume.

use std::path::Path;

use bollard::models::{ContainerSummary, ContainerSummaryStateEnum as State, MountPoint};
use bollard::query_parameters::ListContainersOptionsBuilder;

use super::engine::Engine;
use super::error::DockerError;
use super::helper::HELPER_LABEL;
use super::ourselves::own_container;
use super::service::SERVICE_LABEL;
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
    /// Every mount of the volume in it is read-only.
    pub read_only: bool,
    /// What it is to us.
    pub role: ContainerRole,
}

/// What a container is to vsync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerRole {
    /// Somebody's application: what volumes are for.
    Application,
    /// A helper of some vsync, at work on the volume. To pause or stop it would break that work.
    Helper,
    /// The container that this process runs in, or in which vsync's own schedule runs: it only reads what it has
    /// mounted, and to pause or stop it would change nothing for the volume.
    Ourselves,
}

impl ContainerUser {
    /// The volume must not be written to as long as this container runs.
    #[must_use]
    pub fn is_in_the_way(&self) -> bool {
        self.running && self.role != ContainerRole::Ourselves
    }
}

impl Engine {
    /// Containers that use the volume, sorted by name: by its name, or by binding its directory.
    pub async fn users_of(&self, volume: &VolumeDescription) -> Result<Vec<ContainerUser>, DockerError> {
        self.users_by(|mount| mounts_volume(mount, volume)).await
    }

    /// Containers that use a directory of this machine, sorted by name: it, one in it, or one that it is in.
    pub async fn users_of_directory(&self, directory: &Path) -> Result<Vec<ContainerUser>, DockerError> {
        self.users_by(|mount| mounts_directory(mount, directory)).await
    }

    async fn users_by(&self, uses: impl Fn(&MountPoint) -> bool) -> Result<Vec<ContainerUser>, DockerError> {
        // The engine's own filter knows nothing of containers that bind the volume's directory by path.
        let options = ListContainersOptionsBuilder::default().all(true).build();
        let containers = self.client().list_containers(Some(options)).await.map_err(|source| DockerError::List {
            what: "containers",
            host: self.host().to_owned(),
            command: "ps --all",
            source: Box::new(source),
        })?;
        let ourselves = own_container();
        let mut users: Vec<_> = containers
            .into_iter()
            .filter_map(|container| {
                let mut mounts = container.mounts.iter().flatten().filter(|mount| uses(mount)).peekable();
                mounts.peek()?;
                let read_only = mounts.all(|mount| mount.rw == Some(false));
                Some(ContainerUser { read_only, ..ContainerUser::new(container, ourselves.as_deref()) })
            })
            .collect();
        users.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(users)
    }
}

impl ContainerUser {
    fn new(container: ContainerSummary, ourselves: Option<&str>) -> Self {
        let role = ContainerRole::of(&container, ourselves);
        let id = container.id.unwrap_or_default();
        // Containers that are linked to have several names, all but one with a second slash.
        let name = container.names.unwrap_or_default().iter().find_map(|name| plain_name(name));
        let states_with_processes = [State::RUNNING, State::PAUSED, State::RESTARTING, State::STOPPING];
        Self {
            name: name.unwrap_or_else(|| id.clone()),
            id,
            running: container.state.is_some_and(|state| states_with_processes.contains(&state)),
            paused: container.state == Some(State::PAUSED),
            read_only: false,
            role,
        }
    }
}

impl ContainerRole {
    fn of(container: &ContainerSummary, ourselves: Option<&str>) -> Self {
        let has = |label: &str| container.labels.as_ref().is_some_and(|labels| labels.contains_key(label));
        if (ourselves.is_some() && container.id.as_deref() == ourselves) || has(SERVICE_LABEL) {
            Self::Ourselves
        } else if has(HELPER_LABEL) {
            Self::Helper
        } else {
            Self::Application
        }
    }
}

fn plain_name(name: &str) -> Option<String> {
    let name = name.strip_prefix('/').unwrap_or(name);
    (!name.contains('/')).then(|| name.to_owned())
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

fn mounts_directory(mount: &MountPoint, directory: &Path) -> bool {
    let Some(source) = mount.source.as_deref().filter(|source| !source.is_empty()).map(Path::new) else { return false };
    // For a volume, the source is its directory.
    source.starts_with(directory) || directory.starts_with(source)
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
    fn a_directory_is_used_from_above_and_from_below() {
        let table = [
            (mount("bind", "", "/srv/data"), true),
            (mount("bind", "", "/srv/data/base"), true),
            (mount("bind", "", "/srv"), true),
            (mount("bind", "", "/srv/data2"), false),
            (mount("volume", "v", "/srv/data/v/_data"), true),
            (mount("tmpfs", "", ""), false),
        ];
        for (mount, expected) in table {
            assert_eq!(mounts_directory(&mount, Path::new("/srv/data")), expected, "{mount:?}");
        }
    }

    fn container(id: &str, names: &[&str], labels: &[(&str, &str)]) -> ContainerSummary {
        ContainerSummary {
            id: Some(id.into()),
            names: Some(names.iter().map(|&name| name.to_owned()).collect()),
            labels: Some(labels.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()),
            state: Some(State::RUNNING),
            ..ContainerSummary::default()
        }
    }

    #[test]
    fn a_linked_container_keeps_its_own_name() {
        assert_eq!(ContainerUser::new(container("1", &["/web/db", "/db"], &[]), None).name, "db");
    }

    #[test]
    fn neither_a_helper_nor_ourselves_is_taken_for_an_application() {
        use ContainerRole::{Application, Helper, Ourselves};
        let helper = &[(HELPER_LABEL, "data")];
        let table = [
            (container("1", &[], &[]), None, Application),
            (container("1", &[], &[]), Some("2"), Application),
            (container("1", &[], helper), Some("2"), Helper),
            (container("1", &[], helper), Some("1"), Ourselves),
            (container("1", &[], &[]), Some("1"), Ourselves),
            (container("1", &[], &[(SERVICE_LABEL, "schedule")]), Some("2"), Ourselves),
        ];
        for (container, ourselves, role) in table {
            let user = ContainerUser::new(container, ourselves);
            assert_eq!(user.role, role, "{user:?}, we are {ourselves:?}");
            assert_eq!(user.is_in_the_way(), role != Ourselves);
        }
    }
}
