//! One backup of a volume at a time, whoever began it: a person, a schedule, another program.
//!
//! A lock is the kernel's, on a file that stays: it goes with the process that holds it, however that ends. The file
//! tells who holds it, for people to read.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use thiserror::Error;

use crate::docker;

/// A lock that is held until this is dropped.
#[must_use = "dropping this gives the lock away"]
#[derive(Debug)]
pub(crate) struct Lock(File);

/// A lock was not to be had.
#[derive(Debug, Error)]
pub(crate) enum LockError {
    /// Somebody else holds it.
    #[error("{holder} holds {}", path.display())]
    Held {
        /// The lock's file.
        path: PathBuf,
        /// Who, as it wrote of itself: `process 4711`.
        holder: String,
    },
    /// The file system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// How long, and how often, to wait for one who only looks.
const A_LOOK: Duration = Duration::from_millis(20);
const LOOKS: u32 = 10;

impl Lock {
    /// Takes the lock at `path`, whose directory is made if need be.
    ///
    /// # Errors
    /// When somebody else holds it, or the file system refuses.
    pub(crate) fn take(path: &Path) -> Result<Self, LockError> {
        let refused = |action| move |source| LockError::Io { action, path: path.to_owned(), source };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(refused("make the directory of"))?;
        }
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = open.map_err(refused("open"))?;
        let mut looks = 0;
        while let Err(error) = file.try_lock() {
            match error {
                TryLockError::Error(source) => return Err(refused("lock")(source)),
                TryLockError::WouldBlock => {}
            }
            // Who only looks holds it for a moment, too, and writes nothing.
            let holder = fs::read_to_string(path).unwrap_or_default().trim().to_owned();
            looks += 1;
            if !holder.is_empty() || looks > LOOKS {
                let holder = if holder.is_empty() { "another process".to_owned() } else { holder };
                return Err(LockError::Held { path: path.to_owned(), holder });
            }
            thread::sleep(A_LOOK);
        }
        let mut write = || {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", ourselves())
        };
        write().map_err(refused("write"))?;
        Ok(Self(file))
    }

    /// Who holds the lock at `path`, if anybody does. For those who only look.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(crate) fn holder(path: &Path) -> Result<Option<String>, LockError> {
        let refused = |action| move |source| LockError::Io { action, path: path.to_owned(), source };
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(refused("open"))?,
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => {
                Ok(Some(fs::read_to_string(path).map_err(refused("read"))?.trim().to_owned()))
            }
            Err(TryLockError::Error(source)) => Err(refused("lock")(source)),
        }
    }
}

/// This process, in words that somebody outside of its container understands, too.
fn ourselves() -> String {
    let container = docker::own_container().and_then(|id| id.get(..12).map(|id| format!(" of container {id}")));
    format!("process {}{}", std::process::id(), container.unwrap_or_default())
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Nobody reads it then; and the kernel unlocks it in any case.
        let _ = self.0.set_len(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_held_by_one_at_a_time_and_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("locks/data.lock");
        assert_eq!(Lock::holder(&path).unwrap(), None);
        let held = Lock::take(&path).unwrap();
        let own = ourselves();
        assert!(matches!(Lock::take(&path), Err(LockError::Held { holder, .. }) if holder == own));
        assert_eq!(Lock::holder(&path).unwrap(), Some(own));
        drop(held);
        assert_eq!(Lock::holder(&path).unwrap(), None);
        drop(Lock::take(&path).unwrap());
    }

    #[test]
    fn what_a_dead_process_left_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.lock");
        fs::write(&path, "4711\n").unwrap();
        assert!(Lock::take(&path).is_ok());
    }
}
