//! How the server is, shown over HTTP: metrics for Prometheus, health for probes, JSON for
//! programs. Off unless configured, read-only, on a thread of its own.
//!
//! It tells names of machines and volumes, and sizes, to whoever can reach it: there is no
//! login. So it belongs on loopback, or behind something that asks who is there. Whoever
//! reaches it can make the server work a little and no more: few connections at a time, each
//! with one request, small heads, no bodies, and deadlines for all of it.

mod health;
pub(crate) mod json;
mod metrics;
mod routes;

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{sleep, timeout};

use crate::overview::Viewer;
use routes::Site;

/// Connections at a time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 64;

/// A request's head must be here in this time.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Everything about a connection must be over in this time.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of a request's head.
const MAX_HEAD: usize = 16 << 10;

/// Headers of a request.
const MAX_HEADERS: usize = 64;

/// How long to wait after a connection could not be accepted, as when files run out.
const PAUSE: Duration = Duration::from_millis(100);

/// How long connections that are being answered may still take when the server ends.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// Where a server shows how it is, and how it calls itself there.
#[derive(Clone, Debug)]
pub struct StatusConfig {
    /// TCP address; port 0 takes any.
    pub listen: SocketAddr,
    /// The server's name.
    pub server: String,
    /// The realm's name.
    pub realm: String,
}

/// The listener. Dropping it ends it.
pub(crate) struct Web {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Web {
    /// Listens and answers from now on.
    pub(crate) fn start(config: StatusConfig, viewer: Arc<Viewer>) -> io::Result<Self> {
        let listener = StdListener::bind(config.listen)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let site = Arc::new(Site::new(config, viewer));
        let thread = std::thread::Builder::new().name("vsync-status".to_owned()).spawn(move || {
            runtime.block_on(async {
                match TcpListener::from_std(listener) {
                    Ok(listener) => tokio::select! {
                        () = serve(&listener, &site) => {}
                        // An error means that the sender is gone, which is the signal.
                        _ = stopped => {}
                    },
                    Err(error) => tracing::error!("the status address cannot be served: {error}"),
                }
            });
            runtime.shutdown_timeout(END_TIMEOUT);
        })?;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the status thread panicked");
        }
    }
}

async fn serve(listener: &TcpListener, site: &Arc<Site>) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(converse(stream, Arc::clone(site), place))),
            Err(error) => {
                tracing::warn!("a connection to the status address cannot be accepted: {error}");
                sleep(PAUSE).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, site: Arc<Site>, _place: OwnedSemaphorePermit) {
    let service = service_fn(move |request| {
        let site = Arc::clone(&site);
        async move { Ok::<_, std::convert::Infallible>(site.answer(&request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        // One request each: nobody holds a place by saying nothing.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(error)) => tracing::debug!("a connection to the status address broke off: {error}"),
    }
}
