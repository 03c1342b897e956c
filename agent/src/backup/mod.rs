//! From a volume to a snapshot.
//!
//! ```text
//!  walk ∥ parent tree ─► unchanged ───────────────────────────────┐
//!          │ changed                                              │ in path order
//!          ▼                                                      ▼
//!        read, cut ─► pid ─► known ─────────────────────────► tree nodes ─► manifest
//!                       │ new                                     │
//!                       ▼                                         ▼
//!                     seal ───────────────► HAVE, upload ◄────── seal
//! ```
//!
//! Large files are read ahead, and hashed ahead where the parent tells what to expect.
//!
//! Every arrow between threads is a bounded channel, and the bytes in flight are bounded by
//! two budgets: for what is read and not yet sealed, and for what is sealed and not yet
//! durable on the server.

mod ahead;
mod assemble;
mod chunking;
mod error;
mod file;
mod hardlinks;
mod pipeline;
pub mod predict;
mod scan;
mod seal;
mod stream;

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use vsync_protocol::id::{MachineName, RealmId, SnapshotId, VolumeName};
use vsync_protocol::log::Receipt;
use vsync_protocol::manifest::{Body, Sealed, SnapshotKind, manifest_hash};
use vsync_protocol::tree::{Entry, EntryPath, VolumeInfo};

use crate::cache::{Cache, Parent};
use crate::chunk::{PARAMETERS, Profile};
use crate::progress::Progress;
use crate::remote::{CommitOutcome, HeadStore, Remote, UploadStats};
use crate::snapshot;
use crate::tree::{Reference, Totals};
use crate::vault::Vault;

pub use error::BackupError;

use pipeline::Pipeline;

/// What is backed up.
pub enum Source<'a> {
    /// A directory and everything in it.
    Directory(&'a Path),
    /// The bytes of a stream, as one file.
    Stream(&'a mut (dyn Read + Send)),
}

/// Who backs up, with which keys.
pub struct Writer {
    /// The realm.
    pub realm: RealmId,
    /// This machine.
    pub machine: MachineName,
    /// Signs manifests.
    pub key: ed25519_dalek::SigningKey,
    /// The vault of the current epoch.
    pub vault: Arc<Vault>,
    /// To whom manifests are sealed.
    pub reader: age::x25519::Recipient,
}

/// How a volume is backed up.
#[derive(Clone, Debug)]
pub struct Options {
    /// The volume.
    pub volume: VolumeName,
    /// What the snapshot says of it.
    pub info: VolumeInfo,
    /// Labels of the snapshot, `key=value`.
    pub tags: Vec<String>,
    /// How its files are cut; guessed from each file's name if not given.
    pub profile: Option<Profile>,
}

/// What a backup came to.
#[derive(Clone, Debug)]
pub struct Report {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The snapshot before it, if this machine knows it.
    pub parent: Option<SnapshotId>,
    /// Whether it holds everything.
    pub kind: SnapshotKind,
    /// Entries and bytes in it.
    pub totals: Totals,
    /// What was sent.
    pub upload: UploadStats,
    /// What is not exact, the first of it.
    pub defects: Vec<(EntryPath, String)>,
    /// How much is not exact.
    pub defect_count: u64,
    /// The server's word.
    pub receipt: Receipt,
    /// From start to receipt.
    pub duration: Duration,
}

/// Whether what earlier runs left behind may be relied upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    /// Unchanged files are taken from the parent, unread.
    Cache,
    /// The server has lost blobs: everything is read and offered again.
    Nothing,
}

/// Everything that a finished pipeline hands on.
struct Built {
    root: Reference,
    totals: Totals,
    defects: Vec<(EntryPath, String)>,
    defect_count: u64,
}

/// Backs a volume up.
///
/// # Errors
/// When no snapshot came of it. What was sent stays on the server for the next attempt.
pub fn run(
    mut source: Source<'_>,
    writer: &Writer,
    options: &Options,
    remote: &Remote,
    cache: &mut Cache,
    heads: &HeadStore,
    progress: &Arc<Progress>,
) -> Result<Report, BackupError> {
    let begun = Instant::now();
    remote.check_history(heads)?;
    let job = Job { writer, options, remote, heads, progress, begun, started: now() };
    match job.attempt(&mut source, cache, Trust::Cache) {
        Err(BackupError::Missing { .. }) if matches!(source, Source::Directory(_)) => {
            tracing::warn!("the server lacks blobs of earlier backups; reading everything again");
            cache.abandon();
            job.attempt(&mut source, cache, Trust::Nothing)
        }
        // Found before anything of a stream is read, so a stream can go on too.
        Err(BackupError::DamagedCache(reason)) => {
            tracing::warn!("{reason}; reading everything again");
            cache.abandon();
            cache.clear()?;
            job.attempt(&mut source, cache, Trust::Nothing)
        }
        outcome => outcome,
    }
    .inspect_err(|_| cache.abandon())
}

