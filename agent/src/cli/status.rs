//! `vsync status`.

use std::time::Duration;

use jiff::{Timestamp, Zoned};
use serde_json::{Value, json};
use vsync_protocol::id::{MachineName, VolumeName};
use vsync_protocol::wire::job::reason;
use vsync_protocol::wire::overview::{Chore, LastFailure, Size};
use vsync_protocol::wire::{Outcome, Overview, Standing};

use super::GlobalArgs;
use super::context::{Context, load_config};
use super::output::{self, Align, Colour, Table};
use super::report::{Exit, Failure};
use super::server;
use super::session::{Session, short, timestamp};
use super::time;

/// A trend compares with the size of so long ago, in milliseconds: a week.
const TREND: i64 = 7 * 24 * 3_600_000;

/// Reasons are cut in the table to so many characters; `--json` has all of them.
const SHOWN_REASON: usize = 80;

/// Show how servers are, and how every volume stands
///
/// Every volume that vsync.toml lists for a machine is shown, above all those that were never
/// backed up. The exit code is 10 when a server does not answer, 3 when one takes no writes.
/// With --check it is also 3 when a volume is overdue or missing on a server that its schedule
/// names, or its last backup failed, or damage was found, or a server doubts its clock: for
/// cron and scripts. What is wrong is told on stderr, also with --quiet. To Nagios, 3 means that
/// nobody knows, and 2 that something is wrong: see the example.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  vsync status\n  vsync status --json\n  vsync status --check --quiet\n  vsync status --check --quiet || exit 2    # for Nagios"
)]
pub(super) struct StatusArgs {
    /// This server only [default: all]
    #[arg(long, env = "VSYNC_SERVER", value_name = "NAME")]
    server: Option<MachineName>,

    /// Exit with 3 when anything is overdue, failing or damaged
    #[arg(long)]
    check: bool,
}

/// What one server said.
struct Asked {
    name: MachineName,
    answer: Result<Answer, Failure>,
}

struct Answer {
    overview: Overview,
    /// Milliseconds that the server's clock is ahead.
    ahead: i64,
}

impl Answer {
    fn standing(&self, declared: &Declared) -> Option<&Standing> {
        self.overview.volumes.iter().find(|it| it.source == declared.source && it.volume == declared.volume)
    }
}

/// A volume that the configuration says a machine backs up.
struct Declared {
    volume: VolumeName,
    source: MachineName,
    /// The servers that its schedule names.
    planned: Vec<MachineName>,
}

/// A volume on the server that has its newest snapshot.
struct Found<'a> {
    server: &'a MachineName,
    standing: &'a Standing,
    /// The server's clock.
    now: i64,
}

impl Found<'_> {
    /// Whether the last verification did not find all as it should be.
    fn is_damaged(&self) -> bool {
        let bad = |outcome| matches!(outcome, Outcome::Defects | Outcome::Failed);
        self.standing.verified.as_ref().is_some_and(|done| bad(done.outcome))
    }
}

impl StatusArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let config = load_config(global)?;
        let servers = match &self.server {
            Some(name) => vec![config.server(Some(name))?.machine.name.clone()],
            None => config.servers.iter().map(|server| server.machine.name.clone()).collect(),
        };
        let declared = declared(&Context::load(global)?);
        let asked: Vec<Asked> = servers.into_iter().map(|name| Asked { answer: ask(global, &name), name }).collect();
        let complete = asked.len() == config.servers.len();
        let problems = problems(&asked, &declared, complete);
        if global.json {
            output::json(&json!({
                "servers": asked.iter().map(server_json).collect::<Vec<_>>(),
                "volumes": declared.iter().map(|it| volume_json(&asked, it)).collect::<Vec<_>>(),
                "problems": problems,
            }))?;
        } else if !global.quiet {
            asked.iter().try_for_each(print_server)?;
            print_volumes(&asked, &declared)?;
        }
        if !global.json {
            problems.iter().for_each(|problem| output::say(Colour::stderr().red(problem)));
        }
        Ok(match exit_of(&asked) {
            Exit::Exact if self.check && !problems.is_empty() => Exit::Defects,
            exit => exit,
        })
    }
}

