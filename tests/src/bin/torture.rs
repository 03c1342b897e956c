//! The program behind `tests/torture`.

use std::time::Duration;

use vsync_tests::torture::{self, Until};

const USAGE: &str = "tests/torture [--hours N | --rounds N] [--seed S] [--seconds N]

  --hours N     rounds for so long, then the end of the last (default: one hour; fractions work)
  --rounds N    so many rounds instead
  --seed S      of the first round; each next one has the next number (default: 1)
  --seconds N   of a round before its checks (default: 60)";

fn main() {
    let (mut seed, mut until, mut seconds) = (1, Until::Time(Duration::from_secs(3600)), 60);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().and_then(|value| value.parse::<f64>().ok());
        let whole = |value: f64| Duration::from_secs_f64(value).as_secs();
        match (word.as_str(), value.filter(|value| *value >= 0.0)) {
            ("--hours", Some(hours)) => until = Until::Time(Duration::from_secs_f64(hours * 3600.0)),
            ("--rounds", Some(rounds)) => until = Until::Rounds(whole(rounds)),
            ("--seed", Some(first)) => seed = whole(first),
            ("--seconds", Some(length)) => seconds = whole(length),
            _ => {
                eprintln!("{USAGE}");
                std::process::exit(2);
            }
        }
    }
    let counts = torture::run(seed, until, Duration::from_secs(seconds));
    println!("{counts}");
}
