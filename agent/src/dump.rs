//! Content of a snapshot as a stream: a file's bytes, or a directory as a tar archive.
//!
//! Every chunk is checked before any of it is written, and what is damaged ends the stream.

use std::io::{self, Write};
use std::sync::Arc;

use tar::{Builder, EntryType, Header};
use thiserror::Error;
use vsync_protocol::id::Cid;
use vsync_protocol::tree::{Entry, EntryKind, EntryPath, Time};

use crate::content::{Content, Lost, Part};
use crate::progress::Progress;
use crate::remote::{NodeError, Remote, RemoteError, RemoteNodes};
use crate::restore::{self, RestoreError};
use crate::snapshot::Snapshot;
use crate::tree::{Item, Piece, Reference, TreeError, TreeReader};
use crate::vault::{OpenError, Vault};

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A block of a tar archive.
const BLOCK: u64 = 512;

/// Why a dump ended early.
#[derive(Debug, Error)]
pub enum DumpError {
    /// The tree cannot be opened.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The tree cannot be read on.
    #[error("the description of {path} cannot be read on")]
    Tree {
        /// Where.
        path: EntryPath,
        /// Why.
        source: Box<TreeError<NodeError>>,
    },
    /// Network or server.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// Decompression cannot be set up.
    #[error("cannot set up opening")]
    Opener(#[source] OpenError),
    /// A chunk cannot be had.
    #[error("blob {cid}, needed by {path}, is {lost}")]
    Blob {
        /// The chunk.
        cid: Cid,
        /// The file.
        path: EntryPath,
        /// Why.
        lost: Lost,
    },
    /// The pieces of a file are not as long as the file.
    #[error("{path} has {len} bytes, but its content has {content}")]
    Length {
        /// The file.
        path: EntryPath,
        /// What its entry says.
        len: u64,
        /// What its pieces add up to.
        content: u64,
    },
    /// There is no such entry.
    #[error("the snapshot has no {0}")]
    NotFound(EntryPath),
    /// The entry has no content.
    #[error("{path} is a {kind}: it has no content")]
    NoContent {
        /// The entry.
        path: EntryPath,
        /// What it is.
        kind: &'static str,
    },
    /// The output cannot be written.
    #[error("cannot write the output")]
    Output(#[source] io::Error),
    /// Somebody asked to stop.
    #[error("interrupted")]
    Interrupted,
}

/// What was dumped.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Entries written.
    pub entries: u64,
    /// Bytes of content written.
    pub bytes: u64,
    /// Sockets, for which tar has no form.
    pub sockets: Vec<EntryPath>,
    /// Further names of files that are not in the archive.
    pub left_out: Vec<EntryPath>,
}

/// Dumps what is at `path`: the one file of a stream if it is the root of one.
///
/// # Errors
/// When anything cannot be had exactly. What was written until then is right, but not all.
pub fn run(
    remote: &Remote,
    vault: &Arc<Vault>,
    snapshot: &Snapshot,
    path: &EntryPath,
    output: impl Write,
    progress: &Progress,
) -> Result<Report, DumpError> {
    let (root, tree) = restore::open_tree(remote, vault, snapshot, path)?;
    let mut dump = Dump { remote, progress, tree, content: content(remote, vault)? };
    let stream = root.volume.kind == "stream" && path.is_root();
    if path.is_root() && !stream {
        return dump.archive(path, None, output);
    }
    let first = match dump.tree.next_entry(None).map_err(|source| unreadable(path, source))? {
        Some(entry) if stream || entry.path == *path => entry,
        _ => return Err(DumpError::NotFound(path.clone())),
    };
    match first.kind {
        EntryKind::Directory => dump.archive(path, Some(*first), output),
        EntryKind::File => dump.file(&first, stream, output),
        EntryKind::HardLink => {
            let target = first.target.as_deref().and_then(|target| EntryPath::new(target).ok());
            match target.filter(|target| *target < *path) {
                Some(target) => run(remote, vault, snapshot, &target, output, progress),
                None => Err(DumpError::NotFound(path.clone())),
            }
        }
        kind => Err(DumpError::NoContent { path: path.clone(), kind: kind_name(kind) }),
    }
}

fn unreadable(path: &EntryPath, source: TreeError<NodeError>) -> DumpError {
    match source {
        TreeError::Node { source: NodeError::Remote(error), .. } => error.into(),
        source => DumpError::Tree { path: path.clone(), source: Box::new(source) },
    }
}

fn content<T>(remote: &Remote, vault: &Arc<Vault>) -> Result<Content<T>, DumpError> {
    Content::new(remote.fetcher(), vault).map_err(DumpError::Opener)
}

/// What an entry is called.
#[must_use]
pub const fn kind_name(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::File => "file",
        EntryKind::Directory => "directory",
        EntryKind::Symlink => "symbolic link",
        EntryKind::HardLink => "hard link",
        EntryKind::CharDevice => "character device",
        EntryKind::BlockDevice => "block device",
        EntryKind::Fifo => "named pipe",
        EntryKind::Socket => "socket",
    }
}

