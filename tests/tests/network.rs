//! Networks that cut, lose, change and move (N01 to N06): a backup and a restore go on by themselves, end once, and are
//! exact.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use vsync_tests::{Liar, Link, Relay, Site, Tree, Volume, assert_same};

/// The machine's configuration, with the server at another address.
fn meet_at(site: &Site, address: SocketAddr) {
    let toml = fs::read_to_string(site.realm.admin().join("vsync.toml")).unwrap();
    fs::write(site.realm.machine("host").join("vsync.toml"), toml.replace(&address_of(site), &address.to_string()))
        .unwrap();
}

/// The server's own address, as the administrator has it.
fn address_of(site: &Site) -> String {
    let toml = fs::read_to_string(site.realm.admin().join("vsync.toml")).unwrap();
    toml.lines().find(|line| line.starts_with("address")).unwrap().split('"').nth(1).unwrap().to_owned()
}

/// Cuts the connection when the `nth` message would pass, once; tells how many came.
fn cut_at(site: &Site, nth: usize) -> (Liar, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let (server, client) = (site.realm.identity("store"), site.realm.identity("host"));
    let gate = move |_| counted.fetch_add(1, Ordering::SeqCst) != nth;
    let liar = Liar::cutting(&address_of(site), &server, &client, gate);
    meet_at(site, liar.address());
    (liar, count)
}

fn snapshots(site: &Site) -> usize {
    let listed = site.realm.vsync("host").run(["snapshots", "data", "--json"]).success();
    listed.stdout().matches("\"short_id\"").count()
}

/// The question and the answer by which a connection begins: without them nothing has begun, and that is said at once.
const GREETING: usize = 2;

/// N01, N05, C10: cut before and after each message of a backup, in both directions.
#[test]
fn a_backup_that_is_cut_at_any_message_goes_on() {
    let site = Site::new(31);
    site.data.random("large", 900_000).many("many", 30, 2000);
    for nth in 0_usize.. {
        site.data.write("number", format!("{nth}")).random("fresh", 300_000 + nth as u64).patch(
            "large",
            7000,
            nth.to_le_bytes(),
        );
        let (liar, count) = cut_at(&site, nth);
        let output = site.host().run(["backup", "data"]);
        if nth < GREETING {
            assert_eq!(output.status(), Some(10), "cut at {nth}: {output}");
            site.host().run(["backup", "data"]).success();
        } else {
            let _ = output.success();
        }
        let passed = count.load(Ordering::SeqCst);
        drop(liar);
        meet_at(&site, address_of(&site).parse().unwrap());
        assert_eq!(snapshots(&site), nth + 1, "cut at {nth}: once, and only once");
        let target = vsync_tests::scratch();
        site.restore(&["data"], target.path());
        assert_same(&Tree::read(site.data.path()), &Tree::read(target.path()));
        if passed <= nth {
            println!("{nth} messages");
            assert!(nth > 10, "only {nth} messages");
            return;
        }
    }
}

/// N01: the same of a restore.
#[test]
fn a_restore_that_is_cut_at_any_message_goes_on() {
    let site = Site::new(32);
    site.data.random("large", 2 << 20).many("many", 300, 4000).text("text", 3 << 20);
    site.backup();
    let expected = Tree::read(site.data.path());
    for nth in 0_usize.. {
        let (liar, count) = cut_at(&site, nth);
        let target = vsync_tests::scratch();
        let output = site.try_restore(&["data"], target.path());
        if nth < GREETING {
            assert_eq!(output.status(), Some(10), "cut at {nth}: {output}");
        } else {
            let _ = output.success();
            assert_same(&expected, &Tree::read(target.path()));
        }
        let passed = count.load(Ordering::SeqCst);
        drop(liar);
        if passed <= nth {
            println!("{nth} messages");
            assert!(nth > 6, "only {nth} messages");
            return;
        }
    }
}

/// A site whose machine meets the server through a relay.
fn relayed(seed: u64) -> (Site, Relay) {
    let site = Site::new(seed);
    let relay = Relay::to(&address_of(&site));
    meet_at(&site, relay.address());
    (site, relay)
}

fn round_trip(site: &Site, what: &str) {
    site.backup();
    let target = vsync_tests::scratch();
    site.restore(&["data"], target.path());
    let differences = Tree::read(site.data.path()).differences(&Tree::read(target.path()));
    assert!(differences.is_empty(), "{what}: {differences:?}");
}

/// N02, N03: packets that are lost, late, in another order, doubled, and not what they were.
#[test]
fn bad_links_change_nothing() {
    let (site, relay) = relayed(33);
    let ms = Duration::from_millis;
    let links = [
        ("late", Link { delay: ms(80), ..Link::default() }),
        ("in another order", Link { delay: ms(2), jitter: ms(15), ..Link::default() }),
        ("one in twenty lost", Link { loss: 0.05, ..Link::default() }),
        ("one in three doubled", Link { duplicate: 0.3, ..Link::default() }),
        ("one in thirty changed", Link { corrupt: 0.03, ..Link::default() }),
        ("all of it", Link { delay: ms(5), jitter: ms(10), loss: 0.02, duplicate: 0.1, corrupt: 0.02 }),
    ];
    for (number, (what, link)) in (0_u64..).zip(links) {
        site.data.random("large", (2 << 20) + number).many(format!("many{number}"), 50, 3000);
        relay.set(link);
        round_trip(&site, what);
    }
}

