//! Whether all that a server shows fits together with all that it has ever promised.
//!
//! Every machine compares the log with the newest place in it that it has seen. This looks at the
//! whole of it: each snapshot stands in it where the server says; what its signed manifest has seen
//! of the log, on whichever machine, is there; and what was committed and not given up is shown.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use vsync_protocol::encode;
use vsync_protocol::id::{LogHead, SnapshotId};
use vsync_protocol::log::{GENESIS, LogEntry, chain};
use vsync_protocol::manifest::LogPosition;
use vsync_protocol::wire::{Reply, Request};

use super::{Remote, RemoteError};

/// A snapshot that a server shows.
#[derive(Clone, Copy, Debug)]
pub struct Shown {
    /// Its name in the list.
    pub id: SnapshotId,
    /// Its place in the log, from 1.
    pub index: u64,
    /// What its source had seen of the log when it signed the manifest, if that was looked at.
    pub witness: Option<LogPosition>,
}

impl Remote {
    /// Compares what `list` returns, all that the server shows, with the whole log.
    ///
    /// # Errors
    /// [`RemoteError::History`] with what does not fit, and what `list` says.
    pub fn audit<E: From<RemoteError>>(&self, list: impl FnOnce() -> Result<Vec<Shown>, E>) -> Result<(), E> {
        // Before the list: what is committed while it is made need not be in it.
        let (_, known) = self.greet_again()?;
        let shown = list()?;
        Ok(self.compare_history(known, &shown)?)
    }

    fn compare_history(&self, known: LogPosition, shown: &[Shown]) -> Result<(), RemoteError> {
        let (_, now) = self.greet_again()?;
        let mut history = History::new(known, now, shown);
        let broken = |reason: String| RemoteError::History { server: self.server().to_string(), reason };
        history.look().map_err(broken)?;
        while history.index < now.index {
            let entries = match self.request(&Request::Log { from: history.index })? {
                Reply::Log(entries) => entries,
                other => return Err(RemoteError::unexpected(&other)),
            };
            if entries.is_empty() {
                return Err(broken(format!("it shows {} of {} log entries", history.index, now.index)));
            }
            for entry in &entries {
                if history.index < now.index {
                    history.learn(entry).map_err(broken)?;
                }
            }
        }
        history.judge(shown).map_err(broken)
    }
}

/// What the log says, entry by entry.
struct History {
    known: LogPosition,
    now: LogPosition,
    index: u64,
    head: LogHead,
    /// What manifests have seen of the log.
    witnesses: BTreeMap<u64, Vec<(LogHead, SnapshotId)>>,
    /// Where each snapshot was committed.
    committed: HashMap<SnapshotId, u64>,
    /// Committed, and not given up since; with the place in the log where that began.
    standing: BTreeMap<SnapshotId, u64>,
}

impl History {
    fn new(known: LogPosition, now: LogPosition, shown: &[Shown]) -> Self {
        let mut witnesses: BTreeMap<u64, Vec<(LogHead, SnapshotId)>> = BTreeMap::new();
        for Shown { id, witness, .. } in shown {
            if let Some(LogPosition { index, head }) = witness {
                witnesses.entry(*index).or_default().push((*head, *id));
            }
        }
        let (committed, standing) = (HashMap::new(), BTreeMap::new());
        Self { known, now, index: 0, head: GENESIS, witnesses, committed, standing }
    }

    fn learn(&mut self, entry: &LogEntry) -> Result<(), String> {
        (self.index, self.head) = (self.index + 1, chain(self.head, &encode(entry)));
        let id = SnapshotId::from(entry.manifest());
        match entry {
            LogEntry::Commit { .. } => {
                self.standing.insert(id, self.index);
                self.committed.insert(id, self.index);
            }
            LogEntry::Undelete { .. } => drop(self.standing.insert(id, self.index)),
            LogEntry::Forget { .. } => drop(self.standing.remove(&id)),
            LogEntry::Pin { .. } | LogEntry::Unpin { .. } => {}
        }
        self.look()
    }

    /// Compares the place that was reached with what others say of it.
    fn look(&mut self) -> Result<(), String> {
        let at = self.index;
        let seen = self.witnesses.remove(&at).unwrap_or_default();
        if let Some((_, id)) = seen.into_iter().find(|(head, _)| *head != self.head) {
            return Err(format!("snapshot {} was made beside another log entry {at}", id.short()));
        }
        let wrong = |said: &LogPosition| said.index == at && said.head != self.head;
        if wrong(&self.known) || wrong(&self.now) {
            return Err(format!("its log does not lead to what it says of entry {at}"));
        }
        Ok(())
    }

    /// Compares the snapshots that are shown with those that must be there.
    fn judge(&self, shown: &[Shown]) -> Result<(), String> {
        if let Some((index, seen)) = self.witnesses.iter().next() {
            let id = seen.first().map_or_else(String::new, |(_, id)| id.short());
            return Err(format!("snapshot {id} was made when the log had {index} entries; it has {}", self.index));
        }
        if let Some(stranger) = shown.iter().find(|shown| self.committed.get(&shown.id) != Some(&shown.index)) {
            return Err(format!("its log knows nothing of snapshot {}", stranger.id.short()));
        }
        let ids: BTreeSet<SnapshotId> = shown.iter().map(|shown| shown.id).collect();
        let mut must = self.standing.iter().filter(|(_, since)| **since <= self.known.index);
        match must.find(|(id, _)| !ids.contains(id)) {
            Some((id, _)) => Err(format!("snapshot {} was committed and never given up, but is not shown", id.short())),
            None => Ok(()),
        }
    }
}
