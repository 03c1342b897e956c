//! When something comes round: cron fields, nicknames and times of day, in a time zone.
//!
//! Where clocks change, it follows cron as Vixie wrote it: a single time of day that is skipped comes at the first
//! moment after the gap, and one that is there twice comes the first time; patterns with several times follow the
//! clock on the wall.

use std::fmt;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use thiserror::Error;

use crate::suggest;

/// When something comes round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Calendar {
    text: String,
    cron: Cron,
    zone: TimeZone,
}

/// The text says no time that comes round.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CalendarError {
    /// It has none of the forms.
    #[error("`{0}` is neither a time (`02:00`), nor @hourly, @daily, @weekly or @monthly, nor five cron fields")]
    Form(String),
    /// One of the five fields is wrong.
    #[error("the {field} in `{text}` cannot be `{value}`; they go from {from} to {to}{names}")]
    Field {
        /// The whole text.
        text: String,
        /// "minutes", "hours" …
        field: &'static str,
        /// What is there.
        value: String,
        /// The least value.
        from: u8,
        to: u8,
        /// Which names it knows, as the end of a sentence.
        names: &'static str,
    },
    /// It is well formed, but there is no such day.
    #[error("`{0}` never comes: there is no such day")]
    Never(String),
    /// There is no such time zone.
    #[error("there is no time zone `{name}`{suggestion} (zones are written like `Europe/London`, or `UTC`)")]
    Zone {
        /// The name given.
        name: String,
        /// A name that may have been meant, as the end of a sentence.
        suggestion: String,
    },
}

/// What a cron field may hold.
struct Field {
    name: &'static str,
    from: u8,
    to: u8,
    names: &'static [&'static str],
    known: &'static str,
}

const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

const FIELDS: [Field; 5] = [
    Field { name: "minutes", from: 0, to: 59, names: &[], known: "" },
    Field { name: "hours", from: 0, to: 23, names: &[], known: "" },
    Field { name: "days of the month", from: 1, to: 31, names: &[], known: "" },
    Field { name: "months", from: 1, to: 12, names: MONTHS, known: ", or jan to dec" },
    Field { name: "days of the week", from: 0, to: 7, names: DAYS, known: ", or sun to sat" },
];

impl Calendar {
    /// Reads `02:00`, `@hourly`, `@daily`, `@weekly`, `@monthly`, or five cron fields with lists, ranges, steps and
    /// names, as of the clocks in `zone`.
    ///
    /// # Errors
    /// When the text has none of these forms, or never comes.
    pub fn parse(text: &str, zone: TimeZone) -> Result<Self, CalendarError> {
        let pattern = match text {
            "@hourly" => "0 * * * *".to_owned(),
            "@daily" => "0 0 * * *".to_owned(),
            "@weekly" => "0 0 * * 0".to_owned(),
            "@monthly" => "0 0 1 * *".to_owned(),
            _ => match time_of_day(text) {
                Some((hour, minute)) => format!("{minute} {hour} * * *"),
                None => fields(text)?,
            },
        };
        // A day must be right by month and by week where one of them is `*` or steps through all; else either will do.
        let both = pattern.split(' ').skip(2).step_by(2).any(|days| days.starts_with('*'));
        let parser =
            CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).dom_and_dow(both).build();
        let cron = parser.parse(&pattern).map_err(|_| CalendarError::Form(text.to_owned()))?;
        let calendar = Self { text: text.to_owned(), cron, zone };
        match calendar.after(Timestamp::UNIX_EPOCH) {
            Some(_) => Ok(calendar),
            None => Err(CalendarError::Never(text.to_owned())),
        }
    }

    /// The first time that it comes after `instant`, to the minute; none in the far future where time ends.
    #[must_use]
    pub fn after(&self, instant: Timestamp) -> Option<Timestamp> {
        let start: Zoned = instant.to_zoned(self.zone.clone());
        self.cron.find_next_occurrence(&start, false).ok().map(|next| next.timestamp())
    }

    /// Whose clocks it means.
    #[must_use]
    pub const fn zone(&self) -> &TimeZone {
        &self.zone
    }
}

/// As it was written.
impl fmt::Display for Calendar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The time zone called `name`.
///
/// # Errors
/// When there is none.
pub(crate) fn zone(name: &str) -> Result<TimeZone, CalendarError> {
    TimeZone::get(name).map_err(|_| {
        let known: Vec<String> = jiff::tz::db().available().map(|name| name.to_string()).collect();
        let suggestion = suggest::suffix(name, known.iter().map(String::as_str));
        CalendarError::Zone { name: name.to_owned(), suggestion }
    })
}

