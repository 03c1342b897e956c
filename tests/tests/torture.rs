//! A round of `tests/torture`: everything at once, and a look at all that was promised.

use std::time::Duration;

use vsync_tests::asked;
use vsync_tests::torture::{Until, run};

#[test]
fn a_round_of_everything_at_once() {
    let seed = asked("VSYNC_TORTURE_SEED", 1);
    let counts = run(seed, Until::Rounds(1), Duration::from_secs(asked("VSYNC_TORTURE_SECONDS", 60)));
    println!("{counts}");
    assert_eq!(counts.of("rounds"), 1);
}
