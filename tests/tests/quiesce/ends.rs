//! Applications go on, whatever becomes of vsync.

use rustix::process::Signal;
use vsync_tests::docker::BASE;
use vsync_tests::{Container, DockerVolume, Volume};

use super::bed::{Bed, GATE, at_the_gate, in_the_hold, open_the_gate, server_goes_on, until};

const PAUSE: [&str; 4] = ["--label", "vsync.quiesce=pause", "--label", GATE];
const STOP: [&str; 4] = ["--label", "vsync.quiesce=stop", "--label", GATE];

#[test]
fn a_killed_backup_is_undone_by_the_next_command() {
    let bed = Bed::new("killed");
    let user = bed.user("db", &PAUSE);
    in_the_hold(&bed, &user, "paused").kill().died();
    server_goes_on(&bed);
    assert_eq!((user.state().as_str(), bed.records()), ("paused", 1));
    let unheld = bed.vsync().run(["unhold", "--json"]).success().json();
    assert_eq!(unheld["containers"][0]["container"], user.name(), "{unheld}");
    assert_eq!((user.state().as_str(), bed.records()), ("running", 0));
    bed.vsync().run(["unhold"]).success().stdout_contains("nothing is held");

    // Any command that talks to the engine does it, and then its own work.
    in_the_hold(&bed, &user, "paused").kill().died();
    server_goes_on(&bed);
    let check = bed.vsync().run(["check", "--connection"]).success();
    check.stderr_contains("undoing what process").stderr_contains(bed.volume.name());
    assert_eq!((user.state().as_str(), bed.records()), ("running", 0));
    assert_eq!(bed.snapshots(), 0);
    assert_eq!(bed.done_to(&user), ["pause", "unpause", "pause", "unpause"]);
}

#[test]
fn a_killed_backup_is_undone_while_the_server_is_away() {
    let bed = Bed::new("away");
    let user = bed.user("db", &PAUSE);
    in_the_hold(&bed, &user, "paused").kill().died();
    // It stands still, and answers nobody.
    bed.vsync().run(bed.backup(&[])).code(10).stderr_contains("undoing what process");
    assert_eq!((user.state().as_str(), bed.records()), ("running", 0));
    server_goes_on(&bed);
}

#[test]
fn a_stopped_container_is_started_again_after_a_kill_and_its_command_is_run() {
    let bed = Bed::new("killed-stop");
    let user = bed.user("db", &[&STOP[..], &["--label", "vsync.exec-post=touch /data/after-$VSYNC_OUTCOME"]].concat());
    let started = user.started_at();
    in_the_hold(&bed, &user, "exited").kill().died();
    server_goes_on(&bed);
    bed.vsync().run(["unhold"]).success().stdout_contains(user.name());
    assert_eq!(user.state(), "running");
    assert_ne!(user.started_at(), started);
    assert!(bed.file("after-failed").exists());
}

#[test]
fn what_somebody_did_meanwhile_is_not_undone() {
    let bed = Bed::new("meanwhile");
    let user = bed.user("db", &STOP);
    in_the_hold(&bed, &user, "exited").kill().died();
    server_goes_on(&bed);
    // It is somebody else's now, and stopped because they want it so.
    user.tell("start");
    user.tell("stop");
    bed.vsync().run(["unhold"]).success();
    assert_eq!((user.state().as_str(), bed.records()), ("exited", 0));
}

#[test]
fn a_kill_while_a_container_stops_is_undone_when_it_has_stopped() {
    let bed = Bed::new("stopping");
    let mount = format!("{}:/data", bed.volume.name());
    // It takes the time that it is given.
    let stubborn = ["-v", &mount, "--stop-timeout", "6", "--label", "vsync.quiesce=stop", "--label", GATE];
    let script = "trap 'touch /data/asked' TERM; while true; do sleep 0.1; done";
    let user =
        Container::run("stubborn", &stubborn.iter().copied().chain([BASE, "sh", "-c", script]).collect::<Vec<_>>());
    let backup = at_the_gate(&bed, &[]);
    open_the_gate(&bed);
    until("it was asked to stop", || bed.file("asked").exists());
    backup.kill().died();
    assert_eq!(user.state(), "running", "it is still stopping");
    let started = user.started_at();
    bed.vsync().run(["unhold"]).success();
    assert_eq!(user.state(), "running");
    assert_ne!(user.started_at(), started, "it was started again after it had stopped");
}

#[test]
fn an_interrupted_backup_lets_everything_go_at_once() {
    for (signal, labels, state) in
        [(Signal::TERM, &PAUSE, "paused"), (Signal::INT, &STOP, "exited"), (Signal::HUP, &PAUSE, "paused")]
    {
        let bed = Bed::new("interrupted");
        let user = bed.user("db", labels);
        let backup = in_the_hold(&bed, &user, state);
        backup.signal(signal);
        // The server is still away: that is no reason to wait.
        until("it goes on", || user.state() == "running");
        server_goes_on(&bed);
        let _ = backup.wait().code(130);
        assert_eq!((bed.snapshots(), bed.records()), (0, 0), "{signal:?}");
    }
}

