//! Power cuts: a disk that remembers every write and every flush, and that can be had again as it may have been at
//! any instant at which the power went.
//!
//! The disk is one file of a FUSE file system, so that what the kernel sends to a real disk can be seen: ext4 lies on
//! a loop device on it, and whatever works on that, SQLite and all, is cut as well. A disk may lose, tear and
//! reorder what it was not told to flush; what it was, it keeps.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request,
    WriteFlags,
};

use crate::{Rng, shell};

/// A disk tears writes where its sectors end; those of disks of today have this size. Where smaller ones are torn,
/// ext4 itself does not survive: its superblock has several.
const SECTOR: u64 = 4096;

/// What reached the disk.
#[derive(Clone, Debug)]
pub enum Event {
    /// Bytes at an offset.
    Write(u64, Vec<u8>),
    /// Everything so far is on the platters.
    Flush,
}

/// The disk's one file.
struct Recorder {
    image: File,
    size: u64,
    events: Arc<Mutex<Vec<Event>>>,
}

const DISK: INodeNo = INodeNo(2);
const FOR_LONG: Duration = Duration::from_secs(3600);

impl Recorder {
    fn attributes(&self, node: INodeNo) -> FileAttr {
        let (kind, size) = if node == DISK { (FileType::RegularFile, self.size) } else { (FileType::Directory, 0) };
        let then = SystemTime::UNIX_EPOCH;
        let (atime, mtime, ctime, crtime) = (then, then, then, then);
        let (ino, blocks, perm, nlink) = (node, size / 512, 0o700, 1);
        FileAttr {
            ino,
            size,
            blocks,
            atime,
            mtime,
            ctime,
            crtime,
            kind,
            perm,
            nlink,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    fn record(&self, event: Event) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }
}

impl Filesystem for Recorder {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == "disk" {
            reply.entry(&FOR_LONG, &self.attributes(DISK), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOR_LONG, &self.attributes(node));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(1), FopenFlags::empty());
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let len = u64::from(size).min(self.size.saturating_sub(offset));
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        match self.image.read_exact_at(&mut bytes, offset) {
            Ok(()) => reply.data(&bytes),
            Err(_) => reply.error(Errno::EIO),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match (self.image.write_all_at(data, offset), u32::try_from(data.len())) {
            (Ok(()), Ok(len)) => {
                self.record(Event::Write(offset, data.to_vec()));
                reply.written(len);
            }
            _ => reply.error(Errno::EIO),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.record(Event::Flush);
        reply.ok();
    }
}

/// A mounted ext4 file system; unmounted when dropped.
#[derive(Debug)]
pub struct Mounted {
    at: PathBuf,
    device: String,
}

impl Mounted {
    /// Mounts the file system in `image` at `at`, as after a power cut: its journal is replayed.
    ///
    /// # Panics
    /// When it cannot be mounted.
    #[must_use]
    #[track_caller]
    pub fn new(image: &Path, at: &Path) -> Self {
        // `mount -o loop` would take the device that an image of this name had before, which goes only after a while,
        // and with it what the kernel remembers of the old content.
        let device = shell::run("losetup", ["--find".as_ref(), "--show".as_ref(), image.as_os_str()]).trim().to_owned();
        shell::run("mount", [OsStr::new(&device), at.as_os_str()]);
        Self { at: at.to_owned(), device }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A panic here would hide another.
        drop(shell::attempt(Command::new("umount").arg(&self.at)));
        drop(shell::attempt(Command::new("losetup").arg("--detach").arg(&self.device)));
    }
}

/// A file system on a disk that remembers.
pub struct Recorded {
    events: Arc<Mutex<Vec<Event>>>,
    mounted: Option<Mounted>,
    session: Option<BackgroundSession>,
    _fuse: tempfile::TempDir,
}

impl Recorded {
    /// Mounts the file system in `image`, which changes with it, at `at`.
    ///
    /// # Panics
    /// Without FUSE, or when it cannot be mounted.
    #[must_use]
    #[track_caller]
    pub fn mount(image: &Path, at: &Path) -> Self {
        let file = File::options().read(true).write(true).open(image).expect("an image");
        let size = file.metadata().expect("an image").len();
        let events = Arc::<Mutex<Vec<Event>>>::default();
        let fuse = crate::scratch();
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("vsync-test-disk".to_owned())];
        let recorder = Recorder { image: file, size, events: Arc::clone(&events) };
        let session = fuser::spawn_mount(recorder, fuse.path(), &config).expect("FUSE");
        let mounted = Mounted::new(&fuse.path().join("disk"), at);
        Self { events, mounted: Some(mounted), session: Some(session), _fuse: fuse }
    }

