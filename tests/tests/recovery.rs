//! Everything is lost but a server and the recovery kit.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use vsync_tests::{DockerVolume, Realm, Tree, Volume, Vsync, assert_same};

/// A machine that has nothing but a kit; and the kit of `realm`.
fn bare(realm: &Realm) -> (tempfile::TempDir, Vsync) {
    let home = vsync_tests::scratch();
    Vsync::at(&realm.admin()).run(["key", "recovery-kit", "--out", "kit.txt"]).success();
    fs::rename(realm.admin().join("kit.txt"), home.path().join("kit.txt")).expect("kit.txt");
    let vsync = Vsync::at(home.path());
    (home, vsync)
}

/// Only the line with the secret, as somebody would type it from paper.
fn only_the_secret(home: &Path) {
    let page = fs::read_to_string(home.join("kit.txt")).expect("kit.txt");
    let line = page.lines().find(|line| line.starts_with("secret")).expect("a secret");
    fs::write(home.join("kit.txt"), format!("{line}\n")).expect("kit.txt");
    fs::set_permissions(home.join("kit.txt"), fs::Permissions::from_mode(0o600)).expect("kit.txt");
}

/// Where the server is, as somebody would read it in the configuration.
fn address(realm: &Realm) -> String {
    let toml = fs::read_to_string(realm.admin().join("vsync.toml")).expect("vsync.toml");
    let line = toml.lines().find_map(|line| line.strip_prefix("address = ")).expect("an address");
    line.trim_matches('"').to_owned()
}

fn backed_up(realm: &Realm, client: &str) {
    realm.vsync(client).run(["backup", "data"]).success();
}

#[test]
fn a_bare_machine_restores_with_the_kit_and_an_address() {
    let data = Volume::new(1);
    data.zoo();
    let realm = Realm::new().server("annex2").directory("data", data.path()).client("production2", &["data"]).build();
    let _server = realm.serve("annex2");
    backed_up(&realm, "production2");
    let (home, vsync) = bare(&realm);

    let address = &address(&realm);
    let listed = vsync.run(["snapshots", "--kit", "kit.txt", "--server-address", address, "--json"]).success().json();
    assert_eq!(listed[0]["volume"], "data");
    assert_eq!(listed[0]["hostname"], "production2");
    assert!(listed[0]["total_files"].as_u64().is_some_and(|files| files > 0), "the kit reads what is sealed: {listed}");

    let target = home.path().join("there");
    let restore = ["restore", "data", "--kit", "kit.txt", "--server-address", address, "--to-path", "there"];
    vsync.run(restore).success();
    assert_same(&Tree::read(data.path()), &Tree::read(&target));

    // As the kit lists the server, not even its address is needed.
    let volume = DockerVolume::absent("recovered");
    vsync.run(["restore", "data", "--kit", "kit.txt", "--to-volume", volume.name()]).success();
    assert_same(&Tree::read(data.path()), &Tree::read(volume.path()));
    vsync.run(["backup", "data", "--kit", "kit.txt"]).code(2).stderr_contains("only reads");
}

#[test]
fn the_secret_line_needs_the_servers_key() {
    let data = Volume::new(2);
    data.random("a", 1 << 20);
    let realm = Realm::new().server("annex2").directory("data", data.path()).client("production2", &["data"]).build();
    let _server = realm.serve("annex2");
    backed_up(&realm, "production2");
    let (home, vsync) = bare(&realm);
    only_the_secret(home.path());

    let words = ["restore", "data", "--kit", "kit.txt", "--server-address", &address(&realm), "--to-path", "there"];
    vsync.run(words).code(2).stderr_contains("--server-key HEX");
    let registry = fs::read_to_string(realm.admin().join("vsync.pub")).unwrap();
    let line = registry.lines().find(|line| line.starts_with("machine annex2 ")).unwrap();
    let key = line.split(' ').next_back().unwrap();
    vsync.run(words.into_iter().chain(["--server-key", key])).success();
    assert_same(&Tree::read(data.path()), &Tree::read(home.path().join("there")));

    // A server with another key is not believed to be the one.
    let wrong = "00".repeat(32);
    vsync.run(words.into_iter().chain(["--server-key", &wrong])).code(12);
}

