//! An open store as a whole: packs, manifests, log and the catalog over them, brought to
//! agree when it is opened.
//!
//! The order of durable writes: a pack before the catalog that names its blobs; a manifest
//! before the log entry that makes it a snapshot; the log entry before the catalog that
//! lists it; all of it before the answer. So a crash leaves files that nothing names yet,
//! never a name without its file, and opening repeats into the catalog what it missed.

mod blobs;
mod files;
mod history;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use vsync_protocol::id::{PackId, RealmId};

use crate::catalog::{Catalog, CatalogError};
use crate::catchup::{adopt, replay};
use crate::clock::{Clock, Kept, Moment};
use crate::pins::Pins;
use crate::store::ballast::Ballast;
use crate::store::disk::Reserve;
use crate::store::home::Home;
use crate::store::journal::Journal;
use crate::store::steps::Steps;
use crate::store::{PackStore, StoreError};
use crate::upkeep::guard::Holds;
use crate::upkeep::usage::{Pendings, Usages};
use crate::words::report;

pub(crate) use files::{Files, catalog_path, manifest_name};

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
    /// that bring the same blobs at once would else both be told that they are new. Packs that
    /// are durable, and that a full disk has kept out of the catalog.
    storing: Mutex<Vec<PackId>>,
    /// Held by whoever collects or repairs: one at a time does.
    upkeep: Mutex<()>,
    pub(crate) holds: Mutex<Holds>,
    pub(crate) usages: Mutex<Usages>,
    pub(crate) pendings: Mutex<Pendings>,
    pub(crate) ballast: Ballast,
    _home: Home,
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
}

#[cfg(test)]
mod tests;
