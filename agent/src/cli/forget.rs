//! `vsync forget`.

use jiff::Zoned;
use serde_json::json;
use vsync_protocol::id::{MachineName, SnapshotId, VolumeName};
use vsync_protocol::plan::Fate;
use vsync_protocol::wire::{PlanReport, PlanRequest, Reply, Request};

use super::GlobalArgs;
use super::output;
use super::report::{Exit, Failure};
use super::session::{Session, short};
use super::spec::{Bare, Spec};

/// Give snapshots up, or show what retention would give up
///
/// Servers apply the retention of vsync.toml by themselves, by their own clock. This is for
/// looking ahead, and for single snapshots. Forgotten ones can be brought back with `vsync
/// undelete` for some days. To be run as one of the realm's servers.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vsync forget --dry-run
  vsync forget --dry-run --volume barman_recover
  vsync forget 1a2b3c4d 5e6f7a8b")]
pub(super) struct ForgetArgs {
    /// The snapshots to give up
    #[arg(value_name = "SNAPSHOT", required_unless_present = "dry_run")]
    snapshots: Vec<String>,

    /// Show the plan and what it would free; change nothing
    #[arg(short = 'n', long)]
    dry_run: bool,

    /// Plan for this volume only
    #[arg(long, value_name = "NAME", conflicts_with = "snapshots")]
    volume: Option<VolumeName>,

    /// The server [default: the only one]
    #[arg(long, env = "VSYNC_SERVER", value_name = "NAME")]
    server: Option<MachineName>,

    /// Of this machine only
    #[arg(long, env = "VSYNC_SOURCE", value_name = "NAME")]
    source: Option<MachineName>,
}

impl ForgetArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let session = Session::open(global, self.server.as_ref())?;
        let ids = self.snapshots.iter().map(|text| self.find(&session, text)).collect::<Result<Vec<_>, _>>()?;
        let plan = PlanRequest { volume: self.volume.clone(), source: self.source.clone(), ids: ids.clone() };
        let plan = match session.remote.request(&Request::Plan(plan))? {
            Reply::Plan(plan) => *plan,
            other => return Err(super::report::unexpected(&other)),
        };
        show(global, &plan)?;
        if let Some(frozen) = &plan.frozen {
            return Err(Failure::of(frozen, Exit::Failed).hint(
                "compare the server's clock with another; if it is right, `vsync server confirm-clock` there"
                    .to_owned(),
            ));
        }
        if !self.dry_run {
            order(&session, &Request::Forget { ids })?;
            if !global.quiet && !global.json {
                output::say("forgotten; `vsync undelete ID` brings one back until its data is collected");
            }
        }
        Ok(Exit::Exact)
    }
}

impl ForgetArgs {
    /// A whole id that is not listed is left to the server: of a snapshot whose manifest is
    /// lost, its log alone knows.
    fn find(&self, session: &Session, text: &str) -> Result<SnapshotId, Failure> {
        match (find_one(session, text, self.source.as_ref()), text.parse()) {
            (Err(failure), Ok(id)) if failure.code == Exit::NotFound => Ok(id),
            (found, _) => found,
        }
    }
}

/// Gives an order to the server, which must carry it out.
pub(super) fn order(session: &Session, request: &Request) -> Result<(), Failure> {
    match session.remote.request(request)? {
        Reply::Done(_) => Ok(()),
        other => Err(super::report::unexpected(&other)),
    }
}

/// The snapshots that `texts` name.
pub(super) fn find_all(
    session: &Session,
    texts: &[String],
    source: Option<&MachineName>,
) -> Result<Vec<SnapshotId>, Failure> {
    texts.iter().map(|text| find_one(session, text, source)).collect()
}

fn find_one(session: &Session, text: &str, source: Option<&MachineName>) -> Result<SnapshotId, Failure> {
    let spec = Spec::parse(text, Bare::Snapshot, &Zoned::now())?;
    Ok(session.find_listed(&spec, source)?.record.id)
}

fn show(global: &GlobalArgs, plan: &PlanReport) -> Result<(), Failure> {
    if global.json {
        let verdicts = plan.verdicts.iter().map(|verdict| {
            let forget = matches!(verdict.fate, Fate::Forget(_));
            json!({"id": verdict.id.to_string(), "forget": forget, "reason": verdict.fate.to_string()})
        });
        return output::json(&json!({
            "frozen": plan.frozen.as_ref().map(ToString::to_string),
            "snapshots": verdicts.collect::<Vec<_>>(),
            "forgotten": plan.forgotten,
            "bytes_freed": plan.bytes,
        }));
    }
    for verdict in &plan.verdicts {
        let what = if matches!(verdict.fate, Fate::Forget(_)) { "forget" } else { "keep" };
        output::line(format_args!("{what:6} {}  {}", short(verdict.id), verdict.fate))?;
    }
    if global.quiet {
        return Ok(());
    }
    output::line(format_args!("{} to forget, which frees {} in time", plan.forgotten, output::size(plan.bytes)))
}
