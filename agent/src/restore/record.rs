//! What vsync restored into a place: which inode, when it last changed, and what is in it.
//!
//! A file that still is that inode and has not changed since need not be read to know its
//! content. The record is a cache: where anything about it is in doubt, it is not used, and
//! the next restore reads the files. `docs/decisions/0009` says what it rests on.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Take, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use minicbor::{Decode, Encode};
use rustix::time::{ClockId, clock_gettime};
use vsync_protocol::encode;
use vsync_protocol::tree::{Entry, EntryPath, Time};

use crate::volume::{DirectoryId, Placed, State};

/// Begins every record; another version has another one.
const MAGIC: &[u8; 8] = b"vsyncRR1";

/// Files waiting for one before them in the tree. A large file takes long: its record then
/// comes late instead.
const WAITING: usize = 4096;

/// Longest record of one file: of 10 TiB, in the smallest chunks.
const LONGEST: u64 = 64 << 20;

/// Milliseconds to wait for the clock to pass the last change.
const PATIENCE: usize = 50;

/// Speed matters more than the last byte.
const LEVEL: i32 = 1;

/// What is known of one file.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(super) struct FileRecord {
    #[n(0)]
    pub(super) path: EntryPath,
    #[n(1)]
    pub(super) inode: u64,
    #[n(2)]
    pub(super) ctime: Time,
    /// Stands for mode, owner, times and extended attributes.
    #[n(3)]
    #[cbor(with = "minicbor::bytes")]
    pub(super) attributes: Vec<u8>,
    /// Digests of its groups of pieces.
    #[n(4)]
    #[cbor(with = "minicbor::bytes")]
    pub(super) content: Vec<u8>,
}

impl FileRecord {
    /// Of a file that is as `entry` says, with the content that `content` stands for.
    pub(super) fn of(entry: &Entry, placed: &Placed, content: Vec<u8>) -> Self {
        let State { inode, ctime, .. } = placed.state;
        // What lacks something gets it the next time, if it can.
        let attributes = if placed.unrestored.is_empty() { attributes(entry) } else { Vec::new() };
        Self { path: entry.path.clone(), inode, ctime, attributes, content }
    }
}

/// What a record is about.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
struct Head {
    /// The running system: after a crash, content may be newer than the times beside it.
    #[n(0)]
    boot: String,
    #[n(1)]
    device: u64,
    #[n(2)]
    inode: u64,
}

impl Head {
    fn of(place: DirectoryId) -> io::Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        Ok(Self { boot, device: place.device, inode: place.inode })
    }
}

/// The name of the record about the directory at `path`.
pub(super) fn name(path: &Path) -> Option<String> {
    let path = fs::canonicalize(path).ok()?;
    Some(blake3::hash(path.as_os_str().as_bytes()).to_hex()[..32].to_owned())
}

/// Stands for what a file has besides its content.
pub(super) fn attributes(entry: &Entry) -> Vec<u8> {
    let about = (entry.mode, entry.uid, entry.gid, entry.mtime, &entry.xattrs);
    blake3::hash(&encode(&about)).as_bytes()[..16].to_vec()
}

/// Writes the record of a restore. Nothing is kept of one that is dropped.
pub(super) struct Writer {
    path: PathBuf,
    partial: Partial,
    output: zstd::Encoder<'static, BufWriter<File>>,
    /// The number of the file that comes next.
    next: u64,
    waiting: BTreeMap<u64, Option<FileRecord>>,
    late: Vec<FileRecord>,
    newest: Time,
    outcome: io::Result<()>,
}

/// A file that is not complete; it goes with this.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // When it has its name, it is not there any more.
        let _ = fs::remove_file(&self.0);
    }
}

