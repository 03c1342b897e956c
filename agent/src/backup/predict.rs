//! Recognising what the parent snapshot already has, at the price of one hash.
//!
//! A cut depends only on the bytes since the cut before, and on the one that follows. Where
//! the parent's next chunk is found unchanged, and the end of it still is a cut, the full
//! scan would find the same one, so that the gear hash of all the rest can be skipped.

use std::collections::HashMap;
use std::ops::Range;

use vsync_protocol::id::Pid;

use crate::chunk::{Cutter, Profile, is_zero};
use crate::tree::{Piece, Reference};
use crate::vault::Vault;

/// After so many wrong predictions in a row, scan only: each costs a hash for nothing.
const MISSES: u32 = 8;

/// Chunks scanned before another prediction is tried.
const RETRY_AFTER: u32 = 32;

/// One chunk or hole of a file, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The parent has it.
    Known(Reference),
    /// Zeros.
    Hole(u64),
    /// To be sealed: its length, and its id if it was needed.
    New(usize, Option<Pid>),
}

impl Cut {
    /// Bytes of content.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "no cut is empty")]
    pub const fn len(&self) -> usize {
        match self {
            Self::Known(reference) => reference.child.raw_len as usize,
            Self::Hole(len) => *len as usize,
            Self::New(len, _) => *len,
        }
    }
}

/// What a cut is made from.
#[derive(Clone, Copy)]
pub struct Window<'a> {
    /// The bytes since the last cut, as many as [`Cutter::cut`] wants.
    pub data: &'a [u8],
    /// Where they lie in the new version.
    pub offset: u64,
    /// Whether they end where the run of data ends.
    pub last: bool,
    /// Ids that were computed ahead.
    pub hashed: &'a Hashed,
}

impl Window<'_> {
    /// The id of the first `len` bytes.
    fn pid(&self, vault: &Vault, len: usize) -> Pid {
        self.hashed.find(self.offset, len).unwrap_or_else(|| vault.pid(&self.data[..len]))
    }
}

/// Ids of stretches of a file, by where they lie, in order.
#[derive(Debug, Default)]
pub struct Hashed(Vec<(u64, usize, Pid)>);

impl Hashed {
    /// Adds stretches that follow those known so far, as offset, length and id, and forgets
    /// what lies before `from`.
    pub fn advance(&mut self, from: u64, more: impl IntoIterator<Item = (u64, usize, Pid)>) {
        self.0.retain(|&(offset, ..)| offset >= from);
        self.0.extend(more);
    }

    fn find(&self, offset: u64, len: usize) -> Option<Pid> {
        let at = self.0.binary_search_by_key(&offset, |&(offset, ..)| offset).ok()?;
        let (_, known, pid) = self.0[at];
        (known == len).then_some(pid)
    }
}

/// The parent's pieces of one file, and where among them the new version seems to be.
pub struct Predictor {
    pieces: Vec<Piece>,
    /// Piece expected next.
    next: usize,
    /// Its offset in the parent.
    offset: u64,
    /// Offset in the new version less offset in the parent.
    shift: i64,
    misses: u32,
    scanned: u32,
    /// Where each chunk stands among the pieces, and its offset in the parent.
    by_pid: Option<HashMap<Pid, (usize, u64)>>,
}

impl Predictor {
    /// Expects the parent's `pieces`; without any, everything is scanned.
    #[must_use]
    pub const fn new(pieces: Vec<Piece>) -> Self {
        Self { pieces, next: 0, offset: 0, shift: 0, misses: 0, scanned: 0, by_pid: None }
    }

    /// The stretches within `range` whose ids a cut will ask for, if the new version goes on
    /// as it seems to: offsets and lengths, in order. A guess: it costs time to be wrong.
    #[must_use]
    pub fn outlook(&self, cutter: &Cutter, profile: Profile, range: Range<u64>) -> Vec<(u64, usize)> {
        if profile == Profile::Database {
            // Cut alike whatever is in it, and each piece is asked for by its id.
            let step = cutter.longest(profile);
            let whole = (range.end - range.start) / step as u64;
            return (0..whole).map(|number| (range.start + number * step as u64, step)).collect();
        }
        if self.misses >= MISSES {
            return Vec::new();
        }
        let mut found = Vec::new();
        let mut at = self.offset.saturating_add_signed(self.shift);
        for piece in self.pieces.get(self.next..).unwrap_or_default() {
            let end = at.saturating_add(piece.len());
            if end > range.end {
                break;
            }
            if let (Some(reference), true) = (chunk(piece), at >= range.start) {
                found.push((at, reference.child.raw_len as usize));
            }
            at = end;
        }
        found
    }

