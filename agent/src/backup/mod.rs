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
mod still;
mod stream;

use std::collections::HashSet;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use vsync_protocol::id::{MachineName, RealmId, SnapshotId, VolumeName};
use vsync_protocol::limits::MAX_TREE_DEPTH;
use vsync_protocol::log::Receipt;
use vsync_protocol::manifest::{Body, Sealed, SnapshotKind, manifest_hash};
use vsync_protocol::tree::{Entry, EntryPath, VolumeInfo};

use crate::cache::{Cache, Parent};
use crate::chunk::{PARAMETERS, Profile};
use crate::progress::Progress;
use crate::remote::{CommitOutcome, HeadStore, Remote, Upload, UploadStats, Uploaded};
use crate::snapshot;
use crate::tree::{Reference, Totals};
use crate::vault::Vault;

pub use error::BackupError;
pub use still::Stillness;

use pipeline::Pipeline;
use still::Basis;

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
    /// How long applications were held for it; `None` if none was.
    pub held: Option<Duration>,
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

/// Reads everything again as long as the server finds out that it lacks blobs that it had. What it lacks below a node
/// it finds only when it has the node, which may take a round for each level of the tree; if it names nothing new, no
/// round helps.
fn healing(
    cache: &mut Cache,
    attempt: &mut impl FnMut(&mut Cache, Trust) -> Result<Report, BackupError>,
) -> Result<Report, BackupError> {
    let mut named = HashSet::new();
    let mut outcome = attempt(cache, Trust::Cache);
    for _ in 0..MAX_TREE_DEPTH {
        let Err(BackupError::Missing { cids }) = &outcome else { break };
        let before = named.len();
        named.extend(cids.iter().copied());
        if named.len() == before {
            break;
        }
        tracing::warn!("the server lacks blobs of earlier backups; reading everything again");
        cache.abandon();
        outcome = attempt(cache, Trust::Nothing);
    }
    outcome
}

/// A backup of one volume.
pub struct Backup<'a> {
    /// Who makes it.
    pub writer: &'a Writer,
    /// Of what, and how.
    pub options: &'a Options,
    /// The server that it is sent to.
    pub remote: &'a Remote,
    /// Keeps the receipt.
    pub heads: &'a HeadStore,
    /// Counts what is done, and can stop it.
    pub progress: &'a Arc<Progress>,
    /// Since when it takes time.
    pub begun: Instant,
}

