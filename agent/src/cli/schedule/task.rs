//! One scheduled backup: a `vsync backup` of its own.
//!
//! A process for each backup, and not a thread: what it leaks, breaks or is killed for ends with it; it gives its
//! memory back; and a signal does to it exactly what it does to a backup that a person began.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;

use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::super::GlobalArgs;
use super::super::context::Context;
use super::super::output;
use super::super::report::{Exit, Failure};
use crate::config::Schedule;
use crate::schedule::{Attempt, Verdict};

/// A backup that runs.
pub(super) struct Task {
    pid: Option<Pid>,
}

/// How a backup ended.
pub(super) struct Ended {
    pub(super) entry: Schedule,
    pub(super) attempt: Attempt,
    /// What it said besides; for the log.
    pub(super) remarks: Vec<String>,
}

impl Task {
    /// Begins a backup; `ended` is called at its end.
    pub(super) fn start(
        global: &GlobalArgs,
        context: &Context,
        entry: &Schedule,
        ended: impl FnOnce(Ended) + Send + 'static,
    ) -> Result<Self, Failure> {
        let started = Timestamp::now();
        let mut child = command(global, context, entry).spawn().map_err(|error| Failure::of(&error, Exit::Failed))?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let entry = entry.clone();
        let wait = move || {
            let (attempt, remarks) = wait(&mut child, started);
            ended(Ended { entry, attempt, remarks });
        };
        thread::Builder::new()
            .name("scheduled".into())
            .spawn(wait)
            .map_err(|error| Failure::of(&error, Exit::Failed))?;
        Ok(Self { pid })
    }

