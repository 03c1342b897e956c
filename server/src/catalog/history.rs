//! Snapshots as those see them who forget, pin and bring them back; and the server's clock.

use std::collections::HashSet;
use std::error::Error;
use std::str::FromStr;

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};
use vsync_protocol::id::{MachineName, ManifestHash, SnapshotId, VolumeName};
use vsync_protocol::log::LogEntry;
use vsync_protocol::manifest::{Body, Manifest, ManifestError};

use super::read::unsigned;
use super::{Catalog, CatalogError};
use crate::clock::Kept as KeptTime;

/// A volume from one machine: what retention decides about on its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group {
    /// The machine.
    pub source: MachineName,
    /// The volume.
    pub volume: VolumeName,
}

/// A snapshot with what was decided about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its place in the log.
    pub position: u64,
    /// The manifest's hash.
    pub hash: ManifestHash,
    /// Its volume, and the machine that the data came from.
    pub group: Group,
    /// Its sequence number.
    pub sequence: u64,
    /// When it was received, in milliseconds since 1970 by the server's clock.
    pub received: i64,
    /// The whole manifest.
    pub manifest: Vec<u8>,
    /// Whether it is pinned.
    pub pinned: bool,
    /// Whether it is forgotten.
    pub forgotten: bool,
    /// Whether garbage collection may have removed its data.
    pub collected: bool,
}

impl Known {
    /// The snapshot's id.
    #[must_use]
    pub fn id(&self) -> SnapshotId {
        self.hash.into()
    }

    /// What its manifest says.
    ///
    /// # Errors
    /// When that is no manifest.
    pub fn body(&self) -> Result<Body, ManifestError> {
        Ok(Manifest::parse(&self.manifest)?.body)
    }
}

/// Snapshots, or entries of the log, are read so many, or so many bytes, at a time.
const PAGE: u32 = 16;
const LOG_PAGE: usize = 1 << 20;

const COLUMNS: &str =
    "position, hash, source, volume, sequence, received, manifest, pinned, forgotten IS NOT NULL, collected";

