//! What a person, or the script that called, is told of a failure.
//!
//! Every error of every room becomes a [`Failure`] here and nowhere else, so that its words
//! and its exit code cannot disagree.

mod archive;
mod keys;

use std::error::Error;
use std::fmt;
use std::io;

use vsync_protocol::manifest::ManifestError;
use vsync_protocol::registry::RegistryError;
use vsync_protocol::wire::{RefusalCode, Reply};

use super::context::ContextError;
use super::keygen::KeygenError;
use super::output::{self, Colour};
use super::spec::SpecError;
use super::time::TimeError;
use crate::backup::BackupError;
use crate::cache::CacheError;
use crate::config::ConfigError;
use crate::docker::DockerError;
use crate::dump::DumpError;
use crate::keys::{KeyFileError, KitError};
use crate::pattern::BadPattern;
use crate::quiesce::{HookFailed, QuiesceError};
use crate::remote::{NodeError, RemoteError};
use crate::restore::{self, RestoreError};
use crate::snapshot::SnapshotError;
use crate::tree::TreeError;
use crate::verify::VerifyError;

/// What the process returns. The numbers are promised to scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Everything was done, exactly.
    Exact = 0,
    /// Nothing was done or committed.
    Failed = 1,
    /// The command line or the configuration makes no sense.
    Usage = 2,
    /// Done, with defects that were listed.
    Defects = 3,
    /// The server cannot be reached.
    Unreachable = 10,
    /// There is no such volume or snapshot.
    NotFound = 11,
    /// Not authorised, or a wrong or missing key.
    NotAuthorised = 12,
    /// Damage was found in stored data.
    Damage = 13,
    /// The server's history was rolled back.
    RolledBack = 14,
    /// A hook failed.
    Hook = 20,
    /// No space is left, or the quota is used up.
    NoSpace = 21,
    /// A container could not be restarted.
    Container = 22,
    /// Interrupted by a signal.
    Interrupted = 130,
}

impl Exit {
    /// The meaning of `code`, if vsync ever returns it.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        const ALL: [Exit; 13] = [
            Exit::Exact,
            Exit::Failed,
            Exit::Usage,
            Exit::Defects,
            Exit::Unreachable,
            Exit::NotFound,
            Exit::NotAuthorised,
            Exit::Damage,
            Exit::RolledBack,
            Exit::Hook,
            Exit::NoSpace,
            Exit::Container,
            Exit::Interrupted,
        ];
        ALL.into_iter().find(|exit| *exit as u8 == code)
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A failed command, in words.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// What failed, on which object.
    pub heading: String,
    /// Why, from the nearest cause to the first.
    pub causes: Vec<String>,
    /// What to do, if anything is known to help.
    pub hint: Option<String>,
    /// What the process returns.
    pub code: Exit,
}

impl Failure {
    /// A failure without an error behind it.
    #[must_use]
    pub fn new(code: Exit, heading: impl Into<String>) -> Self {
        Self { heading: heading.into(), causes: Vec::new(), hint: None, code }
    }

    /// The failure that `error` and its sources describe.
    #[must_use]
    pub fn of(error: &dyn Error, code: Exit) -> Self {
        let causes =
            std::iter::successors(error.source(), |cause| (*cause).source()).map(ToString::to_string).collect();
        Self { heading: error.to_string(), causes, hint: None, code }
    }

    /// The same, with advice.
    #[must_use]
    pub fn hint(self, hint: impl Into<Option<String>>) -> Self {
        Self { hint: hint.into(), ..self }
    }

