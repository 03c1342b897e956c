//! The server as its agents meet it: over QUIC, through its public interface.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod access;
mod backup;
mod bed;
mod durable;
mod history;
mod hostile;
mod jobs;
mod kill;
mod limits;
mod matrix;
mod mutated;
mod replay;
mod web;