#[test]
fn an_interrupt_before_the_hold_holds_nothing() {
    let bed = Bed::new("early");
    let user = bed.user("db", &PAUSE);
    let backup = at_the_gate(&bed, &[]);
    backup.signal(Signal::TERM);
    let _ = backup.wait().code(130);
    assert_eq!((bed.done_to(&user), bed.records()), (Vec::new(), 0));
    let processes = user.exec(&["ps", "-o", "args"]);
    assert!(!processes.contains("touch"), "its command was killed: {processes}");
}

#[test]
fn a_container_that_cannot_be_started_again_is_told_loudly() {
    let bed = Bed::new("stuck");
    Volume::at(&bed.volume.path(), 1).write("file", "text");
    let needed = vsync_tests::scratch();
    let directory = needed.path().join("needed");
    std::fs::create_dir(&directory).expect("a directory");
    let mount = format!("type=bind,source={},target=/needed", directory.display());
    let user = bed.user("db", &[&STOP[..], &["--mount", &mount]].concat());
    let backup = in_the_hold(&bed, &user, "exited");
    std::fs::remove_dir(&directory).expect("the directory");
    server_goes_on(&bed);
    let command = format!("docker start {}", user.name());
    let _ =
        backup.wait().code(22).stderr_contains("is not back").stderr_contains(&command).stdout_contains("snapshot ");
    assert_eq!((bed.snapshots(), bed.records()), (1, 1), "the snapshot is made all the same");

    let _ = bed.vsync().run(["unhold"]).code(22).stderr_contains(&command);
    std::fs::create_dir(&directory).expect("a directory");
    let _ = bed.vsync().run(["unhold"]).success();
    assert_eq!((user.state().as_str(), bed.records()), ("running", 0));
}

#[test]
fn a_container_that_goes_on_before_its_time_spoils_the_snapshot() {
    let bed = Bed::new("spoilt");
    let user = bed.user("db", &PAUSE);
    let backup = in_the_hold(&bed, &user, "paused");
    user.tell("unpause");
    server_goes_on(&bed);
    let _ = backup.wait().code(1).stderr_contains("did not stand still").stderr_contains(user.name());
    assert_eq!((bed.snapshots(), bed.records()), (0, 0));

    let backup = in_the_hold(&bed, &user, "paused");
    let late = bed.user("late", &["--label", "vsync.quiesce=pause"]);
    server_goes_on(&bed);
    let _ = backup.wait().code(1).stderr_contains("was started").stderr_contains(late.name());
    assert_eq!((bed.snapshots(), user.state().as_str()), (0, "running"));
}

#[test]
fn two_backups_do_not_take_each_others_hold_for_somebodys_wish() {
    let bed = Bed::new("both");
    let other = DockerVolume::new("other");
    let (one, two) = (format!("backup = [{:?}]", bed.volume.name()), other.name());
    bed.realm.edit(|toml| toml.replace(&one, &format!("backup = [{:?}, {two:?}]", bed.volume.name())));
    let mount = format!("{two}:/other");
    let user = bed.user("db", &[&PAUSE[..], &["-v", &mount]].concat());
    let first = at_the_gate(&bed, &[]);
    let mut second = bed.vsync().spawn(["backup", two]);
    let line = second.wait_for_stderr("waiting until process");
    assert!(line.contains(bed.volume.name()), "{line}");
    open_the_gate(&bed);
    let _ = first.wait().success();
    until("the second one is at the gate", || bed.file("ready").exists());
    open_the_gate(&bed);
    let _ = second.wait().success();
    assert_eq!((user.state().as_str(), bed.records()), ("running", 0));
    assert_eq!(bed.done_to(&user), ["pause", "unpause", "pause", "unpause"]);
}

#[test]
fn a_restore_that_is_killed_is_undone_too() {
    let bed = Bed::new("restore");
    Volume::at(&bed.volume.path(), 1).random("large", 8 << 20);
    bed.vsync().run(bed.backup(&[])).success();
    std::fs::write(bed.file("large"), "other").expect("the file");
    let user = bed.user("db", &[]);
    let started = user.started_at();
    let mut restore = bed.vsync().spawn(["restore", bed.volume.name(), "--stop-containers"]);
    until("it is stopped", || {
        assert!(restore.is_running(), "{}", restore.stderr_so_far());
        let stopped = user.state() == "exited";
        if stopped {
            restore.signal(Signal::STOP);
        }
        stopped
    });
    if restore.is_running() && bed.records() == 1 {
        restore.kill().died();
        bed.vsync().run(["unhold"]).success().stdout_contains(user.name());
    }
    assert_eq!((user.state().as_str(), bed.records()), ("running", 0));
    assert_ne!(user.started_at(), started);
}
