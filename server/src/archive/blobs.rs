//! Blobs: which are here, bringing new ones, reading them.

use std::sync::PoisonError;

use bytes::Bytes;
use vsync_protocol::blob::{BlobKind, Header};
use vsync_protocol::id::{Cid, PackId};

use super::{Archive, ArchiveError};
use crate::catalog::{Location, State};
use crate::catchup::what_is_in;
use crate::pins::SessionPins;
use crate::store::pack::PackBuilder;
use crate::store::{PackStore, StoreError, read_blob};
use crate::words::report;

impl Archive {
    /// Pins for a new session.
    #[must_use]
    pub fn session_pins(&self) -> SessionPins {
        self.pins.session()
    }

    /// Which of `cids` are here and not known to be damaged. Those stay for as long as
    /// `pins` do.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn have(&self, pins: &SessionPins, cids: &[Cid]) -> Result<Vec<bool>, ArchiveError> {
        let _gate = self.pins.hold();
        let answers = self.catalog.have(cids)?;
        pins.pin(cids.iter().zip(&answers).filter_map(|(cid, here)| here.then_some(cid)));
        Ok(answers)
    }

    /// Makes the blobs of `pack`, already checked against their names, durable and known,
    /// and pins them. Those that somebody else brought meanwhile are left out.
    ///
    /// # Errors
    /// When they are not durable and known.
    pub fn put(&self, pins: &SessionPins, pack: PackBuilder) -> Result<(), ArchiveError> {
        let cids: Vec<Cid> = pack.records().iter().map(|record| record.cid).collect();
        let mut unknown = self.storing.lock().unwrap_or_else(PoisonError::into_inner);
        let _gate = self.pins.hold();
        pins.pin(&cids);
        self.make_known(&mut unknown)?;
        self.revive(&cids)?;
        let mut known = self.catalog.have(&cids)?.into_iter();
        let pack = pack.retain(|_| !known.next().unwrap_or(false));
        if pack.is_empty() {
            return Ok(());
        }
        let pack = pack.finish();
        self.files.packs.put(&pack)?;
        // Only now: whoever finds a blob in the catalog finds it on disk.
        let known = self.record(|catalog| catalog.add_pack(pack.id(), pack.len(), pack.records().to_vec()));
        known.inspect_err(|_| unknown.push(pack.id()))
    }

    /// Records packs that are durable already and that a full disk has kept out of the catalog, as the next start would.
    /// Before that no other pack is written: else each try on a full disk would leave one more.
    fn make_known(&self, unknown: &mut Vec<PackId>) -> Result<(), ArchiveError> {
        while let Some(&pack) = unknown.last() {
            self.files.health.check()?;
            if let Some(content) = what_is_in(&self.files.packs, pack)? {
                self.record(|catalog| catalog.add_pack(pack, content.bytes, content.records))?;
            }
            unknown.pop();
        }
        Ok(())
    }

    /// Makes those of `cids` live again that are condemned and undamaged.
    pub(crate) fn revive(&self, cids: &[Cid]) -> Result<(), ArchiveError> {
        let mut whole = Vec::new();
        for (&cid, entry) in cids.iter().zip(self.catalog.entries(cids)?) {
            let Some(entry) = entry.filter(|entry| entry.state == State::Condemned) else { continue };
            if read_blob(&self.files.packs, entry.pack, entry.offset, entry.len, cid)?.is_some() {
                whole.push(cid);
            }
        }
        if whole.is_empty() { Ok(()) } else { self.record(|catalog| catalog.revive(whole).map(drop)) }
    }

    /// Reads the blob at `location` and checks it against its name; none when it is damaged.
    ///
    /// # Errors
    /// When the medium fails.
    pub fn read(&self, cid: Cid, location: &Location) -> Result<Option<Bytes>, StoreError> {
        read_blob(&self.files.packs, location.pack, location.offset, location.len, cid)
    }

    /// As [`Self::read`], but looks where the blob is now if it is no more at `location`.
    ///
    /// # Errors
    /// When the medium or the catalog fails.
    pub fn read_moved(&self, cid: Cid, location: &Location) -> Result<Option<Bytes>, ArchiveError> {
        if let Some(blob) = self.read(cid, location)? {
            return Ok(Some(blob));
        }
        match self.catalog.locate_one(cid)? {
            Some(now) if (now.pack, now.offset) != (location.pack, location.offset) => Ok(self.read(cid, &now)?),
            _ => Ok(None),
        }
    }

    /// Looks at the copy of `cid` again. Returns whether it is damaged or absent; a damaged
    /// one counts as absent from then on, so that the next backup brings it again.
    ///
    /// # Errors
    /// When the catalog fails, or it cannot be told: that says nothing of the copy.
    pub fn recheck(&self, cid: Cid) -> Result<bool, ArchiveError> {
        // Compaction does not move the copy away meanwhile.
        let _gate = self.pins.hold();
        let Some(location) = self.catalog.locate_one(cid)? else { return Ok(true) };
        if self.read(cid, &location)?.is_some() {
            return Ok(false);
        }
        tracing::error!("blob {cid} in pack {} is damaged", location.pack);
        self.record(|catalog| catalog.add_damage(cid, location.pack))?;
        Ok(true)
    }

    /// As [`Self::recheck`], for a reader: it gets what there is even from a store that can record nothing.
    pub fn doubt(&self, cid: Cid) {
        if let Err(error) = self.recheck(cid) {
            tracing::error!("whether blob {cid} is damaged cannot be told or recorded: {}", report(&error));
        }
    }

    /// The kind of the node `node` and what it refers to; none when it is absent, damaged or
    /// no blob.
    ///
    /// # Errors
    /// When the catalog fails, or it cannot be told.
    pub(crate) fn references(&self, node: Cid) -> Result<Option<(BlobKind, Vec<Cid>)>, ArchiveError> {
        // A second time, if compaction moved it between being found and being read.
        for _ in 0..2 {
            let entry = self.catalog.entries(&[node])?.pop().flatten();
            let Some(entry) = entry.filter(|entry| entry.state != State::Corrupt) else { return Ok(None) };
            if let Some(blob) = read_blob(&self.files.packs, entry.pack, entry.offset, entry.len, node)? {
                let header = Header::parse(&blob).ok();
                return Ok(header.map(|header| (header.kind, header.refs().collect())));
            }
        }
        Ok(None)
    }
}
