//! The running server: accepts connections, and ends without cutting anything off.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use quinn::{Endpoint, Incoming, TokioRuntime};
use thiserror::Error;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use vsync_protocol::id::{MachineKey, MachineName, RealmId};
use vsync_protocol::limits::MAX_MESSAGE_LEN;
use vsync_protocol::wire::RefusalCode;
use vsync_transport::{Congestion, TransportError};

use crate::alerts::Notify;
use crate::alerts::herald::Herald;
use crate::archive::{Archive, ArchiveError};
use crate::connection::Connection;
use crate::jobs::Owners;
use crate::limits::{Clients, Handshakes, Limits};
use crate::overview::{Declarations, Viewer};
use crate::refusal::number;
use crate::shares::Shares;
use crate::store::disk::Reserve;
use crate::upkeep::Upkeep;
use crate::upkeep::keeper::{Keeper, Notices};
use crate::web::{StatusConfig, Web};

/// Short work that blocks on disk or catalog, at a time.
const TURNS: usize = 8;

/// Trees that are walked at a time.
const WALKS: usize = 2;

/// Running requests that draining can wait for; more than all connections may have.
const MAX_RUNNING: u32 = 1 << 20;

/// Threads for requests, beside those of sessions.
const REQUEST_THREADS: usize = 64;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long running requests may still take when the server ends.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a connection that an agent has closed may take to be noticed.
const LEAVING: Duration = Duration::from_millis(20);

/// How long what was received may take to become durable when the server ends.
const FINISH_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes of a reply's content; room is left for what stands around it.
pub(crate) const PAGE: usize = MAX_MESSAGE_LEN - (64 << 10);

/// A machine that may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: MachineName,
    /// Whether it may fetch blobs and list other machines' snapshots; false for a machine
    /// that only writes.
    pub may_read: bool,
    /// Whether it may forget, pin and bring back snapshots of all machines, and list them for that.
    pub may_admin: bool,
}

/// Who may connect now. Asked at the handshake and again on every request, so that a
/// removed key loses access at once.
pub type Members = Arc<dyn Fn(MachineKey) -> Option<Member> + Send + Sync>;

/// What a server needs to know.
pub struct ServerConfig {
    /// The store's directory.
    pub data: PathBuf,
    /// The realm it keeps.
    pub realm: RealmId,
    /// The server's own key: clients pin it, and it signs receipts.
    pub identity: SigningKey,
    /// UDP address; port 0 takes any, `[::]` both address families.
    pub listen: SocketAddr,
    /// Who may connect.
    pub members: Members,
    /// `vsync.pub`, handed to members that ask for it; kept in the store, too, which may be
    /// all that is left one day.
    pub registry: PathBuf,
    /// Space that stays free.
    pub reserve: Reserve,
    /// What those who connect may take of it.
    pub limits: Limits,
    /// How fast to send.
    pub congestion: Congestion,
    /// How the store is looked after.
    pub upkeep: Upkeep,
    /// What is to be backed up to it.
    pub declared: Declarations,
    /// How people are told when something is wrong; none: they look for themselves.
    pub notify: Option<Notify>,
    /// Where it shows over HTTP how it is; none: nowhere.
    pub status: Option<StatusConfig>,
}

