//! What is done to containers, written down before it is done.
//!
//! One file for each hold, in `holds/` of the state directory. Its owner keeps it locked for as long as it lives, so a
//! record that can be locked is one whose owner was killed: no process id is trusted, and none is reused.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::error::QuiesceError;
use super::plan::Step;
use crate::durable::{Draft, Existing};

/// Changes when older versions would misunderstand a record.
const VERSION: u32 = 1;

/// One hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The version of this format.
    pub version: u32,
    /// The engine's id.
    pub engine: String,
    /// Its address, for people.
    pub host: String,
    /// The process that holds, for people.
    pub process: u32,
    /// The volume.
    pub volume: String,
    /// When the hold began, milliseconds since 1970 by this machine's clock.
    pub at: i64,
    /// What is done, in order.
    pub steps: Vec<Step>,
}

impl Record {
    pub(super) fn new(engine: String, host: &str, volume: String, steps: Vec<Step>) -> Self {
        let process = std::process::id();
        Self {
            version: VERSION,
            engine,
            host: host.to_owned(),
            process,
            volume,
            at: Timestamp::now().as_millisecond(),
            steps,
        }
    }
}

/// Where this machine writes down what it does to containers.
#[derive(Clone, Debug)]
pub struct Ledger {
    directory: PathBuf,
}

/// A record on the disk that this process owns.
#[derive(Debug)]
pub(super) struct Entry {
    path: PathBuf,
    pub(super) record: Record,
    /// Keeps the lock.
    file: File,
}

/// Keeps others from planning at the same time.
pub(super) struct Turn(#[expect(dead_code, reason = "the lock goes with the file")] File);

impl Ledger {
    /// The ledger below a state directory.
    #[must_use]
    pub fn below(state_dir: &Path) -> Self {
        Self { directory: state_dir.join("holds") }
    }

    fn error(path: &Path) -> impl FnOnce(io::Error) -> QuiesceError {
        let path = path.to_owned();
        move |source| QuiesceError::Record { path, source }
    }

    /// Waits until nobody else plans.
    pub(super) fn turn(&self) -> Result<Turn, QuiesceError> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&self.directory).map_err(Self::error(&self.directory))?;
        let path = self.directory.join("lock");
        let open = || {
            let file = File::options().create(true).write(true).truncate(false).mode(0o600).open(&path)?;
            file.lock().map(|()| Turn(file))
        };
        open().map_err(Self::error(&path))
    }

    /// Writes a record: when this returns, a power cut does not lose it.
    pub(super) fn write(&self, record: Record) -> Result<Entry, QuiesceError> {
        let number = getrandom::u32().unwrap_or_default();
        let path = self.directory.join(format!("{}-{number:08x}.json", record.process));
        let file = put(&path, &record).map_err(Self::error(&path))?;
        Ok(Entry { path, record, file })
    }

    /// Records of holds whose owner lives: this process, or another.
    pub(super) fn live(&self) -> Vec<Record> {
        self.look(|path, mut file| match file.try_lock() {
            Err(TryLockError::WouldBlock) => read(path, &mut file),
            _ => None,
        })
    }

    /// Records whose owner was killed. They are ours now.
    pub(super) fn abandoned(&self) -> Vec<Entry> {
        self.look(|path, mut file| {
            file.try_lock().ok()?;
            // Its owner may have removed it between our opening and our locking.
            let linked = file.metadata().is_ok_and(|metadata| metadata.nlink() > 0);
            let record = read(path, &mut file).filter(|_| linked)?;
            Some(Entry { path: path.to_owned(), record, file })
        })
    }

    /// Whether there is any record at all, so that an engine need not be asked for nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.look(|_, _| Some(())).is_empty()
    }

    fn look<T>(&self, mut each: impl FnMut(&Path, File) -> Option<T>) -> Vec<T> {
        // No directory: nothing was ever held.
        let Ok(entries) = fs::read_dir(&self.directory) else { return Vec::new() };
        let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
        paths.sort();
        paths.iter().filter_map(|path| each(path, File::options().read(true).write(true).open(path).ok()?)).collect()
    }
}

