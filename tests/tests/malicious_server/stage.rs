//! Who meets the liar, and what is asked of the meeting.

use std::fs;
use std::time::Duration;

use vsync_protocol::blob::{BlobKind, Header};
use vsync_protocol::wire::Request;
use vsync_tests::liar::Honest;
use vsync_tests::{Answer, Liar, Output, Site, Tree, Volume, Vsync, assert_same};

/// A site with snapshots of two volumes, and a machine that meets the liar in place of the server.
pub(crate) struct Stage {
    pub(crate) site: Site,
    _other: Volume,
    honest: String,
}

impl Stage {
    pub(crate) fn new(seed: u64) -> Self {
        let other = Volume::new(seed + 1000);
        other.write("secret", "of another volume");
        let path = other.path().to_owned();
        let site = Site::with(seed, |realm| realm.client("host2", &["data", "other"]).directory("other", &path));
        site.data.random("large", 3 << 20).write("small", "old").many("many", 40, 3000);
        let toml = fs::read_to_string(site.realm.admin().join("vsync.toml")).unwrap();
        let line = toml.lines().find(|line| line.starts_with("address")).unwrap();
        let stage = Self { honest: line.split('"').nth(1).unwrap().to_owned(), _other: other, site };
        let second = stage.site.realm.vsync("host2");
        second.run(["backup", "other"]).success();
        second.run(["backup", "data"]).success();
        stage.site.backup();
        stage.site.data.write("small", "new").patch("large", 5000, "changed");
        stage.site.backup();
        stage
    }

    /// The machine, which asks the liar from now on.
    pub(crate) fn victim(&self, lie: impl Fn(&Request, Honest) -> Answer + Send + Sync + 'static) -> (Vsync, Liar) {
        let realm = &self.site.realm;
        let liar = Liar::before(&self.honest, &realm.identity("store"), &realm.identity("host"), lie);
        let file = realm.machine("host").join("vsync.toml");
        let toml = fs::read_to_string(realm.admin().join("vsync.toml")).unwrap();
        assert!(toml.contains(&self.honest));
        fs::write(&file, toml.replace(&self.honest, &liar.address().to_string())).unwrap();
        (self.site.host().env("VSYNC_PATIENCE", "2").limit(Duration::from_secs(120)), liar)
    }

    /// The machine, which asks the server again.
    pub(crate) fn honest(&self) -> Vsync {
        let realm = &self.site.realm;
        fs::copy(realm.admin().join("vsync.toml"), realm.machine("host").join("vsync.toml")).unwrap();
        self.site.host()
    }

    /// Restores through the liar; whatever became of it, no file is there that is not right.
    #[track_caller]
    pub(crate) fn restore(
        &self,
        what: &str,
        lie: impl Fn(&Request, Honest) -> Answer + Send + Sync + 'static,
    ) -> Output {
        let (vsync, _liar) = self.victim(lie);
        let target = vsync_tests::scratch();
        let output = vsync.run(["restore", "data", "--source", "host", "--to-path", target.path().to_str().unwrap()]);
        assert!(!output.stderr().contains("panicked"), "{what}: {output}");
        let (expected, found) = (Tree::read(self.site.data.path()), Tree::read(target.path()));
        for path in found.paths().filter(|path| target.path().join(path).is_file()) {
            let right = fs::read(self.site.data.path().join(path))
                .unwrap_or_else(|error| panic!("{what}: {} was not backed up: {error}; {output}", path.display()));
            assert!(fs::read(target.path().join(path)).unwrap() == right, "{what}: {} is wrong", path.display());
        }
        if output.status() == Some(0) {
            assert_same(&expected, &found);
        }
        output
    }

    #[track_caller]
    pub(crate) fn backup(&self, lie: impl Fn(&Request, Honest) -> Answer + Send + Sync + 'static) -> Output {
        let (vsync, _liar) = self.victim(lie);
        let output = vsync.run(["backup", "data"]);
        assert!(!output.stderr().contains("panicked"), "{output}");
        output
    }

    /// An honest backup and restore after all that.
    #[track_caller]
    pub(crate) fn recovers(&self) {
        self.honest().run(["backup", "data"]).success();
        let target = vsync_tests::scratch();
        self.honest()
            .run(["restore", "data", "--source", "host", "--to-path", target.path().to_str().unwrap()])
            .success();
        assert_same(&Tree::read(self.site.data.path()), &Tree::read(target.path()));
    }
}

#[track_caller]
pub(crate) fn said(what: &str, output: &Output, codes: &[i32], word: &str) {
    let code = output.status().unwrap_or(-1);
    assert!(codes.contains(&code), "{what}: exit status {code}, not {codes:?}: {output}");
    assert!(output.stderr().contains(word), "{what}: no {word:?} in {output}");
}

pub(crate) fn is_chunk(blob: &[u8]) -> bool {
    Header::parse(blob).is_ok_and(|header| header.kind == BlobKind::Chunk)
}

/// Changes the blobs that are sent; `chunks` says which kind.
pub(crate) fn blobs(
    chunks: bool,
    change: impl Fn(&mut Vec<u8>) + Send + Sync,
) -> impl Fn(&Request, Honest) -> Answer + Send + Sync {
    move |_, mut honest| {
        honest.blobs.iter_mut().filter(|(_, blob)| is_chunk(blob) == chunks).for_each(|(_, blob)| change(blob));
        honest.say()
    }
}
