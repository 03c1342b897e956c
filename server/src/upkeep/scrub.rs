//! Reading every byte of the store again and comparing each blob with its name.
//!
//! What is damaged counts as absent from then on, so that the next backup that still has it
//! brings it again. Before that, another copy is looked for, and the damaged pack is copied
//! to quarantine for a person to look at. Without a key, volumes and snapshots that need a
//! damaged blob can be named, files cannot.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::IoSlice;

use vsync_protocol::blob::{BlobKind, Header};
use vsync_protocol::id::{Cid, PackId, SnapshotId};
use vsync_protocol::manifest::{Manifest, manifest_hash};
pub use vsync_protocol::wire::{Affected, ScrubReport};

use super::Signers;
use super::keeper::SCRUB;
use super::mark::MarkError;
use super::throttle::{Stop, Throttle};
use crate::archive::{Archive, ArchiveError, manifest_name, report};
use crate::catalog::{Compaction, Known};
use crate::store::pack::{self, PackBuilder, Record};
use crate::store::room::Cached;
use crate::store::{StoreError, read_blob, read_table};

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
        self.conclude(lost, found)
    }

    /// The snapshots whose manifests are damaged, or not signed by one of `signers`. A damaged
    /// file of a manifest that the catalog has whole is written again.
    ///
    /// # Errors
    /// When the store fails.
    pub fn check_manifests(&self, signers: Option<&Signers>) -> Result<Vec<SnapshotId>, ArchiveError> {
        let (mut bad, mut after) = (Vec::new(), 0);
        loop {
            let page = self.catalog().standing_after(after, 16)?;
            let Some(last) = page.last() else { return Ok(bad) };
            after = last.position;
            for known in &page {
                let (id, parsed) = (SnapshotId::from(known.hash), Manifest::parse(&known.manifest));
                let whole = manifest_hash(&known.manifest) == known.hash;
                let signed = |manifest: &Manifest<'_>| {
                    signers.is_none_or(|signers| manifest.verify(signers(&manifest.body.source)).is_ok())
                };
                if !whole || !parsed.as_ref().is_ok_and(signed) {
                    tracing::error!("the manifest of snapshot {} is damaged, or signed by a stranger", id.short());
                    bad.push(id);
                } else {
                    self.mend_manifest(known)?;
                }
            }
        }
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
        let lost = self.scrub_pack(pack, throttle, &mut found)?;
        self.conclude(lost, found).map(Some)
    }

    /// Returns the blobs of use that turned out to be damaged.
    fn scrub_pack(&self, pack: PackId, throttle: &Throttle, found: &mut ScrubReport) -> Result<Vec<Cid>, MarkError> {
        found.packs += 1;
        let (bad, lost) = match read_table(self.packs(), pack) {
            Ok(Some(table)) => self.scrub_records(pack, &table, throttle, found)?,
            Ok(None) => (true, self.lose(pack)?),
            Err(error) => {
                tracing::error!("{}", report(&error));
                self.quarantine(pack);
                (true, self.rescue(pack)?)
            }
        };
        if bad {
            found.damaged_packs.push(pack);
            self.quarantine(pack);
        }
        if self.failure().is_none() {
            // What cannot be noted is only looked at again earlier.
            self.record(|catalog| catalog.checked(pack, self.time().1.uptime))?;
        }
        Ok(lost)
    }

    fn scrub_records(
        &self,
        pack: PackId,
        table: &[Record],
        throttle: &Throttle,
        found: &mut ScrubReport,
    ) -> Result<(bool, Vec<Cid>), MarkError> {
        let (mut bad, mut lost) = (false, Vec::new());
        for record in table {
            throttle.check().and_then(|()| throttle.spend(record.len.into())).map_err(|_| MarkError::Stopped)?;
            found.bytes += u64::from(record.len);
            if matches!(read_blob(self.packs(), pack, record.offset, record.len, record.cid), Ok(Some(_))) {
                continue;
            }
            // Compaction may have taken the whole pack away meanwhile.
            if self.packs().len(pack)?.is_none() {
                break;
            }
            bad = true;
            let of_use = self.catalog().have(&[record.cid])?.contains(&true);
            if of_use && self.recheck(record.cid)? {
                lost.push(record.cid);
            }
        }
        Ok((bad, lost))
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

    /// Copies what is whole out of a pack whose table is damaged, and gives the pack up.
    fn rescue(&self, pack: PackId) -> Result<Vec<Cid>, MarkError> {
        let all = self.catalog().blobs_of(pack)?;
        let len = self.packs().len(pack)?.and_then(|len| usize::try_from(len).ok()).unwrap_or(0);
        let mut bytes = vec![0; len.min(4 * pack::PACK_SIZE)];
        let readable = matches!(self.packs().read(pack, 0, &mut bytes), Ok(true));
        let bytes = bytes::Bytes::from(bytes);
        let wanted: HashSet<Cid> = all.iter().copied().collect();
        let mut builder = PackBuilder::default();
        for record in if readable { pack::scan_records(&bytes) } else { Vec::new() } {
            if wanted.contains(&record.cid) {
                let at = record.offset as usize;
                builder.push(record.cid, record.kind, bytes.slice(at..at + record.len as usize));
            }
        }
        let saved: HashSet<Cid> = builder.records().iter().map(|record| record.cid).collect();
        let lost: Vec<Cid> = all.iter().copied().filter(|cid| !saved.contains(cid)).collect();
        lost.iter().try_for_each(|&cid| self.record(|catalog| catalog.add_damage(cid, pack)))?;
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

    /// Keeps a copy of a damaged pack, if there is space for it.
    fn quarantine(&self, pack: PackId) {
        let (from, to) = (self.files.packs.path_of(pack), self.files.quarantine.join(format!("{pack}.pack")));
        if to.exists() || !from.exists() || self.files.packs.check_space().is_err() {
            return;
        }
        match fs::copy(&from, &to) {
            Ok(_) => tracing::error!("pack {pack} is damaged; a copy is kept as {}", to.display()),
            Err(error) => tracing::error!("pack {pack} is damaged; no copy could be kept: {error}"),
        }
    }

    fn conclude(&self, lost: impl IntoIterator<Item = Cid>, mut found: ScrubReport) -> Result<ScrubReport, MarkError> {
        let mut lost: HashSet<Cid> = lost.into_iter().collect();
        if lost.is_empty() {
            return Ok(found);
        }
        found.healed = self.heal(&mut lost)?;
        found.lost = lost.len() as u64;
        found.affected = self.affected(&lost)?;
        for Affected { volume, source, id } in &found.affected {
            tracing::error!("snapshot {} of {volume} from {source} is damaged; back the volume up again", id.short());
        }
        Ok(found)
    }

    /// Looks for other copies of `lost` and takes those that are whole.
    fn heal(&self, lost: &mut HashSet<Cid>) -> Result<u64, ArchiveError> {
        let before = lost.len();
        for pack in self.packs().list()? {
            let mut copies = read_table(self.packs(), pack).ok().flatten().unwrap_or_default();
            copies.retain(|copy| {
                lost.contains(&copy.cid)
                    && matches!(read_blob(self.packs(), pack, copy.offset, copy.len, copy.cid), Ok(Some(_)))
            });
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

    /// The snapshots that need any of `lost`.
    ///
    /// # Errors
    /// When the catalog fails. A node that cannot be read counts as lost itself.
    pub fn affected(&self, lost: &HashSet<Cid>) -> Result<Vec<Affected>, MarkError> {
        let (mut known, mut affected, mut after) = (HashMap::new(), Vec::new(), 0);
        loop {
            let page = self.catalog().standing_after(after, 16)?;
            let Some(last) = page.last() else { return Ok(affected) };
            after = last.position;
            for snapshot in &page {
                let id = snapshot.hash.into();
                let body = Manifest::parse(&snapshot.manifest).map_err(|_| MarkError::Manifest(id))?.body;
                if self.needs(body.root, lost, &mut known)? {
                    affected.push(Affected { volume: body.volume, source: body.source, id });
                }
            }
        }
    }

    fn needs(&self, node: Cid, lost: &HashSet<Cid>, known: &mut HashMap<Cid, bool>) -> Result<bool, MarkError> {
        if lost.contains(&node) {
            return Ok(true);
        }
        if let Some(&needs) = known.get(&node) {
            return Ok(needs);
        }
        // Trees are shallow: each was walked within its bounds when it was committed.
        let needs = match self.refs(node)? {
            None => true,
            Some((BlobKind::Leaf, children)) => children.iter().any(|child| lost.contains(child)),
            Some((_, children)) => {
                let mut needs = false;
                for child in children {
                    needs |= self.needs(child, lost, known)?;
                }
                needs
            }
        };
        known.insert(node, needs);
        Ok(needs)
    }

    fn refs(&self, node: Cid) -> Result<Option<(BlobKind, Vec<Cid>)>, MarkError> {
        let Some(location) = self.catalog().locate(&[node])?.into_iter().next().flatten() else { return Ok(None) };
        let blob = match self.read_moved(node, &location) {
            Err(ArchiveError::Store(StoreError::Io { .. })) => None,
            result => result?,
        };
        let header = blob.as_ref().and_then(|blob| Header::parse(blob).ok());
        Ok(header.map(|header| (header.kind, header.refs().collect())))
    }
}
