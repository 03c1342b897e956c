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
use crate::store::pack::{self, Record};
use crate::store::room::Room;
use crate::store::{PackStore, StoreError, read_table};

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

/// Records packs that the catalog does not know, and drops those that are gone. Returns
/// how many packs had a damaged table.
pub(crate) fn adopt(packs: &DiskStore, catalog: &Catalog) -> Result<u64, ArchiveError> {
    let mut known: HashSet<PackId> = catalog.packs()?.into_iter().collect();
    let doomed: HashSet<PackId> = catalog.doomed()?.into_iter().collect();
    let mut damaged = 0;
    for pack in packs.list()? {
        // Garbage collection takes doomed ones away.
        if known.remove(&pack) || doomed.contains(&pack) {
            continue;
        }
        let Some(len) = packs.len(pack)? else { continue };
        let records = match read_table(packs, pack) {
            Ok(table) => table.unwrap_or_default(),
            Err(StoreError::Pack { source, .. }) => {
                tracing::error!("pack {pack}: {source}; taking what its records still say");
                damaged += 1;
                salvage(packs, pack, len)?
            }
            Err(error) => return Err(error.into()),
        };
        catalog.add_pack(pack, len, records)?;
    }
    for pack in known {
        tracing::error!("pack {pack} is gone; its blobs count as absent until they come again");
        catalog.lose_pack(pack)?;
    }
    Ok(damaged)
}

fn salvage(packs: &DiskStore, pack: PackId, len: u64) -> Result<Vec<Record>, StoreError> {
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX).min(MAX_SALVAGE)];
    Ok(if packs.read(pack, 0, &mut bytes)? { pack::scan_records(&bytes) } else { Vec::new() })
}

/// More than any pack that this program writes, less than what would not fit in memory.
const MAX_SALVAGE: usize = 4 * pack::PACK_SIZE;

fn read_manifest(manifests: &Room, hash: ManifestHash) -> Result<Option<Snapshot>, StoreError> {
    let path = manifests.path().join(manifest_name(hash));
    let bytes = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result.map_err(StoreError::io("read", path))?,
    };
    let right = bytes.len() <= MAX_MANIFEST_LEN && manifest_hash(&bytes) == hash;
    Ok(Some(bytes).filter(|_| right).and_then(|bytes| Snapshot::of(bytes).ok()))
}
