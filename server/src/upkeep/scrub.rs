//! Reading every byte of the store again and comparing each blob with its name.
//!
//! What is damaged counts as absent from then on, so that the next backup that still has it
//! brings it again. Before that, another copy is looked for, and the damaged pack is copied
//! to quarantine for a person to look at. Without a key, volumes and snapshots that need a
//! damaged blob can be named, files cannot.

use std::collections::HashSet;
use std::fs;
use std::io::IoSlice;

use vsync_protocol::id::{Cid, PackId, SnapshotId};
use vsync_protocol::limits::MAX_CIDS;
use vsync_protocol::manifest::{Manifest, manifest_hash};
pub use vsync_protocol::wire::{Affected, ScrubReport};

use super::Signers;
use super::keeper::SCRUB;
use super::mark::MarkError;
use super::throttle::{Stop, Throttle};
use crate::archive::{Archive, ArchiveError, manifest_name};
use crate::catalog::{Compaction, Known, Misplaced, State};
use crate::store::pack::{PackBuilder, Record};
use crate::store::room::{Cached, set_aside};
use crate::store::{StoreError, is_whole, read_blob, read_table, salvage, whole_copies};
use crate::words::report;

impl Archive {
    /// Reads every pack, at most `rate` bytes a second.
    ///
    /// # Errors
    /// When the catalog fails, or `stop` calls it off. Damage is no error.
    pub fn scrub(&self, rate: Option<u64>, stop: &Stop) -> Result<ScrubReport, MarkError> {
        let throttle = Throttle::new(rate, stop.clone());
        let mut found = ScrubReport::default();
        let mut lost = HashSet::new();
        for pack in self.catalog().packs()? {
            let _alone = self.upkeep_alone();
            lost.extend(self.scrub_pack(pack, &throttle, &mut found)?);
        }
        self.note_chore(SCRUB, found.packs);
        found.bad_manifests = self.check_manifests(None)?;
        found.healed = self.heal(&mut lost)?;
        // Also when all that was read is whole: packs may have been lost before.
        self.conclude(found, &throttle)
    }

