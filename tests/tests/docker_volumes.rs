//! Volumes that cannot simply be read where they lie, through the command line and a real engine.

use std::fs;
use std::path::Path;

use vsync_tests::docker::{self, docker};
use vsync_tests::{Container, DockerVolume, Realm, Server, Tree, Volume, Vsync, assert_same, shell};

/// One server, and one client with one volume.
struct Bed {
    realm: Realm,
    _server: Server,
}

impl Bed {
    fn new(volume: &str) -> Self {
        let realm = Realm::new().server("annex2").client("production2", &[volume]).client("uat", &[]).build();
        let server = realm.serve("annex2");
        Self { realm, _server: server }
    }

    fn client(&self) -> Vsync {
        self.realm.vsync("production2")
    }

    fn snapshots(&self) -> usize {
        let listed = self.client().run(["snapshots", "--json"]).success().json();
        listed.as_array().expect("a list").len()
    }
}

/// A volume whose files live in a directory elsewhere.
fn bound_to(directory: &Path, stem: &str) -> DockerVolume {
    let device = format!("device={}", directory.display());
    DockerVolume::with(stem, &["--opt", "type=none", "--opt", "o=bind", "--opt", &device, "--label", "kind=bound"])
}

/// All that a container may see: attributes that the kernel shows to administrators of the machine alone, such as
/// those of its overlay file system, are hidden from it.
fn zoo_for_containers(volume: &Volume) {
    volume.zoo();
    for (attribute, path) in [("trusted.secret", "void"), ("trusted.on-a-fifo", "special/fifo")] {
        let file = volume.join(path);
        shell::run("setfattr", ["-h", "-x", attribute, file.to_str().expect("a path")]);
    }
}

#[test]
fn a_volume_in_memory_is_never_backed_up_as_empty() {
    let volume = DockerVolume::with("tmpfs", &["--opt", "type=tmpfs", "--opt", "device=tmpfs"]);
    let bed = Bed::new(volume.name());
    let refused = bed.client().run(["backup", volume.name()]).code(1);
    refused.stderr_contains(volume.name()).stderr_contains("lives in memory only while a container uses it");
    assert_eq!(bed.snapshots(), 0);

    // While a container uses it, there is something to read: through another container.
    let user = Container::using(&volume);
    user.exec(&["sh", "-c", "echo kept >/data/file; mkdir /data/d; chown 70:70 /data/d"]);
    bed.client().run(["backup", volume.name()]).success();
    assert_eq!(bed.snapshots(), 1);
    let there = vsync_tests::scratch();
    let path = there.path().join("restored");
    let to = path.to_str().expect("a path");
    bed.client().run(["restore", volume.name(), "--to-path", to]).success();
    assert_eq!(fs::read(path.join("file")).expect("the file"), b"kept\n");
    assert!(path.join("d").is_dir());

    drop(user);
    bed.client().run(["backup", volume.name()]).code(1).stderr_contains("lives in memory");
    bed.client().run(["restore", volume.name()]).code(1).stderr_contains("lives in memory");
    assert_eq!(bed.snapshots(), 1);
}

