//! What most tests need: one server, one machine, one volume.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::realm::RealmBuilder;
use crate::{Output, Realm, Server, Volume, Vsync};

/// The server `store`, and the machine `host` that backs the directory `data` up to it.
#[derive(Debug)]
pub struct Site {
    /// What is backed up.
    pub data: Volume,
    /// The machines.
    pub realm: Realm,
    /// The server, running.
    pub server: Server,
}

impl Site {
    /// A site whose volume is empty.
    #[must_use]
    #[track_caller]
    pub fn new(seed: u64) -> Self {
        Self::with(seed, |realm| realm)
    }

    /// A site whose realm has more in it.
    #[must_use]
    #[track_caller]
    pub fn with(seed: u64, more: impl FnOnce(RealmBuilder) -> RealmBuilder) -> Self {
        let data = Volume::new(seed);
        let realm = Realm::new().server("store").client("host", &["data"]).directory("data", data.path());
        let realm = more(realm).build();
        let server = realm.serve("store");
        Self { data, realm, server }
    }

    /// vsync on the machine.
    #[must_use]
    pub fn host(&self) -> Vsync {
        self.realm.vsync("host")
    }

    /// The store's directory.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.realm.store("store")
    }

    /// Backs the volume up, exactly, and returns the summary.
    #[track_caller]
    pub fn backup(&self) -> Summary {
        Summary::of(&self.host().run(["backup", "data", "--json"]).success())
    }

    /// Restores what the words say into a directory, exactly, and returns the summary.
    #[track_caller]
    pub fn restore(&self, words: &[&str], into: &Path) -> Summary {
        Summary::of(&self.try_restore(words, into).success())
    }

    /// Restores what the words say into a directory, whatever is there; the test judges.
    #[must_use = "assert something about it: `.success()` or `.code(n)`"]
    #[track_caller]
    pub fn try_restore(&self, words: &[&str], into: &Path) -> Output {
        let into = into.to_str().expect("a path in UTF-8");
        let fixed = ["restore", "--json", "--delete", "--to-path", into];
        self.host().run(fixed.iter().chain(words))
    }
}

/// The summary that a command prints with `--json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary(pub Value);

impl Summary {
    /// The last line of a command's output.
    #[must_use]
    #[track_caller]
    pub fn of(output: &Output) -> Self {
        let last = output.json_lines().pop();
        Self(last.unwrap_or_else(|| panic!("expected a summary from {output}")))
    }

    /// A number in it.
    #[must_use]
    #[track_caller]
    pub fn number(&self, key: &str) -> u64 {
        self.0[key].as_u64().unwrap_or_else(|| panic!("expected a number {key:?} in {}", self.0))
    }

    /// A text in it.
    #[must_use]
    #[track_caller]
    pub fn text(&self, key: &str) -> &str {
        self.0[key].as_str().unwrap_or_else(|| panic!("expected a text {key:?} in {}", self.0))
    }
}