fn time_of_day(text: &str) -> Option<(u8, u8)> {
    let (hour, minute) = text.split_once(':')?;
    let below = |text: &str, end: u8| {
        let number = text.parse().ok().filter(|number| *number < end)?;
        // `parse` would take a sign, too.
        (text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit())).then_some(number)
    };
    Some((below(hour, 24)?, below(minute, 60)?))
}

/// Five fields as cron takes them, each of which was looked at: what the parser knows beyond them (`L`, `W`, `#`,
/// names in any field) would be read differently elsewhere.
fn fields(text: &str) -> Result<String, CalendarError> {
    let fields: Vec<&str> = text.split_whitespace().collect();
    let plain = |field: &&str| field.chars().all(|c| c.is_ascii_alphanumeric() || "*,-/".contains(c));
    if fields.len() != FIELDS.len() || !fields.iter().all(plain) {
        return Err(CalendarError::Form(text.to_owned()));
    }
    for (value, field) in fields.iter().zip(&FIELDS) {
        if !value.split(',').all(|part| field.accepts(part)) {
            return Err(CalendarError::Field {
                text: text.to_owned(),
                field: field.name,
                value: (*value).to_owned(),
                from: field.from,
                to: field.to,
                names: field.known,
            });
        }
    }
    Ok(fields.join(" "))
}

impl Field {
    /// `*`, `5`, `1-5`, each with `/step` if it is more than one value; names for numbers.
    fn accepts(&self, part: &str) -> bool {
        let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
        let steps = step.is_none_or(|step| step.parse().is_ok_and(|step: u8| (1..=self.to).contains(&step)));
        let range = match range.split_once('-') {
            _ if range == "*" => true,
            None => step.is_none() && self.value(range).is_some(),
            Some((first, last)) => self.value(first).zip(self.value(last)).is_some_and(|(first, last)| first <= last),
        };
        range && steps
    }

