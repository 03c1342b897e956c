//! Torture: rounds in which everything happens to a store at once, each followed by a look at all that was promised.
//!
//! A round has a fresh realm whose store is an ext4 file system of its own. Agents with changing volumes back up and
//! restore, an administrator forgets, brings back, collects and scrubs, and somebody kills servers and agents at any
//! instant, fills the disk, and in every fourth round flips bits in packs. Then all is checked: see [`check`].
//!
//! What the actors do follows from the seed; when the kernel lets them do it does not. A seed is printed to try the
//! same mixture again.

mod actors;
mod check;
mod disk;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::{Realm, Rng, Server, Tree, Volume};
use disk::Disk;

/// Machines that back up.
const AGENTS: usize = 3;

/// When to end.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// After so many rounds.
    Rounds(u64),
    /// After the round in which this time is over.
    Time(Duration),
}

/// What happened, by kind.
#[derive(Debug, Default)]
pub struct Counts(Mutex<BTreeMap<&'static str, u64>>);

impl Counts {
    /// One more of a kind.
    pub fn add(&self, kind: &'static str) {
        self.add_many(kind, 1);
    }

    fn add_many(&self, kind: &'static str, many: u64) {
        *self.lock().entry(kind).or_default() += many;
    }

    /// How many there were.
    pub fn of(&self, kind: &str) -> u64 {
        self.lock().get(kind).copied().unwrap_or(0)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.lock().iter().try_for_each(|(kind, count)| writeln!(f, "  {kind:28} {count:>9}"))
    }
}

/// Runs rounds from `seed` on, each of `length` and then its checks.
///
/// # Panics
/// When a promise is broken, after telling how to try the round again and where its store was left.
pub fn run(seed: u64, until: Until, length: Duration) -> Counts {
    let (counts, begun) = (Counts::default(), Instant::now());
    for number in 0.. {
        let over = match until {
            Until::Rounds(rounds) => number >= rounds,
            Until::Time(time) => begun.elapsed() >= time,
        };
        if over {
            break;
        }
        let seed = seed + number;
        eprintln!("round {number}, seed {seed}, {} s so far", begun.elapsed().as_secs());
        let round = Round::new(seed);
        let done = catch_unwind(AssertUnwindSafe(|| round.run(length, &counts)));
        if let Err(broken) = done {
            let left = round.leave();
            eprintln!("BROKEN in the round of seed {seed}; what it left is in {}", left.display());
            eprintln!("again: tests/torture --seed {seed} --rounds 1 --seconds {}", length.as_secs());
            eprintln!("until then, in {} s:\n{counts}", begun.elapsed().as_secs());
            resume_unwind(broken);
        }
        counts.add("rounds");
    }
    eprintln!("seeds {seed} to {}, {} s:", seed + counts.of("rounds").max(1) - 1, begun.elapsed().as_secs());
    counts
}

/// What the actors of a round know of one volume.
#[derive(Debug, Default)]
struct Known {
    /// Snapshots whose receipts came, with what the volume held.
    acknowledged: Vec<(String, Tree)>,
    /// What the volume held when a backup ended without a receipt: such a snapshot may be there.
    attempted: Vec<Tree>,
}

/// One round.
struct Round {
    // Dropped in this order: the server, the disk that it writes to, the directory that this is mounted in.
    server: Mutex<Option<Server>>,
    disk: Disk,
    realm: Realm,
    seed: u64,
    volumes: Vec<Volume>,
    known: Vec<Mutex<Known>>,
    /// Snapshots that somebody was about to forget.
    given_up: Mutex<BTreeSet<String>>,
    /// Bits are flipped in this round, so that damage may be reported.
    damaging: bool,
    /// The disk is, or was a moment ago, full.
    filled: AtomicBool,
    over: AtomicBool,
}

impl Round {
    fn new(seed: u64) -> Self {
        let volumes: Vec<Volume> = (0..AGENTS).map(|_| Volume::new(seed)).collect();
        let mut realm = Realm::new().server("store");
        for (number, volume) in volumes.iter().enumerate() {
            let name = volume_name(number);
            realm = realm.client(&format!("host{number}"), &[&name]).directory(&name, volume.path());
        }
        let realm = realm.extra("[retention]\nkeep-last = 12\nmin-retention = \"1s\"").build();
        let disk = Disk::mount(&realm.store("store"));
        let server = Mutex::new(Some(realm.serve("store")));
        let known = (0..AGENTS).map(|_| Mutex::default()).collect();
        Self {
            seed,
            realm,
            server,
            disk,
            volumes,
            known,
            given_up: Mutex::default(),
            damaging: seed % 4 == 3,
            filled: AtomicBool::new(false),
            over: AtomicBool::new(false),
        }
    }

    fn run(&self, length: Duration, counts: &Counts) {
        let ends = Instant::now() + length;
        std::thread::scope(|scope| {
            let mut actors = Vec::new();
            for number in 0..AGENTS {
                let rng = Rng::new(self.seed ^ (number as u64 + 1) << 32);
                actors.push(scope.spawn(move || self.watched(|| self.agent(number, rng, counts))));
            }
            actors.push(scope.spawn(|| self.watched(|| self.administrator(Rng::new(self.seed ^ 11 << 40), counts))));
            actors.push(scope.spawn(|| self.watched(|| self.killer(Rng::new(self.seed ^ 12 << 40), counts))));
            while Instant::now() < ends && !self.is_over() {
                std::thread::sleep(Duration::from_millis(100));
            }
            self.over.store(true, Ordering::Relaxed);
            for actor in actors {
                // The first to fail has said so already; its words are the ones of interest.
                if let Err(broken) = actor.join() {
                    resume_unwind(broken);
                }
            }
        });
        self.check(counts);
    }

    /// Ends the round for all when one fails.
    fn watched(&self, act: impl FnOnce()) {
        struct Ends<'a>(&'a AtomicBool);
        impl Drop for Ends<'_> {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    self.0.store(true, Ordering::Relaxed);
                }
            }
        }
        let _ends = Ends(&self.over);
        act();
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    fn server(&self) -> MutexGuard<'_, Option<Server>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self, number: usize) -> MutexGuard<'_, Known> {
        self.known[number].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn given_up(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.given_up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies all that the round left to where nobody removes it.
    fn leave(&self) -> PathBuf {
        let log = self.server().take().and_then(|server| server.log_if_running()).unwrap_or_default();
        let left = PathBuf::from(format!("/var/tmp/vsync-torture-{}-{}", std::process::id(), self.seed));
        let root = self.realm.admin();
        let from = root.parent().unwrap_or(&root);
        crate::shell::run("cp", ["-a".as_ref(), from.as_os_str(), left.as_os_str()]);
        std::fs::write(left.join("server.log"), log).expect("the server's log");
        left
    }
}

fn volume_name(number: usize) -> String {
    format!("data{number}")
}
