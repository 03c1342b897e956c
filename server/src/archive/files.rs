//! A store's files as a whole, without its catalog.

use std::fs;
use std::path::{Path, PathBuf};

use vsync_protocol::id::{ManifestHash, SnapshotId};

use super::ArchiveError;
use crate::catalog::Catalog;
use crate::store::StoreError;
use crate::store::disk::{DiskStore, Reserve};
use crate::store::health::Health;
use crate::store::home::Home;
use crate::store::journal::{Journal, Logged};
use crate::store::room::Room;
use crate::store::steps::Steps;

/// A store's files without its catalog.
pub(crate) struct Files {
    pub(crate) packs: DiskStore,
    pub(crate) manifests: Room,
    pub(crate) trash: PathBuf,
    pub(crate) quarantine: PathBuf,
    pub(crate) health: Health,
}

impl Files {
    pub(crate) fn open(home: &Home, reserve: Reserve, steps: Steps) -> Result<Self, StoreError> {
        let health = Health::announcing(steps);
        let packs = DiskStore::open(home.path().join("packs"), reserve, health.clone())?;
        let (trash, quarantine) = (home.path().join("trash"), home.path().join("quarantine"));
        fs::create_dir_all(&trash).map_err(StoreError::io("create", &trash))?;
        let manifests = Room::open(home.path().join("manifests"), health.clone())?;
        Ok(Self { packs, manifests, trash, quarantine, health })
    }

    pub(crate) fn open_journal(&self, home: &Home, catalog: &Catalog) -> Result<(Journal, Vec<Logged>), ArchiveError> {
        let log = home.path().join("log");
        if !log.join("chain.log").exists() && self.has_manifests()? {
            let what = "it is gone, but there are manifests of snapshots; put a copy of it back, or run `vsync server \
                        repair`; where catalog.sqlite is lost, too, `vsync server rebuild --new-log` begins a new one";
            return Err(StoreError::Log { path: log.join("chain.log"), offset: 0, what }.into());
        }
        Ok(Journal::open(&log, &self.quarantine, catalog.mark()?, self.health.clone())?)
    }

    fn has_manifests(&self) -> Result<bool, StoreError> {
        let path = self.manifests.path();
        let mut entries = fs::read_dir(path).map_err(StoreError::io("list", path))?;
        let is_manifest = |name: &Path| name.extension().is_some_and(|extension| extension == "manifest");
        Ok(entries.any(|entry| entry.is_ok_and(|entry| is_manifest(&entry.path()))))
    }
}

/// Where the catalog of the store at `data` lies.
pub(crate) fn catalog_path(data: &Path) -> PathBuf {
    data.join("catalog.sqlite")
}

pub(crate) fn manifest_name(hash: ManifestHash) -> PathBuf {
    format!("{}.manifest", SnapshotId::from(hash)).into()
}
