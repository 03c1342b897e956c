//! Reading ahead: while applications go on, everything is read and sent once. Then they are held, and only what
//! changed since is read again; that becomes the snapshot. The first tree never does.
//!
//! What the second reading takes over unread must be as it was read the first time. It is taken over if size, times and
//! inode are the same, and the inode's time is older than the first reading by more than a moment: each write since
//! then would have moved that time. Two kinds of writes do not, and are dealt with:
//!
//! - A page that is mapped into memory and already written to may be written to again, and the time does not move until
//!   the page has been to the disk. So the file system is synced after the first reading's time is noted and before it
//!   begins: what is written later finds its page clean, and moves the time.
//! - File systems that keep no such time for mapped pages (tmpfs), or keep it elsewhere (NFS, FUSE): on those nothing
//!   is read ahead, and everything is read as if there were one reading only.
//!
//! And if the clock was set meanwhile, the first reading counts for nothing.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use rustix::fs::{Mode, OFlags};

use super::pipeline::Pipeline;
use super::{Backup, BackupError, Source, Trust, finish, now};
use crate::cache::{Cache, Parent};
use crate::config::Quiesce;
use crate::quiesce::QuiesceError;
use crate::remote::UploadStats;

/// Something that can keep a volume from changing.
pub trait Stillness {
    /// Whether anything moves, so that reading ahead saves it time.
    ///
    /// # Errors
    /// When it cannot be told, or could not be stopped.
    fn is_needed(&mut self) -> Result<bool, QuiesceError>;

    /// Makes the volume stand still, and says what a snapshot may claim of it.
    ///
    /// # Errors
    /// When it does not.
    fn begin(&mut self) -> Result<Quiesce, QuiesceError>;

    /// Everything is read: lets the volume move again.
    ///
    /// # Errors
    /// When it has moved before: what was read is no moment of it.
    fn end(&mut self) -> Result<(), QuiesceError>;

    /// How long it stood still, so far.
    fn lasted(&self) -> Option<Duration>;
}

/// What a backup builds on.
pub(super) struct Basis {
    /// The tree to compare with.
    pub(super) parent: Option<Parent>,
    pub(super) trust: Trust,
    /// What was sent already.
    pub(super) sent: UploadStats,
    /// Files that had not changed since the last snapshot, if the tree is younger than that.
    pub(super) unchanged: Option<u64>,
    /// What the snapshot may claim.
    pub(super) mode: Option<Quiesce>,
    /// When the reading begins.
    pub(super) started: Duration,
    /// A file that changed within so long before that may change again without telling.
    pub(super) margin: Duration,
}

impl Basis {
    pub(super) fn new(parent: Option<Parent>, trust: Trust) -> Self {
        let sent = UploadStats::default();
        Self { parent, trust, sent, unchanged: None, mode: None, started: now(), margin: UNSYNCED }
    }
}

impl Backup<'_> {
    /// Reads ahead if that helps, and makes the volume stand still.
    pub(super) fn make_still(
        &self,
        directory: &Path,
        cache: &mut Cache,
        mut basis: Basis,
        stillness: &mut dyn Stillness,
    ) -> Result<Basis, BackupError> {
        let (begun, started) = (Instant::now(), now());
        if stillness.is_needed()? {
            if margin(directory) == TICK {
                basis = self.read_ahead(directory, cache, Basis { started, margin: TICK, ..basis })?;
                // Most of what is to be synced below is so while applications go on.
                sync(directory);
            } else {
                tracing::info!("reading nothing ahead: the file system of {} may hide writes", directory.display());
            }
        }
        let mode = Some(stillness.begin()?);
        if clock_was_set(begun, started) {
            tracing::warn!("the clock was set during the backup; reading everything again");
            basis.parent = None;
        }
        // Noted before it is synced, for the next backup's sake, as above.
        let started = now();
        Ok(Basis { mode, started, margin: margin(directory), ..basis })
    }

    fn read_ahead(&self, directory: &Path, cache: &mut Cache, basis: Basis) -> Result<Basis, BackupError> {
        let Basis { parent, trust, started, margin, .. } = basis;
        let last = parent.as_ref().and_then(|parent| parent.snapshot);
        let upload = self.remote.upload(self.options.volume.clone())?;
        cache.begin()?;
        let pipeline: Pipeline = self.pipeline(&upload, trust)?;
        let mut source = Source::Directory(directory);
        let built = pipeline.run(&mut source, self.options.info.clone(), parent, cache, &mut || Ok(()));
        let (built, _, sent) = finish(upload, built)?;
        // Everything in it is on the server now, whether it was believed before or not.
        let parent = self.as_parent(last, built.root, started.saturating_sub(margin));
        cache.finish(&parent)?;
        let unchanged = Some(self.progress.unchanged.get());
        self.progress.go_over_again();
        Ok(Basis { parent: Some(parent), trust: Trust::Cache, sent, unchanged, mode: None, started, margin })
    }
}

