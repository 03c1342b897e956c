//! What this process can learn about itself from its mount table: which container it runs in, and with which volumes.
//!
//! None of it needs an engine, so a container of vsync may do without the engine's socket.

use std::fs;
use std::path::{Path, PathBuf};

use vsync_protocol::id::VolumeName;

use super::VOLUMES_INSIDE;

/// Where a volume is mounted into the container that we run in: `/vsync/volumes/<name>`, if that is a mount point.
#[must_use]
pub fn mounted_inside(name: &VolumeName) -> Option<PathBuf> {
    let path = Path::new(VOLUMES_INSIDE).join(name.as_str());
    // A plain directory there proves nothing: it may belong to the image, or to a mount that was forgotten.
    is_mount_point(&mount_table(), &path).then_some(path)
}

/// Id of the container that we run in, if we do.
#[must_use]
pub fn own_container() -> Option<String> {
    container_of(&mount_table()).map(str::to_owned)
}

/// An unreadable table is an empty one: nothing is claimed that was not seen.
fn mount_table() -> String {
    fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()
}

fn is_mount_point(mountinfo: &str, path: &Path) -> bool {
    mounts(mountinfo).any(|(_, place)| Path::new(place) == path)
}

/// The engine binds files from its directory for the container, `…/containers/<id>/`, over these. Host names and
/// cgroup paths would tell less: the first may be the host's, the second are hidden by cgroup namespaces.
fn container_of(mountinfo: &str) -> Option<&str> {
    mounts(mountinfo).filter(|(_, place)| ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"].contains(place)).find_map(
        |(source, _)| {
            let (_, rest) = source.split_once("/containers/")?;
            rest.split('/').next().filter(|id| id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
        },
    )
}

/// Pairs of what is mounted, as a path in its file system, and where. Paths with blanks are escaped, and not of ours.
fn mounts(mountinfo: &str) -> impl Iterator<Item = (&str, &str)> {
    mountinfo.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(3);
        Some((fields.next()?, fields.next()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "a92a143cc83c45d76a3ccd362c82067a7ff7455f9ff15e04859c93bfbe0c043c";

    #[test]
    fn a_mount_point_is_listed_in_the_table() {
        let table = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
                     31 22 8:1 /d/v/_data /vsync/volumes/v rw,relatime shared:1 - ext4 /dev/sda1 rw\n";
        assert!(is_mount_point(table, Path::new("/vsync/volumes/v")));
        assert!(!is_mount_point(table, Path::new("/vsync/volumes/w")));
        assert!(!is_mount_point(table, Path::new("/vsync/volumes")));
    }

    #[test]
    fn a_container_is_known_by_the_files_that_its_engine_binds() {
        let bound = |file: &str, place: &str| {
            format!("95 77 254:0 /var/lib/docker/containers/{ID}/{file} {place} rw - ext4 /dev/vda rw\n")
        };
        assert_eq!(container_of(&bound("hostname", "/etc/hostname")), Some(ID));
        assert_eq!(container_of(&bound("resolv.conf", "/etc/resolv.conf")), Some(ID));
        assert_eq!(container_of(&bound("hostname", "/mnt/hostname")), None, "anybody may bind anything elsewhere");
        assert_eq!(container_of("95 77 254:0 /containers/short/hosts /etc/hosts rw - ext4 /dev/vda rw\n"), None);
        assert_eq!(container_of("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"), None);
    }
}
