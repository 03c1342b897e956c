//! The agent of vsync.

pub mod volume;