    /// Asks it to end, as Ctrl-C would: it undoes what it did to containers, and what it sent is kept.
    pub(super) fn interrupt(&self) {
        if let Some(pid) = self.pid {
            // It may have ended by itself just now.
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

fn command(global: &GlobalArgs, context: &Context, entry: &Schedule) -> Command {
    // The very program that runs, even if the file was replaced by a newer one.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("vsync").args(["backup", entry.volume.as_str(), "--server", entry.server.as_str()]);
    // Only the outcome is read.
    command.args(["--json", "--no-progress"]);
    command.arg("--config").arg(&context.config.path);
    command.args(["--as", context.bundle.machine.as_str()]).arg("--state-dir").arg(&context.state_dir);
    if let Some(keys) = &global.keys {
        command.arg("--keys").arg(keys);
    }
    // What was said to us on these is not for each backup; and a terminal's Ctrl-C is ours to pass on.
    for name in ["VSYNC_QUIET", "VSYNC_VERBOSE", "VSYNC_TAG", "VSYNC_DRY_RUN"] {
        command.env_remove(name);
    }
    if let Some(seconds) = global.patience {
        command.arg("--patience").arg(seconds.to_string());
    }
    (0..global.verbose).for_each(|_| {
        command.arg("-v");
    });
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn wait(child: &mut Child, started: Timestamp) -> (Attempt, Vec<String>) {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    // Both are read at once: a pipe that is full would stop the backup.
    let errors = thread::spawn(move || stderr.map_or_else(Vec::new, lines));
    let results = stdout.map_or_else(Vec::new, lines);
    let errors = errors.join().unwrap_or_default();
    let status = child.wait();
    let mut report = Heard::default();
    results.iter().chain(&errors).for_each(|line| report.read(line));
    let (code, outcome) = report.outcome(status);
    let attempt = Attempt { started, ended: Timestamp::now(), code, outcome, snapshot: report.made().cloned() };
    (attempt, report.remarks)
}

/// Lines of no more than a sensible length.
fn lines(stream: impl Read) -> Vec<String> {
    const LONGEST: u64 = 1 << 20;
    let mut lines = Vec::new();
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        match reader.by_ref().take(LONGEST).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return lines,
            Ok(_) => lines.push(String::from_utf8_lossy(&line).trim_end().to_owned()),
        }
    }
}

/// What `vsync backup --json` said.
#[derive(Default)]
struct Heard {
    summary: Option<String>,
    snapshot: Option<String>,
    error: Option<String>,
    remarks: Vec<String>,
}

impl Heard {
    fn read(&mut self, line: &str) {
        let value: Value = serde_json::from_str(line).unwrap_or_default();
        match value["message_type"].as_str() {
            Some("summary") => {
                self.snapshot = value["snapshot_id"].as_str().map(str::to_owned);
                self.summary = Some(summary(&value));
            }
            Some("exit_error") => self.error = value["message"].as_str().map(str::to_owned),
            Some(_) => {}
            None if line.is_empty() => {}
            None => self.remarks.push(line.to_owned()),
        }
    }

    /// The snapshot that was made, whatever went wrong around it. One that is only spoken of in an error was not.
    fn made(&self) -> Option<&String> {
        self.snapshot.as_ref().filter(|_| self.error.is_none())
    }

    fn outcome(&self, status: std::io::Result<ExitStatus>) -> (u8, String) {
        let failed = Exit::Failed as u8;
        let status = match status {
            Ok(status) => status,
            Err(error) => return (failed, format!("it was lost: {error}")),
        };
        // It was asked to stop before it could listen for that, and so before it had done anything.
        let asked = [Signal::TERM, Signal::INT].map(|signal| Some(signal.as_raw()));
        if asked.contains(&status.signal()) {
            return (Exit::Interrupted as u8, "interrupted".to_owned());
        }
        let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(failed);
        let words = match (Exit::from_code(code), &self.summary, &self.error) {
            (Some(Exit::Exact | Exit::Defects), Some(summary), _) => summary.clone(),
            (Some(Exit::Hook), Some(summary), None) => format!("{summary}; a command around it failed"),
            (Some(Exit::Container), Some(summary), None) => format!("{summary}; a container is not back"),
            (Some(Exit::Interrupted), _, _) => "interrupted".to_owned(),
            (_, _, Some(error)) => error.clone(),
            _ => format!("it ended with {status}, and did not say why"),
        };
        (code, words)
    }
}

fn summary(value: &Value) -> String {
    let size = |key: &str| output::size(value[key].as_u64().unwrap_or(0));
    let id = value["snapshot_id"].as_str().unwrap_or("?");
    let defects = match value["defect_count"].as_u64() {
        Some(0) | None => String::new(),
        Some(count) => format!(", {count} not exact"),
    };
    format!(
        "snapshot {} of {}, {} read, {} sent{defects}",
        id.get(..8).unwrap_or(id),
        size("total_bytes_processed"),
        size("bytes_read"),
        size("data_added_packed"),
    )
}

/// What follows from how a backup ended.
pub(super) fn verdict(attempt: &Attempt, stopping: bool) -> Verdict {
    match Exit::from_code(attempt.code) {
        // What went wrong around it does not get right by another one that holds the applications again.
        _ if attempt.snapshot.is_some() => Verdict::Done,
        Some(Exit::Exact | Exit::Defects) => Verdict::Done,
        Some(Exit::Interrupted) if stopping => Verdict::CalledOff,
        // What the configuration, the keys or the server's history forbid now, they forbid in a minute. And a
        // container that stayed down needs a person, not another backup that holds it.
        Some(Exit::Usage | Exit::NotFound | Exit::NotAuthorised | Exit::RolledBack | Exit::Container) => {
            Verdict::Hopeless
        }
        // A process that was killed has a code that is not ours.
        None
        | Some(Exit::Failed | Exit::Unreachable | Exit::Damage | Exit::Hook | Exit::NoSpace | Exit::Interrupted) => {
            Verdict::Again
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(lines: &[&str], code: i32) -> (u8, String) {
        let mut report = Heard::default();
        lines.iter().for_each(|line| report.read(line));
        report.outcome(Ok(ExitStatus::from_raw(code << 8)))
    }

    #[test]
    fn the_outcome_is_in_the_words_of_the_backup() {
        let summary = r#"{"message_type":"summary","snapshot_id":"0123456789abcdef0123456789abcdef",
            "total_bytes_processed":2048,"bytes_read":1024,"data_added_packed":10,"defect_count":2}"#
            .replace('\n', "");
        let words = "snapshot 01234567 of 2.00 KiB, 1.00 KiB read, 10 B sent, 2 not exact";
        assert_eq!(outcome(&["warning", &summary], 3), (3, words.to_owned()));
        let error = r#"{"message_type":"exit_error","code":10,"message":"annex2 does not answer","hint":null}"#;
        assert_eq!(outcome(&[error], 10), (10, "annex2 does not answer".to_owned()));
        assert_eq!(outcome(&[error], 130), (130, "interrupted".to_owned()));
        let (code, words) = outcome(&[], 101);
        assert_eq!((code, words.as_str()), (101, "it ended with exit status: 101, and did not say why"));
        let killed = |signal| Heard::default().outcome(Ok(ExitStatus::from_raw(signal)));
        assert_eq!(killed(15), (130, "interrupted".to_owned()));
        assert_eq!(killed(9), (1, "it ended with signal: 9 (SIGKILL), and did not say why".to_owned()));
    }

    #[test]
    fn a_snapshot_counts_whatever_went_wrong_around_it() {
        let summary = r#"{"message_type":"summary","snapshot_id":"0123456789abcdef0123456789abcdef"}"#;
        let error = r#"{"message_type":"exit_error","code":22,"message":"it moved","hint":null}"#;
        let words = |code, lines: &[&str]| outcome(lines, code).1;
        assert!(words(20, &[summary]).ends_with("; a command around it failed"));
        assert!(words(22, &[summary]).ends_with("; a container is not back"));
        assert_eq!(words(22, &[summary, error]), "it moved");
        let made = |lines: &[&str]| {
            let mut report = Heard::default();
            lines.iter().for_each(|line| report.read(line));
            report.made().is_some()
        };
        assert!(made(&[summary]) && !made(&[summary, error]) && !made(&[error]));
    }

    fn attempt(code: u8, snapshot: Option<&str>) -> Attempt {
        let now = Timestamp::now();
        Attempt { started: now, ended: now, code, outcome: String::new(), snapshot: snapshot.map(str::to_owned) }
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        for (code, expected) in [
            (0, Verdict::Done),
            (3, Verdict::Done),
            (1, Verdict::Again),
            (10, Verdict::Again),
            (21, Verdict::Again),
            (101, Verdict::Again),
            (2, Verdict::Hopeless),
            (11, Verdict::Hopeless),
            (12, Verdict::Hopeless),
            (14, Verdict::Hopeless),
            (22, Verdict::Hopeless),
            (130, Verdict::Again),
        ] {
            assert_eq!(verdict(&attempt(code, None), false), expected, "{code}");
        }
        assert_eq!(verdict(&attempt(130, None), true), Verdict::CalledOff);
        assert_eq!(verdict(&attempt(0, None), true), Verdict::Done);
        for code in [20, 22] {
            assert_eq!(verdict(&attempt(code, Some("0123")), false), Verdict::Done, "{code}");
        }
    }
}