impl Writer {
    /// Begins the record at `path` of a restore into `place`. The one that is there stays until
    /// the new one is finished.
    pub(super) fn create(path: &Path, place: DirectoryId) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let mut partial = path.as_os_str().to_owned();
        partial.push(".new");
        let options = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial);
        let mut file = BufWriter::new(options?);
        file.write_all(MAGIC)?;
        let mut output = zstd::Encoder::new(file, LEVEL)?;
        put(&mut output, &Head::of(place)?)?;
        Ok(Self {
            path: path.to_owned(),
            partial: Partial(partial.into()),
            output,
            next: 0,
            waiting: BTreeMap::new(),
            late: Vec::new(),
            newest: Time::default(),
            outcome: Ok(()),
        })
    }

    /// File `number`, counted in the order of the tree, is done; of one that may not be
    /// relied on nothing is kept.
    pub(super) fn done(&mut self, number: u64, kept: Option<FileRecord>) {
        if number < self.next {
            self.late.extend(kept);
            return;
        }
        self.waiting.insert(number, kept);
        if self.waiting.len() > WAITING {
            self.next = self.waiting.keys().next().copied().unwrap_or(number);
        }
        while let Some(kept) = self.waiting.remove(&self.next) {
            self.next += 1;
            self.write(kept);
        }
    }

    fn write(&mut self, kept: Option<FileRecord>) {
        let Some(kept) = kept else { return };
        self.newest = self.newest.max(kept.ctime);
        if self.outcome.is_ok() {
            self.outcome = put(&mut self.output, &kept);
        }
    }

    /// Makes the record valid, now that everything is on disk.
    pub(super) fn finish(mut self) -> io::Result<()> {
        for (_, kept) in std::mem::take(&mut self.waiting) {
            self.write(kept);
        }
        self.outcome?;
        let mut file = self.output.finish()?;
        let main = file.stream_position()?;
        let mut output = zstd::Encoder::new(file, LEVEL)?;
        for kept in &self.late {
            self.newest = self.newest.max(kept.ctime);
            put(&mut output, kept)?;
        }
        let mut file = output.finish()?;
        file.write_all(&main.to_le_bytes())?;
        file.flush()?;
        wait_until_after(self.newest)?;
        fs::rename(&self.partial.0, &self.path)
    }
}

/// Waits until whatever changes from now on has a later time than `time`. File systems take
/// their times from a clock that stands still for milliseconds.
fn wait_until_after(time: Time) -> io::Result<()> {
    for _ in 0..PATIENCE {
        let now = clock_gettime(ClockId::RealtimeCoarse);
        if (now.tv_sec, now.tv_nsec) > (time.seconds, time.nanos.into()) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(1));
    }
    Err(io::Error::other("the clock was set back"))
}

/// Reads a record, in the order of the tree.
pub(super) struct Reader {
    main: zstd::Decoder<'static, BufReader<Take<File>>>,
    next: Option<FileRecord>,
    late: HashMap<EntryPath, FileRecord>,
    device: u64,
}

impl Reader {
    /// The record at `path`, if it is one of `place` and can be relied on.
    pub(super) fn open(path: &Path, place: DirectoryId) -> Option<Self> {
        let mut file = File::open(path).ok()?;
        let end = file.seek(SeekFrom::End(-8)).ok()?;
        let mut main = [0; 8];
        file.read_exact(&mut main).ok()?;
        let main = u64::from_le_bytes(main);
        file.seek(SeekFrom::Start(main)).ok()?;
        let late = Self::late(&file, end.checked_sub(main)?)?;
        file.rewind().ok()?;
        let mut magic = [0; MAGIC.len()];
        file.read_exact(&mut magic).ok()?;
        let length = main.checked_sub(MAGIC.len() as u64)?;
        let mut main = zstd::Decoder::new(file.take(length)).ok()?;
        let head: Head = take(&mut main)?;
        if magic != *MAGIC || head != Head::of(place).ok()? {
            return None;
        }
        let next = take(&mut main);
        Some(Self { main, next, late, device: place.device })
    }

    fn late(file: &File, length: u64) -> Option<HashMap<EntryPath, FileRecord>> {
        let mut input = zstd::Decoder::new(file.try_clone().ok()?.take(length)).ok()?;
        let mut late = HashMap::new();
        while let Some(kept) = take::<FileRecord>(&mut input) {
            late.insert(kept.path.clone(), kept);
        }
        Some(late)
    }

