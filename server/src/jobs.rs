//! Recording what agents tell of their work, and noticing those that tell nothing any more.
//!
//! A job belongs to the connection that last said it was under way. When that connection ends
//! first, the job is lost, until its machine says otherwise on another one.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vsync_protocol::id::{JobId, MachineName};
use vsync_protocol::limits::MAX_OPEN_JOBS;
use vsync_protocol::wire::{JobKind, JobListing, JobResult, JobStart, Refusal, RefusalCode, Reply};

use crate::archive::Archive;
use crate::catalog::NewJob;
use crate::refusal::refusal;
use crate::serve::{Member, PAGE, Shared};
use crate::store::StoreError;

/// How long jobs are kept, in milliseconds: a year, and some time to compare it with.
const KEPT: i64 = 400 * 24 * 3_600_000;

/// Most jobs in one reply.
const MAX_LISTED: u32 = 1000;

/// Which connection answers for which job.
#[derive(Debug, Default)]
pub(crate) struct Owners(Mutex<HashMap<(MachineName, JobId), u64>>);

impl Owners {
    fn lock(&self) -> MutexGuard<'_, HashMap<(MachineName, JobId), u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `connection` may answer for one more.
    fn has_room(&self, connection: u64) -> bool {
        self.lock().values().filter(|owner| **owner == connection).count() < MAX_OPEN_JOBS
    }

    fn own(&self, machine: &MachineName, id: JobId, connection: u64) {
        self.lock().insert((machine.clone(), id), connection);
    }

    fn disown(&self, machine: &MachineName, id: JobId) {
        self.lock().remove(&(machine.clone(), id));
    }

    /// The jobs that `connection` answered for, which nobody does any more.
    fn abandon(&self, connection: u64) -> Vec<(MachineName, JobId)> {
        self.lock().extract_if(|_, owner| *owner == connection).map(|(job, _)| job).collect()
    }
}

impl Shared {
    pub(crate) fn begin_job(&self, member: &Member, connection: u64, start: JobStart) -> Result<Reply, Refusal> {
        start.check().map_err(|what| refusal(RefusalCode::Malformed, what))?;
        allowed(member, &start)?;
        if !self.owners.has_room(connection) {
            let message = format!("{} has too many jobs under way on one connection", member.name);
            return Err(refusal(RefusalCode::TooManyJobs, message));
        }
        let id = start.id;
        self.archive.begin_job(&member.name, start)?;
        self.owners.own(&member.name, id, connection);
        Ok(Reply::Noted)
    }

    pub(crate) fn end_job(&self, member: &Member, id: JobId, result: JobResult) -> Result<Reply, Refusal> {
        result.check().map_err(|what| refusal(RefusalCode::Malformed, what))?;
        writable(&self.archive)?;
        let at = self.archive.time().0.now;
        if !self.archive.catalog().end_job(member.name.clone(), id, result, at)? {
            return Err(refusal(RefusalCode::NoJob, format!("{} has no job {id}", member.name)));
        }
        self.owners.disown(&member.name, id);
        Ok(Reply::Noted)
    }

    /// Whether `connection` has jobs for which nobody answers when it ends.
    pub(crate) fn abandon_jobs(&self, connection: u64) -> Result<(), Refusal> {
        let jobs = self.owners.abandon(connection);
        if jobs.is_empty() || self.archive.failure().is_some() {
            return Ok(());
        }
        Ok(self.archive.catalog().lose_jobs(jobs, self.archive.time().0.now)?)
    }

    pub(crate) fn jobs(&self, member: &Member, mut listing: JobListing) -> Result<Reply, Refusal> {
        listing.limit = listing.limit.min(MAX_LISTED);
        let own = (!member.may_read && !member.may_admin).then_some(&member.name);
        Ok(Reply::Jobs(self.archive.catalog().jobs(&listing, own, PAGE)?))
    }
}

/// A machine backs up its own volumes; it restores and verifies only if it may read.
fn allowed(member: &Member, start: &JobStart) -> Result<(), Refusal> {
    let own = start.source.as_ref().is_none_or(|source| *source == member.name);
    let may = match start.kind {
        JobKind::Backup => own,
        JobKind::Restore | JobKind::Verify => member.may_read,
    };
    let what = start.kind.as_str();
    let message = || format!("{} may not {what} {} of that machine", member.name, start.volume);
    if may { Ok(()) } else { Err(refusal(RefusalCode::NotAuthorised, message())) }
}

/// A store that failed is left as it is until somebody has looked.
fn writable(archive: &Archive) -> Result<(), StoreError> {
    archive.failure().map_or(Ok(()), |reason| Err(StoreError::ReadOnly(reason.to_owned())))
}

impl Archive {
    fn begin_job(&self, machine: &MachineName, start: JobStart) -> Result<(), Refusal> {
        writable(self)?;
        let (moment, kept) = self.time();
        // A clock that leapt must not thin anything out.
        let oldest = kept.evidence(&moment).check(None).is_ok().then(|| moment.now.saturating_sub(KEPT));
        let job = NewJob { start, machine: machine.clone(), at: moment.now, oldest };
        // Not a change that stops writing when it fails: no backup depends on it.
        Ok(self.catalog().begin_job(job)?)
    }

    /// Notes that nobody reports the end of jobs that an earlier run of the server knew.
    pub(crate) fn lose_jobs(&self) {
        if self.failure().is_none()
            && let Err(error) = self.catalog().lose_all_jobs(self.time().0.now)
        {
            tracing::warn!("jobs of the last run stay under way: {error}");
        }
    }
}