    /// Cuts the chunk at the start of `window`.
    pub fn cut(&mut self, vault: &Vault, cutter: &Cutter, profile: Profile, window: &Window<'_>) -> Cut {
        let Window { data, offset, last, hashed } = *window;
        if self.pieces.is_empty() {
            let len = cutter.cut(profile, data);
            let zeros = is_zero(&data[..len]);
            return if zeros { Cut::Hole(len as u64) } else { Cut::New(len, hashed.find(offset, len)) };
        }
        self.follow(offset);
        let mut tried = None;
        if let Some((reference, ends_run)) = self.expected(offset) {
            let len = reference.child.raw_len as usize;
            // A chunk that ended with its data is the same cut only if it does so again.
            let same_end = !ends_run || (last && len == data.len());
            if len <= data.len() && same_end && cutter.cuts_at(profile, data, len) {
                let pid = window.pid(vault, len);
                if pid == reference.child.pid {
                    self.hit();
                    return Cut::Known(reference);
                }
                self.misses += 1;
                tried = Some((len, pid));
            }
        }
        self.scan(vault, cutter, profile, window, tried)
    }

    /// Cuts by content, and looks the chunk up among all of the parent's.
    fn scan(
        &mut self,
        vault: &Vault,
        cutter: &Cutter,
        profile: Profile,
        window: &Window<'_>,
        tried: Option<(usize, Pid)>,
    ) -> Cut {
        self.scanned += 1;
        let len = cutter.cut(profile, window.data);
        if is_zero(&window.data[..len]) {
            return Cut::Hole(len as u64);
        }
        let pid = match tried {
            Some((same, pid)) if same == len => pid,
            _ => window.pid(vault, len),
        };
        match self.find(pid) {
            Some((reference, position, before)) => {
                self.resume_after(position, before, window.offset);
                Cut::Known(reference)
            }
            None => Cut::New(len, Some(pid)),
        }
    }

    /// Moves on to the piece that begins at or after `offset`.
    fn follow(&mut self, offset: u64) {
        while let Some(piece) = self.pieces.get(self.next) {
            if self.offset.saturating_add_signed(self.shift) >= offset {
                return;
            }
            self.offset += piece.len();
            self.next += 1;
        }
    }

    /// The parent's chunk at exactly `offset`, and whether its run of data ended with it.
    fn expected(&mut self, offset: u64) -> Option<(Reference, bool)> {
        if self.misses >= MISSES {
            if self.scanned < RETRY_AFTER {
                return None;
            }
            self.misses = MISSES - 1;
            self.scanned = 0;
        }
        let Piece::Chunk(reference) = *self.pieces.get(self.next)? else { return None };
        let ends_run = !matches!(self.pieces.get(self.next + 1), Some(Piece::Chunk(_)));
        (self.offset.saturating_add_signed(self.shift) == offset).then_some((reference, ends_run))
    }

    fn hit(&mut self) {
        self.offset += self.pieces[self.next].len();
        self.next += 1;
        self.misses = 0;
    }

    /// A chunk of the parent's by its id, its place among the pieces, and its offset.
    fn find(&mut self, pid: Pid) -> Option<(Reference, usize, u64)> {
        let (pieces, mut end) = (&self.pieces, 0);
        let by_pid = self.by_pid.get_or_insert_with(|| {
            let mut by_pid = HashMap::with_capacity(pieces.len());
            for (position, piece) in pieces.iter().enumerate() {
                if let Some(reference) = chunk(piece) {
                    // Of equal chunks the first.
                    by_pid.entry(reference.child.pid).or_insert((position, end));
                }
                end += piece.len();
            }
            by_pid
        });
        let (position, offset) = *by_pid.get(&pid)?;
        chunk(&pieces[position]).map(|reference| (reference, position, offset))
    }

