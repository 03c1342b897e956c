//! The agent of vsync: it reads volumes, cuts, seals and sends them, and brings them back.
//!
//! The only crate that holds realm keys or sees plaintext.

pub mod acl;
pub mod backup;
pub mod budget;
pub mod cache;
pub mod chunk;
pub mod cli;
pub mod compare;
pub mod config;
pub mod content;
pub mod diff;
pub mod docker;
pub mod dump;
mod durable;
pub mod find;
pub mod keys;
pub mod pattern;
pub mod progress;
pub mod quiesce;
pub mod remote;
pub mod restore;
pub mod schedule;
mod shelf;
pub mod snapshot;
pub mod suggest;
pub mod tree;
pub mod unpack;
pub mod vault;
pub mod verify;
pub mod volume;