/// N04: nothing passes for longer than a connection lives.
#[test]
fn a_black_hole_of_a_minute_is_waited_out() {
    let (site, relay) = relayed(34);
    site.data.random("large", 24 << 20);
    relay.set(Link { delay: Duration::from_millis(20), ..Link::default() });
    let mut backup = site.host().spawn(["backup", "data", "--json"]);
    let begun = Instant::now();
    while relay.bytes().0 < 6 << 20 {
        assert!(backup.is_running() && begun.elapsed() < Duration::from_secs(120), "it never got there");
        std::thread::sleep(Duration::from_millis(1));
    }
    relay.cut();
    // Longer than the idle timeout of 60 s: both sides have given the connection up.
    std::thread::sleep(Duration::from_secs(66));
    relay.rebind();
    relay.set(Link::default());
    let _ = backup.wait_within(Duration::from_secs(240)).success();
    assert_eq!(snapshots(&site), 1);
    round_trip(&site, "after the black hole");
}

/// N06: the client's address changes again and again while it uploads.
#[test]
fn a_client_that_moves_about_goes_on() {
    let (site, relay) = relayed(35);
    site.data.random("large", 40 << 20);
    relay.set(Link { delay: Duration::from_millis(10), ..Link::default() });
    let mut backup = site.host().spawn(["backup", "data", "--json"]);
    let mut moves = 0;
    while backup.is_running() {
        std::thread::sleep(Duration::from_millis(400));
        relay.rebind();
        moves += 1;
    }
    let _ = backup.wait().success();
    println!("{moves} moves");
    assert!(moves >= 2 && snapshots(&site) == 1);
    round_trip(&site, "after the moves");
}

/// N11: a server that is stopped in the middle, as by SIGSTOP, is silent and then goes on.
#[test]
fn a_server_that_sleeps_is_waited_for() {
    let site = Site::new(36);
    site.data.random("large", 30 << 20);
    let mut backup = site.host().spawn(["backup", "data", "--json"]);
    std::thread::sleep(Duration::from_millis(300));
    site.server.process().signal(rustix::process::Signal::STOP);
    std::thread::sleep(Duration::from_secs(5));
    site.server.process().signal(rustix::process::Signal::CONT);
    assert!(backup.is_running() || Path::new(site.data.path()).exists());
    let _ = backup.wait_within(Duration::from_secs(240)).success();
    round_trip(&site, "after the sleep");
}

/// C09: machines that sleep for longer than the server waits for them, while it collects what nobody needs.
#[test]
fn a_client_that_sleeps_through_a_collection_sends_again_what_is_gone() {
    let count = vsync_tests::asked("VSYNC_TEST_ROUNDS", 3);
    let names: Vec<String> = (0..count).map(|number| format!("sleeper{number}")).collect();
    let volumes: Vec<Volume> = (0..count).map(|number| Volume::new(number + 1)).collect();
    let site = Site::with(37, |realm| {
        names
            .iter()
            .zip(&volumes)
            .fold(realm, |realm, (name, volume)| realm.client(name, &[name]).directory(name, volume.path()))
    });
    let mut rng = vsync_tests::Rng::new(37);
    let sleepers = names.iter().zip(&volumes).map(|(name, volume)| {
        volume.random("large", 24 << 20).many("many", 50, 3000);
        let vsync = site.realm.vsync(name).limit(Duration::from_secs(600));
        let backup = vsync.spawn(["backup", name, "--limit-upload", "8MiB"]);
        std::thread::sleep(Duration::from_millis(200 + rng.below(1500)));
        backup.signal(rustix::process::Signal::STOP);
        backup
    });
    let mut sleepers: Vec<_> = sleepers.collect();
    // Longer than the idle timeout of 60 s: nobody holds anything for them any more.
    std::thread::sleep(Duration::from_secs(66));
    let office = site.realm.vsync("store");
    let mut removed = 0;
    for _ in 0..4 {
        let round = office.run(["server", "gc", "--at-once", "--empty-trash", "--json"]).success().json();
        removed += round["condemned_blobs"].as_u64().unwrap();
    }
    assert!(removed > 0, "nothing was taken from under them");
    assert!(sleepers.iter_mut().all(vsync_tests::Running::is_running), "too late");
    sleepers.iter().for_each(|sleeper| sleeper.signal(rustix::process::Signal::CONT));
    for ((sleeper, name), volume) in sleepers.into_iter().zip(&names).zip(&volumes) {
        let _ = sleeper.wait_within(Duration::from_secs(400)).success();
        let target = vsync_tests::scratch();
        site.realm.vsync(name).run(["restore", name, "--to-path", target.path().to_str().unwrap()]).success();
        assert_same(&Tree::read(volume.path()), &Tree::read(target.path()));
    }
    office.run(["server", "scrub"]).success();
}
