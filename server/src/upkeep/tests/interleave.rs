//! G01: backups, garbage collection, orders and reading on one real store, one step at a
//! time, in every order with few changes of turn.
//!
//! Each actor is a thread that halts before every step on disk, and before every question,
//! until it is let go on; so one that is let go runs to its next step while the others
//! stand. A schedule says at which of these moments the turn goes to somebody else. All
//! schedules with one such change are run, and those with two: as many as there is time for
//! (`VSYNC_INTERLEAVE_SECONDS`), or all of them. Who waits for a lock that somebody who
//! stands holds is passed over.
//!
//! At one moment of each order the process is also killed: on a copy of its files from that
//! moment a new one starts, and everybody does again what they did.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use vsync_protocol::id::SnapshotId;
use vsync_protocol::manifest::SnapshotKind;

use crate::clock::Moment;
use crate::commit::Outcome;
use crate::store::steps::Steps;
use crate::testing::{DAY, NO_RESERVE, Store, open, tree};
use crate::upkeep::gc::GcOptions;
use crate::upkeep::retention::RetentionError;
use crate::upkeep::throttle::Stop;

/// Whoever was let go and has not come to a step by then waits for a lock.
const BLOCKED: Duration = Duration::from_millis(15);

/// Nothing that an actor does takes so long.
const STUCK: Duration = Duration::from_secs(100);

/// Seconds for schedules with two changes of turn, of each scene, in an ordinary run.
const SECONDS: u64 = 1;

