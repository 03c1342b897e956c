//! A new log for a store that has lost both its log and the catalog that repeats it.
//!
//! Every manifest is a file of its own, signed, and kept for good. What only the log says is lost: which snapshots were
//! forgotten or pinned, and when each was received. So all come back of which the data is here; of those of which it is
//! not, forgotten ones in all likelihood, only their place in the sequence. As the time of receipt counts the time of
//! the file, which was written then. To machines that know the old log this is another history, and they say so.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::UNIX_EPOCH;

use vsync_protocol::id::{MachineName, ManifestHash, RealmId, VolumeName};
use vsync_protocol::limits::MAX_MANIFEST_LEN;
use vsync_protocol::log::LogEntry;
use vsync_protocol::manifest::{Manifest, manifest_hash};

use crate::archive::{Archive, ArchiveError, catalog_path, manifest_name};
use crate::catalog::Catalog;
use crate::rebuild::{RebuildReport, Trust, rebuild};
use crate::repair::entries_of;
use crate::store::StoreError;
use crate::store::ballast::Ballast;
use crate::store::disk::Reserve;
use crate::store::health::Health;
use crate::store::home::Home;
use crate::store::journal::{self, MAGIC};
use crate::upkeep::mark::MarkError;
use crate::upkeep::throttle::Throttle;

/// What the new log was made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NewLog {
    /// Manifests that it names.
    pub manifests: u64,
    /// Those of them whose data is not all here; the log says that they are forgotten.
    pub forgotten: u64,
    /// Files that are no manifests of this realm, or damaged.
    pub left_out: u64,
}

/// Makes log and catalog of the store at `data` anew, from packs and manifests alone. No server may have the store open.
///
/// # Errors
/// When there is a log, or a catalog that repeats it; when the store cannot be opened, read or written.
pub fn rebuild_without_log(data: &Path, realm: RealmId, trust: Trust) -> Result<RebuildReport, MarkError> {
    let mut new = begin(data, realm)?;
    let mut report = rebuild(data, realm, trust)?;
    let archive = Archive::open(data, realm, Reserve { bytes: 0, percent: 0 })?;
    for lacking in archive.lacking(&Throttle::default())?.affected {
        let Some(known) = archive.catalog().known(lacking.id)? else { continue };
        let reason = "its data was not there when the log was made anew".to_owned();
        archive.note::<ArchiveError>(|at| Ok(Some(LogEntry::Forget { manifest: known.hash, at, reason })))?;
        new.forgotten += 1;
    }
    // What only they needed is missed by nobody.
    archive.lacking(&Throttle::default())?;
    report.totals = archive.catalog().totals().map_err(ArchiveError::from)?;
    report.log = Some(new);
    archive.close();
    Ok(report)
}

fn begin(data: &Path, realm: RealmId) -> Result<NewLog, ArchiveError> {
    let home = Home::open(data, realm)?;
    Ballast::of(home.path(), Reserve::default()).let_go_if_needed()?;
    check_lost(&home)?;
    let mut new = NewLog::default();
    let mut found = Vec::new();
    let manifests = home.path().join("manifests");
    for entry in fs::read_dir(&manifests).map_err(StoreError::io("list", &manifests))? {
        let path = entry.map_err(StoreError::io("list", &manifests))?.path();
        if path.extension().is_none_or(|extension| extension != "manifest") {
            continue;
        }
        match Found::read(&path, realm)? {
            Some(manifest) => found.push(manifest),
            None => {
                tracing::error!("{} is damaged, or no manifest of this realm; it is left out", path.display());
                new.left_out += 1;
            }
        }
    }
    new.manifests = found.len() as u64;
    journal::begin(&home.path().join("log"), &in_order(found))?;
    tracing::warn!("a new log names {} manifests; to machines that know the old one it is another", new.manifests);
    Ok(new)
}

/// Refuses where there is a log, or a catalog from which `repair` makes it again.
fn check_lost(home: &Home) -> Result<(), ArchiveError> {
    let path = home.path().join("log/chain.log");
    let refuse = |reason| Err(StoreError::NotLost { path: path.clone(), reason }.into());
    // As a start leaves it that was interrupted.
    if fs::metadata(&path).is_ok_and(|found| found.len() > MAGIC.len() as u64) {
        return refuse("there is one; if it is damaged, `vsync server repair` mends it");
    }
    let catalog = catalog_path(home.path());
    if !catalog.exists() {
        return Ok(());
    }
    match Catalog::open(&catalog, Health::default()) {
        Err(error) if error.is_full() => return Err(error.into()),
        // One that cannot be read repeats nothing.
        opened => drop(opened),
    }
    if !entries_of(&catalog).is_empty() {
        return refuse("the catalog repeats it; `vsync server repair` puts it back");
    }
    Ok(())
}

/// A manifest in its file.
struct Found {
    hash: ManifestHash,
    sequence: (VolumeName, MachineName),
    number: u64,
    /// When its file was written, in milliseconds since 1970.
    at: i64,
}

