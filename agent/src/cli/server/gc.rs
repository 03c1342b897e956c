//! `vsync server gc`.

use vsync_protocol::wire::{GcOrder, GcReport, Reply, Request};

use super::{Ordered, ordered};
use crate::cli::GlobalArgs;
use crate::cli::context::Context;
use crate::cli::output;
use crate::cli::report::{Exit, Failure, unexpected};

/// Remove what no snapshot needs any more
///
/// A server does this by itself every day. This orders one that runs to do it now, or does it on
/// the store of one that is stopped. Blobs go in steps: a round finds them needless, a later one
/// after three days of uptime moves their packs to the trash, where these stay for another seven.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  vsync server gc --dry-run\n  vsync server gc --empty-trash\n  vsync server gc --at-once --empty-trash  # all the space that can be had"
)]
pub(in crate::cli) struct GcArgs {
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Remove what is in the trash at once, to have its space
    #[arg(long, conflicts_with = "dry_run")]
    empty_trash: bool,
    /// Do not wait three days: forgotten snapshots whose data this takes cannot be brought back
    #[arg(long)]
    at_once: bool,
}

impl GcArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let order = GcOrder { dry_run: self.dry_run, empty_trash: self.empty_trash, at_once: self.at_once };
        let collect = |data: &std::path::Path, realm| vsync_server::upkeep::collect_once(data, realm, &order.into());
        let report = match ordered(Context::load(global)?, collect, &Request::Collect(order))? {
            Ordered::Done(report) | Ordered::Answered(Reply::Collected(report)) => report,
            Ordered::Answered(other) => return Err(unexpected(&other)),
        };
        if global.json {
            output::json(&serde_json::json!({
                "dry_run": self.dry_run, "condemned_blobs": report.condemned, "condemned_bytes": report.condemned_bytes,
                "trashed_packs": report.trashed, "trashed_bytes": report.trashed_bytes,
                "copied_bytes": report.copied_bytes,
                "removed_packs": report.removed, "removed_bytes": report.removed_bytes,
            }))?;
            return Ok(Exit::Exact);
        }
        let would = if self.dry_run { "would be " } else { "" };
        let GcReport {
            condemned, condemned_bytes, trashed, trashed_bytes, copied_bytes, removed, removed_bytes, ..
        } = report;
        output::line(format_args!("{would}condemned: {condemned} blobs, {condemned_bytes} bytes"))?;
        output::line(format_args!(
            "{would}moved to the trash: {trashed} packs, {trashed_bytes} bytes, of which {copied_bytes} were copied"
        ))?;
        output::line(format_args!("{would}removed from the trash: {removed} packs, {removed_bytes} bytes"))?;
        Ok(Exit::Exact)
    }
}
