//! `vsync server scrub`.

use vsync_protocol::wire::{Reply, Request};

use super::{Ordered, ordered};
use crate::cli::GlobalArgs;
use crate::cli::context::Context;
use crate::cli::output;
use crate::cli::report::{Exit, Failure, unexpected};

/// Read every byte of the store again and compare it with its hash
///
/// A server does this by itself, a little at a time. This orders one that runs to do it now, or
/// does it on the store of one that is stopped. What is damaged is named by snapshot, and comes again with the next backup that has it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  vsync server scrub\n  vsync server scrub --rate 100")]
pub(in crate::cli) struct ScrubArgs {
    /// MiB a second to read at most
    #[arg(long, value_name = "MIB")]
    rate: Option<u64>,
}

impl ScrubArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let rate = self.rate.map(|rate| rate.saturating_mul(1 << 20));
        let scrub = |data: &std::path::Path, realm| vsync_server::upkeep::scrub_once(data, realm, rate);
        let report = match ordered(Context::load(global)?, scrub, &Request::Scrub { rate })? {
            Ordered::Done(report) => report,
            Ordered::Answered(Reply::Scrubbed(report)) => *report,
            Ordered::Answered(other) => return Err(unexpected(&other)),
        };
        if global.json {
            let affected = report.affected.iter().map(|one| {
                serde_json::json!({ "volume": one.volume.as_str(), "source": one.source.as_str(), "id": one.id.to_string() })
            });
            output::json(&serde_json::json!({
                "packs": report.packs, "bytes": report.bytes, "damaged_packs": report.damaged_packs.len(),
                "healed_blobs": report.healed, "lost_blobs": report.lost, "affected": affected.collect::<Vec<_>>(),
                "misplaced_blobs": report.misplaced.unwrap_or(0),
                "bad_manifests": report.bad_manifests.iter().map(ToString::to_string).collect::<Vec<_>>(),
            }))?;
        } else {
            output::line(format_args!("{} packs with {} bytes read", report.packs, report.bytes))?;
            for one in &report.affected {
                output::line(format_args!("damaged: {} of {} from {}", one.id.short(), one.volume, one.source))?;
            }
            for id in &report.bad_manifests {
                output::line(format_args!("manifest lost or damaged: {id}"))?;
            }
            if let Some(count) = report.misplaced {
                output::line(format_args!("{count} blobs were not where the catalog said; it is right again"))?;
            }
        }
        if report.is_clean() {
            return Ok(Exit::Exact);
        }
        let (packs, manifests) = (report.damaged_packs.len(), report.bad_manifests.len());
        Err(Failure::new(
            Exit::Damage,
            format!(
                "damage found in {packs} packs and {manifests} manifests: {} blobs healed from copies, {} lost",
                report.healed, report.lost
            ),
        )
        .hint("back the volumes up again: what they still hold is sent anew".to_owned()))
    }
}
