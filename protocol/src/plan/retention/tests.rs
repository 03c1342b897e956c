//! Tables for the calendar's edges, and random histories against a naive model.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const SECOND: i64 = 1000;

/// The instant that UTC clocks call so, by counting.
fn utc(year: i64, month: i64, day: i64, hour: i64) -> i64 {
    let leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let years: i64 = (1970..year).map(|year| 365 + i64::from(leap(year))).sum();
    let lengths = [31, 28 + i64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let months: i64 = lengths[..month as usize - 1].iter().sum();
    (years + months + day - 1) * DAY + hour * HOUR
}

fn id(sequence: u64) -> SnapshotId {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sequence.to_be_bytes());
    SnapshotId::from_bytes(bytes)
}

/// Snapshots received at `times`, numbered in that order.
fn history(times: &[i64]) -> Vec<Candidate> {
    let numbered = (1..).zip(times);
    let candidate =
        |(sequence, &received)| Candidate { id: id(sequence), received, sequence, pinned: false, partial: false };
    numbered.map(candidate).collect()
}

const NO_FLOOR: Policy =
    Policy { last: 0, hourly: 0, daily: 0, weekly: 0, monthly: 0, yearly: 0, within: None, floor: 0 };

fn at(now: i64) -> Clock {
    Clock { now, seen: None, passed: 0 }
}

/// The numbers of the snapshots that are kept, in order.
fn kept(policy: &Policy, zone: &Zone, candidates: &[Candidate], now: i64) -> Vec<u64> {
    let verdicts = plan(policy, &at(now), zone, candidates).unwrap();
    assert_eq!(verdicts.len(), candidates.len());
    let stays = |candidate: &&Candidate| {
        let verdict = verdicts.iter().find(|verdict| verdict.id == candidate.id).unwrap();
        matches!(verdict.fate, Fate::Keep(_))
    };
    candidates.iter().filter(stays).map(|candidate| candidate.sequence).collect()
}

#[test]
fn each_rule_keeps_its_own() {
    // Two a day for ten days.
    let times: Vec<i64> = (0..20).map(|half| utc(2026, 1, 1, 6) + half * 12 * HOUR).collect();
    let (all, now) = (history(&times), utc(2026, 1, 11, 0));
    for (policy, expected) in [
        (Policy { last: 3, ..NO_FLOOR }, vec![18, 19, 20]),
        (Policy { daily: 3, ..NO_FLOOR }, vec![16, 18, 20]),
        (Policy { hourly: 2, ..NO_FLOOR }, vec![19, 20]),
        // 1 January 2026 is a Thursday: weeks end on the 4th and the 10th is unfinished.
        (Policy { weekly: 9, ..NO_FLOOR }, vec![8, 20]),
        (Policy { monthly: 9, ..NO_FLOOR }, vec![20]),
        (Policy { within: Some(36 * HOUR as u64), ..NO_FLOOR }, vec![18, 19, 20]),
        (Policy { last: 1, daily: 2, weekly: 2, ..NO_FLOOR }, vec![8, 18, 20]),
        (Policy { last: 1, floor: 2 * DAY as u64, ..NO_FLOOR }, vec![17, 18, 19, 20]),
        (NO_FLOOR, (1..=20).collect()),
    ] {
        assert_eq!(kept(&policy, &Zone::utc(), &all, now), expected, "{policy:?}");
    }
}

