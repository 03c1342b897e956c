//! Snapshots made by somebody who holds a machine's keys and means harm (B12, A07, A14): signed, sealed and committed as
//! any other, with whatever he likes in them. Whoever restores or looks at one is told what is wrong with it; nothing
//! outside the target is touched, nothing panics, nothing goes on for ever.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod content;
mod forger;
mod impossible;
mod outside;
mod victim;
