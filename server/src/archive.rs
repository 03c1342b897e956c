//! An open store as a whole: packs, manifests, log and the catalog over them, brought to
//! agree when it is opened.
//!
//! The order of durable writes: a pack before the catalog that names its blobs; a manifest
//! before the log entry that makes it a snapshot; the log entry before the catalog that
//! lists it; all of it before the answer. So a crash leaves files that nothing names yet,
//! never a name without its file, and opening repeats into the catalog what it missed.

use std::fs;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use thiserror::Error;
use vsync_protocol::blob::{BlobKind, Header};
use vsync_protocol::id::{Cid, ManifestHash, RealmId, SnapshotId};
use vsync_protocol::log::LogEntry;
use vsync_protocol::manifest::LogPosition;

use crate::catalog::{Accepted, Catalog, CatalogError, Location, Snapshot, State};
use crate::catchup::{adopt, replay};
use crate::clock::{Clock, Kept, Moment};
use crate::pins::{Pins, SessionPins};
use crate::store::ballast::Ballast;
use crate::store::disk::{DiskStore, Reserve};
use crate::store::health::Health;
use crate::store::home::Home;
use crate::store::journal::{Journal, Logged};
use crate::store::pack::PackBuilder;
use crate::store::room::{Cached, Room};
use crate::store::steps::Steps;
use crate::store::{PackStore, StoreError, read_blob};
use crate::upkeep::guard::Holds;
use crate::upkeep::usage::{Pendings, Usages};

/// Why something could not be done with the store.
#[derive(Debug, Error)]
pub enum ArchiveError {
    /// Its files.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// What is known of time is kept on disk this often, in milliseconds.
pub(crate) const KEEP_TIME: u64 = 600_000;

/// What a store depends on besides its directory.
#[derive(Clone, Debug)]
pub struct World {
    /// The clocks.
    pub clock: Clock,
    /// Who is told of each step on disk.
    pub steps: Steps,
}

impl Default for World {
    fn default() -> Self {
        Self { clock: Clock::system(), steps: Steps::default() }
    }
}

/// An open store.
pub struct Archive {
    // Fields are dropped in this order: the lock goes last.
    catalog: Catalog,
    pub(crate) files: Files,
    journal: Mutex<Journal>,
    pub(crate) pins: Pins,
    clock: Clock,
    time: Mutex<Kept>,
    /// Uptime of the last time that was kept on disk.
    kept_until: AtomicU64,
    /// Held from the question what is new in a pack to the answer's being true: two sessions
    /// that bring the same blobs at once would else both be told that they are new.
    storing: Mutex<()>,
    /// Held by whoever collects or repairs: one at a time does.
    upkeep: Mutex<()>,
    pub(crate) holds: Mutex<Holds>,
    pub(crate) usages: Mutex<Usages>,
    pub(crate) pendings: Mutex<Pendings>,
    pub(crate) ballast: Ballast,
    _home: Home,
}

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
            let what = "it is gone, but there are manifests of snapshots; put a copy of it back";
            return Err(StoreError::Log { path: log.join("chain.log"), offset: 0, what }.into());
        }
        Ok(Journal::open(&log, &self.quarantine, catalog.mark()?, self.health.clone())?)
    }
}

impl Files {
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

impl Archive {
    /// Opens the store of `realm` at `data`, or makes an empty one, and lets the catalog
    /// catch up with what an earlier end cut short.
    ///
    /// # Errors
    /// When the store is another's, in use, newer, or damaged.
    pub fn open(data: &Path, realm: RealmId, reserve: Reserve) -> Result<Self, ArchiveError> {
        Self::open_in(World::default(), data, realm, reserve)
    }

