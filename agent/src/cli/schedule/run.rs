//! `vsync schedule run`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use serde_json::json;
use vsync_protocol::id::VolumeName;

use super::super::GlobalArgs;
use super::super::context::{Context, load_config};
use super::super::output;
use super::super::quiesce;
use super::super::report::{Exit, Failure};
use super::super::signal::Stop;
use super::task::{Ended, Task, verdict};
use super::{moment, name_of, own_machine, runner_path, state_path};
use crate::config::Schedule;
use crate::schedule::{Attempt, Lock, LockError, Retries, State, Verdict};

/// How often the clock and the configuration are looked at: a machine may have slept, or its clock have been set.
const LOOK: Duration = Duration::from_secs(5);

/// Run the schedule of this machine in the foreground, until SIGTERM
///
/// Each entry of `schedule` in vsync.toml is backed up when it is due, in a process of its own:
/// one at a time for each volume, a few altogether. A backup that was missed while the machine
/// was off is made up for once. What fails because of the server, the network or the disk is
/// tried again after a minute, and after five more. A changed vsync.toml is taken up by itself.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vsync schedule run
  vsync schedule run --as production2 --jobs 1
  vsync schedule run --tries 5 --retry-after 30s")]
pub(in super::super) struct RunArgs {
    #[command(flatten)]
    how: How,
}

/// How a schedule is worked off.
#[derive(Debug, clap::Args)]
pub(in super::super) struct How {
    /// Backups at the same time, of different volumes
    #[arg(long, env = "VSYNC_JOBS", value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: u16,

    /// How often a backup is tried before it waits for its next time
    #[arg(long, env = "VSYNC_TRIES", value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    tries: u32,

    /// How long after a failure it is tried again; five times as long each time
    #[arg(long, env = "VSYNC_RETRY_AFTER", value_name = "TIME", default_value = "1m", value_parser = duration)]
    retry_after: Duration,
}

impl How {
    /// The same as words on a command line.
    pub(super) fn words(&self) -> Vec<String> {
        let (jobs, tries, after) = (self.jobs, self.tries, self.retry_after.as_secs());
        vec![format!("--jobs={jobs}"), format!("--tries={tries}"), format!("--retry-after={after}s")]
    }
}

/// Reads `30s`, `5m`, `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration = text.parse().map_err(|_| "write a duration such as 30s, 5m or 1h".to_owned())?;
    Duration::try_from(span).map_err(|_| "a duration cannot be negative".to_owned())
}

impl RunArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let context = Context::load(global)?;
        let _only = only_one(&context)?;
        quiesce::tidy_first(global);
        let (sender, events) = mpsc::channel();
        let stop = Stop::install()?;
        let told = sender.clone();
        thread::Builder::new()
            .name("stop".into())
            .spawn(move || {
                stop.wait();
                drop(told.send(Event::Stop));
            })
            .map_err(|error| Failure::of(&error, Exit::Failed))?;
        Runner::new(&self.how, global, context, sender)?.run(&events)
    }
}

fn only_one(context: &Context) -> Result<Lock, Failure> {
    Lock::take(&runner_path(context)).map_err(|error| match error {
        LockError::Held { ref holder, .. } => {
            let heading = format!("the schedule of {} is run by {holder} already", context.bundle.machine);
            Failure::new(Exit::Failed, heading).hint("`vsync schedule status` tells about it".to_owned())
        }
        LockError::Io { .. } => error.into(),
    })
}

enum Event {
    Stop,
    Ended(Box<Ended>),
}

/// Modification times of vsync.toml and vsync.pub.
type Stamp = [Option<SystemTime>; 2];

struct Runner<'a> {
    how: &'a How,
    global: &'a GlobalArgs,
    context: Context,
    seen: Stamp,
    schedule: Vec<Schedule>,
    state: State,
    state_path: PathBuf,
    running: BTreeMap<VolumeName, Task>,
    /// What backups said besides, the last time, by the names of their entries.
    remarks: BTreeMap<String, Vec<String>>,
    /// Volumes that a backup begun elsewhere keeps from being due; told once.
    waiting: Vec<VolumeName>,
    events: Sender<Event>,
    stopping: bool,
}