/// Why a server does not start.
#[derive(Debug, Error)]
pub enum ServerError {
    /// The store.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// TLS or the address.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The address for status is not to be had.
    #[error("cannot listen on the status address {address} (TCP)")]
    Status {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The system does not tell which address it is.
    #[error("cannot tell the UDP address that the server has")]
    Address(#[source] std::io::Error),
    /// QUIC does not start.
    #[error("cannot start QUIC on the server's UDP socket")]
    Endpoint(#[source] std::io::Error),
    /// A thread does not start.
    #[error("cannot start the {name} thread of the server")]
    Thread {
        /// Which.
        name: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Starts servers.
pub struct Server;

impl Server {
    /// Opens the store and listens. Returns when agents can connect.
    ///
    /// # Errors
    /// When the store cannot be opened or the address is not to be had.
    pub fn start(mut config: ServerConfig) -> Result<Running, ServerError> {
        let archive = Arc::new(Archive::open(&config.data, config.realm, config.reserve)?);
        archive.lose_jobs();
        let members = Arc::clone(&config.members);
        let admit = move |key| members(key).is_some();
        let quic = vsync_transport::server_config(&config.identity, admit, config.congestion)?;
        let socket = vsync_transport::bind(config.listen)?;
        let address = socket.local_addr().map_err(ServerError::Address)?;
        let notices = Notices::default();
        let keeper = Keeper::start(Arc::clone(&archive), config.upkeep.clone(), notices.clone());
        let keeper = keeper.map_err(no_thread("upkeep"))?;
        let viewer = Arc::new(Viewer::new(Arc::clone(&archive), notices, Arc::clone(&config.declared)));
        let (web, herald) = match open_windows(&mut config, &viewer) {
            Ok(windows) => windows,
            Err(error) => {
                keeper.end();
                return Err(error);
            }
        };
        // A session of each connection keeps two busy for its whole life; the rest is for requests.
        let threads = 2 * config.limits.connections + REQUEST_THREADS;
        let shared = Arc::new(Shared::new(config, archive, viewer));
        let (stop, stopped) = oneshot::channel();
        let (listening, ready) = mpsc::channel();
        let thread = std::thread::Builder::new().name("vsync-quic".to_owned()).spawn(move || {
            // One thread: quinn runs faster on a runtime of its own that never migrates.
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = match runtime.enable_all().max_blocking_threads(threads).build() {
                Ok(runtime) => runtime,
                Err(error) => {
                    keeper.end();
                    return drop(listening.send(Err(no_thread("network")(error))));
                }
            };
            runtime.block_on(async {
                let config = vsync_transport::endpoint_config();
                match Endpoint::new(config, Some(quic), socket, Arc::new(TokioRuntime)) {
                    Ok(endpoint) => {
                        let _ = listening.send(Ok(()));
                        shared.serve(endpoint, stopped).await;
                    }
                    Err(error) => drop(listening.send(Err(ServerError::Endpoint(error)))),
                }
            });
            runtime.shutdown_timeout(FINISH_TIMEOUT);
            if let Some(herald) = herald {
                herald.end();
            }
            keeper.end();
            shared.archive.close();
        });
        let running = thread.map_err(no_thread("network"))?;
        let died = || std::io::Error::other("it ended at once");
        ready.recv().map_err(|_| no_thread("network")(died()))??;
        Ok(Running { address, stop: Some(stop), thread: Some(running), web })
    }
}

/// Wraps why the thread `name` does not start.
const fn no_thread(name: &'static str) -> impl Fn(std::io::Error) -> ServerError {
    move |source| ServerError::Thread { name, source }
}

/// What shows and tells people how the server is.
fn open_windows(config: &mut ServerConfig, viewer: &Arc<Viewer>) -> Result<(Option<Web>, Option<Herald>), ServerError> {
    let show = |status: StatusConfig| {
        let address = status.listen;
        Web::start(status, Arc::clone(viewer)).map_err(|source| ServerError::Status { address, source })
    };
    let web = config.status.clone().map(show).transpose()?;
    let tell = |notify| Herald::start(notify, &config.data, Arc::clone(viewer)).map_err(no_thread("notification"));
    let herald = config.notify.take().map(tell).transpose()?;
    Ok((web, herald.flatten()))
}

/// How a server is asked to end.
enum Shutdown {
    /// Let running requests finish.
    Drain,
    /// Close connections at once.
    Now,
}

/// A server that listens. Dropping it closes all connections at once; what was received
/// still becomes durable.
#[must_use = "dropping this ends the server"]
pub struct Running {
    address: SocketAddr,
    stop: Option<oneshot::Sender<Shutdown>>,
    thread: Option<JoinHandle<()>>,
    web: Option<Web>,
}

impl Running {
    /// Where it shows how it is, if it does.
    #[must_use]
    pub fn status_address(&self) -> Option<SocketAddr> {
        self.web.as_ref().map(Web::address)
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Refuses new requests, lets running ones finish up to a deadline, closes connections
    /// and store.
    pub fn stop(mut self) {
        self.end(Shutdown::Drain);
    }

    fn end(&mut self, how: Shutdown) {
        if let Some(stop) = self.stop.take() {
            // It may have ended by itself.
            let _ = stop.send(how);
        }
        drop(self.web.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the network thread panicked");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end(Shutdown::Now);
    }
}

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) archive: Arc<Archive>,
    pub(crate) realm: RealmId,
    pub(crate) members: Members,
    pub(crate) registry: PathBuf,
    /// A permit is held by each running request.
    pub(crate) running: Semaphore,
    /// A permit is held by each short piece of work that blocks.
    pub(crate) turns: Semaphore,
    /// A permit is held by each walk over a tree.
    pub(crate) walks: Semaphore,
    /// What all agents share of memory.
    pub(crate) shares: Arc<Shares>,
    pub(crate) identity: SigningKey,
    pub(crate) upkeep: Upkeep,
    pub(crate) viewer: Arc<Viewer>,
    pub(crate) owners: Owners,
    /// How many connections there have been; numbers the next one.
    pub(crate) serial: AtomicU64,
    /// Calls off what administrators have ordered, when the server ends.
    pub(crate) called_off: crate::upkeep::throttle::Stop,
    pub(crate) clients: Clients,
    handshakes: Handshakes,
    limits: Limits,
}

impl Shared {
    fn new(config: ServerConfig, archive: Arc<Archive>, viewer: Arc<Viewer>) -> Self {
        Self {
            archive,
            realm: config.realm,
            members: config.members,
            registry: config.registry,
            running: Semaphore::new(MAX_RUNNING as usize),
            turns: Semaphore::new(TURNS),
            walks: Semaphore::new(WALKS),
            shares: Arc::default(),
            identity: config.identity,
            upkeep: config.upkeep,
            viewer,
            owners: Owners::default(),
            serial: AtomicU64::new(0),
            called_off: crate::upkeep::throttle::Stop::default(),
            clients: Clients::new(config.limits),
            handshakes: Handshakes::default(),
            limits: config.limits,
        }
    }

    async fn serve(self: &Arc<Self>, endpoint: Endpoint, mut stopped: oneshot::Receiver<Shutdown>) {
        let mut connections = JoinSet::new();
        let how = loop {
            tokio::select! {
                how = &mut stopped => break how.unwrap_or(Shutdown::Now),
                Some(incoming) = endpoint.accept() => self.accept(&endpoint, incoming, &mut connections),
                Some(ended) = connections.join_next() => note_panic(ended),
            }
        };
        endpoint.set_server_config(None);
        self.called_off.stop();
        if matches!(how, Shutdown::Drain) {
            // With all permits here no request is running, and those that come are refused.
            let _ = timeout(DRAIN_TIMEOUT, self.running.acquire_many(MAX_RUNNING)).await;
        }
        // Agents that are leaving anyway need no farewell, which takes a while.
        if timeout(LEAVING, finish(&mut connections)).await.is_ok() {
            return;
        }
        endpoint.close(number(RefusalCode::Draining), b"the server is shutting down");
        let farewell = async {
            finish(&mut connections).await;
            // Without this the agents would learn of the end only by their timeout.
            endpoint.wait_idle().await;
        };
        if timeout(FINISH_TIMEOUT, farewell).await.is_err() {
            tracing::warn!("connections did not end in time");
        }
    }

    fn accept(self: &Arc<Self>, endpoint: &Endpoint, incoming: Incoming, connections: &mut JoinSet<()>) {
        if endpoint.open_connections() >= self.limits.connections {
            incoming.refuse();
        } else if !incoming.remote_address_validated() {
            // Whoever cannot show that the address is its own costs one packet.
            let _ = incoming.retry();
        } else if !self.handshakes.admit(incoming.remote_address().ip(), self.limits.handshakes, Instant::now()) {
            // Unanswered it is repeated, a second later and then less and less often. Those that are let in
            // by then make room for it.
            incoming.ignore();
        } else {
            connections.spawn(Arc::clone(self).connect(incoming));
        }
    }

    async fn connect(self: Arc<Self>, incoming: Incoming) {
        let from = incoming.remote_address();
        let Ok(connecting) = incoming.accept() else { return };
        let quic = match timeout(HANDSHAKE_TIMEOUT, connecting).await {
            Ok(Ok(quic)) => quic,
            Ok(Err(error)) => return tracing::info!("no connection from {from}: {error}"),
            Err(_) => return tracing::info!("no connection from {from}: the handshake took too long"),
        };
        let Some(key) = vsync_transport::peer_key(&quic) else { return };
        self.handshakes.settle(from.ip());
        let Some(client) = self.clients.place(key) else {
            return quic.close(number(RefusalCode::NotAuthorised), b"this machine has too many connections");
        };
        Connection::new(Arc::clone(&self), quic, key, client).run().await;
    }
}

/// Waits until all of `connections` have ended.
async fn finish(connections: &mut JoinSet<()>) {
    while let Some(ended) = connections.join_next().await {
        note_panic(ended);
    }
}

fn note_panic(ended: Result<(), tokio::task::JoinError>) {
    if ended.is_err_and(|error| error.is_panic()) {
        tracing::error!("the task of a connection panicked");
    }
}
