//! Letting a catalog catch up with the files: what an earlier end cut short, or all of it.

use std::collections::HashSet;
use std::{fs, io};

use vsync_protocol::id::{ManifestHash, PackId, SnapshotId};
use vsync_protocol::limits::MAX_MANIFEST_LEN;
use vsync_protocol::log::LogEntry;
use vsync_protocol::manifest::manifest_hash;

use crate::archive::{ArchiveError, manifest_name};
use crate::catalog::{Catalog, Snapshot};
use crate::store::disk::DiskStore;
use crate::store::journal::Logged;
use crate::store::pack;
use crate::store::room::Room;
use crate::store::{PackStore, StoreError, read_table, salvage};

/// Repeats log entries into the catalog. Returns how many manifests are lost.
pub(crate) fn replay(manifests: &Room, catalog: &Catalog, entries: Vec<Logged>) -> Result<u64, ArchiveError> {
    let mut lost = 0;
    for logged in entries {
        let snapshot = match logged.entry {
            LogEntry::Commit { manifest, .. } => {
                let found = read_manifest(manifests, manifest)?;
                if found.is_none() {
                    tracing::error!("the manifest of snapshot {} is lost", SnapshotId::from(manifest));
                    lost += 1;
                }
                found
            }
            LogEntry::Forget { .. } | LogEntry::Undelete { .. } | LogEntry::Pin { .. } | LogEntry::Unpin { .. } => None,
        };
        catalog.append(logged, snapshot)?;
    }
    Ok(lost)
}

/// Drops packs that are gone, then records those that the catalog does not know. Returns how
/// many packs had a damaged table.
pub(crate) fn adopt(packs: &DiskStore, catalog: &Catalog) -> Result<u64, ArchiveError> {
    let known: HashSet<PackId> = catalog.packs()?.into_iter().collect();
    let doomed: HashSet<PackId> = catalog.doomed()?.into_iter().collect();
    let listed: HashSet<PackId> = packs.list()?.into_iter().collect();
    let mut lost = false;
    // First: a blob of theirs may lie in another pack, too, which counts only then.
    for pack in known.difference(&listed) {
        tracing::error!("pack {pack} is gone; blobs that are in no other count as absent until they come again");
        catalog.lose_pack(*pack)?;
        lost = true;
    }
    let mut damaged = 0;
    // Garbage collection takes doomed ones away.
    for &pack in listed.difference(&doomed) {
        if known.contains(&pack) && !lost {
            continue;
        }
        let Some(len) = packs.len(pack)? else { continue };
        let records = match read_table(packs, pack) {
            Ok(table) => table.unwrap_or_default(),
            Err(StoreError::Pack { source, .. }) => {
                tracing::error!("pack {pack}: {source}; taking what its records still say");
                damaged += 1;
                pack::scan_records(&salvage(packs, pack)?.unwrap_or_default())
            }
            Err(error) => return Err(error.into()),
        };
        if known.contains(&pack) {
            // It may hold what was in a lost one, too.
            catalog.fill_from(pack, records)?;
        } else {
            catalog.add_pack(pack, len, records)?;
        }
    }
    Ok(damaged)
}

fn read_manifest(manifests: &Room, hash: ManifestHash) -> Result<Option<Snapshot>, StoreError> {
    let path = manifests.path().join(manifest_name(hash));
    let bytes = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result.map_err(StoreError::io("read", path))?,
    };
    let right = bytes.len() <= MAX_MANIFEST_LEN && manifest_hash(&bytes) == hash;
    Ok(Some(bytes).filter(|_| right).and_then(|bytes| Snapshot::of(bytes).ok()))
}
