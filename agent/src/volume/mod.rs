//! A volume's directory: read for a backup, written by a restore.
//!
//! What is in it is hostile: a container may swap a directory for a symbolic link between
//! any two system calls. Hence nothing here is looked up by a path of several steps that
//! could be redirected: every step is relative to an open directory and goes through
//! `openat2` with `BENEATH | NO_SYMLINKS | NO_MAGICLINKS | NO_XDEV`, and whatever is opened
//! is compared with what was seen before.
//!
//! This room knows no chunks, no server and no Docker.

mod attributes;
mod descent;
mod directories;
mod file;
mod memory;
mod reach;
mod removal;
mod source;
mod sys;
mod target;
mod walk;
mod writeback;

#[cfg(test)]
mod tests;

pub use attributes::{Attribute, Unrestored};
pub use file::TargetFile;
pub use source::{DataRanges, SourceFile};
pub use target::{DirectoryId, Placed, Staging, State, Target, TargetError, is_partial_name};
pub use walk::{Defect, DefectReason, Found, Step, WalkError, Walker};
