//! The server of vsync.

pub mod transport;
