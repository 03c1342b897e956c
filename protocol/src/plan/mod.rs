//! Decisions that are functions of facts: planned here, carried out elsewhere.

pub mod calendar;
pub mod retention;

pub use calendar::Zone;
pub use retention::{Candidate, Clock, Fate, Frozen, Keep, Lapse, Policy, Rule, Verdict, plan};
