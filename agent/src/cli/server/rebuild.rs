//! `vsync server rebuild`.

use super::own_entry;
use crate::cli::GlobalArgs;
use crate::cli::context::Context;
use crate::cli::output;
use crate::cli::report::{Exit, Failure};

/// Recreate the catalog from packs, manifests and log
///
/// The server must not be running. The old catalog is replaced when the new one is complete.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  vsync server rebuild\n  vsync server rebuild --rehash")]
pub(in crate::cli) struct RebuildArgs {
    /// Hash every blob again instead of trusting the packs' tables
    #[arg(long)]
    rehash: bool,
}

impl RebuildArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let context = Context::load(global)?;
        let server = own_entry(&context)?;
        let trust = if self.rehash { vsync_server::Trust::Nothing } else { vsync_server::Trust::Tables };
        let report = vsync_server::rebuild(&server.data, context.bundle.realm_id, trust)
            .map_err(|error| Failure::of(&error, Exit::Failed))?;
        if global.json {
            output::json(&serde_json::json!({
                "packs": report.totals.packs, "blobs": report.totals.blobs, "snapshots": report.totals.snapshots,
                "damaged_packs": report.damaged_packs, "damaged_blobs": report.damaged_blobs,
                "lost_manifests": report.lost_manifests,
                "jobs": report.jobs.jobs, "jobs_lost": report.jobs.lost,
            }))?;
        } else {
            let totals = report.totals;
            output::line(format_args!(
                "catalog rebuilt: {} snapshots, {} blobs in {} packs",
                totals.snapshots, totals.blobs, totals.packs
            ))?;
        }
        if report.jobs.lost && !global.quiet {
            // No backup is the poorer for it.
            output::say(format_args!(
                "the record of earlier jobs could not be read; {} of them were kept",
                report.jobs.jobs
            ));
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
