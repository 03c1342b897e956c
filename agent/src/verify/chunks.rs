//! Whether chunks are there: asked for by name in batches, or fetched and opened.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use crossbeam_channel::{Receiver, bounded};
use vsync_protocol::id::Cid;
use vsync_protocol::limits::MAX_CIDS;
use vsync_protocol::tree::EntryPath;
use vsync_protocol::wire::{Cids, Reply, Request};

use super::structure::Above;
use super::{Sample, VerifyReport};
use crate::content::{Content, Lost, Part};
use crate::remote::{Remote, RemoteError};
use crate::tree::Reference;
use crate::vault::{OpenError, Vault};

/// Questions under way.
const QUESTIONS: usize = 8;

/// Where a chunk is used.
pub(super) struct Use {
    pub(super) path: EntryPath,
    pub(super) above: Rc<Above>,
}

/// A chunk that is not as it should be.
pub(super) struct Bad {
    pub(super) cid: Cid,
    pub(super) at: Use,
    pub(super) reason: String,
}

/// Something that tells whether chunks are there.
pub(super) trait ChunkCheck {
    /// Begins to look after a chunk; says what it found of earlier ones.
    fn check(&mut self, chunk: &Reference, at: Use, report: &mut VerifyReport) -> Result<Vec<Bad>, RemoteError>;

    /// Waits for all that was begun.
    fn finish(&mut self, report: &mut VerifyReport) -> Result<Vec<Bad>, RemoteError>;
}

/// Chunks of one snapshot on a server.
pub(super) struct Chunks<'a> {
    remote: &'a Remote,
    sample: &'a Sample,
    content: Option<Content<Use>>,
    names: Vec<(Cid, Use)>,
    asked: VecDeque<Question>,
}

type Question = (Vec<(Cid, Use)>, Receiver<Result<Reply, RemoteError>>);

impl<'a> Chunks<'a> {
    pub(super) fn new(remote: &'a Remote, vault: &Arc<Vault>, sample: &'a Sample) -> Result<Self, OpenError> {
        let content = match sample {
            Sample::None => None,
            Sample::All | Sample::Part { .. } | Sample::Share { .. } | Sample::Bytes(_) => {
                Some(Content::new(remote.fetcher(), vault)?)
            }
        };
        Ok(Self { remote, sample, content, names: Vec::new(), asked: VecDeque::new() })
    }

    fn ask(&mut self) {
        let names = std::mem::take(&mut self.names);
        if names.is_empty() {
            return;
        }
        let cids = Cids::new(names.iter().map(|(cid, _)| *cid).collect());
        let (answer, answered) = bounded(1);
        // When nobody waits any more, the answer is not missed.
        self.remote.request_later(Request::Holds { cids }, move |reply| drop(answer.send(reply)));
        self.asked.push_back((names, answered));
    }

    fn answer(&mut self, report: &mut VerifyReport, bad: &mut Vec<Bad>) -> Result<(), RemoteError> {
        let Some((names, answered)) = self.asked.pop_front() else { return Ok(()) };
        let ended = || RemoteError::Protocol("the connection has ended".into());
        let answers = match answered.recv().map_err(|_| ended())?? {
            Reply::Have(answers) => answers,
            other => return Err(RemoteError::unexpected(&other)),
        };
        for (index, (cid, at)) in names.into_iter().enumerate() {
            if answers.get(index) {
                report.held += 1;
            } else {
                bad.push(Bad { cid, at, reason: Lost::Absent.to_string() });
            }
        }
        Ok(())
    }

    /// Takes one chunk that was read; false when there is none.
    fn read(&mut self, report: &mut VerifyReport, bad: &mut Vec<Bad>) -> Result<bool, RemoteError> {
        let Some(content) = &mut self.content else { return Ok(false) };
        let Some((at, chunk, part)) = content.pop()? else { return Ok(false) };
        match (part, chunk) {
            (Part::Plain(plain), _) => {
                report.read += 1;
                report.bytes_read += plain.len() as u64;
            }
            (Part::Lost(lost), Some(chunk)) => {
                if matches!(lost, Lost::Damaged(_)) {
                    self.remote.fetcher().report_damage(chunk.cid);
                }
                bad.push(Bad { cid: chunk.cid, at, reason: lost.to_string() });
            }
            (Part::Mark | Part::Lost(_), _) => {}
        }
        Ok(true)
    }
}

impl ChunkCheck for Chunks<'_> {
    fn check(&mut self, chunk: &Reference, at: Use, report: &mut VerifyReport) -> Result<Vec<Bad>, RemoteError> {
        let mut bad = Vec::new();
        match &mut self.content {
            Some(content) if self.sample.takes(&chunk.cid) => {
                content.push(at, Some(*chunk));
                while self.content.as_ref().is_some_and(Content::is_full) {
                    self.read(report, &mut bad)?;
                }
            }
            _ => {
                self.names.push((chunk.cid, at));
                if self.names.len() == MAX_CIDS {
                    self.ask();
                }
                if self.asked.len() > QUESTIONS {
                    self.answer(report, &mut bad)?;
                }
            }
        }
        Ok(bad)
    }

    fn finish(&mut self, report: &mut VerifyReport) -> Result<Vec<Bad>, RemoteError> {
        let mut bad = Vec::new();
        self.ask();
        while !self.asked.is_empty() {
            self.answer(report, &mut bad)?;
        }
        while self.read(report, &mut bad)? {}
        Ok(bad)
    }
}
