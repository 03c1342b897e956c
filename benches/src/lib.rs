//! Measuring small pieces of work: each is repeated, and the median is printed.
//!
//! What vsync does as a whole, beside its peers, is measured by `benches/run`.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// Samples of each benchmark, however long one takes.
const MIN_SAMPLES: usize = 5;

/// Beyond those, samples are taken for so long.
const PATIENCE: Duration = Duration::from_secs(1);

const MAX_SAMPLES: usize = 101;

/// Runs benchmarks whose names contain a word given on the command line, or all.
#[derive(Debug)]
pub struct Harness {
    filter: Vec<String>,
}

/// What one repetition works through: the unit of the result.
#[derive(Clone, Copy, Debug)]
pub enum Amount {
    /// So many bytes: nanoseconds per byte, and gigabytes per second.
    Bytes(usize),
    /// So many things: nanoseconds for each, and how many in a second.
    Items(usize),
}

impl Harness {
    /// Takes what `cargo bench -- WORD…` was given, and prints the heading.
    #[must_use]
    pub fn new(words: impl Iterator<Item = String>) -> Self {
        println!("{:<34} {:>12} {:>14} {:>9} {:>8}", "", "each", "rate", "spread", "samples");
        // cargo itself adds `--bench`.
        Self { filter: words.filter(|word| !word.starts_with('-')).collect() }
    }

    /// Whether anything of this name is asked for: preparations may be dear.
    #[must_use]
    pub fn wants(&self, name: &str) -> bool {
        self.filter.is_empty() || self.filter.iter().any(|word| name.contains(word.as_str()))
    }

    /// Measures `work`.
    pub fn run<T>(&self, name: &str, amount: Amount, mut work: impl FnMut() -> T) {
        self.run_with(name, amount, || (), |()| work());
    }

    /// Measures `work` on something that `prepare` makes anew for each sample, unmeasured.
    pub fn run_with<P, T>(
        &self,
        name: &str,
        amount: Amount,
        mut prepare: impl FnMut() -> P,
        mut work: impl FnMut(P) -> T,
    ) {
        if !self.wants(name) {
            return;
        }
        // The first run warms caches and is not counted.
        black_box(work(prepare()));
        let (mut samples, mut spent) = (Vec::new(), Duration::ZERO);
        while samples.len() < MIN_SAMPLES || (spent < PATIENCE && samples.len() < MAX_SAMPLES) {
            let prepared = prepare();
            let begun = Instant::now();
            let done = black_box(work(prepared));
            let sample = begun.elapsed();
            // Tearing down is not part of the work either.
            drop(done);
            spent += sample;
            samples.push(sample);
        }
        samples.sort_unstable();
        print(name, amount, &samples);
    }
}

fn print(name: &str, amount: Amount, sorted: &[Duration]) {
    let at = |part: usize| sorted[(sorted.len() - 1) * part / 100].as_secs_f64();
    let median = at(50);
    let (each, rate) = match amount {
        Amount::Bytes(bytes) => {
            (format!("{:.3} ns/B", median * 1e9 / bytes as f64), format!("{:.2} GB/s", bytes as f64 / median / 1e9))
        }
        Amount::Items(items) => {
            (format!("{:.0} ns", median * 1e9 / items as f64), format!("{:.0} /s", items as f64 / median))
        }
    };
    // Half of all samples lie within this.
    let spread = (at(75) - at(25)) / median * 100.0;
    println!("{name:<34} {each:>12} {rate:>14} {spread:>7.1} % {:>8}", sorted.len());
}
