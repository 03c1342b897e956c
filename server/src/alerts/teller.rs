//! What is news: told once when it begins, when it grows worse, once a day while it lasts, and when it is over; and
//! whatever comes and goes, not more than once in an hour.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Alert, Severity};

const HOUR: i64 = 3_600_000;

/// The same thing does not begin twice within this time, as far as people are told.
const QUIET: i64 = HOUR;

/// What lasts is told again after this time.
const REMINDER: i64 = 24 * HOUR;

/// What happened to an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// It is new.
    Began,
    /// It was a warning, and is critical now.
    Worse,
    /// It is still there.
    Lasts,
    /// It is over.
    Recovered,
}

/// Something to tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct News {
    /// What happened.
    pub event: Event,
    /// To what; as it was last if it is over.
    pub alert: Alert,
    /// Since when it has been wrong, in milliseconds since 1970.
    pub since: i64,
}

impl fmt::Display for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = self.alert.severity.as_str();
        match self.event {
            Event::Began | Event::Worse => write!(f, "{severity}: {}", self.alert.text),
            Event::Lasts => write!(f, "still {severity}: {}", self.alert.text),
            Event::Recovered => write!(f, "over: {}", self.alert.text),
        }
    }
}

/// Remembers what people know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Teller {
    known: BTreeMap<String, Known>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    alert: Alert,
    since: i64,
    /// When people were last told of its beginning; none if they never were.
    began: Option<i64>,
    /// When they were last told anything.
    told: i64,
    /// How bad it is as far as people know; none if for all they know nothing is wrong.
    believed: Option<Severity>,
    over: bool,
}

impl Teller {
    /// What people must be told at `now`, given all that is wrong then.
    pub(super) fn news(&mut self, now: i64, alerts: Vec<Alert>) -> Vec<News> {
        for known in self.known.values_mut() {
            known.over = true;
            // A clock that was set back must not silence anything.
            known.told = known.told.min(now);
            known.began = known.began.map(|began| began.min(now));
        }
        for alert in alerts {
            self.note(now, alert);
        }
        let news = self.known.values_mut().filter_map(|known| known.news(now)).collect();
        self.known.retain(|_, known| !known.is_forgettable(now));
        news
    }

    /// The same when nothing can be seen but `alert`: whatever was wrong before still is, for all that anybody knows.
    pub(super) fn blind(&mut self, now: i64, alert: Alert) -> Vec<News> {
        let lasting = self.known.values().filter(|known| !known.over && !known.alert.passing);
        let mut alerts: Vec<Alert> = lasting.map(|known| known.alert.clone()).collect();
        alerts.push(alert);
        self.news(now, alerts)
    }

    /// Whether something critical is going on.
    pub(super) fn is_critical(&self) -> bool {
        self.known.values().any(|known| !known.over && known.alert.severity == Severity::Critical)
    }

    fn note(&mut self, now: i64, alert: Alert) {
        let key = format!("{} {}", alert.rule, alert.about);
        match self.known.get_mut(&key) {
            None => {
                let fresh = Known { alert, since: now, began: None, told: now, believed: None, over: false };
                self.known.insert(key, fresh);
            }
            Some(known) => {
                if known.believed.is_none() && known.began.is_some() {
                    known.since = now;
                }
                known.alert = alert;
                known.over = false;
            }
        }
    }
}

impl Known {
    fn news(&mut self, now: i64) -> Option<News> {
        let severity = self.alert.severity;
        let event = match self.believed {
            None if self.over => return None,
            None if self.began.is_some_and(|began| now - began < QUIET) => return None,
            None => Event::Began,
            Some(_) if self.over => Event::Recovered,
            Some(believed) if severity > believed => Event::Worse,
            Some(_) if now - self.told >= REMINDER => Event::Lasts,
            Some(_) => return None,
        };
        self.told = now;
        self.believed = (event != Event::Recovered).then_some(severity);
        if event == Event::Began {
            self.began = Some(now);
        }
        let silent = event == Event::Recovered && self.alert.passing;
        (!silent).then(|| News { event, alert: self.alert.clone(), since: self.since })
    }

