//! A server that means harm (A06, A11, N02, N11): whatever it answers, the agent ends in time, within its memory, with
//! an exit status and words that fit, and what it has written is right.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod blobs;
mod history;
mod receipts;
mod silence;
mod snapshots;
mod stage;