thread_local! {
    static ACTOR: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Who stands where, and whose turn it is.
#[derive(Default)]
struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Nobody halts before the actors begin and after they have ended.
    armed: bool,
    /// Those that stand: a number, the actor that it is done for, and before what.
    standing: Vec<(u64, usize, &'static str)>,
    /// Those that were let go and have not noticed yet.
    released: BTreeSet<u64>,
    turn: usize,
    done: usize,
    events: u64,
    serial: u64,
    trace: Vec<(usize, &'static str)>,
}

impl Turns {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Stands still until the turn comes.
    fn halt(&self, before: &'static str) {
        let mut state = self.state();
        if !state.armed {
            return;
        }
        // The catalog's own thread works for whoever has the turn.
        let actor = ACTOR.get().unwrap_or(state.turn);
        state.serial += 1;
        let ticket = state.serial;
        state.standing.push((ticket, actor, before));
        state.events += 1;
        self.changed.notify_all();
        let mut state =
            self.changed.wait_while(state, |state| state.armed && !state.released.contains(&ticket)).unwrap();
        state.released.remove(&ticket);
    }

    fn ended(&self) {
        let mut state = self.state();
        state.done += 1;
        state.events += 1;
        self.changed.notify_all();
    }

    /// Lets `actors` go on, one at a time, until all have ended. The turn changes at the
    /// moments in `changes`. At the moment `kill`, while all stand, `image` is called.
    /// Returns how many moments there were.
    fn direct(&self, actors: usize, changes: &[usize], kill: usize, image: impl Fn()) -> usize {
        // At first all stand.
        let mut state = self.changed.wait_while(self.state(), |state| state.standing.len() < actors).unwrap();
        let mut moment = 0;
        while state.done < actors {
            if state.standing.is_empty() {
                let events = state.events;
                let (now, waited) =
                    self.changed.wait_timeout_while(state, STUCK, |state| state.events == events).unwrap();
                state = now;
                if waited.timed_out() {
                    state.armed = false;
                    self.changed.notify_all();
                    panic!("all stand still for ever: {:#?}", state.trace);
                }
                continue;
            }
            if moment == kill {
                image();
            }
            let turn = state.turn;
            let same = |&(_, actor, _): &(u64, usize, &str)| actor == turn;
            let other = state.standing.iter().position(|standing| !same(standing));
            let next = match state.standing.iter().position(same) {
                Some(mine) if !changes.contains(&moment) => mine,
                mine => other.or(mine).unwrap_or(0),
            };
            let (ticket, actor, before) = state.standing.swap_remove(next);
            state.released.insert(ticket);
            state.turn = actor;
            state.trace.push((actor, before));
            moment += 1;
            let events = state.events;
            self.changed.notify_all();
            state = self.changed.wait_timeout_while(state, BLOCKED, |state| state.events == events).unwrap().0;
        }
        state.armed = false;
        self.changed.notify_all();
        moment
    }
}

/// What an actor does, and what it says about it in the end.
type Act = fn(&Store, &Turns) -> Result<Said, String>;

/// What must hold afterwards, as an actor knows it.
#[derive(Clone, Copy)]
enum Said {
    Nothing,
    /// This snapshot stands.
    Stands(SnapshotId),
    /// This one does not.
    Gone(SnapshotId),
}

fn shared() -> Vec<Bytes> {
    tree(&["one", "two", "three", "four"])
}

/// Shares half of its chunks with [`shared`].
fn kin() -> Vec<Bytes> {
    tree(&["one", "two", "five", "six"])
}

fn back_up(store: &Store, turns: &Turns, volume: &str, blobs: &[Bytes]) -> Result<Said, String> {
    let pins = store.archive.session_pins();
    turns.halt("ask what is here");
    store.upload(&pins, blobs).map_err(|error| error.to_string())?;
    turns.halt("commit");
    match store.commit(volume, blobs, SnapshotKind::Full).map_err(|error| error.to_string())? {
        (id, Outcome::Committed(_)) => Ok(Said::Stands(id)),
        (_, Outcome::Missing(missing)) => Err(format!("{missing:?} went away under a session that relies on them")),
    }
}

/// An upload whose commit looks at blobs that the session never asked about.
fn commit_only(store: &Store, turns: &Turns) -> Result<Said, String> {
    turns.halt("commit");
    match store.commit("blind", &shared(), SnapshotKind::Full).map_err(|error| error.to_string())? {
        (id, Outcome::Committed(_)) => Ok(Said::Stands(id)),
        // It is told, and would send them.
        (_, Outcome::Missing(_)) => Ok(Said::Nothing),
    }
}

fn collect(store: &Store, turns: &Turns) -> Result<Said, String> {
    turns.halt("collect");
    let options = GcOptions { empty_trash: true, ..GcOptions::default() };
    store.archive.collect(&options, &Stop::default()).map_err(|error| error.to_string())?;
    Ok(Said::Nothing)
}

/// A round that may end early, because something is wrong meanwhile.
fn collect_or_give_up(store: &Store, turns: &Turns) -> Result<Said, String> {
    collect(store, turns).or(Ok(Said::Nothing))
}

/// G05: the manifest of a snapshot that stands is away for a while.
fn hide_a_manifest(store: &Store, turns: &Turns) -> Result<Said, String> {
    turns.halt("hide a manifest");
    let id = SnapshotId::from(store.archive.catalog().log(0, 1000).unwrap()[1].manifest());
    let (path, aside) = (store.path().join(format!("manifests/{id}.manifest")), store.path().join("tmp-manifest"));
    // Whoever was killed meanwhile has left it aside.
    if path.exists() {
        fs::rename(&path, &aside).map_err(|error| error.to_string())?;
    }
    turns.halt("put it back");
    fs::rename(&aside, &path).map_err(|error| error.to_string())?;
    Ok(Said::Stands(id))
}

fn oldest(store: &Store) -> SnapshotId {
    store.archive.catalog().log(0, 1000).unwrap()[0].manifest().into()
}

fn undelete(store: &Store, turns: &Turns) -> Result<Said, String> {
    turns.halt("bring back");
    let id = oldest(store);
    match store.archive.undelete(id, "office") {
        Ok(_) => Ok(Said::Stands(id)),
        Err(RetentionError::Collected(_)) => Ok(Said::Gone(id)),
        Err(error) => Err(error.to_string()),
    }
}

fn forget(store: &Store, turns: &Turns) -> Result<Said, String> {
    turns.halt("forget");
    let id = oldest(store);
    store.forget(id);
    Ok(Said::Gone(id))
}

fn read(store: &Store, turns: &Turns) -> Result<Said, String> {
    for _ in 0..4 {
        turns.halt("read everything");
        store.check();
    }
    Ok(Said::Nothing)
}

/// How a store is before the actors begin, and who they are.
struct Scene {
    name: &'static str,
    /// Rounds of collection that have passed since the oldest snapshot was forgotten, and
    /// days before the next; none: it was not forgotten.
    rounds: Option<(usize, u64)>,
    actors: &'static [Act],
}

const SCENES: [Scene; 10] = [
    // The next round condemns what the writer brings again.
    Scene {
        name: "condemned under a backup",
        rounds: Some((1, 0)),
        actors: &[collect, |store, turns| back_up(store, turns, "new", &shared())],
    },
    // It is condemned; the next round copies the rest away and drops the pack.
    Scene {
        name: "compacted under a backup",
        rounds: Some((3, 4)),
        actors: &[collect, |store, turns| back_up(store, turns, "new", &shared())],
    },
    Scene { name: "condemned under a blind commit", rounds: Some((1, 0)), actors: &[collect, commit_only] },
    Scene { name: "compacted under a blind commit", rounds: Some((3, 4)), actors: &[collect, commit_only] },
    Scene { name: "brought back while collected", rounds: Some((3, 4)), actors: &[collect, undelete] },
    Scene { name: "compacted under a reader", rounds: Some((3, 4)), actors: &[collect, read] },
    Scene {
        name: "forgotten, collected and backed up",
        rounds: None,
        actors: &[collect, forget, |store, turns| back_up(store, turns, "new", &shared())],
    },
    Scene {
        name: "two backups of the same",
        rounds: Some((3, 4)),
        actors: &[
            collect,
            |store, turns| back_up(store, turns, "new", &shared()),
            |store, turns| back_up(store, turns, "newer", &shared()),
        ],
    },
    Scene {
        name: "two backups and two rounds",
        rounds: Some((2, 4)),
        actors: &[
            collect,
            collect,
            |store, turns| back_up(store, turns, "new", &shared()),
            |store, turns| back_up(store, turns, "newer", &kin()),
        ],
    },
    Scene {
        name: "a manifest is away while collected",
        rounds: Some((1, 0)),
        actors: &[collect_or_give_up, hide_a_manifest],
    },
];

impl Scene {
    /// A store as the scene begins.
    fn prepare(&self) -> Store {
        let store = Store::new();
        let id = store.back_up("old", &shared());
        store.back_up("kin", &kin());
        if let Some((rounds, days)) = self.rounds {
            store.forget(id);
            store.collect_times(rounds);
            store.pass(days * DAY);
        }
        store
    }

    /// Runs the scene once on a copy of `prepared`; returns how many moments it had.
    fn run(&self, prepared: &Store, changes: &[usize], kill: usize) -> usize {
        let turns = Arc::new(Turns::default());
        let heard = Arc::clone(&turns);
        let steps = Steps::heard_by(move |when, what| {
            // Standing after one step is the same as standing before the next.
            if when == "before" {
                heard.halt(what);
            }
            Ok(())
        });
        let store = copy_of(prepared, &steps);
        // What the killed process leaves, and who had been told by then that all is done.
        let (left, told) = (scratch(), Mutex::new(Vec::new()));
        let at_the_kill = Mutex::new(Vec::new());
        let image = || {
            copy(&store.path(), &left.path().join("store"));
            at_the_kill.lock().unwrap().clone_from(&told.lock().unwrap());
        };
        turns.state().armed = true;
        let (moments, said) = std::thread::scope(|scope| {
            let actors = self.actors.iter().enumerate().map(|(number, act)| {
                let (store, turns, told) = (&store, &turns, &told);
                scope.spawn(move || {
                    ACTOR.set(Some(number));
                    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| act(store, turns)));
                    if let Ok(Ok(said)) = &outcome {
                        told.lock().unwrap().push(*said);
                    }
                    turns.ended();
                    outcome
                })
            });
            let actors = actors.collect::<Vec<_>>();
            let moments = turns.direct(self.actors.len(), changes, kill, image);
            (moments, actors.into_iter().map(|actor| actor.join().unwrap()).collect::<Vec<_>>())
        });
        let what = || format!("{}, changes of turn {changes:?}: {:#?}", self.name, turns.state().trace);
        let said = said.into_iter().map(|said| match said {
            Ok(Ok(said)) => said,
            Ok(Err(error)) => panic!("{error}: {}", what()),
            Err(_) => panic!("an actor panicked: {}", what()),
        });
        let said: Vec<Said> = said.collect();
        let moment = store.moment.lock().unwrap().clone();
        check(store, &said, &what);
        if left.path().join("store").exists() {
            let told = at_the_kill.into_inner().unwrap();
            self.again(left, &moment, told, &|| format!("killed at {kill}; {}", what()));
        }
        moments
    }

    /// A new process on what a killed one left: what it had acknowledged holds, and all that
    /// was asked of it can be asked again.
    fn again(&self, left: tempfile::TempDir, moment: &Moment, told: Vec<Said>, what: &dyn Fn() -> String) {
        let (dir, moment) = (Arc::new(left), Arc::new(Mutex::new(moment.clone())));
        let steps = Steps::default();
        let archive = open(&dir.path().join("store"), &moment, &steps, NO_RESERVE);
        let archive = Arc::new(archive.unwrap_or_else(|error| panic!("{error}: {}", what())));
        let store = Store { dir, archive, moment, steps, reserve: NO_RESERVE };
        holds(&store, &told, what);
        let turns = Turns::default();
        let acts =
            self.actors.iter().map(|act| act(&store, &turns).unwrap_or_else(|error| panic!("{error}: {}", what())));
        let said: Vec<Said> = acts.collect();
        check(store, &said, what);
    }
}

