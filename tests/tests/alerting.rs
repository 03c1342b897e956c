//! The rules and settings of `deploy/prometheus`, with a real Prometheus and a real Alertmanager.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vsync_server::catalog::Catalog;
use vsync_server::clock::Kept;
use vsync_server::store::health::Health;
use vsync_tests::{Place, Realm, Server, Volume, http, shell};

/// How long an alert may take from its cause to the sink, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(120);

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy/prometheus")
        .join(name)
        .canonicalize()
        .expect("a shipped file")
}

/// Runs promtool and returns what it prints.
#[track_caller]
fn promtool(arguments: &[&str], input: &str) -> String {
    let command = Command::new("promtool")
        .args(arguments)
        .current_dir(shipped("."))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut command = command.expect("promtool, which tests/run installs");
    command.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = command.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "promtool {arguments:?}:\n{text}");
    text
}

/// A program that ends with its guard; what it says is in a file.
struct Daemon(Child, PathBuf);

impl Daemon {
    fn start(program: &str, arguments: &[String], log: PathBuf) -> Self {
        let file = File::create(&log).unwrap();
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        let child = command.spawn().unwrap_or_else(|error| panic!("{program}, which tests/run installs: {error}"));
        Self(child, log)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Receives what Alertmanager posts.
struct Sink {
    address: String,
    alerts: Arc<Mutex<Vec<Value>>>,
}

impl Sink {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let alerts = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&alerts);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Some(message) = receive(stream.unwrap()) else { continue };
                let alerts: Value = serde_json::from_slice(&message).unwrap();
                kept.lock().unwrap().extend(alerts["alerts"].as_array().unwrap().iter().cloned());
            }
        });
        Self { address, alerts }
    }

    /// Waits for an alert in a state.
    #[track_caller]
    fn wait_for(&self, name: &str, status: &str, daemons: &[&Daemon]) -> Value {
        let begun = Instant::now();
        loop {
            let alerts = self.alerts.lock().unwrap().clone();
            let fits = |alert: &&Value| alert["labels"]["alertname"] == name && alert["status"] == status;
            if let Some(alert) = alerts.iter().rev().find(fits) {
                return alert.clone();
            }
            if begun.elapsed() > PATIENCE {
                let logs: Vec<String> = daemons.iter().map(|it| fs::read_to_string(&it.1).unwrap()).collect();
                panic!("no {name} {status}, only {alerts:?}\n{}", logs.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// One request; its body.
fn receive(stream: TcpStream) -> Option<Vec<u8>> {
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    reader.into_inner().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").ok()?;
    Some(body)
}

/// An address that was free a moment ago.
fn free() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// The shipped configuration, looking at `target` every second and telling `alertmanager`.
fn prometheus(directory: &Path, target: &str, alertmanager: &str) -> Daemon {
    let text = fs::read_to_string(shipped("scrape.yml")).unwrap();
    let quick = text.replace("127.0.0.1:10080", target).replace("scrape_interval: 1m", "scrape_interval: 1s");
    assert!(quick.contains(target) && quick.contains("1s"), "scrape.yml is not as this test knows it:\n{text}");
    let text = format!(
        "global: {{evaluation_interval: 1s}}\nalerting: {{alertmanagers: [{{static_configs: [{{targets: [{alertmanager:?}]}}]}}]}}\n{quick}"
    );
    let config = directory.join("prometheus.yml");
    fs::write(&config, text).unwrap();
    // As shipped, but without the patience.
    let rules = fs::read_to_string(shipped("alerts.yml")).unwrap();
    let eager = rules
        .lines()
        .map(|line| line.split_once("for: ").map_or_else(|| line.to_owned(), |it| format!("{}for: 1s", it.0)));
    fs::write(directory.join("alerts.yml"), eager.collect::<Vec<_>>().join("\n")).unwrap();
    let arguments = [
        format!("--config.file={}", config.display()),
        format!("--storage.tsdb.path={}", directory.join("tsdb").display()),
        format!("--web.listen-address={}", free()),
        "--log.level=warn".to_owned(),
    ];
    Daemon::start("prometheus", &arguments, directory.join("prometheus.log"))
}

fn alertmanager(directory: &Path, address: &str, sink: &Sink) -> Daemon {
    let config = json!({
        "route": {"receiver": "sink", "group_wait": "1s", "group_interval": "1s", "group_by": ["alertname"]},
        "receivers": [{"name": "sink", "webhook_configs": [
            {"url": format!("http://{}/", sink.address), "send_resolved": true},
        ]}],
    });
    // JSON is YAML.
    let file = directory.join("alertmanager.yml");
    fs::write(&file, config.to_string()).unwrap();
    let arguments = [
        format!("--config.file={}", file.display()),
        format!("--storage.path={}", directory.join("alertmanager").display()),
        format!("--web.listen-address={address}"),
        "--cluster.listen-address=".to_owned(),
    ];
    Daemon::start("prometheus-alertmanager", &arguments, directory.join("alertmanager.log"))
}

#[test]
fn the_shipped_rules_fire_when_they_should_and_only_then() {
    assert!(promtool(&["check", "rules", "alerts.yml"], "").contains("SUCCESS"));
    assert!(promtool(&["check", "config", "scrape.yml"], "").contains("SUCCESS"));
    assert!(promtool(&["test", "rules", "alerts.test.yml"], "").contains("SUCCESS"));
}

#[test]
fn every_shipped_rule_is_tested_and_asks_for_metrics_that_there_are() {
    let [rules, tests] = ["alerts.yml", "alerts.test.yml"].map(|name| fs::read_to_string(shipped(name)).unwrap());
    let names: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(names.len() > 10, "{names:?}");
    for name in names {
        assert!(tests.contains(&format!("alertname: {name}\n        exp_alerts:\n")), "no test in which {name} fires");
    }
    let data = Volume::new(1);
    data.write("a", "some content");
    let realm = Realm::new().server("annex2").directory("data", data.path()).client("one", &["data"]).build();
    let server = Server::start(realm.vsync("annex2").env("VSYNC_STATUS_ADDRESS", "127.0.0.1:0"));
    for _ in 0..2 {
        realm.vsync("one").run(["backup", "data"]).success();
    }
    realm.vsync("one").run(["verify"]).success();
    let metrics = http::get(&server.status_address(), "/metrics");
    promtool(&["check", "metrics"], &metrics);
    let expressions = rules.lines().filter(|line| !line.trim_start().starts_with(['#', 's', 'd']));
    let words = expressions.flat_map(|line| line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')));
    for name in words.filter(|word| word.starts_with("vsync_")) {
        let known =
            metrics.lines().any(|line| line.starts_with(&format!("{name}{{")) || line.starts_with(&format!("{name} ")));
        assert!(known, "{name} is not among the metrics:\n{metrics}");
    }
}

#[test]
fn failing_backups_are_told_of_and_so_is_their_recovery() {
    let data = Volume::new(1);
    data.random("a", 16 << 20);
    let realm = Realm::new().server("annex2").directory("data", data.path()).client("one", &["data"]).build();
    let mut server = Server::start(realm.vsync("annex2").env("VSYNC_STATUS_ADDRESS", free()));
    let (directory, sink, address) = (vsync_tests::scratch(), Sink::start(), free());
    let alertmanager = alertmanager(directory.path(), &address, &sink);
    let prometheus = prometheus(directory.path(), &server.status_address(), &address);
    let daemons = [&alertmanager, &prometheus];
    let client = realm.vsync("one");
    client.run(["backup", "data"]).success();
    for _ in 0..2 {
        client.run(["backup", "--stdin-from-command", "data", "--", "false"]).code(20);
    }
    let alert = sink.wait_for("VsyncBackupFailing", "firing", &daemons);
    assert_eq!((&alert["labels"]["volume"], &alert["labels"]["source"]), (&"data".into(), &"one".into()));
    assert_eq!(alert["annotations"]["summary"], "2 backups of data of one failed in a row");
    data.random("b", 16 << 20);
    client.run(["backup", "data"]).success();
    sink.wait_for("VsyncBackupFailing", "resolved", &daemons);
    let grown = sink.wait_for("VsyncSizeChanged", "firing", &daemons);
    assert!(grown["annotations"]["summary"].as_str().unwrap().contains("changed by 16MiB"), "{grown}");
    server.stop().success();
}

/// A file system of its own for a store, with little room; unmounted with its guard.
struct Disk(PathBuf);

impl Disk {
    fn mount(image: &Path, store: &Path) -> Self {
        // Nearly all of it is a hole. The server keeps a GiB in reserve.
        shell::run("truncate", ["-s", "4G", image.to_str().unwrap()]);
        shell::run("mkfs.ext4", ["-qF", "-m0", image.to_str().unwrap()]);
        fs::create_dir_all(store).unwrap();
        shell::run("mount", ["-o", "loop", image.to_str().unwrap(), store.to_str().unwrap()]);
        Self(store.to_owned())
    }

    /// Leaves less than a tenth of it.
    fn fill(&self) -> PathBuf {
        let filler = self.0.join("filler");
        shell::run("fallocate", ["-l", "3700M", filler.to_str().unwrap()]);
        filler
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        shell::run("umount", ["-l", self.0.to_str().unwrap()]);
    }
}

/// The server believes that it last saw the clock more than a year ago, and that hardly any time has passed since.
fn leap(store: &Path) {
    let catalog = Catalog::open(&store.join("catalog.sqlite"), Health::default()).unwrap();
    let kept = catalog.time().unwrap().expect("a server that ran keeps the time");
    catalog.keep_time(Kept { seen: kept.seen - 400 * 24 * 3_600_000, ..kept }).unwrap();
    catalog.close();
}

/// One bit in the middle of the largest pack.
fn damage(store: &Path) {
    let packs = Place::Pack.files(store);
    let largest = packs.iter().max_by_key(|pack| pack.metadata().unwrap().len()).unwrap();
    let mut bytes = fs::read(largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(largest, bytes).unwrap();
}

#[test]
fn an_old_backup_a_full_store_damage_and_a_clock_that_leapt_are_told_of_each() {
    let (data, directory, sink, address) = (Volume::new(1), vsync_tests::scratch(), Sink::start(), free());
    data.random("a", 8 << 20);
    let realm = Realm::new().server("annex2").directory_with("data", data.path(), "max-age = \"20s\"");
    let realm = realm.client("one", &["data"]).build();
    let store = realm.store("annex2");
    let disk = Disk::mount(&directory.path().join("image"), &store);
    let mut server = Server::start(realm.vsync("annex2").env("VSYNC_STATUS_ADDRESS", free()));
    let alertmanager = alertmanager(directory.path(), &address, &sink);
    let prometheus = prometheus(directory.path(), &server.status_address(), &address);
    let daemons = [&alertmanager, &prometheus];
    let client = realm.vsync("one");

    // Declared and never backed up; then backed up; then too long ago.
    sink.wait_for("VsyncBackupMissing", "firing", &daemons);
    client.run(["backup", "data"]).success();
    sink.wait_for("VsyncBackupMissing", "resolved", &daemons);
    let old = sink.wait_for("VsyncBackupOverdue", "firing", &daemons);
    assert_eq!((&old["labels"]["volume"], &old["labels"]["severity"]), (&"data".into(), &"critical".into()));

    let filler = disk.fill();
    let full = sink.wait_for("VsyncStoreFull", "firing", &daemons);
    assert!(full["annotations"]["description"].as_str().unwrap().contains("gc --empty-trash"), "{full}");
    data.random("b", 1 << 20);
    client.run(["backup", "data"]).code(21);
    fs::remove_file(filler).unwrap();
    sink.wait_for("VsyncStoreFull", "resolved", &daemons);

    damage(&store);
    realm.vsync("annex2").run(["server", "scrub"]).code(13);
    sink.wait_for("VsyncDamage", "firing", &daemons);

    server.stop().success();
    leap(&store);
    server.restart();
    sink.wait_for("VsyncClockJump", "firing", &daemons);
    realm.vsync("annex2").run(["server", "confirm-clock"]).success();
    sink.wait_for("VsyncClockJump", "resolved", &daemons);
    server.stop().success();
}
