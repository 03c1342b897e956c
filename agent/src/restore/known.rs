//! Which chunks the target has by now, and where: what is needed again is copied from there
//! instead of being fetched again.
//!
//! A record may be wrong: a file may have been changed since, and of a chunk's name only a
//! part is kept. Whoever copies hashes what was read.

use std::collections::HashMap;
use std::collections::VecDeque;

use vsync_protocol::id::Cid;
use vsync_protocol::tree::EntryPath;

/// Chunks in one generation: as many as the table holds before it would be doubled. With
/// the paths, two generations take less than 40 MiB.
const CHUNKS: usize = (1 << 18) / 8 * 7;

/// Bytes of paths in one generation.
const PATHS: usize = 6 << 20;

/// Chunks remembered of one file while it is written. Of a longer one the others are fetched
/// again if they are wanted elsewhere.
const OF_ONE_FILE: usize = 4096;

/// Chunks in files that are complete: the latest ones, and those that were needed again.
#[derive(Debug, Default)]
pub(super) struct KnownChunks {
    /// The younger one last. When it is full, the older one is forgotten.
    generations: VecDeque<Generation>,
}

#[derive(Debug, Default)]
struct Generation {
    chunks: HashMap<u64, Position>,
    /// The paths of all files, one after the other.
    paths: Vec<u8>,
    /// Where in `paths` each file's begins.
    starts: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Position {
    offset: u64,
    file: u32,
}

/// The chunks of one file that is being written.
#[derive(Debug)]
pub(super) struct Chunks(Vec<(u64, u64)>);

impl Chunks {
    /// None.
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    /// Notes that the chunk `cid` will be at `offset`.
    pub(super) fn push(&mut self, cid: &Cid, offset: u64) {
        if self.0.len() < OF_ONE_FILE {
            self.0.push((key(cid), offset));
        }
    }
}

impl KnownChunks {
    /// The file at `path` is complete and has these chunks.
    pub(super) fn insert(&mut self, path: &EntryPath, chunks: &Chunks) {
        if chunks.0.is_empty() {
            return;
        }
        let bytes = path.as_bytes();
        if self.generations.back().is_none_or(|young| young.is_full(chunks.0.len(), bytes.len())) {
            self.generations.push_back(Generation::default());
            while self.generations.len() > 2 {
                self.generations.pop_front();
            }
        }
        if let Some(young) = self.generations.back_mut() {
            young.insert(bytes, &chunks.0);
        }
    }

    /// A file that should have the chunk `cid`, and where in it.
    pub(super) fn find(&self, cid: &Cid) -> Option<(EntryPath, u64)> {
        self.generations.iter().rev().find_map(|generation| generation.find(key(cid)))
    }
}

impl Generation {
    fn is_full(&self, chunks: usize, path: usize) -> bool {
        self.chunks.len() + chunks > CHUNKS || self.paths.len() + path > PATHS
    }

    fn insert(&mut self, path: &[u8], chunks: &[(u64, u64)]) {
        let (Ok(file), Ok(start)) = (u32::try_from(self.starts.len()), u32::try_from(self.paths.len())) else { return };
        self.starts.push(start);
        self.paths.extend_from_slice(path);
        self.chunks.extend(chunks.iter().map(|&(key, offset)| (key, Position { offset, file })));
    }

    fn find(&self, key: u64) -> Option<(EntryPath, u64)> {
        let place = self.chunks.get(&key)?;
        let file = place.file as usize;
        let start = *self.starts.get(file)? as usize;
        let end = self.starts.get(file + 1).map_or(self.paths.len(), |&end| end as usize);
        Some((EntryPath::new(self.paths.get(start..end)?).ok()?, place.offset))
    }
}

/// A part of a chunk's name.
fn key(cid: &Cid) -> u64 {
    cid.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cid(number: usize) -> Cid {
        Cid::of(&number.to_le_bytes())
    }

    fn path(number: usize) -> EntryPath {
        EntryPath::new(format!("some/directory/{number}").as_bytes()).unwrap()
    }

    #[test]
    fn the_latest_chunks_are_found_and_memory_is_bounded() {
        let mut known = KnownChunks::default();
        let files = 3 * CHUNKS / 2;
        for number in 0..files {
            let mut chunks = Chunks::new();
            chunks.push(&cid(2 * number), 0);
            chunks.push(&cid(2 * number + 1), 70_000);
            known.insert(&path(number), &chunks);
        }
        let last = files - 1;
        assert_eq!(known.find(&cid(2 * last)), Some((path(last), 0)));
        assert_eq!(known.find(&cid(2 * last + 1)), Some((path(last), 70_000)));
        assert_eq!(known.find(&cid(0)), None, "the first ones made room");
        assert_eq!(known.generations.len(), 2);
        for generation in &known.generations {
            assert!(generation.chunks.capacity() <= CHUNKS && generation.paths.len() <= PATHS);
        }
    }

    #[test]
    fn a_chunk_is_found_where_it_was_last() {
        let mut known = KnownChunks::default();
        for (number, offset) in [(1, 5), (2, 9)] {
            let mut chunks = Chunks::new();
            chunks.push(&cid(7), offset);
            known.insert(&path(number), &chunks);
        }
        assert_eq!(known.find(&cid(7)), Some((path(2), 9)));
        assert_eq!(known.find(&cid(8)), None);
    }
}