/// A machine that may only write is told of its own backups alone.
fn declared(context: &Context) -> Vec<Declared> {
    let bundle = &context.bundle;
    let own = bundle.reader(bundle.epoch).is_none()
        && !context.config.servers.iter().any(|it| it.machine.name == bundle.machine);
    let machines = context.config.machines().filter(|machine| !own || machine.name == bundle.machine);
    machines
        .flat_map(|machine| {
            machine.backup.iter().map(|volume| {
                let planned = machine.schedule.iter().filter(|plan| plan.volume == *volume);
                let planned = planned.map(|plan| plan.server.clone()).collect();
                Declared { volume: volume.clone(), source: machine.name.clone(), planned }
            })
        })
        .collect()
}

fn exit_of(asked: &[Asked]) -> Exit {
    let read_only = |answer: &Answer| answer.overview.server.read_only.is_some();
    let failures = asked.iter().filter_map(|asked| asked.answer.as_ref().err());
    match failures.map(|failure| failure.code).reduce(Exit::graver) {
        Some(gravest) => gravest,
        None if asked.iter().flat_map(|asked| &asked.answer).any(read_only) => Exit::Defects,
        None => Exit::Exact,
    }
}

fn ask(global: &GlobalArgs, name: &MachineName) -> Result<Answer, Failure> {
    let session = Session::open(global, Some(name))?;
    let overview = session.remote.overview()?;
    let ahead = overview.server.now - Timestamp::now().as_millisecond();
    Ok(Answer { overview, ahead })
}

/// Everything that somebody must look at, each in a line. `complete` says that no server was left out.
fn problems(asked: &[Asked], declared: &[Declared], complete: bool) -> Vec<String> {
    let mut problems: Vec<String> = asked.iter().flat_map(problems_of_server).collect();
    let complete = complete && asked.iter().all(|asked| asked.answer.is_ok());
    for one in declared {
        let Declared { volume, source, planned } = one;
        // A volume that is planned for several servers must be fresh on each; any other, somewhere.
        match newest(asked, one) {
            _ if !planned.is_empty() => problems.extend(late(asked, one)),
            Some(Found { server, standing, now }) if standing.is_overdue(now) => {
                problems.push(format!("overdue on {server}: {volume} of {source}"));
            }
            // A server that was not asked, or did not answer, may have it.
            None if complete => problems.push(format!("never backed up: {volume} of {source}")),
            _ => {}
        }
        if let Some(failure) = failing(asked, one) {
            problems.push(format!("failing: {volume} of {source}: {}", words(failure)));
        }
        problems.extend(standings(asked, one).filter(Found::is_damaged).map(|found| {
            format!("damaged on {}: snapshots of {volume} of {source}, says the last `vsync verify`", found.server)
        }));
    }
    problems
}

fn problems_of_server(Asked { name, answer }: &Asked) -> Vec<String> {
    let overview = match answer {
        Ok(answer) => &answer.overview,
        Err(failure) => return vec![format!("{name}: {}", failure.heading)],
    };
    let read_only = overview.server.read_only.iter().map(|reason| format!("{name}: takes no backups: {reason}"));
    let mut problems: Vec<String> = read_only.collect();
    problems.extend(overview.server.warnings.iter().map(|warning| format!("{name}: {warning}")));
    if overview.damaged > 0 {
        problems.push(format!("{name}: {} blobs are damaged", overview.damaged));
    }
    problems
}

/// Where a planned volume is missing or too old, of the servers that answered.
fn late(asked: &[Asked], declared: &Declared) -> Vec<String> {
    let Declared { volume, source, planned } = declared;
    let here = asked.iter().filter(|asked| planned.contains(&asked.name));
    let mut late = Vec::new();
    for Asked { name, answer } in here {
        let Ok(answer) = answer else { continue };
        let standing = answer.standing(declared);
        if standing.is_none_or(|standing| standing.last.is_none()) {
            late.push(format!("never backed up on {name}: {volume} of {source}"));
        } else if standing.is_some_and(|standing| standing.is_overdue(answer.overview.server.now)) {
            late.push(format!("overdue on {name}: {volume} of {source}"));
        }
    }
    late
}

fn standings<'a>(asked: &'a [Asked], declared: &'a Declared) -> impl Iterator<Item = Found<'a>> {
    asked.iter().filter_map(|Asked { name, answer }| {
        let answer = answer.as_ref().ok()?;
        Some(Found { server: name, standing: answer.standing(declared)?, now: answer.overview.server.now })
    })
}

