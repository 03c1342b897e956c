//! Where files are cut: content-defined, by FastCDC 2020 with a gear table that only the
//! realm knows, or at fixed distances in files that are rewritten page by page.

use fastcdc::v2020::{Normalization, cut_gear, select_masks};
use vsync_protocol::manifest::ChunkerParameters;

/// The parameters of new snapshots.
///
/// Small chunks send little after scattered changes; below these sizes what is kept per
/// chunk outweighs that. Figures in `docs/decisions/0002-chunk-sizes.md`.
pub const PARAMETERS: ChunkerParameters = ChunkerParameters {
    algorithm: 1,
    min: 16 << 10,
    average: 64 << 10,
    max: 256 << 10,
    normalization: 1,
    fixed: 32 << 10,
};

/// How a file is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Profile {
    /// Wherever the content says: for everything that may shift.
    #[default]
    General,
    /// At multiples of a fixed size: for files that are rewritten in place, page by page.
    Database,
}

impl Profile {
    /// Guesses from a file's name, its directory and its size how it is written.
    #[must_use]
    pub fn guess(path: &[u8], size: u64) -> Self {
        let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        let paged = size > 0 && size.is_multiple_of(4096);
        if paged && (is_postgres_relation(path, name) || has_paged_extension(name)) {
            Self::Database
        } else {
            Self::General
        }
    }
}

/// PostgreSQL keeps a relation in `base/<database>/<number>[.segment]` or `global/<number>`,
/// its maps beside it with `_fsm` and `_vm`.
fn is_postgres_relation(path: &[u8], name: &[u8]) -> bool {
    let mut folders = path.rsplit(|&byte| byte == b'/').skip(1);
    let parent = folders.next().unwrap_or_default();
    let grandparent = folders.next().unwrap_or_default();
    let number = |bytes: &[u8]| !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit);
    let place = parent == b"global" || (number(parent) && (grandparent == b"base" || grandparent.starts_with(b"PG_")));
    let stem = name.split(|&byte| byte == b'.' || byte == b'_').next().unwrap_or_default();
    place && number(stem)
}

fn has_paged_extension(name: &[u8]) -> bool {
    const PAGED: [&[u8]; 10] =
        [b"ibd", b"sqlite", b"sqlite3", b"db", b"mdb", b"qcow2", b"vmdk", b"vdi", b"img", b"raw"];
    let extension = name.rsplit(|&byte| byte == b'.').next().unwrap_or_default();
    name.starts_with(b"ibdata") || PAGED.iter().any(|paged| extension.eq_ignore_ascii_case(paged))
}

/// Finds cut points.
pub struct Cutter {
    parameters: ChunkerParameters,
    masks: (u64, u64),
    gear: Box<[u64; 256]>,
    shifted: Box<[u64; 256]>,
}

impl Cutter {
    /// A cutter with the realm's gear table. `None` for parameters that no vsync writes.
    #[must_use]
    pub fn new(parameters: ChunkerParameters, gear: &[u64; 256]) -> Option<Self> {
        let ChunkerParameters { algorithm, min, average, max, normalization, fixed } = parameters;
        let sizes_fit = [min, average, max, fixed].iter().all(|size| size.is_power_of_two())
            && (256..=1 << 20).contains(&min)
            && (min..=max).contains(&average)
            && average <= 4 << 20
            && max <= 8 << 20
            && (4096..=8 << 20).contains(&fixed);
        if algorithm != 1 || !sizes_fit {
            return None;
        }
        let level = match normalization {
            0 => Normalization::Level0,
            1 => Normalization::Level1,
            2 => Normalization::Level2,
            3 => Normalization::Level3,
            _ => return None,
        };
        Some(Self {
            parameters,
            masks: select_masks(average as usize, level),
            gear: Box::new(*gear),
            shifted: Box::new(gear.map(|value| value << 1)),
        })
    }

    /// Longest chunk of `profile`, in bytes: so many must be given to [`Self::cut`] unless
    /// the data ends before.
    #[must_use]
    pub const fn longest(&self, profile: Profile) -> usize {
        match profile {
            Profile::General => self.parameters.max as usize,
            Profile::Database => self.parameters.fixed as usize,
        }
    }

    /// Whether [`Self::cut`] ends a chunk after `len` bytes of `data`, given that it ends none
    /// before.
    ///
    /// Equal chunks are not cut alike wherever they stand: the byte that follows takes part
    /// in the decision, and so does the end of the data.
    #[must_use]
    pub fn cuts_at(&self, profile: Profile, data: &[u8], len: usize) -> bool {
        let end = data.len().min(self.longest(profile));
        if profile == Profile::Database || len >= end {
            return len == end;
        }
        let (min, center) = (self.parameters.min as usize, end.min(self.parameters.average as usize));
        // The scan takes bytes in pairs, and leaves a last odd one untested.
        if len < min || len / 2 >= end / 2 {
            return false;
        }
        let (small, large) = self.masks;
        let mask = if len / 2 < center / 2 { small } else { large };
        let remembered = &data[min.max((len + 1).saturating_sub(GEAR_WINDOW))..=len];
        let hash = remembered.iter().fold(0_u64, |hash, &byte| (hash << 1).wrapping_add(self.gear[usize::from(byte)]));
        hash & mask == 0
    }

