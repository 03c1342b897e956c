//! The server as the agent sees it: blocking calls on this side, QUIC on a thread of its own.

mod audit;
mod connection;
mod error;
mod fetch;
mod history;
mod listed;
mod nodes;
mod pace;
mod patience;
mod upload;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use vsync_protocol::id::{JobId, MachineKey, MachineName, RealmId, VolumeName};
use vsync_protocol::manifest::LogPosition;
use vsync_protocol::wire::{JobResult, JobStart, Listing, Overview, Reply, Request, ServerStatus, SnapshotRecord};

pub use audit::Shown;
pub use error::RemoteError;
pub use fetch::{Fetched, Fetcher};
pub use history::HeadStore;
pub use nodes::{NodeError, RemoteNodes};
pub use pace::Limits;
pub use patience::Patience;
pub use upload::{CommitOutcome, Offer, Upload, UploadEnded, UploadSender, UploadStats, Uploaded};

use connection::Connector;

/// How many snapshots are asked for at once.
const PAGE: u32 = 100;

/// Bytes of manifests that one list may have: a hundred thousand snapshots, and a bound on
/// what a server can make an agent hold.
const MAX_LISTED: usize = 64 << 20;

/// Where a server is and how to know it.
#[derive(Clone, Debug)]
pub struct ServerAddress {
    /// Its name.
    pub name: MachineName,
    /// `host:port`, UDP.
    pub address: String,
    /// Its identity.
    pub key: MachineKey,
}

/// Who asks.
pub struct Identity {
    /// The machine's signing key.
    pub key: SigningKey,
    /// Its realm.
    pub realm: RealmId,
}

/// A connection to one server, made anew when it breaks.
pub struct Remote {
    runtime: Handle,
    connector: Arc<Connector>,
    /// Ends the network thread when dropped.
    _stop: oneshot::Sender<()>,
}

impl Remote {
    /// Connects and says hello.
    ///
    /// # Errors
    /// When the server does not answer, is another one, or does not let this machine in.
    pub fn connect(server: ServerAddress, identity: Identity) -> Result<Self, RemoteError> {
        Self::connect_within(Patience::default(), server, identity)
    }

