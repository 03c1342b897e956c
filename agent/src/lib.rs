//! The agent of vsync.
//!
//! - [`cli`]: the command line, a thin skin over the rooms below
//! - [`config`]: `vsync.toml`, read and checked
//! - [`keys`]: how keys derive, what each machine holds, where they lie
//! - [`suggest`]: near names, for messages about unknown ones

pub mod cli;
pub mod config;
pub mod keys;
pub mod suggest;
