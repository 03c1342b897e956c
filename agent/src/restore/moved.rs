//! Content that moved within a file: what an older version has at another place need not
//! be fetched.
//!
//! Such a file is built anew beside the old one, which stays whole until the new one takes
//! its name: chunks could not be moved in place without overwriting others still needed.

use std::collections::HashMap;
use std::sync::Arc;

use vsync_protocol::id::Pid;

use super::RestoreError;
use super::compare::Survey;
use super::file::FileTask;
use super::transfer::Shared;
use crate::chunk::{Cutter, Profile};
use crate::tree::Reference;

/// What is read of the old file at once.
const WINDOW: usize = 4 << 20;

/// Searching costs reading, cutting and hashing the old file once more: worth it from so
/// many chunks on that are not where they should be, and from such a part of all.
const LEAST_CHUNKS: usize = 16;
const LEAST_PART: usize = 16;

/// Whether so many `differing` chunks of `all` look like content that moved.
pub(super) const fn is_likely(differing: usize, all: usize) -> bool {
    differing >= LEAST_CHUNKS && differing * LEAST_PART >= all
}

/// Where the old file has which chunk.
pub(super) fn index(shared: &Shared<'_>, old: &FileTask, cutter: &Cutter) -> Result<HashMap<Pid, u64>, RestoreError> {
    let size = old.size()?;
    let profile = Profile::guess(old.path().as_bytes(), size);
    let longest = cutter.longest(profile);
    let mut found = HashMap::new();
    let mut buffer = vec![0; WINDOW];
    let (mut start, mut filled) = (0_u64, 0_usize);
    loop {
        shared.check()?;
        let read = old.read_at(&mut buffer[filled..], start + filled as u64)?;
        filled += read;
        let last = start + filled as u64 >= size || read == 0;
        let mut at = 0;
        while at < filled && (last || filled - at >= longest) {
            let end = filled.min(at + longest);
            let len = cutter.cut(profile, &buffer[at..end]);
            found.entry(shared.restore.vault.pid(&buffer[at..at + len])).or_insert(start + at as u64);
            at += len;
        }
        if last {
            return Ok(found);
        }
        buffer.copy_within(at..filled, 0);
        filled -= at;
        start += at as u64;
    }
}

/// Builds the new version of a file: copies what the old one has, asks for the rest.
pub(super) fn rebuild(
    shared: &Shared<'_>,
    old: &FileTask,
    task: &Arc<FileTask>,
    survey: &Survey,
    index: &HashMap<Pid, u64>,
) -> Result<(), RestoreError> {
    let mut buffer = Vec::new();
    let mut copy = |reference: &Reference, from: u64, to: u64| -> Result<bool, RestoreError> {
        shared.check()?;
        buffer.resize(reference.child.raw_len as usize, 0);
        let read = old.read_at(&mut buffer, from)?;
        // Hashed again: the volume may have users that nobody knows of.
        if read < buffer.len() || shared.restore.vault.pid(&buffer) != reference.child.pid {
            return Ok(false);
        }
        task.write(&shared.restore.target, &buffer, to)?;
        Ok(true)
    };
    let elsewhere =
        |(reference, offset): &(Reference, u64)| (*reference, *offset, index.get(&reference.child.pid).copied());
    let here = survey.here.iter().map(|(reference, offset)| (*reference, *offset, Some(*offset)));
    for (reference, offset, from) in here.chain(survey.differing.iter().map(elsewhere)) {
        let copied = match from {
            Some(from) => copy(&reference, from, offset)?,
            None => false,
        };
        if !copied {
            shared.want(task, &reference, offset)?;
        }
    }
    Ok(())
}
