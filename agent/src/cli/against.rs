//! `vsync verify --against-source`.

use std::sync::Arc;
use std::time::Instant;

use jiff::Zoned;
use serde_json::json;
use vsync_protocol::id::VolumeName;
use vsync_protocol::tree::EntryPath;

use super::GlobalArgs;
use super::output;
use super::progress::Display;
use super::report::{Exit, Failure};
use super::session::{Session, short};
use super::signal::Stop;
use super::spec::{Bare, Spec};
use super::volumes::{self, Place};
use crate::progress::Progress;
use crate::remote::RemoteNodes;
use crate::restore::RestoreError;
use crate::snapshot::Snapshot;
use crate::tree::TreeReader;
use crate::vault::Opener;
use crate::verify::{Share, SourceError, SourceReport, compare};
use crate::volume::Walker;

/// How many paths are printed; `--json` has a thousand.
const SHOWN: usize = 50;

/// Compares what this machine backs up, or what `what` names of it, with the volumes here.
pub(super) fn run(global: &GlobalArgs, session: &Session, what: Option<&str>, share: f64) -> Result<Exit, Failure> {
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(|error| Failure::new(Exit::Failed, format!("no randomness: {error}")))?;
    let share = Share { share, seed: u64::from_le_bytes(seed) };
    let own = &session.context.bundle.machine;
    let all: Vec<String> = match what {
        Some(what) => vec![what.to_owned()],
        None => session.context.config.machine(own)?.backup.iter().map(ToString::to_string).collect(),
    };
    if all.is_empty() {
        return Err(Failure::new(Exit::Usage, format!("{own} backs up no volumes to compare with"))
            .hint("run it on the machine that the snapshot is from".to_owned()));
    }
    let mut differing = 0;
    for what in &all {
        let spec = Spec::parse(what, Bare::Volume, &Zoned::now())?;
        if !spec.path.is_root() {
            return Err(Failure::new(Exit::Usage, "volumes are compared as a whole, without :PATH"));
        }
        let snapshot = session.find(&spec, Some(own))?;
        differing += one(global, session, &snapshot, share)?;
    }
    if differing == 0 {
        return Ok(Exit::Exact);
    }
    let heading = format!("{differing} files have not changed since the snapshot, but hold something else");
    Err(Failure::new(Exit::Damage, heading).hint(
        "find out which side is right: `vsync restore --to-path DIR` gives the snapshot's; look at this machine's disk"
            .to_owned(),
    ))
}

/// Compares one snapshot; returns how many files differ.
fn one(global: &GlobalArgs, session: &Session, snapshot: &Snapshot, share: Share) -> Result<u64, Failure> {
    let volume = &snapshot.body.volume;
    let directory = match volumes::locate(global, &session.context, volume)? {
        Place::Directory(path) | Place::Volume(path, _) => path,
        Place::Helper(_) => {
            return Err(Failure::new(Exit::Failed, format!("the directory of {volume} cannot be reached from here"))
                .hint("run vsync where /var/lib/docker can be read, as root".to_owned()));
        }
    };
    let progress = Arc::new(Progress::default());
    Stop::install()?.cancels(progress.clone());
    progress.total_entries.set(snapshot.sealed.entries);
    progress.total_bytes.set(snapshot.sealed.bytes);
    let begun = Instant::now();
    let vault = session.vault(snapshot)?;
    let opener = Opener::new(vault.clone()).map_err(|error| Failure::of(&error, Exit::Failed))?;
    let nodes = RemoteNodes::new(session.remote.fetcher(), opener);
    let walker = Walker::open(&directory).map_err(|error| Failure::of(&error, Exit::Failed))?;
    let display = Display::start(global, "comparing", &progress);
    let compared = TreeReader::open(nodes, &snapshot.root(), &EntryPath::root())
        .map_err(SourceError::from)
        .and_then(|(_, mut reader)| compare(walker, &mut reader, &vault, share, &progress));
    drop(display);
    let report = compared.map_err(|error| match error {
        SourceError::Tree(error) => Failure::from(RestoreError::Tree(error)),
        SourceError::Verify(error) => error.into(),
    })?;
    show(global, volume, snapshot, &report, begun)?;
    Ok(report.differing_count)
}

fn show(
    global: &GlobalArgs,
    volume: &VolumeName,
    snapshot: &Snapshot,
    report: &SourceReport,
    begun: Instant,
) -> Result<(), Failure> {
    let paths = |paths: &[EntryPath]| paths.iter().take(1000).map(ToString::to_string).collect::<Vec<_>>();
    if global.json {
        return output::json(&json!({
            "message_type": "summary",
            "volume": volume.as_str(),
            "snapshot_id": snapshot.id.to_string(),
            "entries": report.entries,
            "files_same": report.same,
            "bytes_compared": report.bytes,
            "files_left_out": report.left_out,
            "changed_since": report.changed,
            "new_since": report.new,
            "unreadable": paths(&report.unreadable),
            "differing": paths(&report.differing),
            "num_errors": report.differing_count,
            "total_duration": begun.elapsed().as_secs_f64(),
        }));
    }
    for path in report.unreadable.iter().take(SHOWN) {
        output::say(format_args!("unreadable here: {path}"));
    }
    for path in report.differing.iter().take(SHOWN) {
        output::say(format_args!("differs: {path}"));
    }
    if global.quiet {
        return Ok(());
    }
    output::line(format_args!(
        "{volume}@{}: {} files with {} are as in the snapshot; {} left out, {} changed since, {} new since, in {}",
        short(snapshot.id),
        report.same,
        output::size(report.bytes),
        report.left_out,
        report.changed,
        report.new,
        output::duration(begun.elapsed()),
    ))
}
