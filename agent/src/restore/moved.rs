//! Content that moved within a file: what an older version has at another place need not
//! be fetched.
//!
//! Where most of it moved by whole blocks, the file system is asked to put blocks in, or take
//! them out: nothing is copied. Else such a file is built anew beside the old one, which stays
//! whole until the new one takes its name: chunks could not be moved in place without
//! overwriting others still needed.

use std::collections::HashMap;
use std::sync::Arc;

use vsync_protocol::id::Pid;

use super::RestoreError;
use super::file::FileTask;
use super::survey::Survey;
use super::transfer::Transfer;
use crate::chunk::{Cutter, Profile};
use crate::tree::Reference;

/// What is read of the old file at once.
const WINDOW: usize = 4 << 20;

/// Searching costs reading, cutting and hashing the old file once more: worth it from so
/// many chunks on that are not where they should be, and from such a part of all.
const LEAST_CHUNKS: usize = 16;
const LEAST_PART: usize = 16;

/// So many chunks in a row that moved alike make it plain how the rest did.
const PLAIN: usize = 64;

/// What file systems move without copying: whole blocks, nearly always of this size.
const BLOCK: i64 = 4096;

/// Whether so many `differing` chunks of `all` look like content that moved.
pub(super) const fn is_likely(differing: usize, all: usize) -> bool {
    differing >= LEAST_CHUNKS && differing * LEAST_PART >= all
}

/// Where an older version of a file has which chunk.
#[derive(Default)]
pub(super) struct Index {
    pub(super) places: HashMap<Pid, u64>,
    /// Whether all was searched from where content seems to have moved.
    pub(super) complete: bool,
}

/// How far the older version of a file is searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Search {
    /// Until it is plain by how many whole blocks the rest of it moved.
    Shift,
    /// To its end.
    Everything,
}

/// Where the old file has which chunk, from where on most differ. Files that are rewritten page
/// by page have nothing that moved.
pub(super) fn index(
    shared: &Transfer<'_>,
    old: &FileTask,
    cutter: &Cutter,
    survey: &Survey,
    search: Search,
) -> Result<Index, RestoreError> {
    let size = old.size()?;
    let profile = Profile::guess(old.path().as_bytes(), size);
    let Some(mut start) = begin(&survey.differing).filter(|_| profile != Profile::Database) else {
        return Ok(Index { complete: true, ..Index::default() });
    };
    let mut trail = (search == Search::Shift).then(|| Trail::of(survey));
    let longest = cutter.longest(profile);
    let mut index = Index::default();
    let mut buffer = vec![0; WINDOW];
    let mut filled = 0;
    loop {
        shared.check()?;
        let read = old.read_at(&mut buffer[filled..], start + filled as u64)?;
        filled += read;
        let last = start + filled as u64 >= size || read == 0;
        let mut at = 0;
        while at < filled && (last || filled - at >= longest) {
            let end = filled.min(at + longest);
            let len = cutter.cut(profile, &buffer[at..end]);
            let (pid, from) = (shared.restore.vault.pid(&buffer[at..at + len]), start + at as u64);
            index.places.entry(pid).or_insert(from);
            at += len;
            if trail.as_mut().is_some_and(|trail| trail.is_plain(pid, from)) {
                return Ok(index);
            }
        }
        if last {
            index.complete = true;
            return Ok(index);
        }
        buffer.copy_within(at..filled, 0);
        filled -= at;
        start += at as u64;
    }
}

/// Where content that moved may begin: where many chunks in a row differ, or else the first that
/// differs. Up to the latter both versions have the same cuts; elsewhere they soon have.
fn begin(differing: &[(Reference, u64)]) -> Option<u64> {
    let adjoin = |pair: &[(Reference, u64)]| pair[0].1 + u64::from(pair[0].0.child.raw_len) == pair[1].1;
    let row = differing.windows(LEAST_CHUNKS).find(|row| row.windows(2).all(adjoin));
    row.or(Some(differing)).and_then(|row| row.first()).map(|(_, offset)| *offset)
}

/// Follows chunks of an older version to where they should be.
struct Trail {
    wanted: HashMap<Pid, u64>,
    /// By how much the last ones moved, and how many they were.
    by: i64,
    row: usize,
}

impl Trail {
    fn of(survey: &Survey) -> Self {
        let wanted = survey.differing.iter().map(|(reference, to)| (reference.child.pid, *to)).collect();
        Self { wanted, by: 0, row: 0 }
    }

    /// Whether, with the chunk at `from`, many in a row moved by the same number of whole blocks.
    fn is_plain(&mut self, pid: Pid, from: u64) -> bool {
        let Some(&to) = self.wanted.get(&pid) else { return false };
        let by = to.cast_signed().wrapping_sub(from.cast_signed());
        self.row = if by == self.by { self.row + 1 } else { 1 };
        self.by = by;
        by != 0 && by % BLOCK == 0 && self.row >= PLAIN
    }
}