/// I1: every snapshot is whole, and those stand that are said to.
fn holds(store: &Store, said: &[Said], what: &dyn Fn() -> String) {
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| store.check()));
    let found = found.unwrap_or_else(|_| panic!("a snapshot is not whole: {}", what()));
    let right = said.iter().all(|said| match said {
        Said::Nothing => true,
        Said::Stands(id) => found.contains(id),
        Said::Gone(id) => !found.contains(id),
    });
    assert!(right, "{found:?}: {}", what());
}

/// I1, I4: the same after all garbage is gone and the store was opened again.
fn check(store: Store, said: &[Said], what: &dyn Fn() -> String) {
    holds(&store, said, what);
    store.collect_all();
    holds(&store, said, what);
    holds(&store.reopen(), said, what);
}

/// The store as it is now, in another place, heard by `steps`.
fn copy_of(store: &Store, steps: &Steps) -> Store {
    let dir = Arc::new(scratch());
    copy(&store.path(), &dir.path().join("store"));
    let moment = Arc::new(Mutex::new(store.moment.lock().unwrap().clone()));
    let archive = Arc::new(open(&dir.path().join("store"), &moment, steps, NO_RESERVE).unwrap());
    Store { dir, archive, moment, steps: steps.clone(), reserve: NO_RESERVE }
}

