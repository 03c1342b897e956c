//! What an agent is told when the server says no. The server's own errors go to its log in
//! full; an agent hears only what it can act on.

use quinn::VarInt;
use vsync_protocol::wire::{Refusal, RefusalCode};

use crate::archive::ArchiveError;
use crate::catalog::CatalogError;
use crate::commit::CommitError;
use crate::store::StoreError;
use crate::store::room::is_full;
use crate::upkeep::mark::MarkError;
use crate::upkeep::retention::RetentionError;
use crate::words::report;

/// A refusal in words.
pub(crate) fn refusal(code: RefusalCode, message: impl Into<String>) -> Refusal {
    Refusal { code, message: message.into() }
}

/// The number that `code` has on the wire; a stream that is stopped or a connection that
/// is closed for a refusal carries it as its error code.
pub(crate) const fn number(code: RefusalCode) -> VarInt {
    VarInt::from_u32(code.number())
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NoSpace { .. } => refusal(RefusalCode::NoSpace, error.to_string()),
            StoreError::Io { ref source, .. } if is_full(source) => refusal(RefusalCode::NoSpace, report(&error)),
            StoreError::ReadOnly(_) => refusal(RefusalCode::ReadOnly, error.to_string()),
            error => internal(&error),
        }
    }
}

impl From<CatalogError> for Refusal {
    fn from(error: CatalogError) -> Self {
        if error.is_full() {
            return refusal(RefusalCode::NoSpace, report(&error));
        }
        internal(&error)
    }
}

impl From<ArchiveError> for Refusal {
    fn from(error: ArchiveError) -> Self {
        match error {
            ArchiveError::Store(error) => error.into(),
            ArchiveError::Catalog(error) => error.into(),
        }
    }
}

impl From<CommitError> for Refusal {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Archive(error) => error.into(),
            CommitError::Sequence { .. } => refusal(RefusalCode::OutOfSequence, error.to_string()),
            CommitError::Realm(_) => refusal(RefusalCode::WrongRealm, error.to_string()),
            error => refusal(RefusalCode::BadManifest, error.to_string()),
        }
    }
}

impl From<RetentionError> for Refusal {
    fn from(error: RetentionError) -> Self {
        let code = match error {
            RetentionError::Archive(error) => return error.into(),
            RetentionError::NoSnapshot(_) | RetentionError::Forgotten(_) => RefusalCode::NoSnapshot,
            RetentionError::Pinned(_) | RetentionError::TooYoung(_) => RefusalCode::Protected,
            RetentionError::NotHeld(_) => RefusalCode::NoSnapshot,
            RetentionError::Collected(_) => RefusalCode::Collected,
            RetentionError::Frozen(_) | RetentionError::Clock(_) => RefusalCode::Clock,
        };
        refusal(code, error.to_string())
    }
}

impl From<MarkError> for Refusal {
    fn from(error: MarkError) -> Self {
        match error {
            MarkError::Archive(error) => error.into(),
            MarkError::Stopped => refusal(RefusalCode::Draining, "the server is shutting down"),
            error => refusal(RefusalCode::Damaged, format!("nothing is removed: {error}")),
        }
    }
}

/// An error that only the server's operator can do something about.
fn internal(error: &dyn std::error::Error) -> Refusal {
    tracing::error!("{}", report(error));
    refusal(RefusalCode::Store, "the store failed; the server's log says more")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_protocol() {
        for code in [RefusalCode::Version, RefusalCode::Store, RefusalCode::TooManyJobs] {
            assert_eq!(minicbor::to_vec(code).unwrap(), minicbor::to_vec(code.number()).unwrap());
        }
        assert_eq!(number(RefusalCode::Store), VarInt::from_u32(12));
    }
}