#[test]
fn spans_end_where_the_calendar_says() {
    let yearly = Policy { yearly: 9, ..NO_FLOOR };
    let monthly = Policy { monthly: 9, ..NO_FLOOR };
    let weekly = Policy { weekly: 9, ..NO_FLOOR };
    let daily = Policy { daily: 9, ..NO_FLOOR };
    let last_ms = |at: i64| at - 1;
    for (policy, first, second, together) in [
        (yearly, last_ms(utc(2026, 1, 1, 0)), utc(2026, 1, 1, 0), false),
        (yearly, utc(2026, 1, 1, 0), last_ms(utc(2027, 1, 1, 0)), true),
        // Leap years by four, not by hundred, but by four hundred.
        (monthly, utc(2024, 2, 29, 0), utc(2024, 2, 28, 0) + 2 * DAY, false),
        (monthly, utc(2023, 2, 28, 0), utc(2023, 2, 28, 0) + DAY, false),
        (monthly, utc(2000, 2, 29, 23), utc(2000, 2, 28, 0), true),
        (monthly, utc(2100, 2, 28, 0), utc(2100, 2, 28, 0) + DAY, false),
        (yearly, utc(2024, 12, 31, 0), utc(2024, 12, 30, 0) + 2 * DAY, false),
        // The week of Monday 29 December 2025 holds New Year.
        (weekly, utc(2025, 12, 29, 0), utc(2026, 1, 4, 23), true),
        (weekly, utc(2026, 1, 4, 23), utc(2026, 1, 5, 0), false),
        (daily, last_ms(utc(2026, 3, 1, 0)), utc(2026, 3, 1, 0), false),
        // Before 1970, should a clock have been there.
        (daily, -1, 0, false),
        (yearly, -DAY, -1, true),
    ] {
        let all = history(&[first.min(second), first.max(second)]);
        let expected = if together { vec![2] } else { vec![1, 2] };
        assert_eq!(kept(&policy, &Zone::utc(), &all, first.max(second)), expected, "{first} {second}");
    }
}

#[test]
fn days_follow_the_zone_and_its_changes() {
    // Berlin in 2026: summer time from 29 March 01:00 UTC to 25 October 01:00 UTC.
    let berlin = Zone::new(3600, vec![(utc(2026, 3, 29, 1), 7200), (utc(2026, 10, 25, 1), 3600)]);
    let daily = Policy { daily: 99, ..NO_FLOOR };
    for (zone, first, second, together) in [
        // Midnight is 23:00 UTC in winter and 22:00 UTC in summer.
        (&berlin, utc(2026, 1, 10, 22), utc(2026, 1, 10, 23), false),
        (&berlin, utc(2026, 7, 10, 21), utc(2026, 7, 10, 22), false),
        (&berlin, utc(2026, 7, 10, 22), utc(2026, 7, 11, 21), true),
        // The day of 23 hours, and that of 25.
        (&berlin, utc(2026, 3, 28, 23), utc(2026, 3, 29, 22) - 1, true),
        (&berlin, utc(2026, 3, 28, 23), utc(2026, 3, 29, 22), false),
        (&berlin, utc(2026, 10, 24, 22), utc(2026, 10, 25, 23) - 1, true),
        (&berlin, utc(2026, 10, 24, 22), utc(2026, 10, 25, 23), false),
        (&Zone::utc(), utc(2026, 1, 10, 22), utc(2026, 1, 10, 23), true),
        (&Zone::new(-5 * 3600, vec![]), utc(2026, 1, 10, 4), utc(2026, 1, 10, 5), false),
    ] {
        let expected = if together { vec![2] } else { vec![1, 2] };
        assert_eq!(kept(&daily, zone, &history(&[first, second]), second), expected, "{first} {second}");
    }
    // 02:30 happens twice on 25 October; as hours these are two.
    let hourly = Policy { hourly: 9, ..NO_FLOOR };
    let twice = history(&[utc(2026, 10, 25, 0) + HOUR / 2, utc(2026, 10, 25, 1) + HOUR / 2]);
    assert_eq!(kept(&hourly, &berlin, &twice, utc(2026, 10, 26, 0)), [1, 2]);
}

#[test]
fn pins_the_newest_and_the_newest_whole_one_stay() {
    let mut all = history(&[0, 1, 2, 3, 4, 5].map(|day| utc(2026, 1, 1 + day, 0)));
    all[0].pinned = true;
    all[4].partial = true;
    all[5].partial = true;
    let one = Policy { last: 1, ..NO_FLOOR };
    assert_eq!(kept(&one, &Zone::utc(), &all, utc(2030, 1, 1, 0)), [1, 4, 6]);
    let verdicts = plan(&one, &at(utc(2030, 1, 1, 0)), &Zone::utc(), &all).unwrap();
    let fates: Vec<String> = verdicts.iter().map(|verdict| verdict.fate.to_string()).collect();
    let beyond = "beyond keep-last";
    assert_eq!(fates, ["newest, keep-last", beyond, "newest whole one", beyond, beyond, "pinned"]);
}

