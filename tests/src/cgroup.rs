//! Memory limits that the kernel enforces, of either version of control groups, and the peak of a process.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::unique;

/// A control group that limits memory: who asks for more is killed. Gone with the guard.
#[derive(Debug)]
pub struct MemoryGroup {
    directory: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, Debug)]
enum Version {
    One,
    Two,
}

impl MemoryGroup {
    /// A group whose processes may use `bytes` together, the kernel's memory for them included. What the page cache
    /// keeps for them counts too, but gives way when they need it.
    ///
    /// # Panics
    /// If the kernel has no controller for memory here, or the caller is not root.
    #[must_use]
    #[track_caller]
    pub fn new(stem: &str, bytes: u64) -> Self {
        let (root, version) = controller();
        let group = Self { directory: root.join(unique(stem)), version };
        fs::create_dir(&group.directory).unwrap_or_else(|error| panic!("{}: {error}", group.directory.display()));
        match version {
            Version::One => group.write("memory.limit_in_bytes", bytes),
            Version::Two => {
                group.write("memory.max", bytes);
                group.write("memory.swap.max", 0);
            }
        }
        group
    }

    #[track_caller]
    fn write(&self, file: &str, value: u64) {
        let path = self.directory.join(file);
        match fs::write(&path, value.to_string()) {
            Ok(()) => {}
            // A kernel without swap accounting has nothing to limit there.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && file.contains("swap") => {}
            Err(error) => panic!("{}: {error}", path.display()),
        }
    }

    #[track_caller]
    fn read(&self, file: &str) -> String {
        let path = self.directory.join(file);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// Words that run what follows them in this group, for [`crate::Vsync::through`].
    #[must_use]
    pub fn prefix(&self) -> Vec<OsString> {
        let join = "echo $$ >\"$0\" && exec \"$@\"";
        vec!["sh".into(), "-c".into(), join.into(), self.directory.join("cgroup.procs").into()]
    }

    /// How many processes were killed because they wanted more.
    #[must_use]
    #[track_caller]
    pub fn kills(&self) -> u64 {
        let text = match self.version {
            Version::One => self.read("memory.oom_control"),
            Version::Two => self.read("memory.events"),
        };
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|count| count.trim().parse().ok()).unwrap_or_default()
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // Only an empty group can go: a process that was just killed may take a moment.
        for _ in 0..100 {
            if fs::remove_dir(&self.directory).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

/// Where groups with a limit on memory can be made.
#[track_caller]
fn controller() -> (PathBuf, Version) {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("the mounts");
    let mounts: Vec<Vec<&str>> = mounts.lines().map(|line| line.split(' ').collect()).collect();
    let of = |kind: &str| mounts.iter().filter(|mount| mount[2] == kind).cloned().collect::<Vec<_>>();
    for mount in of("cgroup2") {
        let root = Path::new(mount[1]);
        let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        if controllers.split_whitespace().any(|name| name == "memory") {
            fs::write(root.join("cgroup.subtree_control"), "+memory").expect("the right to limit memory");
            return (root.to_owned(), Version::Two);
        }
    }
    for mount in of("cgroup") {
        if mount[3].split(',').any(|option| option == "memory") {
            return (mount[1].into(), Version::One);
        }
    }
    panic!("no control group with a controller for memory is mounted");
}

/// The most that a process has had in memory at once so far, in bytes: the kernel's own record (`VmHWM`). None when
/// the process is gone.
#[must_use]
pub fn peak_memory(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}
