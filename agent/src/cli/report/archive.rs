//! Errors of archives that are unpacked.

use super::{Exit, Failure, io_exit};
use crate::unpack::ArchiveError;
use crate::volume::TargetError;

impl From<ArchiveError> for Failure {
    fn from(error: ArchiveError) -> Self {
        let (code, hint) = match &error {
            ArchiveError::Compressed(name) => (
                Exit::Usage,
                Some(format!("decompress it on the way, as in `{name} -dc FILE | vsync import - VOLUME`")),
            ),
            ArchiveError::Truncated => {
                (Exit::Failed, Some("copy the archive again; nothing of it was kept".to_owned()))
            }
            ArchiveError::NotEmpty(_) => (Exit::Failed, Some("choose another directory, or empty it".to_owned())),
            ArchiveError::Name { .. } | ArchiveError::Through { .. } | ArchiveError::LinkOutside { .. } => (
                Exit::Failed,
                Some("do not unpack it with anything else either, before you know who made it".to_owned()),
            ),
            ArchiveError::Twice { .. } => {
                (Exit::Failed, Some("unpack it with tar and pack it again, if the last one shall count".to_owned()))
            }
            ArchiveError::Target(TargetError::NoSpace { .. }) => (Exit::NoSpace, None),
            ArchiveError::Interrupted => (Exit::Interrupted, None),
            ArchiveError::Input(source) | ArchiveError::Deferred(source) => (io_exit(source), None),
            ArchiveError::Header
            | ArchiveError::Extension
            | ArchiveError::Map
            | ArchiveError::Kind { .. }
            | ArchiveError::NoTarget { .. }
            | ArchiveError::Target(_) => (Exit::Failed, None),
        };
        Self::of(&error, code).hint(hint)
    }
}
