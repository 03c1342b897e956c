//! Garbage collection, beside running backups and restores, without a key and without
//! trusting any clock that can be set.
//!
//! A round marks what all snapshots need, marks what came meanwhile, and condemns the rest
//! except what sessions rely on and what came in the last two rounds. The condemned are
//! absent for everybody, so that backups bring them again if they want them, but their
//! bytes stay. Rounds later, and after days of uptime, packs with too much dead space are
//! copied without it, moved to the trash, and removed from there after more days.
//!
//! Every step is durable by itself and leaves a store that is right: a round may end
//! anywhere, and the next one goes on. Whatever does not look as it should ends the round
//! before anything else is removed.

use std::fs;
use std::io;

use vsync_protocol::id::{Cid, PackId};
use vsync_protocol::wire::GcOrder;
pub use vsync_protocol::wire::GcReport;

use super::compact;
use super::keeper::COLLECTION;
use super::mark::{Mark, MarkError};
use super::throttle::{Stop, Throttle};
use crate::archive::{Archive, ArchiveError};
use crate::catalog::{Row, State};
use crate::store::StoreError;

const HOUR: u64 = 3_600_000;

/// Blobs that are condemned in one step.
const STEP: usize = 50_000;

/// How to collect.
#[derive(Clone, Debug)]
pub struct GcOptions {
    /// Only say what would be done.
    pub dry_run: bool,
    /// Remove what is in the trash, however short it was there.
    pub empty_trash: bool,
    /// Bytes a second to read and write at most.
    pub rate: Option<u64>,
    /// Milliseconds of uptime for which condemned blobs stay.
    pub condemned_for: u64,
    /// Milliseconds of uptime for which packs stay in the trash.
    pub trash_for: u64,
}

impl Default for GcOptions {
    fn default() -> Self {
        Self { dry_run: false, empty_trash: false, rate: None, condemned_for: 72 * HOUR, trash_for: 7 * 24 * HOUR }
    }
}

impl From<GcOrder> for GcOptions {
    fn from(order: GcOrder) -> Self {
        let GcOrder { dry_run, empty_trash, at_once } = order;
        let options = Self { dry_run, empty_trash, ..Self::default() };
        if at_once { Self { condemned_for: 0, ..options } } else { options }
    }
}

impl Archive {
    /// Runs a round of garbage collection, after one that runs already.
    ///
    /// # Errors
    /// When anything is not as it should be, the store fails, or `stop` calls it off.
    pub fn collect(&self, options: &GcOptions, stop: &Stop) -> Result<GcReport, MarkError> {
        let _alone = self.upkeep_alone();
        let throttle = Throttle::new(options.rate, stop.clone());
        let round = Round { archive: self, options, throttle: &throttle };
        if options.dry_run {
            return round.preview();
        }
        let report = round.run()?;
        self.ballast.take();
        self.note_chore(COLLECTION, report.removed_bytes);
        Ok(report)
    }
}

/// One round.
pub(super) struct Round<'a> {
    pub(super) archive: &'a Archive,
    pub(super) options: &'a GcOptions,
    pub(super) throttle: &'a Throttle,
}

