//! What disks, power cuts and people do to a store: every kind at every place.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::Rng;

/// A kind of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// One bit is wrong.
    FlipBit,
    /// The end is missing.
    Truncate,
    /// The file is missing.
    Delete,
    /// A block holds zeros, as after a power cut.
    Zero,
    /// There is more than was written.
    Append,
}

/// A place in a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A pack.
    Pack,
    /// A manifest.
    Manifest,
    /// The catalog.
    Catalog,
    /// The log of what was committed and deleted.
    Log,
}

impl Damage {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::FlipBit, Self::Truncate, Self::Delete, Self::Zero, Self::Append];

    /// Damages a file, somewhere that `rng` says. What it does is never without effect.
    ///
    /// # Panics
    /// If the file is empty or cannot be written.
    #[track_caller]
    pub fn apply(self, file: &Path, rng: &mut Rng) {
        self.attempt(file, rng).unwrap_or_else(|error| panic!("{self:?} of {}: {error}", file.display()));
    }

    fn attempt(self, path: &Path, rng: &mut Rng) -> std::io::Result<()> {
        if self == Self::Delete {
            return fs::remove_file(path);
        }
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let size = file.metadata()?.len();
        assert!(size > 0, "{} is empty: nothing in it can be damaged", path.display());
        match self {
            Self::FlipBit => {
                let at = rng.below(size);
                let mut byte = [0];
                file.read_exact_at(&mut byte, at)?;
                byte[0] ^= 1 << rng.below(8);
                file.write_all_at(&byte, at)
            }
            Self::Truncate => file.set_len(size - 1 - rng.below(size.min(4096))),
            Self::Delete => unreachable!("done above"),
            Self::Zero => {
                // A block that holds something else already.
                for _ in 0..10_000 {
                    let at = rng.below(size.div_ceil(512)) * 512;
                    let mut block = vec![0; usize::try_from((size - at).min(512)).expect("a block")];
                    file.read_exact_at(&mut block, at)?;
                    if block.iter().any(|&byte| byte != 0) {
                        block.fill(0);
                        return file.write_all_at(&block, at);
                    }
                }
                panic!("{} holds nothing but zeros", path.display());
            }
            Self::Append => {
                let junk = 1 + rng.below(4096);
                file.write_all_at(&rng.bytes(usize::try_from(junk).expect("a few bytes")), size)
            }
        }
    }
}

impl Place {
    /// Every place.
    pub const ALL: [Self; 4] = [Self::Pack, Self::Manifest, Self::Catalog, Self::Log];

    /// The files at this place of a store, sorted.
    #[must_use]
    #[track_caller]
    pub fn files(self, store: &Path) -> Vec<PathBuf> {
        let mut files = match self {
            Self::Pack => below(&store.join("packs")),
            Self::Manifest => below(&store.join("manifests")),
            Self::Catalog => vec![store.join("catalog.sqlite")],
            Self::Log => below(&store.join("log")),
        };
        files.retain(|file| file.metadata().is_ok_and(|meta| meta.len() > 0));
        files.sort();
        files
    }

    /// Damages one file at this place of a store that no server has open, and returns its path.
    ///
    /// # Panics
    /// If there is no file at this place.
    #[track_caller]
    pub fn damage(self, store: &Path, damage: Damage, seed: u64) -> PathBuf {
        let files = self.files(store);
        assert!(!files.is_empty(), "no {self:?} in {}", store.display());
        let mut rng = Rng::new(seed);
        let file = rng.pick(&files).clone();
        damage.apply(&file, &mut rng);
        file
    }
}

/// All regular files below a directory.
fn below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    for entry in entries.map(|entry| entry.expect("a directory entry")) {
        if entry.file_type().expect("a type").is_dir() {
            files.extend(below(&entry.path()));
        } else {
            files.push(entry.path());
        }
    }
    files
}
