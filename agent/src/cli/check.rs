//! `vsync check`.

use jiff::Timestamp;
use serde::Serialize;
use vsync_protocol::id::MachineName;
use vsync_protocol::registry::Registry;

use super::GlobalArgs;
use super::connection;
use super::context::{self, load_config, load_registry};
use super::output::{self, Colour};
use super::report::{Exit, Failure};
use crate::config::{Config, find};
use crate::keys::KeyStore;

/// No clock that is right shows a time before this version was written.
const EARLIEST: &str = "2026-11-01T00:00:00Z";

/// Check that this machine is ready, and say what to do if it is not
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  vsync check\n  vsync check --connection")]
pub(super) struct CheckArgs {
    /// Connect to the servers, too
    #[arg(long)]
    connection: bool,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub(super) struct Finding {
    ok: bool,
    what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    to_do: Option<String>,
}

impl Finding {
    pub(super) fn good(what: impl Into<String>) -> Self {
        Self { ok: true, what: what.into(), to_do: None }
    }

    pub(super) fn bad(what: impl Into<String>, to_do: impl Into<String>) -> Self {
        Self { ok: false, what: what.into(), to_do: Some(to_do.into()) }
    }

    pub(super) fn failure(failure: Failure) -> Self {
        let hint = failure.hint.clone();
        Self { ok: false, what: Failure { hint: None, ..failure }.to_string(), to_do: hint }
    }
}

impl CheckArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let mut findings = offline(global);
        if self.connection && findings.iter().all(|finding| finding.ok) {
            findings.extend(connection::findings(global));
        }
        findings.iter().try_for_each(|finding| print(global, finding))?;
        Ok(if findings.iter().all(|finding| finding.ok) { Exit::Exact } else { Exit::Failed })
    }
}

fn print(global: &GlobalArgs, finding: &Finding) -> Result<(), Failure> {
    if global.json {
        return output::json(finding);
    }
    let colour = Colour::stdout();
    match finding {
        Finding { ok: true, .. } if global.quiet => Ok(()),
        Finding { ok: true, what, .. } => output::line(format_args!("{} {what}", colour.green("✓"))),
        Finding { what, to_do: None, .. } => output::line(format_args!("{} {what}", colour.red("✗"))),
        Finding { what, to_do: Some(to_do), .. } => {
            output::line(format_args!("{} {what}\n  to do: {to_do}", colour.red("✗")))
        }
    }
}

/// All that can be known without a server. What depends on something that failed is left out.
fn offline(global: &GlobalArgs) -> Vec<Finding> {
    let mut findings = vec![clock(Timestamp::now())];
    let config = match load_config(global) {
        Ok(config) => config,
        Err(error) => {
            findings.push(Finding::failure(error.into()));
            return findings;
        }
    };
    findings.push(Finding::good(format!("{} is well formed", config.path.display())));
    let registry = load_registry(&config).map_err(|error| findings.push(Finding::failure(error.into()))).ok();
    if let Some(registry) = &registry {
        findings.push(Finding::good(format!("vsync.pub lists {} machines", registry.machines().count())));
        findings.extend(signature(&config));
    }
    match identity(global, &config) {
        Ok(name) => {
            findings.push(Finding::good(format!("this machine is {name}")));
            findings.push(keys(&config, registry.as_ref(), &name));
            findings.extend(data(&config, &name));
        }
        Err(failure) => findings.push(Finding::failure(failure)),
    }
    findings
}

/// Whether a holder of the recovery kit could believe this vsync.pub. Only the administrator's
/// machine has the key with which to tell.
fn signature(config: &Config) -> Option<Finding> {
    let realm = KeyStore::new(&config.keys).realm().ok()?;
    let text = std::fs::read_to_string(config.registry_path()).ok()?;
    Some(if realm.is_signed(&text) {
        Finding::good("the signature of vsync.pub is current")
    } else {
        Finding::bad(
            "the signature of vsync.pub is stale: a machine with nothing but the recovery kit would not believe it",
            "run `vsync keygen --all` to sign again, and commit vsync.pub",
        )
    })
}

fn identity(global: &GlobalArgs, config: &Config) -> Result<MachineName, Failure> {
    let name = find::identity(&config.path, global.machine.as_ref())?;
    config.machine(&name)?;
    Ok(name)
}

/// Keys are there, private, and those of `vsync.pub`.
fn keys(config: &Config, registry: Option<&Registry>, name: &MachineName) -> Finding {
    let held = KeyStore::new(&config.keys).machine(name).map_err(Failure::from);
    let bundle = match held {
        Ok(bundle) => bundle,
        Err(failure) => return Finding::failure(failure),
    };
    match registry.map(|registry| context::belongs(&bundle, registry)) {
        Some(Err(error)) => Finding::failure(error.into()),
        Some(Ok(())) => Finding::good(format!("its keys are here, private, and in vsync.pub; role {}", bundle.role)),
        None => Finding::good(format!("its keys are here and private; role {}", bundle.role)),
    }
}

/// A server's data directory is there.
fn data(config: &Config, name: &MachineName) -> Option<Finding> {
    let server = config.servers.iter().find(|server| server.machine.name == *name)?;
    let path = server.data.display();
    Some(if server.data.is_dir() {
        Finding::good(format!("the data directory {path} is there"))
    } else {
        Finding::bad(format!("there is no data directory {path}"), format!("mkdir -p -m 700 {path}"))
    })
}

/// A wrong clock spoils schedules and retention.
fn clock(now: Timestamp) -> Finding {
    match EARLIEST.parse::<Timestamp>() {
        Ok(earliest) if now < earliest => {
            Finding::bad(format!("the clock shows {now:.0}, which is past"), "set the clock, for example with chrony")
        }
        _ => Finding::good("the clock is plausible"),
    }
}
