//! The archive being written, in the pax format: numbers, names and attributes of any length.

use std::io::{self, Write};
use std::ops::Range;

use tar::{Builder, EntryType, Header};
use vsync_protocol::tree::{Entry, EntryKind, EntryPath, Time};

use super::{DumpError, DumpReport, zeros};
use crate::acl;

/// A block of a tar archive.
const BLOCK: u64 = 512;

/// An archive that is being written.
pub(super) struct Tar<W: Write> {
    builder: Builder<W>,
    /// The directory that is archived.
    base: EntryPath,
    /// The file whose content is being written.
    open: Option<Open>,
    pub(super) report: DumpReport,
}

struct Open {
    entry: Entry,
    /// How much of its content was there, holes included.
    content: u64,
    /// How much of it was written.
    stored: u64,
    /// Whether its holes are not written.
    sparse: bool,
}

impl<W: Write> Tar<W> {
    pub(super) fn new(output: W, base: EntryPath) -> Self {
        Self { builder: Builder::new(output), base, open: None, report: DumpReport::default() }
    }

    /// The file whose content is being written.
    pub(super) fn path(&self) -> Option<&EntryPath> {
        self.open.as_ref().map(|open| &open.entry.path)
    }

    /// Writes a piece of the content of the file that is open.
    pub(super) fn data(&mut self, data: &[u8]) -> Result<(), DumpError> {
        let Some(open) = &mut self.open else { return Ok(()) };
        open.content += data.len() as u64;
        open.stored += data.len() as u64;
        self.report.bytes += data.len() as u64;
        self.builder.get_mut().write_all(data).map_err(DumpError::Output)
    }

    /// Goes over a hole of the file that is open.
    pub(super) fn hole(&mut self, len: u64) -> Result<(), DumpError> {
        let Some(open) = &mut self.open else { return Ok(()) };
        open.content += len;
        self.report.bytes += len;
        if open.sparse {
            return Ok(());
        }
        open.stored += len;
        zeros(self.builder.get_mut(), len).map_err(DumpError::Output)
    }

    /// Ends the file that is open: its content is padded to whole blocks.
    pub(super) fn close(&mut self) -> Result<(), DumpError> {
        let Some(Open { entry, content, stored, .. }) = self.open.take() else { return Ok(()) };
        if content != entry.size {
            return Err(DumpError::Length { path: entry.path, len: entry.size, content });
        }
        let padding = stored.next_multiple_of(BLOCK) - stored;
        zeros(self.builder.get_mut(), padding).map_err(DumpError::Output)
    }

    /// Begins an entry; `data` are the parts of a file that are no holes, if holes shall be left
    /// out.
    pub(super) fn entry(&mut self, entry: Entry, data: Option<&[Range<u64>]>) -> Result<(), DumpError> {
        let Some(kind) = entry_type(entry.kind) else {
            self.report.sockets.push(entry.path);
            return Ok(());
        };
        let outside = |target: &[u8]| !EntryPath::new(target).is_ok_and(|target| target.is_within(&self.base));
        if entry.kind == EntryKind::HardLink && entry.target.as_deref().is_none_or(outside) {
            self.report.left_out.push(entry.path);
            return Ok(());
        }
        self.report.entries += 1;
        let map = data.map(|data| sparse_map(data, entry.size));
        self.write_entry(&entry, kind, map.as_deref()).map_err(DumpError::Output)?;
        let sparse = map.is_some();
        self.open = (entry.kind == EntryKind::File).then_some(Open { entry, content: 0, stored: 0, sparse });
        Ok(())
    }

