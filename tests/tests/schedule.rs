//! Backups that nobody begins: at their times, made up for, tried again, called off, and never two of a volume.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use vsync_tests::{Link, Realm, Relay, Running, Site, Volume, Vsync};

/// A site whose volume is due at `at`.
fn site(seed: u64, at: &str) -> Site {
    let site = Site::with(seed, |realm| realm.client_with("other", &[], ""));
    site.data.many("files", 20, 5000);
    add_entry(&site.realm, "data", at);
    site
}

/// Gives the machine `host` one more entry, on every machine, as a commit to git would.
fn add_entry(realm: &Realm, volume: &str, at: &str) {
    let entry =
        format!("[[clients.schedule]]\nvolume = {volume:?}\nserver = \"store\"\nat = {at:?}\njitter = \"0s\"\n\n");
    realm.edit(|toml| {
        let host = toml.find("name = \"host\"").expect("the machine");
        let end = toml[host..].find("\n[[").expect("another table") + host + 1;
        format!("{}{entry}{}", &toml[..end], &toml[end..])
    });
}

fn run(vsync: &Vsync) -> Running {
    let mut running = vsync.clone().limit(Duration::from_secs(240)).spawn(["schedule", "run", "--retry-after", "2s"]);
    running.wait_for_stderr("schedule of host");
    running
}

fn stop(running: Running) {
    running.signal(Signal::TERM);
    running.wait_within(Duration::from_secs(60)).success().stderr_contains("stopped");
}

/// The file in which the schedule of `host` is remembered.
fn state(vsync: &Vsync) -> PathBuf {
    let found = fs::read_dir(vsync.home().join("state")).expect("state").map(|realm| realm.expect("a realm").path());
    let mut files = found.map(|realm| realm.join("schedule/host.json")).filter(|file| file.exists());
    files.next().expect("the schedule's state")
}

/// Whether somebody holds the lock of a volume.
fn lock_of(vsync: &Vsync, volume: &str) -> bool {
    let found = fs::read_dir(vsync.home().join("state")).expect("state").map(|realm| realm.expect("a realm").path());
    let mut locks = found.map(|realm| realm.join(format!("locks/host/{volume}.lock")));
    locks.any(|lock| fs::read(lock).is_ok_and(|holder| !holder.is_empty()))
}

/// As if the machine had been off for three days.
fn was_off(vsync: &Vsync) {
    let file = state(vsync);
    let mut known: Value = serde_json::from_slice(&fs::read(&file).expect("the state")).expect("JSON");
    for entry in known["entries"].as_object_mut().expect("entries").values_mut() {
        let settled: jiff::Timestamp = entry["settled"].as_str().expect("a time").parse().expect("a time");
        entry["settled"] = (settled - jiff::SignedDuration::from_hours(72)).to_string().into();
    }
    fs::write(&file, known.to_string()).expect("the state");
}

fn snapshots(site: &Site) -> usize {
    site.host().run(["snapshots", "--json"]).success().json().as_array().expect("a list").len()
}

fn status(vsync: &Vsync, code: i32) -> Value {
    vsync.run(["schedule", "status", "--json"]).code(code).json()
}

