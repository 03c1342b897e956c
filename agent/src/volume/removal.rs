//! Removing a directory with all that is in it, one entry at a time.

use std::ffi::CString;
use std::sync::Arc;

use rustix::fs::{AtFlags, unlinkat};
use rustix::io::{Errno, Result};

use super::descent::Descent;
use super::sys::{Directory, Names};

/// A removal that is under way.
pub(super) struct Removal {
    descent: Descent,
    /// The directories on the way to the one at hand, which is the last, as names.
    inside: Vec<CString>,
}

impl Removal {
    /// Of something in `parent`; nothing yet.
    pub(super) fn of(parent: Arc<Directory>) -> Self {
        let mut descent = Descent::new();
        descent.enter(parent, Names::default());
        Self { descent, inside: Vec::new() }
    }

    /// Goes into the directory `name`, which is to be removed. Returns whether something is
    /// left to be done, as [`step`](Self::step) does.
    pub(super) fn enter(&mut self, name: CString) -> Result<bool> {
        let parent = self.descent.directory().ok_or(Errno::BADF)?;
        let directory = Arc::new(parent.open_below(&*name)?);
        let (names, outcome) = directory.names();
        outcome?;
        self.descent.enter(directory, names);
        self.inside.push(name);
        Ok(true)
    }

    /// Removes the next entry. Returns whether something is left.
    pub(super) fn step(&mut self) -> Result<bool> {
        let Some(current) = self.inside.last() else { return Ok(false) };
        match self.descent.take() {
            Some((directory, name)) => match unlinkat(directory, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR) => {
                    let name = name.to_owned();
                    return self.enter(name);
                }
                Err(error) => return Err(error),
            },
            None => {
                self.descent.leave()?;
                let directory = self.descent.directory().ok_or(Errno::BADF)?;
                unlinkat(directory, current, AtFlags::REMOVEDIR)?;
                self.inside.pop();
            }
        }
        Ok(!self.inside.is_empty())
    }
}
