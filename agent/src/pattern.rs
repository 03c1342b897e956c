//! Patterns for paths, with the rules of `.gitignore`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use globset::{GlobBuilder, GlobMatcher};
use thiserror::Error;
use vsync_protocol::tree::EntryPath;

/// A pattern that cannot be understood.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("bad pattern {pattern:?}: {reason}")]
pub(crate) struct BadPattern {
    pub(crate) pattern: String,
    /// What is wrong with it.
    pub(crate) reason: String,
}

/// What a path must look like.
///
/// A pattern without a slash fits a name in any directory, one with a slash a whole path. `*`
/// and `?` stand for anything but a slash, `**` for any directories. A slash at the end makes
/// it fit directories alone.
#[derive(Debug)]
pub(crate) struct Pattern {
    glob: GlobMatcher,
    /// Names are compared, not paths.
    names: bool,
    /// It fits nothing but directories.
    directories: bool,
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// When it cannot be understood.
    pub(crate) fn parse(pattern: &str) -> Result<Self, BadPattern> {
        let bad = |reason: String| BadPattern { pattern: pattern.to_owned(), reason };
        let (body, directories) = pattern.strip_suffix('/').map_or((pattern, false), |body| (body, true));
        let path = body.trim_start_matches('/');
        if path.is_empty() {
            return Err(bad("it fits nothing".into()));
        }
        let glob = GlobBuilder::new(path).literal_separator(true).build();
        let glob = glob.map_err(|error| bad(error.kind().to_string()))?.compile_matcher();
        Ok(Self { glob, names: !body.contains('/'), directories })
    }

    /// Whether it fits what is at `path`.
    #[must_use]
    pub(crate) fn fits(&self, path: &EntryPath, is_directory: bool) -> bool {
        let text = if self.names { path.name() } else { path.as_bytes() };
        (is_directory || !self.directories) && self.glob.is_match(OsStr::from_bytes(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_for_names_or_for_whole_paths() {
        for (pattern, path, fits) in [
            ("*.rds", "b.rds", true),
            ("*.rds", "a/b.rds", true),
            ("*.rds", "a.rds/b", false),
            ("a/*.rds", "a/b.rds", true),
            ("a/*.rds", "a/b/c.rds", false),
            ("a/*.rds", "x/a/b.rds", false),
            ("b/*.rds", "a/b/c.rds", false),
            ("a/?.rds", "a/b.rds", true),
            ("a?b", "a/b", false),
            ("a[!x]b", "a/b", false),
            ("**/c.rds", "a/b/c.rds", true),
            ("**/c.rds", "c.rds", true),
            ("a/**/c", "a/c", true),
            ("a/**/c", "a/b/b/c", true),
            ("a/**", "a/b/c", true),
            ("a/**", "a", false),
            ("/a", "a", true),
            ("/a", "b/a", false),
            ("a", "a/b", false),
            ("a", "b/a", true),
            ("{a,b}/*.rds", "b/c.rds", true),
        ] {
            let fitted = Pattern::parse(pattern).unwrap().fits(&EntryPath::new(path).unwrap(), false);
            assert_eq!(fitted, fits, "{pattern} {path}");
        }
    }

    #[test]
    fn a_slash_at_the_end_means_directories() {
        for (pattern, path) in [("logs/", "logs"), ("logs/", "a/logs"), ("a/logs/", "a/logs"), ("/a/", "a")] {
            let (pattern, path) = (Pattern::parse(pattern).unwrap(), EntryPath::new(path).unwrap());
            assert!(pattern.fits(&path, true) && !pattern.fits(&path, false), "{pattern:?} {path}");
        }
        assert!(!Pattern::parse("/logs/").unwrap().fits(&EntryPath::new("a/logs").unwrap(), true));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for pattern in ["a[", "", "/", "//"] {
            assert_eq!(Pattern::parse(pattern).unwrap_err().pattern, pattern);
        }
    }
}