/// The declared volume on the server that has its newest snapshot; none if none has any.
fn newest<'a>(asked: &'a [Asked], declared: &'a Declared) -> Option<Found<'a>> {
    let with = standings(asked, declared).filter(|found| found.standing.last.is_some());
    with.max_by_key(|found| found.standing.last.map(|last| last.at))
}

/// The last failure of the volume on any server, if there was no good backup after it.
fn failing<'a>(asked: &'a [Asked], declared: &'a Declared) -> Option<&'a LastFailure> {
    let failures = standings(asked, declared).filter(|found| found.standing.failures > 0);
    failures.filter_map(|found| found.standing.failure.as_ref()).max_by_key(|failure| failure.at)
}

fn words(failure: &LastFailure) -> String {
    let words = if failure.message.is_empty() { reason(failure.code) } else { &failure.message };
    match words.char_indices().nth(SHOWN_REASON) {
        Some((cut, _)) => format!("{}…", &words[..cut]),
        None => words.to_owned(),
    }
}

fn server_json(asked: &Asked) -> Value {
    match &asked.answer {
        Ok(Answer { overview, ahead }) => {
            let mut json = server::server_json(overview);
            json["name"] = asked.name.as_str().into();
            json["reachable"] = true.into();
            json["clock_ahead"] = (*ahead as f64 / 1000.0).into();
            json
        }
        Err(failure) => json!({"name": asked.name.as_str(), "reachable": false, "error": failure.heading}),
    }
}

/// The volume as the server with its newest snapshot has it; failures are those of all.
fn volume_json(asked: &[Asked], declared: &Declared) -> Value {
    let unknown = json!({
        "volume": declared.volume.as_str(), "hostname": declared.source.as_str(), "snapshot": null,
    });
    let found = newest(asked, declared).or_else(|| standings(asked, declared).next());
    found.map_or(unknown, |Found { server, standing, now }| {
        let mut json = server::volume_json(standing, now);
        json["server"] = server.as_str().into();
        json["trend"] = trend(&standing.trend).into();
        json
    })
}

fn print_server(asked: &Asked) -> Result<(), Failure> {
    let colour = Colour::stdout();
    let (name, answer) = (&asked.name, &asked.answer);
    let Answer { overview, ahead } = match answer {
        Ok(answer) => answer,
        Err(failure) => return output::line(format_args!("{} {name}: {failure}", colour.red("✗"))),
    };
    let status = &overview.server;
    output::line(format_args!(
        "{} {name}: version {}, {} in {} snapshots, {} of {} free, clock {}",
        if status.read_only.is_none() { colour.green("✓") } else { colour.red("✗") },
        status.version,
        output::size(status.bytes),
        status.snapshots,
        output::size(status.free),
        output::size(overview.space),
        clock(*ahead),
    ))?;
    output::line(format_args!("  {}", chores(overview)))?;
    if let Some(reason) = &status.read_only {
        output::line(format_args!("  {}", colour.red(&format!("takes no backups: {reason}"))))?;
    }
    status.warnings.iter().try_for_each(|warning| output::line(format_args!("  {}", colour.red(warning))))
}

/// What the server does by itself, in one line.
fn chores(overview: &Overview) -> String {
    let ago = |at: i64| output::duration(millis(overview.server.now.saturating_sub(at)));
    let chore = |chore: &Chore| match (chore.running, chore.last, &chore.failure) {
        (true, ..) => "running now".to_owned(),
        (_, _, Some(_)) => "failed".to_owned(),
        (_, Some(at), _) => format!("{} ago", ago(at)),
        (_, None, _) => "not yet".to_owned(),
    };
    let ratio = overview.dedup_ratio().map(|ratio| format!(", each byte used {ratio:.1} times")).unwrap_or_default();
    let damage = if overview.damaged > 0 { format!(", {} blobs damaged", overview.damaged) } else { String::new() };
    let (collection, scrub) = (chore(&overview.collection), chore(&overview.scrub));
    format!("garbage collection {collection}, scrub {scrub}{damage}{ratio}")
}

/// A difference of clocks in words.
pub(super) fn clock(ahead: i64) -> String {
    let difference = output::duration(Duration::from_millis(ahead.unsigned_abs()));
    match ahead {
        -1999..=1999 => "agrees".to_owned(),
        2000.. => format!("{difference} ahead"),
        _ => format!("{difference} behind"),
    }
}

