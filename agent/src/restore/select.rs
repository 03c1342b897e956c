//! Which entries of a snapshot are restored.

use globset::{Glob, GlobSet, GlobSetBuilder};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use vsync_protocol::tree::EntryPath;

use super::RestoreError;

/// A part of a snapshot: what lies below a path and fits patterns.
#[derive(Debug, Default)]
pub struct Selection {
    /// Restored as if it were the whole.
    base: EntryPath,
    include: Option<GlobSet>,
    exclude: Option<GlobSet>,
}

impl Selection {
    /// What is at or below `base` and fits one of `include`, if there are any, and none of
    /// `exclude`. A pattern fits an entry or a directory that it is in.
    ///
    /// # Errors
    /// When a pattern cannot be understood.
    pub fn new(base: EntryPath, include: &[String], exclude: &[String]) -> Result<Self, RestoreError> {
        Ok(Self { base, include: patterns(include)?, exclude: patterns(exclude)? })
    }

    /// Whether everything is selected: only then are extraneous entries deleted.
    #[must_use]
    pub const fn is_all(&self) -> bool {
        self.base.is_root() && self.include.is_none() && self.exclude.is_none()
    }

    /// Where in the tree to begin.
    #[must_use]
    pub fn start(&self) -> EntryPath {
        self.base.clone()
    }

    /// Whether nothing after `path` can be selected.
    #[must_use]
    pub fn is_past(&self, path: &EntryPath) -> bool {
        *path > self.base && !path.is_within(&self.base)
    }

    /// Whether `path` is selected.
    #[must_use]
    pub fn contains(&self, path: &EntryPath) -> bool {
        let fits = |set: &GlobSet| {
            let mut place = Some(path.clone());
            while let Some(at) = place.filter(|at| !at.is_root()) {
                if set.is_match(OsStr::from_bytes(at.as_bytes())) {
                    return true;
                }
                place = at.parent();
            }
            false
        };
        path.is_within(&self.base) && self.include.as_ref().is_none_or(fits) && !self.exclude.as_ref().is_some_and(fits)
    }

    /// Where in the target `path` goes: below a base directory its content, of a single
    /// file its name.
    #[must_use]
    pub fn place(&self, path: &EntryPath, base_is_directory: bool) -> EntryPath {
        if self.base.is_root() {
            return path.clone();
        }
        let cut =
            if base_is_directory { self.base.as_bytes().len() + 1 } else { path.as_bytes().len() - path.name().len() };
        EntryPath::new(path.as_bytes().get(cut..).unwrap_or_default()).unwrap_or_default()
    }
}

fn patterns(patterns: &[String]) -> Result<Option<GlobSet>, RestoreError> {
    if patterns.is_empty() {
        return Ok(None);
    }
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        let bad = |error: globset::Error| RestoreError::Pattern {
            pattern: pattern.clone(),
            reason: error.kind().to_string(),
        };
        // As in .gitignore: a pattern without a slash fits a name anywhere.
        let trimmed = pattern.trim_start_matches('/');
        let anywhere = !pattern.contains('/');
        set.add(Glob::new(trimmed).map_err(bad)?);
        if anywhere {
            set.add(Glob::new(&format!("**/{trimmed}")).map_err(bad)?);
        }
    }
    let bad = |error: globset::Error| RestoreError::Pattern { pattern: patterns.join(" "), reason: error.to_string() };
    set.build().map(Some).map_err(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> EntryPath {
        EntryPath::new(text).unwrap()
    }

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn patterns_fit_names_paths_and_what_is_below() {
        let selection =
            Selection::new(EntryPath::root(), &strings(&["*.conf", "base/1"]), &strings(&["secret*"])).unwrap();
        for (text, selected) in [
            ("pg.conf", true),
            ("deep/er/pg.conf", true),
            ("base/1", true),
            ("base/1/1259", true),
            ("base/2/1259", false),
            ("base", false),
            ("secrets/pg.conf", false),
        ] {
            assert_eq!(selection.contains(&path(text)), selected, "{text}");
        }
        assert!(!selection.is_all());
        assert!(Selection::new(EntryPath::root(), &strings(&["a["]), &[]).is_err());
    }

    #[test]
    fn below_a_base_paths_are_relative_to_it() {
        let selection = Selection::new(path("a/b"), &[], &[]).unwrap();
        assert!(selection.contains(&path("a/b/c")) && !selection.contains(&path("a/bc")));
        assert_eq!(selection.place(&path("a/b/c/d"), true), path("c/d"));
        assert_eq!(selection.place(&path("a/b"), true), EntryPath::root());
        assert_eq!(selection.place(&path("a/b"), false), path("b"));
        assert!(selection.is_past(&path("a/c")) && !selection.is_past(&path("a/b/z")));
    }
}
