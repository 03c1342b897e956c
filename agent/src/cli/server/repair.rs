//! `vsync server repair`.

use super::own_entry;
use crate::cli::GlobalArgs;
use crate::cli::context::Context;
use crate::cli::output;
use crate::cli::report::{Exit, Failure};

/// Mend a damaged store as far as that is possible
///
/// The server must not be running. A damaged log is made whole from the catalog, a damaged
/// catalog from everything else, and every blob that can still be read is taken out of damaged
/// packs. What is replaced is kept in `quarantine` of the store; nothing is dropped. A store
/// that is whole stays as it is.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  vsync server repair")]
pub(in crate::cli) struct RepairArgs {}

impl RepairArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let context = Context::load(global)?;
        let report = vsync_server::repair(&own_entry(&context)?.data, context.bundle.realm_id)?;
        let (scrub, lost_manifests) = (&report.scrub, report.scrub.bad_manifests.len());
        if global.json {
            let affected = scrub.affected.iter().map(|one| {
                serde_json::json!({ "volume": one.volume.as_str(), "source": one.source.as_str(), "id": one.id.to_string() })
            });
            output::json(&serde_json::json!({
                "log_entries_restored": report.log, "catalog_rebuilt": report.catalog.is_some(),
                "blobs_recovered": report.recovered, "damaged_packs": scrub.damaged_packs.len(),
                "lost_blobs": scrub.lost, "lost_manifests": lost_manifests,
                "affected": affected.collect::<Vec<_>>(),
            }))?;
        } else {
            match report.log {
                Some(restored) => output::line(format_args!("log: mended, {restored} entries restored"))?,
                None => output::line(format_args!("log: whole"))?,
            }
            let catalog = if report.catalog.is_some() { "made anew" } else { "whole" };
            output::line(format_args!("catalog: {catalog}"))?;
            output::line(format_args!("blobs: {} recovered, {} lost", report.recovered, scrub.lost))?;
            for one in &scrub.affected {
                output::line(format_args!("damaged: {} of {} from {}", one.id.short(), one.volume, one.source))?;
            }
            for id in &scrub.bad_manifests {
                output::line(format_args!("manifest lost: {id}"))?;
            }
        }
        if scrub.lost == 0 && scrub.affected.is_empty() && lost_manifests == 0 {
            return Ok(Exit::Exact);
        }
        Err(Failure::new(
            Exit::Damage,
            format!("{} blobs and {lost_manifests} manifests could not be recovered", scrub.lost),
        )
        .hint("back the volumes up again: what they still hold is sent anew".to_owned()))
    }
}
