//! What is wrong, by a look at the server alone: no memory, no clock, no files.
//!
//! The rules for Prometheus in `deploy/prometheus` judge the same things in its own language. Having a memory, they also
//! wait: until a volume that is new has not been backed up for an hour, or a store has been full for ten minutes. They
//! warn before a backup is overdue, and say nothing of a single failure.

use std::fmt::Display;

use vsync_protocol::wire::{Outcome, Overview, Standing};

use super::{Alert, Severity};
use crate::overview::View;
use crate::upkeep::guard::Hold;
use crate::words::size;

/// A backup that has failed so often in a row needs somebody.
const FAILURES: u64 = 2;

/// A volume that grew or shrank by more than half of its size.
const LEAP: u64 = 2;

/// A change of less than this is no leap: small volumes change by half for no reason.
const LEAST: u64 = 8 << 20;

/// Parts of a hundred of the store's file system that are in use when somebody should think of more.
const FULL: u64 = 80;

/// And when it is urgent.
const BRIM: u64 = 90;

/// Everything that is wrong: what is said of volumes first, in the overview's order.
#[must_use]
pub(crate) fn alerts(view: &View) -> Vec<Alert> {
    let overview = &view.overview;
    let mut alerts = Vec::new();
    for standing in overview.volumes.iter().filter(|standing| standing.declared) {
        alerts.extend(age(standing, overview.server.now));
        alerts.extend(failing(standing));
        alerts.extend(leap(standing));
    }
    // Snapshots that are damaged, or that are no longer thinned out, matter though nobody declares the volume any more.
    alerts.extend(overview.volumes.iter().filter_map(verified));
    alerts.extend(view.held.iter().map(held));
    alerts.extend(store(overview));
    if !view.configured {
        let text = "the server's vsync.toml cannot be understood: nobody is let in, and what is told of volumes goes by \
                    what it said before";
        alerts.push(whole("configuration", Severity::Critical, text));
    }
    alerts
}

/// What is said when nothing can be seen.
pub(super) fn blind(error: &str) -> Alert {
    whole("catalog", Severity::Critical, format_args!("how the volumes are cannot be seen: {error}"))
}

fn verified(standing: &Standing) -> Option<Alert> {
    let bad = |outcome| matches!(outcome, Outcome::Defects | Outcome::Failed);
    let done = standing.verified.as_ref().filter(|done| bad(done.outcome))?;
    let text = format_args!("has damaged snapshots, says the last `vsync verify` (on {})", done.machine);
    Some(of("verify", standing, Severity::Critical, text))
}

fn held(hold: &Hold) -> Alert {
    let about = format!("{}/{}", hold.group.source, hold.group.volume);
    let text = format!(
        "retention of {about} is held: {}; `vsync release {}` if that is right",
        hold.reason, hold.group.volume
    );
    Alert { about, ..whole("held", Severity::Warning, text) }
}

fn of(rule: &str, standing: &Standing, severity: Severity, text: impl Display) -> Alert {
    let about = format!("{}/{}", standing.source, standing.volume);
    Alert { rule: rule.to_owned(), text: format!("{about} {text}"), about, severity, passing: false }
}

fn whole(rule: &str, severity: Severity, text: impl Display) -> Alert {
    Alert { rule: rule.to_owned(), about: String::new(), severity, text: text.to_string(), passing: false }
}

fn age(standing: &Standing, now: i64) -> Option<Alert> {
    if !standing.is_overdue(now) {
        return None;
    }
    Some(match standing.age(now) {
        None => of("never", standing, Severity::Warning, "is declared, and was never backed up"),
        Some(age) => of("overdue", standing, Severity::Critical, format_args!("was last backed up {} ago", hours(age))),
    })
}

fn failing(standing: &Standing) -> Option<Alert> {
    let failure = standing.failure.as_ref().filter(|_| standing.failures > 0)?;
    let why = if failure.message.is_empty() { failure.outcome.as_str() } else { &failure.message };
    Some(if standing.failures >= FAILURES {
        let text = format_args!("could not be backed up {} times in a row: {why}", standing.failures);
        of("failing", standing, Severity::Critical, text)
    } else {
        of("failing", standing, Severity::Warning, format_args!("could not be backed up: {why}"))
    })
}