impl Catalog {
    /// All volumes of all machines that have snapshots.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn groups(&self) -> Result<Vec<Group>, CatalogError> {
        self.read("list volumes", groups)
    }

    /// The newest `limit` snapshots of `group` that are not forgotten and stand in the log at
    /// `until` or before, oldest first.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn last_standing(&self, group: &Group, until: u64, limit: u32) -> Result<Vec<Known>, CatalogError> {
        self.read("list a volume's snapshots", |reader| last_standing(reader, group, until, limit))
    }

    /// How many snapshots of `group` are not forgotten, and the newest of them.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn newest(&self, group: &Group) -> Result<(u64, Option<Known>), CatalogError> {
        self.read("find the newest snapshot", |reader| newest(reader, group))
    }

    /// At most `limit` snapshots of all volumes that are not forgotten and stand in the log
    /// after `position`, in the log's order.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn standing_after(&self, position: u64, limit: u32) -> Result<Vec<Known>, CatalogError> {
        self.read("list snapshots", |reader| standing_after(reader, position, limit))
    }

    /// Shows `show` every snapshot that is not forgotten and stands in the log after
    /// `position`, with a few manifests in memory at a time. Returns the place of the last one.
    ///
    /// # Errors
    /// When the catalog cannot be read, or what `show` says.
    pub fn each_standing<E: From<CatalogError>>(
        &self,
        position: u64,
        show: impl FnMut(&Known) -> Result<(), E>,
    ) -> Result<u64, E> {
        let page = |position| self.standing_after(position, PAGE);
        each(position, page, show)
    }

    /// The same for those of `group` alone.
    ///
    /// # Errors
    /// As [`Self::each_standing`].
    pub fn each_standing_of<E: From<CatalogError>>(
        &self,
        group: &Group,
        position: u64,
        show: impl FnMut(&Known) -> Result<(), E>,
    ) -> Result<u64, E> {
        let page = |position| {
            self.read("list a volume's snapshots", |reader| standing_of_after(reader, group, position, PAGE))
        };
        each(position, page, show)
    }

    /// Shows `show` every entry of the log after the first `from`. Returns how many there are.
    ///
    /// # Errors
    /// When the catalog cannot be read, or what `show` says.
    pub fn each_log_entry<E: From<CatalogError>>(
        &self,
        mut from: u64,
        mut show: impl FnMut(LogEntry) -> Result<(), E>,
    ) -> Result<u64, E> {
        loop {
            let page = self.log(from, LOG_PAGE)?;
            if page.is_empty() {
                return Ok(from);
            }
            from += page.len() as u64;
            page.into_iter().try_for_each(&mut show)?;
        }
    }

    /// Snapshots that the log says stand and of which there is nothing else: their manifests
    /// are lost.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn lost_manifests(&self) -> Result<Vec<ManifestHash>, CatalogError> {
        let mut standing = HashSet::new();
        self.each_log_entry(0, |entry| {
            match entry {
                LogEntry::Commit { manifest, .. } | LogEntry::Undelete { manifest, .. } => standing.insert(manifest),
                LogEntry::Forget { manifest, .. } => standing.remove(&manifest),
                LogEntry::Pin { .. } | LogEntry::Unpin { .. } => false,
            };
            Ok::<_, CatalogError>(())
        })?;
        self.read("find lost manifests", |reader| {
            let mut find = reader.prepare_cached("SELECT 1 FROM snapshots WHERE hash = ?1")?;
            let mut lost = Vec::new();
            for manifest in standing {
                if !find.exists([manifest.as_bytes()])? {
                    lost.push(manifest);
                }
            }
            Ok(lost)
        })
    }

    /// The snapshot `id`.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn known(&self, id: SnapshotId) -> Result<Option<Known>, CatalogError> {
        self.read("find a snapshot", |reader| find(reader, id))
    }

    /// What was last kept of the clock.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn time(&self) -> Result<Option<KeptTime>, CatalogError> {
        self.read("read the clock", time)
    }

    /// Keeps `time` for the next start.
    ///
    /// # Errors
    /// When it is not kept.
    pub fn keep_time(&self, time: KeptTime) -> Result<(), CatalogError> {
        self.write("keep the time", move |t| {
            t.execute(
                "INSERT OR REPLACE INTO clock (one, seen, passed, uptime, boot, steady) VALUES (1, ?1, ?2, ?3, ?4, ?5)",
                params![time.seen, time.passed as i64, time.uptime as i64, time.boot, time.steady as i64],
            )
            .map(drop)
        })
    }
}

/// From one to the next by the index `snapshots_in_sequence`: DISTINCT would go through all snapshots.
pub(super) const GROUPS: &str = "
    WITH RECURSIVE sources (source) AS (
        SELECT min(source) FROM snapshots
        UNION ALL
        SELECT (SELECT min(source) FROM snapshots AS next WHERE next.source > sources.source)
        FROM sources WHERE source IS NOT NULL
    ), found (source, volume) AS (
        SELECT source, (SELECT min(volume) FROM snapshots AS next WHERE next.source = sources.source)
        FROM sources WHERE source IS NOT NULL
        UNION ALL
        SELECT source,
               (SELECT min(volume) FROM snapshots AS next WHERE next.source = found.source AND next.volume > found.volume)
        FROM found WHERE volume IS NOT NULL
    )
    SELECT source, volume FROM found WHERE volume IS NOT NULL";

fn groups(reader: &Connection) -> rusqlite::Result<Vec<Group>> {
    let mut find = reader.prepare_cached(GROUPS)?;
    let group = |row: &Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?));
    let mut groups = Vec::new();
    for found in find.query_map([], group)? {
        let (source, volume) = found?;
        // They come from checked manifests; what is no name here can be left alone.
        if let (Ok(source), Ok(volume)) = (source.parse(), volume.parse()) {
            groups.push(Group { source, volume });
        }
    }
    Ok(groups)
}

