//! Every step by which a store changes on disk, announced to whoever wants to know.
//!
//! Nobody does in production, where a step costs one look at an empty option. Tests listen:
//! they take the store as it is at each step for what a kill at that instant leaves, or let
//! a step fail as a bad disk would.

use std::fmt;
use std::io;
use std::sync::Arc;

/// A listener: gets "before" or "after" and what the step does; an error stops the step, or
/// makes it fail although it was done.
type Listener = dyn Fn(&'static str, &'static str) -> io::Result<()> + Send + Sync;

/// Where steps are announced. Cheap to clone.
#[derive(Clone, Default)]
pub struct Steps(Option<Arc<Listener>>);

impl Steps {
    /// Announces steps to `listener`.
    pub fn heard_by(listener: impl Fn(&'static str, &'static str) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(listener)))
    }

    /// A step is about to be taken.
    pub(crate) fn before(&self, what: &'static str) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |listener| listener("before", what))
    }

    /// A step was taken.
    pub(crate) fn after(&self, what: &'static str) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |listener| listener("after", what))
    }

    /// Takes a step between its two announcements.
    pub(crate) fn take<T>(&self, what: &'static str, step: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.before(what)?;
        let done = step()?;
        self.after(what)?;
        Ok(done)
    }
}

impl fmt::Debug for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Steps(heard)" } else { "Steps" })
    }
}