    fn is_forgettable(&self, now: i64) -> bool {
        self.over && self.believed.is_none() && self.began.is_none_or(|began| now - began >= QUIET)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn alert(rule: &str, severity: Severity) -> Alert {
        Alert { rule: rule.into(), about: String::new(), severity, text: rule.into(), passing: rule == "size" }
    }

    fn events(teller: &mut Teller, minute: i64, alerts: &[(&str, Severity)]) -> Vec<(String, Event)> {
        let alerts = alerts.iter().map(|(rule, severity)| alert(rule, *severity)).collect();
        teller.news(minute * 60_000, alerts).into_iter().map(|news| (news.alert.rule, news.event)).collect()
    }

    #[test]
    fn a_beginning_a_turn_for_the_worse_a_reminder_and_an_end() {
        use Event::{Began, Lasts, Recovered, Worse};
        use Severity::{Critical, Warning};
        let mut teller = Teller::default();
        let mut check = |minute, alerts: &[(&str, Severity)], expected: &[(&str, Event)]| {
            let expected: Vec<_> = expected.iter().map(|(rule, event)| ((*rule).to_owned(), *event)).collect();
            assert_eq!(events(&mut teller, minute, alerts), expected, "minute {minute}");
        };
        check(0, &[], &[]);
        check(1, &[("a", Warning)], &[("a", Began)]);
        check(2, &[("a", Warning), ("b", Critical)], &[("b", Began)]);
        check(3, &[("a", Critical), ("b", Warning)], &[("a", Worse)]);
        check(4, &[("a", Critical)], &[("b", Recovered)]);
        // It comes back at once, and goes, and comes: nobody wants to hear it all.
        check(5, &[("a", Critical), ("b", Critical)], &[]);
        check(6, &[("a", Critical)], &[]);
        check(61, &[("a", Critical), ("b", Critical)], &[]);
        check(62, &[("a", Critical), ("b", Critical)], &[("b", Began)]);
        check(3 + 24 * 60, &[("a", Critical), ("b", Critical)], &[("a", Lasts)]);
        check(4 + 24 * 60, &[], &[("a", Recovered), ("b", Recovered)]);
        check(5 + 24 * 60, &[], &[]);
    }

    #[test]
    fn nothing_is_over_because_nothing_can_be_seen() {
        let mut teller = Teller::default();
        assert_eq!(events(&mut teller, 0, &[("a", Severity::Warning)]).len(), 1);
        let mut blind = |minute: i64| {
            let news = teller.blind(minute * 60_000, alert("blind", Severity::Critical));
            news.into_iter().map(|news| (news.alert.rule, news.event)).collect::<Vec<_>>()
        };
        assert_eq!(blind(1), [("blind".to_owned(), Event::Began)]);
        assert_eq!(blind(2), []);
        assert!(teller.is_critical());
        assert_eq!(events(&mut teller, 3, &[("a", Severity::Warning)]), [("blind".to_owned(), Event::Recovered)]);
        assert_eq!(events(&mut teller, 4, &[]), [("a".to_owned(), Event::Recovered)]);
    }

    #[test]
    fn what_happens_once_has_no_end_to_tell() {
        let mut teller = Teller::default();
        assert_eq!(events(&mut teller, 0, &[("size", Severity::Warning)]).len(), 1);
        assert_eq!(events(&mut teller, 1, &[]), []);
        assert_eq!(events(&mut teller, 100, &[]), []);
        assert_eq!(teller, Teller::default(), "nothing is remembered for ever");
    }

    #[test]
    fn a_clock_that_was_set_back_silences_nothing() {
        let mut teller = Teller::default();
        assert_eq!(events(&mut teller, 1_000_000, &[("a", Severity::Warning)]).len(), 1);
        assert_eq!(events(&mut teller, 10, &[("a", Severity::Warning)]), []);
        let later = events(&mut teller, 10 + 24 * 60, &[("a", Severity::Warning)]);
        assert_eq!(later, [("a".to_owned(), Event::Lasts)]);
    }

    proptest! {
        /// Whatever flaps: it begins once an hour at most, each time with one turn for the worse and one end; and in
        /// the end people know how it is.
        #[test]
        fn never_a_flood_and_never_a_lie(states in prop::collection::vec(0..3_u8, 1..400)) {
            let mut teller = Teller::default();
            let mut told: Vec<(i64, Event)> = Vec::new();
            for (minute, state) in (0_i64..).zip(&states) {
                let alerts: &[_] = match state {
                    0 => &[],
                    1 => &[("a", Severity::Warning)],
                    _ => &[("a", Severity::Critical)],
                };
                told.extend(events(&mut teller, minute, alerts).into_iter().map(|(_, event)| (minute, event)));
            }
            let began: Vec<_> = told.iter().filter(|(_, event)| *event == Event::Began).collect();
            prop_assert!(began.windows(2).all(|two| two[1].0 - two[0].0 >= 60), "{told:?}");
            prop_assert!(told.len() <= 3 * began.len(), "{told:?}");
            // An hour of the last state later, belief and truth agree.
            let end = i64::try_from(states.len()).unwrap() + 61;
            let wrong = *states.last().unwrap() > 0;
            let last: &[_] = if wrong { &[("a", Severity::Critical)] } else { &[] };
            told.extend(events(&mut teller, end, last).into_iter().map(|(_, event)| (end, event)));
            let believed = told.last().is_some_and(|(_, event)| *event != Event::Recovered);
            prop_assert_eq!(believed, wrong);
        }
    }
}
