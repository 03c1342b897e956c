//! Times on the command line and in tables.

use jiff::civil::{Date, DateTime};
use jiff::{Span, Timestamp, Zoned};
use thiserror::Error;

/// The text is no time.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0:?} is not a time")]
pub(crate) struct TimeError(pub(crate) String);

/// Reads a time: `2026-11-20T10:05` or `2026-11-20 10:05:30` in the zone of `now`, RFC 3339
/// with an offset, `2h ago`, or `2026-11-20`, which is the last moment of that day, since one
/// who asks for the state of a day wants what was backed up on it.
///
/// # Errors
/// When the text has none of these forms, or names a time that does not exist.
pub(crate) fn parse(text: &str, now: &Zoned) -> Result<Timestamp, TimeError> {
    let text = text.trim();
    absolute(text, now).or_else(|| ago(text, now)).ok_or_else(|| TimeError(text.to_owned()))
}

fn absolute(text: &str, now: &Zoned) -> Option<Timestamp> {
    // ISO 8601 without dashes looks like the id of a snapshot.
    if text.as_bytes().get(4) != Some(&b'-') {
        return None;
    }
    if let Ok(timestamp) = text.parse::<Timestamp>() {
        return Some(timestamp);
    }
    let zone = now.time_zone().clone();
    // `DateTime` would take a lone date, too, as its midnight.
    if !text.contains(['T', 't', ' ']) {
        let midnight = text.parse::<Date>().ok()?.tomorrow().ok()?.to_zoned(zone).ok()?;
        return midnight.timestamp().checked_sub(Span::new().nanoseconds(1)).ok();
    }
    Some(text.parse::<DateTime>().ok()?.to_zoned(zone).ok()?.timestamp())
}

fn ago(text: &str, now: &Zoned) -> Option<Timestamp> {
    let span: Span = text.ends_with(" ago").then(|| text.parse().ok())??;
    now.checked_add(span).ok().map(|then| then.timestamp())
}

/// `time` for tables, in the zone of `now`: `2026-11-20 10:05:30`.
#[must_use]
pub(crate) fn format(time: Timestamp, now: &Zoned) -> String {
    time.to_zoned(now.time_zone().clone()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Zoned {
        "2026-11-20T12:00:00+01:00[Europe/Paris]".parse().unwrap()
    }

    #[test]
    fn times_are_read_in_the_local_zone() {
        for (text, utc) in [
            ("2026-11-20T10:05", "2026-11-20T09:05:00Z"),
            ("2026-11-20 10:05:30", "2026-11-20T09:05:30Z"),
            ("2026-07-01T10:05", "2026-07-01T08:05:00Z"),
            ("2026-11-20T10:05:00Z", "2026-11-20T10:05:00Z"),
            ("2026-11-20T10:05:00+05:30", "2026-11-20T04:35:00Z"),
            ("2026-11-20", "2026-11-20T22:59:59.999999999Z"),
            (" 2h ago", "2026-11-20T09:00:00Z"),
            ("1d 2h ago", "2026-11-19T09:00:00Z"),
            ("2 weeks ago", "2026-11-06T11:00:00Z"),
        ] {
            assert_eq!(parse(text, &now()), Ok(utc.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn other_words_are_no_times() {
        for text in ["", "latest", "2h", "ago", "-2h ago", "2026-13-01", "2026-02-30", "10:05", "20261120", "éé ago"]
        {
            assert_eq!(parse(text, &now()), Err(TimeError(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn times_are_shown_in_the_local_zone() {
        assert_eq!(format("2026-11-20T09:05:30.5Z".parse().unwrap(), &now()), "2026-11-20 10:05:30");
    }
}
