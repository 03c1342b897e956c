//! Files that hold secrets: readable by their owner only, replaced whole or not at all.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use thiserror::Error;
use zeroize::Zeroizing;

use crate::durable::Draft;
pub use crate::durable::Existing;

/// No file of ours comes near; stops reading a file that is something else.
const MAX_LEN: u64 = 1 << 20;

/// A file with secrets could not be read or written.
#[derive(Debug, Error)]
pub enum KeyFileError {
    /// There is none.
    #[error("there is no key file {}", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Others than its owner may read it.
    #[error("key file {} is open to others than its owner (mode {mode:04o})", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It exists, and replacing it was not asked for.
    #[error("{} exists already; nothing was overwritten", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Its text is not that of a key file. Never quotes it.
    #[error("key file {}{}: {problem}", path.display(), line.map(|line| format!(", line {line}")).unwrap_or_default())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// From 1, where one line is to blame.
        line: Option<usize>,
        /// What is wrong, without any value from the file.
        problem: String,
    },
    /// The file system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl KeyFileError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Missing { path } if path.ends_with("realm.key") => Some(
                "do this on the administrator's machine; if that is lost, `vsync init --kit FILE` brings it back"
                    .to_owned(),
            ),
            Self::Missing { .. } => Some("run `vsync keygen`, or copy the file from the key store here".to_owned()),
            Self::Exposed { path, .. } => Some(format!("chmod 600 {}", path.display())),
            Self::Malformed { .. } => Some("copy it again from the key store".to_owned()),
            Self::Exists { .. } | Self::Io { .. } => None,
        }
    }

    /// Tells a missing file from other failures to `action` it.
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::NotFound if action == "read" => Self::Missing { path },
            io::ErrorKind::AlreadyExists => Self::Exists { path },
            _ => Self::Io { action, path, source },
        }
    }
}

/// Reads a file that holds secrets.
///
/// # Errors
/// When it is missing, or when anyone but its owner may read or write it.
pub(crate) fn read(path: &Path) -> Result<Zeroizing<String>, KeyFileError> {
    let file = File::open(path).map_err(KeyFileError::io("read", path))?;
    // Asked of the open file: its name may point elsewhere by now.
    let metadata = file.metadata().map_err(KeyFileError::io("read", path))?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Exposed { path: path.to_owned(), mode });
    }
    // Reserved in full, so that growing leaves no copy behind.
    let mut text = Zeroizing::new(String::with_capacity(metadata.len().min(MAX_LEN) as usize + 1));
    file.take(MAX_LEN).read_to_string(&mut text).map_err(KeyFileError::io("read", path))?;
    Ok(text)
}

/// Writes a file that holds secrets, mode 0600, so that a crash leaves the old file or the new.
///
/// # Errors
/// When the file exists and `existing` is [`Existing::Refuse`], or the file system refuses.
pub(crate) fn write(path: &Path, text: &str, existing: Existing) -> Result<(), KeyFileError> {
    write_with_mode(path, text, existing, 0o600)
}

/// As [`write()`], for files that anyone may read.
///
/// # Errors
/// As [`write()`].
pub(crate) fn write_public(path: &Path, text: &str, existing: Existing) -> Result<(), KeyFileError> {
    write_with_mode(path, text, existing, 0o644)
}

fn write_with_mode(path: &Path, text: &str, existing: Existing, mode: u32) -> Result<(), KeyFileError> {
    let write = || {
        let mut draft = Draft::of(path, mode)?;
        draft.file.write_all(text.as_bytes())?;
        draft.publish(existing).map(drop)
    };
    write().map_err(KeyFileError::io("write", path))
}

/// Makes `path` and its parents, for their owner only. One that exists stays as it is.
///
/// # Errors
/// When the file system refuses.
pub(crate) fn create_directory(path: &Path) -> Result<(), KeyFileError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(KeyFileError::io("create", path))
}

/// Parses the TOML of a key file. Its errors never quote what the file says.
pub(super) fn parse<T: serde::de::DeserializeOwned>(path: &Path, text: &str) -> Result<T, KeyFileError> {
    toml::from_str(text).map_err(|error| {
        let line = error.span().map(|span| text[..span.start.min(text.len())].lines().count().max(1));
        // These name fields, and one has no value; other messages may hold one.
        let harmless = ["unknown field", "missing field", "expected 64"];
        let problem = error.message();
        let problem = if harmless.iter().any(|start| problem.starts_with(start)) { problem } else { "not a key file" };
        KeyFileError::Malformed { path: path.to_owned(), line, problem: problem.to_owned() }
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn secrets_are_for_their_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.key");
        write(&path, "secret", Existing::Refuse).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(*read(&path).unwrap(), "secret");
        for mode in [0o640, 0o604, 0o620, 0o601] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = read(&path).unwrap_err();
            let shown = path.display();
            assert_eq!(
                error.to_string(),
                format!("key file {shown} is open to others than its owner (mode {mode:04o})")
            );
            assert_eq!(error.hint(), Some(format!("chmod 600 {shown}")));
        }
    }

    #[test]
    fn nothing_is_overwritten_unasked_and_nothing_is_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.key");
        write(&path, "old", Existing::Refuse).unwrap();
        assert!(matches!(write(&path, "new", Existing::Refuse), Err(KeyFileError::Exists { .. })));
        assert_eq!(*read(&path).unwrap(), "old");
        write(&path, "new", Existing::Replace).unwrap();
        assert_eq!(*read(&path).unwrap(), "new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(matches!(read(&dir.path().join("b")), Err(KeyFileError::Missing { .. })));
    }
}