#[test]
fn a_bound_volume_goes_through_a_helper_in_both_directions() {
    let content = Volume::new(1);
    zoo_for_containers(&content);
    content.many("many", 120, 4000).random("large", 20 << 20);
    let volume = bound_to(content.path(), "bound");
    let bed = Bed::new(volume.name());
    let first = bed.client().run(["backup", volume.name(), "--json", "--tag", "nightly=yes"]).success().summary();
    assert_eq!(first["defect_count"], 0, "{first}");
    assert!(first["total_bytes_processed"].as_u64().expect("a number") > 20 << 20, "{first}");
    let unchanged = bed.client().run(["backup", volume.name(), "--json"]).success().summary();
    assert_eq!(unchanged["parent"], first["snapshot_id"], "the helper found its cache again");
    assert_eq!(unchanged["data_blobs"], 0, "{unchanged}");

    // Back into the same volume, in place.
    let before = Tree::read(content.path());
    content.remove("many/000").write("small", "changed").write("extra", "x");
    bed.realm.vsync("uat").run(["restore", volume.name()]).success();
    assert_same(&before, &Tree::read(content.path()));

    // A new one with the same options would be the same directory by another name.
    let copy = DockerVolume::absent("bound-copy");
    let words = ["restore", volume.name(), "--to-volume", copy.name()];
    bed.realm.vsync("uat").run(words).code(1).stderr_contains("would be a mount of");
    assert!(!copy.exists());

    // Into one bound elsewhere.
    let elsewhere = Volume::new(2);
    elsewhere.write("old", "gone afterwards");
    let other = bound_to(elsewhere.path(), "elsewhere");
    bed.realm.vsync("uat").run(["restore", volume.name(), "--to-volume", other.name(), "--verify"]).success();
    assert_same(&before, &Tree::read(elsewhere.path()));
    let containers = docker(["ps", "-a", "--format", "{{.Names}}"]);
    for served in [&volume, &other] {
        let helper = format!("vsync-helper-{}-", served.name());
        assert!(!containers.contains(&helper), "a helper was left behind: {containers}");
    }
}

#[test]
fn an_agent_in_a_container_reads_the_volumes_mounted_into_it() {
    let volume = DockerVolume::with("inside", &["--label", "team=malaria"]);
    zoo_for_containers(&Volume::at(&volume.path(), 3));
    Volume::at(&volume.path(), 3).random("large", 4 << 20);
    let bed = Bed::new(volume.name());
    // The engine's socket stays outside; machine and keys are found where they are.
    let root = bed.realm.machine("production2");
    let root = root.parent().and_then(Path::parent).expect("the realm").to_str().expect("a path").to_owned();
    let run = |machine: &str, mounts: &[String], arguments: &[&str]| {
        let home = bed.realm.machine(machine).to_str().expect("a path").to_owned();
        let bind = format!("{root}:{root}");
        let mut words = vec!["run", "--rm", "--network", "host", "-v", &bind, "-w", &home, "-e"];
        let variable = format!("HOME={home}");
        words.push(&variable);
        mounts.iter().for_each(|mount| words.extend(["-v", mount]));
        words.push(docker::VSYNC);
        docker(words.into_iter().chain(arguments.iter().copied()))
    };
    let mounted = |name: &str, as_name: &str, mode: &str| [format!("{name}:/vsync/volumes/{as_name}:{mode}")];
    let reading = mounted(volume.name(), volume.name(), "ro");
    let summary = run("production2", &reading, &["backup", volume.name(), "--json"]);
    assert!(summary.contains("\"defect_count\":0"), "{summary}");

    let target = DockerVolume::new("inside-target");
    let path = format!("/vsync/volumes/{}", target.name());
    let writing = mounted(target.name(), target.name(), "rw");
    run("uat", &writing, &["restore", volume.name(), "--to-path", &path]);
    assert_same(&Tree::read(volume.path()), &Tree::read(target.path()));
}

#[test]
fn an_unknown_volume_is_answered_with_a_near_name() {
    let volume = DockerVolume::new("orderly-volume");
    let mistaken = volume.name().replace("orderly", "ordrely");
    let bed = Bed::new(&mistaken);
    let refused = bed.client().run(["backup", &mistaken]).code(11);
    refused.stderr_contains(&mistaken).stderr_contains(&format!("did you mean `{}`?", volume.name()));
    bed.client().run(["backup", volume.name()]).code(11).stderr_contains(&format!("did you mean `{mistaken}`?"));
    assert_eq!(bed.snapshots(), 0);
}

#[test]
fn an_engine_that_is_not_there_is_named() {
    let bed = Bed::new("data");
    let client = bed.client().env("DOCKER_HOST", "unix:///nowhere/docker.sock");
    for words in [&["backup", "data"][..], &["restore", "data"]] {
        let refused = client.run(words);
        // A restore looks for the snapshot first.
        let code = if words[0] == "backup" { 1 } else { 11 };
        let refused = refused.code(code);
        if code == 1 {
            refused
                .stderr_contains("no Docker engine answers at unix:///nowhere/docker.sock")
                .stderr_contains("`path`");
        }
    }
}