    /// The same with other clocks, or with somebody who is told of each step.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_in(world: World, data: &Path, realm: RealmId, reserve: Reserve) -> Result<Self, ArchiveError> {
        let home = Home::open(data, realm)?;
        let ballast = Ballast::of(home.path(), reserve);
        ballast.let_go_if_needed()?;
        let files = Files::open(&home, reserve, world.steps)?;
        let catalog = Catalog::open(&catalog_path(home.path()), files.health.clone())?;
        let (journal, missed) = files.open_journal(&home, &catalog)?;
        replay(&files.manifests, &catalog, missed)?;
        adopt(&files.packs, &catalog)?;
        let moment = world.clock.look();
        let kept = catalog.time()?;
        // A store that has kept no time yet keeps it at its first end.
        let kept_until = AtomicU64::new(kept.as_ref().map_or(0, |kept| kept.uptime));
        let time =
            kept.map_or_else(|| Kept { uptime: KEEP_TIME, ..Kept::begin(&moment) }, |kept| kept.advance(&moment));
        let (journal, time) = (Mutex::new(journal), Mutex::new(time));
        ballast.take();
        Ok(Self {
            catalog,
            files,
            journal,
            pins: Pins::default(),
            clock: world.clock,
            time,
            kept_until,
            storing: Mutex::default(),
            upkeep: Mutex::default(),
            holds: Mutex::default(),
            usages: Mutex::default(),
            pendings: Mutex::default(),
            ballast,
            _home: home,
        })
    }

    /// What time it is, and what is known of the time that has passed.
    #[must_use]
    pub fn time(&self) -> (Moment, Kept) {
        let moment = self.clock.look();
        let mut time = self.time.lock().unwrap_or_else(PoisonError::into_inner);
        *time = time.advance(&moment);
        (moment, time.clone())
    }

    /// Takes the clock as right from now on, whatever it did before.
    ///
    /// # Errors
    /// When that cannot be kept.
    pub fn confirm_clock(&self) -> Result<(), ArchiveError> {
        let moment = self.clock.look();
        {
            let mut time = self.time.lock().unwrap_or_else(PoisonError::into_inner);
            *time = Kept { seen: moment.now, passed: 0, ..time.advance(&moment) };
        }
        let position = self.position().index;
        self.record(|catalog| catalog.confirm(position, moment.now))?;
        self.keep_time()
    }

    /// Keeps for the next start what is known of time now.
    ///
    /// # Errors
    /// When it is not kept.
    pub fn keep_time(&self) -> Result<(), ArchiveError> {
        let (_, time) = self.time();
        self.kept_until.store(time.uptime, Ordering::Relaxed);
        self.record(|catalog| catalog.keep_time(time))
    }

    /// Pins for a new session.
    #[must_use]
    pub fn session_pins(&self) -> SessionPins {
        self.pins.session()
    }

