//! The language that vsync's agent and server share.
//!
//! Everything here is a function of its arguments: no sockets, no files, no clock, no
//! randomness, no tokio, and no secret keys. Code that needs one of those lives in the
//! agent or the server and hands this crate the bytes.
//!
//! - [`id`]: names of blobs, snapshots, machines, volumes
//! - [`limits`]: every bound, with its reason
//! - [`blob`]: the envelope of a sealed chunk or node
//! - [`tree`]: records and nodes that describe a snapshot's files
//! - [`manifest`]: the signed record that makes a tree a snapshot
//! - [`log`]: the chain of all commits, and receipts
//! - [`plan`]: which snapshots are kept
//! - [`wire`]: messages between agent and server
//! - [`registry`]: `vsync.pub`, the public keys of a realm

pub mod blob;
mod encode;
pub mod id;
pub mod key;
pub mod limits;
pub mod log;
pub mod manifest;
pub mod plan;
pub mod registry;
pub mod tree;
pub mod wire;

pub use encode::{encode, encode_into};

#[cfg(test)]
mod testing;
