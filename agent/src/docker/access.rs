//! How to reach the files of a volume.
//!
//! An engine says where a volume's directory is on *its* machine, in *its* mount namespace, and for volumes with
//! mount options (tmpfs, nfs, bind) that directory is an empty stand-in until a container uses the volume. Reading it
//! in good faith gives an empty backup that looks like a success. So a directory is read directly only if it is proved
//! to be the one that the engine means, and if its files live in it at all times; everything else goes through a
//! helper, for which the engine itself mounts the volume.
//!
//! The proof: for a `local` volume, the engine's `CreatedAt` is in truth the time of the last inode change (ctime) of
//! the volume's directory, read when we ask: of `_data` itself in older engines, of its parent in newer ones. We read
//! the same from the directory at that path. Names, ids and sockets prove less: a socket may be forwarded, and a path
//! may be left over from another engine. Where an engine behaves otherwise, the proof fails, and a helper is used.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bollard::models::Volume;
use jiff::Timestamp;

use super::engine::Engine;
use super::error::DockerError;
use super::ourselves::mounted_inside;
use super::volume::VolumeDescription;

/// The way to a volume's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Its directory on this machine.
    Direct(PathBuf),
    /// The place where it is mounted into the container that we run in.
    Inside(PathBuf),
    /// No way from this process: run a helper container with the volume mounted.
    Helper,
    /// There is nothing to read, and nothing that is written would last.
    Refused {
        /// Why, and what to do.
        reason: String,
    },
}

/// What [`decide_access`] needs to know beside the volume's description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Where the volume is mounted into our own container, if it is.
    pub mounted_inside: Option<PathBuf>,
    /// What this process finds at the engine's path.
    pub mountpoint: Mountpoint,
    /// A container that uses the volume is running, so the engine holds it mounted.
    pub in_use: bool,
}

/// What this process finds at the path that the engine gives for a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mountpoint {
    /// The very directory that the engine means, and we may read it.
    Ours,
    /// Nothing, or something not proved to be that directory.
    Unproved,
}

/// Decides how to reach a volume's files.
#[must_use]
pub fn decide_access(volume: &VolumeDescription, facts: &Facts) -> Access {
    if let Some(path) = &facts.mounted_inside {
        return Access::Inside(path.clone());
    }
    if lives_in_memory(volume) && !facts.in_use {
        return Access::Refused {
            reason: format!(
                "volume {} lives in memory only while a container uses it, and none is running; start one, then try again",
                volume.name
            ),
        };
    }
    match facts.mountpoint {
        Mountpoint::Ours if keeps_files_in_directory(volume) => Access::Direct(volume.mountpoint.clone()),
        Mountpoint::Ours | Mountpoint::Unproved => Access::Helper,
    }
}

impl Engine {
    /// Gathers the facts about a volume, and decides how to reach its files.
    pub async fn access_to(&self, volume: &VolumeDescription) -> Result<Access, DockerError> {
        let users = self.users_of(volume).await?;
        let facts = Facts {
            mounted_inside: mounted_inside(&volume.name),
            mountpoint: self.look_at_mountpoint(volume).await?,
            in_use: users.iter().any(|user| user.running),
        };
        let access = decide_access(volume, &facts);
        tracing::debug!(volume = %volume.name, ?facts, ?access, "Decided how to reach the volume");
        Ok(access)
    }

    /// Compares the engine's view of a volume's directory with ours.
    async fn look_at_mountpoint(&self, volume: &VolumeDescription) -> Result<Mountpoint, DockerError> {
        // A file created between the engine's look and ours spoils the comparison: look again.
        for _ in 0..LOOKS {
            let Some(seen) = self.raw_volume(&volume.name).await? else { break };
            if is_same_directory(&seen) && File::open(&volume.mountpoint).is_ok() {
                return Ok(Mountpoint::Ours);
            }
        }
        Ok(Mountpoint::Unproved)
    }
}

/// The volume's files are in its directory whether or not a container uses it.
fn keeps_files_in_directory(volume: &VolumeDescription) -> bool {
    // `size` limits the directory; every other option (`type`, `device`, `o`) mounts something over it.
    volume.driver == LOCAL && volume.options.keys().all(|option| option == "size")
}

/// The volume's files vanish with the last container that uses it.
fn lives_in_memory(volume: &VolumeDescription) -> bool {
    volume.driver == LOCAL && volume.options.get("type").is_some_and(|kind| kind == "tmpfs" || kind == "ramfs")
}

