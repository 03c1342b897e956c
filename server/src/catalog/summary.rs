//! What the record of jobs says of a volume.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension, Row, params};
use vsync_protocol::id::{MachineName, SnapshotId};
use vsync_protocol::wire::{JobKind, JobRecord, Outcome};

use super::jobs::{COLUMNS, EXIT_DAMAGE, LAST_GOOD, job, kind_code, outcome_code};
use super::read::unsigned;
use super::{Catalog, CatalogError, Group};

const BACKUP: i64 = kind_code(JobKind::Backup);

/// What happened to a volume on one day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Day {
    /// When the day began in UTC, in milliseconds since 1970.
    pub begins: i64,
    /// Snapshots of that day that are not forgotten.
    pub snapshots: u64,
    /// Backups that came to something.
    pub good: u64,
    /// Backups that did not.
    pub failed: u64,
    /// Bytes of content in the largest of them.
    pub size: u64,
    /// Bytes that the store grew by.
    pub stored: u64,
    /// Bytes that were read.
    pub read: u64,
    /// Milliseconds that those backups took which came to something.
    pub duration: u64,
}

/// A number that takes work in proportion to history, and is the same until history goes on.
#[derive(Default)]
pub(super) struct Remembered(Mutex<(u64, Option<u64>)>);

impl Remembered {
    /// To be called after each change, whether it was made or not.
    pub(super) fn forget(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = (state.0 + 1, None);
    }

    fn get<E>(&self, work_out: impl FnOnce() -> Result<u64, E>) -> Result<u64, E> {
        let (changes, known) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known {
            return Ok(known);
        }
        let number = work_out()?;
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // What changed meanwhile may be in it or not.
        if state.0 == changes {
            state.1 = Some(number);
        }
        Ok(number)
    }
}

impl Catalog {
    /// The last backups of `group` that came to something, newest first, at most `limit`.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn good_backups(&self, group: &Group, limit: usize) -> Result<Vec<JobRecord>, CatalogError> {
        self.read("list good backups", |reader| {
            let query = format!(
                "SELECT {COLUMNS} FROM jobs WHERE source = ?1 AND volume = ?2 AND kind = ?3 AND outcome <= ?4
                 ORDER BY number DESC LIMIT ?5"
            );
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let found = params![group.source.as_str(), group.volume.as_str(), BACKUP, LAST_GOOD, limit];
            reader.prepare_cached(&query)?.query_map(found, job)?.collect()
        })
    }

    /// What happened to `group` on each day since `since`, oldest first, without the days on
    /// which nothing did.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn days(&self, group: &Group, since: i64) -> Result<Vec<Day>, CatalogError> {
        self.read("look at a volume's days", |reader| days(reader, group, since))
    }

    /// How many backups of `group` came to nothing after job `number` and after the time
    /// `since`, and the last of them.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn failed_backups(
        &self,
        group: &Group,
        number: u64,
        since: i64,
    ) -> Result<(u64, Option<JobRecord>), CatalogError> {
        let condition = "FROM jobs WHERE source = ?1 AND volume = ?2 AND kind = ?3 AND number > ?4
                         AND outcome > ?5 AND started >= ?6";
        let after = i64::try_from(number).unwrap_or(i64::MAX);
        let values = params![group.source.as_str(), group.volume.as_str(), BACKUP, after, LAST_GOOD, since];
        self.read("count failed backups", |reader| {
            let count = reader
                .prepare_cached(&format!("SELECT count(*) {condition}"))?
                .query_row(values, |row| unsigned(row, 0))?;
            let last = reader
                .prepare_cached(&format!("SELECT {COLUMNS} {condition} ORDER BY number DESC LIMIT 1"))?
                .query_row(values, job)
                .optional()?;
            Ok((count, last))
        })
    }

    /// Since when a backup of `group` is under way, if one is.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn running_backup(&self, group: &Group) -> Result<Option<i64>, CatalogError> {
        self.read("find a running backup", |reader| {
            reader
                .prepare_cached(
                    "SELECT started FROM jobs INDEXED BY jobs_under_way
                     WHERE ended IS NULL AND source = ?1 AND volume = ?2 AND kind = ?3 ORDER BY number DESC LIMIT 1",
                )?
                .query_row(params![group.source.as_str(), group.volume.as_str(), BACKUP], |row| row.get(0))
                .optional()
        })
    }

    /// The last restore or verification of `group` that says something about its snapshots:
    /// one that was done, or that found damage.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn last_use(&self, group: &Group, kind: JobKind) -> Result<Option<JobRecord>, CatalogError> {
        self.read("find the last use of snapshots", |reader| {
            let query = format!(
                "SELECT {COLUMNS} FROM jobs WHERE source = ?1 AND volume = ?2 AND kind = ?3
                 AND (outcome <= ?4 OR outcome = ?5 AND code = ?6) ORDER BY number DESC LIMIT 1"
            );
            let (failed, kind) = (outcome_code(Outcome::Failed), kind_code(kind));
            let found = params![group.source.as_str(), group.volume.as_str(), kind, LAST_GOOD, failed, EXIT_DAMAGE];
            reader.prepare_cached(&query)?.query_row(found, job).optional()
        })
    }

    /// The backup of `machine` that made `snapshot`, if it told of it.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn backup_of(&self, snapshot: SnapshotId, machine: &MachineName) -> Result<Option<JobRecord>, CatalogError> {
        self.read("find a snapshot's backup", |reader| {
            let query =
                format!("SELECT {COLUMNS} FROM jobs WHERE snapshot = ?1 AND machine = ?2 AND kind = ?3 LIMIT 1");
            let found = params![snapshot.as_bytes(), machine.as_str(), BACKUP];
            reader.prepare_cached(&query)?.query_row(found, job).optional()
        })
    }

    /// Bytes of content in all snapshots that are not forgotten and whose backup told its size. They are added up anew
    /// only after something has changed.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn content(&self) -> Result<u64, CatalogError> {
        self.content.get(|| self.add_up())
    }

    fn add_up(&self) -> Result<u64, CatalogError> {
        self.read("add up sizes", |reader| {
            let mut sizes = reader.prepare_cached(
                "SELECT (SELECT size FROM jobs WHERE snapshot = substr(hash, 1, ?2) AND machine = snapshots.source
                         AND kind = ?1 LIMIT 1)
                 FROM snapshots WHERE forgotten IS NULL",
            )?;
            // Not by SQL, whose sums overflow.
            let sizes = sizes.query_map([BACKUP, SnapshotId::LEN as i64], |row| row.get::<_, Option<i64>>(0))?;
            sizes
                .into_iter()
                .try_fold(0_u64, |sum, size| Ok(sum.saturating_add(u64::try_from(size?.unwrap_or(0)).unwrap_or(0))))
        })
    }
}

