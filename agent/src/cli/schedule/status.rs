//! `vsync schedule status`.

use jiff::{Timestamp, Zoned};
use serde_json::json;

use super::super::GlobalArgs;
use super::super::context::Context;
use super::super::output::{self, Align, Table};
use super::super::report::{Exit, Failure};
use super::super::time;
use super::{own_machine, runner_path, state_path};
use crate::config::Schedule;
use crate::schedule::{Attempt, Lock, State, next_due};

/// Show the schedule of this machine: what ran last, how it went, what is next
///
/// It tells of `vsync schedule run` under systemd as of the container of `vsync schedule start`.
/// The exit code is 3 when the schedule is not running, or when the last try of an entry failed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  vsync schedule status\n  vsync schedule status --json")]
pub(in super::super) struct StatusArgs {}

/// One entry, and what is known of it.
struct Row<'a> {
    entry: &'a Schedule,
    last: Option<&'a Attempt>,
    success: Option<Timestamp>,
    next: Option<Timestamp>,
}

impl StatusArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let context = Context::load(global)?;
        let runner = Lock::holder(&runner_path(&context))?;
        let state = State::load(&state_path(&context))?;
        let schedule = &own_machine(&context)?.schedule;
        let row = |entry| {
            let known = state.of(entry);
            Row {
                entry,
                last: known.and_then(|known| known.last.as_ref()),
                success: known.and_then(|known| known.last_success),
                next: state.due(entry).or_else(|| next_due(entry, Timestamp::now())),
            }
        };
        let rows: Vec<Row<'_>> = schedule.iter().map(row).collect();
        if global.json {
            output::json(&json!({
                "machine": context.bundle.machine.as_str(),
                "running": runner.is_some(),
                "entries": rows.iter().map(Row::json).collect::<Vec<_>>(),
            }))?;
        } else {
            print(&context, runner.is_some(), &rows)?;
        }
        let well = runner.is_some() && rows.iter().all(Row::is_well);
        Ok(if well { Exit::Exact } else { Exit::Defects })
    }
}

impl Row<'_> {
    fn is_well(&self) -> bool {
        self.last.is_none_or(|last| last.code == 0 || last.code == Exit::Defects as u8)
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "volume": self.entry.volume.as_str(),
            "server": self.entry.server.as_str(),
            "at": self.entry.at.to_string(),
            "time_zone": self.entry.at.zone().iana_name(),
            "last_attempt": self.last.map(|last| last.started.to_string()),
            "last_end": self.last.map(|last| last.ended.to_string()),
            "last_exit_code": self.last.map(|last| last.code),
            "last_outcome": self.last.map(|last| &last.outcome),
            "last_snapshot": self.last.and_then(|last| last.snapshot.as_ref()),
            "last_success": self.success.map(|at| at.to_string()),
            "next": self.next.map(|at| at.to_string()),
        })
    }
}

fn print(context: &Context, running: bool, rows: &[Row<'_>]) -> Result<(), Failure> {
    let machine = &context.bundle.machine;
    let now = Zoned::now();
    if rows.is_empty() {
        output::line(format_args!("{machine} has no schedule in {}", context.config.path.display()))?;
    } else {
        output::line(table(rows, &now))?;
    }
    for row in rows.iter().filter(|row| !row.is_well()) {
        let Some(last) = row.last else { continue };
        let failed = if last.snapshot.is_some() { "" } else { " FAILED" };
        output::line(format_args!("{}{failed}: {}", row.entry.volume, last.outcome))?;
    }
    if running {
        return output::line(format_args!("the schedule of {machine} is running"));
    }
    output::line(format_args!(
        "the schedule of {machine} is NOT running\n  to do: vsync schedule start, or systemctl start vsync-schedule"
    ))
}

fn table(rows: &[Row<'_>], now: &Zoned) -> Table<7> {
    let mut table = Table::new([
        ("VOLUME", Align::Left),
        ("SERVER", Align::Left),
        ("AT", Align::Left),
        ("LAST TRY", Align::Left),
        ("OUTCOME", Align::Left),
        ("LAST SUCCESS", Align::Left),
        ("NEXT", Align::Left),
    ]);
    let shown = |at: Option<Timestamp>| at.map_or_else(|| "-".to_owned(), |at| time::format(at, now));
    for row in rows {
        let zone = row.entry.at.zone().iana_name().unwrap_or("UTC");
        let outcome = row.last.map_or("never ran", |last| match last.code {
            0 => "exact",
            3 => "with defects",
            130 => "interrupted",
            _ if last.snapshot.is_some() => "with remarks",
            _ => "FAILED",
        });
        table.row([
            row.entry.volume.to_string(),
            row.entry.server.to_string(),
            format!("{} {zone}", row.entry.at),
            shown(row.last.map(|last| last.started)),
            outcome.to_owned(),
            row.success.map_or_else(|| "NEVER".to_owned(), |at| time::format(at, now)),
            shown(row.next),
        ]);
    }
    table
}
