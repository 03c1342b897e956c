//! What running backups rely on, and must therefore not be removed.
//!
//! A session pins every blob of which it was told that it is here. Telling and pinning
//! happen together with respect to removing: whoever tells holds the gate with others,
//! whoever removes holds it alone. A session's pins end with it; what a backup believed of
//! a lost session it must ask again, and a commit looks at everything once more.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use vsync_protocol::id::Cid;

/// A set of blobs in eight bytes for each: it keeps the first eight of their names. Another
/// blob with the same ones seems to be in it, so it may only decide what to keep.
#[derive(Debug, Default)]
pub(crate) struct CidSet {
    sorted: Vec<u64>,
    recent: HashSet<u64>,
}

/// Recent members are merged when they are more than this, and more than an eighth of all.
const LEAST_MERGE: usize = 4096;

impl CidSet {
    pub(crate) fn insert(&mut self, cid: &Cid) {
        let key = key(cid);
        if self.sorted.binary_search(&key).is_err() {
            self.recent.insert(key);
        }
        if self.recent.len() > LEAST_MERGE.max(self.sorted.len() / 8) {
            self.sorted.extend(self.recent.drain());
            // The standard sort merges the sorted part rather than sorting it again.
            self.sorted.sort();
        }
    }

    pub(crate) fn contains(&self, cid: &Cid) -> bool {
        let key = key(cid);
        self.sorted.binary_search(&key).is_ok() || self.recent.contains(&key)
    }
}

fn key(cid: &Cid) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&cid.as_bytes()[..8]);
    u64::from_be_bytes(first)
}

type Shared = Mutex<CidSet>;

/// The pins of one session. Dropping the last clone frees them.
#[derive(Clone, Debug, Default)]
pub struct SessionPins(Arc<Shared>);

impl SessionPins {
    pub(crate) fn pin<'a>(&self, cids: impl IntoIterator<Item = &'a Cid>) {
        let mut pins = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cids.into_iter().for_each(|cid| pins.insert(cid));
    }
}

/// The pins of all sessions, and the gate.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    gate: RwLock<()>,
    sessions: Mutex<Vec<Weak<Shared>>>,
}

impl Pins {
    /// Pins for a new session.
    pub(crate) fn session(&self) -> SessionPins {
        let session = SessionPins::default();
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|session| session.strong_count() > 0);
        sessions.push(Arc::downgrade(&session.0));
        session
    }

    /// While this is held nothing becomes absent on purpose, and no pack is moved away.
    pub(crate) fn hold(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody is being told what is here, and lets nobody be told until it is
    /// dropped.
    pub(crate) fn alone(&self) -> Alone<'_> {
        let gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        Alone { _gate: gate, sessions: sessions.iter().filter_map(Weak::upgrade).collect() }
    }
}

/// The gate held alone.
pub(crate) struct Alone<'a> {
    _gate: RwLockWriteGuard<'a, ()>,
    sessions: Vec<Arc<Shared>>,
}

impl Alone<'_> {
    /// Whether any session pins `cid`.
    pub(crate) fn is_pinned(&self, cid: &Cid) -> bool {
        self.sessions.iter().any(|pins| pins.lock().unwrap_or_else(PoisonError::into_inner).contains(cid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_knows_its_members() {
        let cid = |number: u32| Cid::of(&number.to_le_bytes());
        let mut set = CidSet::default();
        for number in 0..50_000 {
            set.insert(&cid(number));
            set.insert(&cid(number / 2));
        }
        assert!((0..50_000).all(|number| set.contains(&cid(number))));
        assert!((50_000..100_000).all(|number| !set.contains(&cid(number))));
        assert_eq!(set.sorted.len() + set.recent.len(), 50_000);
    }

    #[test]
    fn pins_end_with_their_session() {
        let pins = Pins::default();
        let (one, two) = (pins.session(), pins.session());
        let (a, b) = (Cid::of(b"a"), Cid::of(b"b"));
        one.pin([&a]);
        two.pin([&a, &b]);
        assert!(pins.alone().is_pinned(&b));
        drop(two);
        assert!(!pins.alone().is_pinned(&b) && pins.alone().is_pinned(&a));
        drop((one, pins.session()));
        assert!(!pins.alone().is_pinned(&a));
    }
}
