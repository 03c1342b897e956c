//! How a snapshot is named on the command line: `VOLUME[@SNAP][:PATH]` or `SNAP[:PATH]`.

use jiff::{Timestamp, Zoned};
use thiserror::Error;
use vsync_protocol::id::VolumeName;
use vsync_protocol::tree::{EntryPath, PathError};

use super::time;

/// Which of several snapshots is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// The newest, or the n-th before it.
    Latest(usize),
    /// The one whose id begins so.
    Id(String),
    /// The last one not after this time.
    Time(Timestamp),
}

/// A snapshot, and a place in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spec {
    pub(crate) volume: Option<VolumeName>,
    pub(crate) at: At,
    pub(crate) path: EntryPath,
}

/// The text names no snapshot.
#[derive(Debug, Error)]
pub(crate) enum SpecError {
    /// Neither an id, a name nor a time.
    #[error("{0:?} names no snapshot")]
    Snapshot(String),
    /// The path in it.
    #[error(transparent)]
    Path(#[from] PathError),
}

/// What a command takes where nothing but a name is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bare {
    /// A volume: its newest snapshot is meant.
    Volume,
    /// A snapshot, if it looks like an id; else a volume.
    Snapshot,
}

impl Spec {
    pub(crate) fn parse(text: &str, bare: Bare, now: &Zoned) -> Result<Self, SpecError> {
        let unknown = || SpecError::Snapshot(text.to_owned());
        // Times and paths both hold colons: the longest text in front of one that makes
        // sense is the snapshot.
        let ends = std::iter::once(text.len()).chain(text.rmatch_indices(':').map(|(at, _)| at));
        let (end, volume, at) = ends
            .filter_map(|end| text.get(..end).and_then(|head| snapshot(head, bare, now)).map(|(v, at)| (end, v, at)))
            .next()
            .ok_or_else(unknown)?;
        let path = text.get(end + 1..).unwrap_or_default().trim_matches('/');
        Ok(Self { volume, at, path: EntryPath::new(path)? })
    }
}

fn snapshot(text: &str, bare: Bare, now: &Zoned) -> Option<(Option<VolumeName>, At)> {
    match text.split_once('@') {
        Some((volume, at)) => Some((Some(volume.parse().ok()?), moment(at, now)?)),
        None if is_latest(text) => Some((None, moment(text, now)?)),
        None if bare == Bare::Snapshot && is_id(text) => Some((None, At::Id(text.to_owned()))),
        None => Some((Some(text.parse().ok()?), At::Latest(0))),
    }
}

fn moment(text: &str, now: &Zoned) -> Option<At> {
    match text.strip_prefix("latest") {
        Some("") => Some(At::Latest(0)),
        Some(before) => before.strip_prefix('~')?.parse().ok().map(At::Latest),
        None if is_id(text) => Some(At::Id(text.to_owned())),
        None => time::parse(text, now).ok().map(At::Time),
    }
}

/// Whether the text is `latest` or `latest~N`, rather than the name of a volume that begins so.
fn is_latest(text: &str) -> bool {
    text.strip_prefix("latest").is_some_and(|rest| rest.is_empty() || rest.starts_with('~'))
}

fn is_id(text: &str) -> bool {
    (4..=32).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms() {
        let now: Zoned = "2026-11-20T12:00:00+00:00[UTC]".parse().unwrap();
        let time = |text: &str| At::Time(text.parse().unwrap());
        let table = [
            ("pg", Bare::Volume, Some("pg"), At::Latest(0), ""),
            ("pg:base/1", Bare::Volume, Some("pg"), At::Latest(0), "base/1"),
            ("pg:/base/1/", Bare::Volume, Some("pg"), At::Latest(0), "base/1"),
            ("pg@latest~2:a:b", Bare::Volume, Some("pg"), At::Latest(2), "a:b"),
            ("pg@1a2b3c4d", Bare::Volume, Some("pg"), At::Id("1a2b3c4d".into()), ""),
            ("pg@2026-11-19T10:05", Bare::Volume, Some("pg"), time("2026-11-19T10:05:00Z"), ""),
            ("pg@2026-11-19T10:05:x/y", Bare::Volume, Some("pg"), time("2026-11-19T10:05:00Z"), "x/y"),
            ("pg@2h ago:x", Bare::Volume, Some("pg"), time("2026-11-20T10:00:00Z"), "x"),
            ("1a2b3c4d:x", Bare::Snapshot, None, At::Id("1a2b3c4d".into()), "x"),
            ("1a2b3c4d", Bare::Volume, Some("1a2b3c4d"), At::Latest(0), ""),
            ("latest", Bare::Snapshot, None, At::Latest(0), ""),
            ("pg", Bare::Snapshot, Some("pg"), At::Latest(0), ""),
            ("latest~3:x", Bare::Volume, None, At::Latest(3), "x"),
            ("latest_uploads", Bare::Volume, Some("latest_uploads"), At::Latest(0), ""),
            ("latest-1", Bare::Snapshot, Some("latest-1"), At::Latest(0), ""),
            ("latest_uploads@latest~1:x", Bare::Volume, Some("latest_uploads"), At::Latest(1), "x"),
        ];
        for (text, bare, volume, at, path) in table {
            let spec = Spec::parse(text, bare, &now).unwrap();
            assert_eq!(spec.volume.as_ref().map(VolumeName::as_str), volume, "{text}");
            assert_eq!((&spec.at, spec.path.as_bytes()), (&at, path.as_bytes()), "{text}");
        }
        for text in ["", "pg@", "pg@yesterdayish", "-x", "pg:../x", "latest~", "latest~x", "pg@latest-1"] {
            assert!(Spec::parse(text, Bare::Volume, &now).is_err(), "{text}");
        }
    }
}
