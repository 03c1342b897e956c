//! Files that are replaced whole: whatever happens, and be it a power cut, there is the old content or the new.
//!
//! The order is what makes it so. The new content is written under another name and synced: a
//! name must never stand for content that is not on disk yet. Then it is renamed, which is one
//! step for everybody who looks. Then the directory is synced, since until then the rename itself
//! may be lost: only now may one rely on the new content being what comes back.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

/// What to do where a file is already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Leave it and fail. For everything that cannot be made again.
    Refuse,
    /// Put the new one in its place.
    Replace,
}

/// Replaces the file at `path`; a new one gets `mode`.
pub(crate) fn replace(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let mut draft = Draft::of(path, mode)?;
    draft.file.write_all(content)?;
    draft.publish(Existing::Replace).map(drop)
}

/// What a file will have in it, under another name until it is whole. One that is dropped is removed.
#[derive(Debug)]
pub(crate) struct Draft {
    /// Where to write it.
    pub(crate) file: File,
    named: Named,
    path: PathBuf,
}

/// The name of a draft; it goes with this.
#[derive(Debug)]
struct Named(PathBuf);

impl Drop for Named {
    fn drop(&mut self) {
        // Once published, it is not there any more.
        let _ = fs::remove_file(&self.0);
    }
}

impl Draft {
    /// Begins a new version of the file at `path`, with these permission bits.
    pub(crate) fn of(path: &Path, mode: u32) -> io::Result<Self> {
        /// Tells the drafts of one process apart.
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}-{}.partial", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)));
        let named = PathBuf::from(name);
        // What an earlier crash of a process with our number left behind.
        let _ = fs::remove_file(&named);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(&named)?;
        Ok(Self { file, named: Named(named), path: path.to_owned() })
    }

    /// Gives the draft its name, for good when this returns. The file stays open.
    pub(crate) fn publish(self, existing: Existing) -> io::Result<File> {
        self.file.sync_all()?;
        match existing {
            Existing::Replace => fs::rename(&self.named.0, &self.path)?,
            Existing::Refuse => rename_to_new(&self.named.0, &self.path)?,
        }
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or_else(|| Path::new(".")))?.sync_all()?;
        Ok(self.file)
    }
}

fn rename_to_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Some network file systems cannot do it in one step.
        Err(Errno::INVAL | Errno::NOSYS) if !to.try_exists()? => fs::rename(from, to),
        Err(Errno::INVAL | Errno::NOSYS) => Err(io::ErrorKind::AlreadyExists.into()),
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_has_its_old_content_until_it_has_the_new() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        replace(&path, 0o600, b"old").unwrap();
        let mut draft = Draft::of(&path, 0o640).unwrap();
        draft.file.write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(directory.path()).len(), 2);
        draft.publish(Existing::Replace).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        assert_eq!(names(directory.path()), ["file"]);
    }

    #[test]
    fn what_is_given_up_or_refused_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        drop(Draft::of(&path, 0o600).unwrap());
        assert!(names(directory.path()).is_empty());
        Draft::of(&path, 0o600).unwrap().publish(Existing::Refuse).unwrap();
        let refused = Draft::of(&path, 0o600).unwrap().publish(Existing::Refuse).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(names(directory.path()), ["file"]);
        assert!(replace(&directory.path().join("no/file"), 0o600, b"").is_err());
    }

    #[test]
    fn drafts_of_one_file_do_not_get_in_each_other_s_way() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let (mut one, mut other) = (Draft::of(&path, 0o600).unwrap(), Draft::of(&path, 0o600).unwrap());
        one.file.write_all(b"one").unwrap();
        other.file.write_all(b"other").unwrap();
        one.publish(Existing::Replace).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one");
        other.publish(Existing::Replace).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"other");
    }
}