    /// After content that lay at `before` in the parent and lies at `offset` now: expects what
    /// followed it in the parent.
    fn resume_after(&mut self, position: usize, before: u64, offset: u64) {
        if position + 1 != self.next || self.misses > 0 {
            self.offset = before + self.pieces[position].len();
            self.next = position + 1;
            self.shift = offset as i64 - before as i64;
        }
        self.misses = 0;
    }
}

const fn chunk(piece: &Piece) -> Option<Reference> {
    match piece {
        Piece::Chunk(reference) => Some(*reference),
        Piece::Hole(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::PARAMETERS;
    use crate::keys::WriterKeys;
    use proptest::prelude::*;
    use vsync_protocol::blob::Suite;
    use vsync_protocol::id::{Cid, RealmId};
    use vsync_protocol::key::ContentKey;
    use vsync_protocol::manifest::ChunkerParameters;
    use vsync_protocol::tree::Child;

    /// Small chunks, so that small files have many.
    const SMALL: ChunkerParameters =
        ChunkerParameters { min: 256, average: 1024, max: 4096, fixed: 4096, ..PARAMETERS };

    fn vault() -> Vault {
        let keys = WriterKeys { convergence: [2; 32], gear: Box::new([0; 256]), plaintext: [3; 32] };
        Vault::new(RealmId::from_bytes([1; 16]), Suite::Aes256Gcm, 1, keys)
    }

    fn cutter() -> Cutter {
        let mut seed = 1_u64;
        let gear = std::array::from_fn(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            seed
        });
        Cutter::new(SMALL, &gear).unwrap()
    }

    fn cuts(predictor: &mut Predictor, profile: Profile, data: &[u8]) -> Vec<Cut> {
        let (vault, cutter) = (vault(), cutter());
        let mut cuts: Vec<Cut> = Vec::new();
        let mut at = 0;
        while at < data.len() {
            let end = data.len().min(at + cutter.longest(profile));
            let window =
                Window { data: &data[at..end], offset: at as u64, last: end == data.len(), hashed: &Hashed::default() };
            let cut = predictor.cut(&vault, &cutter, profile, &window);
            at += cut.len();
            cuts.push(cut);
        }
        cuts
    }

    /// The same with ids computed ahead, a stretch at a time.
    fn cuts_ahead(predictor: &mut Predictor, profile: Profile, data: &[u8], stretch: usize) -> Vec<Cut> {
        let (vault, cutter) = (vault(), cutter());
        let (mut cuts, mut hashed, mut at, mut ahead) = (Vec::new(), Hashed::default(), 0, 0);
        while at < data.len() {
            let end = data.len().min(at + cutter.longest(profile));
            while ahead < end {
                let next = data.len().min(ahead + stretch);
                let outlook = predictor.outlook(&cutter, profile, ahead as u64..next as u64);
                let pids = outlook.into_iter().map(|(offset, len)| {
                    let start = usize::try_from(offset).unwrap();
                    (offset, len, vault.pid(&data[start..start + len]))
                });
                hashed.advance(at as u64, pids);
                ahead = next;
            }
            let window = Window { data: &data[at..end], offset: at as u64, last: end == data.len(), hashed: &hashed };
            cuts.push(predictor.cut(&vault, &cutter, profile, &window));
            at += cuts[cuts.len() - 1].len();
        }
        cuts
    }

    fn pieces(profile: Profile, data: &[u8]) -> Vec<Piece> {
        let mut at = 0;
        let scanned = cuts(&mut Predictor::new(vec![]), profile, data);
        scanned
            .into_iter()
            .map(|cut| {
                let bytes = &data[at..at + cut.len()];
                at += cut.len();
                match cut {
                    Cut::Hole(len) => Piece::Hole(len),
                    _ => Piece::Chunk(Reference {
                        cid: Cid::of(bytes),
                        child: Child {
                            ck: ContentKey::from_bytes([0; 32]),
                            pid: vault().pid(bytes),
                            raw_len: bytes.len() as u32,
                        },
                    }),
                }
            })
            .collect()
    }

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut data);
        data
    }

    #[derive(Clone, Debug)]
    enum Edit {
        Overwrite(usize, usize),
        Insert(usize, usize),
        Delete(usize, usize),
        Zero(usize, usize),
        Move(usize, usize, usize),
    }

    fn edit() -> impl Strategy<Value = Edit> {
        let place = || (0_usize..60_000, 1_usize..6000);
        prop_oneof![
            place().prop_map(|(at, len)| Edit::Overwrite(at, len % 300 + 1)),
            place().prop_map(|(at, len)| Edit::Insert(at, len)),
            place().prop_map(|(at, len)| Edit::Delete(at, len)),
            place().prop_map(|(at, len)| Edit::Zero(at, len)),
            (place(), 0_usize..60_000).prop_map(|((at, len), to)| Edit::Move(at, len, to)),
        ]
    }

    fn apply(data: &mut Vec<u8>, edit: &Edit, seed: u64) {
        let clamp = |at: usize, len: usize, data: &[u8]| {
            let at = at.min(data.len());
            at..(at + len).min(data.len())
        };
        match *edit {
            Edit::Overwrite(at, len) => {
                let range = clamp(at, len, data);
                let new = noise(seed, range.len());
                data[range].copy_from_slice(&new);
            }
            Edit::Insert(at, len) => {
                let at = at.min(data.len());
                data.splice(at..at, noise(seed, len));
            }
            Edit::Delete(at, len) => drop(data.drain(clamp(at, len, data))),
            Edit::Zero(at, len) => {
                let range = clamp(at, len, data);
                data[range].fill(0);
            }
            Edit::Move(at, len, to) => {
                let moved: Vec<u8> = data.drain(clamp(at, len, data)).collect();
                let to = to.min(data.len());
                data.splice(to..to, moved);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn predicted_boundaries_are_those_of_a_full_scan(
            len in 0_usize..60_000,
            seed in any::<u64>(),
            edits in proptest::collection::vec(edit(), 0..12),
            fixed in any::<bool>(),
        ) {
            let profile = if fixed { Profile::Database } else { Profile::General };
            let before = noise(seed, len);
            let mut after = before.clone();
            edits.iter().zip(seed..).for_each(|(edit, seed)| apply(&mut after, edit, seed ^ 0x55));
            let parent = pieces(profile, &before);
            let found = cuts(&mut Predictor::new(parent.clone()), profile, &after);
            prop_assert_eq!(&cuts_ahead(&mut Predictor::new(parent.clone()), profile, &after, 16 << 10), &found);
            let predicted: Vec<usize> = found.iter().map(Cut::len).collect();
            let scanned: Vec<usize> =
                cuts(&mut Predictor::new(vec![]), profile, &after).iter().map(Cut::len).collect();
            prop_assert_eq!(predicted, scanned);
        }
    }

    /// A cut is decided by the byte that follows it, too.
    #[test]
    fn a_change_right_behind_a_chunk_may_move_its_end() {
        let before = noise(3, 60_000);
        let parent = pieces(Profile::General, &before);
        let lens = |predictor: &mut Predictor, data: &[u8]| {
            cuts(predictor, Profile::General, data).iter().map(Cut::len).collect::<Vec<_>>()
        };
        let mut end = 0;
        for piece in &parent[..parent.len() - 1] {
            end += usize::try_from(piece.len()).unwrap();
            for rest in [1, 2, 3, 40] {
                let mut after = before[..end + rest].to_vec();
                after[end] ^= 0xff;
                let predicted = lens(&mut Predictor::new(parent.clone()), &after);
                assert_eq!(predicted, lens(&mut Predictor::new(vec![]), &after), "{end} {rest}");
            }
        }
    }

    #[test]
    fn unchanged_data_is_all_known_and_an_insertion_costs_little() {
        let before = noise(1, 1_000_000);
        let parent = pieces(Profile::General, &before);
        let known = |data: &[u8]| {
            let found = cuts(&mut Predictor::new(parent.clone()), Profile::General, data);
            found.iter().filter(|cut| matches!(cut, Cut::New(..))).map(Cut::len).sum::<usize>()
        };
        assert_eq!(known(&before), 0);
        let mut inserted = before.clone();
        inserted.splice(500_000..500_000, noise(2, 5000));
        assert!((5000..30_000).contains(&known(&inserted)), "{}", known(&inserted));
    }
}