/// The file systems on which every write moves the inode's time, once a page is clean: they are told when a mapped page
/// is first written to, and no other machine writes to them.
const TRUSTED: [u64; 4] = [
    0xEF53,      // ext2, ext3, ext4
    0x5846_5342, // xfs
    0x9123_683E, // btrfs
    0xF2F5_2010, // f2fs
];

fn shows_every_write(directory: &Path) -> bool {
    rustix::fs::statfs(directory)
        .is_ok_and(|found| u64::try_from(found.f_type).is_ok_and(|kind| TRUSTED.contains(&kind)))
}

/// The clock that inodes are stamped with ticks a few hundred times a second, and stands still between: what is written
/// within one tick moves no time. Some file systems keep whole seconds only.
const TICK: Duration = Duration::from_secs(2);

/// A page that is mapped into memory and written to again moves no time until it has been to the disk, and that may take
/// the 30 s after which the kernel calls it old, the 5 s between two looks for old ones, and the writing.
const UNSYNCED: Duration = Duration::from_secs(60);

/// How long before a reading that begins now a file must have changed last, for its next change to show.
///
/// Everything is written to the disk here: every page is clean after that, and the next write to one moves the time.
/// Where that cannot be had, the kernel is given the time to do it by itself.
fn margin(directory: &Path) -> Duration {
    if shows_every_write(directory) && sync(directory) { TICK } else { UNSYNCED }
}

/// Nobody waits longer than this for a disk that is behind.
const PATIENCE: Duration = Duration::from_secs(10);

/// The same where nothing is held: rather than wait for a disk that has much to write for others, what changed within
/// the last minute is read again.
pub(super) fn margin_soon(directory: &Path) -> Duration {
    let (done, synced) = bounded(1);
    let directory = directory.to_owned();
    // The thread ends when the disk has caught up, whether somebody still listens or not.
    thread::spawn(move || {
        let _ = done.send(margin(&directory));
    });
    synced.recv_timeout(PATIENCE).unwrap_or(UNSYNCED)
}

/// Writes the file system's pages to the disk. False if that failed.
fn sync(directory: &Path) -> bool {
    let synced = rustix::fs::open(directory, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .and_then(|directory| rustix::fs::syncfs(&directory));
    if let Err(error) = &synced {
        tracing::warn!("cannot sync the file system of {}: {error}", directory.display());
    }
    synced.is_ok()
}

/// Whether the clock that inodes are stamped with went otherwise than time did.
fn clock_was_set(begun: Instant, started: Duration) -> bool {
    let (by_time, by_clock) = (begun.elapsed(), now().checked_sub(started));
    by_clock.is_none_or(|by_clock| by_clock.abs_diff(by_time) > Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_is_noticed() {
        let begun = Instant::now();
        assert!(!clock_was_set(begun, now()));
        assert!(clock_was_set(begun, now() + Duration::from_secs(5)), "set back");
        assert!(clock_was_set(begun, now() - Duration::from_secs(5)), "set forward");
    }

    #[test]
    fn memory_is_not_trusted_to_show_writes() {
        assert!(!shows_every_write(Path::new("/proc")));
        assert!(!shows_every_write(Path::new("/dev/shm")));
        assert!(!shows_every_write(Path::new("/nowhere/at/all")));
    }
}
