//! Making a volume stand still while it is read, and its applications go on afterwards.
//!
//! ```text
//!  configuration, labels ─► Wish ─┐
//!  containers as they are ────────┴─► Plan ─► Record ─► exec-pre ─► pause, stop ─► (read) ─► back ─► exec-post
//! ```
//!
//! - [`Wish`] is what somebody wants to be done with a container; [`Plan`] is what will be done, a function of wishes
//!   and facts.
//! - A record of it is on the disk before anything is done, and goes when everything is undone.
//! - [`Hold`] undoes what was done when it is told to, and when it is dropped; a signal does not wait for that
//!   ([`let_go_of_what_is_read`]). What a killed process left behind, [`undo_abandoned`] undoes from its record.
//! - [`host`] runs commands on the machine itself.
//!
//! Only the previous state comes back: what was paused or stopped by somebody else stays so. Nothing here reads a
//! volume.

mod error;
mod hold;
mod hooks;
pub(crate) mod host;
mod plan;
mod record;
mod registry;
mod undo;
mod wish;

pub use error::{HookFailed, QuiesceError};
pub use hold::{Hold, Holder, Released, Target};
pub use plan::{Action, Hook, Plan, Purpose, Step, plan};
pub use record::{Ledger, Record};
pub use registry::{held_now, let_go_of_what_is_read};
pub use undo::{NotReleased, Undone, undo_abandoned};
pub use wish::{LabelMistake, Wish, unknown_labels};

use std::sync::Arc;

/// Where a person is told what happens to their containers, a line at a time.
pub type Say = Arc<dyn Fn(&str) + Send + Sync>;
