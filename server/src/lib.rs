//! The server of vsync: the store, and the sessions that fill and read it.
//!
//! It cannot decrypt anything: it holds no key of the realm and links no cipher for data.
//! What it knows of a blob is its name, which is the hash of its bytes, and the references
//! that stand in clear in front of a tree node.
//!
//! The way of a blob: `vsync-transport` → connection → session (checked against its name,
//! packed) → [`archive`] → [`store`] (durable) → [`catalog`] (known). Everything from the
//! archive on blocks and knows nothing of QUIC; everything before it is async and touches
//! no file.

pub mod alerts;
mod answers;
pub mod archive;
pub mod catalog;
mod catchup;
pub mod clock;
pub mod commit;
mod connection;
mod fetch;
mod jobs;
mod limits;
mod overview;
mod pins;
mod rebuild;
mod refusal;
mod relog;
mod repair;
mod serve;
mod session;
mod shares;
pub mod store;
pub mod upkeep;
mod web;
mod words;

#[cfg(test)]
mod testing;

pub use limits::{HANDSHAKE_WINDOW, Limits};
pub use overview::{Declarations, Declared};
pub use rebuild::{RebuildReport, Trust, rebuild, rebuild_in};
pub use relog::{NewLog, rebuild_without_log};
pub use repair::{RepairReport, repair};
pub use serve::{Member, Members, Running, Server, ServerConfig, ServerError};
pub use store::disk::Reserve;
pub use upkeep::{Policies, Upkeep};

pub use vsync_transport::Congestion;
pub use web::StatusConfig;
pub use web::json::{server_json, volume_json};
