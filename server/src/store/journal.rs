//! The log on disk: what became and ceased to be a snapshot, in order, each entry chained
//! to all before it. It is the authority; the catalog only repeats it.
//!
//! ```text
//! chain.log = "VSLOG001" ‖ entries
//! entry     = len u32 ‖ LogEntry in CBOR ‖ head after it 32
//! ```
//!
//! An entry is acknowledged only after it was synced, so whatever stands torn at the very
//! end was never acknowledged, and is cut off at the next start.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use vsync_protocol::encode;
use vsync_protocol::id::LogHead;
use vsync_protocol::log::{GENESIS, LogEntry, chain};
use vsync_protocol::manifest::LogPosition;

use super::StoreError;
use super::health::Health;
use super::room::{Cached, Room, is_full, set_aside, sync_directory};

/// Starts the log.
pub const MAGIC: [u8; 8] = *b"VSLOG001";

/// Longest entry; a reason for forgetting is the only text in one.
const MAX_ENTRY_LEN: usize = 64 << 10;

/// Where the log stands after an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Number of entries and the chain's head.
    pub position: LogPosition,
    /// Bytes of the log file.
    pub end: u64,
}

impl Mark {
    /// Before the first entry.
    pub const START: Self = Self { position: LogPosition { index: 0, head: GENESIS }, end: MAGIC.len() as u64 };
}

/// One entry as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// What happened.
    pub entry: LogEntry,
    /// Its bytes, as chained.
    pub bytes: Vec<u8>,
    /// Where the log stands after it.
    pub mark: Mark,
}

/// The log, open for appending.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
    mark: Mark,
    health: Health,
}

impl Journal {
    /// Opens the log in directory `log` and returns the entries after `known`, which is
    /// where the catalog stands. A torn last entry is moved to `quarantine`.
    ///
    /// # Errors
    /// When the log does not contain what the catalog knows, or is damaged before its end.
    pub fn open(log: &Path, quarantine: &Path, known: Mark, health: Health) -> Result<(Self, Vec<Logged>), StoreError> {
        let path = log.join("chain.log");
        let mut file = open_or_create(log, &path)?;
        check_known(&mut file, &path, known)?;
        let (entries, torn) = read_entries(&mut file, &path, known)?;
        let mark = entries.last().map_or(known, |last| last.mark);
        if !torn.is_empty() {
            tracing::warn!("cutting a torn entry of {} bytes off {}", torn.len(), path.display());
            set_aside(quarantine, &format!("chain.log.{}", mark.end), &torn)?;
            file.set_len(mark.end).map_err(StoreError::io("truncate", &path))?;
            file.sync_all().map_err(StoreError::io("sync", &path))?;
        }
        file.seek(SeekFrom::Start(mark.end)).map_err(StoreError::io("seek in", &path))?;
        Ok((Self { file, path, mark, health }, entries))
    }

    /// Where the log stands.
    #[must_use]
    pub const fn mark(&self) -> Mark {
        self.mark
    }

    /// Appends `entry`; when this returns it is durable.
    ///
    /// # Errors
    /// When it is not; then the store takes no more writes, and the next start decides by
    /// what is on disk whether the entry exists.
    pub fn append(&mut self, entry: LogEntry) -> Result<Logged, StoreError> {
        self.health.check()?;
        let bytes = encode(&entry);
        // Its reader takes a longer one for damage.
        if bytes.len() > MAX_ENTRY_LEN {
            let (path, offset) = (self.path.clone(), self.mark.end);
            return Err(StoreError::Log { path, offset, what: "the entry is too long" });
        }
        let logged = logged(self.mark, entry, bytes);
        let record = record(&logged);
        let (file, steps) = (&mut self.file, self.health.steps());
        match steps.take("append to the log", || file.write_all(&record)) {
            // A full disk is no damage, once what there was room for is taken back.
            Err(error) if is_full(&error) => {
                let undone = file.set_len(self.mark.end).and_then(|()| file.sync_all());
                let undone = undone.and_then(|()| file.seek(SeekFrom::Start(self.mark.end)).map(drop));
                self.health.watch("truncate", &self.path, undone)?;
                return Err(StoreError::io("append to", &self.path)(error));
            }
            result => self.health.watch("append to", &self.path, result)?,
        }
        self.health.watch("sync", &self.path, steps.take("sync the log", || file.sync_data()))?;
        self.mark = logged.mark;
        Ok(logged)
    }
}

