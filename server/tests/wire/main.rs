//! The server as its agents meet it: over QUIC, through its public interface.

mod access;
mod backup;
mod bed;
mod durable;
mod limits;
