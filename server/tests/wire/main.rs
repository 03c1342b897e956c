//! The server as its agents meet it: over QUIC, through its public interface.

mod backup;
mod bed;