#[test]
fn backups_come_when_they_are_due_and_a_changed_configuration_is_taken_up() {
    let more = Volume::new(2);
    more.write("file", "text");
    let site = Site::with(1, |realm| realm.directory("more", more.path()).client_with("other", &[], ""));
    site.data.write("file", "text");
    site.realm.edit(|toml| toml.replace("backup = [\"data\"]", "backup = [\"data\", \"more\"]"));
    add_entry(&site.realm, "data", "* * * * *");
    let host = site.host();
    let mut running = run(&host);
    let before = status(&host, 0);
    assert_eq!((&before["running"], &before["entries"][0]["last_attempt"]), (&true.into(), &Value::Null), "{before}");
    running.wait_for_stderr("data to store: done");
    let after = status(&host, 0);
    let entry = &after["entries"][0];
    assert_eq!(entry["last_exit_code"], 0, "{after}");
    assert_eq!(entry["last_success"], entry["last_attempt"], "{after}");
    assert!(entry["next"].as_str() > entry["last_attempt"].as_str(), "{after}");
    let listed = host.run(["snapshots", "data", "--json"]).success().json();
    assert_eq!(listed[0]["id"], entry["last_snapshot"], "{after}");

    // What is wrong changes nothing; what is right counts at once, without a restart.
    site.realm.edit(|toml| toml.replace("at = \"* * * * *\"", "at = \"soon\""));
    running.wait_for_stderr("is wrong; the schedule stays as it was");
    site.realm.edit(|toml| toml.replace("at = \"soon\"", "at = \"* * * * *\""));
    add_entry(&site.realm, "more", "* * * * *");
    running.wait_for_stderr("schedule of host: 2 entries");
    running.wait_for_stderr("more to store: done");
    host.run(["schedule", "status"]).success().stdout_contains("the schedule of host is running");
    stop(running);
    let stopped = status(&host, 3);
    assert_eq!(stopped["running"], false, "{stopped}");
    host.run(["schedule", "status"]).code(3).stdout_contains("is NOT running");
}

#[test]
fn what_was_missed_while_the_machine_was_off_comes_once() {
    let site = site(3, "02:00");
    let host = site.host();
    stop(run(&host));
    assert_eq!(snapshots(&site), 0, "a new entry waits for its time");
    was_off(&host);
    // Meant for a person's own commands.
    let mut running = run(&host.clone().env("VSYNC_DRY_RUN", "true"));
    running.wait_for_stderr("data to store: done");
    // Killed as a power cut would: what was done is remembered.
    running.kill().died();
    let running = run(&host);
    std::thread::sleep(Duration::from_secs(7));
    assert!(!running.stderr_so_far().contains("begins"), "{}", running.stderr_so_far());
    assert_eq!(snapshots(&site), 1, "three nights were missed, and one backup makes up for them");
    let next: jiff::Timestamp =
        status(&host, 0)["entries"][0]["next"].as_str().expect("a time").parse().expect("a time");
    assert_eq!(next.strftime("%H:%M:%S").to_string(), "02:00:00");
    assert!(next > jiff::Timestamp::now());
    stop(running);
}

#[test]
fn what_fails_is_tried_again_and_comes_right_when_the_server_is_back() {
    let mut site = site(4, "02:00");
    let host = site.host();
    stop(run(&host));
    was_off(&host);
    site.server.stop().success();
    let mut running = run(&host);
    let failed = running.wait_for_stderr("data to store: FAILED (exit code 10)");
    assert!(failed.contains("again at"), "{failed}");
    let seen = status(&host, 3);
    assert_eq!(seen["entries"][0]["last_exit_code"], 10, "{seen}");
    assert_eq!(seen["entries"][0]["last_success"], Value::Null, "{seen}");
    host.run(["schedule", "status"]).code(3).stdout_contains("data FAILED: ");
    site.server.restart();
    running.wait_for_stderr("data to store: done");
    assert_eq!(snapshots(&site), 1);
    stop(running);
}

#[test]
fn what_goes_on_failing_waits_for_its_next_time() {
    let mut site = site(5, "02:00");
    let host = site.host();
    stop(run(&host));
    was_off(&host);
    site.server.stop().success();
    let arguments = ["schedule", "run", "--retry-after", "1s", "--tries", "2"];
    let mut running = host.clone().limit(Duration::from_secs(240)).spawn(arguments);
    running.wait_for_stderr("; again at");
    let last = running.wait_for_stderr("; next at");
    assert!(last.contains("FAILED (exit code 10)") && last.contains("T02:00:00Z"), "{last}");
    stop(running);
}

#[test]
fn what_no_other_try_would_change_is_not_tried_again() {
    let site = site(6, "02:00");
    let host = site.host();
    stop(run(&host));
    was_off(&host);
    // The server does not know this machine any more.
    let registry = site.realm.machine("store").join("vsync.pub");
    let text = fs::read_to_string(&registry).expect("vsync.pub");
    let without: Vec<&str> = text.lines().filter(|line| !line.starts_with("machine host ")).collect();
    assert_eq!(without.len() + 1, text.lines().count(), "{text}");
    fs::write(&registry, without.join("\n") + "\n").expect("vsync.pub");
    let mut running = run(&host);
    let failed = running.wait_for_stderr("FAILED");
    assert!(failed.contains("(exit code 12)") && failed.contains("; next at"), "{failed}");
    stop(running);
}

