//! Compares two directories, entry by entry and byte by byte.
//!
//! It shares no code with the backup or the restore, so that what they do can be checked by
//! something that would not repeat their mistakes: it walks by path, and trusts nothing but
//! what the file system says now. Not for directories that others change meanwhile.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{lgetxattr, llistxattr};
use thiserror::Error;

/// How many differences are listed.
const LISTED: usize = 20;

/// How much is read at a time.
const BUFFER: usize = 1 << 20;

/// Most bytes of one attribute, and of the names of all.
const ATTRIBUTE: usize = 64 << 10;

/// Something could not be looked at.
#[derive(Debug, Error)]
#[error("cannot read {}", path.display())]
pub(crate) struct CompareError {
    pub(crate) path: PathBuf,
    pub(crate) source: io::Error,
}

/// What a comparison came to.
#[derive(Debug, Default)]
pub(crate) struct Comparison {
    /// Entries of the first directory, without itself.
    pub(crate) entries: u64,
    /// Bytes of content read from it.
    pub(crate) bytes: u64,
    /// The first differences: the path below the directories, and what differs.
    pub(crate) differences: Vec<(PathBuf, String)>,
    /// How many there are.
    pub(crate) difference_count: u64,
}

impl Comparison {
    fn differs(&mut self, path: &Path, what: impl Into<String>) {
        self.difference_count += 1;
        if self.differences.len() < LISTED {
            self.differences.push((path.to_owned(), what.into()));
        }
    }
}

/// Compares everything below `one` and `other`, and the two themselves.
///
/// # Errors
/// When something of either cannot be read.
pub(crate) fn compare(one: &Path, other: &Path) -> Result<Comparison, CompareError> {
    let mut walk = Walk { one, other, links: BTreeMap::new(), found: Comparison::default() };
    walk.entry(Path::new(""))?;
    Ok(walk.found)
}

struct Walk<'a> {
    one: &'a Path,
    other: &'a Path,
    /// Where files with several names were met first, on both sides.
    links: BTreeMap<(u64, u64), (u64, u64)>,
    found: Comparison,
}

impl Walk<'_> {
    fn entry(&mut self, path: &Path) -> Result<(), CompareError> {
        let (one, other) = (below(self.one, path), below(self.other, path));
        let (left, right) = (metadata(&one)?, metadata(&other)?);
        self.found.entries += u64::from(!path.as_os_str().is_empty());
        for (what, same) in [
            ("kind", left.file_type() == right.file_type()),
            ("mode", left.mode() == right.mode()),
            ("owner", (left.uid(), left.gid()) == (right.uid(), right.gid())),
            ("modification time", (left.mtime(), left.mtime_nsec()) == (right.mtime(), right.mtime_nsec())),
            ("extended attributes", attributes(&one)? == attributes(&other)?),
            ("hard links", self.same_links(&left, &right)),
        ] {
            if !same {
                self.found.differs(path, what);
            }
        }
        if left.file_type() == right.file_type() { self.content(path, &left, &right) } else { Ok(()) }
    }

    /// Whether both are names of files that have the same other names.
    fn same_links(&mut self, left: &Metadata, right: &Metadata) -> bool {
        if left.is_dir() || (left.nlink() == 1 && right.nlink() == 1) {
            return true;
        }
        let (left, right) = ((left.dev(), left.ino()), (right.dev(), right.ino()));
        *self.links.entry(left).or_insert(right) == right
    }

    fn content(&mut self, path: &Path, left: &Metadata, right: &Metadata) -> Result<(), CompareError> {
        let (one, other) = (below(self.one, path), below(self.other, path));
        let kind = left.file_type();
        let same = if kind.is_dir() {
            return self.directory(path, &one, &other);
        } else if kind.is_symlink() {
            let link = |path: &Path| fs::read_link(path).map_err(failed(path));
            link(&one)? == link(&other)?
        } else if kind.is_file() {
            self.found.bytes += left.len();
            left.len() == right.len() && same_bytes(&one, &other)?
        } else {
            (!kind.is_block_device() && !kind.is_char_device()) || left.rdev() == right.rdev()
        };
        if !same {
            self.found.differs(path, "content");
        }
        Ok(())
    }

    fn directory(&mut self, path: &Path, one: &Path, other: &Path) -> Result<(), CompareError> {
        let (names, others) = (names(one)?, names(other)?);
        for name in &names {
            if others.contains(name) {
                self.entry(&path.join(name))?;
            } else {
                self.found.differs(&path.join(name), "missing");
            }
        }
        for name in others.difference(&names) {
            self.found.differs(&path.join(name), "was not there before");
        }
        Ok(())
    }
}

