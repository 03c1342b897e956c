//! A01: no bytes make a decoder panic, hang, or take memory without end, and what is decoded is what was encoded.
//!
//! `VSYNC_FUZZ_SECONDS` is the time of each target, 2 by default; `VSYNC_FUZZ_SEED` repeats a run. What is found is
//! kept in `tests/corpus`, which every run begins with.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vsync_tests::asked;
use vsync_tests::fuzz::TARGETS;

#[test]
fn no_decoder_breaks_on_any_bytes() {
    // Whoever believes a length that a stranger wrote runs into this.
    let limit = Rlimit { current: Some(3 << 30), ..getrlimit(Resource::As) };
    setrlimit(Resource::As, limit).unwrap();
    let seconds = asked("VSYNC_FUZZ_SECONDS", 2);
    // Always the same unless asked: what a change breaks shows with that change, and not with somebody else's.
    let seed = asked("VSYNC_FUZZ_SEED", 20_261_128);
    // Two at a time, as many as the machine that this is usually run on has cores.
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(target) = TARGETS.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    let ran = target.fuzz(seed, Duration::from_secs(seconds));
                    println!("{}: {} inputs, {} outcomes, seed {seed}", target.name, ran.inputs, ran.outcomes);
                    // A target that refuses everything, or takes everything, tests nothing.
                    assert!(ran.outcomes >= 2, "{}: {ran:?}", target.name);
                }
            });
        }
    });
}