impl Round<'_> {
    fn run(&self) -> Result<GcReport, MarkError> {
        let archive = self.archive;
        archive.files.health.check()?;
        archive.ballast.let_go_if_needed()?;
        archive.keep_time()?;
        let mut report = GcReport::default();
        // What an earlier round did not finish.
        archive.catalog().doomed()?.into_iter().try_for_each(|pack| self.bury(pack))?;
        self.empty_trash(&mut report)?;
        let log = archive.position().index;
        report.round = archive.record(|catalog| catalog.begin_round(log, archive.time().1.uptime))?;
        self.know_all_needs()?;
        let mut mark = Mark::since(log);
        mark.extend(archive, self.throttle, &Default::default())?;
        self.condemn(&mut mark, &mut report)?;
        drop(mark);
        let ripe = archive.catalog().ripe_round(self.ripe_before())?;
        if ripe > 0 {
            // From now on they cannot be brought back, so nobody shall offer it.
            archive.record(|catalog| catalog.collect(ripe))?;
        }
        compact::run(self, ripe, &mut report)?;
        if self.options.empty_trash {
            self.empty_trash(&mut report)?;
        }
        Ok(report)
    }

    fn preview(&self) -> Result<GcReport, MarkError> {
        let archive = self.archive;
        let mut report = GcReport::default();
        self.know_all_needs()?;
        let mut mark = Mark::since(archive.position().index);
        mark.extend(archive, self.throttle, &Default::default())?;
        let next = archive.catalog().round()? + 1;
        self.survey(|rows| {
            let needless = rows.iter().filter(|row| row.state == State::Live && is_old(row, next));
            for row in needless.filter(|row| !mark.contains(&row.cid)) {
                report.condemned += 1;
                report.condemned_bytes += u64::from(row.len);
            }
            Ok(())
        })?;
        let ripe = archive.catalog().ripe_round(self.ripe_before())?;
        for chosen in compact::choose(archive.catalog().kept(ripe)?) {
            report.trashed += 1;
            report.trashed_bytes += chosen.bytes;
            report.copied_bytes += chosen.kept;
        }
        Ok(report)
    }

    /// Refuses when there is a snapshot whose needs nobody knows.
    fn know_all_needs(&self) -> Result<(), MarkError> {
        let lost = self.archive.catalog().lost_manifests()?;
        lost.first().map_or(Ok(()), |&manifest| Err(MarkError::LostManifest(manifest.into())))
    }

    /// Rounds that began at this uptime or earlier are ripe.
    fn ripe_before(&self) -> Option<u64> {
        self.archive.time().1.uptime.checked_sub(self.options.condemned_for)
    }

    /// Shows every blob there is, some at a time.
    fn survey(&self, mut show: impl FnMut(&[Row]) -> Result<(), MarkError>) -> Result<(), MarkError> {
        let mut after = None;
        loop {
            self.throttle.check().map_err(|_| MarkError::Stopped)?;
            let rows = self.archive.catalog().survey(after, 10_000)?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = Some(last.cid);
            show(&rows)?;
        }
    }

    fn condemn(&self, mark: &mut Mark, report: &mut GcReport) -> Result<(), MarkError> {
        let (mut needless, mut wronged) = (Vec::new(), Vec::new());
        self.survey(|rows| {
            for row in rows {
                match (row.state, mark.contains(&row.cid)) {
                    (State::Live, false) if is_old(row, report.round) => needless.push((row.cid, row.len)),
                    (State::Condemned, true) => wronged.push(row.cid),
                    _ => {}
                }
            }
            // Steps while the survey goes on, so that memory stays bounded.
            if needless.len() >= STEP { self.condemn_step(mark, &mut needless, report) } else { Ok(()) }
        })?;
        if !wronged.is_empty() {
            tracing::error!("{} condemned blobs are needed; they live again", wronged.len());
            self.archive.record(|catalog| catalog.revive(wronged))?;
        }
        self.condemn_step(mark, &mut needless, report)
    }

    fn condemn_step(
        &self,
        mark: &mut Mark,
        needless: &mut Vec<(Cid, u32)>,
        report: &mut GcReport,
    ) -> Result<(), MarkError> {
        if needless.is_empty() {
            return Ok(());
        }
        // Most of what came meanwhile is marked while others can go on.
        mark.extend(self.archive, self.throttle, &Default::default())?;
        let _journal = self.archive.lock_journal();
        mark.extend(self.archive, self.throttle, &Default::default())?;
        // From here nobody is told that any of these is here, and who was has pinned it.
        let alone = self.archive.pins.alone();
        needless.retain(|(cid, _)| !mark.contains(cid) && !alone.is_pinned(cid));
        let cids = needless.iter().map(|&(cid, _)| cid).collect();
        report.condemned_bytes += needless.drain(..).map(|(_, len)| u64::from(len)).sum::<u64>();
        report.condemned += self.archive.record(|catalog| catalog.condemn(cids, mark.nodes()))?;
        Ok(())
    }

    /// Moves a doomed pack to the trash.
    pub(super) fn bury(&self, pack: PackId) -> Result<(), MarkError> {
        let archive = self.archive;
        // The same blobs may come again at this very moment, and make the same pack.
        let _alone = archive.pins.alone();
        if !archive.catalog().doomed()?.contains(&pack) {
            return Ok(());
        }
        archive.files.packs.move_to(&archive.files.trash, pack)?;
        archive.record(|catalog| catalog.bury(pack, archive.time().1.uptime))?;
        Ok(())
    }

    fn empty_trash(&self, report: &mut GcReport) -> Result<(), MarkError> {
        let archive = self.archive;
        let known = archive.catalog().trash()?;
        for pack in trash_files(archive)? {
            if known.iter().all(|&(other, _)| other != pack) {
                // Its time begins now.
                archive.record(|catalog| catalog.bury(pack, archive.time().1.uptime))?;
            }
        }
        let now = archive.time().1.uptime;
        for (pack, since) in archive.catalog().trash()? {
            if self.options.empty_trash || now.saturating_sub(since) >= self.options.trash_for {
                report.removed_bytes += remove(archive, pack)?;
                report.removed += 1;
                archive.record(|catalog| catalog.unbury(pack))?;
            }
        }
        Ok(())
    }
}

/// Whether a live blob has been here for so long that no interrupted backup waits for it.
fn is_old(row: &Row, round: u64) -> bool {
    row.since + 1 < round
}

/// Packs in the trash. Foreign files are left alone.
fn trash_files(archive: &Archive) -> Result<Vec<PackId>, StoreError> {
    let trash = &archive.files.trash;
    let mut packs = Vec::new();
    for entry in fs::read_dir(trash).map_err(StoreError::io("list", trash))? {
        let name = entry.map_err(StoreError::io("list", trash))?.file_name();
        packs.extend(name.to_str().and_then(|name| name.strip_suffix(".pack")?.parse::<PackId>().ok()));
    }
    Ok(packs)
}

/// Removes a pack from the trash for good; returns its bytes.
fn remove(archive: &Archive, pack: PackId) -> Result<u64, ArchiveError> {
    let path = archive.files.trash.join(format!("{pack}.pack"));
    let bytes = fs::metadata(&path).map(|metadata| metadata.len()).unwrap_or(0);
    let steps = archive.files.health.steps();
    match steps.take("remove a pack from the trash", || fs::remove_file(&path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        result => Ok(result.map(|()| bytes).map_err(StoreError::io("remove", path))?),
    }
}
