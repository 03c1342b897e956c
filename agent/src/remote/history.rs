//! What this machine has seen of the server's log, and whether the server still agrees.

use std::path::{Path, PathBuf};
use std::{fs, io};

use vsync_protocol::encode;
use vsync_protocol::log::{GENESIS, chain};
use vsync_protocol::manifest::LogPosition;
use vsync_protocol::wire::{Reply, Request};

use super::{Remote, RemoteError};
use crate::durable;

/// Keeps the newest log position seen, in a file.
pub struct HeadStore {
    path: PathBuf,
}

impl HeadStore {
    /// Keeps it in `path`.
    #[must_use]
    pub const fn new(path: PathBuf) -> Self {
        Self { path }
    }

    fn error(&self, source: io::Error) -> RemoteError {
        RemoteError::HeadFile { path: self.path.display().to_string(), source }
    }

    /// The newest position seen; `None` before the first contact.
    ///
    /// # Errors
    /// When the file is there but cannot be read.
    pub fn load(&self) -> Result<Option<LogPosition>, RemoteError> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.error(error)),
        };
        let position = text
            .trim()
            .split_once(' ')
            .and_then(|(index, head)| Some(LogPosition { index: index.parse().ok()?, head: head.parse().ok()? }));
        position.map(Some).ok_or_else(|| {
            self.error(io::Error::new(
                io::ErrorKind::InvalidData,
                "not `INDEX HEAD`; remove the file to trust the server anew",
            ))
        })
    }

    /// Remembers `position`. Durable when this returns: success is not reported before.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, position: LogPosition) -> Result<(), RemoteError> {
        let text = format!("{} {}\n", position.index, position.head);
        let parent = self.path.parent().unwrap_or_else(|| Path::new("."));
        let written = fs::create_dir_all(parent).and_then(|()| durable::replace(&self.path, 0o644, text.as_bytes()));
        written.map_err(|source| self.error(source))
    }
}

/// The server must show that its log continues the one that was seen before.
pub(super) fn check(remote: &Remote, store: &HeadStore) -> Result<(), RemoteError> {
    let (_, mut now) = remote.greeting();
    let Some(seen) = store.load()? else { return store.save(now) };
    if now.index < seen.index {
        // The greeting may be older than what was committed since, on this very connection.
        (_, now) = remote.greet_again()?;
    }
    let broken = |reason: String| RemoteError::History { server: remote.server().to_string(), reason };
    if now.index < seen.index {
        return Err(broken(format!("it has {} log entries, this machine has seen {}", now.index, seen.index)));
    }
    let mut at = if seen.index == 0 { LogPosition { index: 0, head: GENESIS } } else { seen };
    while at.index < now.index {
        let entries = match remote.request(&Request::Log { from: at.index })? {
            Reply::Log(entries) => entries,
            other => return Err(RemoteError::unexpected(&other)),
        };
        if entries.is_empty() {
            return Err(broken(format!("it shows {} of {} log entries", at.index, now.index)));
        }
        for entry in entries.iter().take((now.index - at.index) as usize) {
            at = LogPosition { index: at.index + 1, head: chain(at.head, &encode(entry)) };
        }
    }
    if at.head != now.head {
        return Err(broken(format!("entry {} is not the one that this machine has seen", at.index)));
    }
    if now == seen { Ok(()) } else { store.save(now) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vsync_protocol::id::LogHead;

    #[test]
    fn positions_are_kept_and_nonsense_is_not_taken_for_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let store = HeadStore::new(directory.path().join("heads/annex2"));
        assert_eq!(store.load().unwrap(), None);
        let position = LogPosition { index: 7, head: LogHead::from_bytes([3; 32]) };
        store.save(position).unwrap();
        assert_eq!(store.load().unwrap(), Some(position));
        fs::write(directory.path().join("heads/annex2"), "7").unwrap();
        assert!(store.load().is_err());
    }
}
