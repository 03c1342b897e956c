//! Options of commands that read one snapshot.

use vsync_protocol::id::MachineName;

use super::GlobalArgs;
use super::report::Failure;
use super::session::Session;
use super::spec::Spec;
use crate::snapshot::Snapshot;

/// Where a snapshot comes from, if its volume does not tell.
#[derive(Debug, clap::Args)]
pub(super) struct FromArgs {
    /// The server to ask [default: the only one]
    #[arg(long, env = "VSYNC_SERVER", value_name = "NAME")]
    server: Option<MachineName>,

    /// The machine whose backup it is [default: the only one that has it]
    #[arg(long, env = "VSYNC_SOURCE", value_name = "NAME")]
    source: Option<MachineName>,
}

impl FromArgs {
    /// Connects to the server, and finds the snapshot there.
    pub(super) fn find(&self, global: &GlobalArgs, spec: &Spec) -> Result<(Session, Snapshot), Failure> {
        let session = Session::open(global, self.server.as_ref())?;
        let snapshot = session.find(spec, self.source.as_ref())?;
        Ok((session, snapshot))
    }
}
