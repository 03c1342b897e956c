//! The thread that tells people.
//!
//! What was told, and what could not yet be delivered, outlives the process in `alerts.json` in the store: neither a
//! restart nor a mail server that is down for a night makes anybody hear things twice, or not at all.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::rules::blind;
use super::teller::Teller;
use super::{Message, Sink, alerts};
use crate::overview::Viewer;
use crate::upkeep::throttle::Stop;
use crate::words::report;

const FILE: &str = "alerts.json";

/// Messages kept for a sink that does not take them; beyond, the oldest are dropped.
const BACKLOG: usize = 100;

/// How long a sink that refused is left alone, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
const LONGEST_PAUSE: Duration = Duration::from_secs(30 * 60);

/// How people are told that something is wrong.
pub struct Notify {
    /// The server's name, for messages.
    pub server: String,
    /// Where messages go.
    pub sinks: Vec<Box<dyn Sink>>,
    /// How often to look.
    pub every: Duration,
    /// How often to say that all is well, to sinks that want to hear it.
    pub reassure_every: Duration,
}

/// The running thread.
pub(crate) struct Herald {
    stop: Stop,
    thread: JoinHandle<()>,
}

impl Herald {
    /// Starts it; with nobody to tell, there is nothing to start.
    pub(crate) fn start(notify: Notify, store: &Path, viewer: Arc<Viewer>) -> io::Result<Option<Self>> {
        if notify.sinks.is_empty() {
            return Ok(None);
        }
        let stop = Stop::default();
        let mut work = Work::new(notify, store.join(FILE), viewer, stop.clone());
        let thread = std::thread::Builder::new().name("vsync-alerts".to_owned()).spawn(move || work.run())?;
        Ok(Some(Self { stop, thread }))
    }

    /// Ends it; a message that is being delivered is waited for.
    pub(crate) fn end(self) {
        self.stop.stop();
        if self.thread.join().is_err() {
            tracing::error!("the thread that tells of alerts panicked");
        }
    }
}

/// What outlives the process.
#[derive(Default, PartialEq, Serialize, Deserialize)]
struct Kept {
    teller: Teller,
    /// What each sink has yet to be told, by the sink's name.
    waiting: Vec<(String, VecDeque<Message>)>,
}

struct Work {
    notify: Notify,
    file: PathBuf,
    viewer: Arc<Viewer>,
    stop: Stop,
    kept: Kept,
    /// When each sink may be tried again, and how long it is left alone if it refuses once more.
    pauses: Vec<(Option<Instant>, Duration)>,
    reassured: Option<Instant>,
}

impl Work {
    fn new(notify: Notify, file: PathBuf, viewer: Arc<Viewer>, stop: Stop) -> Self {
        let kept = read(&file).unwrap_or_else(|error| {
            tracing::warn!("{} cannot be read, so some alerts may be told twice: {error}", file.display());
            Kept::default()
        });
        let pauses = notify.sinks.iter().map(|_| (None, FIRST_PAUSE)).collect();
        let mut work = Self { notify, file, viewer, stop, kept, pauses, reassured: None };
        work.adopt();
        work
    }

    /// Lines the backlogs up with the sinks that there are now.
    fn adopt(&mut self) {
        let mut old = std::mem::take(&mut self.kept.waiting);
        self.kept.waiting = self
            .notify
            .sinks
            .iter()
            .map(|sink| {
                let found = old.iter().position(|(name, _)| name == sink.name());
                found.map_or_else(|| (sink.name().to_owned(), VecDeque::new()), |at| old.swap_remove(at))
            })
            .collect();
    }

    fn run(&mut self) {
        while self.stop.wait(self.notify.every).is_ok() {
            self.look();
            self.deliver();
            self.reassure();
        }
    }

    fn look(&mut self) {
        let (at, news) = match self.viewer.look(None) {
            Ok(view) => {
                let at = view.overview.server.now;
                (at, self.kept.teller.news(at, alerts(&view)))
            }
            // Who sees nothing must not say that all is well.
            Err(error) => {
                tracing::error!("cannot look for alerts: {}", report(&error));
                let at = self.viewer.archive.time().0.now;
                (at, self.kept.teller.blind(at, blind(&error.to_string())))
            }
        };
        if news.is_empty() {
            return;
        }
        let message = Message { server: self.notify.server.clone(), at, news };
        for (name, waiting) in &mut self.kept.waiting {
            if waiting.len() == BACKLOG {
                tracing::error!("{name} has taken no message for long: the oldest one is dropped");
                waiting.pop_front();
            }
            waiting.push_back(message.clone());
        }
        // Kept before it is delivered: what is told twice is a nuisance, what is not told at all a danger.
        self.keep();
    }

    fn deliver(&mut self) {
        let now = Instant::now();
        let sinks = self.notify.sinks.iter_mut().zip(&mut self.pauses).zip(&mut self.kept.waiting);
        let mut delivered = false;
        for ((sink, (until, pause)), (_, waiting)) in sinks {
            if until.is_some_and(|until| now < until) {
                continue;
            }
            while let Some(message) = waiting.front() {
                match sink.tell(message) {
                    Ok(()) => {
                        waiting.pop_front();
                        delivered = true;
                        (*until, *pause) = (None, FIRST_PAUSE);
                    }
                    Err(error) => {
                        tracing::error!("{} was not told \"{}\": {error}", sink.name(), message.headline());
                        *until = Some(now + *pause);
                        *pause = (*pause * 2).min(LONGEST_PAUSE);
                        break;
                    }
                }
            }
        }
        if delivered {
            self.keep();
        }
    }

    /// Silence is what is heard of a server that is dead, or whose backups are.
    fn reassure(&mut self) {
        let due = self.reassured.is_none_or(|last| last.elapsed() >= self.notify.reassure_every);
        if !due || self.kept.teller.is_critical() {
            return;
        }
        self.reassured = Some(Instant::now());
        for sink in &mut self.notify.sinks {
            if let Err(error) = sink.all_is_well() {
                tracing::warn!("{} was not told that all is well: {error}", sink.name());
            }
        }
    }

    fn keep(&self) {
        if let Err(error) = write(&self.file, &self.kept) {
            tracing::warn!("{} cannot be written, so some alerts may be told twice: {error}", self.file.display());
        }
    }
}

fn read(file: &Path) -> io::Result<Kept> {
    match fs::read(file) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Kept::default()),
        Err(error) => Err(error),
    }
}

/// Whole or not at all. Its loss costs a message too many, so it need not be synced to disk with its directory.
fn write(file: &Path, kept: &Kept) -> io::Result<()> {
    let staged = file.with_extension("json.new");
    let mut new = fs::File::create(&staged)?;
    new.write_all(&serde_json::to_vec(kept)?)?;
    new.sync_data()?;
    fs::rename(&staged, file)
}
