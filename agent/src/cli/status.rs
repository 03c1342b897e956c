//! `vsync status`.

use std::time::Duration;

use jiff::{Timestamp, Zoned};
use serde_json::{Value, json};
use vsync_protocol::id::{MachineName, VolumeName};
use vsync_protocol::manifest::SnapshotKind;
use vsync_protocol::wire::{Listing, ServerStatus};

use super::GlobalArgs;
use super::context::{Context, load_config};
use super::output::{self, Align, Colour, Table};
use super::report::{Exit, Failure};
use super::session::{Listed, Session, short, timestamp};
use super::time;

/// Show how servers are, and how old the last backup of each volume is
///
/// Every volume that vsync.toml lists for a machine is shown, above all those that were
/// never backed up. The exit code is 10 when a server does not answer, 3 when one takes no
/// writes; age alone is for monitoring to judge (`--json` has it in seconds).
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  vsync status\n  vsync status --json")]
pub(super) struct StatusArgs {
    /// This server only [default: all]
    #[arg(long, env = "VSYNC_SERVER", value_name = "NAME")]
    server: Option<MachineName>,
}

/// What one server said.
struct Asked {
    name: MachineName,
    answer: Result<Answer, Failure>,
}

struct Answer {
    status: ServerStatus,
    /// Milliseconds that the server's clock is ahead.
    ahead: i64,
    /// The last snapshot of each declared volume, in the order of the declarations.
    last: Vec<Option<Listed>>,
    sizes: Vec<Option<u64>>,
}

/// A volume that the configuration says a machine backs up.
struct Declared {
    volume: VolumeName,
    source: MachineName,
}

impl StatusArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let config = load_config(global)?;
        let servers = match &self.server {
            Some(name) => vec![config.server(Some(name))?.machine.name.clone()],
            None => config.servers.iter().map(|server| server.machine.name.clone()).collect(),
        };
        let context = Context::load(global)?;
        let own = context.bundle.reader(context.bundle.epoch).is_none().then(|| context.bundle.machine.clone());
        // A machine that may only write is told of its own backups alone.
        let declared: Vec<Declared> = context
            .config
            .machines()
            .filter(|machine| own.as_ref().is_none_or(|own| *own == machine.name))
            .flat_map(|machine| {
                machine.backup.iter().map(|volume| Declared { volume: volume.clone(), source: machine.name.clone() })
            })
            .collect();
        let asked: Vec<Asked> =
            servers.into_iter().map(|name| Asked { answer: ask(global, &name, &declared), name }).collect();
        if global.json {
            output::json(&json!({
                "servers": asked.iter().map(server_json).collect::<Vec<_>>(),
                "volumes": declared.iter().enumerate().map(|(at, it)| volume_json(&asked, at, it)).collect::<Vec<_>>(),
            }))?;
        } else {
            asked.iter().try_for_each(print_server)?;
            print_volumes(&asked, &declared)?;
        }
        Ok(exit_of(&asked))
    }
}

fn exit_of(asked: &[Asked]) -> Exit {
    let read_only = asked.iter().flat_map(|asked| &asked.answer).any(|answer| answer.status.read_only.is_some());
    match asked.iter().find_map(|asked| asked.answer.as_ref().err()) {
        Some(failure) => failure.code,
        None if read_only => Exit::Defects,
        None => Exit::Exact,
    }
}

fn ask(global: &GlobalArgs, name: &MachineName, declared: &[Declared]) -> Result<Answer, Failure> {
    let session = Session::open(global, Some(name))?;
    let status = session.remote.status()?;
    let ahead = status.now - Timestamp::now().as_millisecond();
    let mut last = Vec::new();
    for Declared { volume, source } in declared {
        let listing =
            Listing { volume: Some(volume.clone()), source: Some(source.clone()), limit: 1, ..Listing::default() };
        last.push(session.list(&listing, |_| true)?.pop());
    }
    // Sizes are for readers only.
    let size = |listed: &Listed| session.open_snapshot(listed).ok().map(|snapshot| snapshot.sealed.bytes);
    let sizes = last.iter().map(|listed| listed.as_ref().and_then(size)).collect();
    Ok(Answer { status, ahead, last, sizes })
}

