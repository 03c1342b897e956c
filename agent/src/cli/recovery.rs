//! Working from the recovery kit alone: no configuration, no vsync.pub, no key of this machine.
//!
//! The kit's secret says who we are ([`RootSecret::recovery_key`]) and whom to believe: the
//! server hands over its vsync.pub, which counts only with the administrator's signature.
//!
//! [`RootSecret::recovery_key`]: crate::keys::RootSecret::recovery_key

use std::path::{Path, PathBuf};

use vsync_protocol::id::{MachineKey, MachineName, RealmName};
use vsync_protocol::registry::Registry;

use super::GlobalArgs;
use super::context::{Context, state_dir};
use super::init::read_kit;
use super::report::{Exit, Failure};
use super::server::{self, Hosted};
use super::session::Session;
use crate::config::{Address, Config, KeysConfig, Machine, RunHooks, Server};
use crate::keys::{Kit, KitServer, RealmKey, Role};
use crate::remote::{Identity, Remote, ServerAddress};

/// Options with which commands that read need no vsync.toml.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Options without a configuration")]
pub(crate) struct RecoveryArgs {
    /// Work from this recovery kit: neither vsync.toml nor keys are needed
    #[arg(long, global = true, env = "VSYNC_KIT", value_name = "FILE", hide_short_help = true)]
    pub(crate) kit: Option<PathBuf>,

    /// Where the server is now, with --kit [default: as the kit says]
    #[arg(long, global = true, env = "VSYNC_SERVER_ADDRESS", value_name = "HOST:PORT", hide_short_help = true)]
    pub(crate) server_address: Option<Address>,

    /// The server's public key, with a --kit that does not have it
    #[arg(long, global = true, env = "VSYNC_SERVER_KEY", value_name = "HEX", hide_short_help = true)]
    pub(crate) server_key: Option<MachineKey>,

    /// The data directory of an embedded server, with --kit
    #[arg(long, global = true, env = "VSYNC_SERVER_DATA", value_name = "DIR", hide_short_help = true)]
    #[arg(conflicts_with_all = ["server_address", "server_key"])]
    pub(crate) server_data: Option<PathBuf>,
}

/// Where the backups are.
#[derive(Debug)]
enum ReadFrom {
    Remote(ServerAddress),
    Store(PathBuf),
}

/// Connects to `server`, or to the only one, as the holder of the kit at `path`.
pub(super) fn open(global: &GlobalArgs, path: &Path, server: Option<&MachineName>) -> Result<Session, Failure> {
    let kit = read_kit(path)?;
    let place = choose(&kit, &global.recovery, server)?;
    let unnamed = || kit.realm.clone().map_or_else(|| "realm".parse().map_err(impossible), Ok);
    let realm_name: RealmName = unnamed()?;
    let mut realm = kit.into_realm_key(realm_name);
    let (address, hosted, data) = match place {
        ReadFrom::Remote(address) => (address, None, PathBuf::new()),
        ReadFrom::Store(data) => {
            let (address, hosted) = on_store(&data, &realm)?;
            (address, Some(hosted), data)
        }
    };
    let identity = Identity { key: realm.root.recovery_key(), realm: realm.root.realm_id() };
    let name = address.name.clone();
    let remote = Remote::connect_within(global.patience(), address, identity)?;
    let registry = believed(&remote, &realm)?;
    let known = &registry.realm;
    // They may be newer than the kit, or the kit no more than its secret line.
    (realm.name, realm.suite, realm.epoch) = (known.name.clone(), known.suite, known.epoch);
    let config = configuration(path, &realm, name, data);
    let (bundle, patience) = (realm.recovery_bundle(), global.patience());
    let context = Context { config, registry, bundle, state_dir: state_dir(global)?, patience };
    Ok(Session::new(context, remote, hosted))
}

fn impossible<E>(_: E) -> Failure {
    Failure::new(Exit::Failed, "a name of vsync's own is not a name")
}

/// The store itself, opened by a server in this process.
fn on_store(data: &Path, realm: &RealmKey) -> Result<(ServerAddress, Hosted), Failure> {
    let hosted = server::on_store(data, realm.root.realm_id(), realm.recovery_key())?;
    let name = "embedded".parse().map_err(impossible)?;
    Ok((ServerAddress { name, address: hosted.address().to_string(), key: hosted.key() }, hosted))
}

fn choose(kit: &Kit, args: &RecoveryArgs, server: Option<&MachineName>) -> Result<ReadFrom, Failure> {
    if let Some(data) = &args.server_data {
        return Ok(ReadFrom::Store(data.clone()));
    }
    let known = known_server(kit, args, server)?;
    let address = match (&args.server_address, known) {
        (Some(address), _) => address.to_string(),
        (None, Some(server)) if server.address.starts_with('/') => {
            return Ok(ReadFrom::Store(server.address.clone().into()));
        }
        (None, Some(server)) => server.address.clone(),
        (None, None) => {
            return Err(Failure::new(Exit::Usage, which_server(kit)).hint(
                "give --server NAME if the kit lists it; else --server-address HOST:PORT and --server-key HEX, or --server-data DIR"
                    .to_owned(),
            ));
        }
    };
    let key = args.server_key.or_else(|| known.map(|server| server.key)).ok_or_else(|| {
        Failure::new(Exit::Usage, format!("the recovery kit does not have the key of the server at {address}")).hint(
            "give --server-key HEX: the 64 digits of the server's `machine` line in vsync.pub, of which the server \
             has a copy in its data directory"
                .to_owned(),
        )
    })?;
    let name = match (server, known) {
        (Some(name), _) => name.clone(),
        (None, Some(server)) => server.name.clone(),
        (None, None) => "server".parse().map_err(impossible)?,
    };
    Ok(ReadFrom::Remote(ServerAddress { name, address, key }))
}

