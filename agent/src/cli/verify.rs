//! `vsync verify`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use jiff::Zoned;
use serde_json::json;
use vsync_protocol::id::{MachineName, SnapshotId, VolumeName};
use vsync_protocol::wire::{JobKind, Listing};

use super::GlobalArgs;
use super::job::Job;
use super::output;
use super::progress::Display;
use super::report::{Exit, Failure};
use super::session::{Everything, Session, short};
use super::signal::Stop;
use super::spec::{At, Bare, Spec};
use crate::progress::Progress;
use crate::remote::Shown;
use crate::snapshot::Snapshot;
use crate::verify::{Damage, Sample, Verifier, VerifyReport};

/// How much damage is printed; `--json` has a thousand.
const SHOWN: usize = 50;

/// Check that backups are whole
///
/// The description of each snapshot is read and checked, and the server is asked for every
/// chunk by name. With --read-data chunks are read, decrypted and checked as well, all of
/// them or a sample. What several snapshots share is checked once. Exit code 13: damage.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vsync verify
  vsync verify barman_recover@latest --read-data
  vsync verify --read-data-subset 2.5%
  vsync verify --read-data-subset 1/7  # a seventh of all, another one each day of the week
  vsync verify barman_recover --read-data-subset 10G
  vsync verify --against-source --sample 5%")]
pub(super) struct VerifyArgs {
    /// Snapshots to check: all, all of a volume, or one
    #[arg(value_name = "VOLUME[@SNAPSHOT]")]
    what: Option<String>,

    /// The server to check [default: the only one]
    #[arg(long, env = "VSYNC_SERVER", value_name = "NAME")]
    server: Option<MachineName>,

    /// From this machine only
    #[arg(long, env = "VSYNC_SOURCE", value_name = "NAME")]
    source: Option<MachineName>,

    /// Read all chunks
    #[arg(long, conflicts_with = "read_data_subset")]
    read_data: bool,

    /// Read some chunks: a percentage (5%), a part (2/7) or a size as stored (10G)
    #[arg(long, value_name = "SUBSET")]
    read_data_subset: Option<Sample>,

    /// Compare with the volumes on this machine instead: files that have not changed since the
    /// snapshot must still hold what it holds
    #[arg(long, conflicts_with_all = ["read_data", "read_data_subset", "source"])]
    against_source: bool,

    /// Compare this share of the files, another one each time [default: 100%]
    #[arg(long, value_name = "PERCENT", requires = "against_source", value_parser = percent)]
    sample: Option<f64>,
}

/// `5%` as a part of one.
fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').and_then(|number| number.parse::<f64>().ok());
    let share = number.filter(|number| *number > 0.0 && *number <= 100.0);
    share.map(|number| number / 100.0).ok_or_else(|| "write a percentage, such as 5%".to_owned())
}

/// What is to be verified.
#[derive(Default)]
struct Subjects {
    snapshots: Vec<Snapshot>,
    unreadable: Vec<Unreadable>,
}

/// A snapshot that could not even be opened.
struct Unreadable {
    id: SnapshotId,
    failure: Failure,
}