    /// The snapshots whose manifests are lost, damaged, or not signed by one of `signers`. A damaged
    /// file of a manifest that the catalog has whole is written again.
    ///
    /// # Errors
    /// When the store fails.
    pub fn check_manifests(&self, signers: Option<&Signers>) -> Result<Vec<SnapshotId>, ArchiveError> {
        let mut bad: Vec<SnapshotId> = self.catalog().lost_manifests()?.into_iter().map(SnapshotId::from).collect();
        bad.iter().for_each(|id| tracing::error!("the manifest of snapshot {id} is lost"));
        self.catalog().each_standing(0, |known| {
            let (id, parsed) = (known.id(), Manifest::parse(&known.manifest));
            let whole = manifest_hash(&known.manifest) == known.hash;
            let signed = |manifest: &Manifest<'_>| {
                signers.is_none_or(|signers| manifest.verify(signers(&manifest.body.source)).is_ok())
            };
            if whole && parsed.as_ref().is_ok_and(signed) {
                return Ok(self.mend_manifest(known)?);
            }
            tracing::error!("the manifest of snapshot {} is damaged, or signed by a stranger", id.short());
            bad.push(id);
            Ok::<_, ArchiveError>(())
        })?;
        Ok(bad)
    }

    fn mend_manifest(&self, known: &Known) -> Result<(), StoreError> {
        let name = manifest_name(known.hash);
        if fs::read(self.files.manifests.path().join(&name)).is_ok_and(|bytes| bytes == known.manifest) {
            return Ok(());
        }
        tracing::error!("the file of manifest {} is damaged; it is written again", name.display());
        self.files.manifests.write(&name, &mut [IoSlice::new(&known.manifest)], Cached::Kept)
    }

    /// Reads the pack that was read longest ago, if that is `period` milliseconds of uptime
    /// or more; none if there is no such pack.
    ///
    /// # Errors
    /// As [`Self::scrub`].
    pub fn scrub_next(&self, period: u64, throttle: &Throttle) -> Result<Option<ScrubReport>, MarkError> {
        let Some((pack, checked)) = self.catalog().least_checked()? else { return Ok(None) };
        if self.time().1.uptime.saturating_sub(checked) < period {
            return Ok(None);
        }
        let _alone = self.upkeep_alone();
        let mut found = ScrubReport::default();
        let mut lost = self.scrub_pack(pack, throttle, &mut found)?.into_iter().collect();
        found.healed = self.heal(&mut lost)?;
        if lost.is_empty() { Ok(Some(found)) } else { self.conclude(found, throttle).map(Some) }
    }

    /// Returns the blobs of use that turned out to be damaged.
    fn scrub_pack(&self, pack: PackId, throttle: &Throttle, found: &mut ScrubReport) -> Result<Vec<Cid>, MarkError> {
        found.packs += 1;
        // Whether it is damaged, and whether a copy has been set aside already.
        let (bad, kept, lost) = match read_table(self.packs(), pack) {
            Ok(Some(table)) => {
                let (damaged, mut lost) = self.scrub_records(pack, &table, throttle, found)?;
                lost.extend(self.compare_rows(pack, table, &damaged, throttle, found)?);
                (!damaged.is_empty(), false, lost)
            }
            Ok(None) if self.packs().len(pack)?.is_none() => (true, true, self.lose(pack)?),
            // Cut off while it was read; the next look finds out.
            Ok(None) => (true, false, Vec::new()),
            Err(error @ StoreError::Pack { .. }) => {
                tracing::error!("{}", report(&error));
                (true, true, self.rescue(pack)?)
            }
            Err(error) => return Err(error.into()),
        };
        if bad {
            found.damaged_packs.push(pack);
            if !kept {
                self.quarantine(pack)?;
            }
        }
        if self.failure().is_none() {
            // What cannot be noted is only looked at again earlier.
            self.record(|catalog| catalog.checked(pack, self.time().1.uptime))?;
        }
        Ok(lost)
    }

    /// Returns the blobs that are damaged in it, and those of them that are lost by that.
    fn scrub_records(
        &self,
        pack: PackId,
        table: &[Record],
        throttle: &Throttle,
        found: &mut ScrubReport,
    ) -> Result<(HashSet<Cid>, Vec<Cid>), MarkError> {
        let (mut damaged, mut lost) = (HashSet::new(), Vec::new());
        for record in table {
            throttle.check().and_then(|()| throttle.spend(record.len.into())).map_err(|_| MarkError::Stopped)?;
            found.bytes += u64::from(record.len);
            if is_whole(self.packs(), pack, record)? {
                continue;
            }
            // Compaction may have taken the whole pack away meanwhile.
            if matches!(self.packs().len(pack), Ok(None)) {
                break;
            }
            damaged.insert(record.cid);
            let of_use = self.catalog().have(&[record.cid])?.contains(&true);
            if of_use && self.recheck(record.cid)? {
                lost.push(record.cid);
            }
        }
        Ok((damaged, lost))
    }

    /// Compares what the catalog says of the blobs in `pack` with its table, and puts right what
    /// is wrong. Of blobs that the catalog places in another pack, which hardly any are, it looks
    /// whether they are there, and returns those that are not.
    fn compare_rows(
        &self,
        pack: PackId,
        mut table: Vec<Record>,
        damaged: &HashSet<Cid>,
        throttle: &Throttle,
        found: &mut ScrubReport,
    ) -> Result<Vec<Cid>, MarkError> {
        table.retain(|record| !damaged.contains(&record.cid));
        let Misplaced { here, elsewhere } = self.catalog().misplaced(pack, &table).map_err(ArchiveError::from)?;
        if !here.is_empty() {
            for Record { cid, offset, len, .. } in &here {
                tracing::error!(
                    "the catalog is wrong about blob {cid} in pack {pack}, which is at {offset} and {len} bytes long"
                );
            }
            *found.misplaced.get_or_insert(0) += here.len() as u64;
            if self.failure().is_none() {
                self.record(|catalog| catalog.put_right(pack, here))?;
            }
        }
        let mut lost = Vec::new();
        for cid in elsewhere {
            throttle.check().map_err(|_| MarkError::Stopped)?;
            if self.recheck(cid)? {
                lost.push(cid);
            }
        }
        Ok(lost)
    }

    /// A pack that is gone. Its blobs are lost, unless compaction took it away.
    fn lose(&self, pack: PackId) -> Result<Vec<Cid>, MarkError> {
        let lost = self.catalog().blobs_of(pack)?;
        if !lost.is_empty() {
            tracing::error!("pack {pack} is gone");
            self.record(|catalog| catalog.lose_pack(pack))?;
        }
        Ok(lost)
    }

    /// Copies what is whole out of a pack whose table is damaged, and gives the pack up once
    /// it is set aside. The catalog knows where everything lies.
    fn rescue(&self, pack: PackId) -> Result<Vec<Cid>, MarkError> {
        let all = self.catalog().blobs_of(pack)?;
        let mut entries = Vec::new();
        for cids in all.chunks(MAX_CIDS) {
            let found = cids.iter().zip(self.catalog().entries(cids)?);
            entries.extend(found.filter_map(|(&cid, entry)| Some((cid, entry?))));
        }
        // In the old order: if nothing is lost, it becomes the same pack, and heals it.
        entries.sort_unstable_by_key(|(_, entry)| entry.offset);
        let (mut builder, mut lost) = (PackBuilder::default(), Vec::new());
        for (cid, entry) in entries.into_iter().filter(|(_, entry)| entry.state != State::Corrupt) {
            match read_blob(self.packs(), pack, entry.offset, entry.len, cid)? {
                Some(blob) => builder.push(cid, entry.kind, blob),
                None => lost.push(cid),
            }
        }
        lost.iter().try_for_each(|&cid| self.record(|catalog| catalog.add_damage(cid, pack)))?;
        if !self.quarantine(pack)? {
            return Ok(lost);
        }
        let mut step = Compaction { retired: vec![(pack, all)], ..Compaction::default() };
        if !builder.is_empty() {
            let new = builder.finish();
            self.files.packs.put_from_reserve(&new)?;
            step.new = Some((new.id(), new.len()));
            step.moved = new.records().iter().map(|record| (*record, pack)).collect();
        }
        self.record(|catalog| catalog.compact(step))?;
        Ok(lost)
    }

    /// Keeps a copy of a damaged pack, with all of it that can be read. Returns whether there
    /// is one, or nothing to keep; not when space is short.
    pub(super) fn quarantine(&self, pack: PackId) -> Result<bool, StoreError> {
        let bytes = match salvage(self.packs(), pack) {
            Err(error) if error.is_unreadable() => {
                tracing::error!("pack {pack} is damaged and stays; nothing of it can be read: {}", report(&error));
                return Ok(false);
            }
            salvaged => match salvaged? {
                Some(bytes) => bytes,
                None => return Ok(true),
            },
        };
        let quarantine = &self.files.quarantine;
        let is_kept = |name: &str| fs::read(quarantine.join(name)).is_ok_and(|kept| kept == bytes);
        // A copy of other bytes, from earlier, may hold what this one lacks, and stays.
        let names = [format!("{pack}.pack"), format!("{pack}.{}.pack", &blake3::hash(&bytes).to_hex()[..16])];
        if names.iter().any(|name| is_kept(name)) {
            return Ok(true);
        }
        let name = if quarantine.join(&names[0]).exists() { &names[1] } else { &names[0] };
        let steps = self.files.health.steps();
        let kept = self.files.packs.check_space().and_then(|()| {
            let announced = |error| StoreError::io("write", quarantine.join(name))(error);
            steps.before("set a damaged pack aside").map_err(announced)?;
            set_aside(quarantine, name, &bytes)?;
            steps.after("set a damaged pack aside").map_err(announced)
        });
        match &kept {
            Ok(()) => tracing::error!("pack {pack} is damaged; a copy is kept as quarantine/{name}"),
            Err(error) => tracing::error!("pack {pack} is damaged and stays; no copy is kept: {}", report(error)),
        }
        Ok(kept.is_ok())
    }

    fn conclude(&self, mut found: ScrubReport, throttle: &Throttle) -> Result<ScrubReport, MarkError> {
        let lacking = self.lacking(throttle)?;
        (found.lost, found.affected) = (lacking.blobs, lacking.affected);
        for Affected { volume, source, id } in &found.affected {
            tracing::error!("snapshot {} of {volume} from {source} is damaged; back the volume up again", id.short());
        }
        Ok(found)
    }

    /// Looks for other copies of `lost` and takes those that are whole.
    fn heal(&self, lost: &mut HashSet<Cid>) -> Result<u64, ArchiveError> {
        let before = lost.len();
        if before == 0 {
            return Ok(0);
        }
        for pack in self.packs().list()? {
            let copies = whole_copies(self.packs(), pack, |cid| lost.contains(cid))?;
            if copies.is_empty() {
                continue;
            }
            // A doomed pack must not be pointed at: it is about to go.
            let _gate = self.pins.hold();
            if !self.catalog().packs()?.contains(&pack) {
                continue;
            }
            for copy in &copies {
                lost.remove(&copy.cid);
            }
            let len = self.packs().len(pack)?.unwrap_or(0);
            self.record(|catalog| catalog.add_pack(pack, len, copies))?;
        }
        Ok((before - lost.len()) as u64)
    }
}