/// A part of a file that is to be moved as a whole, by changing the file system's map of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shift {
    /// Where bytes are put in, or taken out.
    pub(super) at: u64,
    /// How many; negative when they are taken out.
    pub(super) by: i64,
}

/// How most of what moved can be brought to its place at once: if it moved by whole blocks.
pub(super) fn shift(survey: &Survey, index: &HashMap<Pid, u64>) -> Option<Shift> {
    let mut moves: HashMap<i64, (usize, u64)> = HashMap::new();
    let mut found = 0;
    for (reference, to) in &survey.differing {
        let Some(&from) = index.get(&reference.child.pid) else { continue };
        let by = i64::try_from(*to).ok()? - i64::try_from(from).ok()?;
        // The first chunk that moved so far tells where.
        moves.entry(by).or_insert((0, from)).0 += 1;
        found += 1;
    }
    let (by, (count, from)) = moves.into_iter().max_by_key(|(_, (count, _))| *count)?;
    if by == 0 || by % BLOCK != 0 || count < LEAST_CHUNKS || count * 2 < found {
        return None;
    }
    let block = BLOCK.unsigned_abs();
    // What is taken out ends where the chunk begins, what is put in comes before it.
    let before = if by < 0 { from.checked_sub(by.unsigned_abs())? } else { from };
    Some(Shift { at: before / block * block, by })
}

/// Builds the new version of a file: copies what the old one has, asks for the rest.
pub(super) fn rebuild(
    shared: &Transfer<'_>,
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
        // What stays at its place was counted when it was found there.
        if from != to {
            shared.count(task, buffer.len() as u64);
        }
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

#[cfg(test)]
mod tests {
    use vsync_protocol::id::Cid;
    use vsync_protocol::key::ContentKey;
    use vsync_protocol::tree::Child;

    use super::*;

    const LEN: u64 = 10_000;

    /// Chunks of an old file that begin at `starts`, and where a new one should have them.
    fn moved(starts: impl Iterator<Item = u64>, to: impl Fn(u64) -> u64) -> Option<Shift> {
        let (mut survey, mut index) = (Survey::default(), HashMap::new());
        for (number, from) in (0_u8..).zip(starts) {
            let child =
                Child { ck: ContentKey::from_bytes([0; 32]), pid: Pid::from_bytes([number; 16]), raw_len: 10_000 };
            survey.differing.push((Reference { cid: Cid::of(&[number]), child }, to(from)));
            index.insert(child.pid, from);
        }
        shift(&survey, &index)
    }

    #[test]
    fn whole_blocks_are_put_in_before_what_moved_and_taken_out_before_it() {
        let starts = || (3..30).map(|number| number * LEN);
        assert_eq!(moved(starts(), |from| from + 8192), Some(Shift { at: 28_672, by: 8192 }));
        assert_eq!(moved(starts(), |from| from - 8192), Some(Shift { at: 20_480, by: -8192 }));
        assert_eq!(moved(starts(), |from| from + 8000), None, "no whole blocks");
        assert_eq!(moved(starts().take(9), |from| from + 8192), None, "too few");
        let scattered = |from| if from % 30_000 == 0 { from + 4096 } else { from * 4096 };
        assert_eq!(moved(starts(), scattered), None, "each elsewhere");
    }

    /// Chunks where they should be, and do not lie.
    fn differing(offsets: impl Iterator<Item = u64>) -> Vec<(Reference, u64)> {
        let reference = |number: u8| {
            let child =
                Child { ck: ContentKey::from_bytes([0; 32]), pid: Pid::from_bytes([number; 16]), raw_len: LEN as u32 };
            Reference { cid: Cid::of(&[number]), child }
        };
        (0..).zip(offsets).map(|(number, offset)| (reference(number), offset)).collect()
    }

    #[test]
    fn what_moved_begins_where_many_in_a_row_differ() {
        let scattered = (0..40).map(|number| number * 3 * LEN);
        assert_eq!(begin(&differing(scattered.clone())), Some(0), "there is no row");
        let row = (200..220).map(|number| number * LEN);
        assert_eq!(begin(&differing(scattered.chain(row))), Some(200 * LEN));
        assert_eq!(begin(&[]), None);
    }

    #[test]
    fn a_row_of_chunks_that_moved_alike_ends_the_search() {
        let chunks = PLAIN as u64 * 2;
        let plain_after = |by: fn(u64) -> u64| {
            let mut survey = Survey::default();
            survey.differing = differing((0..chunks).map(by));
            let mut trail = Trail::of(&survey);
            let places = survey.differing.iter().zip(0..);
            places
                .map(|((reference, _), number)| trail.is_plain(reference.child.pid, number * LEN))
                .position(|plain| plain)
        };
        assert_eq!(plain_after(|number| number * LEN + 8192), Some(PLAIN - 1));
        assert_eq!(plain_after(|number| number * LEN + 8192 * (number / 10)), None, "each ten otherwise");
        assert_eq!(plain_after(|number| number * LEN + 100), None, "no whole blocks");
        assert_eq!(plain_after(|number| number * LEN), None, "it did not move");
    }
}