/// The last backup found a volume very different in size from the one before.
fn leap(standing: &Standing) -> Option<Alert> {
    let [.., before, last] = standing.trend.as_slice() else { return None };
    let change = before.bytes.abs_diff(last.bytes);
    if before.bytes == 0 || change <= LEAST || change <= before.bytes / LEAP {
        return None;
    }
    let verb = if last.bytes > before.bytes { "grew" } else { "shrank" };
    let text = format_args!("{verb} from {} to {}", size(before.bytes), size(last.bytes));
    Some(Alert { passing: true, ..of("size", standing, Severity::Warning, text) })
}

fn store(overview: &Overview) -> Vec<Alert> {
    let server = &overview.server;
    let mut alerts = Vec::new();
    if let Some(reason) = &server.read_only {
        let text = format_args!("the store takes no backups until somebody has looked: {reason}");
        alerts.push(whole("store", Severity::Critical, text));
    }
    if overview.damaged > 0 {
        let text = format_args!("{} stored blobs are damaged; the next backups bring what they can", overview.damaged);
        alerts.push(whole("damage", Severity::Critical, text));
    }
    if let Some(frozen) = &overview.frozen {
        alerts.push(whole("clock", Severity::Critical, frozen));
    }
    alerts.extend(space(overview));
    for (rule, what, chore) in
        [("collection", "garbage collection", &overview.collection), ("scrub", "scrubbing", &overview.scrub)]
    {
        if let Some(failure) = &chore.failure {
            alerts.push(whole(rule, Severity::Warning, format_args!("{what} failed: {failure}")));
        }
    }
    alerts
}

fn space(overview: &Overview) -> Option<Alert> {
    let (space, free) = (overview.space, overview.server.free);
    let used = space.checked_sub(free)?.saturating_mul(100).checked_div(space)?;
    let severity = match used {
        BRIM.. => Severity::Critical,
        FULL.. => Severity::Warning,
        _ => return None,
    };
    Some(whole("space", severity, format_args!("the store is {used} % full, {} are free", size(free))))
}

