//! What a store does to itself without being asked: giving snapshots up by policy,
//! collecting what nothing needs any more, reading everything again to find damage.
//!
//! All of it works on an open [`Archive`](crate::archive::Archive), beside backups and
//! restores. Nothing here knows a key of the realm or what a request is.

mod compact;
pub mod gc;
pub(crate) mod keeper;
pub mod mark;
pub mod retention;
pub mod scrub;
pub mod throttle;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use vsync_protocol::id::VolumeName;
use vsync_protocol::plan::{Policy, Zone};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// What is kept of a volume, asked anew each time, so that a changed configuration counts at
/// once.
pub type Policies = Arc<dyn Fn(&VolumeName) -> Policy + Send + Sync>;

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
        }
    }
}
