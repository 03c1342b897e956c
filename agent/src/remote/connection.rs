//! Making connections, and asking questions on them.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex as StdMutex, OnceLock, PoisonError};
use std::time::Duration;

use quinn::{Connection, ConnectionError, Endpoint, RecvStream, TokioRuntime};
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};
use vsync_protocol::id::{JobId, MachineKey, MachineName};
use vsync_protocol::log::GENESIS;
use vsync_protocol::manifest::LogPosition;
use vsync_protocol::wire::plain::{MAX_WORDS, plain};
use vsync_protocol::wire::{self, JobStart, MESSAGE_HEAD_LEN, Reply, Request, SERVER_NAME, VERSION};

use super::pace::{Limits, Pace};
use super::patience::{Patience, Tries};
use super::{Identity, RemoteError, ServerAddress};

/// How long the first answer may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_millis(20);

/// The shortest time that the runtime sleeps: the connection's own task runs meanwhile.
const MOMENT: Duration = Duration::from_millis(1);

/// Makes connections to one server.
pub(super) struct Connector {
    server: ServerAddress,
    identity: Identity,
    patience: Patience,
    live: Mutex<Option<(Endpoint, Connection)>>,
    greeting: StdMutex<(i64, LogPosition)>,
    upload: OnceLock<Pace>,
    download: OnceLock<Pace>,
    /// Jobs under way, of which a new connection is told.
    jobs: StdMutex<Vec<JobStart>>,
}

impl Connector {
    pub(super) const fn new(server: ServerAddress, identity: Identity, patience: Patience) -> Self {
        let greeting = StdMutex::new((0, LogPosition { index: 0, head: GENESIS }));
        Self {
            server,
            identity,
            patience,
            live: Mutex::const_new(None),
            greeting,
            upload: OnceLock::new(),
            download: OnceLock::new(),
            jobs: StdMutex::new(Vec::new()),
        }
    }

    pub(super) fn limit(&self, limits: Limits) {
        for (pace, rate) in [(&self.upload, limits.upload), (&self.download, limits.download)] {
            if let Some(rate) = rate {
                pace.get_or_init(|| Pace::new(rate));
            }
        }
    }

    /// Waits until so many bytes may be sent.
    pub(super) async fn before_sending(&self, bytes: u64) {
        if let Some(pace) = self.upload.get() {
            pace.take(bytes).await;
        }
    }

    /// Waits until so many bytes may be received. What is not read, the server cannot send for
    /// long.
    pub(super) async fn before_receiving(&self, bytes: u64) {
        if let Some(pace) = self.download.get() {
            pace.take(bytes).await;
        }
    }

    pub(super) const fn server_name(&self) -> &MachineName {
        &self.server.name
    }

    pub(super) const fn server_key(&self) -> MachineKey {
        self.server.key
    }

    /// Tries of something, for as long as patience lasts.
    pub(super) const fn tries(&self) -> Tries {
        self.patience.tries()
    }

    /// Waits for the next part of an answer that has begun.
    pub(super) async fn part<T>(&self, part: impl Future<Output = Result<T, RemoteError>>) -> Result<T, RemoteError> {
        self.patience.part(self.server.name.as_str(), part).await
    }

