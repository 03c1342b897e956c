//! What can go wrong between agent and server.

use std::io;

use thiserror::Error;
use vsync_protocol::wire::{Refusal, RefusalCode, Reply};

/// A failure of the network or a refusal of the server; never of the volume.
#[derive(Debug, Error)]
pub enum RemoteError {
    /// The address cannot be resolved.
    #[error("cannot find {server} at {address}")]
    Resolve {
        /// The server.
        server: String,
        /// Its address.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// Nobody answers.
    #[error("no answer from {server} at {address} (UDP) within {seconds} s")]
    Unreachable {
        /// The server.
        server: String,
        /// Its address.
        address: String,
        /// How long was waited.
        seconds: u64,
    },
    /// Somebody answers who is not that server, or who does not let this machine in.
    #[error("{server} at {address} and this machine do not accept each other's keys")]
    Identity {
        /// The server.
        server: String,
        /// Its address.
        address: String,
        /// What the handshake said.
        reason: String,
    },
    /// Somebody answers, and no connection comes of it.
    #[error("{server} at {address} (UDP) takes no connection: {reason}")]
    Handshake {
        /// The server.
        server: String,
        /// Its address.
        address: String,
        /// What the handshake said.
        reason: String,
    },
    /// The connection broke and could not be made again in time.
    #[error("lost the connection to {server}: {reason}")]
    Lost {
        /// The server.
        server: String,
        /// What broke it.
        reason: String,
    },
    /// The server says no.
    #[error("{server} refused: {}", .refusal.message)]
    Refused {
        /// The server.
        server: String,
        /// What it said, and the number of it.
        refusal: Refusal,
    },
    /// The server does not keep to the protocol.
    #[error("the server does not keep to the protocol: {0}")]
    Protocol(String),
    /// The server's history is not the one this machine has seen.
    #[error("the history of {server} was rolled back or rewritten: {reason}")]
    History {
        /// The server.
        server: String,
        /// What does not fit.
        reason: String,
    },
    /// The server's list of snapshots is not what was asked for.
    #[error("{server} lists snapshot {snapshot} wrongly: {reason}")]
    Listed {
        /// The server.
        server: String,
        /// The snapshot, as the server calls it.
        snapshot: String,
        /// What does not fit.
        reason: String,
    },
    /// The record of the server's history cannot be kept.
    #[error("cannot keep the record of the server's history in {path}")]
    HeadFile {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The network thread cannot start.
    #[error("cannot start the network thread")]
    Runtime(#[source] io::Error),
    /// TLS or the local socket.
    #[error(transparent)]
    Transport(#[from] vsync_transport::TransportError),
}

impl RemoteError {
    /// A reply that does not answer what was asked.
    #[must_use]
    pub fn unexpected(reply: &Reply) -> Self {
        let name = format!("{reply:?}");
        let name = name.split(['(', ' ', '{']).next().unwrap_or_default().to_owned();
        Self::Protocol(format!("reply {name} to another question"))
    }

    /// The number of the refusal, if this is one.
    #[must_use]
    pub const fn refusal(&self) -> Option<RefusalCode> {
        match self {
            Self::Refused { refusal, .. } => Some(refusal.code),
            _ => None,
        }
    }

    /// Whether another connection may help.
    pub(super) const fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Lost { .. }
                | Self::Unreachable { .. }
                | Self::Handshake { .. }
                // Names are known again when the network is. Who begins is told at once, and asks no second time.
                | Self::Resolve { .. }
                | Self::Refused { refusal: Refusal { code: RefusalCode::Draining | RefusalCode::NoSession, .. }, .. }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_is_tried_again_while_work_is_under_way() {
        let (server, address) = (|| "annex2".to_owned(), || "annex2:8443".to_owned());
        let reason = || "a reason".to_owned();
        let away = io::Error::other("no name server answers");
        for error in [
            RemoteError::Resolve { server: server(), address: address(), source: away },
            RemoteError::Unreachable { server: server(), address: address(), seconds: 1 },
            RemoteError::Handshake { server: server(), address: address(), reason: reason() },
            RemoteError::Lost { server: server(), reason: reason() },
        ] {
            assert!(error.is_transient(), "{error}");
        }
        let identity = RemoteError::Identity { server: server(), address: address(), reason: reason() };
        assert!(!identity.is_transient() && !RemoteError::Protocol(reason()).is_transient());
    }
}
