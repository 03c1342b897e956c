//! `vsync check` finds the usual mistakes, one at a time, and says what to do about each.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde_json::Value;
use vsync_tests::{DockerVolume, Network, Output, Realm, Server, Site, Vsync, scratch, shell};

/// The findings that are not good: what, and what to do.
#[track_caller]
fn bad(output: Output) -> Vec<(String, String)> {
    let lines = output.code(1).json_lines();
    let wrong = lines.into_iter().filter(|finding| finding["ok"] == false);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    wrong.map(|finding| (text(&finding["what"]), text(&finding["to_do"]))).collect()
}

/// That there is one mistake, which is told in these words, with this advice.
#[track_caller]
fn finds(vsync: &Vsync, what: &str, to_do: &str) {
    let found = bad(vsync.run(["check", "--connection", "--json"]));
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].0.contains(what) && found[0].1.contains(to_do), "{found:#?}");
}

#[test]
fn a_machine_that_is_ready_has_no_findings() {
    let site = Site::new(1);
    site.host().run(["check", "--connection"]).success().stdout_contains("✓ data is the directory");
}

#[test]
fn an_engine_that_cannot_be_reached() {
    let site = Site::with(2, |realm| realm.client("docker", &["a_docker_volume"]));
    let docker = site.realm.vsync("docker").env("DOCKER_HOST", "unix:///nowhere/docker.sock");
    let found = bad(docker.run(["check", "--connection", "--json"]));
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].0.contains("unix:///nowhere/docker.sock"), "{found:#?}");
}

#[test]
fn a_volume_that_is_not_there() {
    let known = DockerVolume::new("orderly_volume");
    let almost = known.name().replace("orderly", "orderyl");
    let missing = scratch().path().join("gone");
    let site = Site::with(3, |realm| {
        let realm = realm.client("docker", &[&almost]).client("directory", &["gone"]);
        realm.directory("gone", &missing)
    });
    let near = format!("has no volume {almost}; did you mean `{}`?", known.name());
    finds(&site.realm.vsync("docker"), &near, "`docker volume ls` lists them");
    finds(&site.realm.vsync("directory"), "gone: there is no directory", "correct its `path`");
}

#[test]
fn a_server_that_does_not_run() {
    let mut site = Site::new(4);
    site.server.stop().success();
    finds(&site.host(), "store: nothing listens on UDP", "run `vsync server run` on store");
}

#[test]
fn a_port_that_a_firewall_blocks() {
    let network = Network::new(2);
    let address = format!("{}:10022", network.host(1).address());
    let realm = Realm::new().server_at("store", &address).client("host", &[]).build();
    let _server = Server::start(realm.vsync("store").through(network.host(1).prefix()));
    let host = realm.vsync("host").through(network.host(2).prefix()).limit(Duration::from_secs(120));
    host.run(["check", "--connection"]).success();
    network.host(1).run("iptables", ["-A", "INPUT", "-p", "udp", "--dport", "10022", "-j", "DROP"]);
    finds(&host, &address, "is its UDP port open in every firewall on the way?");
}

#[test]
fn the_wrong_identity_or_none() {
    let site = Site::new(5);
    let identity = site.host().home().join(".vsync_identity");
    fs::write(&identity, "hosst\n").expect("the identity");
    finds(&site.host(), "there is no machine hosst", "");
    fs::remove_file(&identity).expect("the identity");
    finds(&site.host(), "this machine has no name yet", "run `vsync configure NAME`");
    // Another machine's name, whose key this one would have to have.
    let store = site.realm.admin().with_file_name("keys").join("machines/store.key");
    let away = store.with_extension("away");
    fs::write(&identity, "store\n").expect("the identity");
    fs::rename(&store, &away).expect("the key");
    finds(&site.host(), "there is no key file", "copy the file from the key store here");
}

#[test]
fn keys_that_others_may_read_or_that_are_not_in_vsync_pub() {
    let site = Site::new(6);
    let keys = site.realm.admin().with_file_name("keys/machines");
    let key = keys.join("host.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("the mode");
    finds(&site.host(), "is open to others than its owner", "chmod 600");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("the mode");
    site.realm.vsync("host").run(["check"]).success();
    Vsync::at(&site.realm.admin()).run(["keygen", "host", "--rotate"]).success();
    finds(&site.host(), "is not the one in vsync.pub", "update vsync.pub");
}

#[test]
fn a_store_that_is_nearly_full() {
    let small = scratch();
    let path = small.path().to_str().expect("a path");
    // Twice the reserve of 1 GiB and 2 % does not fit.
    shell::run("mount", ["-t", "tmpfs", "-o", "size=1900m", "tmpfs", path]);
    let _unmounted = Unmounted(path.to_owned());
    let realm = Realm::new().server("store").client("host", &[]).build();
    let data = small.path().join("data");
    fs::create_dir(&data).expect("a directory");
    let store = realm.store("store");
    realm.edit(|toml| toml.replace(store.to_str().expect("a path"), data.to_str().expect("a path")));
    let mut server = realm.serve("store");
    finds(&realm.vsync("host"), "soon it takes no more backups", "move its `data` directory");
    server.stop().success();
}

struct Unmounted(String);

impl Drop for Unmounted {
    fn drop(&mut self) {
        drop(shell::attempt(std::process::Command::new("umount").args(["-l", &self.0])));
    }
}

#[test]
fn udp_buffers_that_are_too_small() {
    let limit = |name: &str| {
        let text = fs::read_to_string(format!("/proc/sys/net/core/{name}")).expect("the kernel's limit");
        text.trim().parse::<u64>().expect("a number")
    };
    let small = limit("rmem_max").min(limit("wmem_max")) < 8 << 20;
    let site = Site::new(7);
    // With that right, a process takes what it wants.
    let store =
        site.realm.vsync("store").through(["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"]);
    if small {
        finds(&store, "UDP socket buffers hold", "sysctl -w net.core.rmem_max=8388608 net.core.wmem_max=8388608");
    } else {
        store.run(["check", "--connection"]).success();
    }
    let mut server = site.server;
    server.stop().success();
    let server = Server::start(store);
    let told = server.log().contains("as root: sysctl -w net.core.rmem_max=8388608");
    assert_eq!(told, limit("rmem_max") < 8 << 20, "{}", server.log());
}
