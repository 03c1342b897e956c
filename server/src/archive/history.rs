//! What becomes and ceases to be a snapshot.

use std::io::IoSlice;
use std::sync::{MutexGuard, PoisonError};

use vsync_protocol::id::ManifestHash;
use vsync_protocol::log::LogEntry;
use vsync_protocol::manifest::LogPosition;

use super::{Archive, ArchiveError, manifest_name};
use crate::catalog::{Accepted, Snapshot};
use crate::store::StoreError;
use crate::store::journal::{Journal, Logged};
use crate::store::room::{Cached, is_full};
use crate::words::report;

impl Archive {
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
            let logged = match journal.append(entry.clone()) {
                // A quota does not show in the space of the file system.
                Err(StoreError::Io { source, .. }) if is_full(&source) => {
                    self.ballast.let_go()?;
                    journal.append(entry)?
                }
                appended => appended?,
            };
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