#[test]
fn a_whole_snapshot_stands_for_its_day_before_a_partial_one() {
    let mut all = history(&[1, 2, 3, 30].map(|hour| utc(2026, 1, 1, 0) + hour * HOUR));
    all[2].partial = true;
    let daily = Policy { daily: 2, ..NO_FLOOR };
    assert_eq!(kept(&daily, &Zone::utc(), &all, utc(2026, 2, 1, 0)), [2, 4]);
    let verdicts = plan(&daily, &at(utc(2026, 2, 1, 0)), &Zone::utc(), &all).unwrap();
    assert_eq!(verdicts[1].fate, Fate::Forget(vec![Lapse::Represented { rule: Rule::Daily, by: id(2) }]));
}

/// T01: a clock that jumped forgets nothing.
#[test]
fn a_clock_that_cannot_be_right_freezes() {
    let year = 365 * DAY;
    let all = history(&[utc(2026, 1, 1, 0), utc(2026, 1, 2, 0)]);
    let seen = utc(2026, 1, 3, 0);
    let rules = Policy { last: 1, within: Some(1), ..NO_FLOOR };
    let frozen =
        |now, seen, passed: i64| plan(&rules, &Clock { now, seen, passed: passed as u64 }, &Zone::utc(), &all).err();
    assert_eq!(frozen(seen, Some(seen), 0), None);
    assert_eq!(frozen(seen + 10 * year, Some(seen), 10 * year), None);
    assert_eq!(frozen(seen + SLACK, Some(seen), 0), None);
    assert_eq!(frozen(seen, None, 0), None);
    let leap = Frozen::Leap { now: seen + SLACK + 1, expected: seen };
    assert_eq!(frozen(seen + SLACK + 1, Some(seen), 0), Some(leap));
    assert!(matches!(frozen(seen + 10 * year, Some(seen), DAY), Some(Frozen::Leap { .. })));
    assert_eq!(frozen(seen - 1, Some(seen), 0), Some(Frozen::Back { now: seen - 1, known: seen }));
    assert!(matches!(frozen(seen - 10 * year, None, 0), Some(Frozen::Back { .. })));
    assert!(matches!(frozen(i64::MIN, Some(i64::MAX), 0), Some(Frozen::Back { .. })));
    assert!(matches!(frozen(i64::MAX, Some(i64::MIN), 0), Some(Frozen::Leap { .. })));
    assert_eq!(frozen(i64::MAX, Some(seen), i64::MAX), None);
    let texts = [leap, Frozen::Back { now: SECOND, known: 4 * SECOND }].map(|frozen| frozen.to_string());
    assert!(texts[0].contains("24 h ahead") && texts[1].contains("back by 3 s"), "{texts:?}");
}

/// T02: who floods or backs up at odd hours pushes nothing out of the floor, nor out of
/// the days before.
#[test]
fn a_flood_does_not_push_out_what_was_there() {
    let daily = |day: i64| utc(2026, 1, 1, 2) + day * DAY;
    let mut times: Vec<i64> = (0..30).map(daily).collect();
    times.extend((0..10_000).map(|number| daily(29) + HOUR + number * SECOND));
    let policy = Policy { last: 5, daily: 20, floor: 7 * DAY as u64, ..NO_FLOOR };
    let stays = kept(&policy, &Zone::utc(), &history(&times), daily(29) + 10 * HOUR);
    assert!((11..=30).all(|before| before == 30 || stays.contains(&before)), "one a day for 20 days");
    assert!((23..=30).all(|before| stays.contains(&before)), "all of the last week");
}