impl<'a> Runner<'a> {
    fn new(how: &'a How, global: &'a GlobalArgs, context: Context, events: Sender<Event>) -> Result<Self, Failure> {
        let state_path = state_path(&context);
        let mut runner = Self {
            seen: stamp(&context),
            schedule: own_machine(&context)?.schedule.clone(),
            state: State::load(&state_path)?,
            how,
            global,
            context,
            state_path,
            running: BTreeMap::new(),
            remarks: BTreeMap::new(),
            waiting: Vec::new(),
            events,
            stopping: false,
        };
        runner.take_up()?;
        Ok(runner)
    }

    fn run(mut self, events: &Receiver<Event>) -> Result<Exit, Failure> {
        while !(self.stopping && self.running.is_empty()) {
            let wait = if self.stopping { LOOK } else { self.begin_what_is_due()? };
            match events.recv_timeout(wait) {
                Ok(Event::Stop) => self.stop(),
                Ok(Event::Ended(ended)) => self.ended(*ended)?,
                Err(RecvTimeoutError::Timeout) if self.stopping => {}
                Err(RecvTimeoutError::Timeout) => self.look_at_configuration()?,
                Err(RecvTimeoutError::Disconnected) => return Err(Failure::new(Exit::Failed, "nobody tells any more")),
            }
        }
        self.log("stopped");
        Ok(Exit::Exact)
    }

    /// Begins with the schedule as it is now, and says what is next.
    fn take_up(&mut self) -> Result<(), Failure> {
        self.state.adopt(&self.schedule, Timestamp::now());
        self.state.save(&self.state_path)?;
        let due = |entry: &Schedule| self.state.due(entry);
        let next = self.schedule.iter().filter_map(|entry| Some((due(entry)?, entry))).min_by_key(|(due, _)| *due);
        let next = match next {
            Some((due, entry)) => format!("next is {} at {}", name_of(entry), moment(due)),
            None => format!("nothing is scheduled in {}; it is looked at again", self.context.config.path.display()),
        };
        let entries = match self.schedule.len() {
            1 => "1 entry".to_owned(),
            many => format!("{many} entries"),
        };
        self.log(&format!("schedule of {}: {entries}, {next}", self.context.bundle.machine));
        Ok(())
    }

    /// Returns how long there is nothing to begin.
    fn begin_what_is_due(&mut self) -> Result<Duration, Failure> {
        let now = Timestamp::now();
        let due = self.state.agenda(&self.schedule, now);
        for (_, entry) in due.iter().filter(|(at, _)| *at <= now) {
            if self.running.len() < usize::from(self.how.jobs) && self.is_free(&entry.volume)? {
                self.begin(entry)?;
            }
        }
        let next = due.iter().map(|(at, _)| at.duration_since(now)).find(|wait| wait.is_positive());
        Ok(next.and_then(|wait| Duration::try_from(wait).ok()).map_or(LOOK, |wait| wait.min(LOOK)))
    }

    /// Whether no backup of the volume runs, neither ours nor another's.
    fn is_free(&mut self, volume: &VolumeName) -> Result<bool, Failure> {
        if self.running.contains_key(volume) {
            return Ok(false);
        }
        let Some(holder) = Lock::holder(&self.context.volume_lock(volume))? else {
            self.waiting.retain(|waiting| waiting != volume);
            return Ok(true);
        };
        if !self.waiting.contains(volume) {
            self.log(&format!("{volume}: waits for the backup that {holder} is making"));
            self.waiting.push(volume.clone());
        }
        Ok(false)
    }

    fn begin(&mut self, entry: &Schedule) -> Result<(), Failure> {
        let events = self.events.clone();
        let ended = move |ended| drop(events.send(Event::Ended(Box::new(ended))));
        match Task::start(self.global, &self.context, entry, ended) {
            Ok(task) => {
                self.log(&format!("{}: begins", name_of(entry)));
                self.running.insert(entry.volume.clone(), task);
                Ok(())
            }
            Err(failure) => {
                let now = Timestamp::now();
                let outcome = format!("it could not be begun: {}", failure.heading);
                let attempt = Attempt { started: now, ended: now, code: failure.code as u8, outcome, snapshot: None };
                self.note(entry, attempt)
            }
        }
    }

