//! When the next backup of a volume is due.

use std::time::Duration;

use jiff::Timestamp;
use vsync_protocol::id::{MachineName, VolumeName};

use crate::config::{Config, Schedule};
use crate::schedule::next_due;

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
pub(super) fn expected(config: &Config, server: &MachineName, now: Timestamp) -> Vec<Expected> {
    let mut expected = Vec::new();
    for machine in config.machines() {
        for volume in &machine.backup {
            let planned: Vec<&Schedule> = machine.schedule.iter().filter(|plan| plan.volume == *volume).collect();
            let here = planned.iter().filter(|plan| plan.server == *server);
            if planned.is_empty() || here.clone().next().is_some() {
                let pause = here.clone().filter_map(|plan| longest_pause(plan, now)).min();
                let usual = MAX_AGE.max(pause.map_or(Duration::ZERO, |pause| pause + SLACK));
                expected.push(Expected {
                    source: machine.name.clone(),
                    volume: volume.clone(),
                    max_age: config.max_age(volume).unwrap_or(usual),
                    due: here.filter_map(|plan| next_due(plan, now)).min(),
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

/// The longest time between two of the next times of a schedule.
fn longest_pause(schedule: &Schedule, now: Timestamp) -> Option<Duration> {
    let mut last = next_due(schedule, now)?;
    let mut longest = Duration::ZERO;
    for _ in 0..TIMES {
        let next = next_due(schedule, last)?;
        longest = longest.max(next.duration_since(last).unsigned_abs());
        last = next;
    }
    Some(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(at: &str) -> Config {
        let text = format!(
            "[realm]\nname = \"r\"\njitter = \"0s\"\n[[servers]]\nname = \"a\"\ndata = \"/a\"\n[[servers]]\nname = \"b\"\n\
             data = \"/b\"\n[[clients]]\nname = \"c\"\nbackup = [\"planned\", \"free\"]\n\
             [[clients.schedule]]\nvolume = \"planned\"\nserver = \"b\"\nat = \"{at}\"\n"
        );
        Config::parse(std::path::Path::new("/r/vsync.toml"), &text).unwrap()
    }

    fn friday() -> Timestamp {
        "2026-11-20T10:30:00Z".parse().unwrap()
    }

    #[test]
    fn a_planned_volume_is_expected_where_its_plan_says_and_any_other_everywhere() {
        let config = config("02:00");
        let names = |server: &str| {
            let expected = expected(&config, &server.parse().unwrap(), friday());
            expected.iter().map(|it| (it.volume.to_string(), it.due.is_some())).collect::<Vec<_>>()
        };
        assert_eq!(names("a"), [("free".to_owned(), false)]);
        assert_eq!(names("b"), [("planned".to_owned(), true), ("free".to_owned(), false)]);
    }

    #[test]
    fn what_is_planned_rarely_may_be_older() {
        let hours = |at: &str| {
            let config = config(at);
            longest_pause(&config.clients[0].schedule[0], friday()).map(|pause| pause.as_secs() / 3600)
        };
        let pauses = ["@hourly", "02:00", "0 2 * * mon-fri", "@weekly", "@monthly"].map(hours);
        assert_eq!(pauses, [Some(1), Some(24), Some(72), Some(168), Some(31 * 24)]);
    }
}
