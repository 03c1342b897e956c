//! The agent of vsync.

pub mod docker;
