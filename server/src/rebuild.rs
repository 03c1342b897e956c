//! Making the catalog anew from packs, manifests and log.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;

use vsync_protocol::id::{Cid, RealmId};

use crate::archive::{ArchiveError, Files, catalog_path};
use crate::catalog::{Adopted, Catalog, Totals};
use crate::catchup::{adopt, replay};
use crate::store::disk::Reserve;
use crate::store::home::Home;
use crate::store::room::sync_directory;
use crate::store::steps::Steps;
use crate::store::{PackStore, StoreError, read_blob, read_table};

/// How far a rebuild believes the packs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// Their tables, each checked against its hash: quick, for a lost catalog.
    #[default]
    Tables,
    /// Only blobs that match their names: reads the whole store, for a disk in doubt.
    Nothing,
}

/// What a rebuild found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RebuildReport {
    /// What the new catalog holds.
    pub totals: Totals,
    /// Packs whose table was damaged; what their records still say was taken.
    pub damaged_packs: u64,
    /// Blobs that do not match their names; they count as absent.
    pub damaged_blobs: u64,
    /// Entries of the log whose manifest is lost or damaged.
    pub lost_manifests: u64,
    /// The record of jobs, which is nowhere but in the old catalog.
    pub jobs: Adopted,
}

/// Makes the catalog of the store at `data` anew. No server may have the store open.
///
/// # Errors
/// When the store cannot be opened or read. The old catalog then stays as it was.
pub fn rebuild(data: &Path, realm: RealmId, trust: Trust) -> Result<RebuildReport, ArchiveError> {
    rebuild_in(&Steps::default(), data, realm, trust)
}

/// The same, announcing each step to `steps`.
///
/// # Errors
/// As [`rebuild`].
pub fn rebuild_in(steps: &Steps, data: &Path, realm: RealmId, trust: Trust) -> Result<RebuildReport, ArchiveError> {
    let home = Home::open(data, realm)?;
    let files = Files::open(&home, Reserve::default(), steps.clone())?;
    let (path, new) = (catalog_path(home.path()), home.path().join("catalog.sqlite.new"));
    remove_database(&new)?;
    let catalog = Catalog::open(&new, steps.clone())?;
    let (_, entries) = files.open_journal(&home, &catalog)?;
    let mut report = RebuildReport {
        lost_manifests: replay(&files.manifests, &catalog, entries)?,
        damaged_packs: adopt(&files.packs, &catalog)?,
        ..RebuildReport::default()
    };
    if trust == Trust::Nothing {
        report.damaged_blobs = verify(&files, &catalog)?;
    }
    // The files say nothing of jobs: what the old catalog still tells of them is kept.
    report.jobs = if path.exists() { catalog.adopt_jobs(&path)? } else { Adopted { jobs: 0, lost: true } };
    report.totals = catalog.totals()?;
    // Closing folds the WAL in, so that the file is the whole database.
    drop(catalog);
    // The old WAL must not be found beside the new database, which it would corrupt.
    // Without it the old database is merely older, and the next start catches up.
    for suffix in ["-wal", "-shm"] {
        remove(&with_suffix(&path, suffix))?;
        steps.after("remove the old catalog's log").map_err(StoreError::io("remove", &path))?;
    }
    let rename = || fs::rename(&new, &path);
    steps.take("replace the catalog", rename).map_err(StoreError::io("rename into", &path))?;
    let sync = || sync_directory(home.path());
    steps.take("sync the store", sync).map_err(StoreError::io("sync", home.path()))?;
    Ok(report)
}

/// Hashes every blob of every pack. Where the copy that the catalog names is damaged,
/// another undamaged one takes its place.
fn verify(files: &Files, catalog: &Catalog) -> Result<u64, ArchiveError> {
    let mut damaged = HashSet::new();
    let packs = files.packs.list()?;
    for &pack in &packs {
        for record in read_table(&files.packs, pack).ok().flatten().unwrap_or_default() {
            if !matches!(read_blob(&files.packs, pack, record.offset, record.len, record.cid), Ok(Some(_))) {
                tracing::error!("blob {} in pack {pack} is damaged", record.cid);
                catalog.add_damage(record.cid, pack)?;
                damaged.insert(record.cid);
            }
        }
    }
    if damaged.is_empty() {
        return Ok(0);
    }
    // A second look, now that the damaged copies give way.
    for &pack in &packs {
        let mut records = read_table(&files.packs, pack).ok().flatten().unwrap_or_default();
        records.retain(|record| {
            damaged.contains(&record.cid)
                && matches!(read_blob(&files.packs, pack, record.offset, record.len, record.cid), Ok(Some(_)))
        });
        if !records.is_empty() {
            let len = files.packs.len(pack)?.unwrap_or(0);
            catalog.add_pack(pack, len, records)?;
        }
    }
    let still = catalog.have(&damaged.into_iter().collect::<Vec<Cid>>())?.into_iter().filter(|have| !have).count();
    Ok(still as u64)
}

fn remove_database(path: &Path) -> Result<(), StoreError> {
    ["", "-wal", "-shm"].into_iter().try_for_each(|suffix| remove(&with_suffix(path, suffix)))
}

fn with_suffix(path: &Path, suffix: &str) -> std::path::PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", path)(error)),
        _ => Ok(()),
    }
}
