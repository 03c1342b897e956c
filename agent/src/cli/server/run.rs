//! `vsync server run`, and what a server asks of `vsync.toml` and `vsync.pub`, which count as they
//! are at the moment of asking.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use ed25519_dalek::SigningKey;
use jiff::Timestamp;
use vsync_protocol::id::{MachineKey, MachineName, VolumeName};
use vsync_protocol::plan::retention::DEFAULT_FLOOR;
use vsync_protocol::plan::{Policy, Zone};
use vsync_protocol::registry::{RECOVERY_MACHINE, Registry};
use vsync_server::upkeep::Signers;
use vsync_server::upkeep::usage::{Quotas, Scope};
use vsync_server::{
    Declarations, Declared, Member, Members, Policies, Running, Server, ServerConfig, StatusConfig, Upkeep,
};

use super::{REGISTRY_COPY, notify, own_entry};
use crate::cli::GlobalArgs;
use crate::cli::context::{Context, load_registry};
use crate::cli::due::{self, Expected};
use crate::cli::output;
use crate::cli::report::{Exit, Failure};
use crate::cli::signal;
use crate::config::{self, Config};
use crate::keys::{Existing, Role, file};

/// Run the server in the foreground, until SIGTERM
///
/// It serves the realm from its `data` directory on the UDP port of its `address`. It holds no
/// key that could open a backup.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  vsync server run\n  vsync server run --as annex2 --listen 0.0.0.0:10022")]
pub(in crate::cli) struct RunArgs {
    /// UDP address to listen on [default: the port of `address`, on all interfaces]
    #[arg(long, env = "VSYNC_LISTEN", value_name = "IP:PORT")]
    listen: Option<SocketAddr>,

    /// TCP address for metrics, health and status over HTTP [default: as `status` in vsync.toml says, else none]
    #[arg(long, env = "VSYNC_STATUS_ADDRESS", value_name = "IP:PORT")]
    status_address: Option<SocketAddr>,
    /// Seconds between two looks at whether anybody must be told of anything
    #[arg(long, env = "VSYNC_NOTIFY_EVERY", value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    notify_every: u64,
}

impl RunArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let context = Context::load(global)?;
        let server = own_entry(&context)?;
        let listen = match (self.listen, &server.address) {
            (Some(listen), _) => listen,
            (None, Some(address)) => everywhere(address.port),
            (None, None) => {
                return Err(Failure::new(
                    Exit::Usage,
                    format!(
                        "server {} has no address: agents run it by themselves when they need it",
                        server.machine.name
                    ),
                )
                .hint("give it an `address = \"host:port\"` in vsync.toml, or --listen IP:PORT".to_owned()));
            }
        };
        let stop = signal::Stop::install()?;
        let status = self.status_address.or(server.status);
        let every = Duration::from_secs(self.notify_every);
        let notify = notify::notify(&context.config, &server.machine.name, every)?;
        let running = start(&context.config, server, context.bundle.identity(), listen, Windows { status, notify })?;
        if !global.quiet {
            output::say(format_args!(
                "{} listening on {} (UDP), data in {}",
                server.machine.name,
                running.address(),
                server.data.display()
            ));
            if let Some(status) = running.status_address() {
                output::say(format_args!("{} shows its status at http://{status}/ (TCP)", server.machine.name));
            }
        }
        stop.wait();
        running.stop();
        if !global.quiet {
            output::say(format_args!("{} stopped: running requests have finished", server.machine.name));
        }
        Ok(Exit::Exact)
    }
}

/// All of the host's addresses; those of IPv4 alone where the kernel has no other.
fn everywhere(port: u16) -> SocketAddr {
    match UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)) {
        Ok(_) => (Ipv6Addr::UNSPECIFIED, port).into(),
        Err(_) => (Ipv4Addr::UNSPECIFIED, port).into(),
    }
}

/// What a server lets people see and hear of itself; by default, nothing.
#[derive(Default)]
pub(super) struct Windows {
    status: Option<SocketAddr>,
    notify: Option<vsync_server::alerts::Notify>,
}

pub(super) fn start(
    config: &Config,
    server: &config::Server,
    identity: SigningKey,
    listen: SocketAddr,
    Windows { status, notify }: Windows,
) -> Result<Running, Failure> {
    let realm = load_registry(config)?.realm.id;
    let name = &server.machine.name;
    let status =
        status.map(|listen| StatusConfig { listen, server: name.to_string(), realm: config.realm.to_string() });
    let copy = server.data.join(REGISTRY_COPY);
    let watched = Arc::new(Watched::new(config, copy.clone()));
    let server = ServerConfig {
        data: server.data.clone(),
        realm,
        identity,
        listen,
        registry: config.registry_path(),
        members: members(&watched),
        upkeep: Upkeep {
            policies: policies(&watched),
            quotas: quotas(&watched),
            signers: Some(signers(&watched)),
            zone: zone(),
            ..Upkeep::default()
        },
        declared: declarations(&watched, server.machine.name.clone()),
        status,
        reserve: vsync_server::Reserve::default(),
        limits: vsync_server::Limits::default(),
        congestion: vsync_server::Congestion::default(),
        notify,
    };
    let running = Server::start(server)?;
    // Only now: an empty directory becomes a store, one with a file in it does not.
    keep_copy(&config.registry_path(), &copy);
    Ok(running)
}

/// A store may be all that is left one day, and without vsync.pub nobody could tell whose
/// snapshots are in it.
fn keep_copy(registry: &Path, copy: &Path) {
    let Ok(text) = fs::read_to_string(registry) else { return };
    if fs::read_to_string(copy).is_ok_and(|there| there == text) {
        return;
    }
    if let Err(error) = file::write_public(copy, &text, Existing::Replace) {
        tracing::warn!("the store has no copy of vsync.pub: {error}");
    }
}

