//! Content of a snapshot as a stream: a file's bytes, or a directory as a tar archive.
//!
//! Every chunk is checked before any of it is written, and what is damaged ends the stream.

use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;

use thiserror::Error;
use vsync_protocol::id::Cid;
use vsync_protocol::tree::{Entry, EntryKind, EntryPath};

use crate::content::{Content, Lost, Part};
use crate::progress::Progress;
use crate::remote::{NodeError, Remote, RemoteError, RemoteNodes};
use crate::restore::{self, RestoreError};
use crate::snapshot::Snapshot;
use crate::tree::{Item, Piece, Reference, TreeError, TreeReader};
use crate::vault::{OpenError, Vault};

mod scout;
mod tar;

use self::scout::Scout;
use self::tar::Tar;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Why a dump ended early.
#[derive(Debug, Error)]
pub(crate) enum DumpError {
    /// The tree cannot be opened.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The tree cannot be read on.
    #[error("the description of {path} cannot be read on")]
    Tree { path: EntryPath, source: Box<TreeError<NodeError>> },
    /// Network or server.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// Decompression cannot be set up.
    #[error("cannot set up opening")]
    Opener(#[source] OpenError),
    /// A chunk cannot be had.
    #[error("blob {cid}, needed by {path}, is {lost}")]
    Blob { cid: Cid, path: EntryPath, lost: Lost },
    /// The pieces of a file are not as long as the file.
    #[error("{path} has {len} bytes, but its content has {content}")]
    Length {
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
        path: EntryPath,
        /// What it is.
        kind: &'static str,
    },
    /// An archive is of directories.
    #[error("{0} is no directory, so it cannot be an archive")]
    NoDirectory(String),
    /// The output cannot be written.
    #[error("cannot write the output")]
    Output(#[source] io::Error),
    /// Somebody asked to stop.
    #[error("interrupted")]
    Interrupted,
}

/// What was dumped.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct DumpReport {
    /// Entries written.
    pub(crate) entries: u64,
    /// Bytes of content written.
    pub(crate) bytes: u64,
    /// Sockets, for which tar has no form.
    pub(crate) sockets: Vec<EntryPath>,
    /// Further names of files that are not in the archive.
    pub(crate) left_out: Vec<EntryPath>,
}

/// The form of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Holes are zeros, and the directory itself is not in it: every unpacker takes that.
    Plain,
    /// Holes are left out (GNU's sparse format 1.0), and the volume's own directory is in it.
    Exact,
}

