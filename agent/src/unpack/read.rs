//! Reads a tar archive from a stream, one member after the other, in bounded memory.
//!
//! Formats: V7, ustar, pax, GNU (long names, sparse files of all its formats). Headers are taken
//! apart by the `tar` crate; what stands between them is read here, because that crate neither
//! knows pax sparse files nor attributes with line breaks in them.

use std::io::{self, Read};
use std::ops::Range;

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};
use vsync_protocol::tree::{Entry, EntryKind, Time};

use super::ArchiveError;
use super::pax::Pax;
use super::place::{self, MemberPath};

const BLOCK: usize = 512;

/// Longest extended header, GNU name or map; larger ones are no archive of files.
const MAX_EXTENSION: u64 = 16 << 20;

/// Most pieces of data in a sparse file.
const MAX_PIECES: usize = 1 << 20;

/// One member of an archive; its content is still to be read.
#[derive(Debug)]
pub(super) struct Member {
    /// What it will be. The target of a hard link is a path in the archive.
    pub(super) entry: Entry,
    /// Where its data goes; the rest of the file is holes. One piece for most files.
    pub(super) data: Vec<Range<u64>>,
    /// What could not be taken over, in words.
    pub(super) lost: Vec<String>,
}

/// An archive that is being read.
pub(super) struct Archive<R> {
    input: R,
    /// Bytes of the current member that are still to come, without padding.
    left: u64,
    padding: u64,
    global: Pax,
    strip: usize,
}

impl<R: Read> Archive<R> {
    /// Reads `input`, leaving out the first `strip` components of every path.
    pub(super) fn new(input: R, strip: usize) -> Self {
        Self { input, left: 0, padding: 0, global: Pax::default(), strip }
    }

    /// The next member; `None` after the mark that ends an archive.
    pub(super) fn next(&mut self) -> Result<Option<Member>, ArchiveError> {
        let mut pax = self.global.clone();
        let (mut long_name, mut long_link) = (None, None);
        loop {
            self.skip()?;
            let Some(header) = self.header()? else { return Ok(None) };
            // The label of a tape may leave the field empty.
            let size = match header.entry_size() {
                Err(_) if header.entry_type().as_byte() == b'V' => 0,
                size => size.map_err(|_| ArchiveError::Header)?,
            };
            self.announce(size)?;
            match header.entry_type().as_byte() {
                b'x' | b'X' => pax.read(&self.whole()?)?,
                b'g' => {
                    let text = self.whole()?;
                    self.global.read(&text)?;
                    pax.read(&text)?;
                }
                b'L' => long_name = Some(self.text()?),
                b'K' => long_link = Some(self.text()?),
                // The label of a tape.
                b'V' => {}
                _ => {
                    pax.path = pax.path.or_else(|| long_name.take());
                    pax.link = pax.link.or_else(|| long_link.take());
                    match self.member(&header, std::mem::take(&mut pax))? {
                        Some(member) => return Ok(Some(member)),
                        // Nothing is left of its path.
                        None => pax = self.global.clone(),
                    }
                }
            }
        }
    }

