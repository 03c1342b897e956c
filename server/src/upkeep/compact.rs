//! Copying what is of use out of packs with too much dead space, and small packs together.
//!
//! The new pack is durable before the catalog points at it, and the catalog points at it
//! before the old pack goes. A copy is checked against its name on the way.

use std::collections::HashMap;

use vsync_protocol::id::{Cid, PackId};
use vsync_protocol::limits::MAX_CIDS;

use super::gc::{GcReport, Round};
use super::mark::MarkError;
use crate::catalog::{Compaction, Entry, Kept, State};
use crate::store::pack::{FOOTER_LEN, MAGIC, PACK_SIZE, PackBuilder, Record};
use crate::store::{StoreError, read_blob, read_table};

/// A pack is copied when this percentage of it is dead.
const DEAD: u64 = 20;

/// A pack smaller than this is small.
const SMALL: u64 = PACK_SIZE as u64 / 4;

/// Small packs are merged when there are so many.
const MANY: usize = 8;

/// Which packs to copy or drop: those of no use first, since they need no space.
pub(super) fn choose(packs: Vec<Kept>) -> Vec<Kept> {
    let dead = |pack: &Kept| {
        let head = (MAGIC.len() + FOOTER_LEN) as u64;
        pack.bytes.saturating_sub(pack.kept + head) * 100 > pack.bytes * DEAD
    };
    let (empty, rest): (Vec<_>, Vec<_>) = packs.into_iter().partition(|pack| pack.kept == 0);
    let (mut chosen, rest): (Vec<_>, Vec<_>) = rest.into_iter().partition(dead);
    let small: Vec<_> = rest.into_iter().filter(|pack| pack.bytes < SMALL).collect();
    if small.len() + chosen.iter().filter(|pack| pack.kept < SMALL).count() >= MANY {
        chosen.extend(small);
    }
    empty.into_iter().chain(chosen).collect()
}

/// Copies and drops what is worth it.
pub(super) fn run(round: &Round<'_>, ripe: u64, report: &mut GcReport) -> Result<(), MarkError> {
    let chosen = choose(round.archive.catalog().kept(ripe)?);
    let mut copy = Copy { round, ripe, report, new: PackBuilder::default(), origins: HashMap::new(), done: Vec::new() };
    for pack in chosen {
        copy.pack(pack)?;
        // Packs of no use are dropped at once: that may be all there is space for.
        if pack.kept == 0 {
            copy.finish()?;
        }
    }
    copy.finish()
}

struct Copy<'a> {
    round: &'a Round<'a>,
    ripe: u64,
    report: &'a mut GcReport,
    new: PackBuilder,
    /// In which pack each blob of the new one was.
    origins: HashMap<Cid, PackId>,
    /// Packs that were copied in full, with all blobs in their tables, and their bytes.
    done: Vec<(PackId, Vec<Cid>, u64)>,
}

impl Copy<'_> {
    fn pack(&mut self, pack: Kept) -> Result<(), MarkError> {
        let archive = self.round.archive;
        let table = match read_table(archive.packs(), pack.pack) {
            Ok(Some(table)) => table,
            // What it holds cannot be known for sure: scrub looks after it.
            Ok(None) | Err(StoreError::Pack { .. }) => {
                tracing::error!("pack {} is gone or damaged; it stays as it is", pack.pack);
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let mut damaged = false;
        for records in table.chunks(MAX_CIDS) {
            let cids: Vec<Cid> = records.iter().map(|record| record.cid).collect();
            for (record, entry) in records.iter().zip(archive.catalog().entries(&cids)?) {
                let entry = entry.filter(|entry| entry.pack == pack.pack);
                damaged |= entry.is_some_and(|entry| entry.state == State::Corrupt);
                let needed = entry.is_some_and(|entry| self.is_needed(&entry));
                if needed && !self.blob(pack.pack, record)? {
                    return Ok(());
                }
            }
        }
        // What is left of a damaged blob is for a person to look at.
        if damaged && !archive.quarantine(pack.pack)? {
            return Ok(());
        }
        self.done.push((pack.pack, table.iter().map(|record| record.cid).collect(), pack.bytes));
        Ok(())
    }

    fn is_needed(&self, entry: &Entry) -> bool {
        match entry.state {
            State::Live => true,
            State::Corrupt => false,
            State::Condemned => entry.since > self.ripe,
        }
    }

    /// Copies one blob. Returns false when it is damaged.
    fn blob(&mut self, pack: PackId, record: &Record) -> Result<bool, MarkError> {
        let archive = self.round.archive;
        self.round.throttle.spend(2 * u64::from(record.len)).map_err(|_| MarkError::Stopped)?;
        let Some(blob) = read_blob(archive.packs(), pack, record.offset, record.len, record.cid)? else {
            tracing::error!("blob {} in pack {pack} is damaged", record.cid);
            archive.record(|catalog| catalog.add_damage(record.cid, pack))?;
            return Ok(false);
        };
        self.new.push(record.cid, record.kind, blob);
        self.origins.insert(record.cid, pack);
        if self.new.is_full() { self.finish().map(|()| true) } else { Ok(true) }
    }

    /// Makes the new pack durable and known, and lets go of the packs that are done with.
    fn finish(&mut self) -> Result<(), MarkError> {
        let archive = self.round.archive;
        let builder = std::mem::take(&mut self.new);
        let origins = std::mem::take(&mut self.origins);
        let done = std::mem::take(&mut self.done);
        let bytes: HashMap<PackId, u64> = done.iter().map(|&(pack, _, bytes)| (pack, bytes)).collect();
        let retired = done.into_iter().map(|(pack, cids, _)| (pack, cids)).collect();
        let mut step = Compaction { retired, ripe: self.ripe, ..Compaction::default() };
        if !builder.is_empty() {
            let pack = builder.finish();
            archive.files.packs.put_from_reserve(&pack)?;
            step.new = Some((pack.id(), pack.len()));
            let moved = |record: &Record| Some((*record, *origins.get(&record.cid)?));
            step.moved = pack.records().iter().filter_map(moved).collect();
            self.report.copied_bytes += pack.len();
        }
        for pack in archive.record(|catalog| catalog.compact(step))? {
            self.round.bury(pack)?;
            self.report.trashed += 1;
            self.report.trashed_bytes += bytes.get(&pack).copied().unwrap_or(0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(number: u8, bytes: u64, kept: u64) -> Kept {
        Kept { pack: PackId::from_bytes([number; 32]), bytes, kept }
    }

    fn chosen(packs: &[Kept]) -> Vec<u8> {
        choose(packs.to_vec()).iter().map(|kept| kept.pack.as_bytes()[0]).collect()
    }

    #[test]
    fn dead_space_is_worth_it_from_a_fifth() {
        let (full, mib) = (PACK_SIZE as u64, 1 << 20);
        let packs =
            [pack(1, full, full - 56), pack(2, full, full - 3 * mib), pack(3, full, full - 4 * mib), pack(4, full, 0)];
        assert_eq!(chosen(&packs), [4, 3]);
    }

    #[test]
    fn small_packs_are_merged_when_there_are_many() {
        let small: Vec<Kept> = (0..8).map(|number| pack(number, 1000, 944)).collect();
        assert_eq!(chosen(&small), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert!(chosen(&small[1..]).is_empty());
        let large = pack(9, SMALL, SMALL - 56);
        assert!(chosen(&[&small[1..], &[large]].concat()).is_empty());
    }
}