/// Dumps what is at `path`: the one file of a stream if it is the root of one.
///
/// # Errors
/// When anything cannot be had exactly. What was written until then is right, but not all.
pub(crate) fn run(
    remote: &Remote,
    vault: &Arc<Vault>,
    snapshot: &Snapshot,
    path: &EntryPath,
    form: Form,
    output: impl Write,
    progress: &Progress,
) -> Result<DumpReport, DumpError> {
    let (root, tree) = restore::open_tree(remote, vault, snapshot, path)?;
    let scout = match form {
        Form::Plain => None,
        Form::Exact => Some(Scout::new(restore::open_tree(remote, vault, snapshot, path)?.1)),
    };
    let mut dump = Dump { remote, progress, tree, scout, content: content(remote, vault)? };
    let stream = root.volume.kind == "stream" && path.is_root();
    if stream && form == Form::Exact {
        return Err(DumpError::NoDirectory(format!("{}, the copy of a stream,", snapshot.body.volume)));
    }
    if path.is_root() && !stream {
        let top = root.directory.filter(|_| form == Form::Exact);
        let top = top.map(|directory| Entry { path: EntryPath::root(), ..directory });
        return dump.archive(path, top, output);
    }
    let first = match dump.tree.next_entry(None).map_err(|source| unreadable(path, source))? {
        Some(entry) if stream || entry.path == *path => entry,
        _ => return Err(DumpError::NotFound(path.clone())),
    };
    match first.kind {
        EntryKind::Directory => dump.archive(path, Some(*first), output),
        _ if form == Form::Exact => Err(DumpError::NoDirectory(path.to_string())),
        EntryKind::File => dump.file(&first, stream, output),
        EntryKind::HardLink => {
            let target = first.target.as_deref().and_then(|target| EntryPath::new(target).ok());
            match target.filter(|target| *target < *path) {
                Some(target) => run(remote, vault, snapshot, &target, form, output, progress),
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
pub(crate) const fn kind_name(kind: EntryKind) -> &'static str {
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
    /// Looks ahead for holes.
    scout: Option<Scout>,
    content: Content<Mark>,
}

/// What stands in the queue, in the order in which it is written.
enum Mark {
    /// A new entry, and where its data is, if it has holes that are to be left out.
    Entry(Box<Entry>, Option<Vec<Range<u64>>>),
    /// A piece of the last entry's content.
    Hole(u64),
    Chunk,
}

impl Dump<'_> {
    fn file(&mut self, entry: &Entry, stream: bool, mut output: impl Write) -> Result<DumpReport, DumpError> {
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
            match self.piece(&entry.path, &mark, chunk, part)? {
                Written::Data(data) => {
                    output.write_all(&data).map_err(DumpError::Output)?;
                    bytes += data.len() as u64;
                }
                Written::Hole(len) => {
                    zeros(&mut output, len).map_err(DumpError::Output)?;
                    bytes += len;
                }
            }
        }
        if bytes != entry.size && !stream {
            return Err(DumpError::Length { path: entry.path.clone(), len: entry.size, content: bytes });
        }
        output.flush().map_err(DumpError::Output)?;
        self.progress.entries.add(1);
        Ok(DumpReport { entries: 1, bytes, ..DumpReport::default() })
    }

    fn push(&mut self, piece: Piece) -> bool {
        match piece {
            Piece::Chunk(reference) => self.content.push(Mark::Chunk, Some(reference)),
            Piece::Hole(len) => self.content.push(Mark::Hole(len), None),
        }
        true
    }

    /// Checks a piece of content before it is written.
    fn piece(&self, path: &EntryPath, mark: &Mark, chunk: Option<Reference>, part: Part) -> Result<Written, DumpError> {
        if self.progress.is_cancelled() {
            return Err(DumpError::Interrupted);
        }
        let written = match (mark, part, chunk) {
            (Mark::Hole(len), ..) => Written::Hole(*len),
            (_, Part::Plain(plain), _) => Written::Data(plain),
            (_, Part::Lost(lost), Some(chunk)) => {
                if matches!(lost, Lost::Damaged(_)) {
                    self.remote.fetcher().report_damage(chunk.cid);
                }
                return Err(DumpError::Blob { cid: chunk.cid, path: path.clone(), lost });
            }
            (_, Part::Mark | Part::Lost(_), _) => Written::Hole(0),
        };
        self.progress.bytes.add(written.len());
        Ok(written)
    }

    fn archive(&mut self, base: &EntryPath, first: Option<Entry>, output: impl Write) -> Result<DumpReport, DumpError> {
        let mut tar = Tar::new(output, base.clone());
        if let Some(first) = first {
            self.content.push(Mark::Entry(Box::new(first), None), None);
        }
        let mut last = base.clone();
        let mut more = true;
        loop {
            while more && !self.content.is_full() {
                more = match self.tree.next_item().map_err(|source| unreadable(&last, source))? {
                    Some(Item::Piece(piece)) => self.push(piece),
                    Some(Item::Entry(entry)) if entry.path.is_within(base) => {
                        last.clone_from(&entry.path);
                        let data = self.data_of(&entry)?;
                        self.content.push(Mark::Entry(entry, data), None);
                        true
                    }
                    Some(Item::Entry(_)) | None => false,
                };
            }
            let Some((mark, chunk, part)) = self.content.pop()? else { break };
            if let Mark::Entry(entry, data) = mark {
                tar.close()?;
                self.progress.entries.add(1);
                tar.entry(*entry, data.as_deref())?;
                continue;
            }
            let Some(path) = tar.path() else { continue };
            match self.piece(path, &mark, chunk, part)? {
                Written::Data(data) => tar.data(&data)?,
                Written::Hole(len) => tar.hole(len)?,
            }
        }
        tar.finish()
    }

    /// Where the data of a file is, if it has holes that are to be left out.
    fn data_of(&mut self, entry: &Entry) -> Result<Option<Vec<Range<u64>>>, DumpError> {
        match &mut self.scout {
            Some(scout) if entry.kind == EntryKind::File && entry.size > 0 => {
                scout.data_of(entry).map_err(|source| unreadable(&entry.path, source))
            }
            _ => Ok(None),
        }
    }
}

/// A piece of content that may be written.
enum Written {
    Data(Arc<Vec<u8>>),
    Hole(u64),
}

impl Written {
    fn len(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Hole(len) => *len,
        }
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