    fn write_entry(&mut self, entry: &Entry, kind: EntryType, map: Option<&[u8]>) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(entry.mode);
        header.set_uid(entry.uid.into());
        header.set_gid(entry.gid.into());
        header.set_mtime(u64::try_from(entry.mtime.seconds).unwrap_or(0));
        if let Some(device) = entry.device {
            header.set_device_major(rustix::fs::major(device))?;
            header.set_device_minor(rustix::fs::minor(device))?;
        }
        let mut extensions = extensions(entry);
        let mut path = entry.path.as_bytes().to_vec();
        match entry.kind {
            // The volume's own directory, as `tar -c .` calls it.
            EntryKind::Directory if path.is_empty() => path.extend_from_slice(b"./"),
            EntryKind::Directory => path.push(b'/'),
            EntryKind::File
            | EntryKind::Symlink
            | EntryKind::HardLink
            | EntryKind::CharDevice
            | EntryKind::BlockDevice
            | EntryKind::Fifo
            | EntryKind::Socket => {}
        }
        match map {
            None => {
                header.set_size(if entry.kind == EntryKind::File { entry.size } else { 0 });
                name(&mut header.as_old_mut().name, "path", &path, &mut extensions);
            }
            Some(map) => {
                header.set_size(map.len() as u64 + stored_len(map));
                sparse_extensions(entry, &path, &mut extensions);
                // What an unpacker calls it that does not know sparse files.
                let mut odd = b"GNUSparseFile.0/".to_vec();
                odd.extend_from_slice(entry.path.name());
                odd.truncate(header.as_old().name.len());
                header.as_old_mut().name[..odd.len()].copy_from_slice(&odd);
            }
        }
        if let Some(target) = &entry.target {
            name(&mut header.as_old_mut().linkname, "linkpath", target, &mut extensions);
        }
        header.set_cksum();
        if !extensions.is_empty() {
            let extensions = extensions.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
            self.builder.append_pax_extensions(extensions)?;
        }
        self.builder.get_mut().write_all(header.as_bytes())?;
        self.builder.get_mut().write_all(map.unwrap_or_default())
    }

    pub(super) fn finish(mut self) -> Result<DumpReport, DumpError> {
        self.close()?;
        let mut output = self.builder.into_inner().map_err(DumpError::Output)?;
        output.flush().map_err(DumpError::Output)?;
        Ok(self.report)
    }
}

/// Where a file's data is, as GNU's sparse format 1.0 has it: decimal lines, padded to a block.
fn sparse_map(data: &[Range<u64>], size: u64) -> Vec<u8> {
    // A hole at the end is shown by an empty piece there.
    let end = data.last().is_none_or(|last| last.end < size).then_some(size..size);
    let pieces: Vec<_> = data.iter().cloned().chain(end).collect();
    let mut text = format!("{}\n", pieces.len());
    pieces.iter().for_each(|piece| text += &format!("{}\n{}\n", piece.start, piece.end - piece.start));
    let mut map = text.into_bytes();
    map.resize(map.len().next_multiple_of(512), 0);
    map
}

/// Bytes that follow a map of [`sparse_map`].
fn stored_len(map: &[u8]) -> u64 {
    let numbers = map.split(|&byte| byte == b'\n').map(|line| std::str::from_utf8(line).unwrap_or_default());
    numbers.skip(2).step_by(2).filter_map(|len| len.parse::<u64>().ok()).sum()
}

fn sparse_extensions(entry: &Entry, path: &[u8], extensions: &mut Vec<(String, Vec<u8>)>) {
    for (key, value) in [
        ("GNU.sparse.major", b"1".to_vec()),
        ("GNU.sparse.minor", b"0".to_vec()),
        ("GNU.sparse.name", path.to_vec()),
        ("GNU.sparse.realsize", entry.size.to_string().into_bytes()),
    ] {
        extensions.push((key.to_owned(), value));
    }
}

/// Writes `value` into a field of a header; what does not fit is an extension.
fn name(field: &mut [u8; 100], key: &str, value: &[u8], extensions: &mut Vec<(String, Vec<u8>)>) {
    let fits = value.len().min(field.len());
    field[..fits].copy_from_slice(&value[..fits]);
    if fits < value.len() {
        extensions.push((key.to_owned(), value.to_vec()));
    }
}