    /// Length of the chunk at the start of `data`, which begins at a cut and is either
    /// [`Self::longest`] bytes long or ends where the data ends.
    #[must_use]
    pub fn cut(&self, profile: Profile, data: &[u8]) -> usize {
        match profile {
            Profile::Database => data.len().min(self.parameters.fixed as usize),
            Profile::General => {
                let (small, large) = self.masks;
                let (_, end) = cut_gear(
                    data,
                    self.parameters.min as usize,
                    self.parameters.average as usize,
                    self.parameters.max as usize,
                    small,
                    large,
                    small << 1,
                    large << 1,
                    self.gear.as_slice(),
                    self.shifted.as_slice(),
                );
                end
            }
        }
    }
}

/// Bytes that a gear hash remembers: one for each of its bits.
const GEAR_WINDOW: usize = 64;

/// Whether every byte is zero: such a chunk is a hole.
#[must_use]
pub fn is_zero(data: &[u8]) -> bool {
    // The first bytes decide nearly always.
    let (head, rest) = data.split_at(data.len().min(64));
    head.iter().all(|&byte| byte == 0)
        && rest.chunks(4096).all(|block| block.iter().fold(0, |all, &byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gear(seed: u8) -> [u64; 256] {
        let mut bytes = [0; 2048];
        blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
        std::array::from_fn(|n| u64::from_le_bytes(bytes[n * 8..n * 8 + 8].try_into().unwrap()))
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut data);
        data
    }

    fn cuts(cutter: &Cutter, profile: Profile, data: &[u8]) -> Vec<usize> {
        let mut lengths = Vec::new();
        let mut at = 0;
        while at < data.len() {
            let end = data.len().min(at + cutter.longest(profile));
            lengths.push(cutter.cut(profile, &data[at..end]));
            at += lengths[lengths.len() - 1];
        }
        lengths
    }

    /// Cut points are part of the format: these never change.
    #[test]
    fn golden_cut_points() {
        let cutter = Cutter::new(PARAMETERS, &gear(1)).unwrap();
        let found = cuts(&cutter, Profile::General, &noise(600_000));
        assert_eq!(found, GOLDEN, "cut points moved");
        assert_eq!(cuts(&cutter, Profile::Database, &noise(70_000)), [32_768, 32_768, 4464]);
    }

    const GOLDEN: [usize; 6] = [91_621, 171_292, 101_549, 61_534, 93_390, 80_614];

    #[test]
    fn a_cut_can_be_confirmed_without_the_scan() {
        let sizes = ChunkerParameters { min: 256, average: 1024, max: 4096, fixed: 4096, ..PARAMETERS };
        let cutter = Cutter::new(sizes, &gear(3)).unwrap();
        for profile in [Profile::General, Profile::Database] {
            for len in (4000..9000).step_by(7).chain(1000..1100).chain(0..300) {
                let data = &noise(9000)[..len];
                let data = &data[..len.min(cutter.longest(profile))];
                let cut = cutter.cut(profile, data);
                assert!(cutter.cuts_at(profile, data, cut), "{len} {profile:?}");
                assert!((1..cut).all(|at| !cutter.cuts_at(profile, data, at)), "{len} {profile:?}");
            }
        }
    }

    #[test]
    fn an_insertion_moves_few_cuts() {
        let cutter = Cutter::new(PARAMETERS, &gear(2)).unwrap();
        let data = noise(3_000_000);
        let mut edited = data.clone();
        edited.insert(1_000_000, 7);
        let before = cuts(&cutter, Profile::General, &data);
        let after = cuts(&cutter, Profile::General, &edited);
        assert_eq!(before.iter().rev().take(15).collect::<Vec<_>>(), after.iter().rev().take(15).collect::<Vec<_>>());
    }

    #[test]
    fn parameters_out_of_range_are_refused() {
        let bad = [
            ChunkerParameters { algorithm: 2, ..PARAMETERS },
            ChunkerParameters { min: 16_000, ..PARAMETERS },
            ChunkerParameters { max: 1 << 24, ..PARAMETERS },
            ChunkerParameters { average: 8 << 10, ..PARAMETERS },
            ChunkerParameters { fixed: 0, ..PARAMETERS },
            ChunkerParameters { normalization: 4, ..PARAMETERS },
        ];
        assert!(bad.iter().all(|parameters| Cutter::new(*parameters, &gear(1)).is_none()));
    }

    #[test]
    fn profiles_are_guessed_from_names() {
        for (path, size, profile) in [
            ("base/16384/2619", 8192, Profile::Database),
            ("pgdata/base/16384/2619.1", 1 << 30, Profile::Database),
            ("base/16384/2619_fsm", 24_576, Profile::Database),
            ("global/1262", 8192, Profile::Database),
            ("pg_tblspc/1/PG_15_1/5/99", 8192, Profile::Database),
            ("base/16384/PG_VERSION", 4096, Profile::General),
            ("base/16384/2619", 100, Profile::General),
            ("data/users.ibd", 65_536, Profile::Database),
            ("notes.txt", 4096, Profile::General),
            ("2619", 8192, Profile::General),
        ] {
            assert_eq!(Profile::guess(path.as_bytes(), size), profile, "{path}");
        }
    }

    #[test]
    fn zeros_are_recognised() {
        assert!(is_zero(&[]) && is_zero(&[0; 70_000]));
        let mut data = vec![0; 70_000];
        data[69_999] = 1;
        assert!(!is_zero(&data));
    }
}
