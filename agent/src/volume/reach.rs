//! Two ways to the attributes of an inode: through a file that is open, or, where there is
//! only a handle that most system calls refuse, through the path that stands for it.

use rustix::buffer::spare_capacity;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{
    AtFlags, CWD, Mode, Timestamps, XattrFlags, chmod, fchmod, fgetxattr, fgetxattr_query, flistxattr,
    flistxattr_query, fremovexattr, fsetxattr, futimens, getxattr, getxattr_query, listxattr, listxattr_query,
    removexattr, setxattr, utimensat,
};
use rustix::io::{Errno, Result};

use super::sys::handle_path;

/// How an inode's attributes are reached.
pub(super) enum Reach<'a> {
    /// Through a file that is open: looking a path up for each call costs a fifth of what
    /// restoring a small file takes.
    Open(BorrowedFd<'a>),
    /// Through the path of a handle.
    Handle(String),
}

impl Reach<'_> {
    /// Through a handle of any type.
    pub(super) fn handle(fd: impl AsFd) -> Self {
        Self::Handle(handle_path(fd))
    }

    pub(super) fn chmod(&self, mode: Mode) -> Result<()> {
        match self {
            Self::Open(fd) => fchmod(fd, mode),
            Self::Handle(path) => chmod(path.as_str(), mode),
        }
    }

    pub(super) fn set_times(&self, times: &Timestamps) -> Result<()> {
        match self {
            Self::Open(fd) => futimens(fd, times),
            Self::Handle(path) => utimensat(CWD, path.as_str(), times, AtFlags::empty()),
        }
    }

    pub(super) fn set_xattr(&self, name: &[u8], value: &[u8]) -> Result<()> {
        match self {
            Self::Open(fd) => fsetxattr(fd, name, value, XattrFlags::empty()),
            Self::Handle(path) => setxattr(path.as_str(), name, value, XattrFlags::empty()),
        }
    }

    pub(super) fn remove_xattr(&self, name: &[u8]) -> Result<()> {
        match self {
            Self::Open(fd) => fremovexattr(fd, name),
            Self::Handle(path) => removexattr(path.as_str(), name),
        }
    }

    /// The names of extended attributes, each with a zero byte after it.
    pub(super) fn list_xattrs(&self) -> Result<Vec<u8>> {
        match self {
            Self::Open(fd) => sized(|| flistxattr_query(fd), |buffer| flistxattr(fd, spare_capacity(buffer))),
            Self::Handle(path) => {
                let path = path.as_str();
                sized(|| listxattr_query(path), |buffer| listxattr(path, spare_capacity(buffer)))
            }
        }
    }

    pub(super) fn xattr(&self, name: &[u8]) -> Result<Vec<u8>> {
        match self {
            Self::Open(fd) => sized(|| fgetxattr_query(fd, name), |buffer| fgetxattr(fd, name, spare_capacity(buffer))),
            Self::Handle(path) => {
                let path = path.as_str();
                sized(|| getxattr_query(path, name), |buffer| getxattr(path, name, spare_capacity(buffer)))
            }
        }
    }
}

/// Asks for a size, then for that many bytes, until it has not grown in between.
fn sized(size: impl Fn() -> Result<usize>, fill: impl Fn(&mut Vec<u8>) -> Result<usize>) -> Result<Vec<u8>> {
    loop {
        let mut buffer = Vec::with_capacity(size()?);
        if buffer.capacity() == 0 {
            return Ok(buffer);
        }
        match fill(&mut buffer) {
            Err(Errno::RANGE) => {}
            outcome => return outcome.map(|_| buffer),
        }
    }
}