struct Job<'a> {
    writer: &'a Writer,
    options: &'a Options,
    remote: &'a Remote,
    heads: &'a HeadStore,
    progress: &'a Arc<Progress>,
    begun: Instant,
    started: Duration,
}

impl Job<'_> {
    fn attempt(&self, source: &mut Source<'_>, cache: &mut Cache, trust: Trust) -> Result<Report, BackupError> {
        let parent = self.parent(cache, trust);
        let parent_id = parent.as_ref().map(|parent| parent.snapshot);
        let upload = self.remote.upload(self.options.volume.clone())?;
        let last = upload.last();
        let cutter = self.writer.vault.cutter(PARAMETERS).ok_or(BackupError::Parameters)?;
        cache.begin()?;
        let pipeline = Pipeline {
            vault: self.writer.vault.clone(),
            cutter,
            profile: self.options.profile,
            upload: upload.sender(),
            progress: self.progress.clone(),
            trust,
        };
        let built = pipeline.run(source, self.options.info.clone(), parent, cache);
        let (mut uploaded, stats) = match built {
            Ok(_) => upload.finish()?,
            // When the upload broke, that is the reason and the pipeline's error its echo.
            Err(BackupError::UploadEnded) => upload
                .finish()
                .map(|_| ())
                .map_or_else(|error| Err(BackupError::from(error)), |()| Err(BackupError::UploadEnded))?,
            Err(error) => return Err(error),
        };
        let built = built?;
        let manifest = self.manifest(&built, last)?;
        let receipt = match uploaded.commit(&manifest)? {
            CommitOutcome::Committed(receipt) => receipt,
            CommitOutcome::Missing(cids) => return Err(BackupError::Missing { count: cids.len() }),
        };
        if receipt.manifest != manifest_hash(&manifest) || !receipt.is_signed_by(self.remote.server_key()) {
            return Err(BackupError::Receipt);
        }
        // The receipt is on this machine's disk before anybody hears of success.
        self.heads.save(receipt.log)?;
        let snapshot = manifest_hash(&manifest).into();
        cache.finish(&Parent {
            snapshot,
            root: built.root,
            chunker: PARAMETERS,
            epoch: self.writer.vault.epoch,
            started: self.started.as_secs() as i64,
        })?;
        Ok(Report {
            snapshot,
            parent: parent_id,
            kind: kind(&built),
            totals: built.totals,
            upload: stats,
            defects: built.defects,
            defect_count: built.defect_count,
            receipt,
            duration: self.begun.elapsed(),
        })
    }

    /// The last snapshot, if what is known of it fits what will be written now.
    fn parent(&self, cache: &Cache, trust: Trust) -> Option<Parent> {
        cache.parent().filter(|parent| {
            trust == Trust::Cache && parent.epoch == self.writer.vault.epoch && parent.chunker == PARAMETERS
        })
    }

    fn manifest(
        &self,
        built: &Built,
        last: Option<(u64, vsync_protocol::id::ManifestHash)>,
    ) -> Result<Vec<u8>, BackupError> {
        let body = Body {
            realm: self.writer.realm,
            volume: self.options.volume.clone(),
            source: self.writer.machine.clone(),
            sequence: last.map_or(1, |(sequence, _)| sequence + 1),
            previous: last.map(|(_, hash)| hash),
            epoch: self.writer.vault.epoch,
            root: built.root.cid,
            kind: kind(built),
            started: self.started.as_millis() as i64,
            witness: self.heads.load()?,
            tags: self.options.tags.clone(),
        };
        let sealed = Sealed {
            body: [0; 32],
            root_key: built.root.child.ck,
            root_len: built.root.child.raw_len,
            entries: built.totals.entries,
            bytes: built.totals.bytes,
            defects: built.defect_count,
            chunker: PARAMETERS,
            program: concat!("vsync ", env!("CARGO_PKG_VERSION")).into(),
            duration: self.begun.elapsed().as_millis() as u64,
        };
        Ok(snapshot::make(&body, sealed, &self.writer.reader, &self.writer.key)?)
    }
}

const fn kind(built: &Built) -> SnapshotKind {
    if built.defect_count == 0 { SnapshotKind::Full } else { SnapshotKind::Partial }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The one entry of a stream's snapshot.
fn stream_entry(name: &EntryPath) -> Entry {
    let now = now();
    let time = vsync_protocol::tree::Time { seconds: now.as_secs() as i64, nanos: now.subsec_nanos() };
    Entry {
        path: name.clone(),
        kind: vsync_protocol::tree::EntryKind::File,
        mode: 0o600,
        uid: 0,
        gid: 0,
        mtime: time,
        ctime: time,
        inode: 0,
        size: 0,
        target: None,
        device: None,
        xattrs: None,
    }
}
