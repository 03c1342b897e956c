//! `vsync stats`.

use std::collections::BTreeMap;

use serde_json::json;
use vsync_protocol::id::{MachineName, VolumeName};
use vsync_protocol::wire::{Listing, ServerStatus};

use super::GlobalArgs;
use super::output::{self, Align, Table};
use super::report::{Exit, Failure};
use super::session::{Session, short};
use crate::snapshot::Snapshot;

/// Show how much is stored, and how much it would be without vsync
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  vsync stats\n  vsync stats barman_recover --json")]
pub(super) struct StatsArgs {
    /// Of this volume only; the server's totals are always those of all
    volume: Option<VolumeName>,

    /// The server to ask [default: the only one]
    #[arg(long, env = "VSYNC_SERVER", value_name = "NAME")]
    server: Option<MachineName>,

    /// From this machine only
    #[arg(long, env = "VSYNC_SOURCE", value_name = "NAME")]
    source: Option<MachineName>,
}

/// The snapshots of one volume from one machine.
struct Volume {
    snapshots: u64,
    newest: Snapshot,
    /// Bytes of all snapshots, each counted as if it stood alone.
    bytes: u64,
}

type Volumes = BTreeMap<(VolumeName, MachineName), Volume>;

impl StatsArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let session = Session::open(global, self.server.as_ref())?;
        session.require_reader()?;
        let listing = Listing { volume: self.volume.clone(), source: self.source.clone(), ..Listing::default() };
        let mut volumes = Volumes::new();
        for listed in session.list(&listing, |_| false)? {
            let snapshot = session.open_snapshot(&listed)?;
            let bytes = snapshot.sealed.bytes;
            // They come newest first.
            volumes
                .entry((listed.body.volume.clone(), listed.body.source.clone()))
                .and_modify(|volume| {
                    volume.snapshots += 1;
                    volume.bytes = volume.bytes.saturating_add(bytes);
                })
                .or_insert(Volume { snapshots: 1, newest: snapshot, bytes });
        }
        if volumes.is_empty() && self.volume.is_some() {
            return Err(session.no_snapshot(self.volume.as_ref(), self.source.as_ref()));
        }
        if volumes.is_empty() {
            session.check_known(None, self.source.as_ref())?;
        }
        let status = session.remote.status()?;
        // A ratio needs all that the server stores on one side, and all that it stands for on the other.
        let whole = self.volume.is_none() && self.source.is_none();
        let ratio = ratio(total(&volumes), status.bytes).filter(|_| whole);
        if global.json { json(&volumes, &status, ratio) } else { print(&volumes, &status, ratio) }?;
        Ok(Exit::Exact)
    }
}

fn ratio(restorable: u64, stored: u64) -> Option<f64> {
    (stored > 0 && restorable > 0).then(|| restorable as f64 / stored as f64)
}

/// Bytes of all snapshots of all volumes. Each source says itself how many its own are.
fn total(volumes: &Volumes) -> u64 {
    volumes.values().map(|volume| volume.bytes).fold(0, u64::saturating_add)
}

fn json(volumes: &Volumes, status: &ServerStatus, ratio: Option<f64>) -> Result<(), Failure> {
    let rows = volumes.iter().map(|((name, source), volume)| {
        json!({
            "volume": name.as_str(),
            "hostname": source.as_str(),
            "snapshots_count": volume.snapshots,
            "latest": volume.newest.id.to_string(),
            "total_size": volume.newest.sealed.bytes,
            "total_file_count": volume.newest.sealed.entries,
            "total_uncompressed_size": volume.bytes,
        })
    });
    output::json(&json!({
        "volumes": rows.collect::<Vec<_>>(),
        "snapshots_count": status.snapshots,
        "total_blob_count": status.blobs,
        "total_pack_count": status.packs,
        "total_size": status.bytes,
        "total_uncompressed_size": total(volumes),
        "compression_ratio": ratio,
        "free": status.free,
    }))
}

fn print(volumes: &Volumes, status: &ServerStatus, ratio: Option<f64>) -> Result<(), Failure> {
    let mut table = Table::new([
        ("VOLUME", Align::Left),
        ("SOURCE", Align::Left),
        ("SNAPSHOTS", Align::Right),
        ("NEWEST", Align::Left),
        ("SIZE", Align::Right),
        ("ENTRIES", Align::Right),
        ("ALL SNAPSHOTS", Align::Right),
    ]);
    for ((name, source), volume) in volumes {
        table.row([
            name.to_string(),
            source.to_string(),
            volume.snapshots.to_string(),
            short(volume.newest.id),
            output::size(volume.newest.sealed.bytes),
            volume.newest.sealed.entries.to_string(),
            output::size(volume.bytes),
        ]);
    }
    output::line(table)?;
    let saved = ratio.map_or(String::new(), |ratio| format!(", {ratio:.1} times less than all snapshots together"));
    output::line(format_args!(
        "stored: {} in {} packs and {} blobs{saved}; {} free",
        output::size(status.bytes),
        status.packs,
        status.blobs,
        output::size(status.free),
    ))
}
