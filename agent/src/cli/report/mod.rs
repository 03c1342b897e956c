//! What a person, or the script that called, is told of a failure.
//!
//! Every error of every room becomes a [`Failure`] here and nowhere else, so that its words
//! and its exit code cannot disagree.

mod archive;
mod engine;
mod exit;
mod keys;
mod remote;
mod server;
mod setup;
mod work;

use std::error::Error;
use std::fmt;
use std::io;

use vsync_protocol::id::VolumeName;

use super::output::{self, Colour};

pub(super) use remote::unexpected;

pub(crate) use exit::Exit;

/// A failed command, in words.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What failed, on which object.
    pub(crate) heading: String,
    /// Why, from the nearest cause to the first.
    pub(crate) causes: Vec<String>,
    /// What to do, if anything is known to help.
    pub(crate) hint: Option<String>,
    /// What the process returns.
    pub(crate) code: Exit,
}

impl Failure {
    /// A failure without an error behind it.
    #[must_use]
    pub(crate) fn new(code: Exit, heading: impl Into<String>) -> Self {
        Self { heading: heading.into(), causes: Vec::new(), hint: None, code }
    }

    /// The failure that `error` and its sources describe.
    #[must_use]
    pub(crate) fn of(error: &dyn Error, code: Exit) -> Self {
        let causes =
            std::iter::successors(error.source(), |cause| (*cause).source()).map(ToString::to_string).collect();
        Self { heading: error.to_string(), causes, hint: None, code }
    }

    /// The same, with advice.
    #[must_use]
    pub(crate) fn hint(self, hint: impl Into<Option<String>>) -> Self {
        Self { hint: hint.into(), ..self }
    }

    /// Writes the failure to stderr: as text, or as one line of JSON.
    pub(crate) fn print(&self, json: bool) {
        self.print_as("exit_error", json);
    }

    /// The same of a failure after which the command goes on with other volumes.
    pub(crate) fn print_of(&self, volume: &VolumeName, json: bool) {
        let heading = format!("{volume}: {}", self.heading);
        Self { heading, causes: self.causes.clone(), hint: self.hint.clone(), code: self.code }.print_as("error", json);
    }

    fn print_as(&self, kind: &str, json: bool) {
        if json {
            let message = std::iter::once(&self.heading).chain(&self.causes).cloned().collect::<Vec<_>>().join(": ");
            let hint = &self.hint;
            let code = self.code as u8;
            output::say(serde_json::json!({"message_type": kind, "code": code, "message": message, "hint": hint}));
        } else {
            output::say(format_args!("{}{self}", Colour::stderr().red("error: ")));
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.heading)?;
        self.causes.iter().try_for_each(|cause| write!(f, "\n  because: {cause}"))?;
        self.hint.iter().try_for_each(|hint| write!(f, "\n  to do: {hint}"))
    }
}

