//! Whether the store may still be written. After a failed write or sync nobody knows what
//! the disk holds, so the first such error stops all writing for good; it is never retried.

use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use super::StoreError;
use super::steps::Steps;

/// Shared by everything that writes into one store. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Health {
    failure: Arc<OnceLock<String>>,
    steps: Steps,
}

impl Health {
    /// Health of a store that announces its steps to `steps`.
    #[must_use]
    pub fn announcing(steps: Steps) -> Self {
        Self { steps, ..Self::default() }
    }

    /// Where steps are announced.
    pub(crate) const fn steps(&self) -> &Steps {
        &self.steps
    }

    /// Why writing has stopped, if it has.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// Refuses when writing has stopped.
    ///
    /// # Errors
    /// [`StoreError::ReadOnly`] with the first failure.
    pub fn check(&self) -> Result<(), StoreError> {
        self.failure().map_or(Ok(()), |why| Err(StoreError::ReadOnly(why.to_owned())))
    }

    /// Stops all writing because of `why`; the first reason stays.
    pub fn fail(&self, why: String) {
        tracing::error!("the store takes no more writes: {why}");
        let _ = self.failure.set(why);
    }

    /// Stops all writing if `result` is an error that leaves the disk's content unknown.
    pub(crate) fn watch<T>(
        &self,
        operation: &'static str,
        path: &Path,
        result: io::Result<T>,
    ) -> Result<T, StoreError> {
        result.map_err(|source| {
            self.fail(format!("cannot {operation} {}: {source}", path.display()));
            StoreError::io(operation, path)(source)
        })
    }
}
