//! `vsync init`.

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde_json::json;
use vsync_protocol::blob::Suite;
use vsync_protocol::id::RealmName;
use vsync_protocol::registry::Registry;

use super::GlobalArgs;
use super::context::{ContextError, load_registry};
use super::output;
use super::report::{Exit, Failure, io_exit};
use crate::config::{Config, KeysConfig, find};
use crate::keys::{Existing, KeyFileError, KeyStore, Kit, RealmKey, file};

const TEMPLATE: &str = include_str!("init.template.toml");

/// Start a realm: write vsync.toml, and make the realm's secret
///
/// A vsync.toml that is there already is used as it is. Nothing is ever overwritten. With
/// --kit FILE, a lost realm is brought back from its recovery kit instead of making a new one;
/// a vsync.pub that is there is kept, and signed again.
#[derive(Debug, Default, clap::Args)]
#[command(
    after_help = "Examples:\n  vsync init\n  vsync init --realm montagu --suite aes-256-gcm\n  vsync init --kit kit.txt"
)]
pub(super) struct InitArgs {
    /// Name of the realm [default: the name of the directory]
    #[arg(long, env = "VSYNC_REALM", value_name = "NAME")]
    realm: Option<RealmName>,

    /// Cipher of all backups, which cannot be changed later
    #[arg(long, env = "VSYNC_SUITE", value_enum, default_value = "chacha20-poly1305", conflicts_with = "kit")]
    suite: Cipher,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Cipher {
    /// Fast on every processor
    #[default]
    #[value(name = "chacha20-poly1305")]
    ChaCha20Poly1305,
    /// Faster on processors with AES instructions, slow on others
    #[value(name = "aes-256-gcm")]
    Aes256Gcm,
}

impl InitArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let path = global.config.clone().unwrap_or_else(|| PathBuf::from(find::FILE_NAME));
        let kit = global.recovery.kit.as_deref().map(read_kit).transpose()?;
        let config = self.config(&path, kit.as_ref())?;
        let store = KeyStore::new(&config.keys);
        let (realm, registry) = match kit {
            Some(kit) => recovered(&config, kit)?,
            None => self.generated(&config)?,
        };
        // The secret first: a public file without it would be a realm that nobody can use.
        store.put_realm(&realm)?;
        let existing = if registry.is_some() { Existing::Replace } else { Existing::Refuse };
        let registry = registry.unwrap_or_else(|| realm.registry());
        file::write_public(&config.registry_path(), &realm.sign(&registry), existing)?;
        ignore_identity(&config)?;
        if global.json {
            output::json(&json!({
                "realm": config.realm.as_str(),
                "configuration": config.path.display().to_string(),
                "registry": config.registry_path().display().to_string(),
                "secret": store.realm_place(),
            }))?;
        } else if !global.quiet {
            output::line(next_steps(&config, &store.realm_place()))?;
        }
        Ok(Exit::Exact)
    }

    /// A new realm, which has no `vsync.pub` yet.
    fn generated(&self, config: &Config) -> Result<(RealmKey, Option<Registry>), Failure> {
        let registry = config.registry_path();
        if registry.exists() {
            let heading = format!("realm {} exists already: {} is there", config.realm, registry.display());
            return Err(Failure::new(Exit::Failed, heading).hint(
                "take part in it with `vsync configure NAME`, recover it with --kit FILE, or start another realm in \
                 another directory"
                    .to_owned(),
            ));
        }
        let suite = match self.suite {
            Cipher::ChaCha20Poly1305 => Suite::ChaCha20Poly1305,
            Cipher::Aes256Gcm => Suite::Aes256Gcm,
        };
        let realm =
            RealmKey::generate(config.realm.clone(), suite).map_err(|error| Failure::of(&error, Exit::Failed))?;
        Ok((realm, None))
    }

    /// The configuration that is there; else a new one.
    fn config(&self, path: &Path, kit: Option<&Kit>) -> Result<Config, Failure> {
        if path.exists() {
            let config = Config::load(path)?;
            return match &self.realm {
                Some(realm) if *realm != config.realm => Err(Failure::new(
                    Exit::Usage,
                    format!("{} is of realm {}, not {realm}", path.display(), config.realm),
                )),
                _ => Ok(config),
            };
        }
        let realm = self.realm.clone().or_else(|| kit?.realm.clone()).or_else(|| name_of_directory(path));
        let realm = realm.ok_or_else(|| {
            Failure::new(Exit::Usage, "the name of this directory cannot name a realm")
                .hint("give --realm NAME".to_owned())
        })?;
        let text = TEMPLATE.replace("REALM", realm.as_str());
        // Checked before it is written, so that no name can make a file that we would refuse.
        let config = Config::parse(path, &text)?;
        file::write_public(path, &text, Existing::Refuse)?;
        Ok(config)
    }
}

