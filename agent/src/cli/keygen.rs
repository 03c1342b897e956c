//! `vsync keygen`.

use ed25519_dalek::SigningKey;
use serde_json::json;
use thiserror::Error;
use vsync_protocol::id::{MachineKey, MachineName};
use vsync_protocol::registry::{Registry, RegistryProblem};

use super::GlobalArgs;
use super::context::{ContextError, load_config, load_registry};
use super::output;
use super::report::{Exit, Failure};
use crate::config::{Config, Machine};
use crate::keys::{Bundle, Existing, KeyFileError, KeyStore, KeyStoreError, RealmKey, Secret, file, recovery_machine};

/// Make the keys of machines, and write their public halves to vsync.pub
///
/// Needs the realm's secret in the key store. A key that exists is left as it is, unless
/// --rotate asks for a new one; the old one can then no longer connect, but what it signed
/// stays valid. vsync.pub is signed again each time, so run this after editing it, too. The
/// name `recovery-kit` lets the recovery kit connect again, if its line was removed.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("which").required(true))]
#[command(after_help = "Examples:\n  vsync keygen --all\n  vsync keygen uat\n  vsync keygen uat --rotate")]
pub(super) struct KeygenArgs {
    /// The machine, as in vsync.toml
    #[arg(group = "which")]
    name: Option<MachineName>,

    /// All machines in vsync.toml
    #[arg(long, group = "which")]
    all: bool,

    /// Replace keys that exist
    #[arg(long)]
    rotate: bool,
}

/// Keys could not be made.
#[derive(Debug, Error)]
pub(crate) enum KeygenError {
    /// The key store failed.
    #[error(transparent)]
    Keys(#[from] KeyStoreError),
    /// `vsync.pub` cannot be written.
    #[error(transparent)]
    Public(#[from] KeyFileError),
    /// The operating system has no randomness.
    #[error("cannot make a key: the operating system gave no randomness")]
    Random(#[from] getrandom::Error),
    /// `vsync.pub` refuses the key.
    #[error("vsync.pub cannot take the new key")]
    Registry(#[from] RegistryProblem),
    /// `vsync.pub` and `realm.key` do not belong together.
    #[error("vsync.pub is of another realm than the key store's realm.key")]
    OtherRealm,
    /// `vsync.pub` knows of a later epoch.
    #[error("vsync.pub is in key epoch {public}, but realm.key in epoch {secret}")]
    OldRealmKey {
        /// The epoch of `vsync.pub`.
        public: u32,
        /// The epoch of `realm.key`.
        secret: u32,
    },
}

impl KeygenError {
    /// What to do about it; for wrapped errors, they know.
    #[must_use]
    pub(crate) fn hint(&self) -> Option<String> {
        matches!(self, Self::OtherRealm | Self::OldRealmKey { .. })
            .then(|| "use the key store of the machine where this realm was last changed".to_owned())
    }
}

/// Whether keys that exist are replaced.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rotate {
    Keep,
    Replace,
}

/// What became of a machine's key.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Made,
    Rotated,
    /// With what there is to say about the key, if it is not simply fine.
    Kept(Option<String>),
}

impl KeygenArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let config = load_config(global)?;
        if self.name.as_ref() == Some(&recovery_machine()) {
            return self.recovery_kit(global, &config);
        }
        let machines: Vec<&Machine> = match &self.name {
            Some(name) => vec![config.machine(name)?],
            None => config.machines().collect(),
        };
        let rotate = if self.rotate { Rotate::Replace } else { Rotate::Keep };
        let mut keygen = Keygen::open(&config)?;
        for machine in machines {
            let outcome = keygen.generate(machine, rotate)?;
            report(global, &machine.name, &outcome)?;
        }
        keygen.publish()?;
        Ok(Exit::Exact)
    }

    /// All keys, none of them again.
    pub(super) const fn all() -> Self {
        Self { name: None, all: true, rotate: false }
    }

