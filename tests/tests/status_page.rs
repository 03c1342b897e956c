//! The status page, looked at in a real browser.
//!
//! With `VSYNC_TEST_SCREENSHOTS=DIRECTORY`, the pictures are kept there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use vsync_protocol::id::{JobId, MachineName};
use vsync_protocol::wire::{JobKind, JobResult, JobStart, Outcome};
use vsync_server::catalog::{Catalog, NewJob};
use vsync_server::store::health::Health;
use vsync_tests::{Realm, Rng, Server, Volume, http, scratch, shell};

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
    /// A page's elements after its script has run.
    #[track_caller]
    fn elements(&self, url: &str) -> String {
        shell::finish(chromium(self.profile.path()).arg("--dump-dom").arg(url))
    }

    /// How wide the page's window and its content are, in a window of this width. The page lets nobody put it into
    /// another one, nor add a script; so a copy of it, with the same figures, is what is measured.
    #[track_caller]
    fn widths(&self, width: u32) -> (u32, u32) {
        let page = http::get(&self.url, "");
        let figures: serde_json::Value = serde_json::from_str(&http::get(&self.url, "status.json")).expect("JSON");
        let fetch = format!("<script>window.fetch = async () => new Response(JSON.stringify({figures}));</script>");
        let tell = "<script>setTimeout(() => parent.postMessage([innerWidth, document.documentElement.scrollWidth], \"*\"), \
                    1000);</script>";
        let (head, body) = page.split_once("<header>").expect("the page's header");
        let copy = self.profile.path().join("copy.html");
        fs::write(&copy, format!("{head}{fetch}<header>{body}{tell}")).expect("a file");
        let frame = self.profile.path().join("frame.html");
        let listen = "onmessage = (event) => { document.body.dataset.widths = event.data.join(\" \"); };";
        let text = format!(
            "<!doctype html><body><script>{listen}</script><iframe src=\"copy.html\" \
             style=\"border: 0; width: {width}px; height: 2000px\"></iframe>"
        );
        fs::write(&frame, text).expect("a file");
        let elements = self.elements(&format!("file://{}", frame.display()));
        let told = elements.split("data-widths=\"").nth(1).and_then(|rest| rest.split('"').next());
        let told = told.unwrap_or_else(|| panic!("no widths in {elements}"));
        let (window, content) = told.split_once(' ').expect("two numbers");
        (window.parse().expect("a number"), content.parse().expect("a number"))
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

/// What a volume's past looks like.
struct Past {
    volume: &'static str,
    /// Its size on the first day and on the last, in MiB.
    size: (f64, f64),
    /// Bytes read in a second, in MiB.
    speed: f64,
    /// Days before today on which nothing came of it.
    failed: &'static [i64],
}

const PASTS: [Past; 3] = [
    Past { volume: "barman", size: (52.0, 74.0), speed: 40.0, failed: &[] },
    Past { volume: "orderly", size: (9.0, 13.0), speed: 30.0, failed: &[41, 40, 12] },
    Past { volume: "outpack", size: (3.0, 6.0), speed: 25.0, failed: &[67] },
];

/// Records a quarter of a year of nightly backups in the catalog of a server that is stopped, as agents' words.
fn remember(store: &Path) {
    const DAY: i64 = 24 * 3_600_000;
    let catalog = Catalog::open(&store.join("catalog.sqlite"), Health::default()).expect("a catalog");
    let mut rng = Rng::new(11);
    let mut wobble = move || rng.below(1000) as f64 / 1000.0;
    let machine: MachineName = "production2".parse().expect("a name");
    let night = Timestamp::now().as_millisecond() / DAY * DAY + 2 * 3_600_000;
    let mib = |mib: f64| (mib * f64::from(1 << 20)) as u64;
    let mut id = 0_u128;
    for back in (1..=91).rev() {
        for past in &PASTS {
            id += 1;
            let job = JobId::from_bytes(id.to_be_bytes());
            let volume = past.volume.parse().expect("a name");
            let version = env!("CARGO_PKG_VERSION").to_owned();
            let start = JobStart { id: job, kind: JobKind::Backup, volume, source: None, version };
            let at = night - back * DAY;
            catalog.begin_job(NewJob { start, machine: machine.clone(), at, oldest: None }).expect("a job");
            let size = past.size.0 + (past.size.1 - past.size.0) * (91 - back) as f64 / 91.0;
            let (read, speed) = (size * (0.05 + 0.1 * wobble()), past.speed * (0.7 + 0.6 * wobble()));
            let result = if past.failed.contains(&back) {
                JobResult { code: 10, message: "no answer".to_owned(), ..JobResult::new(Outcome::Failed) }
            } else {
                JobResult {
                    read: mib(read),
                    sent: mib(read / 3.0),
                    stored: mib(read / 3.0),
                    size: mib(size),
                    files: 40_000,
                    duration: (read / speed * 1000.0) as u64,
                    ..JobResult::new(Outcome::Success)
                }
            };
            assert!(catalog.end_job(machine.clone(), job, result, at + 60_000).expect("its end"));
        }
    }
    catalog.close();
}

/// A server that has seen much, and the machine that it backs up.
struct Site {
    data: Volume,
    realm: Realm,
    server: Server,
}

impl Site {
    fn new() -> Self {
        let data = Volume::new(5);
        let names = ["barman", "orderly", "outpack", "never"];
        let realm = names.iter().fold(Realm::new().server("annex2"), |realm, name| realm.directory(name, data.path()));
        let realm = realm.client("production2", &names).build();
        let mut server = Server::start(realm.vsync("annex2").env("VSYNC_STATUS_ADDRESS", "127.0.0.1:0"));
        server.stop().success();
        remember(&realm.store("annex2"));
        server.restart();
        Self { data, realm, server }
    }

    /// Today's backups, of which one fails once more.
    fn today(&self) {
        let agent = self.realm.vsync("production2");
        for past in &PASTS {
            self.data.random("archive", (past.size.1 * f64::from(1 << 20)) as u64);
            agent.run(["backup", past.volume]).success();
        }
        let away = self.data.path().with_extension("away");
        fs::rename(self.data.path(), &away).expect("a rename");
        agent.run(["backup", "orderly"]).code(11);
        fs::rename(&away, self.data.path()).expect("a rename");
    }
}

#[test]
fn a_browser_shows_how_everything_is_and_was() {
    let site = Site::new();
    site.today();
    let browser = Browser { profile: scratch(), url: status_url(&site.server) };
    let elements = browser.elements(&browser.url);
    for expected in [
        "<h1 id=\"name\">vsync annex2</h1>",
        " to look at<",
        "production2/never is declared, and was never backed up",
        "production2/orderly could not be backed up",
        "never backed up",
        "class=\"mixed\"",
        "success",
        "% used",
    ] {
        assert!(elements.contains(expected), "{expected:?} is not on the page:\n{elements}");
    }
    history_is_shown_without_a_click(&elements);
    assert_eq!(browser.widths(390), (390, 390), "a phone need not scroll sideways");

    let light = browser.picture("status.png", (1100, 1900), false);
    let phone = browser.picture("status-phone.png", (390, 2600), false);
    let dark = browser.picture("status-dark.png", (1100, 1900), true);
    for picture in [&light, &phone, &dark] {
        assert!(richness(picture) > 20_000, "hardly anything is in {}", picture.display());
    }
    assert_ne!(fs::read(&light).expect("a picture"), fs::read(&dark).expect("a picture"), "dark looks like light");
}

/// Plots, and the dates below them, are not in an element that is closed at first.
#[track_caller]
fn history_is_shown_without_a_click(elements: &str) {
    let cards: Vec<&str> = elements.split("<article").skip(1).collect();
    assert_eq!(cards.len(), 4);
    for card in cards {
        let open = card.split("<details").next().expect("a part");
        let shown = !open.contains("volume-production2/never");
        for plot in ["class=\"size\"", "class=\"speed\"", "class=\"added\""] {
            assert_eq!(open.contains(plot), shown, "{plot} in {open}");
        }
        assert_eq!(open.matches("<time datetime=").count(), 4, "{open}");
        let line = open.split("class=\"size\" d=\"").nth(1).and_then(|path| path.split('"').next());
        let points = line.map_or(0, |line| line.matches('L').count());
        assert_eq!(points > 80, shown, "all days are in the plot: {line:?}");
    }
}