/// What the header has no room for.
fn extensions(entry: &Entry) -> Vec<(String, Vec<u8>)> {
    let mut extensions = vec![("mtime".to_owned(), seconds(entry.mtime).into_bytes())];
    for xattr in entry.xattrs.iter().flatten() {
        // In text, as every unpacker takes them.
        let list = match xattr.name.as_slice() {
            acl::ACCESS => acl::to_text(&xattr.value).map(|text| ("SCHILY.acl.access", text)),
            acl::DEFAULT => acl::to_text(&xattr.value).map(|text| ("SCHILY.acl.default", text)),
            _ => None,
        };
        if let Some((key, text)) = list {
            extensions.push((key.to_owned(), text.into_bytes()));
            continue;
        }
        // The keys of pax are text; the kernel's names of attributes are, too.
        if let Ok(name) = std::str::from_utf8(&xattr.name) {
            extensions.push((format!("SCHILY.xattr.{name}"), xattr.value.clone()));
        }
    }
    extensions
}

/// A time as pax has it: decimal, with as many digits as needed.
fn seconds(time: Time) -> String {
    let nanos = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
    let (sign, nanos) = (if nanos < 0 { "-" } else { "" }, nanos.unsigned_abs());
    let text = format!("{sign}{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

const fn entry_type(kind: EntryKind) -> Option<EntryType> {
    Some(match kind {
        EntryKind::File => EntryType::Regular,
        EntryKind::Directory => EntryType::Directory,
        EntryKind::Symlink => EntryType::Symlink,
        EntryKind::HardLink => EntryType::Link,
        EntryKind::CharDevice => EntryType::Char,
        EntryKind::BlockDevice => EntryType::Block,
        EntryKind::Fifo => EntryType::Fifo,
        EntryKind::Socket => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_the_digits_they_need() {
        for (whole, nanos, text) in [(5, 0, "5"), (-1, 1, "-0.999999999"), (0, 120_000_000, "0.12"), (-5, 0, "-5")] {
            assert_eq!(seconds(Time { seconds: whole, nanos }), text);
        }
    }

    #[test]
    fn names_and_numbers_of_any_size_survive() {
        let entry = Entry {
            path: EntryPath::new("d/".repeat(60) + &"x".repeat(200)).unwrap(),
            kind: EntryKind::File,
            mode: 0o6755,
            uid: 4_000_000_000,
            gid: 7,
            mtime: Time { seconds: 1, nanos: 5 },
            ctime: Time::default(),
            inode: 1,
            size: 5,
            target: None,
            device: None,
            xattrs: Some(vec![vsync_protocol::tree::Xattr { name: b"user.a".to_vec(), value: vec![0, 255] }]),
        };
        let mut tar = Tar::new(Vec::new(), EntryPath::root());
        tar.entry(entry.clone(), None).unwrap();
        assert!(matches!(tar.close(), Err(DumpError::Length { content: 0, .. })));
        let mut tar = Tar::new(Vec::new(), EntryPath::root());
        tar.entry(entry.clone(), None).unwrap();
        tar.data(b"hello").unwrap();
        tar.close().unwrap();
        let bytes = tar.builder.into_inner().unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut found = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(found.path_bytes().as_ref(), entry.path.as_bytes());
        assert_eq!((found.header().uid().unwrap(), found.size()), (4_000_000_000, 5));
        let extensions: Vec<_> = found
            .pax_extensions()
            .unwrap()
            .unwrap()
            .map(|extension| extension.map(|it| (it.key_bytes().to_vec(), it.value_bytes().to_vec())).unwrap())
            .collect();
        assert!(extensions.contains(&(b"SCHILY.xattr.user.a".to_vec(), vec![0, 255])), "{extensions:?}");
        assert!(extensions.contains(&(b"mtime".to_vec(), b"1.000000005".to_vec())));
    }

    #[test]
    fn a_map_of_holes_is_as_gnu_has_it() {
        for (pieces, size, text) in [
            (&[(0, 3), (10, 20)][..], 20, "2\n0\n3\n10\n10\n"),
            (&[(5, 6)], 9, "2\n5\n1\n9\n0\n"),
            (&[], 7, "1\n7\n0\n"),
        ] {
            let data: Vec<Range<u64>> = pieces.iter().map(|&(start, end)| start..end).collect();
            let map = sparse_map(&data, size);
            assert_eq!(map.len(), 512);
            assert_eq!(String::from_utf8_lossy(&map).trim_end_matches('\0'), text);
            assert_eq!(stored_len(&map), data.iter().map(|piece| piece.end - piece.start).sum::<u64>());
        }
    }
}