fn is_same_directory(seen: &Volume) -> bool {
    let Some(changed) = seen.created_at.as_deref().and_then(|text| text.parse::<Timestamp>().ok()) else {
        return false;
    };
    let path = Path::new(&seen.mountpoint);
    let is_directory = fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
    is_directory
        && [Some(path), path.parent()]
            .into_iter()
            .flatten()
            .filter_map(|directory| fs::metadata(directory).ok())
            .any(|found| found.ctime() == changed.as_second())
}

const LOCAL: &str = "local";
const LOOKS: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: &str = "/d/volumes/v/_data";

    fn volume(driver: &str, options: &[(&str, &str)]) -> VolumeDescription {
        VolumeDescription {
            name: "v".parse().unwrap(),
            driver: driver.into(),
            options: options.iter().map(|&(key, value)| (key.into(), value.into())).collect(),
            labels: [("a".to_owned(), "b".to_owned())].into(),
            mountpoint: DATA.into(),
        }
    }

    #[test]
    fn only_a_proved_directory_that_keeps_its_files_is_read_directly() {
        use Mountpoint::{Ours, Unproved};
        const TMPFS: &[(&str, &str)] = &[("type", "tmpfs"), ("device", "tmpfs")];
        const BIND: &[(&str, &str)] = &[("type", "none"), ("o", "bind"), ("device", "/srv")];
        const NFS: &[(&str, &str)] = &[("type", "nfs"), ("o", "addr=10.0.0.1"), ("device", ":/x")];
        let direct = || Access::Direct(DATA.into());
        let refused = || Access::Refused { reason: String::new() };
        let table = [
            // driver, options, what is at the mountpoint, in use → access
            ("local", &[][..], Ours, false, direct()),
            ("local", &[][..], Ours, true, direct()),
            ("local", &[][..], Unproved, true, Access::Helper),
            ("local", &[("size", "10G")][..], Ours, false, direct()),
            ("local", &[("o", "size=10G")][..], Ours, false, Access::Helper),
            ("local", &[("unheard-of", "")][..], Ours, false, Access::Helper),
            ("local", TMPFS, Ours, true, Access::Helper),
            ("local", TMPFS, Unproved, true, Access::Helper),
            ("local", TMPFS, Ours, false, refused()),
            ("local", TMPFS, Unproved, false, refused()),
            ("local", BIND, Ours, false, Access::Helper),
            ("local", BIND, Ours, true, Access::Helper),
            ("local", NFS, Ours, false, Access::Helper),
            ("sshfs", &[][..], Ours, true, Access::Helper),
            ("sshfs", &[][..], Unproved, false, Access::Helper),
            ("sshfs", TMPFS, Unproved, false, Access::Helper),
        ];
        for (driver, options, mountpoint, in_use, expected) in table {
            let facts = Facts { mounted_inside: None, mountpoint, in_use };
            let access = match decide_access(&volume(driver, options), &facts) {
                Access::Refused { .. } => refused(),
                other => other,
            };
            assert_eq!(access, expected, "{driver} {options:?} {facts:?}");

            // What is mounted into our own container is there, whatever the engine's directory looks like.
            let facts = Facts { mounted_inside: Some("/vsync/volumes/v".into()), ..facts };
            assert_eq!(decide_access(&volume(driver, options), &facts), Access::Inside("/vsync/volumes/v".into()));
        }
    }

    #[test]
    fn a_refusal_names_the_volume_and_the_way_out() {
        let facts = Facts { mounted_inside: None, mountpoint: Mountpoint::Ours, in_use: false };
        let Access::Refused { reason } = decide_access(&volume("local", &[("type", "tmpfs")]), &facts) else {
            panic!("not refused");
        };
        assert!(reason.starts_with("volume v lives in memory"), "{reason}");
        assert!(reason.contains("start one"), "{reason}");
    }

    #[test]
    fn a_directory_is_ours_if_its_change_time_is_what_the_engine_saw() {
        let root = tempfile::tempdir().unwrap();
        let data = root.path().join("_data");
        fs::create_dir(&data).unwrap();
        let changed = fs::metadata(&data).unwrap().ctime();
        let seen = |path: &Path, second| Volume {
            mountpoint: path.to_str().unwrap().to_owned(),
            created_at: Timestamp::from_second(second).ok().map(|time| time.to_string()),
            ..Volume::default()
        };
        assert!(is_same_directory(&seen(&data, changed)));
        assert!(!is_same_directory(&seen(&data, changed - 9)));
        assert!(!is_same_directory(&seen(&root.path().join("absent"), changed)));
        assert!(!is_same_directory(&Volume { created_at: None, ..seen(&data, changed) }));
    }
}
