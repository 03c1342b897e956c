//! Which entries of a snapshot are restored.

use vsync_protocol::tree::EntryPath;

use super::RestoreError;
use crate::pattern::Pattern;

/// A part of a snapshot: what lies below a path and fits patterns.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    /// Restored as if it were the whole.
    base: EntryPath,
    /// Everything, if there are none.
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
}

impl Selection {
    /// What is at or below `base` and fits one of `include`, if there are any, and none of
    /// `exclude`. A pattern fits an entry or a directory that it is in.
    ///
    /// # Errors
    /// When a pattern cannot be understood.
    pub(crate) fn new(base: EntryPath, include: &[String], exclude: &[String]) -> Result<Self, RestoreError> {
        Ok(Self { base, include: patterns(include)?, exclude: patterns(exclude)? })
    }

    /// Whether everything is selected: only then are extraneous entries deleted.
    #[must_use]
    pub(crate) fn is_all(&self) -> bool {
        self.base.is_root() && self.include.is_empty() && self.exclude.is_empty()
    }

    /// Where in the tree to begin.
    #[must_use]
    pub(crate) fn start(&self) -> EntryPath {
        self.base.clone()
    }

    /// Whether nothing after `path` can be selected.
    #[must_use]
    pub(crate) fn is_past(&self, path: &EntryPath) -> bool {
        *path > self.base && !path.is_within(&self.base)
    }

    /// Whether `path` is selected.
    #[must_use]
    pub(crate) fn contains(&self, path: &EntryPath, is_directory: bool) -> bool {
        let fits = |patterns: &[Pattern]| {
            let (mut place, mut is_directory) = (Some(path.clone()), is_directory);
            while let Some(at) = place.filter(|at| !at.is_root()) {
                if patterns.iter().any(|pattern| pattern.fits(&at, is_directory)) {
                    return true;
                }
                (place, is_directory) = (at.parent(), true);
            }
            false
        };
        path.is_within(&self.base)
            && (self.include.is_empty() || fits(&self.include))
            && (self.exclude.is_empty() || !fits(&self.exclude))
    }

    /// Whether what is wrong with `path`, and perhaps with what is below it, is wrong with what
    /// is selected.
    #[must_use]
    pub(crate) fn concerns(&self, path: &EntryPath) -> bool {
        self.is_all() || self.contains(path, true) || self.base.is_within(path)
    }

    /// Where in the target `path` goes: below a base directory its content, of a single
    /// file its name.
    #[must_use]
    pub(crate) fn place(&self, path: &EntryPath, base_is_directory: bool) -> EntryPath {
        if self.base.is_root() {
            return path.clone();
        }
        let cut =
            if base_is_directory { self.base.as_bytes().len() + 1 } else { path.as_bytes().len() - path.name().len() };
        EntryPath::new(path.as_bytes().get(cut..).unwrap_or_default()).unwrap_or_default()
    }
}

fn patterns(patterns: &[String]) -> Result<Vec<Pattern>, RestoreError> {
    Ok(patterns.iter().map(|pattern| Pattern::parse(pattern)).collect::<Result<_, _>>()?)
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
            assert_eq!(selection.contains(&path(text), false), selected, "{text}");
        }
        assert!(!selection.is_all());
        assert!(Selection::new(EntryPath::root(), &strings(&["a["]), &[]).is_err());
    }

    #[test]
    fn a_star_stays_in_its_directory() {
        let selection = Selection::new(EntryPath::root(), &[], &strings(&["data/*.tmp", "logs/"])).unwrap();
        assert!(!selection.contains(&path("data/a.tmp"), false) && selection.contains(&path("data/a/b.tmp"), false));
        assert!(!selection.contains(&path("x/logs"), true) && !selection.contains(&path("x/logs/y"), false));
        assert!(selection.contains(&path("x/logs"), false), "a file of that name");
        assert!(selection.concerns(&path("data/a")) && !selection.concerns(&path("data/b.tmp")));
    }

    #[test]
    fn below_a_base_paths_are_relative_to_it() {
        let selection = Selection::new(path("a/b"), &[], &[]).unwrap();
        assert!(selection.contains(&path("a/b/c"), false) && !selection.contains(&path("a/bc"), false));
        assert_eq!(selection.place(&path("a/b/c/d"), true), path("c/d"));
        assert_eq!(selection.place(&path("a/b"), true), EntryPath::root());
        assert_eq!(selection.place(&path("a/b"), false), path("b"));
        assert!(selection.is_past(&path("a/c")) && !selection.is_past(&path("a/b/z")));
    }
}
