//! What the containers of `vsync server start` and `vsync schedule start` have in common: where configuration, keys and
//! engine are, and how to tell of them.

mod outside;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::json;
use vsync_protocol::id::MachineName;

pub(super) use self::outside::Outside;
use super::GlobalArgs;
use super::context::Context;
use super::output;
use super::report::{Exit, Failure};
use crate::config::KeysConfig;
use crate::docker::{self, Bind, DEFAULT_IMAGE, Engine, Service, ServiceStatus, Started};
use crate::keys::KeyStore;

/// Where the image comes from.
#[derive(Debug, clap::Args)]
pub(super) struct ImageArgs {
    /// The image; if it is missing, it is made of this very program
    #[arg(long, env = "VSYNC_IMAGE", value_name = "NAME", default_value = DEFAULT_IMAGE)]
    pub(super) image: String,
}

/// What is mounted into every container: the configuration as it is on the machine, and of the keys only the one.
pub(super) struct Home {
    /// vsync.toml, absolute.
    pub(super) config: PathBuf,
    /// The directory of the keys, absolute, if they are in one.
    keys: Option<PathBuf>,
    key: Option<PathBuf>,
    machine: MachineName,
}

impl Home {
    pub(super) fn find(context: &Context) -> Result<Self, Failure> {
        if docker::own_container().is_some() {
            return Err(Failure::new(
                Exit::Usage,
                "this is a container, which cannot say where things are on its machine",
            )
            .hint("run this on the machine itself".to_owned()));
        }
        let machine = context.bundle.machine.clone();
        let (keys, key) = match &context.config.keys {
            KeysConfig::Directory(directory) => {
                let key = PathBuf::from(KeyStore::new(&context.config.keys).machine_place(&machine));
                (Some(absolute(directory)?), Some(absolute(&key)?))
            }
            KeysConfig::Vault(_) => (None, None),
        };
        Ok(Self { config: absolute(&context.config.path)?, keys, key, machine })
    }

    /// Adds the configuration and the key to a container, each where it is on the machine.
    pub(super) fn mount(&self, service: &mut Service) {
        // The directory and not the files: git and editors put new files in the place of old ones.
        service.binds.extend(self.config.parent().map(|directory| Bind::same(directory.to_owned())));
        service.hidden.extend(self.keys.clone());
        service.binds.extend(self.key.clone().map(Bind::same));
        service.environment.push(("VSYNC_CONFIG".to_owned(), self.config.display().to_string()));
        service.environment.push(("VSYNC_AS".to_owned(), self.machine.to_string()));
        let keys = self.keys.iter().map(|keys| ("VSYNC_KEYS".to_owned(), keys.display().to_string()));
        service.environment.extend(keys);
    }

    /// Who owns the key, if it is a file.
    pub(super) fn owner(&self) -> Result<Option<(u32, u32)>, Failure> {
        self.key.as_deref().map(owner).transpose()
    }
}

/// User and group of a file.
pub(super) fn owner(path: &Path) -> Result<(u32, u32), Failure> {
    let metadata = fs::metadata(path).map_err(|error| unusable(path, &error))?;
    Ok((metadata.uid(), metadata.gid()))
}

/// Where `path` really is.
pub(super) fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    fs::canonicalize(path).map_err(|error| unusable(path, &error))
}

fn unusable(path: &Path, error: &std::io::Error) -> Failure {
    let failure = Failure::new(Exit::Failed, format!("cannot find {}", path.display()));
    Failure { causes: vec![error.to_string()], ..failure }
}

/// The engine, and its socket on this machine.
pub(super) async fn local_engine() -> Result<(Engine, PathBuf), Failure> {
    let engine = Engine::connect().await?;
    match engine.host().strip_prefix("unix://") {
        Some(socket) => {
            let socket = PathBuf::from(socket);
            Ok((engine, socket))
        }
        None => Err(Failure::new(
            Exit::Usage,
            format!(
                "the engine at {} is another machine's, where configuration and data of this one are not",
                engine.host()
            ),
        )
        .hint("run this on the machine of the engine".to_owned())),
    }
}

/// Starts a container and tells of it.
pub(super) async fn start(global: &GlobalArgs, engine: &Engine, service: &Service) -> Result<Exit, Failure> {
    let started = engine.start_service(service).await?;
    let already = if started == Started::Before { " already; stop it first to change it" } else { "" };
    if global.json {
        output::json(&json!({"container": service.name, "image": service.image, "started": started == Started::Now}))?;
    } else if !global.quiet {
        output::line(format_args!("container {} is running{already}", service.name))?;
    }
    Ok(Exit::Exact)
}

/// Tells that a container was stopped.
pub(super) fn stopped(global: &GlobalArgs, name: &str, was_there: bool) -> Result<Exit, Failure> {
    if global.json {
        output::json(&json!({"container": name, "stopped": was_there}))?;
    } else if !global.quiet {
        let what = if was_there { "was stopped and removed" } else { "does not exist" };
        output::line(format_args!("container {name} {what}"))?;
    }
    Ok(Exit::Exact)
}

/// A container's state as JSON.
pub(super) fn status_json(name: &str, status: Option<&ServiceStatus>) -> serde_json::Value {
    json!({
        "container": name,
        "running": status.is_some_and(ServiceStatus::is_running),
        "state": status.map(|status| &status.state),
        "since": status.and_then(|status| status.since.as_ref()),
        "restarts": status.map(|status| status.restarts),
        "image": status.map(|status| &status.image),
    })
}
