//! Which snapshots of one volume from one machine are kept.
//!
//! The plan depends on when the server received each snapshot, on their sequence numbers,
//! and on the server's clock; a source cannot influence it by what it claims about time. A
//! clock that cannot be right gives no plan at all.
//!
//! A snapshot is kept if anything keeps it: a pin, being the newest or the newest whole
//! one, the floor below which nothing is forgotten, or a rule. Of the snapshots in one day
//! (hour, week, …) a rule keeps the newest whole one, the newest if none is whole. A policy
//! without rules keeps everything.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;

use minicbor::{Decode, Encode};
use thiserror::Error;

use super::calendar::{DAY, HOUR, Span, Zone};
use crate::id::SnapshotId;

/// A snapshot younger than this is never forgotten unless a policy says otherwise.
pub const DEFAULT_FLOOR: u64 = 7 * DAY as u64;

/// A clock may be ahead of what is known by this much and still be believed.
pub const SLACK: i64 = 24 * HOUR;

/// What to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The newest so many.
    pub last: u32,
    /// One of each of the newest so many hours that have any.
    pub hourly: u32,
    /// One of each of so many days.
    pub daily: u32,
    /// One of each of so many weeks.
    pub weekly: u32,
    /// One of each of so many months.
    pub monthly: u32,
    /// One of each of so many years.
    pub yearly: u32,
    /// All that were received in the last so many milliseconds.
    pub within: Option<u64>,
    /// Nothing that was received in the last so many milliseconds is forgotten, not even on
    /// an administrator's order.
    pub floor: u64,
}

impl Default for Policy {
    fn default() -> Self {
        let [last, hourly, daily, weekly, monthly, yearly] = [0; 6];
        Self { last, hourly, daily, weekly, monthly, yearly, within: None, floor: DEFAULT_FLOOR }
    }
}

impl Policy {
    fn has_rules(&self) -> bool {
        self.within.is_some() || self.counts().iter().any(|&(_, count)| count > 0)
    }

    const fn counts(&self) -> [(Rule, u32); 6] {
        [
            (Rule::Last, self.last),
            (Rule::Hourly, self.hourly),
            (Rule::Daily, self.daily),
            (Rule::Weekly, self.weekly),
            (Rule::Monthly, self.monthly),
            (Rule::Yearly, self.yearly),
        ]
    }

    /// Whether the floor keeps what was received at `received`.
    #[must_use]
    pub fn is_below_floor(&self, now: i64, received: i64) -> bool {
        is_within(now, received, self.floor)
    }
}

/// What a plan needs to know of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The snapshot.
    pub id: SnapshotId,
    /// When the server received it, in milliseconds since 1970 by the server's clock.
    pub received: i64,
    /// Its number in the sequence of its volume and source.
    pub sequence: u64,
    /// Whether somebody pinned it.
    pub pinned: bool,
    /// Whether it lacks something.
    pub partial: bool,
}

/// The server's clock, and what speaks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// What it shows, in milliseconds since 1970.
    pub now: i64,
    /// What it showed when it was last looked at and believed, if ever.
    pub seen: Option<i64>,
    /// Milliseconds that are known, from another clock, to have passed since.
    pub passed: u64,
}

impl Clock {
    /// Whether the clock can be right, given that a snapshot was received at `newest`.
    ///
    /// # Errors
    /// When it cannot.
    pub fn check(&self, newest: Option<i64>) -> Result<(), Frozen> {
        if let Some(known) = newest.max(self.seen).filter(|&known| self.now < known) {
            return Err(Frozen::Back { now: self.now, known });
        }
        let Some(seen) = self.seen else { return Ok(()) };
        let passed = i64::try_from(self.passed).unwrap_or(i64::MAX);
        let expected = seen.saturating_add(passed);
        if self.now > expected.saturating_add(SLACK) {
            return Err(Frozen::Leap { now: self.now, expected });
        }
        Ok(())
    }
}