/// Milliseconds of a day.
const DAY: i64 = 24 * 3_600_000;

fn days(reader: &Connection, group: &Group, since: i64) -> rusqlite::Result<Vec<Day>> {
    let mut days: BTreeMap<i64, Day> = BTreeMap::new();
    let mut of = |at: i64, add: &dyn Fn(&mut Day)| {
        let begins = at.saturating_sub(at.rem_euclid(DAY));
        let empty = Day { begins, snapshots: 0, good: 0, failed: 0, size: 0, stored: 0, read: 0, duration: 0 };
        add(days.entry(begins).or_insert(empty));
    };
    let values = params![group.source.as_str(), group.volume.as_str(), since];
    let mut snapshots = reader.prepare_cached(
        "SELECT received FROM snapshots WHERE source = ?1 AND volume = ?2 AND forgotten IS NULL AND received >= ?3",
    )?;
    for at in snapshots.query_map(values, |row| row.get(0))? {
        of(at?, &|day| day.snapshots += 1);
    }
    let mut jobs = reader.prepare_cached(
        "SELECT started, outcome <= ?4, size, stored, read, duration FROM jobs
         WHERE source = ?1 AND volume = ?2 AND kind = ?5 AND started >= ?3 AND outcome IS NOT NULL",
    )?;
    let values = params![group.source.as_str(), group.volume.as_str(), since, LAST_GOOD, BACKUP];
    let job = |row: &Row<'_>| {
        let [size, stored, read, duration] = [2, 3, 4, 5].map(|column| unsigned(row, column));
        Ok((row.get(0)?, row.get::<_, bool>(1)?, [size?, stored?, read?, duration?]))
    };
    for found in jobs.query_map(values, job)? {
        let (at, good, [size, stored, read, duration]) = found?;
        of(at, &|day| {
            if good {
                day.read = day.read.saturating_add(read);
                day.duration = day.duration.saturating_add(duration);
            }
            day.good += u64::from(good);
            day.failed += u64::from(!good);
            day.size = day.size.max(size);
            day.stored = day.stored.saturating_add(stored);
        });
    }
    Ok(days.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_worked_out_once_for_each_change() {
        let remembered = Remembered::default();
        let mut times = 0;
        let mut ask = |remembered: &Remembered| {
            remembered.get(|| {
                times += 1;
                Ok::<_, ()>(times)
            })
        };
        assert_eq!([ask(&remembered), ask(&remembered)], [Ok(1), Ok(1)]);
        remembered.forget();
        assert_eq!([ask(&remembered), ask(&remembered)], [Ok(2), Ok(2)]);
        // A change while it is worked out: nobody knows whether it is in it.
        remembered.forget();
        let during = remembered.get(|| {
            remembered.forget();
            Ok::<_, ()>(7)
        });
        assert_eq!((during, ask(&remembered)), (Ok(7), Ok(3)));
        assert_eq!(remembered.get(|| Err("cannot")), Ok(3));
        remembered.forget();
        assert_eq!(remembered.get(|| Err("cannot")), Err("cannot"));
    }
}
