//! From a tar archive to a directory.
//!
//! An archive may be hostile: it names what is written, with the rights of whoever unpacks it.
//! Nothing is written outside of the target, nothing is written through a symbolic link, nothing is
//! written twice, and an archive that ends early is no archive.

mod pax;
mod place;
mod read;

use std::io::{self, BufReader, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use flate2::bufread::MultiGzDecoder;
use thiserror::Error;
use vsync_protocol::tree::{Entry, EntryKind, EntryPath, Time};

use self::read::{Archive, Member};
use crate::progress::Progress;
use crate::shelf::Shelf;
use crate::volume::{Staging, Target, TargetError, TargetFile, Unrestored};

/// Bytes read at once.
const BUFFER: usize = 1 << 20;

/// Zeros of this length become holes.
const HOLE: usize = 64 << 10;

/// How many things that are not exact are remembered by name.
const MAX_LOST: usize = 1000;

/// Why an archive was not unpacked.
#[derive(Debug, Error)]
pub(crate) enum ArchiveError {
    /// It cannot be read.
    #[error("the archive cannot be read")]
    Input(#[source] io::Error),
    /// It ends too early.
    #[error("the archive is truncated: it ends without its end mark")]
    Truncated,
    /// It is not one.
    #[error("this is not a tar archive, or a damaged one: a header is wrong")]
    Header,
    /// An extended header makes no sense.
    #[error("the archive is damaged: an extended header is wrong")]
    Extension,
    /// A sparse file makes no sense.
    #[error("the archive is damaged: the map of a sparse file is wrong")]
    Map,
    /// It is compressed in a way that we do not know.
    #[error("the archive is compressed with {0}")]
    Compressed(&'static str),
    /// A name that does not stay in the target.
    #[error("the archive has a member \"{name}\": {problem}")]
    Name {
        /// The name, printable.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Something that is no file.
    #[error("the archive has a member \"{path}\" of the unknown kind {kind:?}")]
    Kind {
        /// The type in its header.
        kind: char,
        path: String,
    },
    /// The same name twice.
    #[error("the archive has \"{path}\" twice")]
    Twice { path: EntryPath },
    /// A name below something that is no directory.
    #[error("the archive would write \"{path}\" through \"{link}\", which is no directory")]
    Through {
        path: EntryPath,
        /// What is in its way.
        link: EntryPath,
    },
    /// A hard link whose target is not in the target.
    #[error("the archive has a hard link \"{path}\" to something that is not in it")]
    LinkOutside { path: EntryPath },
    /// A hard link to what was not there before it.
    #[error("the archive has a hard link \"{path}\" to \"{target}\", which does not stand before it")]
    NoTarget {
        path: EntryPath,
        /// What it names.
        target: EntryPath,
    },
    /// The target is not empty.
    #[error("{0} is not empty")]
    NotEmpty(String),
    /// The target cannot be written.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// What must wait for the end cannot be kept.
    #[error("cannot keep the list of directories")]
    Deferred(#[source] io::Error),
    /// Somebody asked to stop.
    #[error("interrupted")]
    Interrupted,
}

/// What was unpacked.
#[derive(Debug, Default)]
pub(crate) struct UnpackReport {
    /// Entries in all.
    pub(crate) entries: u64,
    /// Bytes of content, holes included.
    pub(crate) bytes: u64,
    /// Attributes that could not be set.
    pub(crate) unrestored: Vec<Unrestored>,
    /// What could not be taken over, and of which entry.
    pub(crate) lost: Vec<(EntryPath, String)>,
    /// From start to the last byte on disk.
    pub(crate) duration: Duration,
}

impl UnpackReport {
    /// Whether everything is as the archive says.
    #[must_use]
    pub(crate) const fn is_exact(&self) -> bool {
        self.unrestored.is_empty() && self.lost.is_empty()
    }
}

/// Unpacks the archive that `input` gives, compressed or not, into the empty `directory`.
/// Leaves out the first `strip` components of every path.
///
/// # Errors
/// When the archive is not one, would write anywhere else, or the file system refuses. What was
/// unpacked until then is in the directory.
pub(crate) fn run(
    input: impl Read,
    directory: &Path,
    strip: usize,
    progress: &Progress,
) -> Result<UnpackReport, ArchiveError> {
    let begun = Instant::now();
    let target = Target::open(directory)?;
    if target.scan()?.next().is_some() {
        return Err(ArchiveError::NotEmpty(directory.display().to_string()));
    }
    let mut archive = Archive::new(plain(input)?, strip);
    let mut unpack = Unpack { target, progress, report: UnpackReport::default(), directories: Shelf::default() };
    while let Some(member) = archive.next()? {
        unpack.member(&mut archive, member)?;
    }
    archive.drain()?;
    let mut report = unpack.finish()?;
    report.duration = begun.elapsed();
    Ok(report)
}

/// The archive without its compression, which is known by its first bytes.
fn plain<'a>(input: impl Read + 'a) -> Result<Box<dyn Read + 'a>, ArchiveError> {
    let mut input = BufReader::with_capacity(BUFFER, input);
    let mut start = Vec::new();
    input.by_ref().take(6).read_to_end(&mut start).map_err(ArchiveError::Input)?;
    let is = |magic: &[u8]| start.starts_with(magic);
    let compressed = [
        (b"BZh".as_slice(), "bzip2"),
        (b"\xfd7zXZ\0".as_slice(), "xz"),
        (b"\x04\x22\x4d\x18".as_slice(), "lz4"),
        (b"PK\x03\x04".as_slice(), "zip"),
    ];
    if let Some((_, name)) = compressed.into_iter().find(|(magic, _)| is(magic)) {
        return Err(ArchiveError::Compressed(name));
    }
    let (gzip, zstd) = (is(b"\x1f\x8b"), is(b"\x28\xb5\x2f\xfd"));
    let whole = BufReader::with_capacity(BUFFER, io::Cursor::new(start).chain(input));
    Ok(if gzip {
        Box::new(MultiGzDecoder::new(whole))
    } else if zstd {
        Box::new(zstd::stream::read::Decoder::with_buffer(whole).map_err(ArchiveError::Input)?)
    } else {
        Box::new(whole)
    })
}

struct Unpack<'a> {
    target: Target,
    progress: &'a Progress,
    report: UnpackReport,
    /// Directories get their metadata last: what is put into them changes their times, and
    /// their modes may shut us out.
    directories: Shelf<Entry>,
}

impl Unpack<'_> {
    fn member<R: Read>(&mut self, archive: &mut Archive<R>, member: Member) -> Result<(), ArchiveError> {
        self.check()?;
        let Member { entry, data, lost } = member;
        self.report.entries += 1;
        self.progress.entries.add(1);
        for what in lost.into_iter().take(MAX_LOST - self.report.lost.len().min(MAX_LOST)) {
            self.report.lost.push((entry.path.clone(), what));
        }
        self.make_way(&entry)?;
        match entry.kind {
            EntryKind::Directory => {
                self.target.create_directory(&entry.path)?;
                self.directories.push(&entry).map_err(ArchiveError::Deferred)
            }
            EntryKind::File => self.file(archive, &entry, &data),
            EntryKind::HardLink => self.link(&entry),
            EntryKind::Symlink
            | EntryKind::CharDevice
            | EntryKind::BlockDevice
            | EntryKind::Fifo
            | EntryKind::Socket => {
                let unrestored = self.target.create_node(&entry)?;
                self.report.unrestored.extend(unrestored);
                Ok(())
            }
        }
    }

    fn check(&self) -> Result<(), ArchiveError> {
        if self.progress.is_cancelled() { Err(ArchiveError::Interrupted) } else { Ok(()) }
    }

    /// Makes the directories above an entry, and sees that nothing is in its place.
    fn make_way(&mut self, entry: &Entry) -> Result<(), ArchiveError> {
        let path = &entry.path;
        let mut above = Vec::new();
        let mut next = path.parent();
        while let Some(directory) = next.filter(|directory| !directory.is_root()) {
            match self.target.kind_at(&directory) {
                Ok(Some(EntryKind::Directory)) => break,
                Ok(Some(_)) => return Err(ArchiveError::Through { path: path.clone(), link: directory }),
                // Something further above is missing, or is no directory: that will be found next.
                Ok(None) | Err(_) => {}
            }
            next = directory.parent();
            above.push(directory);
        }
        for directory in above.into_iter().rev() {
            self.target.create_directory(&directory)?;
            self.directories.push(&unmentioned(directory)).map_err(ArchiveError::Deferred)?;
        }
        match self.target.kind_at(path)? {
            None => Ok(()),
            Some(EntryKind::Directory) if entry.kind == EntryKind::Directory => Ok(()),
            Some(_) => Err(ArchiveError::Twice { path: path.clone() }),
        }
    }

    fn file<R: Read>(
        &mut self,
        archive: &mut Archive<R>,
        entry: &Entry,
        data: &[std::ops::Range<u64>],
    ) -> Result<(), ArchiveError> {
        let file = self.target.create_file(&entry.path, Staging::Unnamed)?;
        let mut buffer = vec![0; BUFFER];
        for piece in data {
            let mut at = piece.start;
            while at < piece.end {
                self.check()?;
                let want = usize::try_from(piece.end - at).unwrap_or(BUFFER).min(BUFFER);
                let len = archive.read(&mut buffer[..want])?;
                if len == 0 {
                    return Err(ArchiveError::Truncated);
                }
                write(&file, &buffer[..len], at)?;
                at += len as u64;
                self.progress.bytes.add(len as u64);
                self.progress.written.add(len as u64);
            }
        }
        self.report.bytes += entry.size;
        let placed = file.finish(&self.target, entry)?;
        self.report.unrestored.extend(placed.unrestored);
        Ok(())
    }

    fn link(&self, entry: &Entry) -> Result<(), ArchiveError> {
        let missing = |target| ArchiveError::NoTarget { path: entry.path.clone(), target };
        let target = EntryPath::new(entry.target.clone().unwrap_or_default()).unwrap_or_default();
        match self.target.kind_at(&target) {
            Ok(Some(kind)) if kind != EntryKind::Directory => Ok(self.target.create_link(&entry.path, &target)?),
            _ => Err(missing(target)),
        }
    }

    fn finish(mut self) -> Result<UnpackReport, ArchiveError> {
        for directory in self.directories.backwards() {
            let directory = directory.map_err(ArchiveError::Deferred)?;
            self.report.unrestored.extend(self.target.apply_metadata(&directory)?.unrestored);
        }
        self.target.sync()?;
        Ok(self.report)
    }
}

/// Writes data, but not its long runs of zeros: the file is new, so that they are there.
fn write(file: &TargetFile, data: &[u8], offset: u64) -> Result<(), TargetError> {
    let mut at = offset;
    for part in data.chunks(HOLE) {
        if part.iter().any(|&byte| byte != 0) {
            file.write_at(part, at)?;
        }
        at += part.len() as u64;
    }
    Ok(())
}

/// A directory that the archive has something in, but does not describe.
fn unmentioned(path: EntryPath) -> Entry {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Entry {
        path,
        kind: EntryKind::Directory,
        mode: 0o755,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        mtime: Time { seconds: i64::try_from(now.as_secs()).unwrap_or(0), nanos: now.subsec_nanos() },
        ctime: Time::default(),
        inode: 0,
        size: 0,
        target: None,
        device: None,
        xattrs: None,
    }
}