/// Why there is no plan: the clock cannot be right. Times in milliseconds since 1970.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq, Encode, Decode)]
pub enum Frozen {
    /// It went back.
    #[error("the server's clock went back by {} s; nothing is forgotten until it is right again", known.saturating_sub(*now) / 1000)]
    #[n(0)]
    Back {
        /// What it shows.
        #[n(0)]
        now: i64,
        /// What it has shown before.
        #[n(1)]
        known: i64,
    },
    /// It leapt ahead, or the server did not run for long: these cannot be told apart.
    #[error(
        "the server's clock is {} h ahead of what is known to have passed; nothing is forgotten until an operator confirms it",
        now.saturating_sub(*expected) / HOUR
    )]
    #[n(1)]
    Leap {
        /// What it shows.
        #[n(0)]
        now: i64,
        /// What it would show had it gone evenly.
        #[n(1)]
        expected: i64,
    },
}

/// A rule that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(index_only)]
pub enum Rule {
    /// keep-last
    #[n(0)]
    Last,
    /// keep-hourly
    #[n(1)]
    Hourly,
    /// keep-daily
    #[n(2)]
    Daily,
    /// keep-weekly
    #[n(3)]
    Weekly,
    /// keep-monthly
    #[n(4)]
    Monthly,
    /// keep-yearly
    #[n(5)]
    Yearly,
}

impl Rule {
    /// The stretch of the calendar that it counts; none where it counts snapshots.
    const fn span(self) -> Option<Span> {
        match self {
            Self::Last => None,
            Self::Hourly => Some(Span::Hour),
            Self::Daily => Some(Span::Day),
            Self::Weekly => Some(Span::Week),
            Self::Monthly => Some(Span::Month),
            Self::Yearly => Some(Span::Year),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Last => "keep-last",
            Self::Hourly => "keep-hourly",
            Self::Daily => "keep-daily",
            Self::Weekly => "keep-weekly",
            Self::Monthly => "keep-monthly",
            Self::Yearly => "keep-yearly",
        })
    }
}

/// Why a snapshot is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Keep {
    /// There are no rules.
    #[n(0)]
    NoRules,
    /// Somebody pinned it.
    #[n(1)]
    Pinned,
    /// It is the newest.
    #[n(2)]
    Newest,
    /// It is the newest that is whole.
    #[n(3)]
    NewestWhole,
    /// It is younger than the floor.
    #[n(4)]
    Floor,
    /// keep-within
    #[n(5)]
    Within,
    /// A rule that counts.
    #[n(6)]
    Rule(#[n(0)] Rule),
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoRules => "no retention is configured",
            Self::Pinned => "pinned",
            Self::Newest => "newest",
            Self::NewestWhole => "newest whole one",
            Self::Floor => "min-retention",
            Self::Within => "keep-within",
            Self::Rule(rule) => return rule.fmt(f),
        })
    }
}

/// Why a rule does not keep a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Lapse {
    /// It is older than keep-within.
    #[n(0)]
    TooOld,
    /// All places of the rule are taken by newer ones.
    #[n(1)]
    Beyond(#[n(0)] Rule),
    /// Another snapshot stands for the same hour, day, week, month or year.
    #[n(2)]
    Represented {
        /// The rule.
        #[n(0)]
        rule: Rule,
        /// The other snapshot.
        #[n(1)]
        by: SnapshotId,
    },
}

impl fmt::Display for Lapse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooOld => f.write_str("older than keep-within"),
            Self::Beyond(rule) => write!(f, "beyond {rule}"),
            Self::Represented { rule, by } => write!(f, "{rule} keeps {} instead", by.short()),
        }
    }
}

/// What becomes of a snapshot, with every reason.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Fate {
    /// It stays, because of each of these.
    #[n(0)]
    Keep(#[n(0)] Vec<Keep>),
    /// It goes, because no rule keeps it.
    #[n(1)]
    Forget(#[n(0)] Vec<Lapse>),
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = match self {
            Self::Keep(reasons) => reasons.iter().map(ToString::to_string).collect(),
            Self::Forget(reasons) => reasons.iter().map(ToString::to_string).collect(),
        };
        f.write_str(&texts.join(", "))
    }
}

/// What becomes of one snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Verdict {
    /// The snapshot.
    #[n(0)]
    pub id: SnapshotId,
    /// What becomes of it.
    #[n(1)]
    pub fate: Fate,
}

