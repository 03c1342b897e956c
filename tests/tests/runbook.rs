//! The runbook of docs/, typed line by line: what it says is what happens.
//!
//! Its machines are directories of this one, with an address each; they share the Docker engine. Whatever is not
//! vsync's own is real, or stands in for a tool of the team: `montagu` starts and stops the database, `barman` is
//! PostgreSQL's base backup, `vault` is OpenBao's command.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use vsync_tests::docker::docker;
use vsync_tests::{Bao, DockerVolume, Postgres, Tree, Volume, assert_same, bao, bin, scratch, shell};

const RUNBOOK: &str = include_str!("../../docs/runbook-montagu.md");
const MACHINES: [&str; 5] = ["workstation", "annex2", "annex", "production2", "uat"];
const DATABASE: &str = "vimc/montagu-db:master";

/// A line to type, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    section: String,
    machine: String,
    command: String,
}

/// Every line of every block.
fn lines() -> Vec<Line> {
    let (mut section, mut inside, mut lines) = (String::new(), false, Vec::new());
    for text in RUNBOOK.lines() {
        if let Some(title) = text.strip_prefix("## ") {
            title.clone_into(&mut section);
        } else if text.starts_with("```") {
            assert!(inside || text == "```console", "a block of {text:?} is not typed by anybody");
            inside = !inside;
        } else if inside {
            let (machine, command) = text.split_once(['$', '#']).unwrap_or_else(|| panic!("no machine in {text:?}"));
            assert!(MACHINES.contains(&machine), "no machine in {text:?}");
            lines.push(Line { section: section.clone(), machine: machine.into(), command: command.trim().into() });
        }
    }
    lines
}

