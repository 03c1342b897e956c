//! Errors of a server's store, where it is opened in this process.

use vsync_server::ServerError;
use vsync_server::archive::ArchiveError;
use vsync_server::catalog::CatalogError;
use vsync_server::store::StoreError;
use vsync_server::upkeep::mark::MarkError;
use vsync_transport::TransportError;

use super::{Exit, Failure, io_exit};

impl From<MarkError> for Failure {
    fn from(error: MarkError) -> Self {
        match error {
            MarkError::Archive(error) => ServerError::Archive(error).into(),
            MarkError::Node { .. } | MarkError::Manifest(_) => Self::of(&error, Exit::Damage).hint(
                "nothing was removed; `vsync server scrub` tells what is damaged, and a backup of its volume brings it again"
                    .to_owned(),
            ),
            // Its words say what to do.
            MarkError::LostManifest(_) => Self::of(&error, Exit::Damage),
            MarkError::Stopped => Self::of(&error, Exit::Interrupted).hint("run the same command again".to_owned()),
        }
    }
}

impl From<ServerError> for Failure {
    fn from(error: ServerError) -> Self {
        let (exit, hint) = match &error {
            ServerError::Archive(ArchiveError::Store(error)) => of_store(error),
            ServerError::Archive(ArchiveError::Catalog(CatalogError::Damaged(_))) => (Exit::Damage, Some(REPAIR)),
            ServerError::Archive(ArchiveError::Catalog(_)) => (Exit::Failed, Some(DISK)),
            ServerError::Transport(TransportError::Bind { .. }) | ServerError::Status { .. } => (
                Exit::Failed,
                Some("another program may have that port (`ss -lunpt`), or the address is not this machine's"),
            ),
            ServerError::Transport(TransportError::Tls(_))
            | ServerError::Address(_)
            | ServerError::Endpoint(_)
            | ServerError::Thread { .. } => {
                (Exit::Failed, Some("look at the limits of this machine: `ulimit -u`, memory"))
            }
        };
        Self::of(&error, exit).hint(hint.map(str::to_owned))
    }
}

const REPAIR: &str = "`vsync server repair` mends what can be mended, and keeps what it replaces";

const DISK: &str = "look at its disk and at the kernel's log, then start it again";

fn of_store(error: &StoreError) -> (Exit, Option<&'static str>) {
    match error {
        StoreError::Log { .. } => (Exit::Damage, Some(REPAIR)),
        StoreError::Io { source, .. } => (io_exit(source), Some(DISK)),
        StoreError::Pack { .. } | StoreError::NotWritten(_) | StoreError::ReadOnly(_) => (Exit::Failed, Some(DISK)),
        StoreError::NoSpace { .. } => (Exit::NoSpace, Some("free space there, or move its `data` directory")),
        StoreError::Locked(_) => (Exit::Failed, Some("stop that process first (`fuser` names it)")),
        StoreError::OtherRealm { .. } | StoreError::NotAStore(_) => {
            (Exit::Failed, Some("give this server a `data` directory of its own in vsync.toml"))
        }
        // Their words say what to do.
        StoreError::Newer { .. } | StoreError::FileSystem { .. } | StoreError::NotLost { .. } => (Exit::Failed, None),
    }
}