/// `join` with an empty path would end in a slash, and follow a link.
fn below(root: &Path, path: &Path) -> PathBuf {
    if path.as_os_str().is_empty() { root.to_owned() } else { root.join(path) }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> CompareError {
    let path = path.to_owned();
    move |source| CompareError { path, source }
}

fn metadata(path: &Path) -> Result<Metadata, CompareError> {
    fs::symlink_metadata(path).map_err(failed(path))
}

fn names(directory: &Path) -> Result<std::collections::BTreeSet<std::ffi::OsString>, CompareError> {
    let entries = fs::read_dir(directory).map_err(failed(directory))?;
    entries.map(|entry| entry.map(|entry| entry.file_name()).map_err(failed(directory))).collect()
}

fn attributes(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, CompareError> {
    let mut list = vec![0; ATTRIBUTE];
    let len = match llistxattr(path, &mut list[..]) {
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        result => result.map_err(|error| failed(path)(error.into()))?,
    };
    let mut attributes = BTreeMap::new();
    for name in list[..len].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; ATTRIBUTE];
        let len = lgetxattr(path, name, &mut value[..]).map_err(|error| failed(path)(error.into()))?;
        value.truncate(len);
        attributes.insert(name.to_vec(), value);
    }
    Ok(attributes)
}

fn same_bytes(one: &Path, other: &Path) -> Result<bool, CompareError> {
    let open = |path: &Path| File::open(path).map_err(failed(path));
    let (mut left, mut right) = (open(one)?, open(other)?);
    let (mut a, mut b) = (vec![0; BUFFER], vec![0; BUFFER]);
    loop {
        let len = fill(&mut left, &mut a).map_err(failed(one))?;
        if len != fill(&mut right, &mut b).map_err(failed(other))? || a[..len] != b[..len] {
            return Ok(false);
        }
        if len == 0 {
            return Ok(true);
        }
    }
}

fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// A directory whose times do not depend on when it was made.
    fn tree(change: impl FnOnce(&Path)) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir(at("d")).unwrap();
        fs::write(at("d/a"), vec![7; BUFFER + 3]).unwrap();
        fs::hard_link(at("d/a"), at("d/b")).unwrap();
        fs::write(at("c"), "c").unwrap();
        symlink("c", at("l")).unwrap();
        change(root.path());
        for name in ["d/a", "d/b", "c", "d", ""] {
            if let Ok(file) = File::open(at(name)) {
                file.set_modified(std::time::UNIX_EPOCH).unwrap();
            }
        }
        root
    }

    fn differences(change: impl FnOnce(&Path)) -> Vec<(String, String)> {
        let (one, other) = (tree(|_| ()), tree(change));
        let same_link = |path: &Path| {
            rustix::fs::utimensat(
                rustix::fs::CWD,
                path.join("l"),
                &rustix::fs::Timestamps {
                    last_access: rustix::fs::Timespec { tv_sec: 0, tv_nsec: 0 },
                    last_modification: rustix::fs::Timespec { tv_sec: 0, tv_nsec: 0 },
                },
                rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
            )
            .unwrap();
        };
        same_link(one.path());
        same_link(other.path());
        let found = compare(one.path(), other.path()).unwrap();
        assert_eq!(found.difference_count, found.differences.len() as u64);
        found.differences.into_iter().map(|(path, what)| (path.display().to_string(), what)).collect()
    }

    fn one(path: &str, what: &str) -> Vec<(String, String)> {
        vec![(path.to_owned(), what.to_owned())]
    }

    #[test]
    fn equal_directories_are_equal() {
        assert_eq!(differences(|_| ()), []);
        let root = tree(|_| ());
        let found = compare(root.path(), root.path()).unwrap();
        assert_eq!((found.entries, found.bytes), (5, 2 * (BUFFER as u64 + 3) + 1));
    }

    #[test]
    fn every_kind_of_difference_is_found() {
        assert_eq!(differences(|root| fs::write(root.join("c"), "x").unwrap()), one("c", "content"));
        assert_eq!(differences(|root| fs::write(root.join("c"), "cc").unwrap()), one("c", "content"));
        assert_eq!(differences(|root| fs::remove_file(root.join("c")).unwrap()), one("c", "missing"));
        assert_eq!(differences(|root| fs::write(root.join("d/n"), "").unwrap()), one("d/n", "was not there before"));
        let mode = |root: &Path| fs::set_permissions(root.join("c"), fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(differences(mode), one("c", "mode"));
        let split = |root: &Path| {
            fs::remove_file(root.join("d/b")).unwrap();
            fs::copy(root.join("d/a"), root.join("d/b")).unwrap();
        };
        assert_eq!(differences(split), one("d/b", "hard links"));
        let link = |root: &Path| {
            fs::remove_file(root.join("l")).unwrap();
            symlink("d", root.join("l")).unwrap();
        };
        assert_eq!(differences(link), one("l", "content"));
        let kind = |root: &Path| {
            fs::remove_file(root.join("c")).unwrap();
            fs::create_dir(root.join("c")).unwrap();
            fs::set_permissions(root.join("c"), fs::Permissions::from_mode(0o644)).unwrap();
        };
        assert_eq!(differences(kind).first(), Some(&("c".to_owned(), "kind".to_owned())));
        let attribute = |root: &Path| {
            rustix::fs::setxattr(root.join("c"), "user.x", b"1", rustix::fs::XattrFlags::empty()).unwrap();
        };
        assert_eq!(differences(attribute), one("c", "extended attributes"));
    }
}