/// In memory if there is such a place: nothing here is about what a disk keeps, and thousands
/// of stores wait for their syncs.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            let _ = fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn every_order_of_steps_with_few_changes_of_turn() {
    let asked = std::env::var("VSYNC_INTERLEAVE_SECONDS").ok().map(|seconds| seconds.parse().unwrap());
    let time = Duration::from_secs(asked.unwrap_or(SECONDS));
    for scene in &SCENES {
        let prepared = scene.prepare();
        // A copy has no lock of the original's, but its catalog must be whole.
        prepared.archive.close();
        let (begun, moments) = (Instant::now(), scene.run(&prepared, &[], 0));
        // Another one for each order, the same in every run.
        let kill = |order: &[usize]| {
            let hash = blake3::hash(format!("{order:?}").as_bytes());
            usize::from(hash.as_bytes()[0]) * moments / 256
        };
        let mut runs = 1;
        for change in 0..moments {
            scene.run(&prepared, &[change], kill(&[change]));
            runs += 1;
        }
        // The pairs in an order that visits all parts early, the same in every run.
        let pairs = (0..moments).flat_map(|one| (one + 1..moments + 4).map(move |two| (one, two)));
        let mut pairs: Vec<(usize, usize)> = pairs.collect();
        pairs.sort_unstable_by_key(|(one, two)| *blake3::hash(format!("{one} {two}").as_bytes()).as_bytes());
        let (all, paired) = (pairs.len(), Instant::now());
        let mut done = 0;
        for (one, two) in pairs {
            if paired.elapsed() >= time {
                break;
            }
            scene.run(&prepared, &[one, two], kill(&[one, two]));
            done += 1;
        }
        runs += done;
        let seconds = begun.elapsed().as_secs();
        println!("{}: {moments} moments, {runs} orders, {done} of {all} with two changes, {seconds} s", scene.name);
        assert!(moments > 4, "{}: only {moments} moments", scene.name);
    }
}
