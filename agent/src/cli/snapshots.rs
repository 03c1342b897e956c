//! `vsync snapshots`.

use jiff::Zoned;
use serde_json::json;
use vsync_protocol::id::{MachineName, VolumeName};
use vsync_protocol::manifest::SnapshotKind;
use vsync_protocol::wire::Listing;
use vsync_protocol::wire::plain::{MAX_WORDS, plain};

use super::GlobalArgs;
use super::output::{self, Align, Table};
use super::report::{Exit, Failure};
use super::session::{Listed, Session, short, timestamp};
use super::time;
use crate::snapshot::Snapshot;

/// List snapshots, newest first
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vsync snapshots
  vsync snapshots barman_recover --server annex2
  vsync snapshots --tag nightly=yes,team=malaria
  vsync snapshots --source production2 --limit 10 --json")]
pub(super) struct SnapshotsArgs {
    /// Of this volume only
    volume: Option<VolumeName>,

    /// The server to ask [default: the only one]
    #[arg(long, env = "VSYNC_SERVER", value_name = "NAME")]
    server: Option<MachineName>,

    /// From this machine only
    #[arg(long, env = "VSYNC_SOURCE", value_name = "NAME")]
    source: Option<MachineName>,

    /// With this label; with all of `a=1,b=2`; may be repeated for those with another
    #[arg(long, env = "VSYNC_TAG", value_name = "KEY=VALUE")]
    tag: Vec<String>,

    /// Those that were forgotten and can still be brought back, instead of the others
    #[arg(long)]
    forgotten: bool,

    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

impl SnapshotsArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let session = Session::open(global, self.server.as_ref())?;
        let listing = Listing {
            volume: self.volume.clone(),
            source: self.source.clone(),
            forgotten: self.forgotten,
            ..Listing::default()
        };
        let mut seen = 0;
        let mut listed = if self.limit == Some(0) {
            Vec::new()
        } else {
            session.list(&listing, |listed| {
                seen += usize::from(self.has_tags(&listed.body.tags));
                Some(seen) == self.limit
            })?
        };
        if listed.is_empty() {
            session.check_known(self.volume.as_ref(), self.source.as_ref())?;
        }
        listed.retain(|listed| self.has_tags(&listed.body.tags));
        if global.json {
            let rows: Vec<_> = listed.iter().map(|listed| row(&session, listed)).collect();
            output::json(&rows)?;
        } else if listed.is_empty() {
            output::say(format_args!("no snapshots on {}", session.remote.server()));
        } else {
            print(&session, &listed)?;
        }
        Ok(Exit::Exact)
    }
}

impl SnapshotsArgs {
    /// All of one of the lists that were given, if any were.
    fn has_tags(&self, tags: &[String]) -> bool {
        let has_all = |wanted: &String| wanted.split(',').all(|wanted| tags.iter().any(|tag| tag == wanted));
        self.tag.is_empty() || self.tag.iter().any(has_all)
    }
}

/// What is sealed is shown to readers only; a manifest that does not verify is never hidden.
fn sealed(session: &Session, listed: &Listed) -> Option<Snapshot> {
    session.context.bundle.reader(listed.body.epoch)?;
    session
        .open_snapshot(listed)
        .map_err(|failure| tracing::warn!("snapshot {}: {failure}", listed.record.id.short()))
        .ok()
}

fn row(session: &Session, listed: &Listed) -> serde_json::Value {
    let body = &listed.body;
    let snapshot = sealed(session, listed);
    json!({
        "id": listed.record.id.to_string(),
        "short_id": short(listed.record.id),
        "time": timestamp(body.started).to_string(),
        "received": timestamp(listed.record.received).to_string(),
        "volume": body.volume.as_str(),
        "hostname": body.source.as_str(),
        "sequence": body.sequence,
        "tags": body.tags,
        "pinned": listed.record.pinned,
        "forgotten": listed.record.forgotten.map(|at| timestamp(at).to_string()),
        "partial": body.kind == SnapshotKind::Partial,
        "tree": body.root.to_string(),
        "total_files": snapshot.as_ref().map(|snapshot| snapshot.sealed.entries),
        "total_bytes": snapshot.as_ref().map(|snapshot| snapshot.sealed.bytes),
        "defects": snapshot.as_ref().map(|snapshot| snapshot.sealed.defects),
        "program_version": snapshot.as_ref().map(|snapshot| snapshot.sealed.program.clone()),
    })
}

fn print(session: &Session, listed: &[Listed]) -> Result<(), Failure> {
    let now = Zoned::now();
    let mut table = Table::new([
        ("ID", Align::Left),
        ("TIME", Align::Left),
        ("VOLUME", Align::Left),
        ("SOURCE", Align::Left),
        ("SIZE", Align::Right),
        ("ENTRIES", Align::Right),
        ("NOTES", Align::Left),
    ]);
    for listed in listed {
        let body = &listed.body;
        let snapshot = sealed(session, listed);
        // Whoever holds a machine's key writes what he likes.
        let mut notes: Vec<String> = body.tags.iter().map(|tag| plain(tag, MAX_WORDS)).collect();
        if listed.record.pinned {
            notes.insert(0, "pinned".to_owned());
        }
        if body.kind == SnapshotKind::Partial {
            let defects = snapshot.as_ref().map_or(String::new(), |snapshot| format!("{} ", snapshot.sealed.defects));
            notes.insert(0, format!("partial: {defects}not exact"));
        }
        let shown = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        table.row([
            short(listed.record.id),
            time::format(timestamp(body.started), &now),
            body.volume.to_string(),
            body.source.to_string(),
            shown(snapshot.as_ref().map(|snapshot| output::size(snapshot.sealed.bytes))),
            shown(snapshot.as_ref().map(|snapshot| snapshot.sealed.entries.to_string())),
            notes.join(" "),
        ]);
    }
    output::line(table.to_string().trim_end())
}
