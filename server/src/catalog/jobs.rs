//! What agents told of their work. Nothing depends on it: it is for people.

use std::path::Path;

use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, Transaction, params, params_from_iter};
use vsync_protocol::id::{JobId, MachineName, SnapshotId, VolumeName};
use vsync_protocol::wire::{JobKind, JobListing, JobRecord, JobResult, JobStart, Outcome};

use super::read::unsigned;
use super::{Catalog, CatalogError};

/// Jobs kept of one machine, so that no machine can push out what others told.
const MAX_JOBS_EACH: u32 = 20_000;

/// What a job takes in a reply besides its texts, at most.
const JOB_OVERHEAD: usize = 200;

/// Exit codes of agents that mean something here: see README.md.
pub(super) const EXIT_DAMAGE: i64 = 13;
const EXIT_INTERRUPTED: i64 = 130;

/// The last of the outcomes, in the order of their codes, of a job that came to something.
pub(super) const LAST_GOOD: i64 = outcome_code(Outcome::Defects);

/// Why a job that nobody reported the end of counts as ended.
const LOST: &str = "it never ended: the agent was killed, or its connection was lost";

/// `lost` marks an end that the server noted by itself. A job is known by its machine and the
/// id that the machine chose.
pub(super) const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS jobs (
        number INTEGER PRIMARY KEY,
        id BLOB NOT NULL CHECK (length(id) = 16),
        kind INTEGER NOT NULL,
        machine TEXT NOT NULL,
        source TEXT NOT NULL,
        volume TEXT NOT NULL,
        version TEXT NOT NULL,
        started INTEGER NOT NULL,
        ended INTEGER,
        lost INTEGER NOT NULL DEFAULT 0,
        outcome INTEGER,
        code INTEGER NOT NULL DEFAULT 0,
        message TEXT NOT NULL DEFAULT '',
        read INTEGER NOT NULL DEFAULT 0,
        sent INTEGER NOT NULL DEFAULT 0,
        stored INTEGER NOT NULL DEFAULT 0,
        size INTEGER NOT NULL DEFAULT 0,
        files INTEGER NOT NULL DEFAULT 0,
        defects INTEGER NOT NULL DEFAULT 0,
        duration INTEGER NOT NULL DEFAULT 0,
        held INTEGER,
        snapshot BLOB,
        UNIQUE (machine, id)
    ) STRICT;
    CREATE INDEX IF NOT EXISTS jobs_of_machine ON jobs (machine, number);
    CREATE INDEX IF NOT EXISTS jobs_of_volume ON jobs (source, volume, kind, number);
    CREATE INDEX IF NOT EXISTS jobs_by_start ON jobs (started);
    CREATE INDEX IF NOT EXISTS jobs_under_way ON jobs (number) WHERE ended IS NULL;
    CREATE INDEX IF NOT EXISTS jobs_by_snapshot ON jobs (snapshot, machine) WHERE snapshot IS NOT NULL;
";

pub(super) const COLUMNS: &str = "number, id, kind, machine, source, volume, started, ended, version, outcome, code, message, \
                       read, sent, stored, size, files, defects, duration, held, snapshot, lost";

/// What is to be recorded of a job's beginning.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// What the agent said.
    pub start: JobStart,
    /// The machine that it runs on.
    pub machine: MachineName,
    /// When, in milliseconds since 1970 by the server's clock.
    pub at: i64,
    /// Jobs that began before this are given up; none while the clock is in doubt.
    pub oldest: Option<i64>,
}

/// Jobs of a catalog that is being replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// How many were taken over.
    pub jobs: u64,
    /// Whether there may have been more, which could not be read.
    pub lost: bool,
}

impl Catalog {
    /// Records that a job began, or that it is still under way.
    ///
    /// # Errors
    /// When it is not recorded.
    pub fn begin_job(&self, job: NewJob) -> Result<(), CatalogError> {
        let begun = self.write("record a job", move |t| begin(t, &job));
        self.content.forget();
        begun
    }

    /// Records what came of a job of `machine`; false if it has no such job.
    ///
    /// # Errors
    /// When it is not recorded.
    pub fn end_job(&self, machine: MachineName, id: JobId, result: JobResult, at: i64) -> Result<bool, CatalogError> {
        let ended = self.write("record a job's end", move |t| end(t, &machine, id, result, at));
        self.content.forget();
        ended
    }

    /// Records that nobody will report the end of these jobs.
    ///
    /// # Errors
    /// When it is not recorded.
    pub fn lose_jobs(&self, jobs: Vec<(MachineName, JobId)>, at: i64) -> Result<(), CatalogError> {
        self.write("record lost jobs", move |t| {
            let mut lose = t.prepare_cached(
                "UPDATE jobs SET ended = ?1, lost = 1, outcome = ?2, code = ?3, message = ?4
                 WHERE machine = ?5 AND id = ?6 AND ended IS NULL",
            )?;
            let outcome = outcome_code(Outcome::Interrupted);
            let mut lose = |(machine, id): &(MachineName, JobId)| {
                lose.execute(params![at, outcome, EXIT_INTERRUPTED, LOST, machine.as_str(), id.as_bytes()])
            };
            jobs.iter().try_for_each(|job| lose(job).map(drop))
        })
    }

