//! How much memory this process may have: what its control groups and the machine grant.

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes that this process may use; `None` where nobody can tell.
pub(super) fn granted() -> Option<u64> {
    let machine = total(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let limits = limit_files(&groups).into_iter().filter_map(|file| limit(&fs::read_to_string(file).ok()?));
    limits.min().map(|limit| limit.min(machine))
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn total(meminfo: &str) -> Option<u64> {
    let kilobytes = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim().strip_suffix("kB")?;
    kilobytes.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The files that may hold a limit on memory, as `/proc/self/cgroup` names the groups (`cgroups(7)`): of version 1
/// or 2, of the group and all above it. In a container, what is called the topmost one is the container's.
fn limit_files(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let ancestors = Path::new(group.trim_start_matches('/')).ancestors();
        files.extend(ancestors.map(|group| Path::new(root).join(group).join(file)));
    }
    files
}

/// What such a file says, in bytes.
fn limit(text: &str) -> Option<u64> {
    match text.trim() {
        "max" => Some(u64::MAX),
        bytes => bytes.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_both_versions_are_asked_and_all_above_them() {
        let files = |groups| limit_files(groups).iter().map(|file| file.display().to_string()).collect::<Vec<_>>();
        assert_eq!(
            files("0::/system.slice/vsync.service\n"),
            [
                "/sys/fs/cgroup/system.slice/vsync.service/memory.max",
                "/sys/fs/cgroup/system.slice/memory.max",
                "/sys/fs/cgroup/memory.max"
            ]
        );
        let first = "5:cpu,cpuacct:/a\n4:memory:/docker/1\n1:name=systemd:/b\nrubbish\n";
        let expected =
            ["docker/1/", "docker/", ""].map(|group| format!("/sys/fs/cgroup/memory/{group}memory.limit_in_bytes"));
        assert_eq!(files(first), expected);
    }

    #[test]
    fn limits_are_read_as_the_kernel_writes_them() {
        assert_eq!(limit("max\n"), Some(u64::MAX));
        assert_eq!(limit("268435456\n"), Some(256 << 20));
        assert_eq!(limit(""), None);
        assert_eq!(total("MemTotal:       24012345 kB\nMemFree: 1 kB\n"), Some(24_012_345 * 1024));
        assert_eq!(total("MemFree: 1 kB\n"), None);
        assert!(granted().is_none_or(|bytes| bytes > 1 << 20));
    }
}
