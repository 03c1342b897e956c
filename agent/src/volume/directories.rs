//! Directories of a restore target, kept open while they are in use.

use std::collections::HashMap;
use std::sync::Arc;

use rustix::io::Result;
use vsync_protocol::tree::EntryPath;

use super::sys::Directory;

/// Directories kept open. A restore works through the tree in order, so that few are in
/// use at a time.
const CAPACITY: usize = 256;

/// Longest path given to one system call; below `PATH_MAX`.
const STRETCH: usize = 4000;

/// Finds directories by their path below a root, opening only what is not open already.
#[derive(Debug)]
pub(super) struct Directories {
    root: Arc<Directory>,
    open: HashMap<EntryPath, OpenDirectory>,
    clock: u64,
}

#[derive(Debug)]
struct OpenDirectory {
    directory: Arc<Directory>,
    used: u64,
}

impl Directories {
    pub(super) fn new(root: Arc<Directory>) -> Self {
        Self { root, open: HashMap::new(), clock: 0 }
    }

    /// Opens the directory at `path`, from the nearest one above it that is open.
    pub(super) fn get(&mut self, path: &EntryPath) -> Result<Arc<Directory>> {
        let (mut directory, known) = self.nearest(path);
        if known == path.as_bytes().len() {
            return Ok(directory);
        }
        let rest = path.as_bytes().get(known..).unwrap_or_default();
        for stretch in stretches(rest) {
            directory = Arc::new(directory.open_below(stretch)?);
        }
        self.keep(path.clone(), directory.clone());
        Ok(directory)
    }

    /// Closes the directories at and below `path`, which is no longer what it was.
    pub(super) fn forget(&mut self, path: &EntryPath) {
        self.open.retain(|kept, _| !kept.is_within(path));
    }

    /// The nearest open directory at or above `path`, and the length of its own path.
    fn nearest(&mut self, path: &EntryPath) -> (Arc<Directory>, usize) {
        self.clock += 1;
        let mut above = Some(path.clone());
        while let Some(candidate) = above {
            if let Some(kept) = self.open.get_mut(&candidate) {
                kept.used = self.clock;
                return (kept.directory.clone(), candidate.as_bytes().len());
            }
            above = candidate.parent();
        }
        (self.root.clone(), 0)
    }

    fn keep(&mut self, path: EntryPath, directory: Arc<Directory>) {
        if self.open.len() >= CAPACITY
            && let Some(oldest) = self.open.iter().min_by_key(|(_, kept)| kept.used).map(|(path, _)| path.clone())
        {
            self.open.remove(&oldest);
        }
        self.open.insert(path, OpenDirectory { directory, used: self.clock });
    }
}

/// Cuts a path into pieces that are short enough for a system call.
fn stretches(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = path.strip_prefix(b"/").unwrap_or(path);
    std::iter::from_fn(move || {
        let end = match rest.get(..STRETCH) {
            // A name is at most 255 bytes, so there is a slash in it.
            Some(head) => head.iter().rposition(|&byte| byte == b'/')?,
            None => rest.len(),
        };
        let (stretch, after) = rest.split_at(end);
        rest = after.strip_prefix(b"/").unwrap_or(after);
        (!stretch.is_empty()).then_some(stretch)
    })
}
