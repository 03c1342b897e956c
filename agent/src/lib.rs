//! The agent of vsync: it reads volumes, cuts, seals and sends them, and brings them back.
//!
//! The only crate that holds realm keys or sees plaintext.

mod acl;
pub mod backup;
pub mod budget;
mod cache;
pub mod chunk;
pub mod cli;
mod compare;
pub mod config;
mod content;
mod diff;
pub mod docker;
mod dump;
mod durable;
mod find;
pub mod keys;
mod pattern;
mod progress;
pub mod quiesce;
pub mod remote;
mod restore;
mod schedule;
mod shelf;
pub mod snapshot;
mod suggest;
pub mod tree;
mod unpack;
pub mod vault;
mod verify;
pub mod volume;
