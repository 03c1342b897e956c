//! `vsync release`.

use vsync_protocol::id::{MachineName, VolumeName};
use vsync_protocol::wire::Request;

use super::GlobalArgs;
use super::forget::order;
use super::output;
use super::report::{Exit, Failure};
use super::session::Session;

/// Let retention of a volume go on after it was held
///
/// When most of a volume's content is suddenly not in its newest snapshot, its server pins the
/// snapshot before and forgets none of that volume any more: somebody may have emptied it, or
/// encrypted it. `vsync status` says so. Look at the volume; if all is well, release it. To be
/// run as one of the realm's servers.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  vsync release barman_recover\n  vsync release montagu_orderly_volume --source production2"
)]
pub(super) struct ReleaseArgs {
    /// The volume
    #[arg(value_name = "VOLUME")]
    volume: VolumeName,

    /// The server [default: the only one]
    #[arg(long, env = "VSYNC_SERVER", value_name = "NAME")]
    server: Option<MachineName>,

    /// From this machine only
    #[arg(long, env = "VSYNC_SOURCE", value_name = "NAME")]
    source: Option<MachineName>,
}

impl ReleaseArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let session = Session::open(global, self.server.as_ref())?;
        order(&session, &Request::Release { volume: self.volume.clone(), source: self.source.clone() })?;
        if global.json {
            output::json(&serde_json::json!({"volume": self.volume.as_str(), "done": "released"}))?;
        } else if !global.quiet {
            output::line(format_args!("released: retention of {} goes on", self.volume))?;
        }
        Ok(Exit::Exact)
    }
}