    /// The kit's key follows from its secret: it can be let in again, but not replaced.
    fn recovery_kit(&self, global: &GlobalArgs, config: &Config) -> Result<Exit, Failure> {
        if self.rotate {
            return Err(Failure::new(
                Exit::Usage,
                "the key of the recovery kit cannot be rotated: it follows from the kit",
            )
            .hint("remove its line from vsync.pub to keep the kit from connecting".to_owned()));
        }
        let mut keygen = Keygen::open(config)?;
        let name = recovery_machine();
        let outcome = if keygen.registry.key_of(&name).is_some() {
            Outcome::Kept(None)
        } else {
            keygen.registry.enrol(name.clone(), keygen.realm.recovery_key()).map_err(KeygenError::from)?;
            Outcome::Made
        };
        keygen.publish()?;
        report(global, &name, &outcome)?;
        Ok(Exit::Exact)
    }
}

fn report(global: &GlobalArgs, machine: &MachineName, outcome: &Outcome) -> Result<(), Failure> {
    let (word, note) = match outcome {
        Outcome::Made => ("made", None),
        Outcome::Rotated => ("rotated", None),
        Outcome::Kept(note) => ("kept", note.as_deref()),
    };
    match (global.json, global.quiet) {
        (true, _) => output::json(&json!({"machine": machine.as_str(), "key": word, "note": note})),
        (false, true) => Ok(()),
        (false, false) => output::line(format_args!(
            "{machine}: {}{}",
            match outcome {
                Outcome::Made => "made a key",
                Outcome::Rotated => "made a new key; the old one can no longer connect",
                Outcome::Kept(_) => "has a key already; left as it is",
            },
            note.map(|note| format!("\n  but {note}")).unwrap_or_default()
        )),
    }
}

struct Keygen<'a> {
    config: &'a Config,
    store: KeyStore,
    realm: RealmKey,
    registry: Registry,
}

impl<'a> Keygen<'a> {
    fn open(config: &'a Config) -> Result<Self, Failure> {
        let store = KeyStore::new(&config.keys);
        let realm = store.realm()?;
        let mut registry = match load_registry(config) {
            Err(ContextError::NoRegistry { .. }) => realm.registry(),
            result => result?,
        };
        if registry.realm.id != realm.root.realm_id() {
            return Err(KeygenError::OtherRealm.into());
        }
        let (public, secret) = (registry.realm.epoch, realm.epoch);
        if public > secret {
            return Err(KeygenError::OldRealmKey { public, secret }.into());
        }
        registry.realm = realm.public();
        Ok(Self { config, store, realm, registry })
    }

    fn generate(&mut self, machine: &Machine, rotate: Rotate) -> Result<Outcome, KeygenError> {
        let name = &machine.name;
        // Damaged keys are replaced where that was asked for; otherwise they are an error.
        let held = match (self.store.find_machine(name), rotate) {
            (Err(_), Rotate::Replace) => None,
            (held, _) => held?,
        };
        let known = self.registry.key_of(name);
        if rotate == Rotate::Keep && (held.is_some() || known.is_some()) {
            return Ok(Outcome::Kept(self.doubt(machine, held.as_ref(), known)));
        }
        let seed = Secret::random()?;
        let bundle = self.realm.bundle(name.clone(), machine.role, SigningKey::from_bytes(seed.expose()));
        let existing = if rotate == Rotate::Replace { Existing::Replace } else { Existing::Refuse };
        // The private half first: a public key whose private half is lost would lock the machine
        // out, while a private key that is not public yet only needs another `keygen`.
        self.store.put_machine(&bundle, existing)?;
        self.registry.enrol(name.clone(), bundle.public_key())?;
        self.publish()?;
        Ok(if held.is_some() || known.is_some() { Outcome::Rotated } else { Outcome::Made })
    }