    /// Reads content of the current member; 0 at its end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        let len = self.input.read(&mut buffer[..want]).map_err(ArchiveError::Input)?;
        if len == 0 {
            return Err(ArchiveError::Truncated);
        }
        self.left -= len as u64;
        Ok(len)
    }

    /// Reads what follows the end mark: padding, checksums, and what a pipe still wants to get rid of.
    pub(super) fn drain(mut self) -> Result<(), ArchiveError> {
        io::copy(&mut self.input, &mut io::sink()).map_err(ArchiveError::Input)?;
        Ok(())
    }

    /// A header; `None` for the block of zeros that ends an archive.
    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        let mut block = [0; BLOCK];
        self.exactly(&mut block)?;
        if block.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        // The sum counts its own field as blanks.
        let sum =
            block.iter().enumerate().map(|(at, &byte)| u32::from(if (148..156).contains(&at) { b' ' } else { byte }));
        if header.cksum().ok() != Some(sum.sum()) {
            return Err(ArchiveError::Header);
        }
        Ok(Some(header))
    }

    fn member(&mut self, header: &Header, pax: Pax) -> Result<Option<Member>, ArchiveError> {
        let named = pax.sparse.name.clone().or_else(|| pax.path.clone());
        let path = named.unwrap_or_else(|| header.path_bytes().into_owned());
        let kind = kind(header.entry_type(), &path)?;
        if let Some(size) = pax.size {
            self.announce(size)?;
        }
        let data = match kind {
            EntryKind::File => self.data(header, &pax)?,
            _ => vec![],
        };
        let Some(path) = place::of_member(&path, self.strip)? else { return Ok(None) };
        let size = match kind {
            EntryKind::File => {
                let gnu = header.as_gnu().filter(|_| header.entry_type().is_gnu_sparse());
                let real = gnu.map(|gnu| gnu.real_size().map_err(|_| ArchiveError::Header)).transpose()?;
                real.or(pax.sparse.size).unwrap_or_else(|| data.last().map_or(0, |last| last.end))
            }
            _ => 0,
        };
        if data.last().is_some_and(|last| last.end > size) {
            return Err(ArchiveError::Map);
        }
        let link = || pax.link.clone().or_else(|| header.link_name_bytes().map(|link| link.into_owned()));
        let target = match kind {
            EntryKind::Symlink => Some(link().ok_or(ArchiveError::Header)?),
            EntryKind::HardLink => {
                let link = link().ok_or(ArchiveError::Header)?;
                match place::of_member(&link, self.strip)? {
                    Some(MemberPath(path)) => Some(path.as_bytes().to_vec()),
                    None => return Err(ArchiveError::LinkOutside { path: path.0 }),
                }
            }
            _ => None,
        };
        let entry = Entry {
            path: path.0,
            kind,
            mode: header.mode().map_err(|_| ArchiveError::Header)? & 0o7777,
            uid: owner(pax.uid, header.uid())?,
            gid: owner(pax.gid, header.gid())?,
            mtime: mtime(&pax, header)?,
            ctime: Time::default(),
            inode: 0,
            size,
            target,
            device: device(kind, header)?,
            xattrs: sorted(pax.xattrs),
        };
        Ok(Some(Member { entry, data, lost: pax.lost }))
    }

    /// Where the content goes that follows.
    fn data(&mut self, header: &Header, pax: &Pax) -> Result<Vec<Range<u64>>, ArchiveError> {
        let numbers = if header.entry_type().is_gnu_sparse() {
            self.gnu_map(header)?
        } else if pax.sparse.is_inline() {
            self.inline_map()?
        } else if pax.sparse.map.is_empty() {
            vec![0, self.left]
        } else {
            pax.sparse.map.clone()
        };
        pieces(&numbers, self.left)
    }

    /// The map of GNU's own format: four pieces in the header, more in blocks that follow it.
    fn gnu_map(&mut self, header: &Header) -> Result<Vec<u64>, ArchiveError> {
        let gnu = header.as_gnu().ok_or(ArchiveError::Header)?;
        let mut map = Vec::new();
        add(&mut map, &gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = GnuExtSparseHeader::new();
            self.exactly(block.as_mut_bytes())?;
            add(&mut map, block.sparse())?;
            more = block.is_extended();
        }
        Ok(map)
    }

    /// The map of pax format 1.0: lines in front of the content, which count as content.
    fn inline_map(&mut self) -> Result<Vec<u64>, ArchiveError> {
        let mut map = Vec::new();
        let mut wanted = None;
        let mut digits = Vec::new();
        let mut block = [0; BLOCK];
        while wanted.is_none_or(|wanted: usize| map.len() < wanted) {
            let mut filled = 0;
            while filled < BLOCK {
                match self.read(&mut block[filled..])? {
                    0 => return Err(ArchiveError::Map),
                    len => filled += len,
                }
            }
            for &byte in &block {
                if wanted.is_some_and(|wanted| map.len() == wanted) {
                    break;
                }
                if byte != b'\n' {
                    digits.push(byte);
                    if digits.len() > 20 {
                        return Err(ArchiveError::Map);
                    }
                    continue;
                }
                let number = std::str::from_utf8(&digits).ok().and_then(|text| text.parse::<u64>().ok());
                let number = number.ok_or(ArchiveError::Map)?;
                digits.clear();
                match wanted {
                    None => {
                        let pieces = usize::try_from(number).ok().filter(|&pieces| pieces <= MAX_PIECES);
                        wanted = Some(2 * pieces.ok_or(ArchiveError::Map)?);
                    }
                    Some(_) => map.push(number),
                }
            }
        }
        Ok(map)
    }

    fn announce(&mut self, size: u64) -> Result<(), ArchiveError> {
        let padded = size.checked_next_multiple_of(BLOCK as u64).ok_or(ArchiveError::Header)?;
        (self.left, self.padding) = (size, padded - size);
        Ok(())
    }

    /// Goes to the end of the current member.
    fn skip(&mut self) -> Result<(), ArchiveError> {
        let rest = self.left.checked_add(self.padding).ok_or(ArchiveError::Header)?;
        let skipped = io::copy(&mut self.input.by_ref().take(rest), &mut io::sink()).map_err(ArchiveError::Input)?;
        (self.left, self.padding) = (0, 0);
        if skipped == rest { Ok(()) } else { Err(ArchiveError::Truncated) }
    }

    /// All of the content, for members that describe others.
    fn whole(&mut self) -> Result<Vec<u8>, ArchiveError> {
        if self.left > MAX_EXTENSION {
            return Err(ArchiveError::Extension);
        }
        let mut content = Vec::new();
        let wanted = self.left;
        let read = self.input.by_ref().take(wanted).read_to_end(&mut content).map_err(ArchiveError::Input)?;
        self.left -= read as u64;
        if self.left == 0 { Ok(content) } else { Err(ArchiveError::Truncated) }
    }

    /// A GNU name: up to its closing NUL.
    fn text(&mut self) -> Result<Vec<u8>, ArchiveError> {
        let mut text = self.whole()?;
        text.truncate(text.iter().position(|&byte| byte == 0).unwrap_or(text.len()));
        Ok(text)
    }

    fn exactly(&mut self, buffer: &mut [u8]) -> Result<(), ArchiveError> {
        self.input.read_exact(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => ArchiveError::Truncated,
            _ => ArchiveError::Input(error),
        })
    }
}