/// Makes a damaged log whole again: from its own entries as far as they hold together, those
/// that the catalog repeats, `known`, and those of its own that follow these. The damaged file
/// goes to `quarantine`. Returns how many entries it had lost; none when it is whole, torn at
/// its end as a crash leaves it included.
///
/// # Errors
/// When log and catalog tell different histories, entries are lost that neither has, or the
/// log cannot be read or written.
pub fn mend(log: &Path, quarantine: &Path, known: &[LogEntry]) -> Result<Option<u64>, StoreError> {
    let path = log.join("chain.log");
    let bytes = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        result => result.map_err(StoreError::io("read", &path))?,
    };
    let body = bytes.strip_prefix(&MAGIC);
    let (own, rest) = follow(body.unwrap_or_default(), Mark::START);
    let whole = body.is_some() && rest.len() <= 4 + MAX_ENTRY_LEN + LogHead::LEN;
    let end = own.last().map_or(Mark::START, |last| last.mark);
    if (whole && !is_followed(rest, end) && own.len() >= known.len()) || (bytes.is_empty() && known.is_empty()) {
        return Ok(None);
    }
    let mut entries = repeat(known);
    let common = own.len().min(entries.len());
    if common > 0 && own[common - 1].mark != entries[common - 1].mark {
        let (offset, what) = (own[common - 1].mark.end, "it and the catalog tell different histories");
        return Err(StoreError::Log { path, offset, what });
    }
    if own.len() > entries.len() {
        entries.clone_from(&own);
    }
    // What follows them in the file, wherever the damage has moved it to.
    let mut at = 0;
    while at < bytes.len() {
        let end = entries.last().map_or(Mark::START, |last| last.mark);
        match read_entry(&bytes[at..], end).or_else(|| read_confirmed(&bytes[at..], end)) {
            Some((entry, after)) => {
                at = bytes.len() - after.len();
                entries.push(entry);
            }
            None => at += 1,
        }
    }
    if let Some(offset) = find_stray(&bytes, &entries) {
        let what = "what stands here was acknowledged, but entries before it are lost; put back a copy of the log, \
                    or of catalog.sqlite, which repeats it";
        return Err(StoreError::Log { path, offset, what });
    }
    let lost = entries.len().saturating_sub(own.len()) as u64;
    if !bytes.is_empty() {
        set_aside(quarantine, &format!("chain.log.damaged.{}", blake3::hash(&bytes).to_hex()), &bytes)?;
    }
    replace(log, &entries)?;
    Ok(Some(lost))
}

/// Makes a new log of `entries` in the directory `log`.
///
/// # Errors
/// When it is not durable.
pub(crate) fn begin(log: &Path, entries: &[LogEntry]) -> Result<(), StoreError> {
    replace(log, &repeat(entries))
}

fn replace(log: &Path, entries: &[Logged]) -> Result<(), StoreError> {
    let mut bytes = MAGIC.to_vec();
    entries.iter().for_each(|entry| bytes.extend(record(entry)));
    let room = Room::open(log.to_owned(), Health::default())?;
    room.write(Path::new("chain.log"), &mut [IoSlice::new(&bytes)], Cached::Kept)
}

/// Entries that are chained to `from`, and what comes after them.
fn follow(bytes: &[u8], from: Mark) -> (Vec<Logged>, &[u8]) {
    let (mut entries, mut rest, mut mark) = (Vec::new(), bytes, from);
    while let Some((entry, after)) = read_entry(rest, mark) {
        mark = entry.mark;
        rest = after;
        entries.push(entry);
    }
    (entries, rest)
}

/// Entries as they stand in a log that begins with them.
fn repeat(entries: &[LogEntry]) -> Vec<Logged> {
    let mut mark = Mark::START;
    let mut repeated = Vec::with_capacity(entries.len());
    for entry in entries {
        let next = logged(mark, entry.clone(), encode(entry));
        mark = next.mark;
        repeated.push(next);
    }
    repeated
}

fn logged(before: Mark, entry: LogEntry, bytes: Vec<u8>) -> Logged {
    let head = chain(before.position.head, &bytes);
    let end = before.end + (4 + bytes.len() + LogHead::LEN) as u64;
    let mark = Mark { position: LogPosition { index: before.position.index + 1, head }, end };
    Logged { entry, bytes, mark }
}

