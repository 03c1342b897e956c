//! G09: random histories of backups, orders, garbage collection, lost sessions and
//! restarts, against a model that is a handful of maps. VSYNC_TEST_HISTORIES is how many.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;
use vsync_protocol::id::{Cid, SnapshotId};
use vsync_protocol::manifest::SnapshotKind;

use crate::commit::Outcome;
use crate::pins::SessionPins;
use crate::testing::{DAY, HOUR, Store, tree};
use crate::upkeep::retention::RetentionError;

#[derive(Clone, Debug)]
enum Step {
    /// A whole backup of one of few contents.
    BackUp {
        volume: u8,
        content: u8,
    },
    /// A session asks and uploads, and does not commit yet.
    Begin {
        content: u8,
    },
    /// An open session commits what it began with.
    Finish {
        volume: u8,
    },
    /// All open sessions are lost.
    Lose,
    Forget(usize),
    Undelete(usize),
    Collect,
    Pass {
        hours: u64,
    },
    Reopen,
    /// The catalog is lost.
    Rebuild,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..2u8, 0..12u8).prop_map(|(volume, content)| Step::BackUp { volume, content }),
        2 => (0..12u8).prop_map(|content| Step::Begin { content }),
        2 => (0..2u8).prop_map(|volume| Step::Finish { volume }),
        1 => Just(Step::Lose),
        5 => any::<usize>().prop_map(Step::Forget),
        1 => any::<usize>().prop_map(Step::Undelete),
        8 => Just(Step::Collect),
        5 => (0..100u64).prop_map(|hours| Step::Pass { hours }),
        1 => Just(Step::Reopen),
        1 => Just(Step::Rebuild),
    ];
    proptest::collection::vec(step, 1..60)
}

/// Contents overlap in chunks and in whole leaves.
fn content(number: u8) -> Vec<Bytes> {
    let texts: Vec<String> =
        (0..4).map(|at| format!("chunk {}", (u32::from(number) * (at / 2 + 1) + at) % 9)).collect();
    tree(&texts.iter().map(String::as_str).collect::<Vec<_>>())
}

struct World {
    store: Store,
    /// Snapshots that stand, by their place.
    standing: BTreeSet<SnapshotId>,
    contents: BTreeMap<SnapshotId, u8>,
    forgotten: Vec<SnapshotId>,
    sessions: Vec<(SessionPins, u8)>,
}

impl World {
    fn take(mut self, step: &Step) -> Self {
        match *step {
            Step::BackUp { volume, content: number } => {
                let id = self.store.back_up(["a", "b"][usize::from(volume)], &content(number));
                self.committed(id, number);
            }
            Step::Begin { content: number } => {
                let pins = self.store.archive.session_pins();
                self.store.upload(&pins, &content(number)).unwrap();
                self.sessions.push((pins, number));
            }
            Step::Finish { volume } => self.finish(["a", "b"][usize::from(volume)]),
            Step::Lose => self.sessions.clear(),
            Step::Forget(which) => {
                let chosen = self.standing.iter().nth(which % self.standing.len().max(1)).copied();
                if let Some(id) = chosen {
                    self.store.forget(id);
                    self.standing.remove(&id);
                    self.forgotten.push(id);
                }
            }
            Step::Undelete(which) => self.undelete(which),
            Step::Collect => self.store.collect_times(1),
            Step::Pass { hours } => self.store.pass(hours * HOUR.min(DAY)),
            Step::Reopen => return self.reopen(false),
            Step::Rebuild => return self.reopen(true),
        }
        self
    }

    fn committed(&mut self, id: SnapshotId, number: u8) {
        self.standing.insert(id);
        self.contents.insert(id, number);
    }

    fn finish(&mut self, volume: &str) {
        let Some((_pins, number)) = self.sessions.pop() else { return };
        // It was told that everything is there, so everything is.
        match self.store.commit(volume, &content(number), SnapshotKind::Full).unwrap() {
            (id, Outcome::Committed(_)) => self.committed(id, number),
            (_, Outcome::Missing(missing)) => panic!("{missing:?} were removed under a session"),
        }
    }

    fn undelete(&mut self, which: usize) {
        if self.forgotten.is_empty() {
            return;
        }
        let id = self.forgotten.remove(which % self.forgotten.len());
        match self.store.archive.undelete(id, "office") {
            Ok(_) => drop(self.standing.insert(id)),
            // Its data may be gone; another backup may also have brought it again.
            Err(RetentionError::Collected(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }

    fn reopen(mut self, rebuild: bool) -> Self {
        self.sessions.clear();
        if rebuild {
            let Store { dir, archive, moment, steps, reserve } = self.store;
            archive.close();
            drop(archive);
            let path = dir.path().join("store");
            crate::rebuild(&path, crate::testing::REALM, crate::Trust::Tables).unwrap();
            let archive = std::sync::Arc::new(crate::testing::open(&path, &moment, &steps, reserve).unwrap());
            self.store = Store { dir, archive, moment, steps, reserve };
        } else {
            self.store = self.store.reopen();
        }
        self
    }

    fn check(&self) {
        // I1, I4: exactly the snapshots that stand, each whole and undamaged.
        assert_eq!(self.store.check().into_iter().collect::<BTreeSet<_>>(), self.standing);
        for (pins, number) in &self.sessions {
            let blobs = content(*number);
            let cids: Vec<Cid> = blobs.iter().map(|blob| Cid::of(blob)).collect();
            assert!(self.store.archive.have(pins, &cids).unwrap().iter().all(|&here| here), "pinned");
        }
    }
}

fn histories() -> u32 {
    std::env::var("VSYNC_TEST_HISTORIES").map_or(24, |text| text.parse().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: histories(), ..ProptestConfig::default() })]
    #[test]
    fn histories_keep_what_they_should(steps in steps()) {
        let mut world = World {
            store: Store::new(),
            standing: BTreeSet::new(),
            contents: BTreeMap::new(),
            forgotten: Vec::new(),
            sessions: Vec::new(),
        };
        for step in &steps {
            world = world.take(step);
            world.check();
        }
        // In the end nothing needless stays.
        world.sessions.clear();
        let ids: Vec<SnapshotId> = world.standing.iter().copied().collect();
        ids.into_iter().for_each(|id| world.store.forget(id));
        world.store.collect_all();
        prop_assert_eq!(world.store.archive.catalog().totals().unwrap().blobs, 0);
        prop_assert_eq!(world.store.archive.catalog().totals().unwrap().packs, 0);
    }
}