    /// Writes the failure to stderr: as text, or as one line of JSON.
    pub fn print(&self, json: bool) {
        if json {
            let message = std::iter::once(&self.heading).chain(&self.causes).cloned().collect::<Vec<_>>().join(": ");
            let hint = &self.hint;
            let code = self.code as u8;
            eprintln!(
                "{}",
                serde_json::json!({"message_type": "exit_error", "code": code, "message": message, "hint": hint})
            );
        } else {
            eprintln!("{}{self}", Colour::stderr().red("error: "));
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
pub fn io_exit(error: &io::Error) -> Exit {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Exit::NoSpace,
        _ => Exit::Failed,
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let code = match &error {
            ConfigError::Read { source, .. } => io_exit(source),
            _ => Exit::Usage,
        };
        Self::of(&error, code).hint(error.hint())
    }
}

impl From<KeyFileError> for Failure {
    fn from(error: KeyFileError) -> Self {
        let code = match &error {
            KeyFileError::Io { source, .. } => io_exit(source),
            KeyFileError::Exists { .. } => Exit::Failed,
            _ => Exit::NotAuthorised,
        };
        Self::of(&error, code).hint(error.hint())
    }
}

impl From<KitError> for Failure {
    fn from(error: KitError) -> Self {
        Self::of(&error, Exit::NotAuthorised).hint(error.hint().to_owned())
    }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        Self::of(&error, Exit::Usage).hint("restore the line from git, or run `vsync keygen`".to_owned())
    }
}

impl From<ContextError> for Failure {
    fn from(error: ContextError) -> Self {
        let hint = error.hint();
        match error {
            ContextError::Config(error) => error.into(),
            ContextError::Keys(error) => error.into(),
            ContextError::Registry(error) => error.into(),
            ContextError::ReadRegistry { ref source, .. } => Self::of(&error, io_exit(source)).hint(hint),
            ContextError::NoRegistry { .. } | ContextError::OtherName { .. } | ContextError::NoStateDir => {
                Self::of(&error, Exit::Usage).hint(hint)
            }
            ContextError::OtherRealm { .. } | ContextError::LockedOut { .. } | ContextError::OtherKey { .. } => {
                Self::of(&error, Exit::NotAuthorised).hint(hint)
            }
        }
    }
}

impl From<KeygenError> for Failure {
    fn from(error: KeygenError) -> Self {
        let hint = error.hint();
        match error {
            KeygenError::Keys(error) => error.into(),
            other => Self::of(&other, Exit::Failed).hint(hint),
        }
    }
}

impl From<TimeError> for Failure {
    fn from(error: TimeError) -> Self {
        Self::of(&error, Exit::Usage).hint(output::TIME_FORMS.to_owned())
    }
}

impl From<SpecError> for Failure {
    fn from(error: SpecError) -> Self {
        Self::of(&error, Exit::Usage)
            .hint("write VOLUME, VOLUME@latest~2, VOLUME@ID, VOLUME@TIME, each with :PATH if wanted".to_owned())
    }
}

/// A server answered another question than the one asked.
pub(super) fn unexpected(reply: &Reply) -> Failure {
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
            RemoteError::Lost { .. } => (Exit::Unreachable, "run the same command again: it goes on from where it was"),
            RemoteError::Identity { .. } => {
                (Exit::NotAuthorised, "both machines need the same, current vsync.pub; `vsync check` compares keys")
            }
            RemoteError::Refused { refusal, .. } => return Self::refused(&error, refusal.code),
            RemoteError::History { .. } => (
                Exit::RolledBack,
                "the store may have been restored from an old copy, or tampered with: find out before backing up to it",
            ),
            RemoteError::HeadFile { .. } | RemoteError::Runtime(_) | RemoteError::Transport(_) => {
                return Self::of(&error, Exit::Failed);
            }
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
            RefusalCode::NoJob | RefusalCode::TooManyJobs => return Self::of(error, Exit::Failed),
            RefusalCode::NoSession | RefusalCode::Malformed | RefusalCode::WrongName | RefusalCode::BadManifest => {
                return Self::of(error, Exit::Failed);
            }
        };
        Self::of(error, exit).hint(hint.to_owned())
    }
}

impl From<CacheError> for Failure {
    fn from(error: CacheError) -> Self {
        Self::of(&error, Exit::Failed).hint("give another --state-dir, or make room there".to_owned())
    }
}

