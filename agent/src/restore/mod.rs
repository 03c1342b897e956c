//! From a snapshot to a volume.
//!
//! ```text
//!  snapshot's tree ∥ target's walk ─► compare existing files ─► wanted chunks ─► fetch
//!      │ directories, links, deletions                                            │
//!      ▼                                                                          ▼
//!    done at the end ◄──────────── file complete ◄──────────── open, write at offset
//! ```
//!
//! What is there already and right is not fetched; what is too much is deleted last.

mod changes;
mod compare;
mod error;
mod file;
mod finish;
mod inspect;
mod known;
mod links;
mod mark;
mod moved;
mod pieces;
mod plan;
mod record;
mod select;
mod survey;
mod transfer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vsync_protocol::tree::{Entry, EntryPath, Root};

use crate::progress::Progress;
use crate::remote::{Remote, RemoteNodes};
use crate::snapshot::Snapshot;
use crate::tree::TreeReader;
use crate::vault::{Opener, Vault};
use crate::volume::{Target, Unrestored};

pub(crate) use changes::{Action, Change, Changes, Property};
pub(crate) use error::{RestoreError, incomplete};
pub(crate) use mark::Mark;
pub(crate) use select::Selection;

/// What of a snapshot is restored, and how.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// What of it; all if empty.
    pub(crate) selection: Selection,
    /// Only find out what would be done.
    pub(crate) dry_run: bool,
    /// Where this machine keeps what it restored into which directory, so that files which
    /// nobody touched since need not be read; without it, all are.
    pub(crate) records: Option<PathBuf>,
}

/// What a restore came to, or would come to.
#[derive(Debug, Default)]
pub(crate) struct RestoreReport {
    /// Files written, wholly or in part.
    pub(crate) files_restored: u64,
    /// Files that were right already.
    pub(crate) files_unchanged: u64,
    /// Files that had to be opened to know whether they are right.
    pub(crate) files_opened: u64,
    /// Bytes read from them for that.
    pub(crate) bytes_read: u64,
    /// Entries deleted because the snapshot does not have them.
    pub(crate) deleted: u64,
    /// Entries in all.
    pub(crate) entries: u64,
    /// Bytes of content in all.
    pub(crate) bytes: u64,
    /// Bytes of content that had to be fetched.
    pub(crate) bytes_fetched: u64,
    /// Files that are not as in the snapshot, and why.
    pub(crate) damaged: Vec<(EntryPath, String)>,
    /// Attributes that could not be set.
    pub(crate) unrestored: Vec<Unrestored>,
    /// Places in the target that could not be looked through: what is there stays.
    pub(crate) left: Vec<(EntryPath, String)>,
    /// What was not exact in the snapshot itself, of what was selected.
    pub(crate) defects: Vec<(EntryPath, String)>,
    /// What a dry run found to be done; otherwise nothing.
    pub(crate) changes: Changes,
    /// From start to the last byte on disk.
    pub(crate) duration: Duration,
}

impl RestoreReport {
    /// Whether everything is as it was at the source.
    #[must_use]
    pub(crate) const fn is_exact(&self) -> bool {
        self.damaged.is_empty() && self.unrestored.is_empty() && self.left.is_empty() && self.defects.is_empty()
    }
}

/// Opens the tree of a snapshot at `from`.
///
/// # Errors
/// When its root cannot be had.
pub(crate) fn open_tree(
    remote: &Remote,
    vault: &Arc<Vault>,
    snapshot: &Snapshot,
    from: &EntryPath,
) -> Result<(Root, TreeReader<RemoteNodes>), RestoreError> {
    let opener = Opener::new(vault.clone()).map_err(RestoreError::Opener)?;
    let nodes = RemoteNodes::new(remote.fetcher(), opener);
    Ok(TreeReader::open(nodes, &snapshot.root(), from)?)
}

/// Restores a snapshot into a directory, which may hold an older or newer version.
///
/// # Errors
/// When the restore could not go on. Files that had been there are then either as they
/// were, as in the snapshot, or named by the error; running it again goes on.
pub(crate) fn run(
    remote: &Remote,
    vault: &Arc<Vault>,
    snapshot: &Snapshot,
    directory: &Path,
    options: &Options,
    progress: &Arc<Progress>,
) -> Result<RestoreReport, RestoreError> {
    let begun = Instant::now();
    let (root, tree) = open_tree(remote, vault, snapshot, &options.selection.start())?;
    if options.selection.is_all() {
        progress.total_entries.set(snapshot.sealed.entries);
        progress.total_bytes.set(snapshot.sealed.bytes);
    }
    let target = Arc::new(Target::open(directory)?);
    let cutter = vault.cutter(snapshot.sealed.chunker);
    let bytes = snapshot.sealed.bytes;
    let record = options.records.as_ref().filter(|_| options.selection.is_all());
    let record = record.and_then(|records| Some(records.join(record::name(directory)?)));
    let top = root.directory.filter(|_| options.selection.is_all()).map(as_root);
    let restore = transfer::Restore { remote, vault, snapshot, cutter, target, options, progress, record, bytes, top };
    let mut outcome = restore.transfer(tree)?;
    if outcome.report.entries == 0 && !options.selection.is_all() {
        return Err(RestoreError::NothingSelected { snapshot: snapshot.id });
    }
    if !options.dry_run {
        let finished = finish::run(&restore.target, &mut outcome, restore.top);
        let damaged = || outcome.report.damaged.iter().map(|(path, _)| path.clone()).collect();
        finished.map_err(|error| error.leaving(damaged()))?;
    }
    let mut report = outcome.report;
    report.deleted = outcome.extraneous.len();
    report.files_opened = progress.opened.get();
    report.bytes_read = progress.read.get();
    report.defects = root.defects;
    report.defects.retain(|(path, _)| options.selection.concerns(path));
    report.duration = begun.elapsed();
    Ok(report)
}

fn as_root(directory: Entry) -> Entry {
    Entry { path: EntryPath::root(), ..directory }
}
