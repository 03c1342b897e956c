//! Forgetting by policy and by order, pins, bringing back, clocks that jump.

use vsync_protocol::id::SnapshotId;
use vsync_protocol::manifest::SnapshotKind;
use vsync_protocol::plan::{Frozen, Policy};

use super::{NO_FLOOR, keep};
use crate::testing::{DAY, HOUR, Store, tree};
use crate::upkeep::retention::RetentionError;
use crate::{Trust, rebuild};

/// Daily snapshots, each with content of its own and content shared by all.
fn history(store: &Store, volume: &str, days: usize) -> Vec<SnapshotId> {
    let day = |day: usize| {
        store.pass(DAY);
        store.back_up(volume, &tree(&["shared", &format!("{volume} {day}")]))
    };
    (0..days).map(day).collect()
}

#[test]
fn policies_apply_to_each_volume_on_its_own() {
    let store = Store::new();
    let (a, b) = (history(&store, "a", 5), history(&store, "b", 3));
    let upkeep = keep(Policy { daily: 2, ..NO_FLOOR });
    let plan = store.archive.plan(&upkeep, Some(&"a".parse().unwrap()), None).unwrap();
    let planned: Vec<_> = plan.iter().flat_map(|plan| plan.forgotten()).map(|(id, _)| id).collect();
    assert_eq!(planned, [a[2], a[1], a[0]]);
    assert_eq!(store.check().len(), 8, "a plan changes nothing");
    assert_eq!(store.archive.retain(&upkeep).unwrap(), (4, None));
    assert_eq!(store.check(), [a[3], a[4], b[1], b[2]]);
    assert_eq!(store.archive.retain(&upkeep).unwrap(), (0, None));
    let store = store.reopen();
    assert_eq!(store.check(), [a[3], a[4], b[1], b[2]]);
}

#[test]
fn bytes_that_would_be_freed_are_those_nobody_else_needs() {
    let store = Store::new();
    let only = tree(&["shared", "of the first", "of both"]);
    let first = store.back_up("a", &only);
    let second = store.back_up("a", &tree(&["shared", "of the second", "of both"]));
    let third = store.back_up("b", &tree(&["shared", "of the second", "of both"]));
    let lens: u64 = [1, 3, 5].map(|index: usize| only[index].len() as u64).iter().sum();
    // Its own chunk, the leaf above that, the root; the other leaf is the same.
    assert_eq!(store.archive.needed_only_by(&[first]).unwrap(), lens);
    assert_eq!(store.archive.needed_only_by(&[second]).unwrap(), 0);
    let all = store.archive.needed_only_by(&[first, second, third]).unwrap();
    assert_eq!(store.archive.needed_only_by(&[first, second, third, third]).unwrap(), all);
    assert!(all > lens);
    // Whoever asks late, after it was forgotten and collected, is told that nothing is left to be freed.
    store.forget(first);
    store.collect_times(3);
    assert!(store.here(&only).contains(&false));
    assert_eq!(store.archive.needed_only_by(&[first]).unwrap(), 0);
    assert_eq!(store.archive.needed_only_by(&[first, second, third]).unwrap(), all - lens);
}

#[test]
fn pins_and_the_floor_stand_against_orders() {
    let store = Store::new();
    let ids = history(&store, "a", 4);
    let upkeep = keep(Policy { last: 1, ..NO_FLOOR });
    let before = store.archive.pin(ids[0], true, "office").unwrap();
    assert_eq!(store.archive.pin(ids[0], true, "office").unwrap(), before, "pinned already");
    assert!(matches!(store.archive.forget(&upkeep, ids[0], "x"), Err(RetentionError::Pinned(_))));
    let floor = keep(Policy { floor: DAY + 1, ..NO_FLOOR });
    assert!(matches!(store.archive.forget(&floor, ids[3], "x"), Err(RetentionError::TooYoung(_))));
    assert!(matches!(store.archive.forget(&floor, ids[2], "x"), Err(RetentionError::TooYoung(_))));
    store.archive.forget(&floor, ids[1], "x").unwrap();
    assert_eq!(store.archive.retain(&upkeep).unwrap(), (1, None));
    assert_eq!(store.check(), [ids[0], ids[3]]);
    store.archive.pin(ids[0], false, "office").unwrap();
    assert_eq!(store.archive.retain(&upkeep).unwrap(), (1, None));
    assert_eq!(store.check(), [ids[3]]);
    assert!(matches!(store.archive.pin(ids[0], true, "office"), Err(RetentionError::Forgotten(_))));
    let none = SnapshotId::from_bytes([0; 16]);
    assert!(matches!(store.archive.undelete(none, "office"), Err(RetentionError::NoSnapshot(_))));
}

#[test]
fn the_forgotten_come_back_and_the_log_says_so() {
    let store = Store::new();
    let ids = history(&store, "a", 3);
    let upkeep = keep(NO_FLOOR);
    store.archive.forget(&upkeep, ids[0], "wrong one").unwrap();
    store.archive.pin(ids[1], true, "office").unwrap();
    let there = store.archive.position();
    assert_eq!(store.archive.forget(&upkeep, ids[0], "again").unwrap(), there, "it is forgotten already");
    store.archive.undelete(ids[0], "office").unwrap();
    assert_eq!(store.check(), ids);
    assert_eq!(store.archive.undelete(ids[0], "office").unwrap().index, there.index + 1, "it is there already");
    assert_eq!(store.archive.catalog().totals().unwrap().snapshots, 3);
    store.archive.forget(&upkeep, ids[2], "x").unwrap();
    let path = store.path();
    drop(store.archive);
    // The log alone says it all again.
    rebuild(&path, crate::testing::REALM, Trust::Tables).unwrap();
    let archive = crate::testing::open(&path, &store.moment, &store.steps, store.reserve).unwrap();
    let known = ids.iter().map(|&id| archive.catalog().known(id).unwrap().unwrap());
    let states: Vec<_> = known.map(|known| (known.pinned, known.forgotten)).collect();
    assert_eq!(states, [(false, false), (true, false), (false, true)]);
    assert_eq!(archive.catalog().totals().unwrap().snapshots, 2);
}

