//! Reading one regular file, without disturbing those who use it.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fd::OwnedFd;
use rustix::fs::{Advice, SeekFrom, fadvise, seek};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use vsync_protocol::tree::Time;

use super::sys::Stat;

/// What of a file is found cached or not as a whole, and asked for at once if it is not.
const PIECE: usize = 128 << 10;

/// An open regular file of a volume.
#[derive(Debug)]
pub struct SourceFile {
    file: File,
    version: Version,
}

/// What differs, as far as the system tells, between two versions of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    size: u64,
    mtime: Time,
    ctime: Time,
}

impl Version {
    const fn of(stat: &Stat) -> Self {
        Self { size: stat.size, mtime: stat.mtime, ctime: stat.ctime }
    }
}

impl SourceFile {
    pub(super) fn new(fd: OwnedFd, stat: &Stat) -> Self {
        Self { file: fd.into(), version: Version::of(stat) }
    }

    /// Bytes in the file when it was opened.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.version.size
    }

    /// Where the file has data, in order, up to its size at opening; the rest is holes.
    /// All of it when the file system does not tell.
    #[must_use]
    pub const fn data_ranges(&self) -> DataRanges<'_> {
        DataRanges::of(&self.file, 0..self.size())
    }

    /// Reads at `offset` until `buf` is full or the file ends; returns how much it read.
    ///
    /// # Errors
    /// When the system fails to read.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        read_full(&self.file, buf, offset)
    }

    /// Whether the file was written to since it was opened, or its attributes were set.
    /// A write through a memory mapping shows only once the kernel has noted it.
    #[must_use]
    pub fn changed(&self) -> bool {
        Stat::of(&self.file).map_or(true, |stat| Version::of(&stat) != self.version)
    }

    /// Says that nothing of the file will be read but what is asked for, and once. Call it
    /// before [`read_sparing`](Self::read_sparing) of more than a little.
    pub fn advise(&self) {
        // All advice is a hint: a file system that does not take it is read all the same.
        // Without read-ahead of the kernel's own, what is cached is what others cached.
        let _ = fadvise(&self.file, 0, None, Advice::Random);
        let _ = fadvise(&self.file, 0, None, Advice::NoReuse);
    }

    /// Reads as [`read_at`](Self::read_at) does, and leaves the page cache as it was.
    ///
    /// The cache is the database's, not ours. What it holds is to stay there, what it does not
    /// hold is to be dropped after our reading. Which is which, a first read tells that takes
    /// what is cached and fails where it would have to wait for the disk; by failing it asks
    /// the disk for what is missing, so that the second read finds it on its way. A piece that is
    /// cached in part is left alone; so is, now and then, one that the disk brings before the first
    /// read has ended, and that stays as after a plain read.
    ///
    /// # Errors
    /// When the system fails to read.
    pub fn read_sparing(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut pieces = Vec::with_capacity(buf.len() / PIECE + 1);
        for (piece, at) in buf.chunks_mut(PIECE).zip((offset..).step_by(PIECE)) {
            let wanted = piece.len();
            let taken = preadv2(&self.file, &mut [IoSliceMut::new(piece)], at, ReadWriteFlags::NOWAIT);
            pieces.push(match taken {
                Ok(len) if len == wanted => Piece::Cached,
                Err(Errno::AGAIN) => Piece::Cold,
                // Cached in part, at the end of the file, or not to be known here.
                _ => Piece::Unknown,
            });
        }
        let mut filled = 0;
        for ((piece, at), found) in buf.chunks_mut(PIECE).zip((offset..).step_by(PIECE)).zip(pieces) {
            let len = if found == Piece::Cached { piece.len() } else { read_full(&self.file, piece, at)? };
            if let (Piece::Cold, Some(len)) = (found, NonZeroU64::new(len as u64)) {
                let _ = fadvise(&self.file, at, Some(len), Advice::DontNeed);
            }
            filled += len;
            if len < piece.len() {
                break;
            }
        }
        Ok(filled)
    }
}

/// What a first look found of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    /// It is in the page cache, and was read from there.
    Cached,
    /// Its beginning is not.
    Cold,
    /// It is still to be read, and nothing is known of it.
    Unknown,
}

/// Ranges of a file that hold data, as an iterator. See [`SourceFile::data_ranges`].
#[derive(Debug)]
pub struct DataRanges<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl<'a> DataRanges<'a> {
    pub(super) const fn of(file: &'a File, range: Range<u64>) -> Self {
        Self { file, at: range.start, end: range.end }
    }

    fn next_range(&self) -> Result<Option<Range<u64>>, Errno> {
        let size = self.end;
        let start = match seek(self.file, SeekFrom::Data(self.at)) {
            Ok(start) if start < size => start,
            Ok(_) | Err(Errno::NXIO) => return Ok(None),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(self.at..size)),
            Err(error) => return Err(error),
        };
        // The file may be changing: whatever is found, each range ends after it begins.
        let end = seek(self.file, SeekFrom::Hole(start)).ok().filter(|&end| end > start);
        Ok(Some(start..end.map_or(size, |end| end.min(size))))
    }
}

impl Iterator for DataRanges<'_> {
    type Item = io::Result<Range<u64>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.end {
            return None;
        }
        let found = self.next_range().transpose();
        self.at = match &found {
            Some(Ok(range)) => range.end,
            _ => self.end,
        };
        found.map(|range| range.map_err(io::Error::from))
    }
}

/// Reads at `offset` until `buf` is full or the file ends.
pub(super) fn read_full(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match file.read_at(&mut buf[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
