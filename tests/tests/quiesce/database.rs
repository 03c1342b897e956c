//! PostgreSQL under load, held for a backup, comes up from every snapshot with every page right.

use std::process::Command;

use vsync_tests::docker::{self, docker};
use vsync_tests::{DockerVolume, Postgres, shell};

use super::bed::Bed;

/// pgbench in the background of the database's container; it ends with it.
fn load(postgres: &Postgres) {
    let words = ["exec", "-d", postgres.container().name(), "pgbench", "-n", "-c", "4", "-T", "3600", "postgres"];
    docker(words);
    let before = transactions(postgres);
    super::bed::until("the load has begun", || transactions(postgres) > before);
}

fn transactions(postgres: &Postgres) -> u64 {
    postgres.psql("select count(*) from pgbench_history").parse().expect("a number")
}

fn every_snapshot_is_a_good_database(mode: &str, again: bool) {
    let bed = Bed::with("cluster", &format!("quiesce = {mode:?}\nprofile = \"database\""));
    let server = ["-c", "full_page_writes=on", "-c", "checkpoint_timeout=30s", "-c", "max_wal_size=64MB"];
    let postgres = Postgres::start_with(&bed.volume, &[], &server);
    postgres.fill(4);
    let mut seen = 0;
    load(&postgres);
    // How many snapshots are restored and started.
    for round in 0..vsync_tests::asked("VSYNC_TEST_RESTORES", 4) {
        let before = transactions(&postgres);
        let summary = bed.vsync().run(bed.backup(&["--json"])).success().summary();
        assert_eq!(summary["defect_count"], 0, "{summary}");
        assert_eq!(summary["held"][0]["container"], postgres.container().name(), "{summary}");
        eprintln!("{mode} {round}: held for {} s", summary["held_seconds"]);
        if again {
            postgres.wait();
            load(&postgres);
        }

        let copy = DockerVolume::absent("copy");
        bed.vsync().run(["restore", bed.volume.name(), "--to-volume", copy.name()]).success();
        docker::checksums(&copy.path(), mode == "stop");
        let restored = Postgres::start(&copy);
        restored.balance();
        restored.check();
        let transactions = transactions(&restored);
        assert!(transactions >= before && transactions > seen, "what was committed before is there");
        seen = transactions;
        restored.stop();
        docker::checksums(&copy.path(), true);
    }
    // It is none the worse for it.
    postgres.balance();
    drop(shell::attempt(Command::new("docker").args(["kill", postgres.container().name()])));
}

#[test]
fn a_paused_database_comes_up_from_every_snapshot() {
    every_snapshot_is_a_good_database("pause", false);
}

#[test]
fn a_stopped_database_comes_up_from_every_snapshot() {
    every_snapshot_is_a_good_database("stop", true);
}
