//! Which chunks are read.

use std::str::FromStr;

use thiserror::Error;
use vsync_protocol::id::Cid;

/// Which chunks are read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Sample {
    /// None: their presence is asked for.
    None,
    /// Each.
    All,
    /// The `part`-th of so many equal parts, from 1: all of them, one after the other, read everything.
    Part {
        part: u64,
        /// Of how many.
        of: u64,
    },
    /// This share of them, chosen anew each time.
    Share {
        /// From 0 to 1.
        share: f64,
        /// Makes the choice another one.
        seed: u64,
    },
    /// About so many bytes as stored.
    Bytes(u64),
}

/// The text names no sample.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0:?} is neither a percentage (5%), a part (2/7) nor a size (10G)")]
pub(crate) struct BadSample(String);

impl FromStr for Sample {
    type Err = BadSample;

    fn from_str(text: &str) -> Result<Self, BadSample> {
        let bad = || BadSample(text.to_owned());
        if let Some(percent) = text.strip_suffix('%') {
            let share = percent.parse::<f64>().ok().filter(|value| *value > 0.0 && *value <= 100.0);
            return share.map(|value| Self::Share { share: value / 100.0, seed: 0 }).ok_or_else(bad);
        }
        if let Some((part, of)) = text.split_once('/') {
            let (part, of) = (part.parse().map_err(|_| bad())?, of.parse().map_err(|_| bad())?);
            return if (1..=of).contains(&part) { Ok(Self::Part { part, of }) } else { Err(bad()) };
        }
        bytes(text).map(Self::Bytes).ok_or_else(bad)
    }
}

/// `10G` and the like, in powers of 1024, as restic has them.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().trim_end_matches("IB").trim_end_matches('B') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok().filter(|value| *value > 0)?.checked_mul(1 << shift)
}

impl Sample {
    /// The sample with its chance: `seed` chooses, `stored` are the bytes of the whole store.
    #[must_use]
    pub(crate) fn with(self, seed: u64, stored: u64) -> Self {
        match self {
            Self::Share { share, .. } => Self::Share { share, seed },
            Self::Bytes(bytes) => Self::Share { share: (bytes as f64 / stored.max(1) as f64).min(1.0), seed },
            other => other,
        }
    }

    /// Whether it chooses `cid`. The same answer each time for the same sample.
    #[must_use]
    pub(crate) fn takes(&self, cid: &Cid) -> bool {
        let mut start = [0; 8];
        start.copy_from_slice(&cid.as_bytes()[..8]);
        let number = u64::from_le_bytes(start);
        match self {
            Self::None | Self::Bytes(_) => false,
            Self::All => true,
            Self::Part { part, of } => number % of == part - 1,
            Self::Share { share, seed } => {
                let hash = blake3::hash(&[seed.to_le_bytes(), number.to_le_bytes()].concat());
                start.copy_from_slice(&hash.as_bytes()[..8]);
                (u64::from_le_bytes(start) as f64) < share * u64::MAX as f64
            }
        }
    }
}