/// Shows `show` all that the pages after `position` hold.
fn each<E: From<CatalogError>>(
    mut position: u64,
    page: impl Fn(u64) -> Result<Vec<Known>, CatalogError>,
    mut show: impl FnMut(&Known) -> Result<(), E>,
) -> Result<u64, E> {
    loop {
        let page = page(position)?;
        let Some(last) = page.last() else { return Ok(position) };
        position = last.position;
        page.iter().try_for_each(&mut show)?;
    }
}

fn last_standing(reader: &Connection, group: &Group, until: u64, limit: u32) -> rusqlite::Result<Vec<Known>> {
    let mut newest = reader
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM snapshots WHERE source = ?1 AND volume = ?2 AND forgotten IS NULL
             AND position <= ?3 ORDER BY position DESC LIMIT ?4"
        ))?
        .query_map(params![group.source.as_str(), group.volume.as_str(), place(until), limit], known)?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    newest.reverse();
    Ok(newest)
}

fn standing_of_after(reader: &Connection, group: &Group, position: u64, limit: u32) -> rusqlite::Result<Vec<Known>> {
    reader
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM snapshots WHERE source = ?1 AND volume = ?2 AND forgotten IS NULL
             AND position > ?3 ORDER BY position LIMIT ?4"
        ))?
        .query_map(params![group.source.as_str(), group.volume.as_str(), place(position), limit], known)?
        .collect()
}

/// A place in the log as SQLite knows one.
fn place(position: u64) -> i64 {
    i64::try_from(position).unwrap_or(i64::MAX)
}

fn newest(reader: &Connection, group: &Group) -> rusqlite::Result<(u64, Option<Known>)> {
    let condition = "FROM snapshots WHERE source = ?1 AND volume = ?2 AND forgotten IS NULL";
    let values = [group.source.as_str(), group.volume.as_str()];
    let count =
        reader.prepare_cached(&format!("SELECT count(*) {condition}"))?.query_row(values, |row| unsigned(row, 0))?;
    let last = reader
        .prepare_cached(&format!("SELECT {COLUMNS} {condition} ORDER BY position DESC LIMIT 1"))?
        .query_row(values, known)
        .optional()?;
    Ok((count, last))
}

fn standing_after(reader: &Connection, position: u64, limit: u32) -> rusqlite::Result<Vec<Known>> {
    reader
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM snapshots WHERE forgotten IS NULL AND position > ?1 ORDER BY position LIMIT ?2"
        ))?
        .query_map(params![place(position), limit], known)?
        .collect()
}

fn find(reader: &Connection, id: SnapshotId) -> rusqlite::Result<Option<Known>> {
    let [mut low, mut high] = [[0; 32], [0xff; 32]];
    low[..SnapshotId::LEN].copy_from_slice(id.as_bytes());
    high[..SnapshotId::LEN].copy_from_slice(id.as_bytes());
    reader
        .prepare_cached(&format!("SELECT {COLUMNS} FROM snapshots WHERE hash BETWEEN ?1 AND ?2"))?
        .query_row([low, high], known)
        .optional()
}

fn known(row: &Row<'_>) -> rusqlite::Result<Known> {
    Ok(Known {
        position: unsigned(row, 0)?,
        hash: ManifestHash::from_bytes(row.get(1)?),
        group: Group { source: name(row, 2)?, volume: name(row, 3)? },
        sequence: unsigned(row, 4)?,
        received: row.get(5)?,
        manifest: row.get(6)?,
        pinned: row.get(7)?,
        forgotten: row.get(8)?,
        collected: row.get(9)?,
    })
}

/// A name; names come from checked manifests, so that another one is damage.
fn name<T: FromStr<Err: Error + Send + Sync + 'static>>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let foreign = |error| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error));
    row.get::<_, String>(column)?.parse().map_err(foreign)
}

fn time(reader: &Connection) -> rusqlite::Result<Option<KeptTime>> {
    let kept = |row: &Row<'_>| {
        Ok(KeptTime {
            seen: row.get(0)?,
            passed: unsigned(row, 1)?,
            uptime: unsigned(row, 2)?,
            boot: row.get(3)?,
            steady: unsigned(row, 4)?,
        })
    };
    reader.query_row("SELECT seen, passed, uptime, boot, steady FROM clock", [], kept).optional()
}
