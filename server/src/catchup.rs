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
        let Some(content) = what_is_in(packs, pack)? else { continue };
        damaged += u64::from(content.damaged);
        if known.contains(&pack) {
            // It may hold what was in a lost one, too.
            catalog.fill_from(pack, content.records)?;
        } else {
            catalog.add_pack(pack, content.bytes, content.records)?;
        }
    }
    Ok(damaged)
}

/// What a pack holds.
pub(crate) struct Content {
    /// Its length.
    pub(crate) bytes: u64,
    pub(crate) records: Vec<Record>,
    /// Its table is damaged: the records are those that still say what they are.
    pub(crate) damaged: bool,
}

/// What `pack` holds; none when it is gone.
pub(crate) fn what_is_in(packs: &DiskStore, pack: PackId) -> Result<Option<Content>, StoreError> {
    let Some(bytes) = packs.len(pack)? else { return Ok(None) };
    match read_table(packs, pack) {
        Ok(table) => Ok(Some(Content { bytes, records: table.unwrap_or_default(), damaged: false })),
        Err(StoreError::Pack { source, .. }) => {
            tracing::error!("pack {pack}: {source}; taking what its records still say");
            let records = pack::scan_records(&salvage(packs, pack)?.unwrap_or_default());
            Ok(Some(Content { bytes, records, damaged: true }))
        }
        Err(error) => Err(error),
    }
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