impl Found {
    /// None when it is none of `realm`, or not what its name says.
    fn read(path: &Path, realm: RealmId) -> Result<Option<Self>, StoreError> {
        let metadata = fs::metadata(path).map_err(StoreError::io("look at", path))?;
        if metadata.len() > MAX_MANIFEST_LEN as u64 {
            return Ok(None);
        }
        let bytes = fs::read(path).map_err(StoreError::io("read", path))?;
        let hash = manifest_hash(&bytes);
        let named = path.file_name() == Some(manifest_name(hash).as_os_str());
        let Some(body) = Manifest::parse(&bytes).ok().map(|manifest| manifest.body) else { return Ok(None) };
        let written = metadata.modified().map_err(StoreError::io("look at", path))?;
        let at = written.duration_since(UNIX_EPOCH).ok().and_then(|since| i64::try_from(since.as_millis()).ok());
        let found =
            Self { hash, sequence: (body.volume, body.source), number: body.sequence, at: at.unwrap_or_default() };
        Ok(Some(found).filter(|_| named && body.realm == realm))
    }
}

/// Commits in the order of time; within a sequence in its own, whatever the times of the files.
fn in_order(mut found: Vec<Found>) -> Vec<LogEntry> {
    found.sort_by_key(|one| (one.number, one.at, one.hash.as_bytes().to_owned()));
    let mut last: BTreeMap<(VolumeName, MachineName), i64> = BTreeMap::new();
    for one in &mut found {
        let last = last.entry(one.sequence.clone()).or_insert(one.at);
        one.at = one.at.max(*last);
        *last = one.at;
    }
    // Stable: what has one time stays in the order of its sequence.
    found.sort_by_key(|one| one.at);
    found.into_iter().map(|one| LogEntry::Commit { manifest: one.hash, at: one.at }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{DAY, REALM, Store, tree};
    use crate::upkeep::gc::GcOptions;
    use crate::upkeep::throttle::Stop;

    /// A store that has lost log and catalog.
    fn lose_both(store: Store) -> std::sync::Arc<tempfile::TempDir> {
        let path = store.path();
        store.archive.close();
        let dir = store.dir.clone();
        drop(store);
        fs::remove_file(path.join("log/chain.log")).unwrap();
        ["", "-wal", "-shm"].iter().for_each(|end| drop(fs::remove_file(path.join(format!("catalog.sqlite{end}")))));
        dir
    }

    #[test]
    fn a_store_without_log_and_catalog_has_its_snapshots_again() {
        let store = Store::new();
        let gone = store.back_up("a", &tree(&["gone"]));
        let note = |entry: LogEntry| store.archive.note::<ArchiveError>(|_| Ok(Some(entry))).unwrap();
        let manifest = store.archive.catalog().known(gone).unwrap().unwrap().hash;
        note(LogEntry::Forget { manifest, at: 1, reason: "test".to_owned() });
        for _ in 0..4 {
            store.pass(4 * DAY);
            let options = GcOptions { empty_trash: true, ..GcOptions::default() };
            store.archive.collect(&options, &Stop::default()).unwrap();
        }
        assert_eq!(store.archive.packs().list().unwrap(), []);
        let kept = [store.back_up("a", &tree(&["one", "two"])), store.back_up("b", &tree(&["two", "three"]))];
        let dir = lose_both(store);
        let path = dir.path().join("store");
        fs::write(path.join("manifests/0000.manifest"), "nonsense").unwrap();

        let refused = rebuild(&path, REALM, Trust::Tables).unwrap_err();
        assert!(refused.to_string().contains("--new-log"), "{refused}");
        let report = rebuild_without_log(&path, REALM, Trust::Nothing).unwrap();
        assert_eq!(report.log, Some(NewLog { manifests: 3, forgotten: 1, left_out: 1 }));
        assert_eq!((report.totals.snapshots, report.damaged_packs, report.lost_manifests), (2, 0, 0));

        let archive = Archive::open(&path, REALM, crate::testing::NO_RESERVE).unwrap();
        let mut standing: Vec<_> =
            archive.catalog().standing_after(0, 10).unwrap().iter().map(|known| known.id()).collect();
        standing.sort();
        let mut expected = kept.to_vec();
        expected.sort();
        assert_eq!(standing, expected);
        assert!(archive.scrub(None, &Stop::default()).unwrap().is_clean());
        // The sequence goes on behind all of them.
        let last = archive.catalog().last(&"a".parse().unwrap(), &"one".parse().unwrap()).unwrap();
        assert_eq!(last.unwrap().0, 2);
        drop(archive);
        let again = rebuild_without_log(&path, REALM, Trust::Tables).unwrap_err();
        assert!(again.to_string().contains("there is one"), "{again}");
    }

    #[test]
    fn a_log_that_the_catalog_repeats_is_not_made_anew() {
        let store = Store::new();
        store.back_up("a", &tree(&["one"]));
        let path = store.path();
        store.archive.close();
        let dir = store.dir.clone();
        drop(store);
        fs::remove_file(path.join("log/chain.log")).unwrap();
        let refused = rebuild_without_log(&path, REALM, Trust::Tables).unwrap_err();
        assert!(refused.to_string().contains("the catalog repeats it"), "{refused}");
        assert!(!path.join("log/chain.log").exists());
        drop(dir);
    }

    #[test]
    fn a_sequence_stays_in_its_order_whatever_the_times_of_its_files() {
        let found = |volume: &str, number: u64, at: i64| Found {
            hash: ManifestHash::from_bytes([number as u8; 32]),
            sequence: (volume.parse().unwrap(), "one".parse().unwrap()),
            number,
            at,
        };
        let entries = in_order(vec![found("a", 3, 10), found("b", 7, 15), found("a", 1, 20), found("a", 2, 30)]);
        let order: Vec<_> = entries.iter().map(|entry| (entry.manifest().as_bytes()[0], entry.at())).collect();
        assert_eq!(order, [(7, 15), (1, 20), (2, 30), (3, 30)]);
    }
}