impl From<SnapshotError> for Failure {
    fn from(error: SnapshotError) -> Self {
        let (code, hint) = match &error {
            SnapshotError::Manifest(ManifestError::Signature { .. }) => (
                Exit::NotAuthorised,
                Some("if that machine was removed on purpose, keep its key as a `retired` line in vsync.pub"),
            ),
            SnapshotError::Manifest(_) | SnapshotError::Sealed { .. } => (Exit::Damage, None),
            SnapshotError::Realm(_) | SnapshotError::NotReader { .. } => (Exit::NotAuthorised, None),
            SnapshotError::Seal(_) => (Exit::Failed, None),
        };
        Self::of(&error, code).hint(hint.map(str::to_owned))
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
            BackupError::Stream(ref source) if source.kind() == io::ErrorKind::Other => Self::of(&error, Exit::Hook),
            other => Self::of(&other, Exit::Failed),
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
            RestoreError::Tree(_) | RestoreError::Blob { .. } => Self::of(&error, Exit::Damage).hint(
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
            RestoreError::Target(_)
            | RestoreError::Walk(_)
            | RestoreError::Opener(_)
            | RestoreError::Output(_)
            | RestoreError::Deferred(_)
            | RestoreError::Stopped => Self::of(&error, Exit::Failed),
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
            DumpError::NoContent { .. } => Self::of(&error, Exit::Usage),
            DumpError::NoDirectory(_) => {
                Self::of(&error, Exit::Usage).hint("`vsync dump` writes the content of one file".to_owned())
            }
            DumpError::Output(ref source) => Self::of(&error, io_exit(source)),
            DumpError::Interrupted => Self::of(&error, Exit::Interrupted),
            DumpError::Opener(_) => Self::of(&error, Exit::Failed),
        }
    }
}

impl From<VerifyError> for Failure {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Remote(error) => error.into(),
            VerifyError::Opener(_) => Self::of(&error, Exit::Failed),
            VerifyError::Interrupted => Self::of(&error, Exit::Interrupted),
        }
    }
}

impl From<BadPattern> for Failure {
    fn from(error: BadPattern) -> Self {
        Self::of(&error, Exit::Usage)
    }
}

impl From<QuiesceError> for Failure {
    fn from(error: QuiesceError) -> Self {
        let (code, hint) = match &error {
            QuiesceError::Docker(_) | QuiesceError::Refused { .. } => (Exit::Failed, None),
            QuiesceError::Label { container, .. } => (
                Exit::Usage,
                Some(format!(
                    "run {container} again with the label set right, or have it ignored for once: --quiesce MODE"
                )),
            ),
            QuiesceError::Record { .. } => {
                (Exit::Failed, Some("nothing was held; give another --state-dir, or make room there".to_owned()))
            }
            QuiesceError::Act { to_type, container, .. } if to_type.is_empty() => {
                (Exit::Failed, Some(format!("those before it go on; look at `docker inspect {container}`")))
            }
            QuiesceError::Act { to_type, .. } => (Exit::Container, Some(to_type.join("\n         "))),
            QuiesceError::Hook(_) => {
                (Exit::Hook, Some("no snapshot was made; repair it, or set hook-failure to continue".to_owned()))
            }
            QuiesceError::Moved { .. } => (
                Exit::Failed,
                Some("what was read is no moment of it; run the same command again, and leave it alone".to_owned()),
            ),
            QuiesceError::Interrupted => (Exit::Interrupted, None),
        };
        Self::of(&error, code).hint(hint)
    }
}

impl From<HookFailed> for Failure {
    fn from(error: HookFailed) -> Self {
        let hint = "nothing was backed up; repair it, or set hook-failure to continue".to_owned();
        Self::of(&error, Exit::Hook).hint(hint)
    }
}

impl From<DockerError> for Failure {
    fn from(error: DockerError) -> Self {
        let code = match &error {
            DockerError::NoSuchVolume { .. } => Exit::NotFound,
            _ => Exit::Failed,
        };
        Self::of(&error, code)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn codes_are_as_documented() {
        for (exit, code) in [
            (Exit::Exact, 0),
            (Exit::Failed, 1),
            (Exit::Usage, 2),
            (Exit::Defects, 3),
            (Exit::Unreachable, 10),
            (Exit::NotFound, 11),
            (Exit::NotAuthorised, 12),
            (Exit::Damage, 13),
            (Exit::RolledBack, 14),
            (Exit::Hook, 20),
            (Exit::NoSpace, 21),
            (Exit::Container, 22),
            (Exit::Interrupted, 130),
        ] {
            assert_eq!(exit as u8, code, "{exit:?}");
        }
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
}