/// Milliseconds, as precisely as matters to somebody who is woken by them.
fn hours(millis: u64) -> String {
    match millis / 3_600_000 {
        0 => format!("{} min", millis / 60_000),
        hours @ 1..48 => format!("{hours} h"),
        hours => format!("{} days", hours / 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Group;
    use vsync_protocol::id::SnapshotId;
    use vsync_protocol::wire::ServerStatus;
    use vsync_protocol::wire::overview::{Chore, LastDone, LastFailure, LastGood, Size};

    const HOUR: i64 = 3_600_000;
    const NOW: i64 = 1_000 * HOUR;

    fn standing() -> Standing {
        Standing {
            source: "science".parse().unwrap(),
            volume: "data".parse().unwrap(),
            declared: true,
            snapshots: 1,
            last: Some(LastGood { id: SnapshotId::from_bytes([1; 16]), at: NOW - HOUR, partial: false }),
            result: None,
            trend: Vec::new(),
            failures: 0,
            failure: None,
            running: None,
            verified: None,
            restored: None,
            max_age: Some(36 * 3_600_000),
            due: None,
        }
    }

    fn healthy() -> Overview {
        let server = ServerStatus { now: NOW, free: 900, ..ServerStatus::default() };
        Overview { server, space: 1000, volumes: vec![standing()], ..Overview::default() }
    }

    fn judged(overview: Overview) -> Vec<Alert> {
        alerts(&View { overview, configured: true, held: Vec::new() })
    }

    /// Rule and severity of all that is wrong after `change`.
    fn after(change: impl FnOnce(&mut Overview)) -> Vec<(String, Severity)> {
        let mut overview = healthy();
        change(&mut overview);
        judged(overview).into_iter().map(|alert| (alert.rule, alert.severity)).collect()
    }

    fn verified(outcome: Outcome) -> LastDone {
        LastDone { at: NOW, outcome, machine: "uat".parse().unwrap(), duration: 1 }
    }

    #[test]
    fn a_configuration_that_is_not_understood_and_what_is_held_are_told_beside_the_rest() {
        let group = Group { source: "science".parse().unwrap(), volume: "data".parse().unwrap() };
        let mut overview = healthy();
        overview.server.now += 36 * HOUR;
        let held = vec![Hold::for_test(group, "it shrank")];
        let alerts = alerts(&View { overview, configured: false, held });
        let told: Vec<_> = alerts.iter().map(|it| (it.rule.as_str(), it.about.as_str(), it.severity)).collect();
        let (critical, warning) = (Severity::Critical, Severity::Warning);
        let volume = "science/data";
        assert_eq!(told, [("overdue", volume, critical), ("held", volume, warning), ("configuration", "", critical)]);
        let text = "retention of science/data is held: it shrank; `vsync release data` if that is right";
        assert_eq!(alerts[1].text, text);
        assert_eq!(after(|it| it.volumes[0].verified = Some(verified(Outcome::Success))), []);
    }

    fn failed(standing: &mut Standing, times: u64) {
        standing.failures = times;
        let outcome = Outcome::Failed;
        standing.failure = Some(LastFailure { at: NOW, outcome, code: 10, message: "no answer".into() });
    }

    #[test]
    fn each_thing_that_can_be_wrong_and_nothing_when_all_is_well() {
        use Severity::{Critical, Warning};
        type Change = fn(&mut Overview);
        let mib = |mib: u64| Size { at: 0, bytes: mib << 20, stored: 0 };
        assert_eq!(after(|_| {}), []);
        let table: [(&str, Severity, Change); 14] = [
            ("never", Warning, |it| it.volumes[0].last = None),
            ("overdue", Critical, |it| it.server.now += 36 * HOUR),
            ("failing", Warning, |it| failed(&mut it.volumes[0], 1)),
            ("failing", Critical, |it| failed(&mut it.volumes[0], 2)),
            ("verify", Critical, |it| it.volumes[0].verified = Some(verified(Outcome::Failed))),
            ("store", Critical, |it| it.server.read_only = Some("fsync failed".into())),
            ("damage", Critical, |it| it.damaged = 1),
            ("clock", Critical, |it| it.frozen = Some("the clock jumped".into())),
            ("space", Warning, |it| it.server.free = 200),
            ("space", Critical, |it| it.server.free = 100),
            ("space", Critical, |it| it.server.free = 0),
            ("collection", Warning, |it| it.collection = Chore { failure: Some("x".into()), ..Chore::default() }),
            ("scrub", Warning, |it| it.scrub = Chore { failure: Some("x".into()), ..Chore::default() }),
            ("size", Warning, |it| {
                it.volumes[0].trend =
                    vec![Size { at: 0, bytes: 1 << 30, stored: 0 }, Size { at: 1, bytes: 1 << 20, stored: 0 }];
            }),
        ];
        for (rule, severity, change) in table {
            assert_eq!(after(change), [(rule.to_owned(), severity)]);
        }
        let quiet = |trend: Vec<Size>| after(move |it| it.volumes[0].trend = trend);
        assert_eq!(quiet(vec![mib(100), mib(150)]), [], "by half, and not more");
        assert_eq!(quiet(vec![mib(1), mib(9)]), [], "too small to matter");
        assert_eq!(quiet(vec![mib(0), mib(100)]), [], "the first content");
        assert_eq!(quiet(vec![mib(100)]), [], "nothing to compare with");
        assert_eq!(quiet(vec![mib(100), mib(151)]).len(), 1);
        assert_eq!(after(|it| it.server.free = 201), [], "just below");
        assert_eq!(after(|it| it.space = 0), [], "unknown");
        let undeclared: Change = |it| {
            it.volumes[0].declared = false;
            it.volumes[0].last = None;
            failed(&mut it.volumes[0], 3);
        };
        assert_eq!(after(undeclared), [], "nobody expects anything of it");
    }

    #[test]
    fn texts_say_what_and_how_much() {
        let mut overview = healthy();
        overview.server.now += 49 * HOUR;
        failed(&mut overview.volumes[0], 2);
        overview.volumes[0].trend =
            vec![Size { at: 0, bytes: 3 << 30, stored: 0 }, Size { at: 1, bytes: 5 << 29, stored: 0 }];
        overview.volumes[0].trend[1].bytes = 1 << 30;
        let texts: Vec<String> = judged(overview).into_iter().map(|alert| alert.text).collect();
        assert_eq!(
            texts,
            [
                "science/data was last backed up 2 days ago",
                "science/data could not be backed up 2 times in a row: no answer",
                "science/data shrank from 3.0 GiB to 1.0 GiB",
            ]
        );
    }
}
