//! What administrators have a server do to its store, and what came of it.

use minicbor::{Decode, Encode};

use crate::id::{MachineName, PackId, SnapshotId, VolumeName};

/// How to collect garbage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct GcOrder {
    /// Only say what would be done.
    #[n(0)]
    pub dry_run: bool,
    /// Remove what is in the trash, however short it was there.
    #[n(1)]
    pub empty_trash: bool,
    /// Give up at once what is needless, instead of after days.
    #[n(2)]
    pub at_once: bool,
}

/// What a round of garbage collection did, or would do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct GcReport {
    /// Its number; 0 for a dry run.
    #[n(0)]
    pub round: u64,
    /// Blobs that nothing needs any more, condemned in this round.
    #[n(1)]
    pub condemned: u64,
    /// Bytes of those.
    #[n(2)]
    pub condemned_bytes: u64,
    /// Packs that went to the trash.
    #[n(3)]
    pub trashed: u64,
    /// Bytes of those.
    #[n(4)]
    pub trashed_bytes: u64,
    /// Bytes that were copied out of them into new packs.
    #[n(5)]
    pub copied_bytes: u64,
    /// Packs that were removed from the trash.
    #[n(6)]
    pub removed: u64,
    /// Bytes of those.
    #[n(7)]
    pub removed_bytes: u64,
}

/// A snapshot that needs something that is damaged.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Affected {
    /// The volume.
    #[n(0)]
    pub volume: VolumeName,
    /// The machine that the data came from.
    #[n(1)]
    pub source: MachineName,
    /// The snapshot.
    #[n(2)]
    pub id: SnapshotId,
}

/// What reading the whole store again has found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ScrubReport {
    /// Packs read.
    #[n(0)]
    pub packs: u64,
    /// Bytes read.
    #[n(1)]
    pub bytes: u64,
    /// Packs with any damage, also where it hit nothing of use.
    #[n(2)]
    pub damaged_packs: Vec<PackId>,
    /// Blobs that were damaged and of which there was another copy.
    #[n(3)]
    pub healed: u64,
    /// Blobs that are lost until a backup brings them again.
    #[n(4)]
    pub lost: u64,
    /// Snapshots that need one of those.
    #[n(5)]
    pub affected: Vec<Affected>,
    /// Snapshots whose manifests are damaged, or signed by nobody who is known.
    #[n(6)]
    pub bad_manifests: Vec<SnapshotId>,
    /// Blobs that the catalog placed where they are not, and places right again; none: there
    /// were none.
    #[n(7)]
    pub misplaced: Option<u64>,
}

impl ScrubReport {
    /// Whether nothing was found.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.damaged_packs.is_empty()
            && self.bad_manifests.is_empty()
            && self.lost == 0
            && self.affected.is_empty()
            && self.misplaced.is_none()
    }
}
