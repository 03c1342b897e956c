//! The status page, looked at in a real browser.
//!
//! With `VSYNC_TEST_SCREENSHOTS=DIRECTORY`, the pictures are kept there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use vsync_tests::{Realm, Server, scratch, shell};

/// A browser that talks to nobody but the page.
fn chromium(profile: &Path) -> Command {
    let mut command = Command::new("chromium");
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]);
    command.args(["--disable-background-networking", "--disable-component-update", "--hide-scrollbars"]);
    // The page is ready when it has fetched its figures once.
    command.arg("--virtual-time-budget=8000");
    command.arg(format!("--user-data-dir={}", profile.display()));
    command
}

struct Browser {
    profile: tempfile::TempDir,
    url: String,
}

impl Browser {
    /// The page's elements after its script has run.
    #[track_caller]
    fn elements(&self) -> String {
        shell::finish(chromium(self.profile.path()).arg("--dump-dom").arg(&self.url))
    }

    /// A picture of the page, and its width and height.
    #[track_caller]
    fn picture(&self, name: &str, (width, height): (u32, u32), dark: bool) -> PathBuf {
        let folder = std::env::var_os("VSYNC_TEST_SCREENSHOTS").map(PathBuf::from);
        let path = folder.unwrap_or_else(|| self.profile.path().to_owned()).join(name);
        let mut command = chromium(self.profile.path());
        command.arg(format!("--window-size={width},{height}")).arg(format!("--screenshot={}", path.display()));
        if dark {
            command.args(["--force-dark-mode", "--blink-settings=preferredColorScheme=0"]);
        }
        shell::finish(command.arg(&self.url));
        path
    }
}

/// How much is on a picture: of an empty page, hardly anything is left when it is compressed.
#[track_caller]
fn richness(picture: &Path) -> usize {
    let bytes = fs::read(picture).expect("a picture");
    assert!(bytes.starts_with(b"\x89PNG\r\n"), "{} is no picture", picture.display());
    bytes.len()
}

/// Where the server says that it shows its status.
#[track_caller]
fn status_url(server: &Server) -> String {
    for _ in 0..200 {
        let log = server.log();
        if let Some(url) = log.split_whitespace().find(|word| word.starts_with("http://")) {
            return url.to_owned();
        }
        thread::sleep(Duration::from_millis(50));
    }
    panic!("no URL in {}", server.log());
}

#[test]
fn a_browser_shows_how_everything_is() {
    let data = scratch();
    fs::write(data.path().join("file"), vec![7; 300_000]).expect("a file");
    let realm = Realm::new()
        .server("annex2")
        .directory("orderly", data.path())
        .directory("never", data.path())
        .client("production2", &["orderly", "never"])
        .build();
    let server = Server::start(realm.vsync("annex2").env("VSYNC_STATUS_ADDRESS", "127.0.0.1:0"));
    let url = status_url(&server);
    let agent = realm.vsync("production2");
    agent.run(["backup", "orderly"]).success();
    fs::write(data.path().join("more"), vec![8; 100_000]).expect("a file");
    agent.run(["backup", "orderly"]).success();
    let away = data.path().with_extension("away");
    fs::rename(data.path(), &away).expect("a rename");
    agent.run(["backup", "orderly"]).code(1);
    fs::rename(&away, data.path()).expect("a rename");

    let browser = Browser { profile: scratch(), url };
    let elements = browser.elements();
    for expected in [
        "<h1 id=\"name\">vsync annex2</h1>",
        " to look at<",
        "production2/never is declared, and was never backed up",
        "production2/orderly could not be backed up",
        "never backed up",
        "class=\"mixed\"",
        "class=\"size\"",
        "success",
        "% used",
    ] {
        assert!(elements.contains(expected), "{expected:?} is not on the page:\n{elements}");
    }
    let light = browser.picture("status.png", (1100, 1500), false);
    let phone = browser.picture("status-phone.png", (390, 1700), false);
    let dark = browser.picture("status-dark.png", (1100, 1500), true);
    for picture in [&light, &phone, &dark] {
        assert!(richness(picture) > 20_000, "hardly anything is in {}", picture.display());
    }
    assert_ne!(fs::read(&light).expect("a picture"), fs::read(&dark).expect("a picture"), "dark looks like light");
}