fn record(logged: &Logged) -> Vec<u8> {
    let len = (logged.bytes.len() as u32).to_le_bytes();
    [&len, logged.bytes.as_slice(), logged.mark.position.head.as_bytes()].concat()
}

fn open_or_create(log: &Path, path: &Path) -> Result<File, StoreError> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(StoreError::io("open", path))?;
    let len = file.metadata().map_err(StoreError::io("look at", path))?.len();
    // Shorter than its magic: made by a start that was interrupted, and never appended to.
    if len < MAGIC.len() as u64 {
        let begin = |file: &mut File| {
            file.set_len(0)?;
            file.write_all(&MAGIC)?;
            file.sync_all()?;
            sync_directory(log)
        };
        begin(&mut file).map_err(StoreError::io("create", path))?;
    }
    Ok(file)
}

/// Makes sure that the log contains the catalog's last entry.
fn check_known(file: &mut File, path: &Path, known: Mark) -> Result<(), StoreError> {
    let damaged = |offset, what| StoreError::Log { path: path.to_owned(), offset, what };
    let read = |file: &mut File, at, bytes: &mut [u8]| {
        file.seek(SeekFrom::Start(at))?;
        match file.read_exact(bytes) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            result => result.map(|()| true),
        }
    };
    let mut magic = [0; MAGIC.len()];
    if !read(file, 0, &mut magic).map_err(StoreError::io("read", path))? || magic != MAGIC {
        return Err(damaged(0, "not a log of format 1"));
    }
    if known == Mark::START {
        return Ok(());
    }
    // All of it, since damage in old entries would be noticed only when they are needed most.
    let len = usize::try_from(known.end).unwrap_or(usize::MAX).saturating_sub(MAGIC.len());
    let lacking = "it does not contain the last entry that the catalog knows";
    if file.metadata().map_err(StoreError::io("look at", path))?.len() < known.end {
        return Err(damaged(known.end, lacking));
    }
    let mut bytes = vec![0; len];
    if !read(file, MAGIC.len() as u64, &mut bytes).map_err(StoreError::io("read", path))? {
        return Err(damaged(known.end, lacking));
    }
    let (entries, rest) = follow(&bytes, Mark::START);
    let reached = entries.last().map_or(Mark::START, |last| last.mark);
    match (rest.is_empty(), reached == known) {
        (true, true) => Ok(()),
        (true, false) => Err(damaged(reached.end, lacking)),
        (false, _) => Err(damaged(reached.end, "unreadable entry")),
    }
}

/// Entries after `from`, and the bytes of a torn one at the end.
fn read_entries(file: &mut File, path: &Path, from: Mark) -> Result<(Vec<Logged>, Vec<u8>), StoreError> {
    file.seek(SeekFrom::Start(from.end)).map_err(StoreError::io("seek in", path))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(StoreError::io("read", path))?;
    let (mut entries, mut rest, mut mark) = (Vec::new(), bytes.as_slice(), from);
    while !rest.is_empty() {
        match read_entry(rest, mark) {
            Some((entry, after)) => {
                mark = entry.mark;
                rest = after;
                entries.push(entry);
            }
            // Only the last entry can be torn, since each was synced before the next.
            None if rest.len() <= 4 + MAX_ENTRY_LEN + LogHead::LEN && !is_followed(rest, mark) => break,
            None => return Err(StoreError::Log { path: path.to_owned(), offset: mark.end, what: "unreadable entry" }),
        }
    }
    Ok((entries, rest.to_vec()))
}

fn read_entry(bytes: &[u8], before: Mark) -> Option<(Logged, &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    let len = u32::from_le_bytes(*len) as usize;
    if len > MAX_ENTRY_LEN {
        return None;
    }
    let (entry, rest) = rest.split_at_checked(len)?;
    let (head, rest) = rest.split_first_chunk::<{ LogHead::LEN }>()?;
    let logged = logged(before, minicbor::decode(entry).ok()?, entry.to_vec());
    (logged.mark.position.head.as_bytes() == head).then_some((logged, rest))
}