#[test]
fn sigterm_calls_a_backup_off_which_is_made_up_for() {
    let site = site(7, "02:00");
    let host = site.host();
    stop(run(&host));
    was_off(&host);
    let file = host.home().join("vsync.toml");
    let direct = fs::read_to_string(&file).expect("vsync.toml");
    let address =
        direct.lines().find_map(|line| line.strip_prefix("address = ")).expect("an address").trim_matches('"');
    let relay = Relay::to(address);
    fs::write(&file, direct.replace(address, &relay.address().to_string())).expect("vsync.toml");
    // Slow enough for somebody to come in between.
    relay.set(Link { delay: Duration::from_millis(700), ..Link::default() });
    let mut running = run(&host);
    running.wait_for_stderr("data to store: begins");
    std::thread::sleep(Duration::from_millis(1500));
    running.signal(Signal::TERM);
    let output = running.wait_within(Duration::from_secs(60)).success();
    let output = output.stderr_contains("stopping: 1 running backups").stderr_contains("data to store: called off");
    output.stderr_contains("stopped");
    assert_eq!(status(&host, 3)["entries"][0]["last_exit_code"], 130);
    assert_eq!(snapshots(&site), 0);

    relay.set(Link::default());
    let mut running = run(&host);
    running.wait_for_stderr("data to store: done");
    assert_eq!(snapshots(&site), 1);
    stop(running);
}

#[test]
fn a_volume_is_backed_up_by_one_at_a_time() {
    let site = site(8, "02:00");
    let host = site.host();
    stop(run(&host));
    was_off(&host);
    // A person's backup that takes its time.
    let mut manual = host.spawn(["backup", "--stdin-from-command", "data", "--", "sleep", "100"]);
    let mut looks = 0;
    while !lock_of(&host, "data") {
        assert!(manual.is_running() && looks < 600, "{}", manual.stderr_so_far());
        looks += 1;
        std::thread::sleep(Duration::from_millis(100));
    }
    let second = host.run(["backup", "data"]).code(1);
    let second = second.stderr_contains("another backup of data is running on this machine");
    second.stderr_contains(&format!("wait for process {} to end", manual.pid()));
    let before = snapshots(&site);

    let mut running = run(&host);
    let line = running.wait_for_stderr("data: waits for the backup");
    assert!(line.contains(&format!("process {}", manual.pid())), "{line}");
    // Nor can there be a second schedule.
    host.run(["schedule", "run"]).code(1).stderr_contains("the schedule of host is run by process");
    assert_eq!(snapshots(&site), before);
    manual.kill().died();
    running.wait_for_stderr("data to store: done");
    assert_eq!(snapshots(&site), before + 1);
    stop(running);
}

#[test]
fn a_machine_without_a_schedule_says_so_and_waits_for_one() {
    let site = Site::new(9);
    let host = site.host();
    host.run(["schedule", "status"]).code(3).stdout_contains("host has no schedule in");
    let mut running = host.spawn(["schedule", "run"]);
    running.wait_for_stderr("0 entries, nothing is scheduled");
    stop(running);
}

#[test]
fn a_snapshot_with_a_failed_command_after_it_is_not_made_again() {
    let site = site(9, "02:00");
    site.realm.edit(|toml| toml.replacen("backup = [\"data\"]", "backup = [\"data\"]\nrun-after = \"exit 1\"", 1));
    let host = site.host();
    stop(run(&host));
    was_off(&host);
    let mut running = run(&host);
    let done = running.wait_for_stderr("data to store: done, but something around it FAILED (exit code 20)");
    assert!(done.contains("a command around it failed; next at"), "{done}");
    let seen = status(&host, 3);
    let entry = &seen["entries"][0];
    assert_eq!(entry["last_success"], entry["last_attempt"], "{seen}");
    stop(running);
    assert_eq!(snapshots(&site), 1);
}
