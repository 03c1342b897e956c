//! C12: agents, readers, garbage collection, orders and clocks all at once. Seconds to run
//! from VSYNC_THRASH_SECONDS, seed from VSYNC_THRASH_SEED.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use vsync_protocol::id::{Cid, SnapshotId};
use vsync_protocol::manifest::SnapshotKind;

use super::{NO_FLOOR, keep};
use crate::commit::Outcome;
use crate::fetch::Plan;
use crate::testing::{DAY, Store, tree};
use crate::upkeep::gc::GcOptions;
use crate::upkeep::retention::RetentionError;
use crate::upkeep::throttle::Stop;

/// Numbers that depend on the seed alone.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = u64::from_le_bytes(*blake3::hash(&self.0.to_le_bytes()).as_bytes().first_chunk().unwrap());
        self.0 % sides
    }
}

/// One of few trees, so that they come again and again.
fn content(dice: &mut Dice) -> Vec<Bytes> {
    let mut dice = Dice(dice.roll(30));
    let texts: Vec<String> = (0..2 + dice.roll(4)).map(|_| format!("chunk {}", dice.roll(24))).collect();
    tree(&texts.iter().map(String::as_str).collect::<Vec<_>>())
}

struct Thrash {
    store: Store,
    /// Snapshots that stand, whoever forgets one takes it out first.
    standing: Mutex<Vec<(SnapshotId, Vec<Bytes>)>>,
    forgotten: Mutex<Vec<(SnapshotId, Vec<Bytes>)>>,
    done: AtomicBool,
    counts: [AtomicU64; 6],
}

const NAMES: [&str; 6] = ["commits", "sent again", "restores", "forgotten", "brought back", "rounds"];

impl Thrash {
    fn count(&self, what: usize) {
        self.counts[what].fetch_add(1, Ordering::Relaxed);
    }

    /// Backs up, at times slowly, at times believing more than it asked.
    fn agent(&self, volume: &str, dice: &mut Dice) {
        let blobs = content(dice);
        let pins = self.store.archive.session_pins();
        if dice.roll(3) == 0 {
            let root = Cid::of(blobs.last().unwrap());
            let leaf = Cid::of(&blobs[blobs.len() - 2]);
            if self.store.archive.have(&pins, &[root, leaf]).unwrap() != [true, true] {
                self.store.upload(&pins, &blobs).unwrap();
            }
        } else {
            self.store.upload(&pins, &blobs).unwrap();
        }
        std::thread::sleep(Duration::from_micros(dice.roll(3000)));
        loop {
            match self.store.commit(volume, &blobs, SnapshotKind::Full).unwrap() {
                (id, Outcome::Committed(_)) => {
                    self.count(0);
                    return self.standing.lock().unwrap().push((id, blobs));
                }
                (_, Outcome::Missing(_)) => {
                    self.count(1);
                    self.store.upload(&pins, &blobs).unwrap();
                }
            }
        }
    }

    /// G08: restores through the plan that a connection makes, with time in between.
    fn restore(&self, dice: &mut Dice) {
        let standing = self.standing.lock().unwrap();
        let Some((_, blobs)) = standing.get(dice.roll(standing.len().max(1) as u64) as usize).cloned() else { return };
        drop(standing);
        let pins = self.store.archive.session_pins();
        let cids: Vec<Cid> = blobs.iter().map(|blob| Cid::of(blob)).collect();
        if self.store.archive.have(&pins, &cids).unwrap().contains(&false) {
            // Forgotten and condemned since it was chosen.
            return;
        }
        let plan = Plan::new(&self.store.archive, &cids).unwrap();
        assert!(plan.absent.is_empty());
        std::thread::sleep(Duration::from_micros(dice.roll(3000)));
        for run in plan.runs {
            let frames = run.read(&self.store.archive, vec![0; run.len()]).unwrap();
            assert!(frames.iter().all(|frame| frame.len() != 36 || frame[..4] != [0; 4]), "a pinned blob is absent");
        }
        self.count(2);
    }

    fn decide(&self, dice: &mut Dice) {
        let (from, to, back) = match dice.roll(4) {
            0 => (&self.forgotten, &self.standing, true),
            _ => (&self.standing, &self.forgotten, false),
        };
        let chosen = {
            let mut from = from.lock().unwrap();
            if from.len() < 3 {
                return;
            }
            let at = dice.roll(from.len() as u64) as usize;
            from.swap_remove(at)
        };
        let done = if back {
            self.store.archive.undelete(chosen.0, "office")
        } else {
            self.store.archive.forget(&keep(NO_FLOOR), chosen.0, "test")
        };
        match done {
            Ok(_) => {
                self.count(if back { 4 } else { 3 });
                to.lock().unwrap().push(chosen);
            }
            Err(RetentionError::Collected(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }

    fn collect(&self, dice: &mut Dice) {
        self.store.pass(dice.roll(2 * DAY));
        let options = GcOptions { empty_trash: dice.roll(4) == 0, ..GcOptions::default() };
        self.store.archive.collect(&options, &Stop::default()).unwrap();
        self.count(5);
    }
}

#[test]
fn everything_at_once() {
    let number = |name: &str, otherwise| std::env::var(name).map_or(otherwise, |value| value.parse().unwrap());
    let (seconds, seed) = (number("VSYNC_THRASH_SECONDS", 60), number("VSYNC_THRASH_SEED", 1));
    println!("{seconds} s with seed {seed}");
    let (standing, forgotten, counts) = Default::default();
    let thrash = Thrash { store: Store::new(), standing, forgotten, done: AtomicBool::new(false), counts };
    std::thread::scope(|scope| {
        let (thrash, end) = (&thrash, Instant::now() + Duration::from_secs(seconds));
        let work = |number: u64, act: fn(&Thrash, &mut Dice)| {
            scope.spawn(move || {
                let mut dice = Dice(seed.wrapping_mul(1000) + number);
                while Instant::now() < end && !thrash.done.load(Ordering::Relaxed) {
                    act(thrash, &mut dice);
                }
            });
        };
        work(0, |thrash, dice| thrash.agent("a", dice));
        work(1, |thrash, dice| thrash.agent("b", dice));
        work(2, |thrash, dice| thrash.agent("c", dice));
        work(3, Thrash::restore);
        work(4, Thrash::decide);
        work(5, Thrash::decide);
        work(6, Thrash::collect);
    });
    let mut expected: Vec<SnapshotId> = thrash.standing.lock().unwrap().iter().map(|(id, _)| *id).collect();
    let mut found = thrash.store.check();
    expected.sort();
    found.sort();
    assert_eq!(found, expected, "seed {seed}");
    for (name, count) in NAMES.iter().zip(&thrash.counts) {
        println!("{name}: {}", count.load(Ordering::Relaxed));
        assert!(*name == "sent again" || count.load(Ordering::Relaxed) > 0, "{name}, seed {seed}");
    }
}