    /// The same for all that are under way: the server was not there to hear of their end.
    ///
    /// # Errors
    /// When it is not recorded.
    pub fn lose_all_jobs(&self, at: i64) -> Result<(), CatalogError> {
        let open = self.read("find jobs under way", |reader| {
            reader.prepare("SELECT 1 FROM jobs WHERE ended IS NULL LIMIT 1")?.exists([])
        })?;
        // Who starts after an orderly end waits for no disk.
        if !open {
            return Ok(());
        }
        self.write("record lost jobs", move |t| {
            t.execute(
                "UPDATE jobs SET ended = ?1, lost = 1, outcome = ?2, code = ?3, message = ?4 WHERE ended IS NULL",
                params![at, outcome_code(Outcome::Interrupted), EXIT_INTERRUPTED, LOST],
            )
            .map(drop)
        })
    }

    /// A page of jobs, newest first, with at most `budget` bytes but at least one; those of
    /// `machine` alone if it is given.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn jobs(
        &self,
        listing: &JobListing,
        machine: Option<&MachineName>,
        budget: usize,
    ) -> Result<Vec<JobRecord>, CatalogError> {
        self.read("list jobs", |reader| list(reader, listing, machine, budget))
    }

    /// Takes over the jobs of the catalog at `old`, as far as they can be read.
    ///
    /// # Errors
    /// When they cannot be recorded here.
    pub fn adopt_jobs(&self, old: &Path) -> Result<Adopted, CatalogError> {
        let mut rows = Vec::new();
        let read = read_all(old, &mut rows);
        if let Err(error) = &read {
            tracing::warn!("the record of jobs cannot be read in full from {}: {error}", old.display());
        }
        let adopted = Adopted { jobs: rows.len() as u64, lost: read.is_err() };
        let taken = self.write("take over jobs", move |t| {
            let places: Vec<String> = (1..=COLUMNS.split(',').count()).map(|place| format!("?{place}")).collect();
            let mut insert =
                t.prepare(&format!("INSERT OR IGNORE INTO jobs ({COLUMNS}) VALUES ({})", places.join(", ")))?;
            rows.into_iter().try_for_each(|row| insert.execute(params_from_iter(row)).map(drop))
        });
        self.content.forget();
        taken?;
        Ok(adopted)
    }
}

/// Everything that is read before the first error stays in `rows`.
fn read_all(old: &Path, rows: &mut Vec<Vec<Value>>) -> rusqlite::Result<()> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let reader = Connection::open_with_flags(old, flags)?;
    // A catalog that never had the table has lost nothing.
    if !reader.prepare("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'jobs'")?.exists([])? {
        return Ok(());
    }
    let mut statement = reader.prepare(&format!("SELECT {COLUMNS} FROM jobs ORDER BY number"))?;
    let columns = statement.column_count();
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        // Only what could be listed later: damage may have left anything.
        job(row)?;
        rows.push((0..columns).map(|column| row.get(column)).collect::<rusqlite::Result<_>>()?);
    }
    Ok(())
}

fn begin(t: &Transaction<'_>, job: &NewJob) -> rusqlite::Result<()> {
    let NewJob { start, machine, at, oldest } = job;
    t.prepare_cached(
        "INSERT INTO jobs (id, kind, machine, source, volume, version, started) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (machine, id) DO UPDATE SET ended = NULL, lost = 0, outcome = NULL, code = 0, message = ''
         WHERE lost = 1",
    )?
    .execute(params![
        start.id.as_bytes(),
        kind_code(start.kind),
        machine.as_str(),
        start.source.as_ref().unwrap_or(machine).as_str(),
        start.volume.as_str(),
        start.version,
        at,
    ])?;
    t.prepare_cached(
        "DELETE FROM jobs WHERE machine = ?1 AND number <=
         (SELECT number FROM jobs WHERE machine = ?1 ORDER BY number DESC LIMIT 1 OFFSET ?2)",
    )?
    .execute(params![machine.as_str(), MAX_JOBS_EACH])?;
    if let Some(oldest) = oldest {
        t.prepare_cached("DELETE FROM jobs WHERE started < ?1")?.execute([oldest])?;
    }
    Ok(())
}