/// A container with a name of the runbook's.
struct Named(&'static str);

impl Drop for Named {
    fn drop(&mut self) {
        drop(shell::attempt(Command::new("docker").args(["rm", "-f", self.0])));
    }
}

/// The machines, what they have in common, and what runs in the background.
struct World {
    root: tempfile::TempDir,
    bao: Bao,
    background: Vec<Child>,
    typed: Vec<Line>,
}

impl World {
    fn new() -> Self {
        let world = Self { root: scratch(), bao: Bao::start(), background: Vec::new(), typed: Vec::new() };
        world.shims();
        world.repository();
        for machine in MACHINES {
            let home = world.home(machine);
            fs::create_dir_all(&home).expect("what the test bed made");
            shell::run("git", ["clone", "-q", &world.text("origin.git"), &format!("{}/config", home.display())]);
            fs::copy(bin(), home.join("config/vsync")).expect("what the test bed made");
            // What each may read in the vault is its own key.
            let own = format!("path \"secret/data/vimc/privateer/machines/{machine}\" {{ capabilities = [\"read\"] }}");
            fs::write(home.join("vault-token"), world.bao.token_named(machine, &own)).expect("what the test bed made");
        }
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn home(&self, machine: &str) -> PathBuf {
        self.path("machines").join(machine)
    }

    /// The team's own tools.
    fn shims(&self) {
        let shims = self.path("bin");
        fs::create_dir(&shims).expect("what the test bed made");
        let write = |name: &str, text: String| {
            fs::write(shims.join(name), text).expect("what the test bed made");
            fs::set_permissions(shims.join(name), fs::Permissions::from_mode(0o755)).expect("what the test bed made");
        };
        write("vault", format!("#!/bin/sh\nBAO_ADDR={} exec {} \"$@\"\n", self.bao.url(), bao::program().display()));
        write(
            "montagu",
            format!(
                "#!/bin/sh\nset -e\ncase $1 in\nstop) docker rm -f montagu-db ;;\nstart)\n    docker run -d --name \
                 montagu-db --network none -v montagu_db_volume:/pgdata {DATABASE} any\n    docker exec montagu-db \
                 montagu-wait.sh 100\n    ;;\nesac\n"
            ),
        );
    }

    /// The address of a server, which no other test has.
    fn address(&self, machine: &str) -> Option<String> {
        let [low, high, ..] = std::process::id().to_le_bytes();
        let last = match machine {
            "annex" => 1,
            "annex2" => 2,
            _ => return None,
        };
        Some(format!("127.{}.{high}.{last}", low | 1))
    }

    /// The team's repository, with privateer's configuration.
    fn repository(&self) {
        let server = |name: &str| {
            json!({"name": name, "hostname": self.address(name).expect("a server"), "port": 10022,
                   "key_volume": "privateer_montagu_keys", "data_volume": "privateer_montagu_data",
                   "container": "privateer_montagu_server"})
        };
        let volumes = ["montagu_orderly_volume", "montagu_outpack_volume"];
        let job = |volume: &&str| json!({"server": "annex2", "volume": volume, "schedule": "@daily"});
        let jobs: Vec<_> = volumes.iter().map(job).collect();
        let client = |name: &str| json!({"name": name, "backup": volumes, "schedule": {"jobs": jobs}});
        let text = json!({
            "servers": [server("annex"), server("annex2")],
            "clients": [client("production2"), {"name": "science"}, {"name": "uat"}],
            "volumes": [{"name": volumes[0]}, {"name": volumes[1]}, {"name": "barman_recover", "local": true}],
            "vault": {"url": self.bao.url(), "prefix": "/secret/vimc/privateer"},
        });
        let first = self.path("first");
        shell::run("git", ["init", "-q", "--bare", "-b", "main", &self.text("origin.git")]);
        shell::run("git", ["clone", "-q", &self.text("origin.git"), &self.text("first")]);
        fs::write(first.join("privateer.json"), text.to_string()).expect("what the test bed made");
        self.shell(
            "first",
            "git checkout -q -b main; git add privateer.json; git commit -qm First; git push -q -u origin main",
        );
    }

    fn shell(&self, directory: &str, line: &str) {
        shell::finish(
            self.environment(Command::new("bash"), "first").current_dir(self.path(directory)).args(["-ec", line]),
        );
    }

    /// A machine's own environment, and nothing of the caller's.
    fn environment(&self, mut command: Command, machine: &str) -> Command {
        let home = self.home(machine);
        command.env_clear().env("HOME", &home).env("VSYNC_STATE_DIR", home.join("state"));
        let path = format!("{}/.local/bin:{}:/usr/local/bin:/usr/bin:/bin", home.display(), self.text("bin"));
        command.env("PATH", path);
        for person in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{person}_NAME"), "A").env(format!("GIT_{person}_EMAIL"), "a@example.org");
        }
        if let Some(host) = std::env::var_os("DOCKER_HOST") {
            command.env("DOCKER_HOST", host);
        }
        // Two servers of one port, as on two machines.
        if let Some(address) = self.address(machine) {
            command.env("VSYNC_LISTEN", format!("{address}:10022"));
        }
        if machine == "workstation" {
            command.env("VAULT_TOKEN", self.bao.root_token()).env("BAO_TOKEN", self.bao.root_token());
        } else {
            command.env("VSYNC_VAULT_TOKEN_FILE", home.join("vault-token"));
        }
        command
    }

    /// Types a line; one that ends with `&` goes on in the background. The stores are not where this machine may
    /// have stores of its own; nothing else of a line is changed.
    #[track_caller]
    fn type_line(&mut self, line: &Line) -> String {
        let stores = self.text("stores");
        let words = line.command.replace("/var/lib/vsync", &stores);
        let (words, background) = match words.strip_suffix('&') {
            Some(words) => (format!("exec {words}"), true),
            None => (words, false),
        };
        let mut command = self.environment(Command::new("bash"), &line.machine);
        command.current_dir(self.home(&line.machine).join("config")).args(["-c", &words]);
        self.typed.push(line.clone());
        if background {
            self.start(command, line);
            return String::new();
        }
        let printed = shell::attempt(&mut command).unwrap_or_else(|failure| panic!("{line:?}\n{failure}"));
        if line.command.starts_with("vsync config import") {
            let file = self.home(&line.machine).join("config/vsync.toml");
            let text = fs::read_to_string(&file).expect("what the test bed made");
            fs::write(&file, text.replace("/var/lib/vsync", &stores)).expect("what the test bed made");
        }
        printed
    }

    fn start(&mut self, mut command: Command, line: &Line) {
        let log = self.path(&format!("{}.log", line.machine));
        let file = File::create(&log).expect("what the test bed made");
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("what the test bed made")).stderr(file);
        self.background.push(command.spawn().expect("what the test bed made"));
        let started = Instant::now();
        while !fs::read_to_string(&log).expect("what the test bed made").contains("listening on") {
            let said = fs::read_to_string(&log).expect("what the test bed made");
            assert!(started.elapsed() < Duration::from_secs(60), "{line:?} does not listen: {said}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Types what `wanted` picks of the lines of a section that were not typed yet, in their order.
    #[track_caller]
    fn type_lines(&mut self, section: &str, wanted: impl Fn(&Line) -> bool) -> Vec<String> {
        let chosen: Vec<Line> = lines().into_iter().filter(|line| line.section == section && wanted(line)).collect();
        assert!(!chosen.is_empty(), "nothing to type in {section}");
        chosen.iter().map(|line| self.type_line(line)).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for child in &mut self.background {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// The live database, which barman has backed up.
struct Production {
    postgres: Postgres,
    // A volume cannot go before the container that uses it.
    _barman: Named,
    _volumes: [DockerVolume; 2],
}

impl Production {
    fn start() -> Self {
        let (data, socket) = (DockerVolume::new("live"), DockerVolume::new("socket"));
        let mount = format!("{}:/run/postgresql", socket.name());
        let postgres = Postgres::start_with(&data, &["-v", &mount], &[]);
        postgres.fill(2);
        postgres.psql("create role vimc superuser login");
        postgres.container().exec(&["createdb", "-O", "vimc", "montagu"]);
        let table =
            "create table api_access_log (id serial primary key, who text, timestamp timestamptz default now())";
        Self::sql(&postgres, table);
        Self::sql(&postgres, "insert into api_access_log (who) select 'visitor ' || n from generate_series(1, 60) n");
        let barman = Named("barman-montagu");
        let (source, target) = (format!("{}:/source", socket.name()), "barman_recover:/recover");
        docker([
            "run",
            "-d",
            "--name",
            barman.0,
            "--network",
            "none",
            "-v",
            &source,
            "-v",
            target,
            "vsync-test/barman",
        ]);
        Self { postgres, _barman: barman, _volumes: [data, socket] }
    }

    fn sql(postgres: &Postgres, sql: &str) -> String {
        postgres.container().exec(&["psql", "-v", "ON_ERROR_STOP=1", "-Atqc", sql, "-U", "vimc", "montagu"])
    }
}

#[test]
fn every_line_of_the_runbook_does_what_it_says() {
    let orderly = DockerVolume::exactly("montagu_orderly_volume", &[]);
    let outpack = DockerVolume::exactly("montagu_outpack_volume", &[]);
    let _recover = DockerVolume::exactly("barman_recover", &[]);
    let _target = DockerVolume::named("montagu_db_volume");
    let copy = DockerVolume::named("outpack_copy");
    let privateer = DockerVolume::exactly("privateer_montagu_data", &[]);
    let _containers = [Named("barman-replay-wal"), Named("montagu-db"), Named("vsync-schedule-production2")];
    for (number, volume) in (1..).zip([&orderly, &outpack]) {
        Volume::at(&volume.path(), number).many("archive", 200, 20_000).write("orderly.sqlite", "new").settled();
    }
    let stored = Volume::at(&privateer.path().join("production2/montagu_orderly_volume"), 3);
    stored.many("archive", 20, 20_000).write("orderly.sqlite", "old");
    let production = Production::start();
    let mut world = World::new();

    installation(&mut world);
    initial_set_up(&mut world);
    let trees = [Tree::read(orderly.path()), Tree::read(outpack.path())];
    let printed = world.type_lines("Backup", |_| true).join("\n");
    assert!(printed.contains("container vsync-schedule-production2 is running"), "{printed}");
    assert!(printed.contains("the schedule of production2 is running"), "{printed}");
    assert_same(&trees[1], &Tree::read(copy.path()));
    restore(&mut world, &production, [&orderly, &outpack], &trees);
    let rows = "select count(*), max(who) from api_access_log";
    assert_eq!(docker(["exec", "montagu-db", "psql", "-AtU", "vimc", "-d", "montagu", "-c", rows]), "61|visitor 9");

    let untyped: Vec<Line> = lines().into_iter().filter(|line| !world.typed.contains(line)).collect();
    assert_eq!(untyped, [], "every line was typed");
}

/// The same on every machine.
fn installation(world: &mut World) {
    for machine in MACHINES {
        let lines = lines().into_iter().filter(|line| line.section == "Installation");
        let last = lines.map(|line| world.type_line(&Line { machine: machine.into(), ..line })).last();
        assert!(last.is_some_and(|version| version.starts_with("vsync ")));
    }
}

fn initial_set_up(world: &mut World) {
    let printed = world.type_lines("Initial set-up", |_| true).join("\n");
    for machine in ["annex", "annex2", "production2", "science", "uat"] {
        assert!(printed.lines().any(|line| line == machine), "{machine} is not in the vault:\n{printed}");
    }
    assert!(printed.contains("imported production2/montagu_orderly_volume"), "{printed}");
    let again = Line {
        section: String::new(),
        machine: "annex2".into(),
        command: "vsync import-privateer privateer_montagu_data".into(),
    };
    assert!(world.type_line(&again).starts_with("skipped production2/montagu_orderly_volume"));
}

fn restore(world: &mut World, production: &Production, volumes: [&DockerVolume; 2], trees: &[Tree; 2]) {
    // From here on these are uat's volumes, which are old.
    for volume in volumes {
        Volume::at(&volume.path(), 9).remove("archive").write("orderly.sqlite", "of uat").write("extra", "gone soon");
    }
    let is_of_database = |line: &Line| {
        ["barman", "montagu stop", "montagu start", "montagu-db"].iter().any(|word| line.command.contains(word))
    };
    let printed = world.type_lines("Restore", |line| !is_of_database(line)).join("\n");
    assert!(printed.contains("would restore"), "{printed}");
    for (volume, tree) in volumes.into_iter().zip(trees) {
        assert_same(tree, &Tree::read(volume.path()));
    }
    // What comes after the base backup is not in it, what came before is.
    Production::sql(&production.postgres, "insert into api_access_log (who) values ('the last one')");
    let printed = world.type_lines("Restore", is_of_database);
    let query = printed.last().expect("the query at the end");
    assert!(query.contains("the last one") && query.contains("(50 rows)"), "{query}");
}

#[test]
fn the_runbook_speaks_of_what_there_is() {
    let lines = lines();
    for section in ["Installation", "Restore", "Backup", "Initial set-up"] {
        assert!(lines.iter().any(|line| line.section == section), "{section}");
    }
    let known = |path: &str| Path::new("..").join(path).exists();
    assert!(RUNBOOK.contains("`deploy/systemd/vsync-server.service`") && known("deploy/systemd/vsync-server.service"));
}
