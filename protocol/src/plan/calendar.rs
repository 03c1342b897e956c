//! Hours, days, weeks, months and years of a time zone that is given as data.
//!
//! There is no time zone database here: who plans says when clocks change, or counts in
//! UTC. Hours are hours of elapsed time and always counted in UTC, so that no change of
//! clocks merges two of them; everything longer is counted in local time.

/// Milliseconds of an hour.
pub const HOUR: i64 = 3_600_000;

/// Milliseconds of a day without a change of clocks.
pub const DAY: i64 = 24 * HOUR;

/// How far local clocks are ahead of UTC, and when that changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    first: i32,
    changes: Vec<(i64, i32)>,
}

impl Zone {
    /// UTC itself.
    #[must_use]
    pub const fn utc() -> Self {
        Self { first: 0, changes: Vec::new() }
    }

    /// Clocks that are `first` seconds ahead of UTC until the first of `changes`, each of
    /// which is an instant, in milliseconds since 1970, and the seconds ahead from then on.
    #[must_use]
    pub fn new(first: i32, mut changes: Vec<(i64, i32)>) -> Self {
        changes.sort_unstable_by_key(|&(from, _)| from);
        Self { first, changes }
    }

    /// The instant `at` as local clocks show it, in milliseconds since 1970 began on them.
    #[must_use]
    pub fn local(&self, at: i64) -> i64 {
        let passed = self.changes.partition_point(|&(from, _)| from <= at);
        let ahead =
            passed.checked_sub(1).and_then(|last| self.changes.get(last)).map_or(self.first, |&(_, ahead)| ahead);
        at.saturating_add(i64::from(ahead) * 1000)
    }
}

/// A stretch of the calendar that snapshots are thinned by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// An hour.
    Hour,
    /// A day from midnight.
    Day,
    /// A week from Monday.
    Week,
    /// A month.
    Month,
    /// A year.
    Year,
}

impl Span {
    /// The number of the span that `at` falls into; later spans have higher numbers.
    #[must_use]
    pub fn number(self, zone: &Zone, at: i64) -> i64 {
        let day = zone.local(at).div_euclid(DAY);
        match self {
            Self::Hour => at.div_euclid(HOUR),
            Self::Day => day,
            // The first day of 1970 was a Thursday, three days after a Monday.
            Self::Week => (day + 3).div_euclid(7),
            Self::Month => {
                let (year, month) = month_of(day);
                year * 12 + month - 1
            }
            Self::Year => month_of(day).0,
        }
    }
}

/// Days of 400 years, after which the calendar repeats itself.
const CYCLE: i64 = 400 * 365 + 97;

/// Year and month, from 1, of the day `day` after the first of 1970.
fn month_of(day: i64) -> (i64, i64) {
    // Counted from 1 March 2000: leap days are then the last of their years, and of their
    // 4, 100 and 400 years. It lies 30 years, 7 leap days, and January and February 2000
    // with its leap day after the first of 1970.
    let day = day - (30 * 365 + 7 + 31 + 29);
    let (cycles, day) = (day.div_euclid(CYCLE), day.rem_euclid(CYCLE));
    // A fourth century, or a fourth year, holds only the leap day that ends its three others.
    let century = (day / 36_524).min(3);
    let day = day - century * 36_524;
    let four = day / 1461;
    let day = day - four * 1461;
    let year = (day / 365).min(3);
    let day = day - year * 365;
    let year = 2000 + cycles * 400 + century * 100 + four * 4 + year;
    // Days of the year that begins in March at which each of its months begins.
    let begins = [0, 31, 61, 92, 122, 153, 184, 214, 245, 275, 306, 337];
    let month = begins.iter().filter(|&&begin| begin <= day).count() as i64 + 2;
    if month > 12 { (year + 1, month - 12) } else { (year, month) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn days_in(year: i64, month: i64) -> i64 {
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        match month {
            2 if leap => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        }
    }

    #[test]
    fn months_are_those_of_counting_day_by_day() {
        let (mut year, mut month, mut left) = (1970, 1, 31);
        // Past 2400, so that every kind of century is met.
        for day in 0..160_000 {
            assert_eq!(month_of(day), (year, month), "day {day}");
            left -= 1;
            if left == 0 {
                month = month % 12 + 1;
                year += i64::from(month == 1);
                left = days_in(year, month);
            }
        }
        let (mut year, mut month, mut left) = (1969, 12, 31);
        for day in (-160_000..0).rev() {
            assert_eq!(month_of(day), (year, month), "day {day}");
            left -= 1;
            if left == 0 {
                month = (month + 10) % 12 + 1;
                year -= i64::from(month == 12);
                left = days_in(year, month);
            }
        }
    }

    #[test]
    fn weeks_begin_on_monday() {
        // Monday, 5 January 1970 and the Sunday before it; Monday, 29 February 2016.
        for monday in [4, 16_860] {
            let week = |day: i64| Span::Week.number(&Zone::utc(), day * DAY);
            assert_eq!(week(monday), week(monday + 6));
            assert_eq!(week(monday - 1) + 1, week(monday));
        }
    }

    #[test]
    fn extreme_times_do_not_overflow() {
        let zone = Zone::new(-50_000, vec![(0, 50_000)]);
        for at in [i64::MIN, i64::MIN + 1, -1, 0, i64::MAX] {
            for span in [Span::Hour, Span::Day, Span::Week, Span::Month, Span::Year] {
                let _ = span.number(&zone, at);
            }
        }
    }

    #[test]
    fn a_change_holds_from_its_instant() {
        let zone = Zone::new(3600, vec![(2000, 7200), (1000, 0)]);
        assert_eq!([999, 1000, 1999, 2000].map(|at| zone.local(at) - at), [3_600_000, 0, 0, 7_200_000]);
    }
}
