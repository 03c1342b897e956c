//! Errors between this machine and a server, and of the snapshots that it lists.

use std::io;

use vsync_protocol::manifest::ManifestError;
use vsync_protocol::wire::{RefusalCode, Reply};

use super::{Exit, Failure, io_exit};
use crate::remote::RemoteError;
use crate::snapshot::SnapshotError;

/// A server answered another question than the one asked.
pub(in crate::cli) fn unexpected(reply: &Reply) -> Failure {
    RemoteError::unexpected(reply).into()
}

impl From<RemoteError> for Failure {
    fn from(error: RemoteError) -> Self {
        let (code, hint) = match &error {
            RemoteError::Resolve { .. } => (Exit::Unreachable, "check `address` in vsync.toml and this machine's DNS"),
            RemoteError::Unreachable { .. } => (
                Exit::Unreachable,
                "is `vsync server run` running there, and is its UDP port open in every firewall on the way? \
                 (`vsync check --connection` tests this)",
            ),
            RemoteError::Handshake { .. } => (
                Exit::Unreachable,
                "try again later; if it stays so, look at the server's log, and at the versions of vsync on both machines",
            ),
            RemoteError::Lost { .. } => (Exit::Unreachable, "run the same command again: it goes on from where it was"),
            RemoteError::Identity { .. } => {
                (Exit::NotAuthorised, "both machines need the same, current vsync.pub; `vsync check` compares keys")
            }
            RemoteError::Refused { refusal, .. } => return Self::refused(&error, refusal.code),
            RemoteError::History { .. } => (
                Exit::RolledBack,
                "the store may have been restored from an old copy, or tampered with: find out which; to go on with what it \
                 has, remove this machine's record of it, in `heads/` below the state directory",
            ),
            RemoteError::HeadFile { source, .. } if source.kind() == io::ErrorKind::InvalidData => {
                (Exit::Failed, "remove that file to believe the server anew, once you know that it is the right one")
            }
            RemoteError::HeadFile { source, .. } => {
                (io_exit(source), "give another --state-dir, or make room there, or make it writable")
            }
            RemoteError::Runtime(_) => (Exit::Failed, "look at the limits of this machine: `ulimit -u`, memory"),
            RemoteError::Transport(_) => (Exit::Failed, "look at the limits of this machine: `ulimit -n`, its network"),
            RemoteError::Listed { .. } => (
                Exit::Damage,
                "its catalog is damaged, or it is not to be trusted: `vsync server rebuild` there makes a new catalog",
            ),
            RemoteError::Protocol(_) => (Exit::Failed, "use the same version of vsync on both machines"),
        };
        Self::of(&error, code).hint(hint.to_owned())
    }
}

impl Failure {
    fn refused(error: &RemoteError, code: RefusalCode) -> Self {
        let (exit, hint) = match code {
            RefusalCode::NotAuthorised => (
                Exit::NotAuthorised,
                "do it as a machine that may: orders about snapshots are for servers (`--as NAME`), reading is for role \"full\"",
            ),
            RefusalCode::WrongRealm => (Exit::NotAuthorised, "compare vsync.toml and vsync.pub on both machines"),
            RefusalCode::NoSpace => (Exit::NoSpace, "free space on the server, or move its `data` directory"),
            RefusalCode::NoSnapshot => (Exit::NotFound, "list those there are with `vsync snapshots`"),
            RefusalCode::Protected => (Exit::Failed, "nothing was changed for that snapshot"),
            RefusalCode::Collected => (Exit::NotFound, "restore another snapshot of the volume"),
            RefusalCode::Clock => {
                (Exit::Failed, "compare the clocks of both machines, then `vsync server confirm-clock`")
            }
            RefusalCode::Quota => {
                (Exit::NoSpace, "raise `quota` in vsync.toml on the server, or have retention keep fewer snapshots")
            }
            RefusalCode::Damaged => (Exit::Damage, "run `vsync server scrub`, then back the volumes up again"),
            RefusalCode::ReadOnly | RefusalCode::Store => (Exit::Failed, "look at the server's log"),
            RefusalCode::Draining => (Exit::Unreachable, "the server is stopping; try again when it is back"),
            RefusalCode::OutOfSequence => {
                (Exit::Failed, "another backup of this volume was made meanwhile; run it again")
            }
            RefusalCode::Version => (Exit::Failed, "use the same version of vsync on both machines"),
            // Met only when telling of jobs, which never fails a command.
            RefusalCode::NoJob | RefusalCode::TooManyJobs => (Exit::Failed, "run the same command again"),
            RefusalCode::NoSession => (Exit::Failed, "run the same command again: what was sent is kept"),
            RefusalCode::Malformed | RefusalCode::BadManifest => {
                (Exit::Failed, "use the same version of vsync, and the same vsync.pub, on both machines")
            }
            RefusalCode::WrongName => {
                (Exit::Failed, "bytes changed between here and there: test this machine's memory, then run it again")
            }
        };
        Self::of(error, exit).hint(hint.to_owned())
    }
}

impl From<SnapshotError> for Failure {
    fn from(error: SnapshotError) -> Self {
        let (code, hint) = match &error {
            SnapshotError::Manifest(ManifestError::Signature { .. }) => (
                Exit::NotAuthorised,
                "if that machine was removed on purpose, keep its key as a `retired` line in vsync.pub",
            ),
            SnapshotError::Manifest(_) | SnapshotError::Sealed { .. } => (
                Exit::Damage,
                "use another snapshot of the volume; `vsync server scrub` there tells what else is damaged",
            ),
            SnapshotError::Realm(_) => (Exit::NotAuthorised, "compare vsync.toml and vsync.pub on both machines"),
            SnapshotError::NotReader { .. } => {
                (Exit::NotAuthorised, "read it on a machine whose role is \"full\", or with the recovery kit (`--kit`)")
            }
            SnapshotError::Seal(_) => (Exit::Failed, "run `vsync keygen` for this machine again, and `vsync check`"),
        };
        Self::of(&error, code).hint(hint.to_owned())
    }
}