    pub(super) fn greeting(&self) -> (i64, LogPosition) {
        *self.greeting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lost(&self, reason: &dyn std::fmt::Display) -> RemoteError {
        RemoteError::Lost { server: self.server.name.to_string(), reason: plain(&reason.to_string(), MAX_WORDS) }
    }

    /// The first connection: whoever is not there now is an error at once.
    pub(super) async fn first(&self) -> Result<(), RemoteError> {
        let mut live = self.live.lock().await;
        *live = Some(self.connect().await?);
        Ok(())
    }

    /// The live connection, or a new one; waits for the server as long as patience lasts.
    pub(super) async fn connection(&self) -> Result<Connection, RemoteError> {
        let mut live = self.live.lock().await;
        if let Some((_, connection)) = live.as_ref()
            && connection.close_reason().is_none()
        {
            return Ok(connection.clone());
        }
        *live = None;
        let mut tries = self.tries();
        loop {
            match self.connect().await {
                Ok((endpoint, connection)) => {
                    *live = Some((endpoint, connection.clone()));
                    return Ok(connection);
                }
                Err(error) => tries.again(error).await?,
            }
        }
    }

    /// Says goodbye, so that the server need not wait for a dead connection.
    ///
    /// Waits until the packet is out, not until it can be sure to have arrived, which takes
    /// three times the time after which packets count as lost: longer than all the rest of a
    /// backup that finds nothing changed.
    pub(super) async fn close(&self) {
        if let Some((_endpoint, connection)) = self.live.lock().await.take() {
            let before = connection.stats().udp_tx.datagrams;
            connection.close(0_u32.into(), b"done");
            let sent = async {
                while connection.stats().udp_tx.datagrams == before {
                    sleep(MOMENT).await;
                }
                // What went out may have been an acknowledgement that was due anyway.
                sleep(MOMENT).await;
            };
            // A socket that takes nothing any more takes no goodbye either.
            let _ = timeout(GOODBYE, sent).await;
        }
    }

    async fn connect(&self) -> Result<(Endpoint, Connection), RemoteError> {
        let (server, address) = (self.server.name.to_string(), self.server.address.clone());
        let resolve = |source| RemoteError::Resolve { server: server.clone(), address: address.clone(), source };
        let resolved: Vec<SocketAddr> = tokio::net::lookup_host(&address).await.map_err(resolve)?.collect();
        let unreachable = RemoteError::Unreachable { server, address, seconds: CONNECT_TIMEOUT.as_secs() };
        let mut last = unreachable;
        for remote in resolved {
            match self.connect_to(remote).await {
                Ok(connected) => return Ok(connected),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn connect_to(&self, remote: SocketAddr) -> Result<(Endpoint, Connection), RemoteError> {
        let (server, address) = (self.server.name.to_string(), remote.to_string());
        let local: SocketAddr =
            if remote.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
        let socket = vsync_transport::bind(local)?;
        let endpoint =
            Endpoint::new(vsync_transport::endpoint_config(), None, socket, std::sync::Arc::new(TokioRuntime))
                .map_err(|source| vsync_transport::TransportError::Bind { address: local, source })?;
        let config = vsync_transport::client_config(
            &self.identity.key,
            self.server.key,
            vsync_transport::Congestion::default(),
        )?;
        let refused = |error: &ConnectionError| {
            let (server, address, reason) = (server.clone(), address.clone(), error.to_string());
            if is_about_keys(error) {
                RemoteError::Identity { server, address, reason }
            } else {
                RemoteError::Handshake { server, address, reason }
            }
        };
        let connecting = endpoint.connect_with(config, remote, SERVER_NAME).map_err(|error| {
            let (server, address) = (server.clone(), address.clone());
            RemoteError::Handshake { server, address, reason: error.to_string() }
        })?;
        let unreachable = || RemoteError::Unreachable {
            server: server.clone(),
            address: address.clone(),
            seconds: CONNECT_TIMEOUT.as_secs(),
        };
        let connection = match timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(ConnectionError::TimedOut)) | Err(_) => return Err(unreachable()),
            Ok(Err(error)) => return Err(refused(&error)),
        };
        // The server looks at this machine's key after the client's side is done: it is the
        // first answer that tells whether it was accepted.
        match timeout(CONNECT_TIMEOUT, self.hello(&connection)).await {
            Ok(Ok(())) => {
                self.repeat_jobs(&connection).await;
                Ok((endpoint, connection))
            }
            Ok(Err(RemoteError::Lost { reason, .. })) => match connection.close_reason() {
                Some(error @ ConnectionError::ConnectionClosed(_)) => Err(refused(&error)),
                _ => Err(self.lost(&reason)),
            },
            Ok(Err(error)) => Err(error),
            Err(_) => Err(unreachable()),
        }
    }

    /// Adds a job to what a new connection is told of.
    pub(super) fn announce(&self, job: JobStart) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).push(job);
    }