    /// Which of `cids` are here and not known to be damaged. Those stay for as long as
    /// `pins` do.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn have(&self, pins: &SessionPins, cids: &[Cid]) -> Result<Vec<bool>, ArchiveError> {
        let _gate = self.pins.hold();
        let answers = self.catalog.have(cids)?;
        pins.pin(cids.iter().zip(&answers).filter_map(|(cid, here)| here.then_some(cid)));
        Ok(answers)
    }

    /// The index.
    #[must_use]
    pub const fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The blobs.
    #[must_use]
    pub fn packs(&self) -> &dyn PackStore {
        &self.files.packs
    }

    /// Why the store takes no writes, if it does not.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.files.health.failure()
    }

    /// Refuses when the store takes no data now.
    ///
    /// # Errors
    /// When writing has stopped, or space is short.
    pub fn check_writable(&self) -> Result<(), StoreError> {
        self.files.health.check()?;
        self.files.packs.check_space()
    }

    /// Free bytes of the file system.
    ///
    /// # Errors
    /// When the system cannot tell.
    pub fn free(&self) -> Result<u64, StoreError> {
        self.files.packs.free()
    }

    /// What to say of the space that is left, if it is little: less than twice what is kept free.
    ///
    /// # Errors
    /// When the system cannot tell.
    pub fn scarcity(&self) -> Result<Option<String>, StoreError> {
        let (free, reserve) = self.files.packs.space()?;
        let mib = |bytes: u64| bytes >> 20;
        let then = if free < reserve { "it takes no more backups" } else { "soon it takes no more backups" };
        let text = || format!("{} MiB are free, of which {} MiB are kept free: {then}", mib(free), mib(reserve));
        Ok((free / 2 < reserve).then(text))
    }

    /// Makes the blobs of `pack`, already checked against their names, durable and known,
    /// and pins them. Those that somebody else brought meanwhile are left out.
    ///
    /// # Errors
    /// When they are not durable and known.
    pub fn put(&self, pins: &SessionPins, pack: PackBuilder) -> Result<(), ArchiveError> {
        let cids: Vec<Cid> = pack.records().iter().map(|record| record.cid).collect();
        let _storing = self.storing.lock().unwrap_or_else(PoisonError::into_inner);
        let _gate = self.pins.hold();
        pins.pin(&cids);
        self.revive(&cids)?;
        let mut known = self.catalog.have(&cids)?.into_iter();
        let pack = pack.retain(|_| !known.next().unwrap_or(false));
        if pack.is_empty() {
            return Ok(());
        }
        let pack = pack.finish();
        self.files.packs.put(&pack)?;
        // Only now: whoever finds a blob in the catalog finds it on disk.
        self.record(|catalog| catalog.add_pack(pack.id(), pack.len(), pack.records().to_vec()))
    }

    /// Makes those of `cids` live again that are condemned and undamaged.
    pub(crate) fn revive(&self, cids: &[Cid]) -> Result<(), ArchiveError> {
        let mut whole = Vec::new();
        for (&cid, entry) in cids.iter().zip(self.catalog.entries(cids)?) {
            let Some(entry) = entry.filter(|entry| entry.state == State::Condemned) else { continue };
            if read_blob(&self.files.packs, entry.pack, entry.offset, entry.len, cid)?.is_some() {
                whole.push(cid);
            }
        }
        if whole.is_empty() { Ok(()) } else { self.record(|catalog| catalog.revive(whole).map(drop)) }
    }

    /// Reads the blob at `location` and checks it against its name; none when it is damaged.
    ///
    /// # Errors
    /// When the medium fails.
    pub fn read(&self, cid: Cid, location: &Location) -> Result<Option<Bytes>, StoreError> {
        read_blob(&self.files.packs, location.pack, location.offset, location.len, cid)
    }

    /// As [`Self::read`], but looks where the blob is now if it is no more at `location`.
    ///
    /// # Errors
    /// When the medium or the catalog fails.
    pub fn read_moved(&self, cid: Cid, location: &Location) -> Result<Option<Bytes>, ArchiveError> {
        if let Some(blob) = self.read(cid, location)? {
            return Ok(Some(blob));
        }
        match self.catalog.locate_one(cid)? {
            Some(now) if (now.pack, now.offset) != (location.pack, location.offset) => Ok(self.read(cid, &now)?),
            _ => Ok(None),
        }
    }

    /// Looks at the copy of `cid` again. Returns whether it is damaged or absent; a damaged
    /// one counts as absent from then on, so that the next backup brings it again.
    ///
    /// # Errors
    /// When the catalog fails, or it cannot be told: that says nothing of the copy.
    pub fn recheck(&self, cid: Cid) -> Result<bool, ArchiveError> {
        // Compaction does not move the copy away meanwhile.
        let _gate = self.pins.hold();
        let Some(location) = self.catalog.locate_one(cid)? else { return Ok(true) };
        if self.read(cid, &location)?.is_some() {
            return Ok(false);
        }
        tracing::error!("blob {cid} in pack {} is damaged", location.pack);
        self.record(|catalog| catalog.add_damage(cid, location.pack))?;
        Ok(true)
    }

    /// The kind of the node `node` and what it refers to; none when it is absent, damaged or
    /// no blob.
    ///
    /// # Errors
    /// When the catalog fails, or it cannot be told.
    pub(crate) fn references(&self, node: Cid) -> Result<Option<(BlobKind, Vec<Cid>)>, ArchiveError> {
        // A second time, if compaction moved it between being found and being read.
        for _ in 0..2 {
            let entry = self.catalog.entries(&[node])?.pop().flatten();
            let Some(entry) = entry.filter(|entry| entry.state != State::Corrupt) else { return Ok(None) };
            if let Some(blob) = read_blob(&self.files.packs, entry.pack, entry.offset, entry.len, node)? {
                let header = Header::parse(&blob).ok();
                return Ok(header.map(|header| (header.kind, header.refs().collect())));
            }
        }
        Ok(None)
    }

    /// Where the log stands.
    #[must_use]
    pub fn position(&self) -> LogPosition {
        self.lock_journal().mark().position
    }

    /// Makes a checked `manifest` a snapshot, unless it is one already. Its tree was found
    /// whole in `generation`; if blobs became absent since, it must be looked at again, and
    /// the answer is none. `check` decides, while nobody else can commit, whether it may follow
    /// the last of its sequence.
    ///
    /// # Errors
    /// What `check` says, or when the snapshot is not durable.
    pub(crate) fn commit<E: From<ArchiveError>>(
        &self,
        snapshot: Snapshot,
        generation: u64,
        check: impl FnOnce(Option<(u64, ManifestHash)>) -> Result<(), E>,
    ) -> Result<Option<Accepted>, E> {
        let mut journal = self.lock_journal();
        if let Some(accepted) = self.catalog.accepted(snapshot.hash).map_err(ArchiveError::from)? {
            return Ok(Some(accepted));
        }
        // Who removes blobs holds the journal: from here on nothing becomes absent.
        if self.catalog.generation().map_err(ArchiveError::from)? != generation {
            return Ok(None);
        }
        let at = self.time().0.now;
        check(self.catalog.last(&snapshot.volume, &snapshot.source).map_err(ArchiveError::from)?)?;
        // The log entry is the instant of commit: before it the manifest is a file that
        // nothing names, after it a crash leaves an entry that the next start repeats.
        let mut write = || -> Result<Accepted, ArchiveError> {
            let name = manifest_name(snapshot.hash);
            self.files.manifests.write(&name, &mut [IoSlice::new(&snapshot.manifest)], Cached::Kept)?;
            let logged = journal.append(LogEntry::Commit { manifest: snapshot.hash, at })?;
            let position = logged.mark.position;
            self.repeat(&logged, Some(&snapshot))?;
            Ok(Accepted { position, at })
        };
        write().map(Some).map_err(E::from)
    }

    /// Adds an entry to the log, if `decide` wants one while nobody else can. Returns where
    /// the log stands then.
    ///
    /// # Errors
    /// What `decide` says, or when the entry is not durable.
    pub(crate) fn note<E: From<ArchiveError>>(
        &self,
        decide: impl FnOnce(i64) -> Result<Option<LogEntry>, E>,
    ) -> Result<LogPosition, E> {
        // To forget is to make space: for that there is some left.
        self.ballast.let_go_if_needed().map_err(ArchiveError::from)?;
        let mut journal = self.lock_journal();
        let Some(entry) = decide(self.time().0.now)? else { return Ok(journal.mark().position) };
        let write = || -> Result<LogPosition, ArchiveError> {
            let logged = journal.append(entry)?;
            let position = logged.mark.position;
            self.repeat(&logged, None)?;
            Ok(position)
        };
        write().map_err(E::from)
    }

    /// While this is held nobody commits, forgets or brings back.
    pub(crate) fn lock_journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// While this is held nobody else collects garbage or mends packs.
    pub(crate) fn upkeep_alone(&self) -> MutexGuard<'_, ()> {
        self.upkeep.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends all use of the catalog.
    pub fn close(&self) {
        // Who only looks something up waits for no disk.
        let since_kept = self.time().1.uptime.saturating_sub(self.kept_until.load(Ordering::Relaxed));
        if self.failure().is_none() && since_kept >= KEEP_TIME {
            // Without it, the next start knows less of the time that has passed.
            let _ = self.keep_time();
        }
        self.catalog.close();
    }

    /// A change of the catalog that fails leaves it behind the files. Files are right, so
    /// nothing is lost, but writing stops until a start has let the catalog catch up. On a full
    /// disk the change was only called off.
    pub(crate) fn record<T>(
        &self,
        change: impl FnOnce(&Catalog) -> Result<T, CatalogError>,
    ) -> Result<T, ArchiveError> {
        change(&self.catalog).map_err(|error| {
            if !error.is_full() {
                self.files.health.fail(report(&error));
            }
            error.into()
        })
    }

    /// Lets the catalog repeat an entry of the log. It must: the next one would stand on it.
    fn repeat(&self, logged: &Logged, snapshot: Option<&Snapshot>) -> Result<(), ArchiveError> {
        let append = || self.catalog.append(logged.clone(), snapshot.cloned());
        let repeated = match append() {
            Err(error) if error.is_full() => {
                self.ballast.let_go().map_err(ArchiveError::from).and_then(|()| Ok(append()?))
            }
            appended => appended.map_err(ArchiveError::from),
        };
        repeated.inspect_err(|error| self.files.health.fail(report(error)))
    }
}