impl VerifyArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let session = Session::open(global, self.server.as_ref())?;
        session.require_reader()?;
        if self.against_source {
            return super::against::run(global, &session, self.what.as_deref(), self.sample.unwrap_or(1.0));
        }
        let subjects = self.subjects(&session)?;
        for Unreadable { id, failure } in subjects.unreadable.iter().filter(|_| !global.json) {
            output::say(format_args!("damaged: snapshot {} cannot be read: {failure}", short(*id)));
        }
        let mut jobs = Jobs::begin(&session, &subjects.snapshots);
        let done = self.verify(global, &session, &subjects, &mut jobs);
        jobs.end(&done);
        done
    }

    fn verify(
        &self,
        global: &GlobalArgs,
        session: &Session,
        Subjects { snapshots, unreadable }: &Subjects,
        jobs: &mut Jobs<'_>,
    ) -> Result<Exit, Failure> {
        let progress = Arc::new(Progress::default());
        Stop::install()?.cancels(progress.clone());
        progress
            .total_entries
            .set(snapshots.iter().map(|snapshot| snapshot.sealed.entries).fold(0, u64::saturating_add));
        progress.total_bytes.set(snapshots.iter().map(|snapshot| snapshot.sealed.bytes).fold(0, u64::saturating_add));
        let sample = self.sample(session)?;
        let begun = Instant::now();
        let display = Display::start(global, "verifying", &progress);
        let mut verifier = Verifier::new(&session.remote, sample, &progress);
        let mut damaged = 0;
        let mut ended = Ok(());
        for snapshot in snapshots {
            let vault = session.vault(snapshot)?;
            match verifier.snapshot(snapshot, &vault) {
                Ok(true) => {}
                Ok(false) => {
                    damaged += 1;
                    jobs.damaged(snapshot);
                }
                Err(error) => {
                    ended = Err(error);
                    break;
                }
            }
        }
        drop(display);
        let report = verifier.finish();
        let names = snapshots.iter().map(|snapshot| (snapshot.id, snapshot)).collect();
        report.damage.iter().take(SHOWN).for_each(|damage| print_damage(global, damage, &names));
        if report.damage_count > SHOWN as u64 && !global.json {
            output::say(format_args!("and {} more", report.damage_count - SHOWN as u64));
        }
        ended?;
        Verified { session, report: &report, unreadable, damaged, begun }.show(global)?;
        damaged += unreadable.len() as u64;
        if damaged == 0 && report.damage_count == 0 {
            return Ok(Exit::Exact);
        }
        let all = report.snapshots + unreadable.len() as u64;
        Err(Failure::new(Exit::Damage, format!("{damaged} of {all} snapshots are damaged")).hint(
            "back the volumes up again: what their machines still have is sent anew and repairs the snapshots"
                .to_owned(),
        ))
    }

    fn sample(&self, session: &Session) -> Result<Sample, Failure> {
        let Some(sample) = &self.read_data_subset else {
            return Ok(if self.read_data { Sample::All } else { Sample::None });
        };
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).map_err(|error| Failure::new(Exit::Failed, format!("no randomness: {error}")))?;
        Ok(sample.clone().with(u64::from_le_bytes(seed), session.remote.status()?.bytes))
    }

    fn subjects(&self, session: &Session) -> Result<Subjects, Failure> {
        let mut listing = Listing { source: self.source.clone(), ..Listing::default() };
        if let Some(what) = &self.what {
            let spec = Spec::parse(what, Bare::Volume, &Zoned::now())?;
            if !spec.path.is_root() {
                return Err(Failure::new(Exit::Usage, "snapshots are checked as a whole, without :PATH"));
            }
            // A volume alone stands for all of its snapshots.
            if what.contains('@') || spec.at != At::Latest(0) || spec.volume.is_none() {
                let snapshots = vec![session.find(&spec, self.source.as_ref())?];
                return Ok(Subjects { snapshots, ..Subjects::default() });
            }
            listing.volume = spec.volume;
        }
        let Everything { listed, unreadable } = session.list_all(&listing, |_| false)?;
        if listing == Listing::default() {
            audit(session)?;
        }
        if listed.is_empty() && unreadable.is_empty() {
            return Err(session.no_snapshot(listing.volume.as_ref(), self.source.as_ref()));
        }
        let unreadable = unreadable.into_iter();
        let mut unreadable: Vec<Unreadable> = unreadable
            .map(|(record, error)| Unreadable { id: record.id, failure: Failure::of(&error, Exit::Damage) })
            .collect();
        let mut snapshots = Vec::new();
        for listed in &listed {
            match session.open_snapshot(listed) {
                Ok(snapshot) => snapshots.push(snapshot),
                Err(failure) => unreadable.push(Unreadable { id: listed.record.id, failure }),
            }
        }
        Ok(Subjects { snapshots, unreadable })
    }
}

/// The record of a verification: one job for each volume of each machine.
struct Jobs<'a>(BTreeMap<(MachineName, VolumeName), (Job<'a>, u64)>);