impl Backup<'_> {
    /// Backs the volume up as it is at the moment.
    ///
    /// # Errors
    /// When no snapshot came of it. What was sent stays on the server for the next attempt.
    pub fn run(&self, source: Source<'_>, cache: &mut Cache) -> Result<Report, BackupError> {
        self.run_still(source, cache, None)
    }

    /// Backs the volume up while `stillness` keeps it from changing, for as short a time as possible:
    /// everything is read and sent once before, and only what changed since is read while nothing
    /// moves.
    ///
    /// # Errors
    /// As [`run`](Self::run); and when the volume cannot be made to stand still, or does not stay so.
    pub fn run_still(
        &self,
        mut source: Source<'_>,
        cache: &mut Cache,
        mut stillness: Option<&mut dyn Stillness>,
    ) -> Result<Report, BackupError> {
        let is_directory = matches!(source, Source::Directory(_));
        self.remote.check_history(self.heads)?;
        let mut attempt = |cache: &mut Cache, trust| match &mut stillness {
            Some(stillness) => self.attempt(&mut source, cache, trust, Some(&mut **stillness)),
            None => self.attempt(&mut source, cache, trust, None),
        };
        let outcome = if is_directory { healing(cache, &mut attempt) } else { attempt(cache, Trust::Cache) };
        match outcome {
            // Found after the stream was read, and it cannot be read again: the next one has nothing to rely on.
            Err(BackupError::Missing { cids }) if !is_directory => {
                cache.abandon();
                cache.clear()?;
                Err(BackupError::MissingOfStream { count: cids.len() })
            }
            // Found before anything of a stream is read, so a stream can go on too.
            Err(BackupError::DamagedCache(reason)) => {
                tracing::warn!("{reason}; reading everything again");
                cache.abandon();
                cache.clear()?;
                attempt(cache, Trust::Nothing)
            }
            outcome => outcome,
        }
        .inspect_err(|_| cache.abandon())
    }

    fn attempt(
        &self,
        source: &mut Source<'_>,
        cache: &mut Cache,
        trust: Trust,
        mut stillness: Option<&mut dyn Stillness>,
    ) -> Result<Report, BackupError> {
        let mut basis = Basis::new(self.parent(cache, trust), trust);
        let last = basis.parent.as_ref().and_then(|parent| parent.snapshot);
        // A stream stands still by itself.
        if let (Source::Directory(path), Some(stillness)) = (&*source, stillness.as_deref_mut()) {
            basis = self.make_still(path, cache, basis, stillness)?;
        } else if let Source::Directory(path) = &*source {
            basis.margin = still::margin_soon(path);
        }
        let Basis { parent, trust, sent, unchanged, mode, started, margin } = basis;
        let mut info = self.options.info.clone();
        if let Some(mode) = mode {
            info.quiesce = mode.word().to_owned();
        }
        let upload = self.remote.upload(self.options.volume.clone())?;
        let previous = upload.last();
        cache.begin()?;
        let mut all_read = || stillness.as_deref_mut().map_or(Ok(()), |stillness| Ok(stillness.end()?));
        let built = self.pipeline(&upload, trust)?.run(source, info, parent, cache, &mut all_read);
        let (built, mut uploaded, stats) = finish(upload, built)?;
        unchanged.iter().for_each(|&unchanged| self.progress.unchanged.set(unchanged));
        let manifest = self.manifest(&built, previous, started)?;
        let receipt = match uploaded.commit(&manifest)? {
            CommitOutcome::Committed(receipt) => receipt,
            CommitOutcome::Missing(cids) => return Err(BackupError::Missing { cids }),
        };
        let fits = receipt.realm == self.writer.realm && receipt.manifest == manifest_hash(&manifest);
        if !fits || !receipt.is_signed_by(self.remote.server_key()) {
            return Err(BackupError::Receipt);
        }
        // The receipt is on this machine's disk before anybody hears of success.
        self.heads.save(receipt.log)?;
        let snapshot = manifest_hash(&manifest).into();
        cache.finish(&self.as_parent(Some(snapshot), built.root, started.saturating_sub(margin)))?;
        Ok(Report {
            snapshot,
            parent: last,
            kind: kind(&built),
            totals: built.totals,
            upload: sent.and(stats),
            defects: built.defects,
            defect_count: built.defect_count,
            receipt,
            duration: self.begun.elapsed(),
            held: stillness.and_then(|stillness| stillness.lasted()),
        })
    }

    fn pipeline(&self, upload: &Upload, trust: Trust) -> Result<Pipeline, BackupError> {
        Ok(Pipeline {
            vault: self.writer.vault.clone(),
            cutter: self.writer.vault.cutter(PARAMETERS).ok_or(BackupError::Parameters)?,
            profile: self.options.profile,
            upload: upload.sender(),
            progress: self.progress.clone(),
            trust,
        })
    }

    /// What the next backup compares with.
    fn as_parent(&self, snapshot: Option<SnapshotId>, root: Reference, settled: Duration) -> Parent {
        let epoch = self.writer.vault.epoch;
        Parent { snapshot, root, chunker: PARAMETERS, epoch, settled: settled.as_secs() as i64 }
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
        started: Duration,
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
            started: started.as_millis() as i64,
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

/// Ends an upload whose senders are gone, and tells why it failed if it did.
fn finish(upload: Upload, built: Result<Built, BackupError>) -> Result<(Built, Uploaded, UploadStats), BackupError> {
    match built {
        Ok(built) => {
            let (uploaded, stats) = upload.finish()?;
            Ok((built, uploaded, stats))
        }
        // When the upload broke, that is the reason and the pipeline's error its echo.
        Err(BackupError::UploadEnded) => {
            upload.finish()?;
            Err(BackupError::UploadEnded)
        }
        Err(error) => Err(error),
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