    fn ended(&mut self, Ended { entry, attempt, remarks }: Ended) -> Result<(), Failure> {
        self.running.remove(&entry.volume);
        let name = name_of(&entry);
        let remarks: Vec<String> = remarks.iter().map(|remark| without_time(remark).to_owned()).collect();
        // The same every night is no news.
        if self.remarks.get(&name) != Some(&remarks) {
            remarks.iter().for_each(|remark| self.log(&format!("{name}: {remark}")));
            self.remarks.insert(name, remarks);
        }
        self.note(&entry, attempt)
    }

    fn note(&mut self, entry: &Schedule, attempt: Attempt) -> Result<(), Failure> {
        let verdict = verdict(&attempt, self.stopping);
        let retries = Retries { tries: self.how.tries, first: self.how.retry_after };
        self.state.note(entry, attempt.clone(), verdict, retries);
        // An entry that was removed meanwhile was noted for this line only.
        let then = match (self.state.of(entry).and_then(|entry| entry.again()), self.state.due(entry)) {
            (Some(again), _) => format!("; again at {}", moment(again)),
            (None, Some(due)) => format!("; next at {}", moment(due)),
            (None, None) => String::new(),
        };
        let done = match verdict {
            Verdict::Done if Exit::from_code(attempt.code).is_some_and(Exit::is_done) => "done",
            Verdict::Done => "done, but something around it FAILED",
            Verdict::CalledOff => "called off",
            Verdict::Again | Verdict::Hopeless => "FAILED",
        };
        let Attempt { started, ended, code, outcome, snapshot } = attempt;
        let took = Duration::try_from(ended.duration_since(started)).unwrap_or_default();
        let (name, took) = (name_of(entry), output::duration(took));
        self.log(&format!("{name}: {done} (exit code {code}) after {took}: {outcome}{then}"));
        if self.global.json {
            output::json(&json!({
                "message_type": "run", "volume": entry.volume.as_str(), "server": entry.server.as_str(),
                "started": started.to_string(), "ended": ended.to_string(), "exit_code": code, "outcome": outcome,
                "snapshot_id": snapshot,
            }))?;
        }
        self.state.adopt(&self.schedule, Timestamp::now());
        Ok(self.state.save(&self.state_path)?)
    }

    fn stop(&mut self) {
        self.stopping = true;
        self.log(&format!("stopping: {} running backups are called off", self.running.len()));
        self.running.values().for_each(Task::interrupt);
    }

    /// Takes a configuration up that has changed; one that is wrong changes nothing.
    fn look_at_configuration(&mut self) -> Result<(), Failure> {
        let stamp = stamp(&self.context);
        if stamp == self.seen {
            return Ok(());
        }
        self.seen = stamp;
        // The file and the machine that were found at the start, whatever the directory is now.
        let mut global = self.global.clone();
        global.config = Some(self.context.config.path.clone());
        global.machine = Some(self.context.bundle.machine.clone());
        let loaded = load_config(&global).map_err(Failure::from);
        let machine = &self.context.bundle.machine;
        match loaded.and_then(|config| Ok((config.machine(machine)?.schedule.clone(), config))) {
            Ok((schedule, config)) => {
                self.context.config = config;
                self.schedule = schedule;
                self.take_up()
            }
            Err(failure) => {
                self.log(&format!("vsync.toml was changed and is wrong; the schedule stays as it was: {failure}"));
                Ok(())
            }
        }
    }

    fn log(&self, text: &str) {
        if !self.global.quiet || text.contains("FAILED") {
            output::say(format_args!("{} {}", moment(Timestamp::now()), text.replace('\n', " ")));
        }
    }
}

/// A line of a log without the time at its beginning: ours has one already.
fn without_time(line: &str) -> &str {
    match line.split_once(' ') {
        Some((time, rest)) if time.parse::<Timestamp>().is_ok() => rest.trim_start(),
        _ => line,
    }
}

fn stamp(context: &Context) -> Stamp {
    let modified = |path: &std::path::Path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    [modified(&context.config.path), modified(&context.config.registry_path())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_lose_their_time_and_nothing_else() {
        assert_eq!(without_time("2026-11-20T08:28:00.032822Z  WARN slow disk"), "WARN slow disk");
        assert_eq!(without_time("stopping; once more"), "stopping; once more");
        assert_eq!(without_time("word"), "word");
    }

    #[test]
    fn durations_are_read() {
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert!(duration("-1m").is_err() && duration("soon").is_err());
    }
}