pub(super) fn read_kit(path: &Path) -> Result<Kit, Failure> {
    match file::read(path) {
        Err(error @ KeyFileError::Missing { .. }) => Err(Failure::of(&error, Exit::NotAuthorised).hint(
            "give the file that `vsync key recovery-kit` made, or type the kit's line `secret` into one".to_owned(),
        )),
        text => Ok(Kit::parse(&text?)?),
    }
}

/// The realm of a recovery kit, and the `vsync.pub` that git has, if it has one.
fn recovered(config: &Config, kit: Kit) -> Result<(RealmKey, Option<Registry>), Failure> {
    let mut realm = kit.into_realm_key(config.realm.clone());
    match load_registry(config) {
        Err(ContextError::NoRegistry { .. }) => Ok((realm, None)),
        Ok(registry) if registry.realm.id != realm.root.realm_id() => {
            Err(Failure::new(Exit::NotAuthorised, "the recovery kit is of another realm than vsync.pub"))
        }
        // It may be newer than the kit, or the kit no more than its secret line.
        Ok(registry) => {
            (realm.suite, realm.epoch) = (registry.realm.suite, registry.realm.epoch);
            Ok((realm, Some(registry)))
        }
        Err(error) => Err(error.into()),
    }
}

pub(super) fn name_of_directory(config: &Path) -> Option<RealmName> {
    let absolute = std::path::absolute(config).ok()?;
    absolute.parent()?.file_name()?.to_str()?.parse().ok()
}

/// The identity differs on every machine, so git must not carry it from one to the other. Keys are kept from git in
/// their own directory; what somebody wrote here stays.
fn ignore_identity(config: &Config) -> Result<(), Failure> {
    let path = config.path.with_file_name(".gitignore");
    let cannot = |error: io::Error| Failure {
        causes: vec![error.to_string()],
        ..Failure::new(io_exit(&error), format!("cannot add .vsync_identity to {}", path.display()))
    };
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        read => read.map_err(cannot)?,
    };
    if text.lines().any(|line| line.trim().trim_start_matches('/') == ".vsync_identity") {
        return Ok(());
    }
    let newline = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    fs::write(&path, format!("{text}{newline}.vsync_identity\n")).map_err(cannot)
}

fn next_steps(config: &Config, secret: &str) -> String {
    let keys = match config.keys {
        KeysConfig::Directory(_) => "copy its key file from the key store, then vsync configure NAME",
        KeysConfig::Vault(_) => "vsync configure NAME, with a token that reads its key",
    };
    format!(
        "Realm {} is ready: {}, and its secret in {}.\n\n\
         Next:\n  \
         1. edit {}: your servers, clients and volumes\n  \
         2. vsync config check\n  \
         3. vsync keygen --all                      then commit vsync.toml and vsync.pub\n  \
         4. vsync key recovery-kit --out kit.txt    print it, lock it away, delete the file\n  \
         5. on each machine: {keys}\n\n\
         Without the recovery kit, losing this machine means losing every backup.",
        config.realm,
        config.path.display(),
        secret,
        config.path.display(),
    )
}