/// An entry as it stands there, whatever head it says it leads to.
fn read_content(bytes: &[u8], before: Mark) -> Option<(Logged, &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    let len = u32::from_le_bytes(*len) as usize;
    let (entry, rest) = rest.split_at_checked(len).filter(|_| len <= MAX_ENTRY_LEN)?;
    let (_, rest) = rest.split_first_chunk::<{ LogHead::LEN }>()?;
    Some((logged(before, minicbor::decode(entry).ok()?, entry.to_vec()), rest))
}

/// An entry of which only the head is damaged: the one behind it says what it was.
fn read_confirmed(bytes: &[u8], before: Mark) -> Option<(Logged, &[u8])> {
    let (entry, after) = read_content(bytes, before)?;
    read_entry(after, entry.mark).map(|_| (entry, after))
}

/// Entries that are chained to what stands in front of them, each with its place.
fn chained(bytes: &[u8]) -> impl Iterator<Item = (usize, Logged)> {
    (LogHead::LEN..bytes.len()).filter_map(|at| {
        let head = LogHead::from_slice(&bytes[at - LogHead::LEN..at]).unwrap_or(GENESIS);
        let before = Mark { position: LogPosition { index: 0, head }, end: 0 };
        read_entry(&bytes[at..], before).map(|(entry, _)| (at, entry))
    })
}

/// Where in `bytes` there is an entry that is none of `entries`.
fn find_stray(bytes: &[u8], entries: &[Logged]) -> Option<u64> {
    let heads: HashSet<LogHead> = entries.iter().map(|entry| entry.mark.position.head).collect();
    chained(bytes).find(|(_, entry)| !heads.contains(&entry.mark.position.head)).map(|(at, _)| at as u64)
}

