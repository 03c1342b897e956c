//! `vsync server rebuild`.

use vsync_server::RebuildReport;

use super::own_entry;
use crate::cli::GlobalArgs;
use crate::cli::context::Context;
use crate::cli::output;
use crate::cli::report::{Exit, Failure};

/// Recreate the catalog from packs, manifests and log
///
/// The server must not be running. The old catalog is replaced when the new one is complete.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  vsync server rebuild\n  vsync server rebuild --rehash\n  vsync server rebuild --new-log"
)]
pub(in crate::cli) struct RebuildArgs {
    /// Hash every blob again instead of trusting the packs' tables
    #[arg(long)]
    rehash: bool,

    /// Begin a new log: where both log and catalog are lost, from the manifests alone
    #[arg(long)]
    new_log: bool,
}

impl RebuildArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let context = Context::load(global)?;
        let server = own_entry(&context)?;
        let trust = if self.rehash { vsync_server::Trust::Nothing } else { vsync_server::Trust::Tables };
        let realm = context.bundle.realm_id;
        let rebuilt = if self.new_log {
            vsync_server::rebuild_without_log(&server.data, realm, trust)
        } else {
            vsync_server::rebuild(&server.data, realm, trust).map_err(Into::into)
        };
        let report = rebuilt.map_err(|error| Failure::of(&error, Exit::Failed))?;
        if global.json {
            output::json(&in_json(&report))?;
        } else {
            let totals = report.totals;
            output::line(format_args!(
                "catalog rebuilt: {} snapshots, {} blobs in {} packs",
                totals.snapshots, totals.blobs, totals.packs
            ))?;
        }
        if !global.quiet {
            say_what_is_lost(&report);
        }
        if report.damaged_packs + report.damaged_blobs + report.lost_manifests == 0 {
            return Ok(Exit::Exact);
        }
        Err(Failure::new(
            Exit::Damage,
            format!(
                "damage found: {} packs, {} blobs, {} lost manifests",
                report.damaged_packs, report.damaged_blobs, report.lost_manifests
            ),
        )
        .hint("back the volumes up again: what they still hold is sent anew".to_owned()))
    }
}

fn in_json(report: &RebuildReport) -> serde_json::Value {
    let new_log = report.log.map(
        |log| serde_json::json!({ "manifests": log.manifests, "forgotten": log.forgotten, "left_out": log.left_out }),
    );
    serde_json::json!({
        "packs": report.totals.packs, "blobs": report.totals.blobs, "snapshots": report.totals.snapshots,
        "damaged_packs": report.damaged_packs, "damaged_blobs": report.damaged_blobs,
        "lost_manifests": report.lost_manifests, "new_log": new_log,
        "jobs": report.jobs.jobs, "jobs_lost": report.jobs.lost,
    })
}

/// No backup is the poorer for it.
fn say_what_is_lost(report: &RebuildReport) {
    if let Some(log) = report.log {
        output::say(format_args!(
            "the new log names {} manifests; of {} the data is not all here, and {} files were left out. What was \
             forgotten or pinned before is not known any more, and machines that know the old log end with exit code 14",
            log.manifests, log.forgotten, log.left_out
        ));
    }
    if report.jobs.lost {
        output::say(format_args!(
            "the record of earlier jobs could not be read; {} of them were kept",
            report.jobs.jobs
        ));
    }
}