/// By how much the size has changed in a week, or since the first backup that is known: a
/// fraction.
fn trend(sizes: &[Size]) -> Option<f64> {
    let last = sizes.last()?;
    let earlier = sizes.iter().find(|size| size.at >= last.at.saturating_sub(TREND))?;
    let known = earlier.at < last.at && earlier.bytes > 0;
    known.then(|| last.bytes as f64 / earlier.bytes as f64 - 1.0)
}

fn print_volumes(asked: &[Asked], declared: &[Declared]) -> Result<(), Failure> {
    let mut table = Table::new([
        ("VOLUME", Align::Left),
        ("SOURCE", Align::Left),
        ("SERVER", Align::Left),
        ("LAST", Align::Left),
        ("AGE", Align::Right),
        ("DUE", Align::Left),
        ("SIZE", Align::Right),
        ("TREND", Align::Right),
        ("VERIFIED", Align::Left),
        ("NOTES", Align::Left),
    ]);
    declared.iter().for_each(|one| table.row(row(asked, one)));
    output::line(table)
}

fn row(asked: &[Asked], declared: &Declared) -> [String; 10] {
    let now = Zoned::now();
    let dash = || "-".to_owned();
    let when = |at: i64| time::format(timestamp(at), &now);
    let due = standings(asked, declared).filter_map(|found| found.standing.due).min().map_or_else(dash, when);
    let [volume, source] = [declared.volume.to_string(), declared.source.to_string()];
    let Some(Found { server, standing, now: clock }) = newest(asked, declared) else {
        let known = asked.iter().all(|asked| asked.answer.is_ok());
        let mut notes = vec![if known { "NEVER BACKED UP".to_owned() } else { "unknown".to_owned() }];
        notes.extend(standings(asked, declared).flat_map(|found| notes_on(found.standing)));
        return [volume, source, dash(), dash(), dash(), due, dash(), dash(), dash(), notes.join(", ")];
    };
    let result = standing.result.as_ref();
    let verified = standing.verified.as_ref().map_or_else(
        || "never".to_owned(),
        |done| if done.outcome == Outcome::Success { when(done.at) } else { "DAMAGED".to_owned() },
    );
    let mut notes = Vec::new();
    if standing.is_overdue(clock) {
        notes.push("OVERDUE".to_owned());
    }
    notes.extend(notes_on(standing));
    [
        volume,
        source,
        server.to_string(),
        standing.last.map_or_else(dash, |last| short(last.id)),
        standing.age(clock).map_or_else(dash, |age| output::duration(Duration::from_millis(age))),
        due,
        result.map_or_else(dash, |result| output::size(result.size)),
        trend(&standing.trend).map_or_else(dash, |trend| format!("{:+.1} %", trend * 100.0)),
        verified,
        notes.join(", "),
    ]
}

fn notes_on(standing: &Standing) -> Vec<String> {
    let mut notes = Vec::new();
    if standing.last.is_some_and(|last| last.partial) {
        notes.push("partial".to_owned());
    }
    if standing.running.is_some() {
        notes.push("running".to_owned());
    }
    if let Some(failure) = standing.failure.as_ref().filter(|_| standing.failures > 0) {
        let times =
            if standing.failures == 1 { "failed".to_owned() } else { format!("failed {} times", standing.failures) };
        notes.push(format!("{times}: {}", words(failure)));
    }
    notes
}

fn millis(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trend_compares_with_a_week_ago() {
        let day = 24 * 3_600_000;
        let size = |days: i64, bytes| Size { at: days * day, bytes, stored: 0 };
        assert_eq!(trend(&[]), None);
        assert_eq!(trend(&[size(1, 100)]), None, "nothing to compare with");
        assert_eq!(trend(&[size(1, 0), size(2, 100)]), None);
        assert_eq!(trend(&[size(0, 10), size(3, 100), size(10, 150)]), Some(0.5));
        assert_eq!(trend(&[size(0, 100), size(10, 50)]), None, "too long ago to tell of a week");
    }

    #[test]
    fn long_reasons_are_cut_between_characters() {
        let failure = LastFailure { at: 0, outcome: Outcome::Failed, code: 20, message: "ä".repeat(200) };
        assert_eq!(words(&failure).chars().count(), SHOWN_REASON + 1);
        assert_eq!(words(&LastFailure { message: String::new(), ..failure }), "hook");
    }
}
