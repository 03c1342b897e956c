//! `vsync server`: running the server, and looking after its store. The only place that names the
//! server's crate.

mod confirm;
mod container;
mod gc;
mod notify;
mod rebuild;
mod repair;
mod run;
mod scrub;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use clap::Subcommand;
use ed25519_dalek::SigningKey;
use vsync_protocol::id::{MachineKey, RealmId};
use vsync_protocol::wire::{Reply, Request};
use vsync_server::archive::ArchiveError;
use vsync_server::store::{StoreError, home};
use vsync_server::upkeep::mark::MarkError;
use vsync_server::{Member, Members, Running, Server, ServerConfig, Upkeep};

use self::run::{Windows, start};
use super::GlobalArgs;
use super::context::Context;
use super::report::{Exit, Failure};
use super::session::Session;
use crate::config::{self, Config};
use crate::keys::{KeyStore, Secret, recovery_machine};

/// How a server is and how a volume stands, in the words of the servers' own status.
pub(super) use vsync_server::{server_json, volume_json};

/// The copy of `vsync.pub` in a store.
const REGISTRY_COPY: &str = "vsync.pub";

/// Run a backup server, or look after its store
#[derive(Debug, Subcommand)]
pub(super) enum ServerCommand {
    Run(run::RunArgs),
    Start(container::StartArgs),
    Stop(container::StopArgs),
    Status(container::StatusArgs),
    Rebuild(rebuild::RebuildArgs),
    Gc(gc::GcArgs),
    Scrub(scrub::ScrubArgs),
    Repair(repair::RepairArgs),
    ConfirmClock(confirm::ConfirmClockArgs),
    Notify(notify::NotifyArgs),
}

impl ServerCommand {
    pub(super) fn run(self, global: &GlobalArgs) -> Result<Exit, Failure> {
        match self {
            Self::Run(args) => args.run(global),
            Self::Start(args) => args.run(global),
            Self::Stop(args) => args.run(global),
            Self::Status(args) => args.run(global),
            Self::Rebuild(args) => args.run(global),
            Self::Gc(args) => args.run(global),
            Self::Scrub(args) => args.run(global),
            Self::Repair(args) => args.run(global),
            Self::ConfirmClock(args) => args.run(global),
            Self::Notify(args) => args.run(global),
        }
    }
}

/// What came of an order.
enum Ordered<T> {
    /// It was carried out here, on the store of a server that is stopped.
    Done(T),
    /// The server that runs has answered.
    Answered(Reply),
}

/// Does `work` on this server's store; if a server has it open, asks that to.
fn ordered<T>(
    context: Context,
    work: impl FnOnce(&Path, RealmId) -> Result<T, MarkError>,
    request: &Request,
) -> Result<Ordered<T>, Failure> {
    let server = own_entry(&context)?;
    let name = server.machine.name.clone();
    match work(&server.data, context.bundle.realm_id) {
        Err(MarkError::Archive(ArchiveError::Store(StoreError::Locked(_)))) if server.address.is_some() => {
            let session = Session::with(context, Some(&name))?;
            Ok(Ordered::Answered(session.remote.request(request)?))
        }
        done => Ok(Ordered::Done(done?)),
    }
}

/// The entry of the machine that this is, which must be a server.
fn own_entry(context: &Context) -> Result<&config::Server, Failure> {
    let name = &context.bundle.machine;
    context.config.servers.iter().find(|server| server.machine.name == *name).ok_or_else(|| {
        Failure::new(Exit::Usage, format!("{name} is a client, not a server, in {}", context.config.path.display()))
            .hint("name the server to run with --as NAME".to_owned())
    })
}

/// A server that runs in this process for as long as a command lasts.
pub(crate) struct Hosted {
    running: Option<Running>,
    key: MachineKey,
}

impl Hosted {
    fn new(running: Running, identity: &SigningKey) -> Self {
        Self { running: Some(running), key: MachineKey::from_bytes(identity.verifying_key().to_bytes()) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.running.as_ref().map_or_else(|| (Ipv4Addr::LOCALHOST, 0).into(), Running::address)
    }

    /// The server's identity.
    pub(crate) const fn key(&self) -> MachineKey {
        self.key
    }
}

impl Drop for Hosted {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop();
        }
    }
}

/// Starts a server that has no address, on loopback.
pub(crate) fn embedded(config: &Config, server: &config::Server) -> Result<Hosted, Failure> {
    let identity = KeyStore::new(&config.keys).machine(&server.machine.name)?.identity();
    home::create(&server.data).map_err(|error| {
        Failure::of(&error, Exit::Failed).hint(format!("make the data directory {} writable", server.data.display()))
    })?;
    let running = start(config, server, identity.clone(), (Ipv4Addr::LOCALHOST, 0).into(), Windows::default())?;
    Ok(Hosted::new(running, &identity))
}

/// Starts a server on a store of which nothing else is left, for the holder of the recovery
/// kit alone. Nobody knows its key before, so it takes a new one.
pub(crate) fn on_store(data: &Path, realm: RealmId, kit: MachineKey) -> Result<Hosted, Failure> {
    if !data.join("VERSION").is_file() {
        return Err(Failure::new(Exit::NotFound, format!("there is no store in {}", data.display()))
            .hint("give the directory that was `data` of the server, with `packs` and `manifests` in it".to_owned()));
    }
    let seed = Secret::random().map_err(|error| Failure::of(&error, Exit::Failed))?;
    let identity = SigningKey::from_bytes(seed.expose());
    let members: Members = Arc::new(move |key| {
        (key == kit).then(|| Member { name: recovery_machine(), may_read: true, may_admin: false })
    });
    let running = Server::start(ServerConfig {
        data: data.to_owned(),
        realm,
        identity: identity.clone(),
        listen: (Ipv4Addr::LOCALHOST, 0).into(),
        registry: data.join(REGISTRY_COPY),
        members,
        // Whoever has only a kit and a store wants the data, and nothing to change.
        upkeep: Upkeep { collect_every: None, scrub_every: None, ..Upkeep::default() },
        declared: Arc::new(|| Some(Vec::new())),
        status: None,
        reserve: vsync_server::Reserve::default(),
        limits: vsync_server::Limits::default(),
        congestion: vsync_server::Congestion::default(),
        notify: None,
    })?;
    Ok(Hosted::new(running, &identity))
}
