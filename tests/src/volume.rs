//! Making the content of a volume in a few words, the same from the same seed.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, makedev, mknodat, utimensat};

use crate::{Rng, shell};

/// A directory to fill. Methods return the volume, so that they chain; a path's directories are made as needed.
#[derive(Debug)]
pub struct Volume {
    root: PathBuf,
    seed: u64,
    _guard: Option<tempfile::TempDir>,
}

impl Volume {
    /// An empty directory that disappears with the volume.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let guard = crate::scratch();
        // A scratch directory belongs to its maker alone; a volume's does not.
        fs::set_permissions(guard.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
        Self { root: guard.path().to_owned(), seed, _guard: Some(guard) }
    }

    /// A directory that exists, such as that of a Docker volume.
    #[must_use]
    pub fn at(root: &Path, seed: u64) -> Self {
        Self { root: root.to_owned(), seed, _guard: None }
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// The full path of an entry, whose parents exist afterwards.
    #[must_use]
    #[track_caller]
    pub fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        let full = self.root.join(path);
        let parent = full.parent().expect("a parent");
        fs::create_dir_all(parent).unwrap_or_else(|error| panic!("{}: {error}", parent.display()));
        full
    }

    /// The random numbers that belong to a path.
    fn rng(&self, path: &Path) -> Rng {
        let hash = blake3::hash(path.as_os_str().as_bytes());
        let hash = u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("eight bytes"));
        Rng::new(self.seed ^ hash)
    }

    #[track_caller]
    fn done<T, E: std::fmt::Display>(&self, path: &Path, result: Result<T, E>) -> &Self {
        if let Err(error) = result {
            panic!("{}: {error}", path.display());
        }
        self
    }

    /// A file with these bytes, new or in place of the old content.
    #[track_caller]
    pub fn write(&self, path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> &Self {
        let full = self.join(path);
        self.done(&full, fs::write(&full, bytes))
    }

    /// A file of `size` incompressible bytes.
    #[track_caller]
    pub fn random(&self, path: impl AsRef<Path>, size: u64) -> &Self {
        self.fill(path.as_ref(), size, Rng::bytes)
    }

    /// A file of `size` bytes that compress about three times.
    #[track_caller]
    pub fn text(&self, path: impl AsRef<Path>, size: u64) -> &Self {
        self.fill(path.as_ref(), size, Rng::text)
    }

    #[track_caller]
    fn fill(&self, path: &Path, size: u64, make: fn(&mut Rng, usize) -> Vec<u8>) -> &Self {
        let full = self.join(path);
        let mut rng = self.rng(path);
        let mut fill = || -> io::Result<()> {
            let file = File::create(&full)?;
            let mut at = 0;
            while at < size {
                let piece = make(&mut rng, usize::try_from((size - at).min(1 << 20)).expect("a piece"));
                file.write_all_at(&piece, at)?;
                at += piece.len() as u64;
            }
            Ok(())
        };
        self.done(&full, fill())
    }

    /// `count` files of up to `largest` bytes below `directory`, a hundred in each of its directories.
    #[track_caller]
    pub fn many(&self, directory: impl AsRef<Path>, count: u64, largest: u64) -> &Self {
        let directory = directory.as_ref();
        let mut rng = self.rng(directory);
        for number in 0..count {
            let path = directory.join(format!("{:03}", number / 100)).join(format!("{number:06}"));
            self.text(path, rng.below(largest + 1));
        }
        self
    }

    /// A file of `size` bytes that is a hole except for the given pieces.
    #[track_caller]
    pub fn sparse(&self, path: impl AsRef<Path>, size: u64, pieces: &[(u64, &[u8])]) -> &Self {
        let full = self.join(path);
        let make = || -> io::Result<()> {
            let file = File::create(&full)?;
            file.set_len(size)?;
            pieces.iter().try_for_each(|(at, bytes)| file.write_all_at(bytes, *at))
        };
        self.done(&full, make())
    }

    /// New bytes inside a file, or behind its end.
    #[track_caller]
    pub fn patch(&self, path: impl AsRef<Path>, at: u64, bytes: impl AsRef<[u8]>) -> &Self {
        let full = self.join(path);
        let patch = || OpenOptions::new().write(true).open(&full)?.write_all_at(bytes.as_ref(), at);
        self.done(&full, patch())
    }

    /// Bytes put between those of a file, whose rest moves.
    #[track_caller]
    pub fn insert(&self, path: impl AsRef<Path>, at: usize, bytes: impl AsRef<[u8]>) -> &Self {
        let full = self.join(path);
        let insert = || -> io::Result<()> {
            let mut content = fs::read(&full)?;
            content.splice(at..at, bytes.as_ref().iter().copied());
            OpenOptions::new().write(true).open(&full)?.write_all_at(&content, 0)
        };
        self.done(&full, insert())
    }

    /// Another length for a file: cut, or grown by a hole.
    #[track_caller]
    pub fn resize(&self, path: impl AsRef<Path>, size: u64) -> &Self {
        let full = self.join(path);
        self.done(&full, OpenOptions::new().write(true).open(&full).and_then(|file| file.set_len(size)))
    }

    /// A directory.
    #[track_caller]
    pub fn directory(&self, path: impl AsRef<Path>) -> &Self {
        let full = self.join(path);
        self.done(&full, fs::create_dir_all(&full))
    }

    /// A symbolic link at `path`.
    #[track_caller]
    pub fn symlink(&self, path: impl AsRef<Path>, target: impl AsRef<Path>) -> &Self {
        let full = self.join(path);
        self.done(&full, std::os::unix::fs::symlink(target, &full))
    }

    /// A hard link at `path` to a file of the volume.
    #[track_caller]
    pub fn link(&self, path: impl AsRef<Path>, existing: impl AsRef<Path>) -> &Self {
        let full = self.join(path);
        self.done(&full, fs::hard_link(self.root.join(existing), &full))
    }

    /// A FIFO.
    #[track_caller]
    pub fn fifo(&self, path: impl AsRef<Path>) -> &Self {
        self.node(path.as_ref(), FileType::Fifo, 0)
    }

    /// A socket that nobody listens on.
    #[track_caller]
    pub fn socket(&self, path: impl AsRef<Path>) -> &Self {
        self.node(path.as_ref(), FileType::Socket, 0)
    }

    /// A character device.
    #[track_caller]
    pub fn character_device(&self, path: impl AsRef<Path>, major: u32, minor: u32) -> &Self {
        self.node(path.as_ref(), FileType::CharacterDevice, makedev(major, minor))
    }

    /// A block device.
    #[track_caller]
    pub fn block_device(&self, path: impl AsRef<Path>, major: u32, minor: u32) -> &Self {
        self.node(path.as_ref(), FileType::BlockDevice, makedev(major, minor))
    }

    #[track_caller]
    fn node(&self, path: &Path, kind: FileType, device: u64) -> &Self {
        let full = self.join(path);
        self.done(&full, mknodat(CWD, &full, kind, Mode::from_raw_mode(0o644), device))
    }

    /// Permissions, with set-uid, set-gid and sticky bits.
    #[track_caller]
    pub fn mode(&self, path: impl AsRef<Path>, mode: u32) -> &Self {
        let full = self.join(path);
        self.done(&full, fs::set_permissions(&full, fs::Permissions::from_mode(mode)))
    }

    /// Numeric owner and group of an entry, not of what a link points at.
    #[track_caller]
    pub fn owner(&self, path: impl AsRef<Path>, uid: u32, gid: u32) -> &Self {
        let full = self.join(path);
        self.done(&full, std::os::unix::fs::lchown(&full, Some(uid), Some(gid)))
    }

    /// The time of the last change, before 1970 too.
    #[track_caller]
    pub fn mtime(&self, path: impl AsRef<Path>, seconds: i64, nanoseconds: u32) -> &Self {
        let full = self.join(path);
        let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
        let times = Timestamps { last_access: time, last_modification: time };
        self.done(&full, utimensat(CWD, &full, &times, AtFlags::SYMLINK_NOFOLLOW))
    }

    /// Every time of the volume a day earlier, as that of a volume which was at rest for long.
    #[track_caller]
    pub fn settled(&self) -> &Self {
        let yesterday = SystemTime::now() - Duration::from_secs(86_400);
        let seconds = yesterday.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
        for path in crate::Tree::read(&self.root).paths() {
            self.mtime(path, i64::try_from(seconds).expect("a time"), 123_456_789);
        }
        self
    }

    /// An extended attribute, `user.`, `trusted.` or `security.`.
    #[track_caller]
    pub fn xattr(&self, path: impl AsRef<Path>, name: &str, value: impl AsRef<[u8]>) -> &Self {
        let full = self.join(path);
        let name = CString::new(name).expect("a name without NUL");
        self.done(&full, rustix::fs::lsetxattr(&full, name.as_c_str(), value.as_ref(), XattrFlags::empty()))
    }

    /// Access control entries in the words of `setfacl -m`, such as `u:1000:rwx` or `d:g:5:r`.
    #[track_caller]
    pub fn acl(&self, path: impl AsRef<Path>, entries: &str) -> &Self {
        shell::run("setfacl", ["-m".as_ref(), entries.as_ref(), self.join(path).as_os_str()]);
        self
    }

    /// Capabilities in the words of `setcap`, such as `cap_net_raw+ep`.
    #[track_caller]
    pub fn capability(&self, path: impl AsRef<Path>, words: &str) -> &Self {
        shell::run("setcap", [words.as_ref(), self.join(path).as_os_str()]);
        self
    }

    /// Another name for an entry.
    #[track_caller]
    pub fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> &Self {
        let full = self.root.join(from);
        self.done(&full, fs::rename(&full, self.join(to)))
    }

    /// Removes an entry, with all below it.
    #[track_caller]
    pub fn remove(&self, path: impl AsRef<Path>) -> &Self {
        let full = self.root.join(path);
        let directory = fs::symlink_metadata(&full).is_ok_and(|meta| meta.is_dir());
        self.done(&full, if directory { fs::remove_dir_all(&full) } else { fs::remove_file(&full) })
    }

    /// One of everything that a file system can hold: what every round trip must bring back.
    #[track_caller]
    pub fn zoo(&self) -> &Self {
        use std::os::unix::ffi::OsStrExt as _;
        self.write("empty", "").write("small", "hello\n").random("random", 3 << 20).text("text", 2 << 20);
        self.sparse("sparse", 64 << 20, &[(0, b"head"), (32 << 20, &[7; 5000]), ((64 << 20) - 3, b"end")]);
        self.sparse("hole", 1 << 20, &[]).directory("void").write("zeros", vec![0; 1 << 20]);
        self.symlink("links/good", "../small").symlink("links/broken", "/nowhere").symlink("links/loop", "loop");
        self.link("links/hard", "random").fifo("special/fifo").socket("special/socket");
        self.character_device("special/null", 1, 3).block_device("special/loop", 7, 4096 + 13);
        self.write(Path::new(std::ffi::OsStr::from_bytes(b"names/not \xff\xfe text")), "bytes");
        self.write("names/new\nline", "line").write("names/-rf", "dash").write("names/ünï©ode", "utf-8");
        self.write(Path::new("names").join("x".repeat(255)), "long");
        self.write("modes/suid", "s").owner("modes/suid", 1000, 2000).mode("modes/suid", 0o6755);
        self.write("modes/none", "n").mode("modes/none", 0).directory("modes/sticky").mode("modes/sticky", 0o1777);
        self.owner("links/good", 3000, 4_000_000_000).owner("special", 65534, 65534);
        self.xattr("small", "user.note", "value").xattr("small", "user.binary", [0, 255, 1]);
        self.xattr("void", "trusted.secret", "t").xattr("special/fifo", "trusted.on-a-fifo", "f");
        self.xattr("random", "user.large", self.rng(Path::new("large")).bytes(2000));
        self.acl("small", "u:1000:rw,g:7:r").acl("void", "d:u:1000:rwx").capability("modes/none", "cap_net_raw+ep");
        self.mtime("small", -1, 1).mtime("text", 4_102_444_800, 999_999_999).mtime("links/broken", 1_000_000_000, 5);
        self.mtime("void", 1_234_567_890, 42)
    }
}