fn end(t: &Transaction<'_>, machine: &MachineName, id: JobId, result: JobResult, at: i64) -> rusqlite::Result<bool> {
    let found = t
        .prepare_cached(&format!("SELECT {COLUMNS} FROM jobs WHERE machine = ?1 AND id = ?2"))?
        .query_row(params![machine.as_str(), id.as_bytes()], |row| Ok((job(row)?, row.get::<_, bool>("lost")?)))
        .optional()?;
    let Some((known, lost)) = found else { return Ok(false) };
    // An end that the server only supposed gives way to the agent's word.
    let (result, at) = match (known.result, known.ended) {
        (Some(first), Some(ended)) if !lost => (first.and(result), ended),
        _ => (result, at),
    };
    t.prepare_cached(
        "UPDATE jobs SET ended = ?3, lost = 0, outcome = ?4, code = ?5, message = ?6, read = ?7, sent = ?8, stored = ?9,
         size = ?10, files = ?11, defects = ?12, duration = ?13, held = ?14, snapshot = ?15
         WHERE machine = ?1 AND id = ?2",
    )?
    .execute(params![
        machine.as_str(),
        id.as_bytes(),
        at,
        outcome_code(result.outcome),
        result.code,
        result.message,
        signed(result.read),
        signed(result.sent),
        signed(result.stored),
        signed(result.size),
        signed(result.files),
        signed(result.defects),
        signed(result.duration),
        result.held.map(signed),
        result.snapshot.as_ref().map(SnapshotId::as_bytes),
    ])?;
    Ok(true)
}

fn list(
    reader: &Connection,
    listing: &JobListing,
    machine: Option<&MachineName>,
    budget: usize,
) -> rusqlite::Result<Vec<JobRecord>> {
    let before = listing.before.and_then(|before| i64::try_from(before).ok()).unwrap_or(i64::MAX);
    let mut values = vec![Value::from(before), Value::from(listing.limit)];
    let mut query = format!("SELECT {COLUMNS} FROM jobs WHERE number < ?1");
    let text = |text: &str| Value::from(text.to_owned());
    for (column, value) in [
        ("volume", listing.volume.as_ref().map(|volume| text(volume.as_str()))),
        ("source", listing.source.as_ref().map(|source| text(source.as_str()))),
        ("kind", listing.kind.map(|kind| Value::from(kind_code(kind)))),
        ("machine", machine.map(|machine| text(machine.as_str()))),
    ] {
        if let Some(value) = value {
            values.push(value);
            query += &format!(" AND {column} = ?{}", values.len());
        }
    }
    query += " ORDER BY number DESC LIMIT ?2";
    let mut statement = reader.prepare_cached(&query)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let (mut page, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let job = job(row)?;
        let names = job.machine.as_str().len() + job.source.as_str().len() + job.volume.as_str().len();
        bytes += JOB_OVERHEAD + names + job.version.len() + job.result.as_ref().map_or(0, |it| it.message.len());
        if bytes > budget && !page.is_empty() {
            break;
        }
        page.push(job);
    }
    Ok(page)
}

pub(super) fn job(row: &Row<'_>) -> rusqlite::Result<JobRecord> {
    let name = |column: usize| row.get::<_, String>(column);
    let foreign = |column| rusqlite::Error::IntegralValueOutOfRange(column, 0);
    Ok(JobRecord {
        number: unsigned(row, 0)?,
        id: JobId::from_bytes(row.get(1)?),
        kind: kind_of(row.get(2)?).ok_or_else(|| foreign(2))?,
        machine: name(3)?.parse().map_err(|_| foreign(3))?,
        source: name(4)?.parse().map_err(|_| foreign(4))?,
        volume: name(5)?.parse::<VolumeName>().map_err(|_| foreign(5))?,
        started: row.get(6)?,
        ended: row.get(7)?,
        version: row.get(8)?,
        result: match row.get::<_, Option<i64>>(9)? {
            None => None,
            Some(code) => Some(result(row, outcome_of(code).ok_or_else(|| foreign(9))?)?),
        },
    })
}

fn result(row: &Row<'_>, outcome: Outcome) -> rusqlite::Result<JobResult> {
    Ok(JobResult {
        outcome,
        code: row.get(10)?,
        message: row.get(11)?,
        read: unsigned(row, 12)?,
        sent: unsigned(row, 13)?,
        stored: unsigned(row, 14)?,
        size: unsigned(row, 15)?,
        files: unsigned(row, 16)?,
        defects: unsigned(row, 17)?,
        duration: unsigned(row, 18)?,
        held: row.get::<_, Option<i64>>(19)?.map(|_| unsigned(row, 19)).transpose()?,
        snapshot: row.get::<_, Option<[u8; SnapshotId::LEN]>>(20)?.map(SnapshotId::from_bytes),
    })
}

/// Bounded long before; what is still too large is the largest.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) const fn kind_code(kind: JobKind) -> i64 {
    match kind {
        JobKind::Backup => 0,
        JobKind::Restore => 1,
        JobKind::Verify => 2,
    }
}

fn kind_of(code: i64) -> Option<JobKind> {
    JobKind::ALL.into_iter().find(|kind| kind_code(*kind) == code)
}

pub(super) const fn outcome_code(outcome: Outcome) -> i64 {
    match outcome {
        Outcome::Success => 0,
        Outcome::Defects => 1,
        Outcome::Interrupted => 2,
        Outcome::Failed => 3,
    }
}

fn outcome_of(code: i64) -> Option<Outcome> {
    let all = [Outcome::Success, Outcome::Defects, Outcome::Interrupted, Outcome::Failed];
    all.into_iter().find(|outcome| outcome_code(*outcome) == code)
}
