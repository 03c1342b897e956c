//! The test bed itself: a bed that notices nothing proves nothing.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::time::{Duration, Instant};

use vsync_tests::docker::{self, docker};
use vsync_tests::tree::Kind;
use vsync_tests::{
    Container, Damage, DockerVolume, Link, Network, Place, Postgres, Realm, Relay, Rng, Server, Tree, Volume, Vsync,
    assert_same, shell,
};

/// A change to a volume that holds [`Volume::zoo`], and the words that must tell of it.
type Change = (&'static str, fn(&Volume) -> &Volume);

const CHANGES: &[Change] = &[
    ("\"small\": content", |it| it.patch("small", 0, "H")),
    ("\"empty\": size 0 | 1", |it| it.write("empty", "x")),
    ("\"small\": missing", |it| it.remove("small")),
    ("\"new\": only in the second", |it| it.write("new", "")),
    ("\"void\": mode", |it| it.mode("void", 0o700)),
    ("\"modes/suid\": mode 6755 | 0755", |it| it.mode("modes/suid", 0o755)),
    ("\"modes/suid\": owner 1000:2000 | 1001:2000", |it| it.owner("modes/suid", 1001, 2000)),
    ("\"links/good\": owner 3000:4000000000 | 3000:1", |it| it.owner("links/good", 3000, 1)),
    ("\"small\": mtime -1.000000001 | -1.000000002", |it| it.mtime("small", -1, 2)),
    ("\"links/broken\": mtime", |it| it.mtime("links/broken", 1_000_000_000, 6)),
    ("\"void\": mtime", |it| it.mtime("void", 1_234_567_890, 43)),
    ("\"small\": xattr \"user.note\" \"value\" | \"other\"", |it| it.xattr("small", "user.note", "other")),
    ("\"empty\": xattr \"user.new\" absent", |it| it.xattr("empty", "user.new", "")),
    ("\"small\": xattr \"system.posix_acl_access\"", |it| it.acl("small", "u:1001:r")),
    ("\"void\": xattr \"system.posix_acl_default\"", |it| it.acl("void", "d:u:1000:r")),
    ("\"modes/none\": xattr \"security.capability\"", |it| it.capability("modes/none", "cap_chown+ep")),
    ("\"\": xattr \"user.root\" absent", |it| it.xattr("", "user.root", "r")),
    ("\"links/broken\": type symlink to \"/nowhere\" | symlink to \"/else\"", |it| {
        it.remove("links/broken").symlink("links/broken", "/else")
    }),
    ("\"special/fifo\": type FIFO | socket", |it| it.remove("special/fifo").socket("special/fifo")),
    ("\"special/null\": type character device 1:3 | character device 1:5", |it| {
        it.remove("special/null").character_device("special/null", 1, 5)
    }),
    ("\"links/hard\": hard link to \"links/hard\" | nothing", |it| {
        let bytes = fs::read(it.join("random")).expect("a file");
        it.remove("links/hard").write("links/hard", bytes)
    }),
    ("\"sparse\": data at", |it| it.patch("sparse", 8 << 20, [0; 4096])),
    ("\"hole\": data at Some([]) | Some([(0, 1048576)])", |it| it.write("hole", vec![0; 1 << 20])),
];

#[test]
fn a_tree_sees_every_kind_of_difference() {
    for (words, change) in CHANGES {
        let (first, second) = (Volume::new(7), Volume::new(7));
        first.zoo();
        second.zoo();
        // Times that nobody set would differ by chance and hide what is tested.
        let same_times = |tree: &Tree| {
            for path in tree.paths() {
                let time = tree.entry(path).mtime;
                second.mtime(path, time.0, u32::try_from(time.1).unwrap());
            }
        };
        let before = Tree::with_holes(first.path());
        same_times(&before);
        assert_same(&before, &Tree::with_holes(second.path()));
        change(&second);
        let differences = before.differences(&Tree::with_holes(second.path()));
        assert!(differences.iter().any(|line| line.starts_with(words)), "no {words:?} in {differences:#?}");
    }
}

#[test]
#[should_panic(expected = "\"base/1\": content")]
fn a_difference_is_a_panic_that_names_it() {
    let volume = Volume::new(1);
    volume.write("base/1", "abc");
    let before = Tree::read(volume.path());
    volume.write("base/1", "abd");
    assert_same(&before, &Tree::read(volume.path()));
}

#[test]
fn rsync_copies_a_zoo_and_the_trees_are_the_same() {
    let (source, target) = (Volume::new(3), Volume::new(3));
    source.zoo();
    let from = format!("{}/", source.path().display());
    // Without the window, rsync leaves times alone whose seconds agree.
    shell::run("rsync", ["-aHAXS", "--numeric-ids", "--modify-window=-1", &from, &target.path().display().to_string()]);
    assert_same(&Tree::read(source.path()), &Tree::read(target.path()));
    assert_same(&Tree::read(source.path()).below("links"), &Tree::read(target.path().join("links")));
}

#[test]
fn the_same_seed_makes_the_same_volume() {
    let content = |seed| {
        let volume = Volume::new(seed);
        volume.many("many", 250, 2000).random("r", 12_345);
        let kinds = |tree: &Tree| tree.paths().map(|path| tree.entry(path).kind.clone()).collect::<Vec<Kind>>();
        kinds(&Tree::read(volume.path()))
    };
    assert_eq!(content(1), content(1));
    assert_ne!(content(1), content(2));
    // Pinned: volumes of old seeds must stay what they were.
    assert_eq!(Rng::new(0).next_u64(), 0xe220_a839_7b1d_cdaf);
}

#[test]
fn damage_always_changes_a_file() {
    let store = Volume::new(5);
    for place in ["packs/aa/1.pack", "packs/bb/2.pack", "manifests/1", "catalog.sqlite", "log/1"] {
        store.random(place, 5000);
    }
    let before = Tree::read(store.path());
    let content = |tree: &Tree, path: &Path| match &tree.entry(path).kind {
        Kind::File { content, .. } => *content,
        other => panic!("{other}"),
    };
    for place in Place::ALL {
        for damage in Damage::ALL {
            for seed in 0..20 {
                let file = place.damage(store.path(), damage, seed);
                let name = file.strip_prefix(store.path()).unwrap();
                let changed = !file.exists() || content(&before, name) != content(&Tree::read(store.path()), name);
                assert!(changed, "{damage:?} of {} by seed {seed} changed nothing", name.display());
                store.random(name, 5000); // as it was
            }
        }
    }
}

#[test]
fn the_binary_is_static_and_its_environment_sealed() {
    let home = vsync_tests::scratch();
    Vsync::at(home.path()).run(["--help"]).success();
    // A stand-in for vsync that prints what it sees.
    let seen = Vsync::at(home.path()).env("GIVEN", "yes").stdin("word\n").through(["sh", "-c", "cat; env; exit 3"]);
    let seen = seen.run([""; 0]).code(3).stdout_contains("word\n").stdout_contains("GIVEN=yes\n");
    assert!(seen.stdout().contains(&format!("HOME={}\n", home.path().display())), "{seen}");
    assert!(!seen.stdout().contains("CARGO"), "{seen}");
    assert!(!shell::run("sh", ["-c", "ldd \"$0\" 2>&1 || true", vsync_tests::bin().to_str().unwrap()]).contains("=>"));
}

#[test]
fn a_command_that_hangs_is_killed() {
    let home = vsync_tests::scratch();
    let sleep = Vsync::at(home.path()).through(["sh", "-c", "echo ready >&2; sleep 1000"]);
    let mut running = sleep.spawn([""; 0]);
    assert_eq!(running.wait_for_stderr("read"), "ready");
    running.kill().died();
    let started = Instant::now();
    let sleep = sleep.limit(Duration::from_millis(300));
    std::panic::catch_unwind(|| sleep.run([""; 0]).status()).expect_err("a panic about the time");
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[test]
fn the_configuration_of_a_realm_is_one() {
    let toml = Realm::new()
        .server("annex2")
        .local(&["barman"])
        .embedded("disk")
        .client("production2", &["data", "pg"])
        .client_with("uat", &[], "role = \"writer\"")
        .directory_with("data", Path::new("/srv/data"), "quiesce = \"pause\"")
        .extra("[retention]\nkeep-daily = 3")
        .toml(Path::new("/root"));
    let config = vsync::config::Config::parse(Path::new("/root/admin/vsync.toml"), &toml).unwrap();
    assert_eq!(
        config.machines().map(|it| it.name.as_str()).collect::<Vec<_>>(),
        ["annex2", "disk", "production2", "uat"]
    );
    assert_eq!(config.servers[0].address.as_ref().unwrap().host.split('.').next(), Some("127"));
    assert!(config.servers[1].address.is_none());
}

#[test]
fn a_server_is_ready_when_it_is_returned_and_gone_when_it_is_dropped() {
    let home = vsync_tests::scratch();
    // A stand-in that listens, takes its time to stop, and answers SIGTERM with exit status 0.
    let script = "trap 'echo bye >&2; exit 0' TERM; echo $$ >>pids; sleep 0.2; \
                  echo 'info: listening on 127.0.0.1:99 (udp)' >&2; while :; do sleep 0.01; done";
    let mut server = Server::start(Vsync::at(home.path()).through(["sh", "-c", script]));
    assert_eq!(server.address(), "127.0.0.1:99");
    server.restart();
    server.stop().success().stderr_contains("bye");
    server.restart();
    server.kill();
    server.restart();
    assert!(server.log().contains("listening"));
    drop(server);
    let pids = fs::read_to_string(home.path().join("pids")).unwrap();
    assert_eq!(pids.lines().count(), 4);
    for pid in pids.lines() {
        assert!(!Path::new("/proc").join(pid).exists(), "{pid} still runs");
    }
}

#[test]
fn the_independent_reader_has_its_packages() {
    let program = "import blake3, cbor2, zstandard, pyrage\n\
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305, AESGCM\n\
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey\n\
        print(blake3.blake3(b'abc').hexdigest())";
    let python = vsync_tests::python();
    assert_eq!(shell::run(python.to_str().unwrap(), ["-c", program]), blake3::hash(b"abc").to_hex().as_str());
}

#[test]
fn containers_run_vsync_from_scratch_and_are_removed() {
    let volume = DockerVolume::with("data", &["--label", "team=malaria"]);
    assert_eq!(volume.inspect()["Labels"]["team"], "malaria");
    docker(["run", "--rm", "--network", "none", docker::VSYNC, "--help"]);
    let name;
    {
        let container = Container::using(&volume);
        name = container.name().to_owned();
        container.exec(&["sh", "-c", "echo inside >/data/file"]);
        container.tell("pause");
        assert_eq!(container.state(), "paused");
    }
    assert_eq!(fs::read(volume.path().join("file")).unwrap(), b"inside\n");
    assert!(!docker(["ps", "-aq", "--filter", &format!("name={name}")]).contains(&name));
    let path = volume.path();
    drop(volume);
    assert!(!path.exists());
}

#[test]
fn postgresql_runs_on_a_volume_and_survives_a_copy() {
    let volume = DockerVolume::new("pg");
    let postgres = Postgres::start(&volume);
    postgres.fill(1);
    postgres.work(50);
    let (balance, digest) = (postgres.balance(), postgres.digest("pgbench_accounts"));
    postgres.check();
    postgres.stop();
    docker::checksums(&volume.path(), true);

    let copy = DockerVolume::new("copy");
    shell::run("cp", ["-a", &format!("{}/.", volume.path().display()), copy.path().to_str().unwrap()]);
    assert_same(&Tree::read(volume.path()), &Tree::read(copy.path()));
    let restored = Postgres::start(&copy);
    assert_eq!((restored.balance(), restored.digest("pgbench_accounts")), (balance, digest));
    restored.kill();

    // One byte on disk, and PostgreSQL's own checksums find it.
    let table = copy.path().join("base");
    let largest = Tree::read(&table);
    let size = |path: &&std::ffi::OsStr| match largest.entry(path).kind {
        Kind::File { size, .. } => size,
        _ => 0,
    };
    let largest = table.join(largest.paths().max_by_key(size).unwrap());
    drop(Postgres::start(&copy)); // recovers
    let recovered = Postgres::start(&copy);
    recovered.stop();
    Damage::FlipBit.apply(&largest, &mut Rng::new(1));
    std::panic::catch_unwind(|| docker::checksums(&copy.path(), true)).expect_err("a wrong checksum");
}

#[test]
fn hosts_reach_each_other_until_a_cable_is_pulled() {
    let mut network = Network::new(3);
    let ping = |network: &Network, count: &str| {
        let to = network.host(2).address().to_string();
        shell::attempt(network.host(1).command("ping").args(["-q", "-i", "0.2", "-W", "1", "-c", count, &to]))
    };
    ping(&network, "3").expect("an answer");
    network.cable(2, false);
    ping(&network, "1").expect_err("no answer without a cable");
    network.cable(2, true);
    ping(&network, "3").expect("an answer");
    network.host_mut(2).readdress([10, 77, 0, 99].into());
    ping(&network, "3").expect("an answer from the new address");
    network.host(2).lose(100.0);
    ping(&network, "1").expect_err("every packet is lost");
    network.host(2).lose(0.0);
    network.host(1).mtu(1280);
    network.limit(2, 50);
    ping(&network, "3").expect("an answer");
    // Not this machine's network.
    assert!(!network.host(3).run("ip", ["-br", "link"]).contains("docker"));
}

#[test]
fn a_relay_delays_loses_doubles_and_counts() {
    // A server that sends every packet back, with the port that it came from.
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let mut buffer = [0; 100];
        while let Ok((_, from)) = server.recv_from(&mut buffer) {
            server.send_to(from.port().to_string().as_bytes(), from).unwrap();
        }
    });
    let relay = Relay::to(&address);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    client.connect(relay.address()).unwrap();
    let receive = || {
        let mut buffer = [0; 100];
        let length = client.recv(&mut buffer)?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    let ask = || client.send(b"twelve bytes").and_then(|_| receive());

    let port = ask().expect("an answer");
    assert_eq!(ask().expect("an answer"), port);
    assert_eq!(relay.bytes(), (24, 2 * port.len() as u64));
    assert_eq!(relay.packets(), 4);
    relay.rebind();
    assert_ne!(ask().expect("an answer"), port, "the client comes from a new port");

    relay.set(Link { delay: Duration::from_millis(50), ..Link::default() });
    let started = Instant::now();
    ask().expect("an answer");
    assert!(started.elapsed() >= Duration::from_millis(100), "{:?}", started.elapsed());

    relay.cut();
    ask().expect_err("no answer");
    relay.set(Link { duplicate: 1.0, ..Link::default() });
    ask().expect("an answer");
    for _ in 1..4 {
        receive().expect("two questions, twice answered");
    }
    relay.set(Link { loss: 0.5, ..Link::default() });
    let before = relay.packets();
    (0..400).for_each(|_| drop(client.send(b"x")));
    let mut came = 0;
    while relay.packets() != came {
        came = relay.packets();
        std::thread::sleep(Duration::from_secs(1));
    }
    let answered = (came - before).checked_sub(400).expect("every question came in");
    assert!((120..280).contains(&answered), "{answered} of 400 passed");
}
