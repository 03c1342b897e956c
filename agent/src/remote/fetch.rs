//! Fetching many blobs, with many requests under way.

use std::collections::HashSet;
use std::sync::Arc;

use quinn::RecvStream;
use tokio::runtime::Handle;
use vsync_protocol::id::Cid;
use vsync_protocol::wire::{Cids, FRAME_HEAD_LEN, FrameHead, Reply, Request};

use super::RemoteError;
use super::connection::Connector;

/// What came of asking for a blob.
pub enum Fetched {
    /// Its bytes, not yet checked.
    Blob(Cid, Vec<u8>),
    /// The server does not have it whole.
    Absent(Cid),
    /// The request failed for good; nothing more comes of it.
    Failed(RemoteError),
}

/// Fetches blobs. Cheap to clone.
#[derive(Clone)]
pub struct Fetcher {
    runtime: Handle,
    connector: Arc<Connector>,
}

impl Fetcher {
    pub(super) const fn new(runtime: Handle, connector: Arc<Connector>) -> Self {
        Self { runtime, connector }
    }

    /// Asks for `cids`, at most [`vsync_protocol::limits::MAX_CIDS`] different ones. Each
    /// comes exactly once to `deliver`, in any order, unless the whole request fails.
    /// `deliver` runs on the network thread and must not wait.
    pub fn fetch(&self, cids: Vec<Cid>, deliver: impl Fn(Fetched) + Send + Sync + 'static) {
        let connector = self.connector.clone();
        self.runtime.spawn(async move {
            if let Err(error) = run(&connector, cids, &deliver).await {
                deliver(Fetched::Failed(error));
            }
        });
    }
}

async fn run(connector: &Connector, cids: Vec<Cid>, deliver: &(impl Fn(Fetched) + Sync)) -> Result<(), RemoteError> {
    let mut wanted: HashSet<Cid> = cids.iter().copied().collect();
    let mut order = cids;
    while !wanted.is_empty() {
        order.retain(|cid| wanted.contains(cid));
        let connection = connector.connection().await?;
        let request = Request::Fetch { cids: Cids::new(order.clone()) };
        let received = match connector.ask_stream(&connection, &request).await {
            Ok((Reply::Fetching, stream)) => frames(connector, stream, &mut wanted, deliver).await,
            Ok((other, _)) => Err(RemoteError::unexpected(&other)),
            Err(error) => Err(error),
        };
        match received {
            Err(error) if error.is_transient() => tracing::debug!("{error}; asking for {} blobs again", wanted.len()),
            Err(error) => return Err(error),
            Ok(()) => {}
        }
    }
    Ok(())
}

async fn frames(
    connector: &Connector,
    mut stream: RecvStream,
    wanted: &mut HashSet<Cid>,
    deliver: &(impl Fn(Fetched) + Sync),
) -> Result<(), RemoteError> {
    while !wanted.is_empty() {
        let mut head = [0; FRAME_HEAD_LEN];
        stream.read_exact(&mut head).await.map_err(|error| connector.lost(&error))?;
        let head =
            FrameHead::decode(&head).ok_or_else(|| RemoteError::Protocol("a blob is longer than any may be".into()))?;
        if !wanted.contains(&head.cid) {
            return Err(RemoteError::Protocol(format!("blob {} was not asked for", head.cid)));
        }
        if head.len == 0 {
            wanted.remove(&head.cid);
            deliver(Fetched::Absent(head.cid));
            continue;
        }
        connector.before_receiving(head.len as u64).await;
        let mut blob = vec![0; head.len];
        stream.read_exact(&mut blob).await.map_err(|error| connector.lost(&error))?;
        wanted.remove(&head.cid);
        deliver(Fetched::Blob(head.cid, blob));
    }
    Ok(())
}