#[test]
fn a_registry_that_was_edited_is_not_believed() {
    let data = Volume::new(3);
    data.random("a", 1 << 20);
    let realm = Realm::new()
        .server("annex2")
        .directory("data", data.path())
        .client("production2", &["data"])
        .client("uat", &[])
        .build();
    let _server = realm.serve("annex2");
    backed_up(&realm, "production2");
    let (_home, vsync) = bare(&realm);
    let words = ["restore", "data", "--kit", "kit.txt", "--server-address", &address(&realm), "--to-path", "there"];

    // An attacker on the server adds a machine of his own, whose snapshots a reader would take.
    let path = realm.machine("annex2").join("vsync.pub");
    let signed = fs::read_to_string(&path).unwrap();
    fs::write(
        &path,
        signed.replace("machine uat", &format!("retired production2 ed25519 {}\nmachine uat", "07".repeat(32))),
    )
    .unwrap();
    vsync.run(words).code(12).stderr_contains("not as the administrator signed it");

    // The administrator removes a machine by hand: `check` says that the signature is stale, and keygen makes it anew.
    let admin = Vsync::at(&realm.admin()).with(["--as", "production2"]);
    let public = realm.admin().join("vsync.pub");
    fs::write(
        &public,
        signed
            .lines()
            .filter(|line| !line.starts_with("machine uat"))
            .map(|line| format!("{line}\n"))
            .collect::<String>(),
    )
    .unwrap();
    admin.run(["check"]).code(1).stdout_contains("run `vsync keygen --all` to sign again");
    admin.run(["keygen", "production2"]).success();
    admin.run(["check"]).success().stdout_contains("signature of vsync.pub is current");
    fs::copy(&public, &path).unwrap();
    vsync.run(words).success();
}

#[test]
fn a_kit_whose_line_was_removed_is_locked_out() {
    let data = Volume::new(4);
    data.random("a", 1 << 20);
    let realm = Realm::new().server("annex2").directory("data", data.path()).client("production2", &["data"]).build();
    let (_home, vsync) = bare(&realm);
    let public = realm.admin().join("vsync.pub");
    let text = fs::read_to_string(&public).unwrap();
    let without: String = text.split_inclusive('\n').filter(|line| !line.starts_with("machine recovery-kit")).collect();
    fs::write(&public, without).unwrap();
    Vsync::at(&realm.admin()).run(["keygen", "--all"]).success();
    realm.configure("annex2");
    let _server = realm.serve("annex2");
    vsync.run(["snapshots", "--kit", "kit.txt", "--server-address", &address(&realm)]).code(12);
}

#[test]
fn a_store_without_its_server_is_enough() {
    let data = Volume::new(5);
    data.zoo();
    let realm = Realm::new().embedded("disk").directory("data", data.path()).client("laptop", &["data"]).build();
    backed_up(&realm, "laptop");
    let (home, vsync) = bare(&realm);
    only_the_secret(home.path());
    // The disk is all that is left: configuration and keys are gone.
    let disk = home.path().join("disk");
    fs::rename(realm.store("disk"), &disk).unwrap();

    let store = ["--kit", "kit.txt", "--server-data", "disk"];
    let listed = vsync.run(["snapshots", "--json"].into_iter().chain(store)).success().json();
    assert_eq!(listed[0]["hostname"], "laptop");
    vsync.run(["restore", "data", "--to-path", "there"].into_iter().chain(store)).success();
    assert_same(&Tree::read(data.path()), &Tree::read(home.path().join("there")));

    fs::create_dir(home.path().join("empty")).unwrap();
    let nothing = ["snapshots", "--kit", "kit.txt", "--server-data", "empty"];
    vsync.run(nothing).code(11).stderr_contains("no store in empty");
    assert_eq!(fs::read_dir(home.path().join("empty")).unwrap().count(), 0);
}

#[test]
fn the_kits_name_is_taken() {
    let home = vsync_tests::scratch();
    let toml = "[realm]\nname = \"r\"\n[[servers]]\nname = \"recovery-kit\"\ndata = \"/srv\"\n";
    fs::write(home.path().join("vsync.toml"), toml).unwrap();
    Vsync::at(home.path()).run(["config", "check"]).code(2).stderr_contains("is the name of the recovery kit");
}