    fn events(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many events there were: whatever was promised by now must hold after them.
    #[must_use]
    pub fn now(&self) -> usize {
        self.events().len()
    }

    /// Ends, and tells all that reached the disk.
    #[must_use]
    pub fn finish(self) -> Vec<Event> {
        let events = Arc::clone(&self.events);
        drop(self);
        std::mem::take(&mut *events.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        // The file system first: it still writes to the disk.
        drop(self.mounted.take());
        drop(self.session.take());
    }
}

/// What the disk loses of the writes that it was not told to flush.
#[derive(Debug)]
pub enum Loss<'a> {
    /// All of them.
    All,
    /// None of them.
    Nothing,
    /// Some, and of some a part; the rest comes in another order.
    Some(&'a mut Rng),
}

/// A disk as it was at one event after another.
pub struct Replay<'a> {
    /// What it holds for sure.
    durable: PathBuf,
    events: &'a [Event],
    at: usize,
    /// Writes that it may lose.
    pending: Vec<(u64, &'a [u8])>,
}

impl<'a> Replay<'a> {
    /// The disk that was `durable` before `events`. The file changes.
    #[must_use]
    pub const fn new(durable: PathBuf, events: &'a [Event]) -> Self {
        Self { durable, events, at: 0, pending: Vec::new() }
    }

    /// Goes on to the instant after so many events.
    ///
    /// # Panics
    /// When the image cannot be written.
    pub fn go_to(&mut self, at: usize) {
        for event in &self.events[self.at..at] {
            match event {
                Event::Write(offset, bytes) => self.pending.push((*offset, bytes)),
                Event::Flush => write_all(&self.durable, self.pending.drain(..)),
            }
        }
        self.at = at;
    }

    /// Makes `image` what a disk holds that took flushes for done without doing them, when the power goes after so many
    /// events: everything since the instant reached is as if it had never been flushed.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn lie(&self, at: usize, rng: &mut Rng, image: &Path) {
        let since = self.events[self.at..at].iter().filter_map(|event| match event {
            Event::Write(offset, bytes) => Some((*offset, &bytes[..])),
            Event::Flush => None,
        });
        let unflushed: Vec<_> = self.pending.iter().copied().chain(since).collect();
        shell::run("cp", ["--sparse=always".as_ref(), self.durable.as_os_str(), image.as_os_str()]);
        write_all(image, some(&unflushed, rng).into_iter());
    }

    /// How many writes the disk may lose now.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Makes `image` what is found after the power went now.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn cut(&self, loss: Loss<'_>, image: &Path) {
        shell::run("cp", ["--sparse=always".as_ref(), self.durable.as_os_str(), image.as_os_str()]);
        match loss {
            Loss::All => {}
            Loss::Nothing => write_all(image, self.pending.iter().copied()),
            Loss::Some(rng) => write_all(image, some(&self.pending, rng).into_iter()),
        }
    }
}

/// Some of the writes, some of them torn, in another order.
fn some<'a>(pending: &[(u64, &'a [u8])], rng: &mut Rng) -> Vec<(u64, &'a [u8])> {
    let keep = 1 + rng.below(9);
    let mut kept = Vec::new();
    for &(offset, bytes) in pending {
        if rng.below(10) >= keep {
            continue;
        }
        let sectors = bytes.len() as u64 / SECTOR;
        let torn = sectors > 1 && rng.below(4) == 0;
        let len = if torn { usize::try_from(rng.below(sectors) * SECTOR).expect("a length") } else { bytes.len() };
        let at = usize::try_from(rng.below(kept.len() as u64 + 1)).expect("a place");
        kept.insert(if rng.below(3) == 0 { at } else { kept.len() }, (offset, &bytes[..len]));
    }
    kept
}

fn write_all<'a>(image: &Path, writes: impl Iterator<Item = (u64, &'a [u8])>) {
    let file = File::options().write(true).open(image).expect("an image");
    for (offset, bytes) in writes {
        file.write_all_at(bytes, offset).expect("an image that can be written");
    }
}
