//! The agent of vsync.
//!
//! - [`config`]: `vsync.toml`, read and checked
//! - [`keys`]: how keys derive, what each machine holds, where they lie
//! - [`suggest`]: near names, for messages about unknown ones

pub mod config;
pub mod keys;
pub mod suggest;
