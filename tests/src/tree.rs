//! What a directory holds, read without any code of vsync, and the differences between two of them in words.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// How many differences a panic lists.
const SHOWN: usize = 40;

/// Every entry below a directory, the directory itself included as the empty path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    root: PathBuf,
    entries: BTreeMap<Vec<u8>, Entry>,
}

/// Everything about an entry that a restore must bring back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its type, and what only that type has.
    pub kind: Kind,
    /// Permissions, with set-uid, set-gid and sticky bits.
    pub mode: u32,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Seconds and nanoseconds of the last change of the content.
    pub mtime: (i64, i64),
    /// Extended attributes, among them ACLs (`system.posix_acl_*`) and capabilities (`security.capability`).
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first path in the tree that names the same file, where several do.
    pub linked: Option<Vec<u8>>,
}

/// The type of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Its length.
        size: u64,
        /// BLAKE3 of its bytes.
        content: blake3::Hash,
        /// Where its data lies, as (start, end), if [`Tree::with_holes`] was asked for it.
        data: Option<Vec<(u64, u64)>>,
    },
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A FIFO.
    Fifo,
    /// A socket.
    Socket,
    /// A block device, major and minor.
    Block(u32, u32),
    /// A character device, major and minor.
    Character(u32, u32),
}

impl Tree {
    /// Reads a directory.
    ///
    /// # Panics
    /// If anything in it cannot be read.
    #[must_use]
    #[track_caller]
    pub fn read(root: impl AsRef<Path>) -> Self {
        Self::walk(root.as_ref(), false)
    }

    /// Reads a directory, and where each file's data and holes lie.
    ///
    /// # Panics
    /// If anything in it cannot be read.
    #[must_use]
    #[track_caller]
    pub fn with_holes(root: impl AsRef<Path>) -> Self {
        Self::walk(root.as_ref(), true)
    }

    #[track_caller]
    fn walk(root: &Path, holes: bool) -> Self {
        let mut tree = Self { root: root.to_owned(), entries: BTreeMap::new() };
        let mut names = HashMap::<(u64, u64), Vec<Vec<u8>>>::new();
        let mut waiting = vec![PathBuf::new()];
        while let Some(path) = waiting.pop() {
            let full = if path.as_os_str().is_empty() { root.to_owned() } else { root.join(&path) };
            let step = || -> io::Result<(fs::Metadata, Entry)> {
                let meta = fs::symlink_metadata(&full)?;
                let entry = Entry::read(&full, &meta, holes)?;
                Ok((meta, entry))
            };
            let (meta, entry) = step().unwrap_or_else(|error| panic!("{}: {error}", full.display()));
            let name = path.as_os_str().as_bytes().to_vec();
            if entry.kind == Kind::Directory {
                let children = fs::read_dir(&full).unwrap_or_else(|error| panic!("{}: {error}", full.display()));
                waiting.extend(children.map(|child| path.join(child.expect("a directory entry").file_name())));
            } else if meta.nlink() > 1 {
                names.entry((meta.dev(), meta.ino())).or_default().push(name.clone());
            }
            tree.entries.insert(name, entry);
        }
        tree.link(names.into_values());
        tree
    }

    /// The entry at a path; the empty path is the directory itself.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    #[track_caller]
    pub fn entry(&self, path: impl AsRef<OsStr>) -> &Entry {
        let path = path.as_ref();
        self.entries.get(path.as_bytes()).unwrap_or_else(|| panic!("no {path:?} in {}", self.root.display()))
    }

    /// All paths, bytewise sorted.
    pub fn paths(&self) -> impl Iterator<Item = &OsStr> {
        self.entries.keys().map(|path| OsStr::from_bytes(path))
    }

    /// The part below a path, as a tree of its own.
    #[must_use]
    #[track_caller]
    pub fn below(&self, path: impl AsRef<OsStr>) -> Self {
        let top = path.as_ref().as_bytes();
        let cut = |name: &[u8]| {
            let rest = name.strip_prefix(top)?;
            if rest.is_empty() { Some(Vec::new()) } else { rest.strip_prefix(b"/").map(<[u8]>::to_vec) }
        };
        let entries: BTreeMap<_, _> =
            self.entries.iter().filter_map(|(name, entry)| Some((cut(name)?, entry.clone()))).collect();
        assert!(!entries.is_empty(), "no {:?} in {}", path.as_ref(), self.root.display());
        let mut below = Self { root: self.root.join(path.as_ref()), entries };
        below.regroup();
        below
    }

    /// Without the entries that `unwanted` says, such as a `postmaster.pid`.
    #[must_use]
    pub fn without(mut self, unwanted: impl Fn(&OsStr) -> bool) -> Self {
        self.entries.retain(|path, _| !unwanted(OsStr::from_bytes(path)));
        self.regroup();
        self
    }

    /// Names the hard links by what is left of each group.
    fn regroup(&mut self) {
        let mut groups = HashMap::<Vec<u8>, Vec<Vec<u8>>>::new();
        for (path, entry) in &mut self.entries {
            if let Some(group) = entry.linked.take() {
                groups.entry(group).or_default().push(path.clone());
            }
        }
        self.link(groups.into_values());
    }

    fn link(&mut self, groups: impl Iterator<Item = Vec<Vec<u8>>>) {
        for group in groups.filter(|group| group.len() > 1) {
            let first = group.iter().min();
            for name in &group {
                self.entries.get_mut(name).expect("a name of the tree").linked = first.cloned();
            }
        }
    }

