//! Why a backup did not come to a snapshot.

use std::io;

use thiserror::Error;
use vsync_protocol::id::Cid;
use vsync_protocol::tree::EntryPath;

use crate::cache::CacheError;
use crate::quiesce::QuiesceError;
use crate::remote::{RemoteError, UploadEnded};
use crate::snapshot::SnapshotError;
use crate::vault::{OpenError, SealError};
use crate::volume::WalkError;

/// Why a backup did not come to a snapshot. Single files that cannot be read are no such
/// reason: they are listed in the snapshot.
#[derive(Debug, Error)]
pub enum BackupError {
    /// The volume's own directory.
    #[error(transparent)]
    Walk(#[from] WalkError),
    /// The stream.
    #[error("cannot read the stream")]
    Stream(#[source] io::Error),
    /// Network or server.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A chunk of a file.
    #[error("cannot seal a chunk of {path}")]
    Chunk {
        /// The file.
        path: EntryPath,
        /// Why.
        source: SealError,
    },
    /// A node of the tree.
    #[error("cannot seal a tree node")]
    Node(#[source] SealError),
    /// Setting up a thread's sealer.
    #[error("cannot set up sealing")]
    Sealer(#[source] SealError),
    /// Setting up reading of the cached tree.
    #[error("cannot set up opening")]
    Opener(#[source] OpenError),
    /// The manifest.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The server has not all of it, although it said so before.
    #[error("the server lacks {} blobs that it had; it may be damaged", cids.len())]
    Missing {
        /// At least these.
        cids: Vec<Cid>,
    },
    /// The same, found when a stream was read to its end.
    #[error("the server lacks {count} blobs that it had, and the stream cannot be read again")]
    MissingOfStream {
        /// At least so many.
        count: usize,
    },
    /// The receipt is not for this snapshot or not signed by the server.
    #[error("the server's receipt is not valid")]
    Receipt,
    /// The chunker does not accept its own parameters.
    #[error("the chunker's parameters are not valid")]
    Parameters,
    /// The upload ended early; its own result says why.
    #[error("the upload ended early")]
    UploadEnded,
    /// Another part of the backup stopped, and says why.
    #[error("another part of the backup stopped")]
    Stopped,
    /// The cache contradicts itself.
    #[error("the cache of the last backup is damaged: {0}")]
    DamagedCache(String),
    /// The volume was not made to stand still, or did not stay so.
    #[error(transparent)]
    Quiesce(#[from] QuiesceError),
    /// Somebody asked to stop.
    #[error("interrupted; what was sent is kept, and the next backup goes on from there")]
    Interrupted,
}

impl BackupError {
    /// The one of two errors that explains the other.
    pub(super) fn graver(self, other: Self) -> Self {
        match (&self, &other) {
            (Self::Stopped, _) => other,
            (Self::UploadEnded, Self::Stopped) | (_, Self::Stopped | Self::UploadEnded) => self,
            (Self::UploadEnded, _) => other,
            _ => self,
        }
    }
}

impl From<UploadEnded> for BackupError {
    fn from(_: UploadEnded) -> Self {
        Self::UploadEnded
    }
}

/// A node of the cached tree is not there or damaged: the cache is of no use.
#[derive(Debug, Error)]
pub(super) enum CachedNodeError {
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error("node {0} is not in the cache")]
    Absent(Cid),
    #[error(transparent)]
    Open(#[from] OpenError),
}
