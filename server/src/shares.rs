//! Memory that all agents share: the more of them there are, the less each may take.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use quinn::VarInt;
use vsync_transport::{CONNECTION_WINDOW, FIRST_WINDOW};

use crate::store::pack::PACK_SIZE;

/// Bytes of all connections that are under way, each way: sent and not acknowledged, or
/// received and not read.
const WINDOWS: u32 = 32 << 20;

/// The same of those that are new. Credit once given cannot be taken back, so that many that come
/// at once would each get the part of the few that were there before.
const NEW_WINDOWS: u32 = 8 << 20;

/// What a connection may have under way however many there are.
const LEAST_WINDOW: u32 = FIRST_WINDOW;

/// Bytes of all sessions in packs that are being filled.
const FILLING: usize = 24 << 20;

/// What a session may fill a pack to however many there are: smaller packs cost too many syncs.
const LEAST_PACK: usize = 1 << 20;

/// Packs that are full, and stored or next in turn.
const FULL: usize = 2;

/// Who shares.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    connections: Mutex<HashMap<usize, Share>>,
    sessions: AtomicUsize,
    full: Mutex<usize>,
    stored: Condvar,
}

#[derive(Debug)]
struct Share {
    connection: quinn::Connection,
    /// Whether it is no longer new.
    settled: bool,
}

impl Shares {
    /// Gives `connection` the part of a new one, and all others theirs, for as long as the guard
    /// lives.
    pub(crate) fn join(&self, connection: &quinn::Connection) -> Joined<'_> {
        let id = connection.stable_id();
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.insert(id, Share { connection: connection.clone(), settled: false });
        divide(&connections);
        Joined { shares: self, id }
    }

    /// Counts a session for as long as the guard lives.
    pub(crate) fn fill(self: &Arc<Self>) -> Filling {
        self.sessions.fetch_add(1, Ordering::Relaxed);
        Filling(Arc::clone(self))
    }
}

fn divide(connections: &HashMap<usize, Share>) {
    for Share { connection, settled } in connections.values() {
        let window = window_of(connections.len(), if *settled { WINDOWS } else { NEW_WINDOWS });
        connection.set_receive_window(VarInt::from_u32(window));
        connection.set_send_window(u64::from(window));
    }
}

/// What each of so many connections may have under way, of `all` bytes.
fn window_of(connections: usize, all: u32) -> u32 {
    let count = u32::try_from(connections.max(1)).unwrap_or(u32::MAX);
    (all / count).clamp(LEAST_WINDOW, CONNECTION_WINDOW)
}

/// To what size each of so many sessions fills its packs.
const fn pack_of(sessions: usize) -> usize {
    let share = FILLING / if sessions == 0 { 1 } else { sessions };
    if share > PACK_SIZE {
        PACK_SIZE
    } else if share < LEAST_PACK {
        LEAST_PACK
    } else {
        share
    }
}

/// A connection that has its part.
#[must_use = "dropping this gives the part to others"]
pub(crate) struct Joined<'a> {
    shares: &'a Shares,
    id: usize,
}

impl Joined<'_> {
    /// Gives the connection its full part, now that it has been there for a while.
    pub(crate) fn settle(&self) {
        let mut connections = self.shares.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(member) = connections.get_mut(&self.id).filter(|member| !member.settled) {
            member.settled = true;
            divide(&connections);
        }
    }
}

impl Drop for Joined<'_> {
    fn drop(&mut self) {
        let mut connections = self.shares.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.remove(&self.id);
        divide(&connections);
    }
}

/// A session that fills packs.
#[must_use = "dropping this gives the part to others"]
pub(crate) struct Filling(Arc<Shares>);

impl Filling {
    /// Bytes at which a pack is full now.
    pub(crate) fn pack_size(&self) -> usize {
        pack_of(self.0.sessions.load(Ordering::Relaxed))
    }

    /// Waits until a full pack may wait to be stored. Who holds one fills no other.
    pub(crate) fn turn(&self) -> Turn {
        let full = self.0.full.lock().unwrap_or_else(PoisonError::into_inner);
        let free = self.0.stored.wait_while(full, |full| *full >= FULL);
        *free.unwrap_or_else(PoisonError::into_inner) += 1;
        Turn(Arc::clone(&self.0))
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One of the full packs that there may be.
#[derive(Debug)]
pub(crate) struct Turn(Arc<Shares>);

impl Drop for Turn {
    fn drop(&mut self) {
        *self.0.full.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.stored.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn one_takes_as_much_as_it_can_use_and_many_little_each() {
        assert_eq!((window_of(1, WINDOWS), pack_of(1)), (CONNECTION_WINDOW, PACK_SIZE));
        for count in 1..=16 {
            for all in [WINDOWS, NEW_WINDOWS] {
                assert!(window_of(count, all) as usize * count <= all as usize, "{count} connections");
            }
            assert!(pack_of(count) * count <= FILLING, "{count} sessions");
        }
        assert_eq!((window_of(1000, WINDOWS), pack_of(1000)), (LEAST_WINDOW, LEAST_PACK));
    }

    #[test]
    fn a_third_full_pack_waits() {
        let shares = Arc::new(Shares::default());
        let (one, two) = (shares.fill(), shares.fill());
        let turns = (one.turn(), two.turn());
        let waiting = thread::spawn(move || drop(two.turn()));
        thread::sleep(Duration::from_millis(20));
        assert!(!waiting.is_finished());
        drop(turns.0);
        waiting.join().unwrap();
        assert_eq!(one.pack_size(), PACK_SIZE, "the other session has ended");
    }
}
