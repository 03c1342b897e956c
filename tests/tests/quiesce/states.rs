//! Who is held, and who is left alone.

use vsync_tests::docker::{BASE, docker};
use vsync_tests::{Container, DockerVolume, Volume};

use super::bed::Bed;

/// A container that ends at once, and that the engine starts again and again.
fn crashing(bed: &Bed) -> Container {
    let mount = format!("{}:/data", bed.volume.name());
    let container = Container::run("crashing", &["-v", &mount, "--restart", "always", BASE, "false"]);
    super::bed::until("it restarts", || container.state() == "restarting");
    container
}

#[test]
fn exactly_the_running_containers_that_write_to_the_volume_are_held() {
    let bed = Bed::with("states", "quiesce = \"pause\"");
    Volume::at(&bed.volume.path(), 1).write("file", "text");
    let read_only = format!("{}:/data:ro", bed.volume.name());
    let directory = format!("{}:/data", bed.volume.path().display());
    let elsewhere = DockerVolume::new("elsewhere");

    let running = bed.user("running", &[]);
    let by_path = Container::run("by-path", &["-v", &directory, BASE, "sleep", "100000"]);
    let paused = bed.user("paused", &[]);
    paused.tell("pause");
    let exited = bed.user("exited", &[]);
    exited.tell("kill");
    let reader = Container::run("reader", &["-v", &read_only, BASE, "sleep", "100000"]);
    let stranger = Container::using(&elsewhere);
    let excused = bed.user("excused", &["--label", "vsync.quiesce=none"]);
    let stopping = bed.user("stopping", &["--label", "vsync.quiesce=stop"]);
    let removed = bed.user("removed", &["--rm"]);
    let everybody = [&running, &by_path, &paused, &exited, &reader, &stranger, &excused, &stopping, &removed];
    let before = everybody.map(|container| (container.state(), container.started_at()));

    let planned = bed.vsync().run(["backup", "--dry-run", "--json"]).success().json();
    let summary = bed.vsync().run(bed.backup(&["--json"])).success().summary();
    let held = |value: &serde_json::Value| {
        let list = value.as_array().expect("a list").iter();
        let mut pairs: Vec<_> = list.map(|it| (it["container"].clone(), it["action"].clone())).collect();
        pairs.sort_by_key(|pair| pair.0.to_string());
        pairs
    };
    let mut expected = [(&running, "pause"), (&by_path, "pause"), (&stopping, "stop"), (&removed, "pause")]
        .map(|(container, action)| (container.name().into(), action.into()));
    expected.sort_by_key(|pair: &(serde_json::Value, serde_json::Value)| pair.0.to_string());
    assert_eq!(held(&planned["containers"]), expected);
    assert_eq!(held(&summary["held"]), expected);
    assert!(summary["held_seconds"].as_f64().expect("a number") > 0.0, "{summary}");
    // Neither the excused one nor the snapshot claims more than was done.
    assert_eq!(planned["quiesce"], "none");

    // All is as before, and nobody else was touched.
    for (container, (state, started)) in everybody.into_iter().zip(before) {
        assert_eq!(container.state(), state, "{}", container.name());
        let restarted = container.started_at() != started;
        assert_eq!(restarted, container.name() == stopping.name(), "{}", container.name());
    }
    let hold = ["pause", "unpause"];
    for (container, done) in [
        (&running, &hold[..]),
        (&by_path, &hold),
        (&removed, &hold),
        (&paused, &["pause"]),
        (&exited, &["kill"]),
        (&reader, &[]),
        (&stranger, &[]),
        (&excused, &[]),
    ] {
        assert_eq!(bed.done_to(container), done, "{}", container.name());
    }
    assert_eq!(bed.records(), 0);
}

#[test]
fn a_container_that_crashes_again_and_again_is_kept_from_starting() {
    let bed = Bed::with("crashing", "quiesce = \"pause\"");
    let container = crashing(&bed);
    let summary = bed.vsync().run(bed.backup(&["--json"])).success().summary();
    assert_eq!(summary["held"][0]["action"], "stop", "{summary}");
    assert!(["restarting", "running"].contains(&container.state().as_str()), "{}", container.state());
}

