//! The store's directory: the lock on it, and the mark that says whose it is.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use vsync_protocol::id::RealmId;

use super::StoreError;
use super::health::Health;
use super::room::{Cached, Room, sync_directory};

/// Format of a store as a whole; raised when an older program must not write it.
pub const FORMAT: u32 = 1;

const VERSION_FILE: &str = "VERSION";
const ROOMS: [&str; 5] = ["packs", "manifests", "log", "trash", "quarantine"];

/// An open store directory. Dropping it lets another process open the store.
#[derive(Debug)]
pub struct Home {
    path: PathBuf,
    _lock: File,
}

impl Home {
    /// Locks the store of `realm` at `path`; an empty or absent directory becomes one.
    ///
    /// # Errors
    /// When another process has it, or it is another realm's, a newer program's, or no
    /// store at all.
    pub fn open(path: &Path, realm: RealmId) -> Result<Self, StoreError> {
        create(path).map_err(StoreError::io("create", path))?;
        check_file_system(path)?;
        let lock = lock(path)?;
        match fs::read_to_string(path.join(VERSION_FILE)) {
            Ok(mark) => check_mark(path, &mark, realm)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => found(path, realm)?,
            Err(error) => return Err(StoreError::io("read", path.join(VERSION_FILE))(error)),
        }
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Makes the directory `path` and those above it, so that a power cut leaves them. Nobody else looks into it: the
/// catalog has names of machines and volumes.
///
/// # Errors
/// When the system does not let it be made.
pub fn create(path: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|above| !above.exists()).collect();
    missing.get(1).map_or(Ok(()), fs::create_dir_all)?;
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let named = missing.into_iter().filter(|made| !made.as_os_str().is_empty());
    named
        .filter_map(Path::parent)
        .try_for_each(|above| sync_directory(if above.as_os_str().is_empty() { Path::new(".") } else { above }))
}

/// File systems over a network or in user space do not keep what a sync has promised, or do
/// not lock: (magic number in `statfs`, name).
const FOREIGN: [(u32, &str); 7] = [
    (0x6969, "NFS"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    (0x517b, "SMB"),
    (0x6573_5546, "FUSE"),
    (0x0102_1997, "9P"),
    (0x00c3_6400, "Ceph"),
];

/// Lies in a store whose owner wants it on such a file system all the same.
const ANY_FILE_SYSTEM: &str = "any-file-system";

fn check_file_system(path: &Path) -> Result<(), StoreError> {
    let found = rustix::fs::statfs(path).map_err(|error| StoreError::io("look at", path)(error.into()))?;
    match FOREIGN.iter().find(|(foreign, _)| i128::from(*foreign) == i128::from(found.f_type)) {
        Some((_, kind)) if !path.join(ANY_FILE_SYSTEM).exists() => {
            Err(StoreError::FileSystem { path: path.to_owned(), kind })
        }
        _ => Ok(()),
    }
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let name = path.join("lock");
    let open = || OpenOptions::new().create(true).truncate(false).write(true).open(&name);
    let file = open().map_err(StoreError::io("open", &name))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::Locked(path.to_owned())),
        Err(error) => Err(StoreError::io("lock", name)(error.into())),
    }
}

/// Makes an empty directory a store.
fn found(path: &Path, realm: RealmId) -> Result<(), StoreError> {
    for entry in fs::read_dir(path).map_err(StoreError::io("list", path))? {
        let name = entry.map_err(StoreError::io("list", path))?.file_name();
        // What an interrupted founding leaves, and what comes with a fresh disk.
        if !["lock", "lost+found", "tmp", ANY_FILE_SYSTEM].iter().chain(&ROOMS).any(|&known| name == known) {
            return Err(StoreError::NotAStore(path.to_owned()));
        }
    }
    for room in ROOMS {
        fs::create_dir_all(path.join(room)).map_err(StoreError::io("create", path.join(room)))?;
    }
    sync_directory(path).map_err(StoreError::io("sync", path))?;
    // The mark comes last: a directory that has it has all the rest.
    let mark = format!("vsync-store {FORMAT}\nrealm {realm}\n");
    Room::open(path.to_owned(), Health::default())?.write(
        Path::new(VERSION_FILE),
        &mut [IoSlice::new(mark.as_bytes())],
        Cached::Kept,
    )?;
    fs::remove_dir(path.join("tmp")).map_err(StoreError::io("remove", path.join("tmp")))
}

fn check_mark(path: &Path, mark: &str, wanted: RealmId) -> Result<(), StoreError> {
    let not_a_store = || StoreError::NotAStore(path.to_owned());
    let mut lines = mark.lines();
    let version = lines.next().and_then(|line| line.strip_prefix("vsync-store ")).ok_or_else(not_a_store)?;
    let found: u32 = version.parse().map_err(|_| not_a_store())?;
    if found > FORMAT {
        return Err(StoreError::Newer { path: path.to_owned(), found, known: FORMAT });
    }
    let realm = lines.next().and_then(|line| line.strip_prefix("realm ")).ok_or_else(not_a_store)?;
    let found: RealmId = realm.parse().map_err(|_| not_a_store())?;
    if found == wanted { Ok(()) } else { Err(StoreError::OtherRealm { path: path.to_owned(), found, wanted }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REALM: RealmId = RealmId::from_bytes([1; 16]);

    #[test]
    fn one_process_one_realm_one_format() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let home = Home::open(&path, REALM).unwrap();
        let mark = fs::read_to_string(path.join(VERSION_FILE)).unwrap();
        assert_eq!(mark, "vsync-store 1\nrealm 01010101010101010101010101010101\n");
        assert!(matches!(Home::open(&path, REALM), Err(StoreError::Locked(_))));
        drop(home);
        drop(Home::open(&path, REALM).unwrap());
        let other = Home::open(&path, RealmId::from_bytes([2; 16]));
        assert!(matches!(other, Err(StoreError::OtherRealm { found: REALM, .. })));
        fs::write(path.join(VERSION_FILE), format!("vsync-store {}\nrealm {REALM}\n", FORMAT + 1)).unwrap();
        assert!(matches!(Home::open(&path, REALM), Err(StoreError::Newer { found, .. }) if found == FORMAT + 1));
    }

    #[test]
    fn a_directory_with_other_things_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.tex"), "").unwrap();
        assert!(matches!(Home::open(dir.path(), REALM), Err(StoreError::NotAStore(_))));
    }
}
