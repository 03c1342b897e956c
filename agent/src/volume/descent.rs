//! The way from a root down to the directory at hand, for walks of trees of any depth.

use std::ffi::CStr;
use std::sync::Arc;

use rustix::io::{Errno, Result};

use super::sys::{Directory, Identity, Names};

/// Directories kept open on the way, besides the root. A deeper tree costs one more
/// `openat2` for each directory that is returned to; a hostile one must not use up the
/// descriptors of the process.
const OPEN_DIRECTORIES: usize = 128;

/// A stack of directories, each with the names in it that are still to be visited.
#[derive(Debug)]
pub(super) struct Descent {
    levels: Vec<Level>,
}

#[derive(Debug)]
struct Level {
    /// `None` while closed to save descriptors. Never so at the top.
    directory: Option<Arc<Directory>>,
    identity: Identity,
    names: Names,
}

impl Descent {
    /// Nowhere yet.
    pub(super) const fn new() -> Self {
        Self { levels: Vec::new() }
    }

    /// Levels below and including the root.
    pub(super) fn depth(&self) -> usize {
        self.levels.len()
    }

    /// The directory at hand.
    pub(super) fn directory(&self) -> Option<&Arc<Directory>> {
        self.levels.last()?.directory.as_ref()
    }

    /// Takes the next name in the directory at hand.
    pub(super) fn take(&mut self) -> Option<(&Arc<Directory>, &CStr)> {
        let level = self.levels.last_mut()?;
        Some((level.directory.as_ref()?, level.names.take()?))
    }

    /// Goes into `directory`, to visit `names`.
    pub(super) fn enter(&mut self, directory: Arc<Directory>, names: Names) {
        self.levels.push(Level { identity: directory.identity(), directory: Some(directory), names });
        if let Some(oldest) = self.depth().checked_sub(OPEN_DIRECTORIES + 1)
            && oldest > 0
        {
            self.levels[oldest].directory = None;
        }
    }

    /// Goes back up by one.
    ///
    /// # Errors
    /// When the directory above had been closed and is no longer above: someone moved the
    /// tree. All directories between it and the root are then abandoned.
    pub(super) fn leave(&mut self) -> Result<()> {
        let Some(left) = self.levels.pop() else { return Ok(()) };
        let Some(above) = self.levels.last_mut() else { return Ok(()) };
        if above.directory.is_some() {
            return Ok(());
        }
        let reopened = left.directory.ok_or(Errno::BADF).and_then(|directory| directory.open_above());
        match reopened {
            // Whatever `..` led to, nothing of it is used unless it is the same inode.
            Ok(directory) if directory.identity() == above.identity => {
                above.directory = Some(Arc::new(directory));
                Ok(())
            }
            outcome => {
                self.levels.truncate(1);
                Err(outcome.err().unwrap_or(Errno::STALE))
            }
        }
    }
}
