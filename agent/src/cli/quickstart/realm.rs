//! The realm of a quickstart: one machine, and a server embedded in the agent.

use std::fs;
use std::path::{Path, PathBuf};

use vsync_protocol::id::VolumeName;

use super::super::GlobalArgs;
use super::super::configure::ConfigureArgs;
use super::super::init::InitArgs;
use super::super::keygen::KeygenArgs;
use super::super::recovery::RecoveryArgs;
use super::super::report::{Exit, Failure};
use crate::config::{Config, find};
use crate::keys::{Existing, KeyStore, file};

/// The machine that it is run on.
const MACHINE: &str = "this-machine";

/// The line of the configuration that lists what is backed up.
const BACKUP: &str = "backup = [";

/// A realm that is ready.
pub(super) struct Realm {
    /// With its configuration, and nothing of the user's other realms.
    pub(super) global: GlobalArgs,
    /// It was there before.
    pub(super) existed: bool,
}

/// Makes the realm in `home`, or takes up the one that is there, so that it backs up `volume`,
/// which is a directory if `path` is given.
pub(super) fn prepare(
    global: &GlobalArgs,
    home: &Path,
    volume: &VolumeName,
    path: Option<&Path>,
) -> Result<Realm, Failure> {
    fs::create_dir_all(home).map_err(|error| {
        Failure::of(&error, Exit::Failed).hint("run this in a directory that you may write to".to_owned())
    })?;
    let config = home.join(find::FILE_NAME);
    let existed = config.exists();
    if !existed {
        let text = text(home)?;
        // Checked before it is written, as `vsync init` does.
        Config::parse(&config, &text)?;
        file::write_public(&config, &text, Existing::Refuse)?;
    }
    admit(&config, volume, path)?;
    let global = GlobalArgs {
        config: Some(config.clone()),
        machine: None,
        keys: None,
        state_dir: Some(home.join("state")),
        recovery: RecoveryArgs::default(),
        ..global.clone()
    };
    let silent = GlobalArgs { quiet: true, json: false, ..global.clone() };
    let store = KeyStore::new(&Config::load(&config)?.keys);
    // Each step by itself, so that a run that was interrupted is gone on with.
    if !store.has_realm()? {
        InitArgs::default().run(&silent)?;
    }
    KeygenArgs::all().run(&silent)?;
    if !find::identity_path(&config).exists() {
        let name = MACHINE.parse().map_err(|error: vsync_protocol::id::BadName| Failure::of(&error, Exit::Failed))?;
        ConfigureArgs { name }.run(&silent)?;
    }
    Ok(Realm { global, existed })
}

fn text(home: &Path) -> Result<String, Failure> {
    let data = quoted(&home.join("store"))?;
    Ok(format!(
        "# Written by `vsync quickstart`.\n\n\
         [realm]\nname = \"quickstart\"\n\n\
         # Without `address` it is embedded: each command runs it by itself.\n\
         [[servers]]\nname = \"embedded\"\ndata = {data}\n\n\
         [[clients]]\nname = \"{MACHINE}\"\n{BACKUP}]\n\n\
         [keys]\nstore = \"directory\"\n"
    ))
}

/// Lists the volume in the configuration, unless it is there. The rest of the text stays as
/// it is: somebody may have edited it.
fn admit(config: &Path, volume: &VolumeName, path: Option<&Path>) -> Result<(), Failure> {
    let known = Config::load(config)?;
    let listed = known.backed_up().contains(&volume);
    let place = known.volume(volume).and_then(|volume| volume.path.clone());
    if listed && place.as_deref() == path {
        return Ok(());
    }
    let by_hand =
        || format!("list {volume} under `backup` of {MACHINE}, with its `path` under [[volumes]] if it is a directory");
    if listed || place.is_some() {
        let heading = format!("{} has another volume {volume} already", config.display());
        return Err(Failure::new(Exit::Usage, heading)
            .hint("run this in another directory, or remove vsync-quickstart to begin anew".to_owned()));
    }
    let text = fs::read_to_string(config).map_err(|error| Failure::of(&error, Exit::Failed))?;
    let line = format!("\n{BACKUP}");
    if !text.contains(&line) {
        return Err(Failure::new(Exit::Usage, format!("{} was edited: it has no line `{BACKUP}…`", config.display()))
            .hint(by_hand()));
    }
    let rest = if known.backed_up().is_empty() { "" } else { ", " };
    let mut text = text.replacen(&line, &format!("{line}\"{volume}\"{rest}"), 1);
    if let Some(path) = path {
        text.push_str(&format!("\n[[volumes]]\nname = \"{volume}\"\npath = {}\n", quoted(path)?));
    }
    Config::parse(config, &text).map_err(|error| Failure::from(error).hint(by_hand()))?;
    Ok(file::write_public(config, &text, Existing::Replace)?)
}

/// A path as a TOML string.
fn quoted(path: &Path) -> Result<String, Failure> {
    let text = path.to_str().ok_or_else(|| {
        Failure::new(Exit::Usage, format!("{} is not UTF-8, and cannot be written into vsync.toml", path.display()))
    })?;
    Ok(toml::Value::String(text.to_owned()).to_string())
}

/// Where the realm is: below the current directory.
pub(super) fn home() -> Result<PathBuf, Failure> {
    let current = std::env::current_dir().map_err(|error| Failure::of(&error, Exit::Failed))?;
    Ok(current.join("vsync-quickstart"))
}