    /// A line for each difference; none where the trees are the same.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        for (path, entry) in &self.entries {
            match other.entries.get(path) {
                None => lines.push(format!("{}: missing from the second", show(path))),
                Some(theirs) => entry.compare(theirs, &show(path), &mut lines),
            }
        }
        let extra = other.entries.keys().filter(|path| !self.entries.contains_key(*path));
        lines.extend(extra.map(|path| format!("{}: only in the second", show(path))));
        lines
    }
}

impl Entry {
    fn read(path: &Path, meta: &fs::Metadata, holes: bool) -> io::Result<Self> {
        let device = || (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        let kind = match meta.file_type() {
            kind if kind.is_dir() => Kind::Directory,
            kind if kind.is_file() => {
                let mut file = File::open(path)?;
                let data = holes.then(|| data_of(&file, meta.len())).transpose()?;
                let (size, content) = hash(&mut file, meta.len())?;
                Kind::File { size, content, data }
            }
            kind if kind.is_symlink() => Kind::Symlink(fs::read_link(path)?.into_os_string().as_bytes().to_vec()),
            kind if kind.is_fifo() => Kind::Fifo,
            kind if kind.is_socket() => Kind::Socket,
            kind if kind.is_block_device() => Kind::Block(device().0, device().1),
            kind if kind.is_char_device() => Kind::Character(device().0, device().1),
            kind => return Err(io::Error::other(format!("unknown type {kind:?}"))),
        };
        Ok(Self {
            kind,
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            xattrs: xattrs_of(path)?,
            linked: None,
        })
    }

    fn compare(&self, other: &Self, path: &str, lines: &mut Vec<String>) {
        let mut differ = |what: &str, first: String, second: String| {
            if first != second {
                lines.push(format!("{path}: {what} {first} | {second}"));
            }
        };
        match (&self.kind, &other.kind) {
            (
                Kind::File { size, content, data },
                Kind::File { size: their_size, content: their_content, data: their_data },
            ) => {
                differ("size", size.to_string(), their_size.to_string());
                differ("content", content.to_hex()[..16].to_owned(), their_content.to_hex()[..16].to_owned());
                differ("data at", format!("{data:?}"), format!("{their_data:?}"));
            }
            (first, second) => differ("type", first.to_string(), second.to_string()),
        }
        differ("mode", format!("{:04o}", self.mode), format!("{:04o}", other.mode));
        differ("owner", format!("{}:{}", self.uid, self.gid), format!("{}:{}", other.uid, other.gid));
        let time = |(seconds, nanoseconds): (i64, i64)| format!("{seconds}.{nanoseconds:09}");
        differ("mtime", time(self.mtime), time(other.mtime));
        let linked = |entry: &Self| entry.linked.as_deref().map_or_else(|| "nothing".to_owned(), show);
        differ("hard link to", linked(self), linked(other));
        let names = self.xattrs.keys().chain(other.xattrs.keys().filter(|name| !self.xattrs.contains_key(*name)));
        for name in names {
            let value = |entry: &Self| entry.xattrs.get(name).map_or_else(|| "absent".to_owned(), |value| show(value));
            differ(&format!("xattr {}", show(name)), value(self), value(other));
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Directory => f.write_str("directory"),
            Self::File { size, .. } => write!(f, "file of {size} bytes"),
            Self::Symlink(target) => write!(f, "symlink to {}", show(target)),
            Self::Fifo => f.write_str("FIFO"),
            Self::Socket => f.write_str("socket"),
            Self::Block(major, minor) => write!(f, "block device {major}:{minor}"),
            Self::Character(major, minor) => write!(f, "character device {major}:{minor}"),
        }
    }
}

/// Asserts that two trees are the same, in every respect that [`Entry`] has.
///
/// # Panics
/// With a line for each difference.
#[track_caller]
pub fn assert_same(first: &Tree, second: &Tree) {
    let lines = first.differences(second);
    if lines.is_empty() {
        return;
    }
    let mut text = format!("{} and {} differ ({}):", first.root.display(), second.root.display(), lines.len());
    for line in lines.iter().take(SHOWN) {
        write!(text, "\n  {line}").expect("a string");
    }
    if lines.len() > SHOWN {
        write!(text, "\n  … and {} more", lines.len() - SHOWN).expect("a string");
    }
    panic!("{text}");
}

/// Bytes as a quoted string.
fn show(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes.escape_ascii())
}

fn hash(file: &mut File, size: u64) -> io::Result<(u64, blake3::Hash)> {
    let mut hasher = blake3::Hasher::new();
    // Not larger than the file: to clear it would take longer than to read a small one.
    let mut buffer = vec![0; usize::try_from(size.clamp(1, 1 << 20)).expect("a buffer")];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((hasher.count(), hasher.finalize())),
            read => hasher.update(&buffer[..read]),
        };
    }
}

/// The ranges of a file that are not holes.
fn data_of(file: &File, size: u64) -> io::Result<Vec<(u64, u64)>> {
    use rustix::fs::{SeekFrom, seek};
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break, // a hole up to the end
            Err(error) => return Err(error.into()),
        };
        at = seek(file, SeekFrom::Hole(start))?;
        ranges.push((start, at));
    }
    seek(file, SeekFrom::Start(0))?;
    Ok(ranges)
}

fn xattrs_of(path: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    // The kernel gives neither a list nor a value of more than 64 KiB.
    let mut buffer = vec![0_u8; 1 << 16];
    let length = match rustix::fs::llistxattr(path, &mut buffer[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    let names: Vec<_> =
        buffer[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect();
    let mut xattrs = BTreeMap::new();
    for name in names {
        let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(&name), &mut buffer[..])?;
        xattrs.insert(name, buffer[..length].to_vec());
    }
    Ok(xattrs)
}