fn add(map: &mut Vec<u64>, pieces: &[GnuSparseHeader]) -> Result<(), ArchiveError> {
    for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
        map.push(piece.offset().map_err(|_| ArchiveError::Map)?);
        map.push(piece.length().map_err(|_| ArchiveError::Map)?);
    }
    if map.len() > 2 * MAX_PIECES { Err(ArchiveError::Map) } else { Ok(()) }
}

/// Pieces in order, without overlap, of together as many bytes as there are.
fn pieces(numbers: &[u64], stored: u64) -> Result<Vec<Range<u64>>, ArchiveError> {
    let (pairs, odd) = numbers.as_chunks::<2>();
    let (mut pieces, mut last, mut sum) = (Vec::new(), 0, 0_u64);
    for &[offset, len] in pairs {
        let end = offset.checked_add(len).ok_or(ArchiveError::Map)?;
        sum = sum.checked_add(len).ok_or(ArchiveError::Map)?;
        if offset < last {
            return Err(ArchiveError::Map);
        }
        last = end;
        pieces.push(offset..end);
    }
    if sum == stored && odd.is_empty() { Ok(pieces) } else { Err(ArchiveError::Map) }
}

fn kind(kind: EntryType, path: &[u8]) -> Result<EntryKind, ArchiveError> {
    Ok(match kind.as_byte() {
        // Before there was a type for directories, their names ended so.
        0 | b'0' if path.ends_with(b"/") => EntryKind::Directory,
        0 | b'0' | b'7' | b'S' => EntryKind::File,
        b'1' => EntryKind::HardLink,
        b'2' => EntryKind::Symlink,
        b'3' => EntryKind::CharDevice,
        b'4' => EntryKind::BlockDevice,
        b'5' | b'D' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        other => {
            return Err(ArchiveError::Kind { kind: char::from(other), path: String::from_utf8_lossy(path).into() });
        }
    })
}

fn owner(pax: Option<u64>, header: io::Result<u64>) -> Result<u32, ArchiveError> {
    let number = pax.map_or(header, Ok).map_err(|_| ArchiveError::Header)?;
    u32::try_from(number).map_err(|_| ArchiveError::Header)
}

fn mtime(pax: &Pax, header: &Header) -> Result<Time, ArchiveError> {
    let whole = || {
        let seconds = header.mtime().map_err(|_| ArchiveError::Header)?;
        Ok(Time { seconds: i64::try_from(seconds).map_err(|_| ArchiveError::Header)?, nanos: 0 })
    };
    pax.mtime.map_or_else(whole, Ok)
}

fn device(kind: EntryKind, header: &Header) -> Result<Option<u64>, ArchiveError> {
    if !matches!(kind, EntryKind::CharDevice | EntryKind::BlockDevice) {
        return Ok(None);
    }
    let number = |number: io::Result<Option<u32>>| number.ok().flatten().ok_or(ArchiveError::Header);
    Ok(Some(rustix::fs::makedev(number(header.device_major())?, number(header.device_minor())?)))
}

fn sorted(mut xattrs: Vec<vsync_protocol::tree::Xattr>) -> Option<Vec<vsync_protocol::tree::Xattr>> {
    xattrs.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    (!xattrs.is_empty()).then_some(xattrs)
}
