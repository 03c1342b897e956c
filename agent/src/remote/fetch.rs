//! Fetching many blobs, with many requests under way.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::BufMut;
use quinn::RecvStream;
use tokio::io::AsyncReadExt;
use tokio::runtime::Handle;
use vsync_protocol::blob::{BlobKind, longest};
use vsync_protocol::id::Cid;
use vsync_protocol::wire::{Cids, FRAME_HEAD_LEN, FrameHead, Reply, Request};

use super::RemoteError;
use super::connection::Connector;
use crate::tree::Reference;

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

    /// Tells the server of a blob that did not match its name, so that it looks for itself and takes the next backup's.
    /// What else can be read is worth reading, whatever the server says.
    pub fn report_damage(&self, cid: Cid) {
        if let Err(error) = self.runtime.block_on(self.connector.request(&Request::Damaged { cid })) {
            tracing::warn!("the server could not be told that blob {cid} is damaged: {error}");
        }
    }

    /// Asks for blobs of `kind`, at most [`vsync_protocol::limits::MAX_CIDS`] different ones.
    /// Each comes exactly once to `deliver`, in any order, unless the whole request fails,
    /// and is no longer than its parent lets it be: what a server may send unasked would
    /// fill memory. `deliver` runs on the network thread and must not wait.
    pub fn fetch(&self, kind: BlobKind, blobs: &[Reference], deliver: impl Fn(Fetched) + Send + Sync + 'static) {
        let connector = self.connector.clone();
        let longest = |blob: &Reference| longest(kind, blob.child.raw_len as usize);
        let mut wanted = HashMap::with_capacity(blobs.len());
        for blob in blobs {
            let limit = wanted.entry(blob.cid).or_default();
            *limit = longest(blob).max(*limit);
        }
        let order = blobs.iter().map(|blob| blob.cid).collect();
        self.runtime.spawn(async move {
            if let Err(error) = run(&connector, order, wanted, &deliver).await {
                deliver(Fetched::Failed(error));
            }
        });
    }
}

/// What is still wanted, and the length that each may have.
type Wanted = HashMap<Cid, usize>;

async fn run(
    connector: &Connector,
    mut order: Vec<Cid>,
    mut wanted: Wanted,
    deliver: &(impl Fn(Fetched) + Sync),
) -> Result<(), RemoteError> {
    let mut tries = connector.tries();
    while !wanted.is_empty() {
        order.retain(|cid| wanted.contains_key(cid));
        let before = wanted.len();
        let connection = connector.connection().await?;
        let request = Request::Fetch { cids: Cids::new(order.clone()) };
        let received = match connector.ask_stream(&connection, &request).await {
            Ok((Reply::Fetching, stream)) => frames(connector, stream, &mut wanted, deliver).await,
            Ok((other, _)) => Err(RemoteError::unexpected(&other)),
            Err(error) => Err(error),
        };
        if wanted.len() < before {
            tries.progressed();
        }
        if let Err(error) = received {
            tries.again(error).await?;
        }
    }
    Ok(())
}

async fn frames(
    connector: &Connector,
    mut stream: RecvStream,
    wanted: &mut Wanted,
    deliver: &(impl Fn(Fetched) + Sync),
) -> Result<(), RemoteError> {
    while !wanted.is_empty() {
        let mut head = [0; FRAME_HEAD_LEN];
        read(connector, &mut stream, &mut head).await?;
        let head =
            FrameHead::decode(&head).ok_or_else(|| RemoteError::Protocol("a blob is longer than any may be".into()))?;
        let Some(&longest) = wanted.get(&head.cid) else {
            return Err(RemoteError::Protocol(format!("blob {} was not asked for", head.cid)));
        };
        if head.len > longest {
            let what = format!("blob {} is longer than it can be: {} bytes, not {longest}", head.cid, head.len);
            return Err(RemoteError::Protocol(what));
        }
        if head.len == 0 {
            wanted.remove(&head.cid);
            deliver(Fetched::Absent(head.cid));
            continue;
        }
        connector.before_receiving(head.len as u64).await;
        let blob = read_blob(connector, &mut stream, head.len).await?;
        wanted.remove(&head.cid);
        deliver(Fetched::Blob(head.cid, blob));
    }
    Ok(())
}

/// The next `len` bytes, in memory that was not cleared before.
async fn read_blob(connector: &Connector, stream: &mut RecvStream, len: usize) -> Result<Vec<u8>, RemoteError> {
    let mut blob = Vec::with_capacity(len);
    while blob.len() < len {
        let missing = len - blob.len();
        let part =
            async { stream.read_buf(&mut (&mut blob).limit(missing)).await.map_err(|error| connector.lost(&error)) };
        if connector.part(part).await? == 0 {
            return Err(connector.lost(&"the answer ends too early"));
        }
    }
    Ok(blob)
}

/// Fills `buffer`, however slowly, as long as something comes.
async fn read(connector: &Connector, stream: &mut RecvStream, mut buffer: &mut [u8]) -> Result<(), RemoteError> {
    while !buffer.is_empty() {
        let part = async { stream.read(buffer).await.map_err(|error| connector.lost(&error)) };
        match connector.part(part).await? {
            Some(len) => buffer = &mut buffer[len..],
            None => return Err(connector.lost(&"the answer ends too early")),
        }
    }
    Ok(())
}
