//! When the next backup of a volume is due.

use std::time::Duration;

use jiff::civil::{Date, Time};
use jiff::{Timestamp, Zoned};
use vsync_protocol::id::{MachineName, VolumeName};

use crate::config::{Config, Schedule};

/// A volume that a server waits for.
pub(super) struct Expected {
    /// The machine that has it.
    pub(super) source: MachineName,
    /// The volume.
    pub(super) volume: VolumeName,
    /// How old its last snapshot may be.
    pub(super) max_age: Duration,
    /// When its next backup is due, if that is planned.
    pub(super) due: Option<Timestamp>,
}

/// The volumes that are backed up to `server`: one that has a schedule, where that says; one
/// that has none is expected everywhere.
pub(super) fn expected(config: &Config, server: &MachineName, now: &Zoned) -> Vec<Expected> {
    let mut expected = Vec::new();
    for machine in config.machines() {
        for volume in &machine.backup {
            let planned: Vec<&Schedule> = machine.schedule.iter().filter(|plan| plan.volume == *volume).collect();
            let here = planned.iter().filter(|plan| plan.server == *server);
            if planned.is_empty() || here.clone().next().is_some() {
                let pause = here.clone().filter_map(|plan| longest_pause(&plan.at, now)).min();
                let usual = MAX_AGE.max(pause.map_or(Duration::ZERO, |pause| pause + SLACK));
                expected.push(Expected {
                    source: machine.name.clone(),
                    volume: volume.clone(),
                    max_age: config.max_age(volume).unwrap_or(usual),
                    due: here.filter_map(|plan| next_due(&plan.at, now)).min(),
                });
            }
        }
    }
    expected
}

/// How late a backup may be before somebody must look, if nothing is said of its volume.
const SLACK: Duration = Duration::from_secs(12 * 3600);

/// How old a last snapshot may be if nothing is said of its volume: a day, and the slack.
const MAX_AGE: Duration = Duration::from_secs(36 * 3600);

/// So many times in a row show how irregular a schedule is: each working day of a week, and more.
const TIMES: usize = 12;

/// The longest time between two of the next times that fit the schedule `at`.
fn longest_pause(at: &str, now: &Zoned) -> Option<Duration> {
    let mut last = next_due(at, now)?;
    let mut longest = Duration::ZERO;
    for _ in 0..TIMES {
        let next = next_due(at, &last.to_zoned(now.time_zone().clone()))?;
        longest = longest.max(next.duration_since(last).unsigned_abs());
        last = next;
    }
    Some(longest)
}

/// How many days are looked at: a leap day may be eight years away.
const HORIZON: i32 = 366 * 8 + 2;

/// The first moment after `now` that fits the schedule `at`, in the time zone of `now`; none
/// if no day does.
pub(super) fn next_due(at: &str, now: &Zoned) -> Option<Timestamp> {
    let fields = Fields::parse(at)?;
    let mut date = now.date();
    for _ in 0..HORIZON {
        if fields.fits(date) {
            let times = fields.times().filter_map(|time| date.to_datetime(time).to_zoned(now.time_zone().clone()).ok());
            if let Some(due) = times.map(|zoned| zoned.timestamp()).find(|due| *due > now.timestamp()) {
                return Some(due);
            }
        }
        date = date.tomorrow().ok()?;
    }
    None
}

/// The five fields of cron, each a set of numbers as bits.
struct Fields {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Whether one of the two restricts nothing; otherwise either may fit.
    any_day: bool,
}

impl Fields {
    fn parse(at: &str) -> Option<Self> {
        let daily;
        let text = match (at, at.split_once(':')) {
            ("@hourly", _) => "0 * * * *",
            ("@daily", _) => "0 0 * * *",
            ("@weekly", _) => "0 0 * * 0",
            ("@monthly", _) => "0 0 1 * *",
            (_, Some((hour, minute))) => {
                daily = format!("{minute} {hour} * * *");
                &daily
            }
            _ => at,
        };
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields[..] else { return None };
        let week = set(weekdays, 0, 7, &["sun", "mon", "tue", "wed", "thu", "fri", "sat"], 0)?;
        let months_of = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
        Some(Self {
            minutes: set(minutes, 0, 59, &[], 0)?,
            hours: set(hours, 0, 23, &[], 0)?,
            days: set(days, 1, 31, &[], 0)?,
            months: set(months, 1, 12, months_of, 1)?,
            // Sunday is 0 and 7.
            weekdays: week | (week >> 7 & 1),
            any_day: days.starts_with('*') || weekdays.starts_with('*'),
        })
    }

