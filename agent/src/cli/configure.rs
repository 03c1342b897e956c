//! `vsync configure`.

use serde_json::json;
use vsync_protocol::id::MachineName;

use super::GlobalArgs;
use super::context::{belongs, load_config, load_registry};
use super::output;
use super::report::{Exit, Failure};
use crate::config::find;
use crate::keys::{Existing, KeyStore, file};

/// Say which machine of the realm this is
///
/// Checks that the machine is in vsync.toml and that its keys are here and fit vsync.pub, then
/// writes its name to .vsync_identity beside vsync.toml.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  vsync configure production2")]
pub(super) struct ConfigureArgs {
    /// The machine, as in vsync.toml
    pub(super) name: MachineName,
}

impl ConfigureArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let config = load_config(global)?;
        let machine = config.machine(&self.name)?;
        let bundle = KeyStore::new(&config.keys).machine(&machine.name)?;
        belongs(&bundle, &load_registry(&config)?)?;
        let path = find::identity_path(&config.path);
        file::write_public(&path, &format!("{}\n", machine.name), Existing::Replace)?;
        if global.json {
            output::json(&json!({
                "machine": machine.name.as_str(), "realm": config.realm.as_str(), "role": bundle.role.to_string(),
            }))?;
        } else if !global.quiet {
            output::line(format_args!(
                "This machine is {} of realm {}, role {}.",
                machine.name, config.realm, bundle.role
            ))?;
            output::line("Next: vsync check")?;
        }
        Ok(Exit::Exact)
    }
}
