//! Errors of backups, restores, and of whatever else reads snapshots.

use super::{Exit, Failure, io_exit};
use crate::backup::BackupError;
use crate::cache::CacheError;
use crate::cli::backup::CommandFailed;
use crate::dump::DumpError;
use crate::pattern::BadPattern;
use crate::remote::NodeError;
use crate::restore::{self, RestoreError};
use crate::tree::TreeError;
use crate::verify::VerifyError;
use crate::volume::TargetError;

/// How `--include`, `--exclude` and `vsync find` are written.
const PATTERN: &str = "write `*`, `?`, `**` and `[a-z]` as a shell does, in quotes; a bracket itself as `[[]`";

impl From<CacheError> for Failure {
    fn from(error: CacheError) -> Self {
        Self::of(&error, Exit::Failed).hint("give another --state-dir, or make room there".to_owned())
    }
}

impl From<BackupError> for Failure {
    fn from(error: BackupError) -> Self {
        match error {
            BackupError::Remote(error) => error.into(),
            BackupError::Cache(error) => error.into(),
            BackupError::Snapshot(error) => error.into(),
            BackupError::Quiesce(error) => error.into(),
            BackupError::Interrupted => Self::of(&error, Exit::Interrupted),
            BackupError::Missing { .. } => {
                Self::of(&error, Exit::Damage).hint("run `vsync verify`, and look at the server's disk".to_owned())
            }
            BackupError::MissingOfStream { .. } => {
                Self::of(&error, Exit::Damage).hint("run it again: everything will be sent".to_owned())
            }
            BackupError::Stream(ref source) if source.get_ref().is_some_and(|cause| cause.is::<CommandFailed>()) => {
                Self::of(&error, Exit::Hook).hint("nothing was committed; run the command by itself to see".to_owned())
            }
            BackupError::Stream(_) => Self::of(&error, Exit::Failed).hint("nothing was committed".to_owned()),
            BackupError::Walk(_) => {
                Self::of(&error, Exit::Failed).hint("vsync must be able to read the volume's own directory".to_owned())
            }
            BackupError::DamagedCache(_) => Self::of(&error, Exit::Failed)
                .hint("remove the cache of this volume below the state directory: it is made anew".to_owned()),
            BackupError::Receipt => Self::of(&error, Exit::Failed).hint(
                "the server may not be trusted: `vsync check --connection`, and look for the snapshot there".to_owned(),
            ),
            BackupError::Chunk { .. }
            | BackupError::Node(_)
            | BackupError::Sealer(_)
            | BackupError::Opener(_)
            | BackupError::Parameters
            | BackupError::UploadEnded
            | BackupError::Stopped => {
                Self::of(&error, Exit::Failed).hint("run the same command again: what was sent is kept".to_owned())
            }
        }
    }
}

impl From<RestoreError> for Failure {
    fn from(error: RestoreError) -> Self {
        match error {
            RestoreError::Remote(error) => error.into(),
            RestoreError::Snapshot(error) => error.into(),
            RestoreError::Incomplete { files, error } => {
                let failure = Self::from(*error);
                let heading = format!("{}; {}", failure.heading, restore::incomplete(&files));
                Self { heading, ..failure }
            }
            RestoreError::Tree(TreeError::Node { source: NodeError::Remote(error), .. }) => error.into(),
            RestoreError::Tree(_) => Self::of(&error, Exit::Damage).hint(
                "try an older snapshot; the next backup of the volume repairs what the source still has".to_owned(),
            ),
            RestoreError::NoSpace(_) => Self::of(&error, Exit::NoSpace).hint(
                "make room and run the same command again: what is there already is not fetched twice".to_owned(),
            ),
            RestoreError::NothingSelected { .. } => {
                Self::of(&error, Exit::NotFound).hint("`vsync ls` shows what there is".to_owned())
            }
            RestoreError::Pattern(error) => error.into(),
            RestoreError::Interrupted => Self::of(&error, Exit::Interrupted),
            RestoreError::Target(TargetError::NoSpace { .. }) => Self::of(&error, Exit::NoSpace).hint(
                "make room and run the same command again: what is there already is not fetched twice".to_owned(),
            ),
            RestoreError::Target(TargetError::Replaced { .. }) => Self::of(&error, Exit::Failed)
                .hint("stop whoever writes there, and run the same command again".to_owned()),
            RestoreError::Target(TargetError::Root { .. } | TargetError::Io { .. }) | RestoreError::Walk(_) => {
                Self::of(&error, Exit::Failed).hint(
                    "look whether vsync may write there; the same command again goes on from where it was".to_owned(),
                )
            }
            RestoreError::Deferred(_) | RestoreError::Opener(_) | RestoreError::Stopped => {
                Self::of(&error, Exit::Failed)
                    .hint("run the same command again: it goes on from where it was".to_owned())
            }
        }
    }
}

impl From<TreeError<NodeError>> for Failure {
    fn from(error: TreeError<NodeError>) -> Self {
        RestoreError::Tree(error).into()
    }
}

impl From<DumpError> for Failure {
    fn from(error: DumpError) -> Self {
        match error {
            DumpError::Restore(error) => error.into(),
            DumpError::Remote(error) => error.into(),
            DumpError::Tree { .. } | DumpError::Blob { .. } | DumpError::Length { .. } => {
                Self::of(&error, Exit::Damage).hint(
                    "what was written is right, but not all: use an older snapshot, or `vsync restore`".to_owned(),
                )
            }
            DumpError::NotFound(_) => {
                Self::of(&error, Exit::NotFound).hint("`vsync ls` shows what there is".to_owned())
            }
            DumpError::NoContent { .. } => {
                Self::of(&error, Exit::Usage).hint("name a file: `vsync ls` shows which there are".to_owned())
            }
            DumpError::NoDirectory(_) => {
                Self::of(&error, Exit::Usage).hint("`vsync dump` writes the content of one file".to_owned())
            }
            DumpError::Output(ref source) => Self::of(&error, io_exit(source))
                .hint("what was written so far is right; run it again where there is room".to_owned()),
            DumpError::Interrupted => Self::of(&error, Exit::Interrupted),
            DumpError::Opener(_) => Self::of(&error, Exit::Failed).hint("run the same command again".to_owned()),
        }
    }
}

impl From<VerifyError> for Failure {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Remote(error) => error.into(),
            VerifyError::Opener(_) => Self::of(&error, Exit::Failed).hint("run the same command again".to_owned()),
            VerifyError::Interrupted => Self::of(&error, Exit::Interrupted),
        }
    }
}

impl From<BadPattern> for Failure {
    fn from(error: BadPattern) -> Self {
        Self::of(&error, Exit::Usage).hint(PATTERN.to_owned())
    }
}
