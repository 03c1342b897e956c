//! What vsync was made for: a PostgreSQL volume of one machine, brought onto another.

use std::time::Duration;

use serde_json::Value;
use vsync_tests::docker;
use vsync_tests::{Container, DockerVolume, Network, Postgres, Realm, Server, Tree, Volume, Vsync, assert_same};

/// Three machines on a network, of which annex2 keeps the backups and has a database itself.
struct Montagu {
    network: Network,
    realm: Realm,
    _server: Server,
}

impl Montagu {
    const MACHINES: [&str; 3] = ["annex2", "production2", "uat"];

    fn new(on_annex2: &[&str], on_production2: &[&str]) -> Self {
        let network = Network::new(3);
        let address = format!("{}:10022", network.host(1).address());
        let realm = Realm::new()
            .server_at("annex2", &address)
            .local(on_annex2)
            .client("production2", on_production2)
            .client("uat", &[])
            .build();
        let server = Server::start(realm.vsync("annex2").through(network.host(1).prefix()));
        Self { network, realm, _server: server }
    }

    /// vsync on one of the machines.
    fn on(&self, machine: &str) -> Vsync {
        let number = Self::MACHINES.iter().position(|name| *name == machine).expect("a machine") + 1;
        self.realm.vsync(machine).through(self.network.host(number).prefix())
    }

    fn back_up(&self, machine: &str, volume: &str) -> Value {
        self.on(machine).run(["backup", volume, "--json"]).success().summary()
    }

    /// Restores on uat.
    fn restore(&self, arguments: &[&str]) -> Value {
        let words = ["restore", "--json"].into_iter().chain(arguments.iter().copied());
        self.on("uat").run(words).success().summary()
    }
}

fn number(summary: &Value, name: &str) -> u64 {
    summary[name].as_u64().unwrap_or_else(|| panic!("no number {name} in {summary}"))
}

fn text<'a>(summary: &'a Value, name: &str) -> &'a str {
    summary[name].as_str().unwrap_or_else(|| panic!("no text {name} in {summary}"))
}

/// What PostgreSQL itself says of its data.
fn facts(postgres: &Postgres) -> Vec<String> {
    let tables = ["pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history"];
    let counts = tables.map(|table| postgres.psql(&format!("select '{table}', count(*) from {table}")));
    let digests = tables.map(|table| postgres.digest(table));
    counts.into_iter().chain(digests).chain([postgres.balance().to_string()]).collect()
}

/// Settings under which PostgreSQL writes what it is told to write, and nothing by the clock: no vacuum, and no
/// checkpoint but the one at its end, after which each page is in the log as a whole once more.
const BY_ORDER_ALONE: [&str; 6] = ["-c", "autovacuum=off", "-c", "checkpoint_timeout=1d", "-c", "max_wal_size=10GB"];

#[test]
fn a_database_moves_from_annex2_to_uat() {
    let montagu = Montagu::new(&["barman_recover"], &[]);
    let labels = ["--label", "com.montagu.role=database", "--label", "org=vimc"];
    let source = DockerVolume::exactly("barman_recover", &labels);
    let postgres = Postgres::start_with(&source, &[], &BY_ORDER_ALONE);
    postgres.fill(5);
    postgres.work_again(200, 1);
    let first_facts = facts(&postgres);
    postgres.stop();
    let first_tree = Tree::read(source.path());
    let first = montagu.back_up("annex2", "barman_recover");

    // Onto a machine that never had it.
    let target = DockerVolume::named("montagu_db_volume");
    let words = ["barman_recover", "--server", "annex2", "--to-volume", "montagu_db_volume"];
    let restored = montagu.restore(&words);
    let whole = number(&restored, "bytes_restored");
    assert!(whole > 80 << 20, "{restored}");
    assert_same(&first_tree, &Tree::read(target.path()));
    assert_eq!(target.inspect()["Labels"], source.inspect()["Labels"]);
    assert_eq!(target.inspect()["Driver"], source.inspect()["Driver"]);
    docker::checksums(&target.path(), true);
    let staging = Postgres::start(&target);
    assert_eq!(facts(&staging), first_facts);
    staging.check();
    staging.stop();

    // The database goes on.
    let postgres = Postgres::start_with(&source, &[], &BY_ORDER_ALONE);
    postgres.work_again(300, 2);
    let second_facts = facts(&postgres);
    postgres.stop();
    let second_tree = Tree::read(source.path());
    let second = montagu.back_up("annex2", "barman_recover");
    assert_eq!(second["parent"], first["snapshot_id"]);
    assert!(number(&second, "data_added_packed") < number(&first, "data_added_packed") / 4, "{first} {second}");

    // Over the old one, which PostgreSQL has written to.
    let in_place = montagu.restore(&words);
    let fetched = number(&in_place, "bytes_restored");
    assert!(fetched > 0 && fetched < whole / 3, "{fetched} of {whole} bytes were fetched");
    assert_same(&second_tree, &Tree::read(target.path()));
    let staging = Postgres::start(&target);
    assert_eq!(facts(&staging), second_facts);
    staging.check();
    staging.stop();
    docker::checksums(&target.path(), true);

    // Once more, with nothing to do.
    montagu.restore(&words);
    let nothing = montagu.restore(&words);
    assert_eq!(number(&nothing, "bytes_restored"), 0, "{nothing}");
    assert_eq!(number(&nothing, "files_restored"), 0, "{nothing}");

    each_way_to_name_a_snapshot(&montagu, &target, &[(&first, &first_tree), (&second, &second_tree)]);
}