#[test]
fn a_partial_snapshot_does_not_displace_a_whole_one() {
    let store = Store::new();
    let whole = store.back_up("a", &tree(&["whole"]));
    store.pass(HOUR);
    let blobs = tree(&["part"]);
    store.upload(&store.archive.session_pins(), &blobs).unwrap();
    let (partial, _) = store.commit("a", &blobs, SnapshotKind::Partial).unwrap();
    assert_eq!(store.archive.retain(&keep(Policy { daily: 1, ..NO_FLOOR })).unwrap(), (0, None));
    assert_eq!(store.check(), [whole, partial]);
}

/// T01, with the clock as a server meets it.
#[test]
fn a_clock_that_jumps_freezes_until_it_is_right_or_confirmed() {
    let store = Store::new();
    let ids = history(&store, "a", 3);
    let upkeep = keep(Policy { last: 1, within: Some(HOUR), ..NO_FLOOR });
    let year = 365 * DAY as i64;
    let jump = |by: i64| store.moment.lock().unwrap().now += by;

    jump(10 * year);
    assert!(matches!(store.archive.retain(&upkeep), Ok((0, Some(Frozen::Leap { .. })))));
    assert!(matches!(store.archive.forget(&upkeep, ids[0], "x"), Err(RetentionError::Frozen(_))));
    store.pass(30 * DAY);
    assert!(matches!(store.archive.retain(&upkeep), Ok((0, Some(Frozen::Leap { .. })))), "time does not heal it");
    jump(-20 * year);
    assert!(matches!(store.archive.retain(&upkeep), Ok((0, Some(Frozen::Back { .. })))));
    assert_eq!(store.check(), ids);

    let now = store.moment.lock().unwrap().now;
    assert!(matches!(store.archive.confirm_clock_with(now + 10 * year), Err(RetentionError::Clock(_))));
    jump(10 * year);
    let store = store.reopen();
    assert_eq!(store.archive.retain(&upkeep).unwrap(), (2, None), "right again");

    store.moment.lock().unwrap().now += 2 * DAY as i64;
    store.back_up("a", &tree(&["after a long holiday"]));
    assert!(matches!(store.archive.retain(&upkeep), Ok((0, Some(_)))));
    let now = store.moment.lock().unwrap().now;
    store.archive.confirm_clock_with(now + 60_000).unwrap();
    let store = store.reopen();
    assert_eq!(store.archive.retain(&upkeep).unwrap(), (1, None));
}

/// What was received while the clock was ahead keeps nothing once the clock is confirmed.
#[test]
fn a_confirmed_clock_releases_what_came_from_the_future() {
    let store = Store::new();
    let ids = history(&store, "a", 3);
    store.moment.lock().unwrap().now += 3650 * DAY as i64;
    let future = store.back_up("a", &tree(&["future"]));
    store.moment.lock().unwrap().now -= 3650 * DAY as i64;
    store.pass(DAY);
    let upkeep = keep(Policy { last: 1, ..NO_FLOOR });
    assert!(matches!(store.archive.retain(&upkeep).unwrap(), (0, Some(Frozen::Back { .. }))));
    store.archive.confirm_clock_with(store.archive.time().0.now).unwrap();
    let store = store.reopen();
    store.pass(DAY);
    let floor = keep(Policy { floor: 2 * DAY, ..NO_FLOOR });
    let refused = store.archive.forget(&floor, future, "x");
    assert!(matches!(refused, Err(RetentionError::TooYoung(_))), "it counts as received then: {refused:?}");
    let newest = store.back_up("a", &tree(&["newest"]));
    assert_eq!(store.archive.retain(&upkeep).unwrap(), (4, None));
    assert_eq!(store.check(), [newest]);
    assert!(ids.iter().all(|&id| store.archive.catalog().known(id).unwrap().unwrap().forgotten));
    // A later one counts as what it says.
    store.moment.lock().unwrap().now += 3650 * DAY as i64;
    store.back_up("a", &tree(&["future again"]));
    store.moment.lock().unwrap().now -= 3650 * DAY as i64;
    assert!(matches!(store.archive.retain(&upkeep).unwrap(), (0, Some(Frozen::Back { .. }))));
}

/// The floor holds also when the manifest that the catalog keeps is damaged.
#[test]
fn the_floor_needs_no_manifest() {
    let store = Store::new();
    let id = store.back_up("a", &tree(&["1"]));
    let path = store.path().join("catalog.sqlite");
    let other = rusqlite::Connection::open(path).unwrap();
    other.execute("UPDATE snapshots SET manifest = x'00'", []).unwrap();
    drop(other);
    assert!(store.archive.catalog().known(id).unwrap().unwrap().body().is_err());
    let floor = keep(Policy { floor: DAY, ..NO_FLOOR });
    assert!(matches!(store.archive.forget(&floor, id, "x"), Err(RetentionError::TooYoung(_))));
    store.pass(2 * DAY);
    store.archive.forget(&floor, id, "x").unwrap();
}