pub(crate) fn manifest_name(hash: ManifestHash) -> PathBuf {
    format!("{}.manifest", SnapshotId::from(hash)).into()
}

/// An error with its causes, on one line.
pub(crate) fn report(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::read_table;
    use crate::testing::blob;
    use vsync_protocol::manifest::manifest_hash;

    const REALM: RealmId = RealmId::from_bytes([1; 16]);

    fn open(dir: &Path) -> Archive {
        Archive::open(dir, REALM, Reserve { bytes: 0, percent: 0 }).unwrap()
    }

    fn pack(content: &[u8]) -> (Cid, PackBuilder) {
        let blob = blob(BlobKind::Chunk, &[], content);
        let (cid, mut pack) = (Cid::of(&blob), PackBuilder::default());
        pack.push(cid, BlobKind::Chunk, blob);
        (cid, pack)
    }

    #[test]
    fn what_is_here_is_not_stored_again() {
        let dir = tempfile::tempdir().unwrap();
        let archive = open(dir.path());
        let pins = archive.session_pins();
        archive.put(&pins, pack(b"once").1).unwrap();
        archive.put(&pins, pack(b"once").1).unwrap();
        let (cid, mut both) = pack(b"once");
        let other = blob(BlobKind::Chunk, &[], b"other");
        both.push(Cid::of(&other), BlobKind::Chunk, other.clone());
        archive.put(&pins, both).unwrap();
        let found = archive.catalog().locate(&[cid, Cid::of(&other)]).unwrap();
        let [Some(once), Some(new)] = found[..] else { panic!("absent") };
        assert_ne!(once.pack, new.pack);
        assert_eq!(read_table(archive.packs(), new.pack).unwrap().unwrap().len(), 1);
        assert_eq!(archive.read(Cid::of(&other), &new).unwrap(), Some(other));
    }

    #[test]
    fn a_failed_disk_leaves_a_store_to_read() {
        let dir = tempfile::tempdir().unwrap();
        let archive = open(dir.path());
        let pins = archive.session_pins();
        let (cid, first) = pack(b"first");
        archive.put(&pins, first).unwrap();
        archive.files.health.fail("disk on fire".to_owned());
        assert!(matches!(archive.put(&pins, pack(b"second").1), Err(ArchiveError::Store(StoreError::ReadOnly(_)))));
        assert!(matches!(archive.check_writable(), Err(StoreError::ReadOnly(_))));
        assert_eq!(archive.failure(), Some("disk on fire"));
        let location = archive.catalog().locate(&[cid]).unwrap()[0].unwrap();
        assert!(archive.read(cid, &location).unwrap().is_some());
        drop(archive);
        assert_eq!(open(dir.path()).failure(), None, "a new start, after somebody has looked, writes again");
    }

    #[test]
    fn what_crashes_leave_behind_is_tidied() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path()));
        let leftovers = ["packs/tmp/0", "manifests/tmp/7"].map(|name| dir.path().join(name));
        leftovers.iter().for_each(|path| fs::write(path, "half").unwrap());
        // Durable, but the crash came before the log entry that would have made it count.
        let orphan = dir.path().join(manifest_name(manifest_hash(b"orphan")));
        fs::write(orphan, "orphan").unwrap();
        let archive = open(dir.path());
        assert!(leftovers.iter().all(|path| !path.exists()));
        assert_eq!(archive.catalog().totals().unwrap(), crate::catalog::Totals::default());
    }
}