/// Who may connect, by `vsync.pub` and `vsync.toml` as they are at the moment of asking.
fn members(watched: &Arc<Watched>) -> Members {
    let watched = Arc::clone(watched);
    Arc::new(move |key| watched.look(|access| access.member(key)).flatten())
}

/// What is kept, by `vsync.toml` as it is at the moment of asking. A file that cannot be
/// understood keeps everything.
fn policies(watched: &Arc<Watched>) -> Policies {
    let watched = Arc::clone(watched);
    Arc::new(move |volume| watched.look(|access| access.policy(volume)).unwrap_or_default())
}

/// What is to be backed up to the server `name`, by `vsync.toml` as it is at the moment of
/// asking; none while that file cannot be understood.
fn declarations(watched: &Arc<Watched>, name: MachineName) -> Declarations {
    let watched = Arc::clone(watched);
    Arc::new(move || watched.look(|access| access.declared(&name)))
}

/// How much may be kept, likewise. A file that cannot be understood lets nobody in anyway.
fn quotas(watched: &Arc<Watched>) -> Quotas {
    let watched = Arc::clone(watched);
    Arc::new(move |machine, volume| watched.look(|access| access.quotas(machine, volume)).unwrap_or_default())
}

/// By whose keys snapshots may be signed, by `vsync.pub`.
fn signers(watched: &Arc<Watched>) -> Signers {
    let watched = Arc::clone(watched);
    Arc::new(move |machine| watched.look(|access| access.registry.keys_of(machine).collect()).unwrap_or_default())
}

/// This machine's time zone, with its changes of clocks up to some distant year.
fn zone() -> Zone {
    let (zone, first) = (jiff::tz::TimeZone::system(), Timestamp::UNIX_EPOCH);
    let changes = zone.following(first).take(500).map(|at| (at.timestamp().as_millisecond(), at.offset().seconds()));
    Zone::new(zone.to_offset(first).seconds(), changes.collect())
}

struct Access {
    config: Config,
    registry: Registry,
}

type Stamp = (Option<SystemTime>, Option<SystemTime>);

/// Files that are read again when they have changed.
struct Watched {
    path: PathBuf,
    registry_path: PathBuf,
    copy: PathBuf,
    known: Mutex<Option<(Stamp, Option<Access>)>>,
}

impl Watched {
    /// They are read at the first look: what changed since the caller read them counts.
    fn new(config: &Config, copy: PathBuf) -> Self {
        Self { path: config.path.clone(), registry_path: config.registry_path(), copy, known: Mutex::new(None) }
    }

    fn stamp(&self) -> Stamp {
        let modified = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        (modified(&self.path), modified(&self.registry_path))
    }

    /// Looks at the files as they are now; none when they cannot be understood.
    fn look<T>(&self, ask: impl FnOnce(&Access) -> T) -> Option<T> {
        let stamp = self.stamp();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref().is_none_or(|(seen, _)| *seen != stamp) {
            // Files that cannot be understood let nobody in: safer than the last good ones.
            let access = Config::load(&self.path).map_err(|error| error.to_string()).and_then(|config| {
                let registry = load_registry(&config).map_err(|error| error.to_string())?;
                Ok(Access { config, registry })
            });
            let access = access.map_err(|error| tracing::error!("nobody can connect: {error}")).ok();
            if access.is_some() {
                keep_copy(&self.registry_path, &self.copy);
            }
            *known = Some((stamp, access));
        }
        let (_, access) = known.as_ref()?;
        access.as_ref().map(ask)
    }
}

impl Access {
    fn member(&self, key: MachineKey) -> Option<Member> {
        let name: MachineName = self.registry.machine_of(&key)?.clone();
        if name.as_str() == RECOVERY_MACHINE {
            return Some(Member { may_read: true, may_admin: false, name });
        }
        let machine = self.config.machines().find(|machine| machine.name == name)?;
        // Deciding about snapshots is for whoever is at home on a server anyway.
        let may_admin = self.config.servers.iter().any(|server| server.machine.name == name);
        Some(Member { may_read: machine.role == Role::Full, may_admin, name })
    }

    fn declared(&self, server: &MachineName) -> Vec<Declared> {
        let declared = |Expected { source, volume, max_age, due }| {
            let due = due.map(Timestamp::as_millisecond);
            Declared { source, volume, max_age, due }
        };
        due::expected(&self.config, server, Timestamp::now()).into_iter().map(declared).collect()
    }

    fn quotas(&self, machine: &MachineName, volume: &VolumeName) -> Vec<(Scope, u64)> {
        let of_machine = self.config.machines().find(|known| known.name == *machine).and_then(|known| known.quota);
        let of_volume = self.config.volume(volume).and_then(|known| known.quota);
        let of_machine = of_machine.map(|quota| (Scope::Machine(machine.clone()), quota));
        of_machine.into_iter().chain(of_volume.map(|quota| (Scope::Volume(volume.clone()), quota))).collect()
    }

    fn policy(&self, volume: &VolumeName) -> Policy {
        let Some(retention) = self.config.retention(volume) else { return Policy::default() };
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Policy {
            last: retention.last,
            hourly: retention.hourly,
            daily: retention.daily,
            weekly: retention.weekly,
            monthly: retention.monthly,
            yearly: retention.yearly,
            within: retention.within.map(millis),
            floor: retention.floor.map_or(DEFAULT_FLOOR, millis),
        }
    }
}
