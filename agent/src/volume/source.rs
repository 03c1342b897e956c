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

/// Files up to this size are read at once by the kernel's default read-ahead.
const SMALL: u64 = 128 << 10;

/// Most places at which a file is probed for cached pages.
const PROBES: u64 = 16;

/// An open regular file of a volume.
#[derive(Debug)]
pub struct SourceFile {
    file: File,
    version: Version,
    /// Nothing of it seemed to be in the page cache before we read it.
    cold: bool,
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
        Self { file: fd.into(), version: Version::of(stat), cold: false }
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

    /// Says that the file will be read once, from start to end. Call it before the first
    /// read if [`forget`](Self::forget) is to have an effect.
    ///
    /// The page cache is the database's, not ours. What it holds is to stay and not to look
    /// more recently used than it is (`NOREUSE`); what it does not hold is to be dropped after
    /// our reading. Which pages those are cannot be known exactly without unsafe code, and
    /// our own read-ahead blurs it. So the file is probed at a few places, by reads that
    /// fail rather than wait for the disk: if none of them is cached, the file is cold and may
    /// be forgotten; if one is, or the file system does not tell, all of it is left alone.
    pub fn advise_sequential(&mut self) {
        if self.size() == 0 {
            return;
        }
        if self.size() <= SMALL {
            self.cold = self.is_cold();
            return;
        }
        // Without this each probe would fetch what the next one then finds. All advice is
        // a hint: a file system that does not take it is read all the same.
        let _ = fadvise(&self.file, 0, None, Advice::Random);
        self.cold = self.is_cold();
        let _ = fadvise(&self.file, 0, None, Advice::Sequential);
        let _ = fadvise(&self.file, 0, None, Advice::NoReuse);
    }

    /// Drops a range that was read from the page cache, if the file was cold before.
    pub fn forget(&self, range: Range<u64>) {
        let len = range.end.checked_sub(range.start).and_then(NonZeroU64::new);
        if self.cold && len.is_some() {
            let _ = fadvise(&self.file, range.start, len, Advice::DontNeed);
        }
    }

    fn is_cold(&self) -> bool {
        let probes = (self.size() / SMALL).clamp(1, PROBES);
        (0..probes).all(|index| {
            let offset = self.size() / probes * index;
            let outcome = preadv2(&self.file, &mut [IoSliceMut::new(&mut [0])], offset, ReadWriteFlags::NOWAIT);
            outcome == Err(Errno::AGAIN)
        })
    }
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