#[test]
fn what_would_not_come_back_is_refused_and_left_running() {
    let bed = Bed::with("refused", "quiesce = \"stop\"");
    let first = bed.user("a", &[]);
    let removed = bed.user("b", &["--rm"]);
    let started = first.started_at();
    bed.vsync().run(bed.backup(&[])).code(1).stderr_contains(removed.name()).stderr_contains("--rm");
    assert_eq!((first.started_at(), removed.state().as_str()), (started, "running"));
    assert_eq!(bed.snapshots(), 0);
    // The command line beats the configuration.
    bed.vsync().run(bed.backup(&["--quiesce", "pause"])).success();
    bed.vsync().run(bed.backup(&["--quiesce", "none"])).success();
    assert_eq!(bed.done_to(&removed), ["pause", "unpause"]);
    assert_eq!(bed.snapshots(), 2);
}

#[test]
fn a_label_that_makes_no_sense_is_named_by_check_and_keeps_the_backup_from_claiming_it() {
    let bed = Bed::new("labels");
    let mistaken = bed.user("mistaken", &["--label", "vsync.quiesce=paus"]);
    bed.vsync().run(bed.backup(&[])).code(2).stderr_contains(mistaken.name()).stderr_contains("none, pause, stop");
    let misspelt = bed.user("misspelt", &["--label", "vsync.exec-per=sync"]);
    let check = bed.vsync().run(["check", "--connection"]).code(1);
    let check = check.stdout_contains(mistaken.name()).stdout_contains("vsync.quiesce=\"paus\"");
    check.stdout_contains(misspelt.name()).stdout_contains("did you mean `vsync.exec-pre`?");
    assert_eq!(bed.snapshots(), 0);
}

#[test]
fn a_directory_is_held_if_its_table_says_so() {
    let data = Volume::new(1);
    data.write("file", "text");
    let realm = vsync_tests::Realm::new().server("annex2").client("production2", &["data"]);
    let realm = realm.directory_with("data", data.path(), "quiesce = \"pause\"").build();
    let _server = realm.serve("annex2");
    let mount = format!("{}:/data", data.path().display());
    let user = Container::run("user", &["-v", &mount, BASE, "sleep", "100000"]);
    let vsync = realm.vsync("production2");
    vsync.run(["backup", "--dry-run"]).success().stdout_contains(&format!("would pause container {}", user.name()));
    let summary = vsync.run(["backup", "data", "--json"]).success().summary();
    assert_eq!(summary["held"][0]["container"], user.name(), "{summary}");
    assert_eq!(user.state(), "running");
    let engineless = vsync.env("DOCKER_HOST", "unix:///nowhere/docker.sock");
    engineless.run(["backup", "data"]).code(1).stderr_contains("--quiesce none");
    engineless.run(["backup", "data", "--quiesce", "none"]).success();
}

#[test]
fn a_volume_that_only_a_helper_reaches_is_held_for_it() {
    let content = Volume::new(2);
    content.write("file", "text");
    let device = format!("device={}", content.path().display());
    let volume = DockerVolume::with("bound", &["--opt", "type=none", "--opt", "o=bind", "--opt", &device]);
    let bed = Bed::on(volume, "quiesce = \"pause\"", "");
    let user = bed.user("user", &[]);
    let summary = bed.vsync().run(bed.backup(&["--json"])).success().summary();
    assert_eq!(summary["held"][0]["container"], user.name(), "{summary}");
    assert_eq!(bed.done_to(&user), ["pause", "unpause"]);
    bed.vsync().run(bed.backup(&[])).success().stdout_contains("snapshot ").stderr_contains("held for ");
    let containers = docker(["ps", "-a", "--format", "{{.Names}}"]);
    let helper = format!("vsync-helper-{}-", bed.volume.name());
    assert!(!containers.contains(&helper), "a helper was left behind: {containers}");
}
