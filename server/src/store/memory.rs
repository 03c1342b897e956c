//! Packs in memory, for tests.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use vsync_protocol::id::PackId;

use super::pack::Pack;
use super::{PackStore, StoreError};

/// Packs that are gone with the process.
#[derive(Debug, Default)]
pub struct MemoryStore(Mutex<HashMap<PackId, Bytes>>);

impl MemoryStore {
    fn packs(&self) -> MutexGuard<'_, HashMap<PackId, Bytes>> {
        // Each change is one insertion, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PackStore for MemoryStore {
    fn put(&self, pack: &Pack) -> Result<(), StoreError> {
        let bytes: Vec<u8> = pack.slices().iter().flat_map(|slice| slice.iter().copied()).collect();
        self.packs().insert(pack.id(), bytes.into());
        Ok(())
    }

    fn len(&self, pack: PackId) -> Result<Option<u64>, StoreError> {
        Ok(self.packs().get(&pack).map(|bytes| bytes.len() as u64))
    }

    fn read(&self, pack: PackId, offset: u64, buffer: &mut [u8]) -> Result<bool, StoreError> {
        let packs = self.packs();
        let Some(bytes) = packs.get(&pack) else { return Ok(false) };
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let found = start.checked_add(buffer.len()).and_then(|end| bytes.get(start..end));
        Ok(found.map(|found| buffer.copy_from_slice(found)).is_some())
    }

    fn list(&self) -> Result<Vec<PackId>, StoreError> {
        Ok(self.packs().keys().copied().collect())
    }
}