struct Dump<'a> {
    remote: &'a Remote,
    progress: &'a Progress,
    tree: TreeReader<RemoteNodes>,
    content: Content<Mark>,
}

/// What stands in the queue, in the order in which it is written.
enum Mark {
    /// A new entry.
    Entry(Box<Entry>),
    /// A piece of the last entry's content.
    Hole(u64),
    Chunk,
}

impl Dump<'_> {
    fn file(&mut self, entry: &Entry, stream: bool, mut output: impl Write) -> Result<Report, DumpError> {
        let mut bytes = 0;
        let mut more = true;
        loop {
            while more && !self.content.is_full() {
                more = match self.tree.next_item().map_err(|source| unreadable(&entry.path, source))? {
                    Some(Item::Piece(piece)) => self.push(piece),
                    Some(Item::Entry(_)) | None => false,
                };
            }
            let Some((mark, chunk, part)) = self.content.pop()? else { break };
            bytes += self.write(&entry.path, &mark, chunk, part, &mut output)?;
        }
        if bytes != entry.size && !stream {
            return Err(DumpError::Length { path: entry.path.clone(), len: entry.size, content: bytes });
        }
        output.flush().map_err(DumpError::Output)?;
        self.progress.entries.add(1);
        Ok(Report { entries: 1, bytes, ..Report::default() })
    }

    fn push(&mut self, piece: Piece) -> bool {
        match piece {
            Piece::Chunk(reference) => self.content.push(Mark::Chunk, Some(reference)),
            Piece::Hole(len) => self.content.push(Mark::Hole(len), None),
        }
        true
    }

    /// Writes a piece of content; its length.
    fn write(
        &self,
        path: &EntryPath,
        mark: &Mark,
        chunk: Option<Reference>,
        part: Part,
        output: &mut impl Write,
    ) -> Result<u64, DumpError> {
        if self.progress.is_cancelled() {
            return Err(DumpError::Interrupted);
        }
        let len = match (mark, part, chunk) {
            (Mark::Hole(len), ..) => {
                zeros(output, *len).map_err(DumpError::Output)?;
                *len
            }
            (_, Part::Plain(plain), _) => {
                output.write_all(&plain).map_err(DumpError::Output)?;
                plain.len() as u64
            }
            (_, Part::Lost(lost), Some(chunk)) => {
                if matches!(lost, Lost::Damaged(_)) {
                    self.remote.report_damage(chunk.cid)?;
                }
                return Err(DumpError::Blob { cid: chunk.cid, path: path.clone(), lost });
            }
            (_, Part::Mark | Part::Lost(_), _) => 0,
        };
        self.progress.bytes.add(len);
        Ok(len)
    }

    fn archive(&mut self, base: &EntryPath, first: Option<Entry>, output: impl Write) -> Result<Report, DumpError> {
        let mut tar = Tar::new(output, base.clone());
        if let Some(first) = first {
            self.content.push(Mark::Entry(Box::new(first)), None);
        }
        let mut last = base.clone();
        let mut more = true;
        loop {
            while more && !self.content.is_full() {
                more = match self.tree.next_item().map_err(|source| unreadable(&last, source))? {
                    Some(Item::Piece(piece)) => self.push(piece),
                    Some(Item::Entry(entry)) if entry.path.is_within(base) => {
                        last.clone_from(&entry.path);
                        self.content.push(Mark::Entry(entry), None);
                        true
                    }
                    Some(Item::Entry(_)) | None => false,
                };
            }
            let Some((mark, chunk, part)) = self.content.pop()? else { break };
            match mark {
                Mark::Entry(entry) => {
                    tar.close()?;
                    self.progress.entries.add(1);
                    tar.entry(*entry)?;
                }
                mark => {
                    let Some((entry, content)) = &mut tar.open else { continue };
                    let (path, output) = (entry.path.clone(), tar.builder.get_mut());
                    let written = self.write(&path, &mark, chunk, part, output)?;
                    *content += written;
                    tar.report.bytes += written;
                }
            }
        }
        tar.finish()
    }
}

