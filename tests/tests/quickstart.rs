//! `vsync quickstart`: the first command that somebody types.

use std::fs;
use std::os::unix::fs::MetadataExt;

use serde_json::Value;
use vsync_tests::{DockerVolume, Tree, Volume, Vsync, assert_same, docker};

const DEMO: &str = "vsync-quickstart-demo";
const RESTORED: &str = "vsync-quickstart-demo-restored";

/// A new user's machine, without a Docker engine.
fn machine() -> (tempfile::TempDir, Vsync) {
    let home = vsync_tests::scratch();
    let vsync = Vsync::at(home.path()).env("DOCKER_HOST", "unix:///nonexistent/docker.sock");
    (home, vsync)
}

fn step(summary: &Value, index: usize, field: &str) -> u64 {
    summary["steps"][index][field].as_u64().unwrap_or_else(|| panic!("no {field} of step {index} in {summary}"))
}

fn summary(vsync: &Vsync, arguments: &[&str]) -> Value {
    let output = vsync.run(["quickstart", "--json"].iter().chain(arguments)).success();
    output.json_lines().into_iter().find(|line| line["message_type"] == "summary").expect("a summary")
}

#[test]
fn it_works_without_docker_and_says_what_to_do_next() {
    let (home, vsync) = machine();
    let output = vsync.run(["quickstart"]).success();
    for text in ["made for this", "backed up", "restored", "equal in content and metadata", "Next:", "vsync snapshots"]
    {
        assert!(output.stdout().contains(text), "{text}\n{output}");
    }
    assert!(!output.stdout().contains('\u{1b}'), "no colours in a pipe");
    let realm = home.path().join("vsync-quickstart");
    assert_same(&Tree::read(realm.join("demo")), &Tree::read(realm.join("restored/demo")));

    // What it says to type next works, and from the directory that it names.
    let there = Vsync::at(&realm);
    for line in output.stdout().lines().filter_map(|line| line.trim().strip_prefix("vsync ")) {
        there.run(line.split(' ')).success();
    }
    assert_same(&Tree::read(realm.join("demo")), &Tree::read(realm.join("another")));
    assert_eq!(fs::metadata(realm.join("keys")).unwrap().mode() & 0o077, 0);
}

#[test]
fn the_second_backup_sends_little_and_a_second_run_goes_on() {
    let (_home, vsync) = machine();
    let first = summary(&vsync, &[]);
    let (sent, again) = (step(&first, 0, "data_added_packed"), step(&first, 1, "data_added_packed"));
    assert!(sent > 12 << 20, "the first backup sends everything: {sent}");
    assert!(again > 0 && again < sent / 20, "the second only what changed: {again} after {sent}");
    assert_eq!(step(&first, 3, "differences"), 0);

    let second = summary(&vsync, &[]);
    let unchanged = step(&second, 0, "data_added_packed");
    assert!(unchanged < 1 << 16, "the realm is the same one, so nothing is sent again: {unchanged}");
    assert!(step(&second, 1, "data_added_packed") > 0);
    let fetched = step(&second, 2, "bytes_fetched");
    assert!(fetched < 1 << 20, "restored over the last one, of which most is there: {fetched}");
    vsync.run(["quickstart"]).success().stdout_contains("taken up again");
}

#[test]
fn a_directory_of_ones_own_is_only_read() {
    let (home, vsync) = machine();
    let data = Volume::new(1);
    data.zoo();
    let before = Tree::read(data.path());
    let path = data.path().to_str().unwrap();
    let came = summary(&vsync, &[path]);
    assert_same(&before, &Tree::read(data.path()));
    assert_eq!(came["changed"], "nothing: it is yours");
    assert!(step(&came, 1, "data_added_packed") < 1 << 12, "nothing changed, nothing is sent: {came}");
    assert_same(&before, &Tree::read(came["restored_into"].as_str().unwrap()));

    // Another directory joins the same realm.
    let other = Volume::new(3);
    other.random("a", 1000);
    vsync.run(["quickstart", other.path().to_str().unwrap()]).success().stdout_contains("taken up again");
    let listed = Vsync::at(&home.path().join("vsync-quickstart")).run(["snapshots", "--json"]).success().json();
    assert_eq!(listed.as_array().map(Vec::len), Some(4));
}

#[test]
fn its_own_backups_are_not_backed_up() {
    let (home, vsync) = machine();
    vsync.run(["quickstart", "."]).code(2).stderr_contains("where its own backups would go");
    vsync.run(["quickstart", "./nothing"]).code(11);
    vsync.run(["quickstart", "nothing"]).code(1).stderr_contains("to do");
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0, "what failed at once leaves nothing behind");
}

#[test]
fn somebody_who_is_not_root_can_try_it() {
    let (home, vsync) = machine();
    std::os::unix::fs::chown(home.path(), Some(65534), Some(65534)).unwrap();
    let user = vsync.through(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]);
    user.run(["quickstart"]).success().stdout_contains("equal in content and metadata");
}

/// The engine is one for all tests, and the names of the volumes are fixed: one test has them all.
#[test]
fn with_docker_the_demonstration_is_a_volume() {
    let home = vsync_tests::scratch();
    let vsync = Vsync::at(home.path());
    let output = vsync.run(["quickstart"]).success();
    let (demo, restored) = (DockerVolume::named(DEMO), DockerVolume::named(RESTORED));
    assert!(output.stdout().contains(&format!("docker volume rm {DEMO} {RESTORED}")), "{output}");
    assert_same(&Tree::read(demo.path()), &Tree::read(restored.path()));
    vsync.run(["quickstart"]).success();
    assert_same(&Tree::read(demo.path()), &Tree::read(restored.path()));

    let mine = DockerVolume::new("mine");
    fs::write(mine.path().join("precious"), "bytes").unwrap();
    let before = Tree::read(mine.path());
    vsync.run(["quickstart", mine.name()]).success().stdout_contains("yours, and only read");
    assert_same(&before, &Tree::read(mine.path()));
    let copy = DockerVolume::named(&format!("{}-restored", mine.name()));
    assert_same(&before, &Tree::read(copy.path()));

    // A volume that quickstart did not make is not written to, whatever its name.
    drop(copy);
    docker::docker(["volume", "create", &format!("{}-restored", mine.name())]);
    let copy = DockerVolume::named(&format!("{}-restored", mine.name()));
    vsync.run(["quickstart", mine.name()]).code(1).stderr_contains("quickstart did not make it");
    assert_eq!(fs::read_dir(copy.path()).unwrap().count(), 0);
}
