//! `vsync pin`, `vsync unpin`, `vsync undelete`: orders about single snapshots.

use vsync_protocol::id::{MachineName, SnapshotId};
use vsync_protocol::wire::{Listing, Request};

use super::GlobalArgs;
use super::forget::{find_all, order};
use super::output;
use super::report::{Exit, Failure};
use super::session::{Session, short};

/// Keep a snapshot whatever retention says
///
/// To be run as one of the realm's servers.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  vsync pin 1a2b3c4d\n  vsync pin barman_recover@latest")]
pub(super) struct PinArgs {
    #[command(flatten)]
    which: Which,
}

/// Let retention decide about a pinned snapshot again
///
/// To be run as one of the realm's servers.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  vsync unpin 1a2b3c4d")]
pub(super) struct UnpinArgs {
    #[command(flatten)]
    which: Which,
}

/// Bring a forgotten snapshot back
///
/// As long as its data has not been collected. `vsync snapshots --forgotten` lists what can be
/// brought back. To be run as one of the realm's servers.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  vsync snapshots --forgotten\n  vsync undelete 1a2b3c4d")]
pub(super) struct UndeleteArgs {
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, clap::Args)]
struct Which {
    /// The snapshots
    #[arg(value_name = "SNAPSHOT", required = true)]
    snapshots: Vec<String>,

    /// The server [default: the only one]
    #[arg(long, env = "VSYNC_SERVER", value_name = "NAME")]
    server: Option<MachineName>,
}

impl PinArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        self.which.each(global, "pinned", find, |id| Request::Pin { id })
    }
}

impl UnpinArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        self.which.each(global, "unpinned", find, |id| Request::Unpin { id })
    }
}

impl UndeleteArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        self.which.each(global, "brought back", find_forgotten, |id| Request::Undelete { id })
    }
}

type Find = fn(&Session, &[String]) -> Result<Vec<SnapshotId>, Failure>;

impl Which {
    fn each(
        &self,
        global: &GlobalArgs,
        done: &str,
        find: Find,
        request: impl Fn(SnapshotId) -> Request,
    ) -> Result<Exit, Failure> {
        let session = Session::open(global, self.server.as_ref())?;
        for id in find(&session, &self.snapshots)? {
            order(&session, &request(id))?;
            if global.json {
                output::json(&serde_json::json!({"snapshot_id": id.to_string(), "done": done}))?;
            } else if !global.quiet {
                output::line(format_args!("{done}: {}", short(id)))?;
            }
        }
        Ok(Exit::Exact)
    }
}

fn find(session: &Session, texts: &[String]) -> Result<Vec<SnapshotId>, Failure> {
    find_all(session, texts, None)
}

/// A forgotten snapshot is named by its id alone.
fn find_forgotten(session: &Session, prefixes: &[String]) -> Result<Vec<SnapshotId>, Failure> {
    let one = |prefix: &String| {
        let listing = Listing { prefix: Some(prefix.clone()), forgotten: true, ..Listing::default() };
        let mut found = session.list(&listing, |_| false)?;
        match (found.pop(), found.pop()) {
            (Some(listed), None) => Ok(listed.record.id),
            (None, _) => {
                Err(Failure::new(Exit::NotFound, format!("no forgotten snapshot {prefix} can be brought back"))
                    .hint("`vsync snapshots --forgotten` lists those that can".to_owned()))
            }
            (Some(_), Some(_)) => {
                Err(Failure::new(Exit::Usage, format!("more than one forgotten snapshot's id begins with {prefix}"))
                    .hint("give more digits".to_owned()))
            }
        }
    };
    prefixes.iter().map(one).collect()
}
