//! The command line: one file for each command, which holds its options, its help, and `run`.
//!
//! Commands parse, call the rooms below, and print. What can go wrong ends in [`report`].

// `eprintln!` panics when stderr is full or gone; `output::say` goes on.
#![warn(clippy::print_stderr, clippy::print_stdout)]

mod against;
mod around;
mod backup;
mod check;
mod completions;
mod config;
mod configure;
mod connection;
mod context;
mod diff;
mod due;
mod dump;
mod entries;
mod export;
mod find;
mod forget;
mod from;
mod ground;
mod helper;
mod import;
mod import_privateer;
mod init;
mod job;
mod key;
mod keygen;
mod load;
mod ls;
mod man;
mod missing;
mod moved_in;
mod output;
mod pin;
mod progress;
mod quickstart;
mod quiesce;
mod recovery;
mod release;
mod report;
mod restore;
mod schedule;
mod server;
mod service;
mod session;
mod signal;
mod snapshots;
mod spec;
mod stats;
mod status;
mod summary;
#[cfg(test)]
mod tests;
mod time;
mod unhold;
mod verify;
mod volumes;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use vsync_protocol::id::MachineName;

use self::report::{Exit, Failure};
use crate::remote::Patience;

/// Encrypted, deduplicating backup of Docker volumes
#[derive(Debug, Parser)]
#[command(name = "vsync", version, propagate_version = true, max_term_width = 100, after_help = EXIT_CODES)]
pub(crate) struct Args {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
   0  everything exact                 14  the server's history was rolled back
   1  failed, nothing committed        20  a hook failed
   2  usage or configuration           21  no space, or quota used up
   3  done, with listed defects        22  a container could not be restarted
  10  server unreachable              130  interrupted
  11  no such volume or snapshot
  12  not authorised, or wrong key
  13  damage found";

/// Options that every command has.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Options of all commands")]
pub(crate) struct GlobalArgs {
    /// The configuration [default: ./vsync.toml, else /etc/vsync/vsync.toml]
    #[arg(long, global = true, env = "VSYNC_CONFIG", value_name = "PATH")]
    pub(crate) config: Option<PathBuf>,

    /// The machine to act as [default: as `vsync configure` said]
    #[arg(long = "as", global = true, env = "VSYNC_AS", value_name = "NAME")]
    pub(crate) machine: Option<MachineName>,

    /// Print results as JSON on stdout, and errors as JSON on stderr
    #[arg(long, global = true, env = "VSYNC_JSON", value_parser = BoolishValueParser::new())]
    pub(crate) json: bool,

    /// The directory with the private keys [default: as vsync.toml says]
    #[arg(long, global = true, env = "VSYNC_KEYS", value_name = "DIR")]
    pub(crate) keys: Option<PathBuf>,

    /// Say more on stderr; twice for still more
    #[arg(short, long, global = true, env = "VSYNC_VERBOSE", action = clap::ArgAction::Count, conflicts_with = "quiet")]
    pub(crate) verbose: u8,

    /// Print nothing but errors
    #[arg(short, long, global = true, env = "VSYNC_QUIET", value_parser = BoolishValueParser::new())]
    pub(crate) quiet: bool,

    /// Show no progress, even on a terminal
    #[arg(long, global = true, env = "VSYNC_NO_PROGRESS", value_parser = BoolishValueParser::new())]
    pub(crate) no_progress: bool,

    /// Where caches and journals are [default: /var/lib/vsync, or below ~/.local/state]
    #[arg(long, global = true, env = "VSYNC_STATE_DIR", value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,

    /// How many seconds a server may stay away, or silent, before the work is given up; ten
    /// times as many where it has much to do [default: 180]
    #[arg(long, global = true, env = "VSYNC_PATIENCE", value_name = "SECONDS", hide_short_help = true)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) patience: Option<u64>,