/// By id, by distance, by time.
fn each_way_to_name_a_snapshot(montagu: &Montagu, target: &DockerVolume, snapshots: &[(&Value, &Tree); 2]) {
    let listed = montagu.on("uat").run(["snapshots", "barman_recover", "--json"]).success().json();
    let received = |snapshot: &Value| {
        let rows = listed.as_array().expect("snapshots");
        let row = rows.iter().find(|row| row["id"] == snapshot["snapshot_id"]).expect("the snapshot in the list");
        text(row, "received").to_owned()
    };
    let [(first, first_tree), (second, second_tree)] = snapshots;
    let id = |snapshot: &Value| format!("barman_recover@{}", &text(snapshot, "snapshot_id")[..8]);
    let into = ["--to-volume", "montagu_db_volume"];
    for (words, tree) in [
        (vec![id(first)], first_tree),
        (vec![id(second)], second_tree),
        (vec!["barman_recover@latest~1".into()], first_tree),
        (vec!["barman_recover@latest".into()], second_tree),
        (vec![format!("barman_recover@{}", received(first))], first_tree),
        (vec!["barman_recover".into(), "--at".into(), received(second)], second_tree),
    ] {
        montagu.restore(&words.iter().map(String::as_str).chain(into).collect::<Vec<_>>());
        let differences = tree.differences(&Tree::read(target.path()));
        assert!(differences.is_empty(), "{words:?}: {differences:#?}");
    }
    let restore = |what: &str| montagu.on("uat").run(["restore", what].into_iter().chain(into));
    restore("barman_recover@latest~2").code(11).stderr_contains("only 2 snapshots");
    restore("barman_recover@2001-01-01").code(11).stderr_contains("no snapshot of barman_recover as of");
    restore("barman_recovre").code(11).stderr_contains("did you mean barman_recover?");
    assert_same(second_tree, &Tree::read(target.path()));
}

#[test]
fn labels_come_back_unless_others_are_given() {
    let source = DockerVolume::with("labelled", &["--label", "team=malaria", "--label", "tier=gold"]);
    let montagu = Montagu::new(&[], &[source.name()]);
    Volume::at(&source.path(), 1).write("file", "text");
    montagu.back_up("production2", source.name());
    let target = DockerVolume::absent("relabelled");
    let words = [source.name(), "--to-volume", target.name(), "--label", "tier=staging", "--label", "new=yes"];
    montagu.restore(&words);
    let labels = serde_json::json!({"team": "malaria", "tier": "staging", "new": "yes"});
    assert_eq!(target.inspect()["Labels"], labels);
    assert_eq!(target.inspect()["Driver"], "local");
    // The engine tells no options in two ways.
    assert_eq!(target.inspect()["Options"].as_object().map_or(0, serde_json::Map::len), 0);
}

#[test]
fn a_volume_in_use_is_left_alone_unless_its_containers_may_be_stopped() {
    let source = DockerVolume::new("orderly");
    let montagu = Montagu::new(&[], &[source.name()]);
    Volume::at(&source.path(), 2).many("archive", 50, 3000).write("version", "1");
    montagu.back_up("production2", source.name());
    let target = DockerVolume::new("target");
    Volume::at(&target.path(), 3).write("version", "0").write("extra", "mine");
    let user = Container::using(&target);
    let started = user.started_at();

    let words = ["restore", source.name(), "--to-volume", target.name()];
    let refused = montagu.on("uat").run(words).code(1);
    refused.stderr_contains(user.name()).stderr_contains("--stop-containers");
    assert_eq!(user.exec(&["cat", "/data/version", "/data/extra"]), "0mine", "nothing was touched");
    assert_eq!(user.started_at(), started);

    montagu.on("uat").run(words.into_iter().chain(["--stop-containers"])).success().stderr_contains(user.name());
    assert_eq!(user.state(), "running");
    assert_ne!(user.started_at(), started, "it was stopped in between");
    assert_eq!(user.exec(&["cat", "/data/version"]), "1");
    assert_same(&Tree::read(source.path()), &Tree::read(target.path()));
}

#[test]
fn a_client_backs_up_a_volume_while_it_is_used() {
    let source = DockerVolume::new("outpack");
    let montagu = Montagu::new(&[], &[source.name()]);
    let content = Volume::at(&source.path(), 4);
    content.zoo();
    content.many("archive", 300, 5000).random("large", 5 << 20);
    let _user = Container::using(&source);
    let first = montagu.back_up("production2", source.name());
    assert_eq!(number(&first, "defect_count"), 0, "{first}");
    // Nothing was read a second time, once the clock has moved on from the last changes.
    std::thread::sleep(Duration::from_secs(3));
    montagu.back_up("production2", source.name());
    let unchanged = montagu.back_up("production2", source.name());
    assert_eq!((number(&unchanged, "files_opened"), number(&unchanged, "data_blobs")), (0, 0), "{unchanged}");

    let target = DockerVolume::absent("copy");
    montagu.restore(&[source.name(), "--to-volume", target.name()]);
    assert_same(&Tree::read(source.path()), &Tree::read(target.path()));
}