    /// The job has ended.
    pub(super) fn renounce(&self, id: JobId) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).retain(|job| job.id != id);
    }

    /// Says that jobs are still under way, which the server may doubt after a connection broke.
    async fn repeat_jobs(&self, connection: &Connection) {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for job in jobs {
            let request = Request::BeginJob(job);
            // The work itself does not depend on it.
            if !matches!(timeout(CONNECT_TIMEOUT, self.ask(connection, &request)).await, Ok(Ok(_))) {
                return;
            }
        }
    }

    /// Asks once, on a new connection only if there is none. Gives up soon.
    pub(super) async fn request_once(&self, request: &Request) -> Result<Reply, RemoteError> {
        let asked = async {
            let mut live = self.live.lock().await;
            let connection = match live.as_ref().filter(|(_, connection)| connection.close_reason().is_none()) {
                Some((_, connection)) => connection.clone(),
                None => live.insert(self.connect().await?).1.clone(),
            };
            drop(live);
            self.ask(&connection, request).await
        };
        timeout(CONNECT_TIMEOUT, asked).await.unwrap_or_else(|_| Err(self.lost(&"it did not answer in time")))
    }

    /// Says hello once more, on the live connection or a new one.
    pub(super) async fn greet_again(&self) -> Result<(), RemoteError> {
        let connection = self.connection().await?;
        self.hello(&connection).await
    }

    async fn hello(&self, connection: &Connection) -> Result<(), RemoteError> {
        let request = Request::Hello { version: VERSION, realm: self.identity.realm };
        match self.ask(connection, &request).await? {
            Reply::Hello { version: VERSION, now, log } => {
                *self.greeting.lock().unwrap_or_else(PoisonError::into_inner) = (now, log);
                Ok(())
            }
            Reply::Hello { version, .. } => {
                Err(RemoteError::Protocol(format!("the server wants protocol version {version}")))
            }
            other => Err(RemoteError::unexpected(&other)),
        }
    }

    /// Asks once, on this connection.
    pub(super) async fn ask(&self, connection: &Connection, request: &Request) -> Result<Reply, RemoteError> {
        self.ask_stream(connection, request).await.map(|(reply, _)| reply)
    }

    /// Asks once; what follows the reply can be read from the stream.
    pub(super) async fn ask_stream(
        &self,
        connection: &Connection,
        request: &Request,
    ) -> Result<(Reply, RecvStream), RemoteError> {
        let answer = self.exchange(connection, request);
        self.patience.answer(request, self.server.name.as_str(), answer).await
    }

    async fn exchange(&self, connection: &Connection, request: &Request) -> Result<(Reply, RecvStream), RemoteError> {
        let (mut send, mut receive) = connection.open_bi().await.map_err(|error| self.lost(&error))?;
        send.write_all(&wire::encode_message(request)).await.map_err(|error| self.lost(&error))?;
        send.finish().map_err(|error| self.lost(&error))?;
        let mut head = [0; MESSAGE_HEAD_LEN];
        receive.read_exact(&mut head).await.map_err(|error| self.lost(&error))?;
        let len =
            wire::message_len(head).ok_or_else(|| RemoteError::Protocol("a reply is longer than any may be".into()))?;
        let mut message = vec![0; len];
        receive.read_exact(&mut message).await.map_err(|error| self.lost(&error))?;
        match minicbor::decode(&message).map(Reply::made_plain) {
            Ok(Reply::Refused(refusal)) => Err(RemoteError::Refused { server: self.server.name.to_string(), refusal }),
            Ok(reply) => Ok((reply, receive)),
            Err(error) => Err(RemoteError::Protocol(format!("unreadable reply: {error}"))),
        }
    }

    /// Asks until there is an answer. Every request may be repeated.
    pub(super) async fn request(&self, request: &Request) -> Result<Reply, RemoteError> {
        let mut tries = self.tries();
        loop {
            let connection = self.connection().await?;
            match self.ask(&connection, request).await {
                Err(error) => tries.again(error).await?,
                answered => return answered,
            }
        }
    }
}

/// Whether one side does not take the other's key, or not its signature: by the other's word, or by ours.
fn is_about_keys(error: &ConnectionError) -> bool {
    match error {
        ConnectionError::ConnectionClosed(close) => KEY_ALERTS.contains(&u64::from(close.error_code)),
        ConnectionError::TransportError(error) => KEY_ALERTS.contains(&u64::from(error.code)),
        _ => false,
    }
}

/// The TLS alerts (RFC 8446, 6.2) about certificates and what is signed with their keys, as QUIC says them (RFC 9001,
/// 4.8). All others are about versions, parameters, or a server that is full.
const KEY_ALERTS: [u64; 9] = {
    const ALERT: u64 = 0x100;
    [
        ALERT + 42,  // bad_certificate
        ALERT + 43,  // unsupported_certificate
        ALERT + 44,  // certificate_revoked
        ALERT + 45,  // certificate_expired
        ALERT + 46,  // certificate_unknown
        ALERT + 48,  // unknown_ca
        ALERT + 49,  // access_denied
        ALERT + 51,  // decrypt_error
        ALERT + 116, // certificate_required
    ]
};

#[cfg(test)]
mod tests {
    use quinn::{ConnectionClose, TransportErrorCode};

    use super::*;

    #[test]
    fn only_alerts_about_keys_are_about_keys() {
        let closed = |error_code| {
            let close = ConnectionClose { error_code, frame_type: None, reason: Vec::new().into() };
            is_about_keys(&ConnectionError::ConnectionClosed(close))
        };
        assert!([42, 49, 51, 116].map(TransportErrorCode::crypto).into_iter().all(closed));
        // No protocol in common, and a server that takes no more.
        assert!(!closed(TransportErrorCode::crypto(120)));
        assert!(!closed(TransportErrorCode::CONNECTION_REFUSED));
        assert!(![ConnectionError::Reset, ConnectionError::VersionMismatch].iter().any(is_about_keys));
    }
}
