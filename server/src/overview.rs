//! How the server is and how every volume stands, put together from catalog, clock and
//! configuration. Everything that shows it, on whatever way, shows this.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vsync_protocol::id::{MachineName, VolumeName};
use vsync_protocol::limits::{MAX_STANDINGS, MAX_TREND};
use vsync_protocol::manifest::SnapshotKind;
use vsync_protocol::wire::overview::{Chore, LastDone, LastFailure, LastGood, Size};
use vsync_protocol::wire::{JobKind, JobRecord, Overview, ServerStatus, Standing};

use crate::archive::{Archive, ArchiveError};
use crate::catalog::{CatalogError, Group, Known};
use crate::upkeep::guard::Hold;
use crate::upkeep::keeper::{COLLECTION, Notices, SCRUB};

/// A volume that the configuration says is backed up to this server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    /// The machine that has it.
    pub source: MachineName,
    /// The volume.
    pub volume: VolumeName,
    /// How old its last snapshot may be.
    pub max_age: Duration,
    /// When its next backup is due, in milliseconds since 1970; none if nobody planned one.
    pub due: Option<i64>,
}

/// What the configuration declares now; none if it cannot be understood. Asked anew each time,
/// so that a changed configuration counts at once.
pub type Declarations = Arc<dyn Fn() -> Option<Vec<Declared>> + Send + Sync>;

/// What an overview is made from.
pub(crate) struct Viewer {
    pub(crate) archive: Arc<Archive>,
    pub(crate) notices: Notices,
    declared: Declarations,
    /// What was declared when the configuration was last understood.
    last: Mutex<Vec<Declared>>,
}

/// An overview, and what only the server itself has to know.
pub(crate) struct View {
    pub(crate) overview: Overview,
    /// Whether the configuration is understood. If not, what it declared before still counts: a slip of the pen must
    /// not make everything look as if nobody expected anything.
    pub(crate) configured: bool,
    /// Volumes whose retention is held.
    pub(crate) held: Vec<Hold>,
}

impl Viewer {
    pub(crate) fn new(archive: Arc<Archive>, notices: Notices, declared: Declarations) -> Self {
        Self { archive, notices, declared, last: Mutex::default() }
    }

