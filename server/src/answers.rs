//! What the server answers to requests, once it is known who asks.

use std::fs;

use vsync_protocol::id::{MachineKey, MachineName, SnapshotId, VolumeName};
use vsync_protocol::limits::{MAX_MESSAGE_LEN, MAX_VERDICTS};
use vsync_protocol::plan::{Fate, Verdict};
use vsync_protocol::wire::{Cids, GcOrder, Listing, PlanReport, PlanRequest, Refusal, RefusalCode, Reply};

use crate::catalog::Group;
use crate::commit::{Author, Outcome, commit};
use crate::refusal::refusal;
use crate::serve::{Member, PAGE, Shared};
use crate::upkeep::usage::Allowance;

impl Shared {
    pub(crate) fn commit(
        &self,
        key: MachineKey,
        name: &MachineName,
        volume: &VolumeName,
        manifest: Vec<u8>,
    ) -> Result<Reply, Refusal> {
        let author = Author { key, name, volume };
        Ok(match commit(&self.archive, self.realm, &self.identity, &author, manifest)? {
            Outcome::Committed(receipt) => {
                self.archive.settle(&Group { source: name.clone(), volume: volume.clone() });
                Reply::Committed(receipt)
            }
            Outcome::Missing(cids) => Reply::Missing(Cids::new(cids)),
        })
    }

    pub(crate) fn snapshots(&self, member: &Member, mut listing: Listing) -> Result<Reply, Refusal> {
        if !(member.may_read || member.may_admin) {
            if listing.source.is_some_and(|source| source != member.name) {
                return Ok(Reply::Snapshots(Vec::new()));
            }
            listing.source = Some(member.name.clone());
        }
        Ok(Reply::Snapshots(self.archive.catalog().snapshots(&listing, PAGE)?))
    }

    /// It is read each time, as members are.
    pub(crate) fn registry(&self) -> Result<Reply, Refusal> {
        let unreadable = |error| refusal(RefusalCode::Store, format!("the server cannot read its vsync.pub: {error}"));
        let bytes = fs::read(&self.registry).map_err(unreadable)?;
        if bytes.len() > MAX_MESSAGE_LEN / 2 {
            return Err(refusal(RefusalCode::Store, "the server's vsync.pub is too long to send"));
        }
        Ok(Reply::Registry(bytes))
    }

    pub(crate) fn log(&self, from: u64) -> Result<Reply, Refusal> {
        Ok(Reply::Log(self.archive.catalog().log(from, PAGE)?))
    }

    pub(crate) fn status(&self) -> Result<Reply, Refusal> {
        Ok(Reply::Status(Box::new(self.viewer.status()?)))
    }

    /// A machine that only writes is told of its own volumes.
    pub(crate) fn overview(&self, member: &Member) -> Result<Reply, Refusal> {
        let own = (!member.may_read && !member.may_admin).then_some(&member.name);
        let mut overview = self.viewer.overview(own)?;
        // Bounds hold on average; this one always.
        while minicbor::to_vec(&overview).map_or(0, |bytes| bytes.len()) > PAGE && !overview.volumes.is_empty() {
            overview.volumes.truncate(overview.volumes.len() * 3 / 4);
        }
        Ok(Reply::Overview(Box::new(overview)))
    }

    /// What a backup may bring; refuses one that may bring nothing.
    pub(crate) fn allowance(&self, name: &MachineName, volume: &VolumeName) -> Result<Option<Allowance>, Refusal> {
        let allowance = self.archive.allowance((self.upkeep.quotas)(name, volume))?;
        match allowance {
            Some(Allowance { left: 0, words }) => Err(refusal(RefusalCode::Quota, words)),
            allowance => Ok(allowance),
        }
    }

    pub(crate) fn collect(&self, order: GcOrder) -> Result<Reply, Refusal> {
        let report = self.archive.collect(&order.into(), &self.called_off)?;
        tracing::info!("garbage collection by order: {report:?}");
        Ok(Reply::Collected(report))
    }

    pub(crate) fn scrub(&self, rate: Option<u64>) -> Result<Reply, Refusal> {
        let mut report = self.archive.scrub(rate, &self.called_off)?;
        // As many as fit into a message; the server's log has them all.
        report.damaged_packs.truncate(MAX_VERDICTS);
        report.affected.truncate(MAX_VERDICTS);
        report.bad_manifests.truncate(MAX_VERDICTS);
        Ok(Reply::Scrubbed(Box::new(report)))
    }

    /// Forgets all of `ids` that can be; says no when one of them cannot.
    pub(crate) fn forget(&self, member: &Member, ids: &[SnapshotId]) -> Result<Reply, Refusal> {
        let mut refused = None;
        for &id in bounded(ids)? {
            if let Err(error) = self.archive.forget(&self.upkeep, id, &format!("by {}", member.name)) {
                refused.get_or_insert(error);
            }
        }
        refused.map_or_else(|| Ok(Reply::Done(self.archive.position())), |error| Err(error.into()))
    }

    pub(crate) fn plan(&self, request: &PlanRequest) -> Result<Reply, Refusal> {
        let mut report = PlanReport::default();
        let mut ids: Vec<SnapshotId> = bounded(&request.ids)?.to_vec();
        if ids.is_empty() {
            let plans = self.archive.plan(&self.upkeep, request.volume.as_ref(), request.source.as_ref())?;
            ids = plans.iter().flat_map(|plan| plan.forgotten()).map(|(id, _)| id).collect();
            for plan in plans {
                match plan.verdicts {
                    Ok(verdicts) => report.verdicts.extend(verdicts),
                    Err(frozen) => report.frozen = Some(frozen),
                }
            }
        }
        report.verdicts.sort_by_key(|Verdict { fate, .. }| matches!(fate, Fate::Keep(_)));
        report.verdicts.truncate(MAX_VERDICTS);
        report.forgotten = ids.len() as u64;
        if !ids.is_empty() {
            report.bytes = self.archive.needed_only_by(&ids)?;
        }
        Ok(Reply::Plan(Box::new(report)))
    }
}

fn bounded(ids: &[SnapshotId]) -> Result<&[SnapshotId], Refusal> {
    if ids.len() <= MAX_VERDICTS {
        return Ok(ids);
    }
    Err(refusal(RefusalCode::Malformed, format!("more than {MAX_VERDICTS} snapshots at once")))
}