    /// Writes `vsync.pub`, signed; not if it is there already, so that git shows no change.
    fn publish(&self) -> Result<(), KeyFileError> {
        let (path, text) = (self.config.registry_path(), self.realm.sign(&self.registry));
        if std::fs::read_to_string(&path).is_ok_and(|there| there == text) {
            return Ok(());
        }
        file::write_public(&path, &text, Existing::Replace)
    }

    /// What is wrong with keys that are kept.
    fn doubt(&self, machine: &Machine, held: Option<&Bundle>, known: Option<MachineKey>) -> Option<String> {
        let name = &machine.name;
        let remedy = format!("`vsync keygen {name} --rotate` makes a new one");
        let Some(held) = held else {
            return Some(format!("this key store does not hold it; {remedy}"));
        };
        match known {
            _ if held.realm_id != self.realm.root.realm_id() => Some(format!("it is of another realm; {remedy}")),
            None => Some(format!("vsync.pub does not list it, so it is locked out; {remedy}")),
            Some(known) if known != held.public_key() => Some(format!("vsync.pub lists another one; {remedy}")),
            _ if held.role != machine.role => {
                Some(format!("it has role {}, and vsync.toml says {}; {remedy}", held.role, machine.role))
            }
            _ if held.epoch != self.realm.epoch => {
                Some(format!("it is of epoch {}, and the realm of {}; {remedy}", held.epoch, self.realm.epoch))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use vsync_protocol::blob::Suite;

    use super::*;
    use crate::keys::Role;

    const TOML: &str = "[realm]\nname = \"r\"\n[[servers]]\nname = \"s\"\ndata = \"/d\"\n[[clients]]\nname = \"c\"\n\
                        [[clients]]\nname = \"w\"\nrole = \"writer\"\n";

    fn realm(text: &str) -> (tempfile::TempDir, Config) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsync.toml");
        fs::write(&path, text).unwrap();
        let config = Config::parse(&path, text).unwrap();
        let realm = RealmKey::generate("r".parse().unwrap(), Suite::ChaCha20Poly1305).unwrap();
        KeyStore::new(&config.keys).put_realm(&realm).unwrap();
        (dir, config)
    }

    fn key_file(config: &Config, machine: &str) -> std::path::PathBuf {
        config.path.with_file_name(format!("keys/machines/{machine}.key"))
    }

    fn generate(config: &Config, rotate: Rotate) -> Vec<Outcome> {
        let mut keygen = Keygen::open(config).unwrap();
        config.machines().map(|machine| keygen.generate(machine, rotate).unwrap()).collect()
    }

    #[test]
    fn keys_are_made_once_and_then_left_alone() {
        let (_dir, config) = realm(TOML);
        assert_eq!(generate(&config, Rotate::Keep), [Outcome::Made, Outcome::Made, Outcome::Made]);
        let store = KeyStore::new(&config.keys);
        let files = || {
            let keys =
                config.machines().map(|machine| fs::read_to_string(key_file(&config, machine.name.as_str())).unwrap());
            keys.chain([fs::read_to_string(config.registry_path()).unwrap()]).collect::<Vec<_>>()
        };
        let before = files();
        assert_eq!(generate(&config, Rotate::Keep), [Outcome::Kept(None), Outcome::Kept(None), Outcome::Kept(None)]);
        assert_eq!(files(), before);
        let role = |name: &str| store.machine(&name.parse().unwrap()).unwrap().role;
        assert_eq!([role("s"), role("c"), role("w")], [Role::Server, Role::Full, Role::Writer]);
    }

    #[test]
    fn whatever_is_written_is_signed() {
        let (_dir, config) = realm(TOML);
        generate(&config, Rotate::Keep);
        let path = config.registry_path();
        let store = KeyStore::new(&config.keys);
        let signed = || store.realm().unwrap().is_signed(&fs::read_to_string(&path).unwrap());
        assert!(signed());
        let text = fs::read_to_string(&path).unwrap();
        let without: String = text.split_inclusive('\n').filter(|line| !line.starts_with("machine w")).collect();
        fs::write(&path, without).unwrap();
        assert!(!signed());
        let global = GlobalArgs { config: Some(config.path.clone()), quiet: true, ..GlobalArgs::default() };
        KeygenArgs::all().run(&global).unwrap();
        assert!(signed());
        assert_eq!(load_registry(&config).unwrap().key_of(&"w".parse().unwrap()), None);
    }

    #[test]
    fn the_recovery_kit_is_let_in_again_only_when_asked() {
        let (_dir, config) = realm(TOML);
        generate(&config, Rotate::Keep);
        let path = config.registry_path();
        let text = fs::read_to_string(&path).unwrap();
        let line = |text: &str| text.contains("\nmachine recovery-kit ");
        assert!(line(&text));
        let without: String = text.split_inclusive('\n').filter(|line| !line.contains("recovery-kit")).collect();
        fs::write(&path, without).unwrap();
        let global = GlobalArgs { config: Some(config.path.clone()), quiet: true, ..GlobalArgs::default() };
        KeygenArgs::all().run(&global).unwrap();
        assert!(!line(&fs::read_to_string(&path).unwrap()));
        let args = |rotate| KeygenArgs { name: Some(recovery_machine()), all: false, rotate };
        assert_eq!(args(true).run(&global).unwrap_err().code, Exit::Usage);
        args(false).run(&global).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn rotation_retires_the_old_key() {
        let (_dir, config) = realm(TOML);
        generate(&config, Rotate::Keep);
        let name: MachineName = "c".parse().unwrap();
        let old = load_registry(&config).unwrap().key_of(&name).unwrap();
        assert_eq!(generate(&config, Rotate::Replace), [Outcome::Rotated, Outcome::Rotated, Outcome::Rotated]);
        let registry = load_registry(&config).unwrap();
        let new = KeyStore::new(&config.keys).machine(&name).unwrap().public_key();
        assert_eq!(registry.key_of(&name), Some(new));
        assert_eq!(registry.keys_of(&name).collect::<Vec<_>>(), [new, old]);
        assert_eq!(registry.machine_of(&old), None);
    }

    #[test]
    fn a_machine_that_was_locked_out_stays_so() {
        let (_dir, config) = realm(TOML);
        generate(&config, Rotate::Keep);
        let path = config.registry_path();
        let without: String = fs::read_to_string(&path)
            .unwrap()
            .lines()
            .filter(|line| !line.starts_with("machine c"))
            .fold(String::new(), |text, line| text + line + "\n");
        fs::write(&path, &without).unwrap();
        let outcomes = generate(&config, Rotate::Keep);
        assert!(matches!(&outcomes[1], Outcome::Kept(Some(note)) if note.contains("locked out")), "{outcomes:?}");
        assert_eq!(fs::read_to_string(&path).unwrap(), without);
    }

    #[test]
    fn a_changed_role_and_a_lost_key_are_said() {
        let (_dir, config) = realm(TOML);
        generate(&config, Rotate::Keep);
        fs::remove_file(key_file(&config, "s")).unwrap();
        let changed =
            Config::parse(&config.path, &TOML.replace("name = \"c\"", "name = \"c\"\nrole = \"writer\"")).unwrap();
        let outcomes = generate(&changed, Rotate::Keep);
        assert!(matches!(&outcomes[0], Outcome::Kept(Some(note)) if note.contains("does not hold it")), "{outcomes:?}");
        assert!(matches!(&outcomes[1], Outcome::Kept(Some(note)) if note.contains("says writer")), "{outcomes:?}");
    }

    #[test]
    fn another_realms_registry_is_refused() {
        let (_dir, config) = realm(TOML);
        let (_other_dir, other) = realm(TOML);
        generate(&other, Rotate::Keep);
        fs::copy(other.registry_path(), config.registry_path()).unwrap();
        assert_eq!(Keygen::open(&config).err(), Some(KeygenError::OtherRealm.into()));
    }
}
