//! Making the catalog anew from packs, manifests and log.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;

use vsync_protocol::id::{Cid, RealmId};

use crate::archive::{ArchiveError, Files, catalog_path};
use crate::catalog::{Adopted, Catalog, Totals};
use crate::catchup::{adopt, replay};
use crate::relog::NewLog;
use crate::store::ballast::Ballast;
use crate::store::disk::Reserve;
use crate::store::health::Health;
use crate::store::home::Home;
use crate::store::journal::Journal;
use crate::store::room::sync_directory;
use crate::store::steps::Steps;
use crate::store::{PackStore, StoreError, is_whole, read_table, whole_copies};

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
    /// What the log was made of, if it was made anew, too.
    pub log: Option<NewLog>,
}

/// Makes the catalog of the store at `data` anew. No server may have the store open.
///
/// # Errors
/// When the store cannot be opened or read, or the log has lost what the old catalog knows. The
/// old catalog then stays as it was.
pub fn rebuild(data: &Path, realm: RealmId, trust: Trust) -> Result<RebuildReport, ArchiveError> {
    rebuild_in(&Steps::default(), data, realm, trust)
}

/// The same, announcing each step to `steps`.
///
/// # Errors
/// As [`rebuild`].
pub fn rebuild_in(steps: &Steps, data: &Path, realm: RealmId, trust: Trust) -> Result<RebuildReport, ArchiveError> {
    let home = Home::open(data, realm)?;
    Ballast::of(home.path(), Reserve::default()).let_go_if_needed()?;
    let files = Files::open(&home, Reserve::default(), steps.clone())?;
    let path = catalog_path(home.path());
    let (new, aside) = (with_suffix(&path, ".new"), with_suffix(&path, ".old"));
    remove_database(&new)?;
    let catalog = Catalog::open(&new, files.health.clone())?;
    let (journal, entries) = files.open_journal(&home, &catalog)?;
    check_old(&path, &journal, home.path())?;
    let mut report = RebuildReport {
        lost_manifests: replay(&files.manifests, &catalog, entries)?,
        damaged_packs: adopt(&files.packs, &catalog)?,
        ..RebuildReport::default()
    };
    if trust == Trust::Nothing {
        report.damaged_blobs = verify(&files, &catalog)?;
    }
    // The files say nothing of jobs: what the old catalog still tells of them is kept.
    let old = [&path, &aside].into_iter().find(|old| old.exists());
    report.jobs = old.map_or(Ok(Adopted { jobs: 0, lost: true }), |old| catalog.adopt_jobs(old))?;
    report.totals = catalog.totals()?;
    // Closing folds the WAL in, so that the file is the whole database.
    catalog.close();
    check_folded(&new)?;
    replace(steps, home.path(), &new, &path, &aside)?;
    Ok(report)
}

/// Refuses when the old catalog repeats more of the log than there is: it is then the only
/// place that says what was acknowledged.
fn check_old(path: &Path, journal: &Journal, data: &Path) -> Result<(), ArchiveError> {
    if !path.exists() {
        return Ok(());
    }
    let old = match Catalog::open(path, Health::default()) {
        Ok(old) => old,
        Err(error) if error.is_full() => return Err(error.into()),
        // One that cannot be read says nothing.
        Err(_) => return Ok(()),
    };
    // Closing folds its WAL in.
    let known = old.mark();
    old.close();
    match known {
        Ok(known) if known.position.index > journal.mark().position.index => {
            let what = "the catalog knows entries behind it; `vsync server repair` puts them back. Move catalog.sqlite \
                        away first to do without them";
            Err(StoreError::Log { path: data.join("log/chain.log"), offset: journal.mark().end, what }.into())
        }
        _ => Ok(()),
    }
}

/// Makes sure that no part of the database at `path` is left in its WAL.
fn check_folded(path: &Path) -> Result<(), StoreError> {
    let wal = with_suffix(path, "-wal");
    match fs::metadata(&wal) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        found if found.as_ref().is_ok_and(|found| found.len() == 0) => Ok(()),
        found => {
            let error =
                found.err().unwrap_or_else(|| io::Error::other("closing the new catalog left some of it there"));
            Err(StoreError::io("fold in", wal)(error))
        }
    }
}

/// Puts the catalog `new` in the place of the one at `path`. Killed anywhere, it leaves the old
/// one, the new one, or none, which the next start makes up for.
fn replace(steps: &Steps, data: &Path, new: &Path, path: &Path, aside: &Path) -> Result<(), StoreError> {
    let sync = || steps.take("sync the store", || sync_directory(data)).map_err(StoreError::io("sync", data));
    if path.exists() {
        let rename = || fs::rename(path, aside);
        steps.take("set the old catalog aside", rename).map_err(StoreError::io("rename", path))?;
        sync()?;
    }
    // The old WAL must not be found beside the new database, which it would corrupt. Nor must
    // it go before its database, which may need it.
    for suffix in ["-wal", "-shm"] {
        remove(&with_suffix(path, suffix))?;
        steps.after("remove the old catalog's log").map_err(StoreError::io("remove", path))?;
    }
    steps.take("replace the catalog", || fs::rename(new, path)).map_err(StoreError::io("rename into", path))?;
    sync()?;
    remove_database(aside)
}

/// Hashes every blob of every pack. Where the copy that the catalog names is damaged,
/// another undamaged one takes its place.
fn verify(files: &Files, catalog: &Catalog) -> Result<u64, ArchiveError> {
    let mut damaged = HashSet::new();
    let packs = files.packs.list()?;
    for &pack in &packs {
        let table = match read_table(&files.packs, pack) {
            Err(StoreError::Pack { .. }) => None,
            table => table?,
        };
        for record in table.unwrap_or_default() {
            if !is_whole(&files.packs, pack, &record)? {
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
        let copies = whole_copies(&files.packs, pack, |cid| damaged.contains(cid))?;
        if !copies.is_empty() {
            let len = files.packs.len(pack)?.unwrap_or(0);
            catalog.add_pack(pack, len, copies)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_catalog_with_some_of_it_in_its_wal_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let (path, wal) = (dir.path().join("new"), dir.path().join("new-wal"));
        assert!(check_folded(&path).is_ok());
        fs::write(&wal, "").unwrap();
        assert!(check_folded(&path).is_ok());
        fs::write(&wal, "frames").unwrap();
        assert!(check_folded(&path).is_err());
    }
}
