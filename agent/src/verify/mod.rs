//! Whether snapshots are whole: every node of their trees is fetched and opened, its sums
//! are compared, every chunk is asked for by name, and as many as wanted are read.
//!
//! What several snapshots share is checked once for all of them; what was found damaged is
//! looked at again for each, so that each says what it lacks.

mod chunks;
mod sample;
mod source;
mod structure;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use thiserror::Error;
use vsync_protocol::id::{Cid, SnapshotId};
use vsync_protocol::tree::EntryPath;

use crate::progress::Progress;
use crate::remote::{NodeError, Remote, RemoteError, RemoteNodes};
use crate::snapshot::Snapshot;
use crate::vault::{OpenError, Opener, Vault};

use chunks::Chunks;
use structure::{Facts, Structure, Totals, Work};

pub(crate) use sample::Sample;
pub(crate) use source::{Share, SourceError, SourceReport, compare};

/// Damage listed by name; the rest is counted.
const LISTED: usize = 1000;

/// Names of chunks remembered as checked: some 80 MiB at most.
const REMEMBERED_CHUNKS: usize = 2 << 20;

/// Nodes remembered as checked, of which there are far fewer.
const REMEMBERED_NODES: usize = 1 << 18;

/// Why a verification could not go on. What it found so far is in its report.
#[derive(Debug, Error)]
pub(crate) enum VerifyError {
    /// Network or server.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// Decompression cannot be set up.
    #[error("cannot set up opening")]
    Opener(#[source] OpenError),
    /// Somebody asked to stop.
    #[error("interrupted; what was found so far is listed")]
    Interrupted,
}

/// Something that is not as it was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Damage {
    pub(crate) snapshot: SnapshotId,
    /// The first entry that it concerns.
    pub(crate) path: EntryPath,
    /// Entries from there on that cannot be read, if it is a node.
    pub(crate) entries: u64,
    pub(crate) blob: Cid,
    /// What is wrong.
    pub(crate) reason: String,
}

/// What a verification came to.
#[derive(Debug, Default)]
pub(crate) struct VerifyReport {
    /// Snapshots looked at.
    pub(crate) snapshots: u64,
    /// Nodes fetched, opened and compared.
    pub(crate) nodes: u64,
    /// Chunks that the server says it holds.
    pub(crate) held: u64,
    /// Chunks fetched and opened.
    pub(crate) read: u64,
    /// Bytes of those.
    pub(crate) bytes_read: u64,
    /// What was found, the first of it.
    pub(crate) damage: Vec<Damage>,
    /// How much was found in all.
    pub(crate) damage_count: u64,
}

/// Verifies one snapshot after another.
pub(crate) struct Verifier<'a> {
    remote: &'a Remote,
    sample: Sample,
    progress: &'a Progress,
    checked: Checked,
    report: VerifyReport,
}

/// What need not be checked again.
#[derive(Default)]
struct Checked {
    nodes: HashMap<Cid, Facts>,
    chunks: HashSet<[u8; 16]>,
}

impl<'a> Verifier<'a> {
    /// A verifier that reads the chunks which `sample` chooses.
    #[must_use]
    pub(crate) fn new(remote: &'a Remote, sample: Sample, progress: &'a Progress) -> Self {
        Self { remote, sample, progress, checked: Checked::default(), report: VerifyReport::default() }
    }

    /// Verifies a snapshot; whether it is whole.
    ///
    /// # Errors
    /// When it could not be looked at to the end. Damage is no error here.
    pub(crate) fn snapshot(&mut self, snapshot: &Snapshot, vault: &Arc<Vault>) -> Result<bool, VerifyError> {
        let before = self.report.damage_count;
        self.report.snapshots += 1;
        let opener = Opener::new(vault.clone()).map_err(VerifyError::Opener)?;
        let nodes = RemoteNodes::new(self.remote.fetcher(), opener);
        let chunks = Chunks::new(self.remote, vault, &self.sample).map_err(VerifyError::Opener)?;
        let (checked, report) = (&mut self.checked, &mut self.report);
        let work = Work { id: snapshot.id, checked, report, progress: self.progress };
        Structure::new(nodes, chunks, work)
            .run(&snapshot.root(), Totals { entries: snapshot.sealed.entries, bytes: snapshot.sealed.bytes })?;
        Ok(self.report.damage_count == before)
    }

    /// What was found.
    #[must_use]
    pub(crate) fn finish(self) -> VerifyReport {
        self.report
    }
}

impl Checked {
    fn node(&mut self, cid: Cid, facts: Facts) {
        if self.nodes.len() >= REMEMBERED_NODES {
            self.nodes.clear();
        }
        self.nodes.insert(cid, facts);
    }

    /// Remembers a chunk; whether it is new.
    fn chunk(&mut self, cid: &Cid) -> bool {
        if self.chunks.len() >= REMEMBERED_CHUNKS {
            self.chunks.clear();
        }
        self.chunks.insert(short(cid))
    }
}

/// Enough of a name to tell chunks apart that nobody made to collide.
fn short(cid: &Cid) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&cid.as_bytes()[..16]);
    short
}

impl VerifyReport {
    fn add(&mut self, damage: Damage) {
        self.damage_count += 1;
        if self.damage.len() < LISTED {
            self.damage.push(damage);
        }
    }
}

/// Whether a node error is about the connection and not about the node.
fn fatal(error: NodeError) -> Result<String, RemoteError> {
    match error {
        NodeError::Remote(error) => Err(error),
        NodeError::Absent(_) => Ok("missing from the server, or damaged there".to_owned()),
        NodeError::Damaged { source, .. } => Ok(format!("damaged: {source}")),
    }
}