/// What is kept, found out the long way.
fn model(policy: &Policy, zone: &Zone, candidates: &[Candidate], now: i64) -> Vec<u64> {
    let label = |rule: &str, received: i64| -> i64 {
        let local = zone.local(received);
        let mut year = 1900;
        while utc_or_before(year + 1, 1) <= local {
            year += 1;
        }
        let month = (1..=12).rev().find(|&month| utc_or_before(year, month) <= local).unwrap();
        match rule {
            "hour" => received.div_euclid(HOUR),
            "day" => local.div_euclid(DAY),
            // Monday, 1 January 1900.
            "week" => (local - utc_or_before(1900, 1)).div_euclid(7 * DAY),
            "month" => year * 100 + month,
            _ => year,
        }
    };
    let mut kept = std::collections::BTreeSet::new();
    let counts = [policy.hourly, policy.daily, policy.weekly, policy.monthly, policy.yearly];
    for (rule, count) in ["hour", "day", "week", "month", "year"].into_iter().zip(counts) {
        let mut labels: Vec<i64> = candidates.iter().map(|candidate| label(rule, candidate.received)).collect();
        labels.sort_unstable();
        labels.dedup();
        for chosen in labels.into_iter().rev().take(count as usize) {
            let inside = candidates.iter().filter(|candidate| label(rule, candidate.received) == chosen);
            let best = inside.max_by_key(|candidate| (!candidate.partial, candidate.sequence)).unwrap();
            kept.insert(best.sequence);
        }
    }
    let mut numbers: Vec<u64> = candidates.iter().map(|candidate| candidate.sequence).collect();
    numbers.sort_unstable();
    kept.extend(numbers.iter().rev().take(policy.last as usize));
    kept.extend(numbers.last());
    kept.extend(candidates.iter().filter(|candidate| !candidate.partial).map(|candidate| candidate.sequence).max());
    let age = |candidate: &Candidate| (now - candidate.received) as u64;
    for candidate in candidates {
        let young = age(candidate) < policy.floor || policy.within.is_some_and(|within| age(candidate) < within);
        if candidate.pinned || young || (counts == [0; 5] && policy.last == 0 && policy.within.is_none()) {
            kept.insert(candidate.sequence);
        }
    }
    kept.into_iter().collect()
}

/// The first instant of a month, from 1900 on.
fn utc_or_before(year: i64, month: i64) -> i64 {
    // 400 years are 146 097 days.
    if year < 1970 { utc(year + 400, month, 1, 0) - 146_097 * DAY } else { utc(year, month, 1, 0) }
}

fn policies() -> impl Strategy<Value = Policy> {
    let count = || prop_oneof![2 => Just(0u32), 3 => 0u32..6, 1 => 0u32..40];
    let age = || prop_oneof![Just(0u64), 0..400 * DAY as u64];
    (count(), count(), count(), count(), count(), (count(), proptest::option::of(age()), age())).prop_map(
        |(last, hourly, daily, weekly, monthly, (yearly, within, floor))| Policy {
            last,
            hourly,
            daily,
            weekly,
            monthly,
            yearly,
            within,
            floor,
        },
    )
}

/// Histories with runs of close snapshots and long gaps, in any order of time.
fn histories() -> impl Strategy<Value = Vec<Candidate>> {
    let gap = prop_oneof![0..HOUR, 0..3 * DAY, 0..400 * DAY, -2 * DAY..0];
    vec((gap, any::<(bool, bool, bool)>()), 0..40).prop_map(|steps| {
        let mut received = utc(1999, 11, 20, 0);
        let step = |(sequence, (gap, (pinned, rarely, partial)))| {
            received += gap;
            Candidate { id: id(sequence), received, sequence, pinned: pinned && rarely, partial }
        };
        (1..).zip(steps).map(step).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn the_plan_is_that_of_the_model(
        policy in policies(),
        candidates in histories(),
        later in 0..100 * DAY,
        ahead in -50_000i32..50_000,
        change in (utc(1999, 1, 1, 0)..utc(2040, 1, 1, 0), -50_000i32..50_000),
    ) {
        let zone = Zone::new(ahead, vec![change]);
        let now = candidates.iter().map(|candidate| candidate.received).max().unwrap_or(0) + later;
        prop_assert_eq!(kept(&policy, &zone, &candidates, now), model(&policy, &zone, &candidates, now));
    }
}

/// Times at the ends of their range came out of a decoder test: the words must not overflow.
#[test]
fn a_clock_that_is_wrong_by_all_of_time_is_put_into_words() {
    let (low, high) = (i64::MIN, i64::MAX);
    let back = Frozen::Back { now: low, known: high };
    assert!(back.to_string().contains("went back"));
    assert!(Frozen::Leap { now: high, expected: low }.to_string().contains("ahead"));
    let clock = Clock { now: high, seen: Some(low), passed: 0 };
    assert!(clock.check(None).unwrap_err().to_string().contains("ahead"));
}