/// The code for an input/output error that has no better one.
#[must_use]
pub(crate) fn io_exit(error: &io::Error) -> Exit {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Exit::NoSpace,
        _ => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use vsync_protocol::id::{Cid, RealmId, SnapshotId};
    use vsync_protocol::wire::{Refusal, RefusalCode};
    use vsync_server::ServerError;
    use vsync_server::archive::ArchiveError;
    use vsync_server::store::StoreError;
    use vsync_server::upkeep::mark::MarkError;
    use vsync_transport::TransportError;

    use super::*;
    use crate::backup::BackupError;
    use crate::cli::backup::CommandFailed;
    use crate::cli::keygen::KeygenError;
    use crate::config::ConfigError;
    use crate::keys::{KeyFileError, KitError};
    use crate::remote::RemoteError;
    use crate::restore::RestoreError;
    use crate::snapshot::SnapshotError;
    use crate::volume::TargetError;

    #[test]
    fn a_stream_that_fails_is_told_from_its_command() {
        let of = |source| Failure::from(BackupError::Stream(source));
        assert_eq!(of(io::Error::other(CommandFailed("pg_dump failed".into()))).code, Exit::Hook);
        assert_eq!(of(io::Error::other("a disk")).code, Exit::Failed);
        assert_eq!(of(io::ErrorKind::BrokenPipe.into()).code, Exit::Failed);
    }

    #[test]
    fn errors_become_words_and_codes() {
        let path = PathBuf::from("a.key");
        let io = |kind: io::ErrorKind| KeyFileError::Io { action: "write", path: path.clone(), source: kind.into() };
        let table: [(Failure, Exit, &str); 7] = [
            (KeyFileError::Missing { path: path.clone() }.into(), Exit::NotAuthorised, "there is no key file a.key"),
            (KeyFileError::Exists { path: path.clone() }.into(), Exit::Failed, "a.key exists already"),
            (io(io::ErrorKind::StorageFull).into(), Exit::NoSpace, "cannot write a.key\n  because: no storage space"),
            (
                io(io::ErrorKind::PermissionDenied).into(),
                Exit::Failed,
                "cannot write a.key\n  because: permission denied",
            ),
            (ConfigError::NoIdentity { path }.into(), Exit::Usage, "this machine has no name yet"),
            (KitError::NoSecret.into(), Exit::NotAuthorised, "the recovery kit has no line"),
            (KeygenError::OtherRealm.into(), Exit::Failed, "vsync.pub is of another realm"),
        ];
        for (failure, code, words) in table {
            assert_eq!(failure.code, code, "{failure}");
            assert!(failure.to_string().starts_with(words), "{failure}");
        }
    }

    /// Whatever an operator can do something about says what.
    #[test]
    fn failures_say_what_to_do() {
        let io = || io::Error::from(io::ErrorKind::PermissionDenied);
        let path = || PathBuf::from("/somewhere");
        let address = || "127.0.0.1:10022".parse().unwrap();
        let id = || SnapshotId::from_bytes([1; 16]);
        let target = |operation| TargetError::Root { path: path(), operation, source: rustix::io::Errno::ACCESS };
        let refused = |code| RemoteError::Refused {
            server: "store".into(),
            refusal: Refusal { code, message: "it is so".into() },
        };
        let store = |error| ServerError::Archive(ArchiveError::Store(error));
        let realm = RealmId::from_bytes([1; 16]);
        let failures: Vec<Failure> = vec![
            ServerError::Transport(TransportError::Bind { address: address(), source: io() }).into(),
            ServerError::Status { address: address(), source: io() }.into(),
            ServerError::Thread { name: "upkeep", source: io() }.into(),
            store(StoreError::OtherRealm { path: path(), found: realm, wanted: realm }).into(),
            store(StoreError::NotAStore(path())).into(),
            store(StoreError::Locked(path())).into(),
            store(StoreError::Io { operation: "write", path: path(), source: io() }).into(),
            store(StoreError::Log { path: path(), offset: 1, what: "torn" }).into(),
            MarkError::Manifest(id()).into(),
            MarkError::Stopped.into(),
            RestoreError::Target(target("open")).into(),
            RestoreError::Deferred(io()).into(),
            RestoreError::Stopped.into(),
            RestoreError::NothingSelected { snapshot: id() }.into(),
            BackupError::Stream(io()).into(),
            BackupError::Receipt.into(),
            BackupError::DamagedCache("x".into()).into(),
            BackupError::Stopped.into(),
            BackupError::Missing { cids: vec![Cid::of(b"blob")] }.into(),
            SnapshotError::NotReader { snapshot: id(), epoch: 1 }.into(),
            SnapshotError::Sealed { snapshot: id(), reason: "x".into() }.into(),
            SnapshotError::Realm(id()).into(),
            RemoteError::HeadFile { path: "x".into(), source: io() }.into(),
            RemoteError::Runtime(io()).into(),
            refused(RefusalCode::BadManifest).into(),
            refused(RefusalCode::WrongName).into(),
            refused(RefusalCode::NoSession).into(),
            refused(RefusalCode::Malformed).into(),
            ConfigError::Unknown { what: "machine", name: "hots".into(), path: path(), suggestion: String::new() }
                .into(),
        ];
        for failure in failures {
            assert!(failure.hint.is_some(), "{failure}");
        }
        let full = RestoreError::Target(TargetError::NoSpace { path: Default::default(), operation: "write" });
        assert_eq!(Failure::from(full).code, Exit::NoSpace);
    }
}