    /// The device that all files of the record are on.
    pub(super) const fn device(&self) -> u64 {
        self.device
    }

    /// What is known of the file at `path`; later calls are for later paths.
    pub(super) fn find(&mut self, path: &EntryPath) -> Option<FileRecord> {
        while self.next.as_ref().is_some_and(|next| next.path < *path) {
            self.next = take(&mut self.main);
        }
        if self.next.as_ref().is_some_and(|next| next.path == *path) {
            return std::mem::replace(&mut self.next, take(&mut self.main));
        }
        self.late.remove(path)
    }
}

fn put(output: &mut impl Write, thing: &impl Encode<()>) -> io::Result<()> {
    let bytes = encode(thing);
    output.write_all(&(bytes.len() as u64).to_le_bytes())?;
    output.write_all(&bytes)
}

/// The next thing; `None` at the end, and where the record is damaged.
fn take<T: for<'b> Decode<'b, ()>>(input: &mut impl Read) -> Option<T> {
    let mut length = [0; 8];
    input.read_exact(&mut length).ok()?;
    let length = u64::from_le_bytes(length);
    let mut bytes = Vec::new();
    input.take(length.min(LONGEST)).read_to_end(&mut bytes).ok()?;
    minicbor::decode(&bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: DirectoryId = DirectoryId { device: 1, inode: 2 };

    fn kept(number: u64) -> FileRecord {
        let path = EntryPath::new(format!("{number:06}").as_bytes()).unwrap();
        let ctime = Time { seconds: 1_700_000_000, nanos: 5 };
        FileRecord { path, inode: number, ctime, attributes: vec![1; 16], content: vec![2; 32] }
    }

    fn written(path: &Path, order: impl Iterator<Item = u64>) {
        let mut writer = Writer::create(path, PLACE).unwrap();
        order.for_each(|number| writer.done(number, Some(kept(number))));
        writer.finish().unwrap();
    }

    #[test]
    fn files_are_found_in_the_order_of_the_tree_even_if_some_came_late() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/record");
        let slow = [7, 5000];
        let count = 20_000;
        written(&path, (0..count).filter(|number| !slow.contains(number)).chain(slow));
        let mut reader = Reader::open(&path, PLACE).unwrap();
        assert_eq!(reader.late.len(), slow.len());
        for number in (0..count).step_by(3).chain([count + 1]) {
            let found = reader.find(&kept(number).path);
            assert_eq!(found, Some(kept(number)).filter(|_| number < count));
        }
        let mut reader = Reader::open(&path, PLACE).unwrap();
        assert_eq!(slow.map(|number| reader.find(&kept(number).path)), slow.map(|number| Some(kept(number))));
    }

    #[test]
    fn a_record_of_another_place_or_time_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record");
        written(&path, 0..10);
        assert!(Reader::open(&path, DirectoryId { inode: 3, ..PLACE }).is_none());
        assert!(Reader::open(&path, DirectoryId { device: 3, ..PLACE }).is_none());
        assert!(Reader::open(&directory.path().join("other"), PLACE).is_none());
        let whole = fs::read(&path).unwrap();
        for end in 0..whole.len() {
            fs::write(&path, &whole[..end]).unwrap();
            assert!(Reader::open(&path, PLACE).is_none(), "cut at {end}");
        }
        assert!(Head::of(PLACE).unwrap().boot.len() > 30);
    }

    #[test]
    fn an_unfinished_record_leaves_the_one_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record");
        written(&path, 0..10);
        let mut writer = Writer::create(&path, PLACE).unwrap();
        writer.done(0, None);
        drop(writer);
        assert_eq!(Reader::open(&path, PLACE).unwrap().find(&kept(3).path), Some(kept(3)));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_time_that_lies_ahead_of_the_clock_makes_no_record() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record");
        let mut writer = Writer::create(&path, PLACE).unwrap();
        let ctime = Time { seconds: i64::MAX, nanos: 0 };
        writer.done(0, Some(FileRecord { ctime, ..kept(0) }));
        assert!(writer.finish().is_err());
        assert!(!path.exists());
    }
}