/// The server of the kit that is meant: the one named, the one at that address, the only one.
fn known_server<'a>(
    kit: &'a Kit,
    args: &RecoveryArgs,
    server: Option<&MachineName>,
) -> Result<Option<&'a KitServer>, Failure> {
    if let Some(name) = server {
        let found = kit.servers.iter().find(|server| server.name == *name);
        if found.is_none() && args.server_key.is_none() {
            return Err(
                Failure::new(Exit::Usage, format!("the recovery kit has no server {name}")).hint(which_server(kit))
            );
        }
        return Ok(found);
    }
    let address = args.server_address.as_ref().map(ToString::to_string);
    let there = kit.servers.iter().find(|server| Some(&server.address) == address.as_ref());
    // The only one may have moved; its key tells whether it is the one.
    let only = match kit.servers.as_slice() {
        [only] => Some(only),
        _ => None,
    };
    Ok(there.or(only))
}

fn which_server(kit: &Kit) -> String {
    let names: Vec<&str> = kit.servers.iter().map(|server| server.name.as_str()).collect();
    match names.as_slice() {
        [] => "the recovery kit lists no server".to_owned(),
        names => format!("the recovery kit lists {}", names.join(", ")),
    }
}

/// The server's vsync.pub, if the realm's administrator signed it just so.
fn believed(remote: &Remote, realm: &RealmKey) -> Result<Registry, Failure> {
    let bytes = remote.registry()?;
    let text = String::from_utf8(bytes).unwrap_or_default();
    if !realm.is_signed(&text) {
        let heading = format!(
            "the vsync.pub of {} is not as the administrator signed it: it may have been edited since, or forged",
            remote.server()
        );
        return Err(Failure::new(Exit::NotAuthorised, heading).hint(
            "if a machine with the realm's secret is left: `vsync keygen --all` there, and give the server the new \
             vsync.pub; else put the vsync.pub of git here, run `vsync init --kit FILE`, and go on as that realm"
                .to_owned(),
        ));
    }
    Ok(text.parse::<Registry>()?)
}

/// As much of a configuration as commands that read look at.
fn configuration(kit: &Path, realm: &RealmKey, name: MachineName, data: PathBuf) -> Config {
    let machine = Machine {
        name,
        role: Role::Server,
        backup: Vec::new(),
        schedule: Vec::new(),
        schedule_container: None,
        run: RunHooks::default(),
        quota: None,
    };
    Config {
        path: kit.to_owned(),
        realm: realm.name.clone(),
        servers: vec![Server { machine, address: None, data, status: None, container: None }],
        clients: Vec::new(),
        volumes: Vec::new(),
        retention: None,
        keys: KeysConfig::Directory(PathBuf::new()),
        notify: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use vsync_protocol::blob::Suite;

    use super::*;

    fn kit(servers: &[(&str, &str, u8)]) -> Kit {
        let servers = servers.iter().map(|(name, address, key)| KitServer {
            name: name.parse().unwrap(),
            address: (*address).to_owned(),
            key: MachineKey::from_bytes([*key; 32]),
        });
        let realm = RealmKey::generate("r".parse().unwrap(), Suite::ChaCha20Poly1305).unwrap();
        Kit::new(realm, servers.collect())
    }

    /// `name address first-byte-of-key`, the directory of a store, or what is wrong.
    fn chosen(kit: &Kit, address: Option<&str>, key: Option<u8>, server: Option<&str>) -> String {
        let args = RecoveryArgs {
            server_address: address.map(|address| address.parse().unwrap()),
            server_key: key.map(|key| MachineKey::from_bytes([key; 32])),
            ..RecoveryArgs::default()
        };
        match choose(kit, &args, server.map(|name| name.parse().unwrap()).as_ref()) {
            Ok(ReadFrom::Remote(ServerAddress { name, address, key })) => {
                format!("{name} {address} {}", key.as_bytes()[0])
            }
            Ok(ReadFrom::Store(path)) => path.display().to_string(),
            Err(failure) => failure.heading,
        }
    }

    #[test]
    fn the_server_is_the_one_that_was_meant() {
        let (none, one) = (kit(&[]), kit(&[("a", "a:1", 7)]));
        let two = kit(&[("a", "a:1", 7), ("b", "b:2", 8), ("local", "/srv/store", 9)]);
        assert_eq!(chosen(&one, None, None, None), "a a:1 7");
        assert_eq!(chosen(&one, Some("moved:3"), None, None), "a moved:3 7");
        assert_eq!(chosen(&one, Some("moved:3"), Some(5), None), "a moved:3 5");
        assert_eq!(chosen(&two, Some("b:2"), None, None), "b b:2 8");
        assert_eq!(chosen(&two, Some("moved:3"), None, Some("b")), "b moved:3 8");
        assert_eq!(chosen(&two, None, None, Some("local")), "/srv/store");
        assert_eq!(chosen(&none, Some("new:4"), Some(5), None), "server new:4 5");
        assert_eq!(chosen(&none, None, None, None), "the recovery kit lists no server");
        assert_eq!(chosen(&two, None, None, None), "the recovery kit lists a, b, local");
        assert_eq!(chosen(&two, None, None, Some("c")), "the recovery kit has no server c");
        let unknown = "the recovery kit does not have the key of the server at new:4";
        assert_eq!(chosen(&none, Some("new:4"), None, None), unknown);
        assert_eq!(chosen(&two, Some("new:4"), None, None), unknown);
    }
}
