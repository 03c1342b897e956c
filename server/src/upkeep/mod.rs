//! What a store does to itself without being asked: giving snapshots up by policy,
//! collecting what nothing needs any more, reading everything again to find damage.
//!
//! All of it works on an open [`Archive`](crate::archive::Archive), beside backups and
//! restores. Nothing here knows a key of the realm or what a request is.

pub mod closure;
mod compact;
pub mod gc;
pub mod guard;
pub(crate) mod keeper;
pub mod mark;
pub mod retention;
pub mod scrub;
pub mod throttle;
pub mod usage;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use vsync_protocol::id::{MachineKey, MachineName, RealmId, VolumeName};
use vsync_protocol::plan::{Policy, Zone};

use self::gc::{GcOptions, GcReport};
use self::mark::MarkError;
use self::scrub::ScrubReport;
use self::throttle::Stop;
use self::usage::Quotas;
use crate::archive::Archive;
use crate::store::disk::Reserve;

/// Runs a round of garbage collection on the store of `realm` at `data`, which no server may
/// have open.
///
/// # Errors
/// When the store cannot be opened, or anything about it is not as it should be.
pub fn collect_once(data: &Path, realm: RealmId, options: &GcOptions) -> Result<GcReport, MarkError> {
    with_archive(data, realm, |archive| archive.collect(options, &Stop::default()))
}

/// Reads every byte of the store of `realm` at `data`, which no server may have open.
///
/// # Errors
/// When the store cannot be opened or its catalog fails. Damage is no error.
pub fn scrub_once(data: &Path, realm: RealmId, rate: Option<u64>) -> Result<ScrubReport, MarkError> {
    with_archive(data, realm, |archive| archive.scrub(rate, &Stop::default()))
}

fn with_archive<T>(
    data: &Path,
    realm: RealmId,
    work: impl FnOnce(&Archive) -> Result<T, MarkError>,
) -> Result<T, MarkError> {
    let archive = Archive::open(data, realm, Reserve::default())?;
    let done = work(&archive);
    archive.close();
    done
}

impl Archive {
    /// Notes for people that the chore `name` ended now, and what it came to.
    fn note_chore(&self, name: &'static str, amount: u64) {
        if self.failure().is_none()
            && let Err(error) = self.catalog().note_chore(name, self.time().0.now, amount)
        {
            tracing::warn!("the end of {name} is not noted: {error}");
        }
    }
}

const DAY: Duration = Duration::from_secs(24 * 3600);

/// What is kept of a volume, asked anew each time, so that a changed configuration counts at
/// once.
pub type Policies = Arc<dyn Fn(&VolumeName) -> Policy + Send + Sync>;

/// The keys of a machine, those of former times included.
pub type Signers = Arc<dyn Fn(&MachineName) -> Vec<MachineKey> + Send + Sync>;

/// How a server looks after its store.
#[derive(Clone)]
pub struct Upkeep {
    /// What is kept.
    pub policies: Policies,
    /// Whose days, weeks, months and years.
    pub zone: Zone,
    /// How much uptime lies between two rounds of garbage collection; none: there are none.
    pub collect_every: Option<Duration>,
    /// The uptime in which every pack is read once; none: they are not.
    pub scrub_every: Option<Duration>,
    /// Bytes a second that all this may read and write.
    pub rate: Option<u64>,
    /// How often it is looked whether there is anything to do.
    pub tick: Duration,
    /// How much a machine or a volume may take.
    pub quotas: Quotas,
    /// By whose keys the snapshots of a machine may be signed; none: signatures are not checked again.
    pub signers: Option<Signers>,
}

impl Default for Upkeep {
    /// Keeps all snapshots.
    fn default() -> Self {
        Self {
            policies: Arc::new(|_| Policy::default()),
            zone: Zone::utc(),
            collect_every: Some(DAY),
            scrub_every: Some(30 * DAY),
            rate: Some(64 << 20),
            tick: Duration::from_secs(60),
            quotas: Arc::new(|_, _| Vec::new()),
            signers: None,
        }
    }
}
