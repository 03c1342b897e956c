//! `vsync key …`.

use std::path::PathBuf;

use jiff::Zoned;
use serde_json::json;

use super::GlobalArgs;
use super::context::{ContextError, load_config, load_registry};
use super::output;
use super::report::{Exit, Failure};
use crate::config::Config;
use crate::keys::{Existing, KeyStore, Kit, KitServer, file};

/// Care for the realm's secrets
#[derive(Debug, clap::Subcommand)]
pub(super) enum KeyCommand {
    /// Print the recovery kit: one page from which everything can be restored
    ///
    /// Print it on paper, lock it away, and make a new one when servers change. Whoever has it
    /// reads every backup; without it, losing all machines means losing all backups.
    #[command(after_help = "Examples:\n  vsync key recovery-kit | lp\n  vsync key recovery-kit --out kit.txt")]
    RecoveryKit {
        /// Write to a new file that only its owner can read, not to stdout
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

impl KeyCommand {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let Self::RecoveryKit { out } = self;
        let config = load_config(global)?;
        let servers = servers(&config)?;
        for server in config.servers.iter().map(|server| &server.machine.name) {
            if !servers.iter().any(|known| known.name == *server) {
                output::say(format_args!(
                    "This kit lacks the key of {server}; run `vsync keygen --all`, and print it again"
                ));
            }
        }
        let kit = Kit::new(KeyStore::new(&config.keys).realm()?, servers);
        let page = kit.page(Zoned::now().date());
        if let Some(path) = out {
            file::write(path, &page, Existing::Refuse)?;
        }
        match out {
            Some(path) if global.json => output::json(&json!({"written": path.display().to_string()}))?,
            Some(_) if global.quiet => {}
            Some(path) => output::line(format_args!("Wrote {}. Print it, then delete the file.", path.display()))?,
            None if global.json => output::json(&json!({"page": page.trim_end()}))?,
            None => output::line(page.trim_end())?,
        }
        Ok(Exit::Exact)
    }
}

/// The servers that have keys by now.
fn servers(config: &Config) -> Result<Vec<KitServer>, ContextError> {
    let registry = match load_registry(config) {
        Err(ContextError::NoRegistry { .. }) => return Ok(Vec::new()),
        result => result?,
    };
    let servers = config.servers.iter().filter_map(|server| {
        let address = match &server.address {
            Some(address) => address.to_string(),
            None => server.data.display().to_string(),
        };
        let name = server.machine.name.clone();
        Some(KitServer { key: registry.key_of(&name)?, name, address })
    });
    Ok(servers.collect())
}