    fn value(&self, text: &str) -> Option<u8> {
        let named = self.names.iter().position(|name| name.eq_ignore_ascii_case(text));
        match named {
            Some(at) => u8::try_from(at).ok().map(|at| at + self.from),
            None => text.parse().ok().filter(|value| (self.from..=self.to).contains(value) && !text.starts_with('+')),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use jiff::civil::DateTime;
    use jiff::{SignedDuration, ToSpan};
    use proptest::prelude::*;

    use super::*;

    fn calendar(text: &str, zone: &str) -> Calendar {
        Calendar::parse(text, super::zone(zone).unwrap()).unwrap()
    }

    fn next(text: &str, zone: &str, after: &str) -> String {
        calendar(text, zone).after(after.parse().unwrap()).unwrap().to_string()
    }

    #[test]
    fn every_form_comes_when_it_says() {
        // 20 November 2026 is a Friday.
        let after = "2026-11-20T07:38:12.5Z";
        for (text, expected) in [
            ("02:00", "2026-11-21T02:00:00Z"),
            ("07:38", "2026-11-21T07:38:00Z"),
            ("07:39", "2026-11-20T07:39:00Z"),
            ("@hourly", "2026-11-20T08:00:00Z"),
            ("@daily", "2026-11-21T00:00:00Z"),
            ("@weekly", "2026-11-22T00:00:00Z"),
            ("@monthly", "2026-12-01T00:00:00Z"),
            ("* * * * *", "2026-11-20T07:39:00Z"),
            ("*/15 * * * *", "2026-11-20T07:45:00Z"),
            ("5,10-20/5 8 * * *", "2026-11-20T08:05:00Z"),
            ("0 2 * * 1-5", "2026-11-23T02:00:00Z"),
            ("0 2 * * Sat", "2026-11-21T02:00:00Z"),
            ("0 2 * * 7", "2026-11-22T02:00:00Z"),
            ("0 2 1 jan,jul *", "2027-01-01T02:00:00Z"),
            ("0 0 29 2 *", "2028-02-29T00:00:00Z"),
            ("0 2 */2 * mon", "2026-11-23T02:00:00Z"),
            // Either of both, when days of month and week are given.
            ("0 2 1 * mon", "2026-11-23T02:00:00Z"),
        ] {
            assert_eq!(next(text, "UTC", after), expected, "{text}");
        }
    }

    #[test]
    fn a_moment_that_is_due_does_not_come_again() {
        assert_eq!(next("02:00", "UTC", "2026-11-20T02:00:00Z"), "2026-11-21T02:00:00Z");
        assert_eq!(next("02:00", "UTC", "2026-11-20T01:59:59.999Z"), "2026-11-20T02:00:00Z");
    }

    #[test]
    fn changes_of_clocks_neither_lose_a_day_nor_double_it() {
        // London: 01:00 became 02:00 on 29 March 2026, 02:00 became 01:00 on 25 October.
        for (text, zone, after, expected) in [
            ("02:00", "Europe/London", "2026-11-20T00:00:00Z", "2026-11-20T02:00:00Z"),
            ("02:00", "Europe/London", "2026-07-01T00:00:00Z", "2026-07-01T01:00:00Z"),
            ("01:30", "Europe/London", "2026-03-28T12:00:00Z", "2026-03-29T01:00:00Z"),
            ("01:30", "Europe/London", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"),
            ("01:30", "Europe/London", "2026-10-24T12:00:00Z", "2026-10-25T00:30:00Z"),
            ("01:30", "Europe/London", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"),
            ("*/30 * * * *", "Europe/London", "2026-03-29T00:30:00Z", "2026-03-29T01:00:00Z"),
            ("*/30 * * * *", "Europe/London", "2026-10-25T00:30:00Z", "2026-10-25T01:00:00Z"),
            ("@daily", "Africa/Cairo", "2026-04-23T12:00:00Z", "2026-04-23T22:00:00Z"),
            ("02:15", "Australia/Lord_Howe", "2026-10-03T12:00:00Z", "2026-10-03T15:30:00Z"),
        ] {
            assert_eq!(next(text, zone, after), expected, "{text} {zone} after {after}");
        }
    }

    #[test]
    fn what_is_no_schedule_is_told_why() {
        let error = |text: &str| Calendar::parse(text, TimeZone::UTC).unwrap_err().to_string();
        for text in
            ["", "2 am", "24:00", "2:00", "12:60", "+1:00", "@yearl", "@", "* * * *", "* * * * * *", "0 2 ? ! *"]
        {
            assert_eq!(
                error(text),
                format!(
                    "`{text}` is neither a time (`02:00`), nor @hourly, @daily, @weekly or @monthly, nor five cron fields"
                )
            );
        }
        for (text, expected) in [
            ("60 * * * *", "the minutes in `60 * * * *` cannot be `60`; they go from 0 to 59"),
            ("0 24 * * *", "the hours in `0 24 * * *` cannot be `24`; they go from 0 to 23"),
            ("0 0 0 * *", "the days of the month in `0 0 0 * *` cannot be `0`; they go from 1 to 31"),
            ("0 0 L * *", "the days of the month in `0 0 L * *` cannot be `L`; they go from 1 to 31"),
            ("0 0 * fri *", "the months in `0 0 * fri *` cannot be `fri`; they go from 1 to 12, or jan to dec"),
            (
                "0 0 * * 5-2",
                "the days of the week in `0 0 * * 5-2` cannot be `5-2`; they go from 0 to 7, or sun to sat",
            ),
            ("5/10 * * * *", "the minutes in `5/10 * * * *` cannot be `5/10`; they go from 0 to 59"),
            ("*/0 * * * *", "the minutes in `*/0 * * * *` cannot be `*/0`; they go from 0 to 59"),
            ("1,,2 * * * *", "the minutes in `1,,2 * * * *` cannot be `1,,2`; they go from 0 to 59"),
            ("0 0 30 2 *", "`0 0 30 2 *` never comes: there is no such day"),
        ] {
            assert_eq!(error(text), expected);
        }
        let unknown = zone("Europe/Lundon").unwrap_err().to_string();
        assert!(
            unknown.starts_with("there is no time zone `Europe/Lundon`; did you mean `Europe/London`?"),
            "{unknown}"
        );
    }

    /// What a field means, read in another way than the parser's: all values that it holds.
    fn values(text: &str, from: i8, to: i8) -> BTreeSet<i8> {
        let mut values = BTreeSet::new();
        for part in text.split(',') {
            let (range, step) = part.split_once('/').unwrap_or((part, "1"));
            let (first, last) = match range.split_once('-') {
                Some((first, last)) => (first.parse().unwrap(), last.parse().unwrap()),
                None if range == "*" => (from, to),
                None => (range.parse().unwrap(), range.parse().unwrap()),
            };
            values.extend((first..=last).step_by(step.parse().unwrap()));
        }
        values
    }

    /// Every minute of the clock on the wall, one after the other, is asked whether it is one.
    struct Model {
        minutes: BTreeSet<i8>,
        hours: BTreeSet<i8>,
        days: BTreeSet<i8>,
        months: BTreeSet<i8>,
        weekdays: BTreeSet<i8>,
        either: bool,
        single: bool,
    }

    impl Model {
        fn new(text: &str) -> Self {
            let fields: Vec<&str> = text.split(' ').collect();
            Self {
                minutes: values(fields[0], 0, 59),
                hours: values(fields[1], 0, 23),
                days: values(fields[2], 1, 31),
                months: values(fields[3], 1, 12),
                weekdays: values(fields[4], 0, 6).into_iter().map(|day| day % 7).collect(),
                either: !fields[2].starts_with('*') && !fields[4].starts_with('*'),
                single: fields[..2].iter().all(|field| field.parse::<u8>().is_ok()),
            }
        }

        fn matches(&self, wall: DateTime) -> bool {
            let day = self.days.contains(&wall.day());
            let weekday = self.weekdays.contains(&wall.weekday().to_sunday_zero_offset());
            let day = if self.either { day || weekday } else { day && weekday };
            self.minutes.contains(&wall.minute())
                && self.hours.contains(&wall.hour())
                && self.months.contains(&wall.month())
                && day
        }

        fn next(&self, zone: &TimeZone, after: Timestamp, within: i64) -> Option<Timestamp> {
            let minute = SignedDuration::from_mins(1);
            let start = after.as_second().div_euclid(60) * 60;
            let mut at = Timestamp::from_second(start).unwrap() + minute;
            for _ in 0..within {
                let wall = at.to_zoned(zone.clone()).datetime();
                let before = (at - minute).to_zoned(zone.clone()).datetime();
                let expected = before + 1.minute();
                // The minutes on the wall that were left out between the last minute and this one.
                let mut skipped = std::iter::successors(Some(expected), |wall| Some(*wall + 1.minute()))
                    .take_while(|skip| *skip < wall);
                let again = zone.to_ambiguous_timestamp(wall).earlier().unwrap() < at;
                let comes = match self.single {
                    true => (self.matches(wall) && !again) || skipped.any(|wall| self.matches(wall)),
                    false => self.matches(wall),
                };
                if comes {
                    return Some(at);
                }
                at += minute;
            }
            None
        }
    }

    fn field(from: u8, to: u8) -> impl Strategy<Value = String> {
        let single = (from..=to).prop_map(|value| value.to_string());
        let range = (from..=to, from..=to).prop_map(|(a, b)| format!("{}-{}", a.min(b), a.max(b)));
        let stepped = (range.clone(), 1..=to).prop_map(|(range, step)| format!("{range}/{step}"));
        let every = (1..=to).prop_map(|step| format!("*/{step}"));
        let part = prop_oneof![single.clone(), range, stepped];
        prop_oneof![
            3 => Just("*".to_owned()),
            1 => every,
            3 => single,
            2 => prop::collection::vec(part, 1..4).prop_map(|parts| parts.join(",")),
        ]
    }

    fn pattern() -> impl Strategy<Value = String> {
        (
            field(0, 59),
            field(0, 23),
            field(1, 28),
            prop_oneof![4 => Just("*".to_owned()), 1 => field(1, 12)],
            field(0, 6),
        )
            .prop_map(|(minute, hour, day, month, weekday)| format!("{minute} {hour} {day} {month} {weekday}"))
    }

    /// Some days before a change of clocks, or any time.
    fn start() -> impl Strategy<Value = Timestamp> {
        let changes =
            ["2026-03-29T01:00Z", "2026-10-25T01:00Z", "2026-03-08T10:00Z", "2026-11-01T09:00Z", "2026-10-03T15:30Z"];
        let near = (prop::sample::select(changes.to_vec()), 0i64..200_000)
            .prop_map(|(change, before)| change.parse::<Timestamp>().unwrap() - SignedDuration::from_secs(before));
        let any = (1_700_000_000i64..1_900_000_000).prop_map(|second| Timestamp::from_second(second).unwrap());
        prop_oneof![2 => near, 1 => any]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        #[test]
        fn it_comes_exactly_when_a_walk_over_all_minutes_finds_it(
            text in pattern(),
            zone in prop::sample::select(vec!["UTC", "Europe/London", "America/Los_Angeles", "Australia/Lord_Howe", "Asia/Kolkata"]),
            start in start(),
        ) {
            const WALK: i64 = 4 * 1440;
            let calendar = calendar(&text, zone);
            let model = Model::new(&text);
            let mut at = start;
            for _ in 0..8 {
                let expected = model.next(calendar.zone(), at, WALK);
                let found = calendar.after(at);
                let Some(expected) = expected else {
                    let end = at + SignedDuration::from_mins(WALK);
                    prop_assert!(found.is_none_or(|found| found >= end - SignedDuration::from_mins(1)), "{found:?} after {at}");
                    break;
                };
                prop_assert_eq!(found, Some(expected), "after {}", at);
                at = expected;
            }
        }
    }
}
