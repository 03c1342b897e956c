//! Commands inside containers, and on the machine.

use std::fs;

use vsync_tests::DockerVolume;

use super::bed::Bed;

#[test]
fn commands_are_run_in_the_container_before_and_after() {
    let bed = Bed::new("commands");
    let user = bed.user(
        "db",
        &[
            "--label",
            "vsync.quiesce=pause",
            "--label",
            "vsync.exec-pre=echo \"$VSYNC_VOLUME by $(id -un)\" >/data/before; echo saving",
            "--label",
            "vsync.exec-post=[\"sh\", \"-c\", \"echo outcome $VSYNC_OUTCOME >/tmp/after\"]",
            "--label",
            "vsync.exec-user=postgres",
        ],
    );
    user.exec(&["chmod", "777", "/data"]);
    let output = bed.vsync().run(bed.backup(&[])).success();
    output.stderr_contains(&format!("{} exec-pre: saving", user.name())).stderr_contains("held for ");
    assert_eq!(user.exec(&["cat", "/tmp/after"]), "outcome read");
    // What the command wrote is in the snapshot: it ran before the volume was read.
    let (_guard, there) = bed.restored();
    let written = fs::read_to_string(there.join("before")).expect("the file");
    assert_eq!(written, format!("{} by postgres\n", bed.volume.name()));
}

#[test]
fn a_command_that_fails_keeps_the_snapshot_from_being_made_unless_it_may() {
    let bed = Bed::with(
        "failing",
        "quiesce = \"pause\"\nexec-pre = \"echo no room; exit 7\"\nexec-post = \"touch /data/after\"",
    );
    let user = bed.user("db", &[]);
    let failed = bed.vsync().run(bed.backup(&[])).code(20);
    failed
        .stderr_contains("exec-pre of container")
        .stderr_contains("exit code 7: no room")
        .stderr_contains(user.name());
    assert_eq!(bed.snapshots(), 0);
    assert!(bed.file("after").exists(), "the command afterwards tidies up whatever happened");
    assert_eq!(bed.done_to(&user), [""; 0], "it was not held for nothing");
    drop(user);

    let lenient = bed.user("db", &["--label", "vsync.hook-failure=continue"]);
    bed.vsync().run(bed.backup(&[])).success().stderr_contains("exit code 7: no room; going on");
    assert_eq!(bed.done_to(&lenient), ["pause", "unpause"]);
    drop(lenient);

    // After the reading, the snapshot is made all the same.
    let late = bed.user("db", &["--label", "vsync.exec-pre=true", "--label", "vsync.exec-post=nosuchcommand"]);
    bed.vsync()
        .run(bed.backup(&[]))
        .code(20)
        .stderr_contains("exec-post of container")
        .stderr_contains("no such command");
    assert_eq!((bed.snapshots(), late.state().as_str()), (2, "running"));
    assert_eq!(bed.records(), 0);
}

#[test]
fn a_command_that_does_not_end_is_killed() {
    let bed =
        Bed::with("endless", "quiesce = \"hooks\"\nexec-pre = \"sleep 54321 & sleep 54321\"\nhook-timeout = \"1s\"");
    let user = bed.user("db", &[]);
    bed.vsync().run(bed.backup(&[])).code(20).stderr_contains("no end after 1 s; it was killed");
    let processes = user.exec(&["ps", "-o", "args"]);
    assert!(!processes.contains("54321"), "{processes}");
    assert_eq!((bed.snapshots(), user.state().as_str()), (0, "running"));
}

#[test]
fn commands_on_the_machine_are_told_what_came_of_it() {
    let log = vsync_tests::scratch();
    let path = log.path().join("log");
    let line = |hook: &str| {
        let words = "$VSYNC_HOOK $VSYNC_MACHINE ${VSYNC_VOLUME:-all} ${VSYNC_OUTCOME:-} ${VSYNC_EXIT_CODE:-} ${VSYNC_SNAPSHOT:-}";
        format!("{hook} = '''echo {words} >>{}; echo out of {hook}'''\n", path.display())
    };
    let lines: String = ["run-before", "run-after", "run-failed", "run-finally"].map(line).concat();
    let volume = DockerVolume::new("machine");
    let bed = Bed::on(volume, &lines, &lines);
    let name = bed.volume.name();
    let told = || {
        let text = fs::read_to_string(&path).expect("the log");
        fs::remove_file(&path).expect("the log");
        text.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>()
    };

    let output = bed.vsync().run(bed.backup(&["--json"])).success();
    let id = output.summary()["snapshot_id"].as_str().expect("an id").to_owned();
    assert_eq!(output.stdout().lines().count(), 1, "standard output is for results: {output}");
    let _ = output.stderr_contains("out of run-before");
    let all = "production2 all";
    let one = format!("production2 {name}");
    let expected = [
        format!("run-before {all}"),
        format!("run-before {one}"),
        format!("run-after {one} success 0 {id}"),
        format!("run-finally {one} success 0 {id}"),
        format!("run-after {all} success 0"),
        format!("run-finally {all} success 0"),
    ];
    assert_eq!(told(), expected);

    let _user = bed.user("db", &["--label", "vsync.exec-pre=false"]);
    let _ = bed.vsync().run(bed.backup(&[])).code(20);
    let expected = [
        format!("run-before {all}"),
        format!("run-before {one}"),
        format!("run-failed {one} failed 20"),
        format!("run-finally {one} failed 20"),
        format!("run-failed {all} failed 20"),
        format!("run-finally {all} failed 20"),
    ];
    assert_eq!(told(), expected);

    bed.realm.edit(|toml| toml.replacen("run-before = '''", "run-before = '''exit 3; ", 1));
    let refused = bed.vsync().run(bed.backup(&[])).code(20);
    let _ = refused.stderr_contains("run-before of machine production2 failed: exit status: 3");
    assert_eq!(told()[0], format!("run-failed {all} failed 20"));
    assert_eq!(bed.snapshots(), 1);
}
