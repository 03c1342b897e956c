//! Why a restore could not go on.

use std::io;

use thiserror::Error;
use vsync_protocol::id::SnapshotId;
use vsync_protocol::tree::EntryPath;

use crate::pattern::BadPattern;
use crate::remote::{NodeError, RemoteError};
use crate::snapshot::SnapshotError;
use crate::tree::TreeError;
use crate::vault::OpenError;
use crate::volume::{TargetError, WalkError};

/// Why a restore could not go on.
#[derive(Debug, Error)]
pub(crate) enum RestoreError {
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
    #[error("the target is full")]
    NoSpace(#[source] TargetError),
    /// It broke off while files were being changed in place.
    #[error("{error}; {}", incomplete(.files))]
    Incomplete {
        /// Files that are neither what they were nor as in the snapshot.
        files: Vec<EntryPath>,
        /// Why it broke off.
        error: Box<Self>,
    },
    /// Setting up a thread's opener.
    #[error("cannot set up opening")]
    Opener(#[source] OpenError),
    /// What waits for the end could not be kept.
    #[error("cannot keep in memory what is to be done at the end")]
    Deferred(#[source] io::Error),
    /// Nothing fits the paths or patterns given.
    #[error("nothing in snapshot {} is selected", .snapshot.short())]
    NothingSelected { snapshot: SnapshotId },
    /// A pattern that cannot be understood.
    #[error(transparent)]
    Pattern(#[from] BadPattern),
    /// Another part of the restore stopped, and says why.
    #[error("another part of the restore stopped")]
    Stopped,
    /// Somebody asked to stop.
    #[error("interrupted; running the same command again goes on from here")]
    Interrupted,
}

impl RestoreError {
    /// Says what the error means for a target in which `files` were being changed in place.
    #[must_use]
    pub(super) fn leaving(self, mut files: Vec<EntryPath>) -> Self {
        files.sort();
        let error = match self {
            Self::Target(source) if source.is_no_space() => Self::NoSpace(source),
            other => other,
        };
        if files.is_empty() { error } else { Self::Incomplete { files, error: Box::new(error) } }
    }
}

/// Names files that are neither what they were nor as in the snapshot.
#[must_use]
pub(crate) fn incomplete(files: &[EntryPath]) -> String {
    let mut names: Vec<String> = files.iter().take(10).map(ToString::to_string).collect();
    if files.len() > names.len() {
        names.push("…".into());
    }
    let count = if files.len() == 1 { "1 file is".to_owned() } else { format!("{} files are", files.len()) };
    format!("{count} incomplete: {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    fn paths(count: usize) -> Vec<EntryPath> {
        (0..count).map(|number| EntryPath::new(format!("f{number}")).unwrap()).collect()
    }

    #[test]
    fn whatever_ends_a_restore_names_the_files_that_it_leaves_incomplete() {
        let root = |source| TargetError::Root { path: "t".into(), operation: "write to disk", source };
        for (error, files, words) in [
            (RestoreError::Interrupted, 1, "from here; 1 file is incomplete: f0"),
            (RestoreError::Target(root(Errno::NOSPC)), 2, "the target is full; 2 files are incomplete: f0, f1"),
            (
                RestoreError::Target(root(Errno::IO)),
                12,
                "12 files are incomplete: f0, f1, f10, f11, f2, f3, f4, f5, f6, f7, …",
            ),
        ] {
            let text = error.leaving(paths(files)).to_string();
            assert!(text.ends_with(words), "{text}");
        }
        for full in [Errno::NOSPC, Errno::DQUOT] {
            let error = RestoreError::Target(root(full)).leaving(Vec::new());
            assert!(matches!(error, RestoreError::NoSpace(_)), "{error}");
        }
        assert!(matches!(RestoreError::Target(root(Errno::IO)).leaving(Vec::new()), RestoreError::Target(_)));
    }
}
