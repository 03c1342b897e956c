//! Agent and server each in 256 MiB, whatever the volume's size: the kernel kills what takes more, and of the server's
//! half may not be its own.
//!
//! `VSYNC_TEST_FILES=1000000` makes the volume of small files that large; by default it has 300,000, which a slow
//! machine finishes in the time that a run of all tests may take.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use vsync_tests::cgroup::peak_memory;
use vsync_tests::{MemoryGroup, Output, Realm, Rng, Running, Server, Tree, Vsync, assert_same, shell};

/// What each of the two may use.
const LIMIT: u64 = 256 << 20;

/// What of it may be the server's own memory; the rest is what the kernel keeps for it.
const SERVER_LIMIT: u64 = 128 << 20;

struct Bed {
    realm: Realm,
    server: Server,
    server_group: MemoryGroup,
    agent_group: MemoryGroup,
}

impl Bed {
    fn new(directory: &Path) -> Self {
        let realm = Realm::new().server("annex2").directory("data", directory).client("production2", &["data"]).build();
        let (server_group, agent_group) = (MemoryGroup::new("server", LIMIT), MemoryGroup::new("agent", LIMIT));
        let server = Server::start(realm.vsync("annex2").through(server_group.prefix()));
        Self { realm, server, server_group, agent_group }
    }

    fn agent(&self) -> Vsync {
        self.realm.vsync("production2").through(self.agent_group.prefix()).limit(Duration::from_secs(900))
    }

    /// Waits for a command of the agent, and prints how long it took and how much memory.
    fn watch(&self, what: &str, mut running: Running) -> Output {
        let mut peak = 0;
        while running.is_running() {
            peak = peak_memory(running.pid()).unwrap_or(0).max(peak);
            thread::sleep(Duration::from_millis(20));
        }
        let output = running.wait();
        let kills = (self.agent_group.kills(), self.server_group.kills());
        let server = peak_memory(self.server.process().pid()).unwrap_or(0);
        let mib = |bytes: u64| bytes >> 20;
        println!(
            "{what}: {:.1} s, agent {} MiB, server {} MiB",
            output.elapsed().as_secs_f64(),
            mib(peak),
            mib(server)
        );
        assert_eq!(kills, (0, 0), "killed for want of memory, agent and server; {output}");
        assert!(peak < LIMIT && server < SERVER_LIMIT, "{what}: agent {peak}, server {server} bytes");
        output.success()
    }
}

/// Files of up to 200 bytes, a thousand in a directory; every one different.
fn small_files(root: &Path, count: u64) {
    let mut rng = Rng::new(count);
    for directory in 0..count.div_ceil(1000) {
        let directory_path = root.join(format!("{directory:04}"));
        fs::create_dir(&directory_path).expect("a directory");
        for file in 0..(count - directory * 1000).min(1000) {
            let mut text = format!("{directory} {file} {:x}", rng.next_u64()).into_bytes();
            text.resize(text.len() + usize::try_from(rng.below(160)).expect("a length"), b'x');
            fs::write(directory_path.join(format!("{file:03}")), text).expect("a file");
        }
    }
}

#[test]
fn very_many_small_files() {
    let count = vsync_tests::asked("VSYNC_TEST_FILES", 300_000);
    let data = vsync_tests::scratch();
    let started = Instant::now();
    small_files(data.path(), count);
    println!("{count} files made in {:.1} s", started.elapsed().as_secs_f64());
    // What was changed within the last seconds would be read again.
    thread::sleep(Duration::from_secs(3));

    let bed = Bed::new(data.path());
    bed.watch("first backup", bed.agent().spawn(["backup", "data"]));
    let unchanged = bed.watch("unchanged backup", bed.agent().spawn(["backup", "data", "--json"])).summary();
    assert_eq!((&unchanged["files_opened"], &unchanged["data_blobs"]), (&0.into(), &0.into()), "{unchanged}");
    let target = vsync_tests::scratch();
    let to = target.path().to_str().expect("a path");
    bed.watch("full restore", bed.agent().spawn(["restore", "data", "--to-path", to]));
    let again =
        bed.watch("restore over it", bed.agent().spawn(["restore", "data", "--to-path", to, "--json"])).summary();
    assert_eq!(again["bytes_restored"], 0, "{again}");
    assert_same(&Tree::read(data.path()), &Tree::read(target.path()));
}

const STREAM: u64 = 32 << 30;
const ISLAND: usize = 3 << 20;

/// Random data at every gibibyte of a stream of zeros, nowhere aligned to anything.
fn islands() -> Vec<(u64, Vec<u8>)> {
    let mut rng = Rng::new(32);
    (0..32).map(|number| ((number << 30) + rng.below(1 << 29), rng.bytes(ISLAND))).collect()
}

fn write_stream(fifo: PathBuf, islands: Vec<(u64, Vec<u8>)>) -> thread::JoinHandle<std::io::Result<()>> {
    thread::spawn(move || {
        let mut pipe = OpenOptions::new().write(true).open(fifo)?;
        let zeros = vec![0; 1 << 20];
        let mut at = 0;
        let ends = std::iter::once((STREAM, Vec::new()));
        for (start, bytes) in islands.into_iter().chain(ends) {
            while at < start {
                let step = zeros.len().min(usize::try_from(start - at).expect("a step"));
                pipe.write_all(&zeros[..step])?;
                at += step as u64;
            }
            pipe.write_all(&bytes)?;
            at += bytes.len() as u64;
        }
        Ok(())
    })
}

#[test]
fn a_stream_of_mostly_nothing() {
    let unused = vsync_tests::scratch();
    let bed = Bed::new(unused.path());
    let fifo = unused.path().join("fifo");
    shell::run("mkfifo", [&fifo]);
    let islands = islands();
    let redirect = format!("exec \"$@\" <{}", fifo.display());
    let backup = bed.agent().through(["sh", "-c", &redirect, "sh"]).spawn(["backup", "--stdin", "image", "--json"]);
    let writer = write_stream(fifo, islands.clone());
    let summary = bed.watch("backup of 32 GiB", backup).summary();
    writer.join().expect("the writer").expect("a stream that was read to its end");
    assert_eq!(summary["bytes_read"], STREAM, "{summary}");
    let sent = summary["data_added_packed"].as_u64().expect("a number");
    let random = (islands.len() * ISLAND) as u64;
    assert!((random..random + random / 5).contains(&sent), "{sent} bytes sent for {random} of data");

    let target = vsync_tests::scratch();
    let to = target.path().to_str().expect("a path");
    bed.watch("restore of 32 GiB", bed.agent().spawn(["restore", "image", "--to-path", to]));
    is_the_stream(&target.path().join("stream"), &islands);
}

fn is_the_stream(path: &Path, islands: &[(u64, Vec<u8>)]) {
    let file = File::open(path).expect("the stream");
    let meta = file.metadata().expect("its size");
    assert_eq!(meta.len(), STREAM);
    let random = (islands.len() * ISLAND) as u64;
    assert!(meta.blocks() * 512 < random + random / 2, "{} blocks: the zeros take room", meta.blocks());
    for (at, bytes) in islands {
        let mut there = vec![1; ISLAND + 2];
        file.read_exact_at(&mut there, at - 1).expect("an island");
        let framed = there[0] == 0 && there[ISLAND + 1] == 0;
        assert!(framed && there[1..=ISLAND] == bytes[..], "the island at {at} is not what was sent");
    }
}
