//! `vsync find`.

use jiff::Zoned;
use serde_json::json;
use vsync_protocol::id::{MachineName, VolumeName};
use vsync_protocol::tree::{Entry, EntryKind};
use vsync_protocol::wire::Listing;

use super::GlobalArgs;
use super::entries;
use super::output;
use super::report::{Exit, Failure};
use super::session::{Listed, Session, short, timestamp};
use super::time;
use crate::find::Search;
use crate::pattern::Pattern;
use crate::remote::RemoteNodes;
use crate::vault::Opener;

/// Find the snapshots that hold a file
///
/// A pattern with a slash fits whole paths, one without fits names in any directory.
/// Snapshots are searched from the newest on; what they share is read once.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vsync find '*.rds'
  vsync find 'archive/2026*/report.html' --volume montagu_orderly_volume --limit 3 --json")]
pub(super) struct FindArgs {
    /// What to find
    #[arg(value_name = "PATTERN")]
    pattern: String,

    /// The server to ask [default: the only one]
    #[arg(long, env = "VSYNC_SERVER", value_name = "NAME")]
    server: Option<MachineName>,

    /// In snapshots of this volume only
    #[arg(long, value_name = "NAME")]
    volume: Option<VolumeName>,

    /// In snapshots from this machine only
    #[arg(long, env = "VSYNC_SOURCE", value_name = "NAME")]
    source: Option<MachineName>,

    /// In the snapshot whose id begins so
    #[arg(long, value_name = "ID")]
    snapshot: Option<String>,

    /// Stop after so many snapshots that hold it
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

impl FindArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let pattern = Pattern::parse(&self.pattern)?;
        let session = Session::open(global, self.server.as_ref())?;
        session.require_reader()?;
        let listing = Listing {
            volume: self.volume.clone(),
            source: self.source.clone(),
            prefix: self.snapshot.clone(),
            ..Listing::default()
        };
        let mut search = Search::new(pattern);
        let mut holding = 0;
        for listed in session.list(&listing, |_| false)? {
            if self.limit.is_some_and(|limit| holding >= limit) {
                break;
            }
            let found = search_in(&session, &mut search, &listed)?;
            if !found.is_empty() {
                holding += 1;
                print(global, &listed, &found)?;
            }
        }
        if holding == 0 {
            return Err(Failure::new(
                Exit::NotFound,
                format!("no snapshot on {} holds {}", session.remote.server(), self.pattern),
            )
            .hint("a pattern with a slash must fit the whole path: try '**/' in front of it".to_owned()));
        }
        Ok(Exit::Exact)
    }
}

fn search_in(session: &Session, search: &mut Search, listed: &Listed) -> Result<Vec<Entry>, Failure> {
    let snapshot = session.open_snapshot(listed)?;
    let opener = Opener::new(session.vault(&snapshot)?).map_err(|error| Failure::of(&error, Exit::Failed))?;
    let mut nodes = RemoteNodes::new(session.remote.fetcher(), opener);
    let mut found = Vec::new();
    search.tree(&mut nodes, &snapshot.root(), &mut |entry| found.push(entry.clone()))?;
    Ok(found)
}

fn print(global: &GlobalArgs, listed: &Listed, found: &[Entry]) -> Result<(), Failure> {
    let body = &listed.body;
    if global.json {
        return output::json(&json!({
            "message_type": "matches",
            "snapshot": listed.record.id.to_string(),
            "time": timestamp(body.started).to_string(),
            "volume": body.volume.as_str(),
            "hostname": body.source.as_str(),
            "hits": found.len(),
            "matches": found.iter().map(entries::node).collect::<Vec<_>>(),
        }));
    }
    let started = time::format(timestamp(body.started), &Zoned::now());
    output::line(format_args!("{} of {} from {} at {started}", short(listed.record.id), body.volume, body.source))?;
    found.iter().try_for_each(|entry| {
        let size = if entry.kind == EntryKind::File { output::size(entry.size) } else { String::new() };
        output::line(format_args!("  {} {size:>9} {}", entries::permissions(entry), entry.path))
    })
}
