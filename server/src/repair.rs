//! Mending a store of which parts are damaged: the log from what the catalog repeats of it, the
//! catalog from everything else, blobs from damaged packs that were set aside. Whatever is
//! replaced is kept in `quarantine/`; nothing that can still be read is ever dropped.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use bytes::Bytes;
use vsync_protocol::id::{Cid, RealmId};
use vsync_protocol::log::LogEntry;

use crate::archive::{Archive, ArchiveError, catalog_path};
use crate::catalog::{Catalog, CatalogError, State};
use crate::rebuild::{RebuildReport, Trust, rebuild};
use crate::store::StoreError;
use crate::store::ballast::Ballast;
use crate::store::disk::Reserve;
use crate::store::health::Health;
use crate::store::home::Home;
use crate::store::journal;
use crate::store::pack::{self, PackBuilder};
use crate::upkeep::mark::MarkError;
use crate::upkeep::scrub::ScrubReport;
use crate::upkeep::throttle::Stop;

/// What was mended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepairReport {
    /// Entries that the log holds again and did not; none: it was whole.
    pub log: Option<u64>,
    /// What the new catalog came to, if there had to be one.
    pub catalog: Option<RebuildReport>,
    /// Blobs that were taken out of packs set aside.
    pub recovered: u64,
    /// What is still damaged.
    pub scrub: ScrubReport,
}

/// Mends the store of `realm` at `data`, which no server may have open. A store that is whole
/// stays as it is.
///
/// # Errors
/// When the store cannot be opened, even after mending, or written.
pub fn repair(data: &Path, realm: RealmId) -> Result<RepairReport, MarkError> {
    let mut report = RepairReport { log: mend_log(data, realm)?, ..RepairReport::default() };
    if report.log.is_some() || !is_sound(data)? {
        tracing::warn!("making the catalog anew; every blob is read");
        report.catalog = Some(rebuild(data, realm, Trust::Nothing)?);
    }
    let archive = Archive::open(data, realm, Reserve { bytes: 0, percent: 0 })?;
    // First, so that what is damaged counts as absent, and is set aside.
    archive.scrub(None, &Stop::default())?;
    report.recovered = recover(&archive)?;
    report.scrub = archive.scrub(None, &Stop::default())?;
    archive.close();
    Ok(report)
}

/// Returns how many entries the log had lost, if it had.
fn mend_log(data: &Path, realm: RealmId) -> Result<Option<u64>, ArchiveError> {
    let home = Home::open(data, realm)?;
    // A full disk is no damage, and is not to look like any.
    Ballast::of(home.path(), Reserve::default()).let_go_if_needed()?;
    let known = entries_of(&catalog_path(home.path()));
    Ok(journal::mend(&home.path().join("log"), &home.path().join("quarantine"), &known)?)
}

/// What the catalog repeats of the log; nothing, if it is damaged itself.
pub(crate) fn entries_of(catalog: &Path) -> Vec<LogEntry> {
    let Ok(catalog) = Catalog::open(catalog, Health::default()) else { return Vec::new() };
    let mut entries = Vec::new();
    // As far as it can be read.
    let _ = catalog.each_log_entry(0, |entry| {
        entries.push(entry);
        Ok::<_, CatalogError>(())
    });
    catalog.close();
    entries
}

fn is_sound(data: &Path) -> Result<bool, ArchiveError> {
    let catalog = match Catalog::open(&catalog_path(data), Health::default()) {
        Ok(catalog) => catalog,
        Err(error) if error.is_full() => return Err(error.into()),
        Err(_) => return Ok(false),
    };
    let sound = matches!(catalog.check(), Ok(None));
    catalog.close();
    Ok(sound)
}

/// Takes blobs that the store lacks out of packs in quarantine, and those that it knows and has
/// not whole out of the trash, too.
fn recover(archive: &Archive) -> Result<u64, ArchiveError> {
    let mut recovered = 0;
    for (directory, unknown) in [(&archive.files.quarantine, true), (&archive.files.trash, false)] {
        for entry in fs::read_dir(directory).map_err(StoreError::io("list", directory))? {
            let path = entry.map_err(StoreError::io("list", directory))?.path();
            if path.extension().is_some_and(|extension| extension == "pack") {
                recovered += recover_pack(archive, &path, unknown)?;
            }
        }
    }
    Ok(recovered)
}

fn recover_pack(archive: &Archive, path: &Path, unknown: bool) -> Result<u64, ArchiveError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => Bytes::from(bytes),
        // What the medium cannot read is no loss: it was set aside already.
        Err(error) => {
            tracing::error!("cannot read {}: {error}", path.display());
            return Ok(0);
        }
    };
    let records = pack::scan_records(&bytes);
    let cids: Vec<Cid> = records.iter().map(|record| record.cid).collect();
    let mut wanted = HashSet::new();
    for (cid, entry) in cids.iter().zip(archive.catalog().entries(&cids)?) {
        if entry.map_or(unknown, |entry| entry.state == State::Corrupt) {
            wanted.insert(*cid);
        }
    }
    let mut builder = PackBuilder::default();
    for record in records.iter().filter(|record| wanted.contains(&record.cid)) {
        let Ok(at) = usize::try_from(record.offset) else { continue };
        let Some(blob) = bytes.get(at..).and_then(|rest| rest.get(..record.len as usize)) else { continue };
        builder.push(record.cid, record.kind, bytes.slice_ref(blob));
    }
    let count = builder.records().len() as u64;
    if count > 0 {
        tracing::warn!("{count} blobs recovered from {}", path.display());
        archive.put(&archive.session_pins(), builder)?;
    }
    Ok(count)
}
