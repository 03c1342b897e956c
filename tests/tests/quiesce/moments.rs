//! A snapshot is one moment of the volume: the one at which everything stood still.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use vsync_tests::docker::BASE;
use vsync_tests::{Container, Volume};

use super::bed::{Bed, GATE, at_the_gate, open_the_gate, to_the_gate};

/// A program that has a file mapped into its memory, and writes to it when it is told to.
struct Mapper {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Mapper {
    fn of(path: &Path) -> Self {
        let script = "
import mmap, sys
with open(sys.argv[1], 'r+b') as file:
    memory = mmap.mmap(file.fileno(), 0)
for line in sys.stdin:
    memory[0:1] = line[:1].encode()
    print('written', flush=True)";
        let mut child = Command::new("python3")
            .args(["-c", script])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3");
        let orders = child.stdin.take().expect("a pipe");
        let answers = BufReader::new(child.stdout.take().expect("a pipe"));
        Self { child, orders, answers }
    }

    fn write(&mut self, letter: char) {
        writeln!(self.orders, "{letter}").expect("an order");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("an answer");
        assert_eq!(answer, "written\n");
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn writes_between_reading_ahead_and_the_hold_are_in_the_snapshot() {
    let bed = Bed::new("between");
    let content = Volume::at(&bed.volume.path(), 1);
    content.write("same-size", "old").write("removed", "x").write("mapped", "a---").random("large", 6 << 20);
    content.many("many", 60, 3000);
    let _user = bed.user("db", &["--label", "vsync.quiesce=pause", "--label", GATE]);
    let mut mapper = Mapper::of(&bed.file("mapped"));
    mapper.write('b');
    // From here on, the page is dirty and the inode's time old: another write to it would move nothing.
    std::thread::sleep(Duration::from_secs(4));

    let backup = at_the_gate(&bed, &["--json"]);
    mapper.write('c');
    let times = shell_times(&bed.file("same-size"));
    fs::write(bed.file("same-size"), "new").expect("the file");
    shell_touch(&bed.file("same-size"), &times);
    fs::remove_file(bed.file("removed")).expect("the file");
    fs::rename(bed.file("many/000/000001"), bed.file("many/000/000002")).expect("a file");
    content.random("large-new", 3 << 20);
    open_the_gate(&bed);
    let summary = backup.wait().success().summary();
    assert_eq!(summary["defect_count"], 0, "{summary}");

    let (_guard, there) = bed.restored();
    let read = |name: &str| fs::read_to_string(there.join(name)).expect("the file");
    assert_eq!((read("same-size"), read("mapped")), ("new".into(), "c---".into()));
    assert!(!there.join("removed").exists() && !there.join("many/000/000001").exists());
    assert_eq!(
        fs::read(there.join("many/000/000002")).expect("it"),
        fs::read(bed.file("many/000/000002")).expect("it")
    );
    assert_eq!(fs::read(there.join("large-new")).expect("it"), fs::read(bed.file("large-new")).expect("it"));
    assert_eq!(fs::read(there.join("large")).expect("it"), fs::read(bed.file("large")).expect("it"));

    // And after the hold, for the next backup.
    mapper.write('d');
    let backup = at_the_gate(&bed, &[]);
    open_the_gate(&bed);
    let _ = backup.wait().success();
    let (_guard, there) = bed.restored();
    assert_eq!(fs::read_to_string(there.join("mapped")).expect("it"), "d---");
}

#[test]
fn a_mapped_page_that_is_written_again_after_it_was_read_is_in_the_next_snapshot() {
    let bed = Bed::new("mapped");
    Volume::at(&bed.volume.path(), 1).write("mapped", "a---");
    let mut mapper = Mapper::of(&bed.file("mapped"));
    mapper.write('b');
    // Long enough for the time of the last change to be believed, not for the kernel to write the page by itself.
    std::thread::sleep(Duration::from_secs(4));
    for letter in ['c', 'd'] {
        bed.vsync().run(bed.backup(&[])).success();
        mapper.write(letter);
    }
    bed.vsync().run(bed.backup(&[])).success();
    let (_guard, there) = bed.restored();
    assert_eq!(fs::read_to_string(there.join("mapped")).expect("it"), "d---");
}

fn shell_times(path: &Path) -> String {
    vsync_tests::shell::run("stat", ["-c", "%y", path.to_str().expect("a path")])
}

fn shell_touch(path: &Path, time: &str) {
    vsync_tests::shell::run("touch", ["-d", time, path.to_str().expect("a path")]);
}

#[test]
fn what_was_read_ahead_is_never_a_snapshot_and_is_not_read_again() {
    let bed = Bed::new("ahead");
    Volume::at(&bed.volume.path(), 1).random("large", 12 << 20);
    std::thread::sleep(Duration::from_secs(4));
    let user = bed.user("db", &["--label", "vsync.quiesce=pause", "--label", GATE]);
    let backup = at_the_gate(&bed, &[]);
    assert_eq!(bed.snapshots(), 0);
    backup.kill().died();
    assert_eq!(bed.snapshots(), 0, "all of it is on the server, and none of it is a snapshot");
    drop(user);

    let user = bed.user("db", &["--label", "vsync.quiesce=pause"]);
    let summary = bed.vsync().run(bed.backup(&["--json"])).success().summary();
    assert!(summary["bytes_read"].as_u64().expect("a number") < 1 << 20, "{summary}");
    assert_eq!(summary["parent"], serde_json::Value::Null, "no snapshot is its parent: {summary}");
    assert_eq!(bed.done_to(&user), ["pause", "unpause"]);
    let (_guard, there) = bed.restored();
    assert_eq!(fs::read(there.join("large")).expect("it"), fs::read(bed.file("large")).expect("it"));
}

/// Numbers that an application writes to one file after the other, round after round: at any moment, those at the
/// front are one ahead of those at the back.
#[test]
fn files_of_one_snapshot_are_of_one_moment() {
    const FILES: usize = 40;
    let bed = Bed::with("rounds", "quiesce = \"pause\"");
    let mount = format!("{}:/data", bed.volume.name());
    let script = format!(
        "n=100000; while true; do n=$((n+1)); i=100; while [ $i -lt {} ]; do echo $n >/data/$i; i=$((i+1)); done; done",
        100 + FILES
    );
    let writer = Container::run("writer", &["-v", &mount, BASE, "sh", "-c", &script]);
    super::bed::until("all files are there", || bed.file(&(99 + FILES).to_string()).exists());
    for _ in 0..5 {
        let summary = bed.vsync().run(bed.backup(&["--json"])).success().summary();
        assert_eq!(summary["defect_count"], 0, "nothing changed while it was read: {summary}");
        let (_guard, there) = bed.restored();
        let read = |i: usize| fs::read_to_string(there.join((100 + i).to_string())).expect("a file");
        // The one that was being written may be empty.
        let numbers: Vec<u64> = (0..FILES).filter_map(|i| read(i).trim().parse().ok()).collect();
        assert!(numbers.len() >= FILES - 1, "{numbers:?}");
        assert!(numbers.is_sorted_by(|a, b| a >= b), "{numbers:?}");
        assert!(numbers[0] - numbers[numbers.len() - 1] <= 1, "{numbers:?}");
    }
    assert_eq!(writer.state(), "running");
}

/// Kills the program that traces `pid` and makes its calls fail: the system lets go of what is traced, which goes on.
fn stop_tracing(pid: u32) {
    let tracer = || -> String {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
        let line = status.lines().find_map(|line| line.strip_prefix("TracerPid:")).expect("a tracer");
        line.trim().to_owned()
    };
    let strace = tracer();
    assert_ne!(strace, "0", "nobody traces it");
    vsync_tests::shell::run("kill", ["-KILL", strace.as_str()]);
    super::bed::until("nobody traces it", || tracer() == "0");
}

#[test]
fn what_could_not_be_read_ahead_is_read_in_the_hold() {
    let bed = Bed::new("unread");
    Volume::at(&bed.volume.path(), 1).random("large", 3 << 20).random("small", 5000);
    // Longer than the moments in which a file may change again unnoticed.
    std::thread::sleep(Duration::from_secs(4));
    let user = bed.user("db", &["--label", "vsync.quiesce=pause", "--label", GATE]);
    let log = vsync_tests::scratch();
    let log = log.path().join("log");
    // No reading of them succeeds until the gate is reached; of their times and sizes, nothing changes.
    let paths = ["large", "small"].map(|name| bed.file(name));
    let strace = ["strace", "-D", "-f", "-qq", "-o", log.to_str().expect("a path"), "-e", "trace=pread64,preadv2"];
    let strace = strace.into_iter().chain(["-e", "inject=pread64,preadv2:error=EIO"]);
    let strace = strace.chain(paths.iter().flat_map(|path| ["-P", path.to_str().expect("a path")]));
    let backup = to_the_gate(&bed, bed.vsync().through(strace), &["--json"]);
    stop_tracing(backup.pid());
    let failed = fs::read_to_string(&log).expect("the log");
    assert!(failed.matches("(INJECTED)").count() >= paths.len(), "{failed}");
    open_the_gate(&bed);
    let summary = backup.wait().success().summary();
    assert_eq!(summary["defect_count"], 0, "{summary}");
    let (_guard, restored) = bed.restored();
    for path in &paths {
        let name = path.file_name().expect("a name");
        assert!(fs::read(restored.join(name)).expect("a file") == fs::read(path).expect("a file"), "{name:?}");
    }
    assert_eq!(bed.done_to(&user), ["pause", "unpause"]);
}
