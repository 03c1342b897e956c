//! The server of vsync.

pub mod store;
pub mod transport;

#[cfg(test)]
mod testing;