    /// The same with more or less patience than usual.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub fn connect_within(patience: Patience, server: ServerAddress, identity: Identity) -> Result<Self, RemoteError> {
        // One thread for packets measures faster than several; the pipeline has its own.
        let runtime = Builder::new_current_thread().enable_all().build().map_err(RemoteError::Runtime)?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        thread::Builder::new()
            .name("network".into())
            .spawn(move || {
                // An error means that the sender is gone, which is the signal.
                let _ = runtime.block_on(stopped);
                runtime.shutdown_timeout(Duration::from_secs(1));
            })
            .map_err(RemoteError::Runtime)?;
        let connector = Arc::new(Connector::new(server, identity, patience));
        handle.block_on(connector.first())?;
        Ok(Self { runtime: handle, connector, _stop: stop })
    }

    /// Sends and receives blobs no faster than `limits` say. Counts once, before any is under
    /// way.
    pub fn limit(&self, limits: Limits) {
        self.connector.limit(limits);
    }

    /// The server's name.
    #[must_use]
    pub fn server(&self) -> &MachineName {
        self.connector.server_name()
    }

    /// The server's identity.
    #[must_use]
    pub fn server_key(&self) -> MachineKey {
        self.connector.server_key()
    }

    /// The server's clock at the last hello, and where its log stood.
    #[must_use]
    pub fn greeting(&self) -> (i64, LogPosition) {
        self.connector.greeting()
    }

    /// Says hello once more: the server's clock, and where its log stands now.
    fn greet_again(&self) -> Result<(i64, LogPosition), RemoteError> {
        self.runtime.block_on(self.connector.greet_again())?;
        Ok(self.greeting())
    }

    /// Asks, and asks again on a new connection when one breaks meanwhile.
    ///
    /// # Errors
    /// When the server refuses or stays away.
    pub fn request(&self, request: &Request) -> Result<Reply, RemoteError> {
        self.runtime.block_on(self.connector.request(request))
    }

    /// Asks as [`Self::request`] does, without waiting. `deliver` runs on the network thread
    /// and must not wait.
    pub fn request_later(&self, request: Request, deliver: impl FnOnce(Result<Reply, RemoteError>) + Send + 'static) {
        let connector = self.connector.clone();
        self.runtime.spawn(async move { deliver(connector.request(&request).await) });
    }

    /// Begins a backup of `volume`.
    ///
    /// # Errors
    /// When the server refuses or stays away.
    pub fn upload(&self, volume: VolumeName) -> Result<Upload, RemoteError> {
        Upload::begin(&self.runtime, self.connector.clone(), volume)
    }

    /// Something that fetches blobs.
    #[must_use]
    pub fn fetcher(&self) -> Fetcher {
        Fetcher::new(self.runtime.clone(), self.connector.clone())
    }

    /// How the server is.
    ///
    /// # Errors
    /// When it refuses or stays away.
    pub fn status(&self) -> Result<ServerStatus, RemoteError> {
        match self.request(&Request::Status)? {
            Reply::Status(status) => Ok(*status),
            other => Err(RemoteError::unexpected(&other)),
        }
    }

    /// How the server is, and how every volume stands there.
    ///
    /// # Errors
    /// When it refuses or stays away.
    pub fn overview(&self) -> Result<Overview, RemoteError> {
        match self.request(&Request::Overview)? {
            Reply::Overview(overview) => Ok(*overview),
            other => Err(RemoteError::unexpected(&other)),
        }
    }

    /// Tells the server of a job, and again whenever the connection is made anew, until it ends.
    ///
    /// # Errors
    /// When the server refuses, or does not answer at once: nothing is worth waiting for that
    /// only keeps a record.
    pub fn begin_job(&self, start: JobStart) -> Result<(), RemoteError> {
        self.connector.announce(start.clone());
        self.runtime.block_on(self.connector.request_once(&Request::BeginJob(start))).and_then(noted)
    }

    /// Tells the server what came of a job.
    ///
    /// # Errors
    /// When the server refuses, or does not answer at once.
    pub fn end_job(&self, id: JobId, result: JobResult) -> Result<(), RemoteError> {
        self.connector.renounce(id);
        self.runtime.block_on(self.connector.request_once(&Request::EndJob { id, result })).and_then(noted)
    }

    /// `vsync.pub` as the server has it. Only its signature makes it worth anything.
    ///
    /// # Errors
    /// When the server refuses or stays away.
    pub fn registry(&self) -> Result<Vec<u8>, RemoteError> {
        match self.request(&Request::Registry)? {
            Reply::Registry(bytes) => Ok(bytes),
            other => Err(RemoteError::unexpected(&other)),
        }
    }

    /// Snapshots, newest first; stops asking once `enough` says so.
    ///
    /// # Errors
    /// When the server refuses or stays away.
    pub fn snapshots(
        &self,
        listing: &Listing,
        mut enough: impl FnMut(&SnapshotRecord) -> bool,
    ) -> Result<Vec<SnapshotRecord>, RemoteError> {
        let mut listing = Listing { limit: if listing.limit == 0 { PAGE } else { listing.limit }, ..listing.clone() };
        let mut found: Vec<SnapshotRecord> = Vec::new();
        let mut bytes = 0;
        loop {
            let page = match self.request(&Request::Snapshots(listing.clone()))? {
                Reply::Snapshots(page) => page,
                other => return Err(RemoteError::unexpected(&other)),
            };
            if page.is_empty() {
                return Ok(found);
            }
            for record in page {
                listed::check(self.server(), &listing, &record)?;
                listing.before = Some(record.index);
                bytes += record.manifest.len();
                if bytes > MAX_LISTED {
                    let what = format!("it lists more than {} MiB of snapshots; name a volume", MAX_LISTED >> 20);
                    return Err(RemoteError::Protocol(what));
                }
                let stop = enough(&record);
                found.push(record);
                if stop {
                    return Ok(found);
                }
            }
        }
    }

    /// Compares the server's log with what this machine knows of it.
    ///
    /// # Errors
    /// When history was rolled back or rewritten.
    pub fn check_history(&self, store: &HeadStore) -> Result<(), RemoteError> {
        history::check(self, store)
    }
}

fn noted(reply: Reply) -> Result<(), RemoteError> {
    match reply {
        Reply::Noted => Ok(()),
        other => Err(RemoteError::unexpected(&other)),
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.runtime.block_on(self.connector.close());
    }
}
