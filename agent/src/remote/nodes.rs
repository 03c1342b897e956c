//! Tree nodes from the server, fetched ahead of their reading.

use std::collections::HashMap;

use crossbeam_channel::{Receiver, Sender, unbounded};
use thiserror::Error;
use vsync_protocol::blob::BlobKind;
use vsync_protocol::id::Cid;

use super::{Fetched, Fetcher, RemoteError};
use crate::tree::{Node, NodeSource, Reference};
use crate::vault::{OpenError, Opener};

/// Why a node could not be had.
#[derive(Debug, Error)]
pub enum NodeError {
    /// Network or server.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The server does not have it whole.
    #[error("the server does not have blob {0}, or its copy is damaged")]
    Absent(Cid),
    /// What came is not the node.
    #[error("blob {cid} is damaged")]
    Damaged {
        /// The blob.
        cid: Cid,
        /// What is wrong with it.
        source: OpenError,
    },
}

/// Loads nodes from a server.
pub struct RemoteNodes {
    fetcher: Fetcher,
    opener: Opener,
    arrivals: (Sender<Fetched>, Receiver<Fetched>),
    /// Asked for; the blob is there once it has come.
    asked: HashMap<Cid, Option<Vec<u8>>>,
}

impl RemoteNodes {
    /// Nodes that `opener` can open.
    #[must_use]
    pub fn new(fetcher: Fetcher, opener: Opener) -> Self {
        Self { fetcher, opener, arrivals: unbounded(), asked: HashMap::new() }
    }

    fn ask(&mut self, kind: BlobKind, nodes: &[Reference]) {
        let new: Vec<Reference> = nodes.iter().filter(|node| !self.asked.contains_key(&node.cid)).copied().collect();
        if new.is_empty() {
            return;
        }
        self.asked.extend(new.iter().map(|node| (node.cid, None)));
        let arrivals = self.arrivals.0.clone();
        // When the reader is gone, nobody misses what arrives.
        self.fetcher.fetch(kind, &new, move |fetched| drop(arrivals.send(fetched)));
    }

    fn wait_for(&mut self, kind: BlobKind, node: &Reference) -> Result<Vec<u8>, NodeError> {
        let cid = node.cid;
        self.ask(kind, std::slice::from_ref(node));
        loop {
            if let Some(Some(_)) = self.asked.get(&cid)
                && let Some(Some(blob)) = self.asked.remove(&cid)
            {
                return Ok(blob);
            }
            match self.arrivals.1.recv() {
                // One that was forgotten meanwhile is let go.
                Ok(Fetched::Blob(arrived, blob)) => {
                    self.asked.entry(arrived).and_modify(|waiting| *waiting = Some(blob));
                }
                Ok(Fetched::Absent(absent)) if absent == cid => {
                    self.asked.remove(&cid);
                    return Err(NodeError::Absent(cid));
                }
                // Not needed yet: it is asked for again when it is.
                Ok(Fetched::Absent(absent)) => drop(self.asked.remove(&absent)),
                Ok(Fetched::Failed(error)) => return Err(error.into()),
                Err(_) => return Err(NodeError::Absent(cid)),
            }
        }
    }
}

impl NodeSource for RemoteNodes {
    type Error = NodeError;

    fn load(&mut self, kind: BlobKind, node: &Reference) -> Result<Node, NodeError> {
        let blob = self.wait_for(kind, node)?;
        let cid = node.cid;
        self.opener.open_node(kind, node, blob).map_err(|source| {
            self.fetcher.report_damage(cid);
            NodeError::Damaged { cid, source }
        })
    }

    fn expect(&mut self, kind: BlobKind, nodes: &[Reference]) {
        self.ask(kind, nodes);
    }

    fn forget(&mut self, node: &Reference) {
        self.asked.remove(&node.cid);
    }
}