impl<'a> Jobs<'a> {
    fn begin(session: &'a Session, snapshots: &[Snapshot]) -> Self {
        let mut jobs = BTreeMap::new();
        for Snapshot { body, .. } in snapshots {
            let job = || (Job::begin(session, JobKind::Verify, &body.volume, Some(&body.source)), 0);
            jobs.entry((body.source.clone(), body.volume.clone())).or_insert_with(job);
        }
        Self(jobs)
    }

    fn damaged(&mut self, snapshot: &Snapshot) {
        if let Some((_, damaged)) = self.0.get_mut(&(snapshot.body.source.clone(), snapshot.body.volume.clone())) {
            *damaged += 1;
        }
    }

    /// Damage is the fault of the volume that has it; anything else is everybody's.
    fn end(self, done: &Result<Exit, Failure>) {
        for (job, damaged) in self.0.into_values() {
            if damaged > 0 {
                job.note(|result| result.defects = damaged);
                job.end(&Err(Failure::new(Exit::Damage, format!("{damaged} snapshots are damaged"))));
            } else if done.as_ref().is_err_and(|failure| failure.code != Exit::Damage) {
                job.end(done);
            } else {
                job.end(&Ok(Exit::Exact));
            }
        }
    }
}

/// Compares all that the server shows with its whole log.
fn audit(session: &Session) -> Result<(), Failure> {
    session.remote.audit(|| {
        let Everything { listed, unreadable } = session.list_all(&Listing::default(), |_| false)?;
        let readable = listed.iter().map(|listed| {
            // Only who has signed it can speak for what it says.
            let signed = session.open_snapshot(listed).is_ok();
            let witness = listed.body.witness.filter(|_| signed);
            Shown { id: listed.record.id, index: listed.record.index, witness }
        });
        let others = unreadable.iter().map(|(record, _)| Shown { id: record.id, index: record.index, witness: None });
        Ok::<_, Failure>(readable.chain(others).collect())
    })
}

fn print_damage(global: &GlobalArgs, damage: &Damage, names: &BTreeMap<SnapshotId, &Snapshot>) {
    if global.json {
        return;
    }
    let volume = names.get(&damage.snapshot).map_or(String::new(), |it| format!(" of {}", it.body.volume));
    let path = if damage.path.is_root() { ".".to_owned() } else { damage.path.to_string() };
    let more = if damage.entries > 1 { format!(" and {} more entries", damage.entries - 1) } else { String::new() };
    let id = short(damage.snapshot);
    output::say(format_args!("damaged: {id}{volume}: {path}{more}: blob {} is {}", damage.blob, damage.reason));
}

/// What a verification came to.
struct Verified<'a> {
    session: &'a Session,
    report: &'a VerifyReport,
    unreadable: &'a [Unreadable],
    /// Snapshots with damage.
    damaged: u64,
    begun: Instant,
}

impl Verified<'_> {
    fn show(&self, global: &GlobalArgs) -> Result<(), Failure> {
        let Self { session, report, unreadable, damaged, begun } = self;
        if global.json {
            let damage = report.damage.iter().map(|damage| {
                json!({
                    "snapshot": damage.snapshot.to_string(),
                    "path": damage.path.to_string(),
                    "entries": damage.entries,
                    "blob": damage.blob.to_string(),
                    "reason": damage.reason,
                })
            });
            return output::json(&json!({
                "message_type": "summary",
                "server": session.remote.server().as_str(),
                "snapshots": report.snapshots,
                "damaged_snapshots": damaged,
                "tree_blobs": report.nodes,
                "data_blobs": report.held,
                "data_blobs_read": report.read,
                "bytes_read": report.bytes_read,
                "num_errors": report.damage_count,
                "damage": damage.collect::<Vec<_>>(),
                "unreadable": unreadable.iter().map(|one| one.id.to_string()).collect::<Vec<_>>(),
                "total_duration": begun.elapsed().as_secs_f64(),
            }));
        }
        if global.quiet {
            return Ok(());
        }
        output::line(format_args!(
            "{} snapshots on {}: {} tree nodes read, {} chunks present, {} chunks ({}) read, in {}",
            report.snapshots,
            session.remote.server(),
            report.nodes,
            report.held,
            report.read,
            output::size(report.bytes_read),
            output::duration(begun.elapsed()),
        ))
    }
}
