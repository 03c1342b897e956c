//! `vsync config …`.

use std::path::{Path, PathBuf};

use serde_json::json;
use vsync_protocol::id::{RealmName, VolumeName};

use super::GlobalArgs;
use super::context::load_config;
use super::init::name_of_directory;
use super::output::{self, Align, Table};
use super::report::{Exit, Failure};
use crate::config::{Config, ConfigError, find, privateer};
use crate::keys::{Existing, file};
use crate::suggest;

/// Check the configuration, or make one of privateer's
#[derive(Debug, clap::Subcommand)]
pub(super) enum ConfigCommand {
    /// Check vsync.toml, and show how it was understood
    ///
    /// What is wrong is listed with its line; a key or word that is unknown hides what else is.
    /// Nothing but the file is looked at; `vsync check` looks at this machine too.
    #[command(after_help = "Example:\n  vsync config check --config ./vsync.toml")]
    Check,

    /// Write a vsync.toml that says what a privateer.json says
    ///
    /// What has no counterpart is listed as a warning with its place in the JSON; read them
    /// all. An existing file is never overwritten.
    #[command(after_help = "Examples:\n  vsync config import privateer.json\n  \
                            vsync config import privateer.json --realm montagu --output - | less")]
    Import(ImportArgs),
}

/// What is converted, and where to.
#[derive(Debug, clap::Args)]
pub(super) struct ImportArgs {
    /// privateer's configuration
    #[arg(value_name = "PRIVATEER.JSON")]
    file: PathBuf,

    /// The file to write; `-` for stdout [default: vsync.toml beside it]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Name of the realm [default: the name of the directory]
    #[arg(long, env = "VSYNC_REALM", value_name = "NAME")]
    realm: Option<RealmName>,
}

impl ConfigCommand {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        match self {
            Self::Check => check(global),
            Self::Import(args) => args.run(global),
        }
    }
}

impl ImportArgs {
    fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let named = |failure: Failure| Failure {
            heading: format!("{} cannot be converted: {}", self.file.display(), failure.heading),
            ..failure
        };
        let text = std::fs::read_to_string(&self.file)
            .map_err(|source| Failure::from(ConfigError::Read { path: self.file.clone(), source }))?;
        let realm = self.realm.clone().or_else(|| name_of_directory(&self.file)).ok_or_else(|| {
            Failure::new(Exit::Usage, "the name of the directory cannot name a realm")
                .hint("give --realm NAME".to_owned())
        })?;
        let converted = privateer::convert(&text, &realm).map_err(|error| named(Failure::of(&error, Exit::Usage)))?;
        let to_stdout = self.output.as_deref() == Some(Path::new("-"));
        let output = self.output.clone().unwrap_or_else(|| self.file.with_file_name(find::FILE_NAME));
        // Checked before it is written, so that nothing comes out that we would refuse.
        Config::parse(&output, &converted.toml)?;
        if to_stdout {
            output::line(converted.toml.trim_end())?;
        } else {
            file::write_public(&output, &converted.toml, Existing::Refuse)?;
        }
        for warning in converted.warnings.iter().filter(|_| !global.json || to_stdout) {
            output::say(format_args!("warning: {warning}"));
        }
        if to_stdout {
            return Ok(Exit::Exact);
        }
        if global.json {
            let warnings = converted.warnings.iter().map(|it| json!({"at": it.at, "message": it.message}));
            output::json(&json!({"output": output, "warnings": warnings.collect::<Vec<_>>()}))?;
        } else if !global.quiet {
            output::line(format_args!("Wrote {}.", output.display()))?;
            output::line("Next: read it, `vsync config check`, `vsync init`, `vsync keygen --all`")?;
        }
        Ok(Exit::Exact)
    }
}

fn check(global: &GlobalArgs) -> Result<Exit, Failure> {
    let config = load_config(global)?;
    let warnings = unused_volumes(&config);
    if global.json {
        output::json(&json!({
            "realm": config.realm.as_str(),
            "servers": config.servers.iter().map(|server| server.machine.name.as_str()).collect::<Vec<_>>(),
            "clients": config.clients.iter().map(|client| client.name.as_str()).collect::<Vec<_>>(),
            "volumes": config.backed_up().iter().map(|volume| volume.as_str()).collect::<Vec<_>>(),
            "warnings": warnings,
        }))?;
    } else if !global.quiet {
        warnings.iter().for_each(|warning| output::say(format_args!("warning: {warning}")));
        output::line(format_args!("{} is well formed: realm {}\n", config.path.display(), config.realm))?;
        output::line(machines(&config))?;
    }
    Ok(Exit::Exact)
}

/// Settings of volumes that no machine backs up, which nobody may ever look at.
fn unused_volumes(config: &Config) -> Vec<String> {
    let backed_up = config.backed_up();
    let unused = config.volumes.iter().filter(|volume| !backed_up.contains(&&volume.name));
    let warning = |name: &VolumeName| {
        let near = suggest::suffix(name.as_str(), backed_up.iter().map(|volume| volume.as_str()));
        format!("no machine lists volume {name} under `backup`: its settings are for a stream of that name{near}")
    };
    unused.map(|volume| warning(&volume.name)).collect()
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
