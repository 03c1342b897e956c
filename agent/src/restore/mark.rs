//! Marks directories that this machine brings, or brought, to the state of snapshots: in them, what a snapshot does
//! not have may be deleted without asking.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::record;
use crate::durable;

/// The mark of one directory. It is kept with the records of restores, and stays.
#[derive(Debug)]
pub(crate) struct Mark {
    path: PathBuf,
    /// Which directory is at the path: another one may take its place, even under its number.
    place: String,
}

impl Mark {
    /// The mark that the directory at `directory` has or gets, among those in `records`.
    ///
    /// # Errors
    /// When there is no such directory.
    pub(crate) fn of(records: &Path, directory: &Path) -> io::Result<Self> {
        let about = fs::metadata(directory)?;
        let born = about.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let name = record::name(directory).ok_or(io::ErrorKind::NotFound)?;
        // A device's number may be another one after a reboot: it counts only where nothing better is known.
        let place = match born.filter(|born| !born.is_zero()) {
            Some(born) => format!("inode {} born {}\n", about.ino(), born.as_nanos()),
            None => format!("inode {} device {}\n", about.ino(), about.dev()),
        };
        Ok(Self { path: records.join(name + ".mark"), place })
    }

    /// Whether the directory has it.
    #[must_use]
    pub(crate) fn is_set(&self) -> bool {
        fs::read_to_string(&self.path).is_ok_and(|place| place == self.place)
    }

    /// Marks the directory.
    ///
    /// # Errors
    /// When the mark cannot be written.
    pub(crate) fn set(&self) -> io::Result<()> {
        if self.is_set() {
            return Ok(());
        }
        let records = self.path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        fs::create_dir_all(records)?;
        // A restore that a power cut ends must find it, and may be the first one of all.
        durable::replace(&self.path, 0o644, self.place.as_bytes())?;
        records.parent().map_or(Ok(()), |above| File::open(above)?.sync_all())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_of_one_directory_and_not_of_the_next_one_at_its_path() {
        let (records, place) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (records, directory) = (records.path().join("new"), place.path().join("d"));
        assert!(Mark::of(&records, &directory).is_err());
        fs::create_dir(&directory).unwrap();
        let mark = || Mark::of(&records, &directory).unwrap();
        assert!(!mark().is_set());
        mark().set().unwrap();
        mark().set().unwrap();
        assert!(mark().is_set());
        assert!(!Mark::of(&records, place.path()).unwrap().is_set());
        fs::rename(&directory, place.path().join("e")).unwrap();
        fs::create_dir(&directory).unwrap();
        assert!(!mark().is_set());
    }
}
