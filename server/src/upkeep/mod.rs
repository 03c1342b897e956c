//! What a store does to itself without being asked: giving snapshots up by policy,
//! collecting what nothing needs any more, reading everything again to find damage.
//!
//! All of it works on an open [`Archive`](crate::archive::Archive), beside backups and
//! restores. Nothing here knows a key of the realm or what a request is.

mod compact;
pub mod gc;
pub mod mark;
pub mod retention;
pub mod throttle;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use vsync_protocol::id::VolumeName;
use vsync_protocol::plan::{Policy, Zone};

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
}

impl Default for Upkeep {
    /// Keeps everything.
    fn default() -> Self {
        Self { policies: Arc::new(|_| Policy::default()), zone: Zone::utc() }
    }
}