fn put(path: &Path, record: &Record) -> io::Result<File> {
    let mut draft = Draft::of(path, 0o600)?;
    // Locked before anybody can find it.
    draft.file.lock()?;
    draft.file.write_all(&serde_json::to_vec_pretty(record)?)?;
    draft.publish(Existing::Replace)
}

fn read(path: &Path, file: &mut File) -> Option<Record> {
    let mut text = String::new();
    let record = file.read_to_string(&mut text).and_then(|_| Ok(serde_json::from_str::<Record>(&text)?));
    match record {
        Ok(record) if record.version == VERSION => Some(record),
        Ok(_) => {
            tracing::error!("{} was written by another version of vsync; undo it with that one", path.display());
            None
        }
        Err(error) => {
            tracing::error!("{} cannot be understood ({error}): look at it, and at `docker ps -a`", path.display());
            None
        }
    }
}

impl Entry {
    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Everything is undone.
    pub(super) fn remove(self) {
        // While it is still locked, so that nobody takes it for abandoned.
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::error!("cannot remove {} ({error}): remove it by hand", self.path.display());
        }
        drop(self.file);
    }

    /// Says something else from now on.
    pub(super) fn rewrite(&mut self, steps: Vec<Step>) -> Result<(), QuiesceError> {
        self.record.steps = steps;
        self.file = put(&self.path, &self.record).map_err(Ledger::error(&self.path))?;
        Ok(())
    }

    /// Only `steps` are still to be undone.
    pub(super) fn keep(mut self, steps: Vec<Step>) {
        if let Err(error) = self.rewrite(steps) {
            // What it says is still right, only more than is needed.
            tracing::warn!("{error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(volume: &str) -> Record {
        Record::new("engine".into(), "unix:///x", volume.into(), Vec::new())
    }

    fn names(records: &[Record]) -> Vec<&str> {
        records.iter().map(|record| record.volume.as_str()).collect()
    }

    #[test]
    fn a_record_is_alive_as_long_as_its_owner() {
        let state = tempfile::tempdir().unwrap();
        let ledger = Ledger::below(state.path());
        assert!(ledger.is_empty() && ledger.abandoned().is_empty());
        drop(ledger.turn().unwrap());
        let entry = ledger.write(record("data")).unwrap();
        assert_eq!(names(&ledger.live()), ["data"]);
        assert!(ledger.abandoned().is_empty());

        // Its owner is killed: the lock goes, the file stays.
        drop(entry);
        assert!(ledger.live().is_empty());
        let mut abandoned = ledger.abandoned();
        assert_eq!(abandoned.len(), 1);
        assert!(ledger.abandoned().is_empty(), "two do not undo the same");
        let found = abandoned.pop().unwrap();
        assert_eq!(found.record.volume, "data");
        assert!(found.path().starts_with(state.path()));
        found.remove();
        assert!(ledger.is_empty());
    }

    #[test]
    fn what_is_left_to_undo_is_kept() {
        let state = tempfile::tempdir().unwrap();
        let ledger = Ledger::below(state.path());
        drop(ledger.turn().unwrap());
        let step = |name: &str| Step {
            id: name.into(),
            name: name.into(),
            started_at: "then".into(),
            action: None,
            pre: None,
            post: None,
        };
        let entry = ledger.write(Record { steps: vec![step("a"), step("b")], ..record("data") }).unwrap();
        entry.keep(vec![step("b")]);
        assert_eq!(ledger.abandoned()[0].record.steps, [step("b")]);
    }

    #[test]
    fn a_record_that_cannot_be_understood_is_left_where_it_is() {
        let state = tempfile::tempdir().unwrap();
        let ledger = Ledger::below(state.path());
        drop(ledger.turn().unwrap());
        let path = state.path().join("holds/1-2.json");
        let newer = serde_json::to_string(&Record { version: 9, ..record("data") }).unwrap();
        for text in ["", "{}", newer.as_str()] {
            fs::write(&path, text).unwrap();
            assert!(ledger.abandoned().is_empty() && path.exists(), "{text}");
        }
    }
}