    /// What is declared, and whether it is known to be so now.
    fn declared(&self) -> (Vec<Declared>, bool) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match (self.declared)() {
            Some(declared) => {
                last.clone_from(&declared);
                (declared, true)
            }
            None => (last.clone(), false),
        }
    }

    /// How the server is.
    pub(crate) fn status(&self) -> Result<ServerStatus, ArchiveError> {
        self.server(&self.held(), self.declared().1)
    }

    fn server(&self, held: &[Hold], configured: bool) -> Result<ServerStatus, ArchiveError> {
        let archive = &self.archive;
        let totals = archive.catalog().totals()?;
        Ok(ServerStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            now: archive.time().0.now,
            snapshots: totals.snapshots,
            blobs: totals.blobs,
            packs: totals.packs,
            bytes: totals.bytes,
            free: archive.free()?,
            read_only: archive.failure().map(str::to_owned),
            warnings: self.warnings(held, configured),
        })
    }

    fn held(&self) -> Vec<Hold> {
        // Whoever cannot be asked for them is broken, which is told elsewhere.
        self.archive.held().unwrap_or_default()
    }

    /// What an operator must look at.
    fn warnings(&self, held: &[Hold], configured: bool) -> Vec<String> {
        let mut warnings = self.notices.all();
        for Hold { group, reason, .. } in held {
            let Group { volume, source } = group;
            warnings.push(format!(
                "retention of {volume} from {source} is held: {reason}; `vsync release {volume}` if that is right"
            ));
        }
        warnings.extend(self.frozen().filter(|clock| !warnings.contains(clock)));
        if !configured {
            warnings
                .push("the server's vsync.toml cannot be understood: what is to be backed up is not known".to_owned());
        }
        // A disk that does not say how full it is has worse to tell elsewhere.
        warnings.extend(self.archive.scarcity().unwrap_or_default());
        warnings
    }

    /// Why the clock is not believed, if it is not.
    fn frozen(&self) -> Option<String> {
        let (moment, kept) = self.archive.time();
        kept.evidence(&moment).check(None).err().map(|frozen| frozen.to_string())
    }

    /// Everything, with the volumes of `source` alone if it is given.
    pub(crate) fn overview(&self, source: Option<&MachineName>) -> Result<Overview, ArchiveError> {
        Ok(self.look(source)?.overview)
    }

    /// The same, with what only the server itself has to know.
    pub(crate) fn look(&self, source: Option<&MachineName>) -> Result<View, ArchiveError> {
        let (held, (declared, configured)) = (self.held(), self.declared());
        let server = self.server(&held, configured)?;
        Ok(View { overview: self.all(server, declared, source)?, configured, held })
    }

    fn all(
        &self,
        server: ServerStatus,
        declared: Vec<Declared>,
        source: Option<&MachineName>,
    ) -> Result<Overview, ArchiveError> {
        let catalog = self.archive.catalog();
        let oldest = catalog.least_checked()?.map(|(_, checked)| checked);
        let uptime = self.archive.time().1.uptime;
        Ok(Overview {
            server,
            space: self.archive.files.packs.size()?,
            damaged: catalog.damaged()?,
            frozen: self.frozen(),
            collection: self.chore(COLLECTION)?,
            scrub: self.chore(SCRUB)?,
            unread: oldest.map_or(0, |checked| uptime.saturating_sub(checked)),
            content: catalog.content()?,
            volumes: self.standings(declared, source)?,
        })
    }

    fn chore(&self, name: &'static str) -> Result<Chore, CatalogError> {
        let last = self.archive.catalog().chore(name)?;
        Ok(Chore {
            running: self.notices.is_running(name),
            last: last.map(|(at, _)| at),
            amount: last.map_or(0, |(_, amount)| amount),
            failure: self.notices.of(name),
        })
    }

    /// The declared volumes, then those that nobody declares any more but that have snapshots.
    fn standings(&self, declared: Vec<Declared>, source: Option<&MachineName>) -> Result<Vec<Standing>, CatalogError> {
        let group = |one: &Declared| Group { source: one.source.clone(), volume: one.volume.clone() };
        let declared: BTreeMap<Group, Declared> = declared.into_iter().map(|one| (group(&one), one)).collect();
        let others = self.archive.catalog().groups()?;
        let mut others: Vec<Group> = others.into_iter().filter(|group| !declared.contains_key(group)).collect();
        others.sort();
        let groups = declared.keys().chain(&others).filter(|group| source.is_none_or(|only| *only == group.source));
        let standings = groups.take(MAX_STANDINGS).map(|group| self.standing(group, declared.get(group)));
        // Who forgot a volume's last snapshot meant it.
        let wanted = |standing: &Standing| standing.declared || standing.snapshots > 0;
        standings.filter(|standing| standing.as_ref().map_or(true, wanted)).collect()
    }

    fn standing(&self, group: &Group, declared: Option<&Declared>) -> Result<Standing, CatalogError> {
        let catalog = self.archive.catalog();
        let (snapshots, newest) = catalog.newest(group)?;
        let good = catalog.good_backups(group, MAX_TREND)?;
        let since = newest.as_ref().map_or(i64::MIN, |known| known.received);
        // A backup that ended well, or whose end was not heard of but whose snapshot is here,
        // is no failure, nor is any before it.
        let (failures, failure) = catalog.failed_backups(group, good.first().map_or(0, |job| job.number), since)?;
        Ok(Standing {
            source: group.source.clone(),
            volume: group.volume.clone(),
            declared: declared.is_some(),
            snapshots,
            last: newest.map(|known| self.last(&known, group)).transpose()?,
            result: good.first().and_then(|job| job.result.clone()),
            trend: good.iter().rev().filter_map(size).collect(),
            failures,
            failure: failure.and_then(last_failure),
            running: catalog.running_backup(group)?,
            verified: catalog.last_use(group, JobKind::Verify)?.and_then(last_done),
            restored: catalog.last_use(group, JobKind::Restore)?.and_then(last_done),
            max_age: declared.map(|one| u64::try_from(one.max_age.as_millis()).unwrap_or(u64::MAX)),
            due: declared.and_then(|one| one.due),
        })
    }

    fn last(&self, known: &Known, group: &Group) -> Result<LastGood, CatalogError> {
        let id = known.id();
        let job = self.archive.catalog().backup_of(id, &group.source)?;
        let partial = known.body().is_ok_and(|body| body.kind == SnapshotKind::Partial);
        // A job's beginning is the machine's word for when the snapshot's data was read; it
        // cannot make a snapshot younger than its receipt.
        let at = job.map_or(known.received, |job| job.started.min(known.received));
        Ok(LastGood { id, at, partial })
    }
}

fn size(job: &JobRecord) -> Option<Size> {
    let result = job.result.as_ref()?;
    Some(Size { at: job.started, bytes: result.size, stored: result.stored })
}

fn last_failure(job: JobRecord) -> Option<LastFailure> {
    let result = job.result?;
    Some(LastFailure { at: job.ended?, outcome: result.outcome, code: result.code, message: result.message })
}

fn last_done(job: JobRecord) -> Option<LastDone> {
    let result = job.result?;
    Some(LastDone { at: job.ended?, outcome: result.outcome, machine: job.machine, duration: result.duration })
}