    #[command(flatten)]
    pub(crate) recovery: recovery::RecoveryArgs,
}

impl GlobalArgs {
    /// How long a server may stay away or silent.
    pub(crate) fn patience(&self) -> Patience {
        self.patience.map_or_else(Patience::default, |seconds| Patience::new(Duration::from_secs(seconds)))
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    Quickstart(quickstart::QuickstartArgs),
    Init(init::InitArgs),
    #[command(subcommand)]
    Config(config::ConfigCommand),
    Keygen(keygen::KeygenArgs),
    Configure(configure::ConfigureArgs),
    Check(check::CheckArgs),
    #[command(subcommand)]
    Key(key::KeyCommand),
    Backup(backup::BackupArgs),
    Restore(restore::RestoreArgs),
    Snapshots(snapshots::SnapshotsArgs),
    Ls(ls::LsArgs),
    Find(find::FindArgs),
    Diff(diff::DiffArgs),
    Dump(dump::DumpArgs),
    Export(export::ExportArgs),
    Import(import::ImportArgs),
    ImportPrivateer(import_privateer::ImportPrivateerArgs),
    Stats(stats::StatsArgs),
    Status(status::StatusArgs),
    Verify(verify::VerifyArgs),
    Unhold(unhold::UnholdArgs),
    Forget(forget::ForgetArgs),
    Pin(pin::PinArgs),
    Unpin(pin::UnpinArgs),
    Undelete(pin::UndeleteArgs),
    Release(release::ReleaseArgs),
    #[command(subcommand)]
    Schedule(schedule::ScheduleCommand),
    #[command(subcommand)]
    Server(server::ServerCommand),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
}

/// Runs the command that the process was started with, and reports.
#[must_use]
pub fn main() -> std::process::ExitCode {
    let args = match parse(std::env::args_os()) {
        Ok(args) => args,
        Err(error) => return usage(&error).into(),
    };
    let json = args.global.json;
    log_to_stderr(&args.global);
    args.run()
        .unwrap_or_else(|failure| {
            failure.print(json);
            failure.code
        })
        .into()
}

/// The whole command line, as it is parsed, shown and documented.
pub(super) fn command() -> clap::Command {
    with_variables(Args::command())
}

/// Gives every option a variable: its name in capitals after `VSYNC_`, unless it has one already. Done here for all,
/// so that none is forgotten.
fn with_variables(command: clap::Command) -> clap::Command {
    command.mut_args(with_variable).mut_subcommands(with_variables)
}

fn with_variable(argument: clap::Arg) -> clap::Arg {
    let name = match argument.get_long() {
        Some(long) if argument.get_env().is_none() && !matches!(long, "help" | "version") => long,
        _ => return argument,
    };
    let variable = format!("VSYNC_{}", name.replace('-', "_").to_uppercase());
    let argument = argument.env(variable);
    match argument.get_action() {
        // `1` and `yes` are as good as `true`.
        clap::ArgAction::SetTrue => argument.value_parser(BoolishValueParser::new()),
        _ => argument,
    }
}

fn parse(words: impl IntoIterator<Item: Into<OsString> + Clone>) -> Result<Args, clap::Error> {
    Args::from_arg_matches(&command().try_get_matches_from(words)?)
}

impl Args {
    fn run(self) -> Result<Exit, Failure> {
        let global = &self.global;
        match self.command {
            Command::Quickstart(args) => args.run(global),
            Command::Init(args) => args.run(global),
            Command::Config(command) => command.run(global),
            Command::Keygen(args) => args.run(global),
            Command::Configure(args) => args.run(global),
            Command::Check(args) => args.run(global),
            Command::Key(command) => command.run(global),
            Command::Backup(args) => args.run(global),
            Command::Restore(args) => args.run(global),
            Command::Snapshots(args) => args.run(global),
            Command::Ls(args) => args.run(global),
            Command::Find(args) => args.run(global),
            Command::Diff(args) => args.run(global),
            Command::Dump(args) => args.run(global),
            Command::Export(args) => args.run(global),
            Command::Import(args) => args.run(global),
            Command::ImportPrivateer(args) => args.run(global),
            Command::Stats(args) => args.run(global),
            Command::Status(args) => args.run(global),
            Command::Verify(args) => args.run(global),
            Command::Unhold(args) => args.run(global),
            Command::Forget(args) => args.run(global),
            Command::Pin(args) => args.run(global),
            Command::Unpin(args) => args.run(global),
            Command::Undelete(args) => args.run(global),
            Command::Release(args) => args.run(global),
            Command::Schedule(command) => command.run(global),
            Command::Server(command) => command.run(global),
            Command::Completions(args) => args.run(),
            Command::Man(args) => args.run(),
        }
    }
}

/// Help and version go to stdout and are no failure; clap knows the difference.
fn usage(error: &clap::Error) -> Exit {
    let exit = if error.use_stderr() { Exit::Usage } else { Exit::Exact };
    // Nothing was parsed, so the option has to be looked for.
    let asked = |value: OsString| {
        let no = ["", "n", "no", "f", "false", "off", "0"];
        !value.to_str().is_some_and(|value| no.contains(&value.to_lowercase().as_str()))
    };
    let json = std::env::args_os().any(|arg| arg == "--json") || std::env::var_os("VSYNC_JSON").is_some_and(asked);
    if json && exit == Exit::Usage {
        Failure::new(exit, error.to_string().trim_end().trim_start_matches("error: ")).print(true);
    } else {
        // If even that cannot be printed, there is nobody to tell.
        let _ = error.print();
    }
    exit
}

fn log_to_stderr(args: &GlobalArgs) {
    let level = match (args.quiet, args.verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, _) => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("VSYNC_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    let ansi = output::Colour::stderr() == output::Colour::On;
    // A second subscriber in one process, as in tests, is no reason to stop.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(std::io::stderr).try_init();
}
