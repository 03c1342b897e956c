//! What most commands begin with: the configuration, the public keys, and this machine's own.

use std::io;
use std::path::PathBuf;

use thiserror::Error;
use vsync_protocol::id::{MachineName, RealmName, VolumeName};
use vsync_protocol::registry::{Registry, RegistryError};

use super::GlobalArgs;
use crate::config::{Config, ConfigError, KeysConfig, find};
use crate::keys::{Bundle, KeyStore, KeyStoreError};
use crate::remote::Patience;

/// A machine that knows who it is.
#[derive(Debug)]
pub(crate) struct Context {
    /// `vsync.toml`.
    pub(crate) config: Config,
    /// `vsync.pub`.
    pub(crate) registry: Registry,
    /// The keys of this machine; [`Bundle::machine`] is its name.
    pub(crate) bundle: Bundle,
    /// Where caches and journals of this machine are.
    pub(crate) state_dir: PathBuf,
    /// How long a server may stay away or silent.
    pub(crate) patience: Patience,
}

/// The machine cannot work for the realm as it is.
#[derive(Debug, Error)]
pub(crate) enum ContextError {
    /// The configuration is missing or wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The machine's keys are missing or damaged.
    #[error(transparent)]
    Keys(#[from] KeyStoreError),
    /// `vsync.pub` is wrong.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// `vsync.pub` cannot be read.
    #[error("cannot read {}", path.display())]
    ReadRegistry {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no `vsync.pub`.
    #[error("there is no {}: this realm has no keys yet", path.display())]
    NoRegistry {
        /// The file.
        path: PathBuf,
    },
    /// `vsync.pub` and `vsync.toml` do not belong together.
    #[error("vsync.pub is of realm {public}, but vsync.toml of realm {config}")]
    OtherName {
        /// The realm in `vsync.pub`.
        public: RealmName,
        /// The realm in `vsync.toml`.
        config: RealmName,
    },
    /// The keys are another realm's.
    #[error("the keys of {machine} belong to another realm than vsync.pub")]
    OtherRealm {
        /// This machine.
        machine: MachineName,
    },
    /// The machine has no line in `vsync.pub`.
    #[error("{machine} is locked out: it has no `machine` line in vsync.pub")]
    LockedOut {
        /// This machine.
        machine: MachineName,
    },
    /// The key is not the one in `vsync.pub`.
    #[error("the key of {machine} on this machine is not the one in vsync.pub")]
    OtherKey {
        /// This machine.
        machine: MachineName,
    },
    /// There is no place for state.
    #[error("no place for local state: neither --state-dir, XDG_STATE_HOME nor HOME is set")]
    NoStateDir,
}

impl ContextError {
    /// What to do about it; for wrapped errors, they know.
    #[must_use]
    pub(crate) fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoRegistry { .. } => "run `vsync init` and `vsync keygen --all` on the administrator's machine, \
                                        and commit vsync.pub beside vsync.toml"
                .to_owned(),
            Self::OtherName { .. } => "put the vsync.pub of this realm beside vsync.toml".to_owned(),
            Self::OtherRealm { machine } | Self::OtherKey { machine } => {
                format!("update vsync.pub, and take the key of {machine} from the administrator's key store again")
            }
            Self::LockedOut { machine } => format!("if it shall come back: `vsync keygen {machine} --rotate`"),
            Self::NoStateDir => "give --state-dir DIR".to_owned(),
            Self::Config(_) | Self::Keys(_) | Self::Registry(_) | Self::ReadRegistry { .. } => return None,
        })
    }
}

impl Context {
    /// Loads everything, and checks that it belongs together.
    ///
    /// # Errors
    /// When something is missing, wrong, or of another realm or machine.
    pub(crate) fn load(args: &GlobalArgs) -> Result<Self, ContextError> {
        let config = load_config(args)?;
        let registry = load_registry(&config)?;
        let name = find::identity(&config.path, args.machine.as_ref())?;
        config.machine(&name)?;
        let bundle = KeyStore::new(&config.keys).machine(&name)?;
        belongs(&bundle, &registry)?;
        Ok(Self { state_dir: state_dir(args)?, patience: args.patience(), config, registry, bundle })
    }
}

impl Context {
    /// Where this machine keeps what it knows of its realm.
    #[must_use]
    pub(crate) fn realm_dir(&self) -> PathBuf {
        self.state_dir.join(self.bundle.realm_id.to_string())
    }

    /// The lock of whoever backs `volume` up on this machine.
    #[must_use]
    pub(crate) fn volume_lock(&self, volume: &VolumeName) -> PathBuf {
        self.realm_dir().join("locks").join(self.bundle.machine.as_str()).join(format!("{volume}.lock"))
    }
}

/// Whether `bundle` is what `registry` says of its machine.
pub(super) fn belongs(bundle: &Bundle, registry: &Registry) -> Result<(), ContextError> {
    let machine = bundle.machine.clone();
    match registry.key_of(&machine) {
        _ if bundle.realm_id != registry.realm.id => Err(ContextError::OtherRealm { machine }),
        None => Err(ContextError::LockedOut { machine }),
        Some(key) if key != bundle.public_key() => Err(ContextError::OtherKey { machine }),
        Some(_) => Ok(()),
    }
}

/// The configuration that `args` names, or the usual one.
///
/// # Errors
/// When there is none, or it is wrong.
pub(crate) fn load_config(args: &GlobalArgs) -> Result<Config, ConfigError> {
    let mut config = Config::load(&find::config(args.config.as_deref())?)?;
    if let Some(directory) = &args.keys {
        config.keys = KeysConfig::Directory(directory.clone());
    }
    Ok(config)
}

/// `vsync.pub` beside `config`.
///
/// # Errors
/// When it is missing, wrong, or of a realm with another name.
pub(crate) fn load_registry(config: &Config) -> Result<Registry, ContextError> {
    let path = config.registry_path();
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let registry: Registry = text.parse()?;
            let (public, config) = (registry.realm.name.clone(), config.realm.clone());
            if public == config { Ok(registry) } else { Err(ContextError::OtherName { public, config }) }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ContextError::NoRegistry { path }),
        Err(source) => Err(ContextError::ReadRegistry { path, source }),
    }
}

/// Where local state is: as told, else `/var/lib/vsync` for root, else below `$XDG_STATE_HOME`
/// or `~/.local/state`. Not made yet.
///
/// # Errors
/// When there is neither an option nor a home.
pub(crate) fn state_dir(args: &GlobalArgs) -> Result<PathBuf, ContextError> {
    if let Some(path) = &args.state_dir {
        return Ok(path.clone());
    }
    if rustix::process::geteuid().is_root() {
        return Ok("/var/lib/vsync".into());
    }
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")));
    state.map(|state| state.join("vsync")).ok_or(ContextError::NoStateDir)
}