    fn fits(&self, date: Date) -> bool {
        let has = |set: u64, number: i8| set >> number & 1 == 1;
        let (day, weekday) = (has(self.days, date.day()), has(self.weekdays, date.weekday().to_sunday_zero_offset()));
        has(self.months, date.month()) && if self.any_day { day && weekday } else { day || weekday }
    }

    fn times(&self) -> impl Iterator<Item = Time> + '_ {
        let of = |set: u64, end: i8| (0..end).filter(move |number| set >> number & 1 == 1);
        of(self.hours, 24)
            .flat_map(move |hour| of(self.minutes, 60).filter_map(move |minute| Time::new(hour, minute, 0, 0).ok()))
    }
}

/// `*`, `3`, `1-5`, `*/15`, `mon-fri`, and lists of those.
fn set(field: &str, first: u32, last: u32, names: &[&str], base: u32) -> Option<u64> {
    let number = |text: &str| {
        let named =
            names.iter().zip(base..).find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, number)| number);
        named.or_else(|| text.parse().ok()).filter(|number| (first..=last).contains(number))
    };
    let mut bits = 0;
    for part in field.split(',') {
        let (range, step) = part.split_once('/').unwrap_or((part, "1"));
        let step: usize = step.parse().ok().filter(|step| *step > 0)?;
        let (from, to) = match (range, range.split_once('-')) {
            ("*", _) => (first, last),
            (_, Some((from, to))) => (number(from)?, number(to)?),
            // `5/15` begins there and goes on to the end.
            (one, None) => (number(one)?, if step > 1 { last } else { number(one)? }),
        };
        (from..=to).step_by(step).for_each(|number| bits |= 1 << number);
    }
    Some(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(at: &str, now: &str) -> String {
        let now: Zoned = now.parse().unwrap();
        let due = next_due(at, &now).map(|due| due.to_zoned(now.time_zone().clone()).datetime().to_string());
        due.unwrap_or_else(|| "never".to_owned())
    }

    #[test]
    fn times_and_cron_fields_come_when_they_say() {
        let friday = "2026-11-20T10:30[Europe/London]";
        for (at, due) in [
            ("10:31", "2026-11-20T10:31:00"),
            ("10:30", "2026-11-21T10:30:00"),
            ("@hourly", "2026-11-20T11:00:00"),
            ("@daily", "2026-11-21T00:00:00"),
            ("@weekly", "2026-11-22T00:00:00"),
            ("@monthly", "2026-12-01T00:00:00"),
            ("*/20 * * * *", "2026-11-20T10:40:00"),
            ("0 2 * * mon-fri", "2026-11-23T02:00:00"),
            ("0 2 1,15 * 7", "2026-11-22T02:00:00"),
            ("0 2 29 feb *", "2028-02-29T02:00:00"),
            ("0 2 31 feb *", "never"),
            ("nonsense", "never"),
        ] {
            assert_eq!(next(at, friday), due, "{at}");
        }
    }

    #[test]
    fn a_planned_volume_is_expected_where_its_plan_says_and_any_other_everywhere() {
        let text = "[realm]\nname = \"r\"\n[[servers]]\nname = \"a\"\ndata = \"/a\"\n[[servers]]\nname = \"b\"\n\
                    data = \"/b\"\n[[clients]]\nname = \"c\"\nbackup = [\"planned\", \"free\"]\n\
                    [[clients.schedule]]\nvolume = \"planned\"\nserver = \"b\"\nat = \"02:00\"\n";
        let config = Config::parse(std::path::Path::new("/r/vsync.toml"), text).unwrap();
        let now: Zoned = "2026-11-20T10:30[UTC]".parse().unwrap();
        let names = |server: &str| {
            let expected = expected(&config, &server.parse().unwrap(), &now);
            expected.iter().map(|it| (it.volume.to_string(), it.due.is_some())).collect::<Vec<_>>()
        };
        assert_eq!(names("a"), [("free".to_owned(), false)]);
        assert_eq!(names("b"), [("planned".to_owned(), true), ("free".to_owned(), false)]);
    }

    #[test]
    fn what_is_planned_rarely_may_be_older() {
        let friday: Zoned = "2026-11-20T10:30[UTC]".parse().unwrap();
        let hours = |at: &str| longest_pause(at, &friday).map(|pause| pause.as_secs() / 3600);
        let pauses = ["@hourly", "02:00", "0 2 * * mon-fri", "@weekly", "@monthly"].map(hours);
        assert_eq!(pauses, [Some(1), Some(24), Some(72), Some(168), Some(31 * 24)]);
        assert_eq!(hours("0 2 31 feb *"), None);
    }

    #[test]
    fn an_hour_that_a_change_of_clocks_skips_still_comes() {
        assert_eq!(next("01:30", "2026-03-29T00:00[Europe/London]"), "2026-03-29T02:30:00");
    }
}