/// Decides about `candidates`, all snapshots of one volume from one machine that are not
/// forgotten; newest first.
///
/// # Errors
/// When the clock cannot be right.
pub fn plan(policy: &Policy, clock: &Clock, zone: &Zone, candidates: &[Candidate]) -> Result<Vec<Verdict>, Frozen> {
    clock.check(candidates.iter().map(|candidate| candidate.received).max())?;
    let mut newest_first = candidates.to_vec();
    newest_first.sort_unstable_by_key(|candidate| Reverse((candidate.sequence, candidate.received, candidate.id)));
    let counted: Vec<Counted> = policy
        .counts()
        .into_iter()
        .filter(|&(_, count)| count > 0)
        .map(|(rule, count)| Counted::new(rule, count as usize, zone, &newest_first))
        .collect();
    let newest = newest_first.first().map(|candidate| candidate.id);
    let whole = newest_first.iter().find(|candidate| !candidate.partial).map(|candidate| candidate.id);
    let judge = |(index, candidate): (usize, &Candidate)| {
        let mut keeps = standing(policy, clock.now, candidate);
        keeps.extend((newest == Some(candidate.id)).then_some(Keep::Newest));
        keeps.extend((whole == Some(candidate.id)).then_some(Keep::NewestWhole));
        let mut lapses = Vec::new();
        if policy.within.is_some() && !keeps.contains(&Keep::Within) {
            lapses.push(Lapse::TooOld);
        }
        for rule in &counted {
            match rule.judge(index, zone, candidate) {
                None => keeps.push(Keep::Rule(rule.rule)),
                Some(lapse) => lapses.push(lapse),
            }
        }
        Verdict { id: candidate.id, fate: if keeps.is_empty() { Fate::Forget(lapses) } else { Fate::Keep(keeps) } }
    };
    Ok(newest_first.iter().enumerate().map(judge).collect())
}

/// What keeps `candidate` whatever else there is.
fn standing(policy: &Policy, now: i64, candidate: &Candidate) -> Vec<Keep> {
    [
        (!policy.has_rules(), Keep::NoRules),
        (candidate.pinned, Keep::Pinned),
        (policy.is_below_floor(now, candidate.received), Keep::Floor),
        (policy.within.is_some_and(|within| is_within(now, candidate.received, within)), Keep::Within),
    ]
    .into_iter()
    .filter_map(|(holds, reason)| holds.then_some(reason))
    .collect()
}

fn is_within(now: i64, received: i64, age: u64) -> bool {
    // Nothing was received after now, or there would be no plan.
    u64::try_from(now.saturating_sub(received)).is_ok_and(|passed| passed < age)
}

/// A rule that counts, and whom it keeps.
struct Counted {
    rule: Rule,
    count: usize,
    /// For each span that the rule reaches, who stands for it.
    kept: BTreeMap<i64, SnapshotId>,
    /// The oldest span that it reaches.
    from: i64,
}

impl Counted {
    fn new(rule: Rule, count: usize, zone: &Zone, newest_first: &[Candidate]) -> Self {
        let mut kept: BTreeMap<i64, &Candidate> = BTreeMap::new();
        for (span, candidate) in rule.span().iter().flat_map(|span| newest_first.iter().map(move |one| (span, one))) {
            let place = kept.entry(span.number(zone, candidate.received)).or_insert(candidate);
            if place.partial && !candidate.partial {
                *place = candidate;
            }
        }
        let from = kept.keys().nth(kept.len().saturating_sub(count)).copied().unwrap_or(i64::MIN);
        Self { rule, count, kept: kept.into_iter().map(|(span, candidate)| (span, candidate.id)).collect(), from }
    }

    /// Why the rule does not keep the candidate that stands at `index`, newest first; none
    /// if it does.
    fn judge(&self, index: usize, zone: &Zone, candidate: &Candidate) -> Option<Lapse> {
        let beyond = Some(Lapse::Beyond(self.rule));
        let Some(span) = self.rule.span() else { return beyond.filter(|_| index >= self.count) };
        let number = span.number(zone, candidate.received);
        if number < self.from {
            return beyond;
        }
        let by = *self.kept.get(&number)?;
        (by != candidate.id).then_some(Lapse::Represented { rule: self.rule, by })
    }
}

#[cfg(test)]
mod tests;
