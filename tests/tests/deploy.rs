//! What is shipped beside the program: units that systemd accepts, and examples that vsync does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use vsync_tests::{Vsync, bin, scratch, shell};

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the root").join("deploy")
}

#[test]
fn systemd_accepts_the_units_and_finds_little_exposed() {
    let there = scratch();
    for (unit, exposure) in [("vsync-server.service", "15"), ("vsync-schedule.service", "25")] {
        let text = fs::read_to_string(deploy().join("systemd").join(unit)).expect("the unit");
        assert!(text.contains("ExecStart=/usr/local/bin/vsync "), "{text}");
        let installed = there.path().join(unit);
        let program = bin().canonicalize().expect("the program");
        fs::write(&installed, text.replace("/usr/local/bin/vsync", &program.display().to_string())).expect("a file");
        let path = installed.to_str().expect("a path");
        let verified =
            Command::new("systemd-analyze").args(["verify", "--man=no", path]).output().expect("systemd-analyze");
        let said = String::from_utf8_lossy(&verified.stderr);
        assert!(verified.status.success() && !said.contains(unit), "{unit}: {said}");
        let threshold = format!("--threshold={exposure}");
        shell::run("systemd-analyze", ["security", "--offline=true", &threshold, path]);
    }
}

#[test]
fn the_units_run_commands_that_there_are() {
    let there = scratch();
    for unit in ["vsync-server.service", "vsync-schedule.service"] {
        let text = fs::read_to_string(deploy().join("systemd").join(unit)).expect("the unit");
        let line =
            text.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/vsync ")).expect("ExecStart");
        let words: Vec<&str> = line.split(' ').chain(["--help"]).collect();
        Vsync::at(there.path()).run(words).success().stdout_contains("Usage: vsync ");
    }
}

#[test]
fn the_example_realm_is_right_and_has_every_machine() {
    let config = deploy().join("montagu/vsync.toml");
    let there = scratch();
    let config = config.to_str().expect("a path");
    Vsync::at(there.path()).run(["config", "check", "--config", config]).success();
    let text = fs::read_to_string(config).expect("the example");
    for machine in ["annex", "annex2", "production2", "science", "uat"] {
        assert!(text.contains(&format!("name = {machine:?}")), "{machine}");
    }
}

#[test]
fn compose_accepts_its_file_and_it_says_what_the_program_would() {
    let file = deploy().join("compose/compose.yaml");
    let file = file.to_str().expect("a path");
    let words = ["--profile", "server", "--profile", "schedule", "-f", file, "config"];
    let shown = shell::run("docker-compose", words);
    for expected in
        ["read_only: true", "- ALL", "no-new-privileges:true", "restart: unless-stopped", "/etc/vsync:/etc/vsync:ro"]
    {
        assert_eq!(shown.matches(expected).count(), 2, "{expected} in {shown}");
    }
    assert!(shown.contains("10022") && shown.contains("udp"), "{shown}");
}
