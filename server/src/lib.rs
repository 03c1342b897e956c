//! The server of vsync.

pub mod archive;
pub mod catalog;
pub mod commit;
pub mod rebuild;
pub mod store;
pub mod transport;

#[cfg(test)]
mod testing;
