//! A file system of a round's own, so that it can be filled without harm to others.

use std::fs;
use std::path::{Path, PathBuf};

use crate::shell;

/// More than the server keeps in reserve; the image is sparse.
const SIZE: &str = "4G";

/// A mounted ext4 file system in a file; unmounted and gone when dropped.
#[derive(Debug)]
pub(super) struct Disk {
    image: tempfile::TempPath,
    at: PathBuf,
}

impl Disk {
    /// Mounts a new, empty one at `at`.
    pub(super) fn mount(at: &Path) -> Self {
        let image = tempfile::Builder::new().prefix("vsync-test-disk-").tempfile().expect("an image").into_temp_path();
        let name = image.to_str().expect("a path in UTF-8").to_owned();
        shell::run("truncate", ["-s", SIZE, &name]);
        shell::run("mkfs.ext4", ["-q", "-F", "-m", "0", &name]);
        fs::create_dir_all(at).expect("a directory");
        let disk = Self { image, at: at.to_owned() };
        shell::run("mount", ["-o".as_ref(), "loop".as_ref(), disk.image.as_os_str(), at.as_os_str()]);
        disk
    }

    /// Takes all space but so many bytes, without writing any.
    pub(super) fn fill_but(&self, bytes: u64) -> Filled {
        let space = rustix::fs::statvfs(&self.at).expect("a file system");
        let path = self.at.join("lost+found/filler");
        let size = (space.f_bavail * space.f_frsize).saturating_sub(bytes);
        // It may take less than it was told, when others take space meanwhile.
        let _ = shell::attempt(std::process::Command::new("fallocate").args(["-l", &size.to_string()]).arg(&path));
        Filled(path)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A panic here would hide why it is dropped.
        let _ = shell::attempt(std::process::Command::new("umount").arg("-l").arg(&self.at));
    }
}

/// Space that is taken until this is dropped.
#[derive(Debug)]
pub(super) struct Filled(PathBuf);

impl Drop for Filled {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}
