//! A backup leaves to others what it was told to leave, and their page cache in any case.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Advice, fadvise};
use rustix::process::Signal;
use vsync_tests::{Place, Site, Tree, Volume, assert_same, shell};

const PAGE: u64 = 4096;

/// Pages that may come or go in a file without our doing: the kernel goes on where somebody else's
/// read-ahead has left off, and takes memory back that nobody has used for a while.
const DOUBT: u64 = (10 << 20) / PAGE;

/// Pages of a file that are in memory, by `mincore`.
fn cached(file: &Path) -> u64 {
    let count = shell::run("fincore", ["--noheadings", "--output", "PAGES", file.to_str().expect("a path")]);
    count.trim().parse().unwrap_or_else(|_| panic!("{}: {count:?}", file.display()))
}

/// Drops a file from memory, and then reads the first `len` bytes of it.
fn drop_and_read(path: &Path, len: u64) {
    let drop_all = format!("of={}", path.display());
    shell::run("dd", [&drop_all, "oflag=nocache", "conv=notrunc,fdatasync", "count=0", "status=none"]);
    // As databases read: without read-ahead, which the kernel would take up again for whoever reads on.
    let mut file = fs::File::open(path).expect("the file");
    fadvise(&file, 0, None, Advice::Random).expect("advice");
    std::io::copy(&mut Read::by_ref(&mut file).take(len), &mut std::io::sink()).expect("its content");
}

/// Until of each file the first so many bytes are in memory, and less than as much of the rest. What was read a moment
/// ago the kernel may take back at once, for others who need memory: then they are all read again.
fn keep_only(files: &[(&Path, u64)]) -> Vec<u64> {
    for _ in 0..20 {
        files.iter().for_each(|(file, len)| drop_and_read(file, *len));
        let found: Vec<u64> = files.iter().map(|(file, _)| cached(file)).collect();
        let is_kept = |pages: u64, wanted: u64| pages == wanted || (wanted..2 * wanted).contains(&pages);
        if found.iter().zip(files).all(|(pages, (_, len))| is_kept(*pages, len / PAGE)) {
            return found;
        }
    }
    panic!("there is no memory for {files:?}");
}

#[test]
fn what_others_keep_in_memory_stays_and_nothing_is_added() {
    const SIZE: u64 = 24 << 20;
    let site = Site::new(1);
    // Not in memory to begin with, whatever the scratch directory is.
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory on disk");
    let data = Volume::at(place.path(), 1);
    let files: Vec<PathBuf> = ["cold", "half", "warm", "small"].iter().map(|name| data.join(name)).collect();
    data.random("cold", SIZE).random("half", 3 * SIZE).random("warm", SIZE).random("small", 100 << 10);
    let wanted: Vec<(&Path, u64)> = files.iter().map(PathBuf::as_path).zip([0, SIZE, SIZE, 0]).collect();
    let before = keep_only(&wanted);
    let toml = |text: String| text.replace(site.data.path().to_str().unwrap(), place.path().to_str().unwrap());
    site.realm.edit(toml);
    let summary = site.backup();
    assert!(summary.number("bytes_read") >= 5 * SIZE, "{summary:?}");
    let after: Vec<u64> = files.iter().map(|file| cached(file)).collect();
    assert_eq!((after[0], after[3]), (0, 0), "{after:?}, before {before:?}");
    let apart = [1, 2].map(|file| after[file].abs_diff(before[file]));
    assert!(apart.iter().all(|&pages| pages <= DOUBT), "{after:?}, before {before:?}");

    let packs = Place::Pack.files(&site.store());
    let (kept, stored): (u64, u64) =
        packs.iter().fold((0, 0), |sum, pack| (sum.0 + cached(pack), sum.1 + pack.metadata().expect("a pack").len()));
    assert!(stored > 5 * SIZE && kept * PAGE < stored / 20, "{kept} pages of {stored} bytes in packs stay in memory");
    let target = vsync_tests::scratch();
    site.restore(&["data"], target.path());
    assert_same(&Tree::read(place.path()), &Tree::read(target.path()));
}

#[test]
fn a_rate_is_a_bound_in_both_directions() {
    const SIZE: u64 = 6 << 20;
    let site = Site::new(2);
    site.data.random("file", SIZE);
    let limited = site.host().run(["backup", "data", "--limit-upload", "2MiB"]).success();
    // How long it takes beyond that is the machine's affair.
    let least = Duration::from_millis(2500);
    assert!(limited.elapsed() > least, "{SIZE} bytes sent in {:?}", limited.elapsed());
    let target = vsync_tests::scratch();
    let to = target.path().to_str().unwrap();
    let limited = site.host().run(["restore", "data", "--to-path", to, "--limit-download", "2 MiB/s"]).success();
    assert!(limited.elapsed() > least, "{SIZE} bytes received in {:?}", limited.elapsed());
    assert_same(&Tree::read(site.data.path()), &Tree::read(target.path()));
    site.host().run(["backup", "data", "--limit-upload", "fast"]).code(2).stderr_contains("units are K, M, G");
}

#[test]
fn every_thread_takes_its_place_behind_others() {
    let site = Site::new(3);
    site.data.random("file", 24 << 20);
    let options = ["--cpu", "1", "--nice", "7", "--idle-io", "--limit-upload", "4M"];
    let mut backup = site.host().with(["backup", "data"]).spawn(options);
    let directory = format!("/proc/{}/task", backup.pid());
    let tasks = || -> Vec<PathBuf> {
        fs::read_dir(&directory).into_iter().flatten().flatten().map(|task| task.path()).collect()
    };
    // Readers, sealers, the network: more than a command has that has not begun. Nothing moves while they are looked at.
    loop {
        assert!(backup.is_running(), "ended with fewer threads than a backup has");
        backup.signal(Signal::STOP);
        while !tasks().iter().all(|task| is_stopped(task)) {
            std::thread::sleep(Duration::from_millis(1));
        }
        if tasks().len() >= 8 {
            break;
        }
        backup.signal(Signal::CONT);
        std::thread::sleep(Duration::from_millis(10));
    }
    for task in tasks() {
        let id = task.file_name().expect("a thread").to_str().expect("a number");
        let read = |name: &str| fs::read_to_string(task.join(name)).expect("the state of a thread");
        let (status, stat) = (read("status"), read("stat"));
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).map(str::trim);
        assert!(allowed.is_some_and(|list| list.parse::<u32>().is_ok()), "more than one processor: {status}");
        let niceness = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(16).map(str::to_owned));
        assert_eq!(niceness.as_deref(), Some("7"), "{stat}");
        assert_eq!(shell::run("ionice", ["-p", id]).trim(), "idle", "{status}");
    }
    backup.signal(Signal::CONT);
    backup.wait().success();
}

/// Whether a thread stands still, or is gone.
fn is_stopped(task: &Path) -> bool {
    let stat = fs::read_to_string(task.join("stat")).unwrap_or_default();
    stat.rsplit(')').next().is_none_or(|rest| rest.is_empty() || rest.trim_start().starts_with('T'))
}
