//! `vsync config …`.

use serde_json::json;

use super::GlobalArgs;
use super::context::load_config;
use super::output::{self, Align, Table};
use super::report::{Exit, Failure};
use crate::config::Config;

/// Check the configuration
#[derive(Debug, clap::Subcommand)]
pub(super) enum ConfigCommand {
    /// Check vsync.toml, and show how it was understood
    ///
    /// Everything that is wrong is listed with its line. Nothing but the file is looked at;
    /// `vsync check` looks at this machine too.
    #[command(after_help = "Example:\n  vsync config check --config ./vsync.toml")]
    Check,
}

impl ConfigCommand {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let Self::Check = self;
        let config = load_config(global)?;
        if global.json {
            output::json(&json!({
                "realm": config.realm.as_str(),
                "servers": config.servers.iter().map(|server| server.machine.name.as_str()).collect::<Vec<_>>(),
                "clients": config.clients.iter().map(|client| client.name.as_str()).collect::<Vec<_>>(),
                "volumes": config.backed_up().iter().map(|volume| volume.as_str()).collect::<Vec<_>>(),
            }))?;
        } else if !global.quiet {
            output::line(format_args!("{} is well formed: realm {}\n", config.path.display(), config.realm))?;
            output::line(machines(&config))?;
        }
        Ok(Exit::Exact)
    }
}

fn machines(config: &Config) -> Table<4> {
    let mut table = Table::new([
        ("MACHINE", Align::Left),
        ("ROLE", Align::Left),
        ("ADDRESS", Align::Left),
        ("BACKS UP", Align::Left),
    ]);
    for machine in config.machines() {
        let server = config.servers.iter().find(|server| server.machine.name == machine.name);
        let address = server.map_or_else(String::new, |server| {
            server.address.as_ref().map_or_else(|| "(embedded)".to_owned(), ToString::to_string)
        });
        let volumes: Vec<&str> = machine.backup.iter().map(|volume| volume.as_str()).collect();
        table.row([machine.name.to_string(), machine.role.to_string(), address, volumes.join(", ")]);
    }
    table
}
