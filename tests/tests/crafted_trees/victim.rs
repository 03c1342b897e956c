//! Who meets what the forger made.

use std::fs;
use std::path::Path;
use std::time::Duration;

use vsync_tests::{Output, Site};

/// A target beside something that must stay as it is, and vsync that restores into it.
pub(crate) struct Victim {
    scratch: tempfile::TempDir,
}

impl Victim {
    pub(crate) fn new() -> Self {
        let scratch = vsync_tests::scratch();
        fs::create_dir(scratch.path().join("target")).unwrap();
        fs::create_dir(scratch.path().join("outside")).unwrap();
        fs::write(scratch.path().join("outside/canary"), "untouched").unwrap();
        Self { scratch }
    }

    pub(crate) fn target(&self) -> std::path::PathBuf {
        self.scratch.path().join("target")
    }

    pub(crate) fn outside(&self) -> String {
        self.scratch.path().join("outside").to_str().unwrap().to_owned()
    }

    #[track_caller]
    pub(crate) fn check(&self, what: &str) {
        let names = |path: &Path| {
            let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(self.scratch.path()), ["outside", "target"], "{what}");
        assert_eq!(names(&self.scratch.path().join("outside")), ["canary"], "{what}");
        let canary = self.scratch.path().join("outside/canary");
        assert_eq!(fs::read_to_string(&canary).unwrap(), "untouched", "{what}");
        let meta = fs::metadata(&canary).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::nlink(&meta), 1, "{what}: it has another name");
    }
}

#[track_caller]
pub(crate) fn sane(what: &str, output: &Output) {
    assert!(!output.stderr().contains("panicked"), "{what}: {output}");
    assert!(matches!(output.status(), Some(0 | 1 | 3 | 11 | 13 | 21)), "{what}: {output}");
}

/// Restores the snapshot and looks at it in every other way.
#[track_caller]
pub(crate) fn meet(site: &Site, victim: &Victim, what: &str, id: &str) -> Output {
    meet_all_but(site, victim, what, id, "")
}

/// The same without one command, which would have an end in theory only.
#[track_caller]
pub(crate) fn meet_all_but(site: &Site, victim: &Victim, what: &str, id: &str, left_out: &str) -> Output {
    let vsync = site.host().limit(Duration::from_secs(100)).with(["--patience", "20"]);
    let snapshot = format!("data@{id}");
    let output = vsync.run(["restore", &snapshot, "--to-path", victim.target().to_str().unwrap()]);
    sane(what, &output);
    victim.check(what);
    for words in [
        &["ls", &snapshot, "--json"][..],
        &["verify", &snapshot],
        &["verify", &snapshot, "--read-data"],
        &["dump", &snapshot],
        &["find", "*", "--volume", "data"],
        &["diff", "data@latest~1", &snapshot],
        &["stats", "--json"],
        &["snapshots", "data"],
    ]
    .into_iter()
    .filter(|words| words[0] != left_out)
    {
        let looked = vsync.run(words);
        assert!(!looked.stderr().contains("panicked"), "{what}, {words:?}: {looked}");
        assert!(looked.status().is_some_and(|code| code < 100), "{what}, {words:?}: {looked}");
    }
    output
}