fn zeros(output: &mut impl Write, mut len: u64) -> io::Result<()> {
    while len > 0 {
        let part = len.min(ZEROS.len() as u64);
        output.write_all(&ZEROS[..part as usize])?;
        len -= part;
    }
    Ok(())
}

/// An archive in the pax format: numbers, names and attributes of any length.
struct Tar<W: Write> {
    builder: Builder<W>,
    /// The directory that is archived.
    base: EntryPath,
    /// The file whose content is being written, and how much of it was.
    open: Option<(Entry, u64)>,
    report: Report,
}

impl<W: Write> Tar<W> {
    fn new(output: W, base: EntryPath) -> Self {
        Self { builder: Builder::new(output), base, open: None, report: Report::default() }
    }

    /// Ends the file that is open: its content is padded to whole blocks.
    fn close(&mut self) -> Result<(), DumpError> {
        let Some((entry, content)) = self.open.take() else { return Ok(()) };
        if content != entry.size {
            return Err(DumpError::Length { path: entry.path, len: entry.size, content });
        }
        let padding = content.next_multiple_of(BLOCK) - content;
        zeros(self.builder.get_mut(), padding).map_err(DumpError::Output)
    }

    fn entry(&mut self, entry: Entry) -> Result<(), DumpError> {
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
        self.write_entry(&entry, kind).map_err(DumpError::Output)?;
        self.open = (entry.kind == EntryKind::File).then_some((entry, 0));
        Ok(())
    }

    fn write_entry(&mut self, entry: &Entry, kind: EntryType) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(entry.mode);
        header.set_size(if entry.kind == EntryKind::File { entry.size } else { 0 });
        header.set_uid(entry.uid.into());
        header.set_gid(entry.gid.into());
        header.set_mtime(u64::try_from(entry.mtime.seconds).unwrap_or(0));
        if let Some(device) = entry.device {
            header.set_device_major(rustix::fs::major(device))?;
            header.set_device_minor(rustix::fs::minor(device))?;
        }
        let mut extensions = extensions(entry);
        let mut path = entry.path.as_bytes().to_vec();
        if entry.kind == EntryKind::Directory {
            path.push(b'/');
        }
        name(&mut header.as_old_mut().name, "path", &path, &mut extensions);
        if let Some(target) = &entry.target {
            name(&mut header.as_old_mut().linkname, "linkpath", target, &mut extensions);
        }
        header.set_cksum();
        if !extensions.is_empty() {
            let extensions = extensions.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
            self.builder.append_pax_extensions(extensions)?;
        }
        self.builder.get_mut().write_all(header.as_bytes())
    }

    fn finish(mut self) -> Result<Report, DumpError> {
        self.close()?;
        let mut output = self.builder.into_inner().map_err(DumpError::Output)?;
        output.flush().map_err(DumpError::Output)?;
        Ok(self.report)
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
        tar.entry(entry.clone()).unwrap();
        assert!(matches!(tar.close(), Err(DumpError::Length { content: 0, .. })));
        let mut tar = Tar::new(Vec::new(), EntryPath::root());
        tar.entry(entry.clone()).unwrap();
        tar.builder.get_mut().write_all(b"hello").unwrap();
        tar.open = tar.open.map(|(entry, _)| (entry, 5));
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
}
