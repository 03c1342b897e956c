//! Why a restore could not go on.

use std::io;

use thiserror::Error;
use vsync_protocol::id::{Cid, SnapshotId};
use vsync_protocol::tree::EntryPath;

use crate::remote::{NodeError, RemoteError};
use crate::snapshot::SnapshotError;
use crate::tree::TreeError;
use crate::vault::OpenError;
use crate::volume::{TargetError, WalkError};

/// Why a restore could not go on.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// The tree of the snapshot.
    #[error(transparent)]
    Tree(#[from] TreeError<NodeError>),
    /// The manifest.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Network or server.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The target.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// What is in the target.
    #[error(transparent)]
    Walk(#[from] WalkError),
    /// The target is full.
    #[error("the target is full; {} are incomplete: {}", count(.incomplete), names(.incomplete))]
    NoSpace {
        /// Files that were being written in place.
        incomplete: Vec<EntryPath>,
        /// What hit the limit.
        source: TargetError,
    },
    /// Setting up a thread's opener.
    #[error("cannot set up opening")]
    Opener(#[source] OpenError),
    /// A blob that is needed to go on.
    #[error("blob {cid}, needed by {path}, is missing or damaged on the server")]
    Blob {
        /// The blob.
        cid: Cid,
        /// The file.
        path: EntryPath,
    },
    /// Where the bytes should go.
    #[error("cannot write the output")]
    Output(#[source] io::Error),
    /// What waits for the end could not be kept.
    #[error("cannot keep in memory what is to be done at the end")]
    Deferred(#[source] io::Error),
    /// Nothing fits the paths or patterns given.
    #[error("nothing in snapshot {} is selected", .snapshot.short())]
    NothingSelected {
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// A pattern that cannot be understood.
    #[error("bad pattern {pattern:?}: {reason}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Another part of the restore stopped, and says why.
    #[error("another part of the restore stopped")]
    Stopped,
    /// Somebody asked to stop.
    #[error("interrupted; running the same command again goes on from here")]
    Interrupted,
}

fn count(paths: &[EntryPath]) -> String {
    if paths.len() == 1 { "1 file".into() } else { format!("{} files", paths.len()) }
}

fn names(paths: &[EntryPath]) -> String {
    let mut names: Vec<String> = paths.iter().take(10).map(ToString::to_string).collect();
    if paths.len() > names.len() {
        names.push("…".into());
    }
    names.join(", ")
}
