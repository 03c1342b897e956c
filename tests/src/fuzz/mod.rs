//! Bytes from strangers, given to everything that decodes them.
//!
//! Each [`Target`] begins with what older versions wrote, and with the stored corpus of former finds. The engine
//! changes inputs, as disks, networks and enemies do, and keeps those whose outcome was not seen before: another error,
//! or a success of another shape. So it goes deeper than blind noise, without a compiler that counts branches.

mod mutate;
mod targets;

use std::collections::HashSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use targets::TARGETS;

use crate::Rng;

/// Longer than any of these decoders may take for one input.
const HANG: Duration = Duration::from_secs(5);

/// Inputs that are kept in memory to go on from.
const LARGEST_POOL: usize = 20_000;

/// Inputs are changed up to this length.
const LONGEST: usize = 4096;

/// Something that decodes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its directory in the corpus.
    pub name: &'static str,
    /// What it decodes well.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Decodes, checks what must hold of whatever was decoded, and says in few words what came of it.
    pub run: fn(&[u8]) -> String,
}

/// What a target went through.
#[derive(Clone, Copy, Debug)]
pub struct Ran {
    /// Inputs.
    pub inputs: u64,
    /// Different outcomes.
    pub outcomes: usize,
}

impl Target {
    fn directory(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(self.name)
    }

    fn corpus(&self) -> Vec<Vec<u8>> {
        let Ok(entries) = fs::read_dir(self.directory()) else { return Vec::new() };
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry of the corpus").path()).collect();
        files.sort();
        files.iter().map(|file| fs::read(file).expect("a file of the corpus")).collect()
    }

    /// Decodes everything that is stored, and then changed inputs for `time`.
    ///
    /// # Panics
    /// When the target does; the input is then in the corpus, and a part of every later run.
    #[must_use]
    pub fn fuzz(&self, seed: u64, time: Duration) -> Ran {
        let mut rng = Rng::new(seed);
        let mut pool = (self.seeds)();
        assert!(!pool.is_empty(), "{} has no seeds", self.name);
        pool.extend(self.corpus());
        let mut seen: HashSet<String> = pool.iter().map(|input| self.judge(seed, input)).collect();
        let (begun, mut inputs) = (Instant::now(), pool.len() as u64);
        while begun.elapsed() < time {
            // Whatever was found last leads on more often than what is known for long.
            let back = rng.below(pool.len() as u64).min(rng.below(pool.len() as u64));
            let base = &pool[pool.len() - 1 - usize::try_from(back).expect("an index")];
            let other = rng.pick(&pool);
            let mut input = mutate::mutate(&mut rng, base, other);
            input.truncate(LONGEST);
            inputs += 1;
            if seen.insert(self.judge(seed, &input)) && pool.len() < LARGEST_POOL {
                pool.push(input);
            }
        }
        Ran { inputs, outcomes: seen.len() }
    }

    /// Runs the target on one input; what makes it panic is kept.
    fn judge(&self, seed: u64, input: &[u8]) -> String {
        let begun = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.run)(input)));
        let trouble = match &outcome {
            Err(_) => "panicked",
            Ok(_) if begun.elapsed() > HANG => "took too long",
            Ok(outcome) => return shape(outcome),
        };
        let file = self.directory().join(&blake3::hash(input).to_hex()[..16]);
        fs::create_dir_all(self.directory()).expect("a directory of the corpus");
        fs::write(&file, input).expect("a file of the corpus");
        panic!("{} {trouble}, seed {seed}; the input is in {}", self.name, file.display());
    }
}

/// An outcome without its numbers, and without what it quotes of the input, or there would be no end to new ones.
fn shape(outcome: &str) -> String {
    let mut shape = String::new();
    let unquoted = outcome.split(['`', '"', '\n']).step_by(2).flat_map(str::chars);
    for character in unquoted.take(200) {
        let character = if character.is_ascii_digit() { '0' } else { character };
        if !(character == '0' && shape.ends_with('0')) {
            shape.push(character);
        }
    }
    shape
}