/// The newest snapshot of a declared volume on any server: where, what, how large.
fn newest(asked: &[Asked], at: usize) -> Option<(&MachineName, &Listed, Option<u64>)> {
    asked
        .iter()
        .filter_map(|asked| {
            let answer = asked.answer.as_ref().ok()?;
            Some((&asked.name, answer.last.get(at)?.as_ref()?, answer.sizes.get(at).copied().flatten()))
        })
        .max_by_key(|(_, listed, _)| listed.record.received)
}

fn age(listed: &Listed) -> Duration {
    let millis = Timestamp::now().as_millisecond() - listed.body.started;
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

fn server_json(asked: &Asked) -> Value {
    match &asked.answer {
        Ok(Answer { status, ahead, .. }) => json!({
            "name": asked.name.as_str(),
            "reachable": true,
            "version": status.version,
            "clock_ahead": *ahead as f64 / 1000.0,
            "snapshots_count": status.snapshots,
            "total_size": status.bytes,
            "free": status.free,
            "read_only": status.read_only,
            "warnings": status.warnings,
        }),
        Err(failure) => json!({"name": asked.name.as_str(), "reachable": false, "error": failure.heading}),
    }
}

fn volume_json(asked: &[Asked], at: usize, declared: &Declared) -> Value {
    let mut row = json!({"volume": declared.volume.as_str(), "hostname": declared.source.as_str(), "snapshot": null});
    if let Some((server, listed, size)) = newest(asked, at) {
        row["server"] = server.as_str().into();
        row["snapshot"] = listed.record.id.to_string().into();
        row["time"] = timestamp(listed.body.started).to_string().into();
        row["age"] = age(listed).as_secs().into();
        row["total_size"] = size.into();
        row["partial"] = (listed.body.kind == SnapshotKind::Partial).into();
    }
    row
}

fn print_server(asked: &Asked) -> Result<(), Failure> {
    let colour = Colour::stdout();
    let (name, answer) = (&asked.name, &asked.answer);
    let Answer { status, ahead, .. } = match answer {
        Ok(answer) => answer,
        Err(failure) => return output::line(format_args!("{} {name}: {failure}", colour.red("✗"))),
    };
    output::line(format_args!(
        "{} {name}: version {}, {} in {} snapshots, {} free, clock {}",
        if status.read_only.is_none() { colour.green("✓") } else { colour.red("✗") },
        status.version,
        output::size(status.bytes),
        status.snapshots,
        output::size(status.free),
        clock(*ahead),
    ))?;
    if let Some(reason) = &status.read_only {
        output::line(format_args!("  {}", colour.red(&format!("takes no backups: {reason}"))))?;
    }
    status.warnings.iter().try_for_each(|warning| output::line(format_args!("  {}", colour.red(warning))))
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

fn print_volumes(asked: &[Asked], declared: &[Declared]) -> Result<(), Failure> {
    let now = Zoned::now();
    let mut table = Table::new([
        ("VOLUME", Align::Left),
        ("SOURCE", Align::Left),
        ("SERVER", Align::Left),
        ("LAST", Align::Left),
        ("TIME", Align::Left),
        ("AGE", Align::Right),
        ("SIZE", Align::Right),
        ("NOTES", Align::Left),
    ]);
    let mut never = Vec::new();
    for (at, Declared { volume, source }) in declared.iter().enumerate() {
        let Some((server, listed, size)) = newest(asked, at) else {
            let dash = || "-".to_owned();
            let note = if asked.iter().all(|asked| asked.answer.is_ok()) { "NEVER BACKED UP" } else { "unknown" };
            table.row([volume.to_string(), source.to_string(), dash(), dash(), dash(), dash(), dash(), note.into()]);
            never.push(format!("{volume} of {source}"));
            continue;
        };
        table.row([
            volume.to_string(),
            source.to_string(),
            server.to_string(),
            short(listed.record.id),
            time::format(timestamp(listed.body.started), &now),
            output::duration(age(listed)),
            size.map_or_else(|| "-".to_owned(), output::size),
            if listed.body.kind == SnapshotKind::Partial { "partial".to_owned() } else { String::new() },
        ]);
    }
    output::line(table)?;
    if !never.is_empty() && asked.iter().all(|asked| asked.answer.is_ok()) {
        eprintln!("{}", Colour::stderr().red(&format!("never backed up: {}", never.join(", "))));
    }
    Ok(())
}