/// Whether anything stands behind an unreadable entry: then that was not torn by a crash but
/// damaged later, and cutting it off would lose what was acknowledged.
fn is_followed(bytes: &[u8], before: Mark) -> bool {
    read_content(bytes, before).is_some_and(|(_, after)| !after.is_empty()) || chained(bytes).next().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vsync_protocol::id::ManifestHash;

    fn entry(byte: u8) -> LogEntry {
        LogEntry::Commit { manifest: ManifestHash::from_bytes([byte; 32]), at: i64::from(byte) }
    }

    fn open(dir: &Path, known: Mark) -> Result<(Journal, Vec<Logged>), StoreError> {
        Journal::open(dir, dir, known, Health::default())
    }

    #[test]
    fn a_damaged_log_is_mended_from_what_the_catalog_repeats() {
        let whole = |known: usize, damage: fn(&mut Vec<u8>)| {
            let dir = tempfile::tempdir().unwrap();
            let (mut journal, _) = open(dir.path(), Mark::START).unwrap();
            (1..=5).for_each(|byte| drop(journal.append(entry(byte)).unwrap()));
            let (path, end) = (dir.path().join("chain.log"), journal.mark());
            let before = fs::read(&path).unwrap();
            let mut bytes = before.clone();
            damage(&mut bytes);
            fs::write(&path, bytes).unwrap();
            let known: Vec<LogEntry> = (1..=5).map(entry).take(known).collect();
            let lost = mend(dir.path(), dir.path(), &known).unwrap();
            (lost, fs::read(&path).unwrap() == before, open(dir.path(), Mark::START).is_ok_and(|it| it.0.mark() == end))
        };
        assert_eq!(whole(5, |_| ()), (None, true, true));
        assert_eq!(whole(0, |_| ()), (None, true, true));
        assert_eq!(whole(5, |bytes| bytes[100] ^= 1), (Some(4), true, true));
        assert_eq!(whole(5, |bytes| bytes[3] ^= 1), (Some(5), true, true));
        assert_eq!(whole(5, |bytes| bytes.truncate(200)), (Some(3), true, true));
        assert_eq!(whole(5, Vec::clear), (Some(5), true, true));
        // The catalog is behind: what follows in the file is taken from there.
        assert_eq!(whole(3, |bytes| bytes[100] ^= 1), (Some(4), true, true));
    }

    #[test]
    fn entries_behind_a_gap_are_not_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(dir.path(), Mark::START).unwrap();
        let ends: Vec<usize> = (1..=5).map(|byte| journal.append(entry(byte)).unwrap().mark.end as usize).collect();
        let path = dir.path().join("chain.log");
        let whole = fs::read(&path).unwrap();
        for at in MAGIC.len()..ends[3] {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x41;
            fs::write(&path, &bytes).unwrap();
            let in_head = ends.iter().any(|end| (end - 32..*end).contains(&at));
            match mend(dir.path(), dir.path(), &[]) {
                // The entry behind it says what it was.
                Ok(Some(restored)) => {
                    assert!(in_head && restored > 0 && fs::read(&path).unwrap() == whole, "byte {at}");
                }
                Ok(None) => panic!("byte {at}: it is said to be whole"),
                Err(error) => {
                    assert!(!in_head && matches!(error, StoreError::Log { .. }), "byte {at}: {error}");
                    assert_eq!(fs::read(&path).unwrap(), bytes, "byte {at}: it stays as it is");
                }
            }
        }
    }

    #[test]
    fn entries_come_back_from_any_mark() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, none) = open(dir.path(), Mark::START).unwrap();
        assert!(none.is_empty());
        let written: Vec<_> = (1..=3).map(|byte| journal.append(entry(byte)).unwrap()).collect();
        let marks = [Mark::START, written[0].mark, written[1].mark, written[2].mark];
        for (known, mark) in marks.into_iter().enumerate() {
            let (journal, entries) = open(dir.path(), mark).unwrap();
            assert_eq!(entries, written[known..]);
            assert_eq!(journal.mark(), written[2].mark);
        }
    }

    /// The file after two entries, for ever.
    #[test]
    fn golden_log() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(dir.path(), Mark::START).unwrap();
        let manifest = ManifestHash::from_bytes([2; 32]);
        let first = journal.append(LogEntry::Commit { manifest, at: 1_795_000_000_000 }).unwrap().mark.end as usize;
        journal.append(LogEntry::Forget { manifest, at: 1_795_000_000_001, reason: "keep-daily 30".into() }).unwrap();
        let bytes = fs::read(dir.path().join("chain.log")).unwrap();
        let found = [("log magic", &bytes[..8]), ("first entry", &bytes[8..first]), ("second entry", &bytes[first..])];
        let found = found.map(|(name, bytes)| (name, bytes.to_vec()));
        crate::testing::assert_golden(&found, include_str!("journal.golden"));
    }

    #[test]
    fn a_log_cut_anywhere_keeps_its_whole_entries() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(dir.path(), Mark::START).unwrap();
        let written: Vec<_> = (1..=3).map(|byte| journal.append(entry(byte)).unwrap()).collect();
        let path = dir.path().join("chain.log");
        let whole = fs::read(&path).unwrap();
        for len in 0..=whole.len() {
            fs::write(&path, &whole[..len]).unwrap();
            let kept = written.iter().filter(|entry| entry.mark.end <= len as u64).count();
            let (mut journal, entries) = open(dir.path(), Mark::START).unwrap();
            assert_eq!(entries, written[..kept], "cut to {len}");
            journal.append(entry(9)).unwrap();
            assert_eq!(open(dir.path(), Mark::START).unwrap().1.len(), kept + 1);
        }
    }

    #[test]
    fn a_failed_append_stops_all_writing() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(dir.path(), Mark::START).unwrap();
        journal.append(entry(1)).unwrap();
        let before = journal.mark();
        // A file that cannot be written stands for a disk that fails.
        journal.file = File::open(&journal.path).unwrap();
        assert!(matches!(journal.append(entry(2)), Err(StoreError::Io { operation: "append to", .. })));
        assert!(matches!(journal.append(entry(2)), Err(StoreError::ReadOnly(_))));
        assert_eq!(journal.mark(), before);
        assert_eq!(open(dir.path(), Mark::START).unwrap().1.len(), 1);
    }

    #[test]
    fn damage_before_the_end_is_not_taken_for_a_torn_entry() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(dir.path(), Mark::START).unwrap();
        let written: Vec<_> = (1..=3).map(|byte| journal.append(entry(byte)).unwrap()).collect();
        let path = dir.path().join("chain.log");
        let mut bytes = fs::read(&path).unwrap();
        for at in MAGIC.len()..written[1].mark.end as usize {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x41;
            fs::write(&path, &damaged).unwrap();
            assert!(matches!(open(dir.path(), Mark::START), Err(StoreError::Log { .. })), "byte {at}");
        }
        bytes.truncate(written[1].mark.end as usize);
        fs::write(&path, &bytes).unwrap();
        assert!(open(dir.path(), written[2].mark).is_err(), "behind the catalog");
    }
}
