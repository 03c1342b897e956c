//! A writer of small tar archives (ustar), the form in which an engine takes files and images.

use bytes::Bytes;
use zeroize::Zeroizing;

/// A path that does not fit the format, or that would leave the directory it is unpacked in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadPath(pub(super) String);

/// An archive being written, in memory that is wiped: it may carry keys.
#[derive(Default)]
pub(super) struct Archive(Zeroizing<Vec<u8>>);

impl Archive {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self(Zeroizing::new(Vec::with_capacity(bytes)))
    }

    /// Adds a directory that belongs to root.
    pub(super) fn directory(&mut self, path: &str, mode: u32) -> Result<(), BadPath> {
        self.header(path, mode, 0, b'5')
    }

    /// Adds a file that belongs to root.
    pub(super) fn file(&mut self, path: &str, mode: u32, contents: &[u8]) -> Result<(), BadPath> {
        self.header(path, mode, contents.len(), b'0')?;
        self.reserve(contents.len() + BLOCK);
        self.0.extend_from_slice(contents);
        self.pad(self.0.len().next_multiple_of(BLOCK));
        Ok(())
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> Bytes {
        self.reserve(2 * BLOCK);
        self.pad(self.0.len() + 2 * BLOCK);
        Bytes::from_owner(self.0)
    }

    fn header(&mut self, path: &str, mode: u32, len: usize, kind: u8) -> Result<(), BadPath> {
        if !is_plain(path) {
            return Err(BadPath(path.to_owned()));
        }
        let mut block = [0; BLOCK];
        block[..path.len()].copy_from_slice(path.as_bytes());
        octal(&mut block[100..108], u64::from(mode));
        octal(&mut block[108..116], 0); // owner
        octal(&mut block[116..124], 0); // group
        octal(&mut block[124..136], len as u64);
        octal(&mut block[136..148], 0); // modification time
        block[148..156].fill(b' '); // the checksum counts as blanks in its own sum
        block[156] = kind;
        block[257..265].copy_from_slice(b"ustar\x0000");
        let sum = block.iter().map(|&byte| u64::from(byte)).sum();
        octal(&mut block[148..155], sum);
        self.reserve(BLOCK);
        self.0.extend_from_slice(&block);
        Ok(())
    }

    fn pad(&mut self, len: usize) {
        self.0.resize(len, 0);
    }

    /// Grows into new memory and wipes the old, which `Vec` would free as it is.
    fn reserve(&mut self, more: usize) {
        let needed = self.0.len() + more;
        if needed > self.0.capacity() {
            let mut larger = Zeroizing::new(Vec::with_capacity(needed.next_power_of_two()));
            larger.extend_from_slice(&self.0);
            self.0 = larger;
        }
    }
}

fn is_plain(path: &str) -> bool {
    path.len() < NAME_LEN && path.split('/').all(|part| !matches!(part, "" | "." | "..") && !part.contains('\0'))
}

/// Writes `value` in octal digits and a closing NUL. Sizes up to 8 GiB fit.
fn octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    field[..digits].copy_from_slice(format!("{value:0digits$o}").as_bytes());
}

const BLOCK: usize = 512;
const NAME_LEN: usize = 100;

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_system_s_tar_reads_what_we_write() {
        let mut archive = Archive::default();
        archive.directory("vsync", 0o755).unwrap();
        archive.file("vsync/key", 0o600, b"secret").unwrap();
        archive.file("vsync/empty", 0o644, b"").unwrap();
        archive.file("vsync/block", 0o644, &[7; BLOCK]).unwrap();
        let bytes = archive.finish();

        let mut tar = Command::new("tar")
            .args(["--list", "--verbose", "--numeric-owner", "--file=-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        tar.stdin.take().unwrap().write_all(&bytes).unwrap();
        let output = tar.wait_with_output().unwrap();
        assert!(output.status.success());
        let listing = String::from_utf8(output.stdout).unwrap();
        let seen: Vec<_> = listing
            .lines()
            .map(|line| {
                let words: Vec<_> = line.split_whitespace().collect();
                format!("{} {} {} {}", words[0], words[1], words[2], words[5])
            })
            .collect();
        assert_eq!(
            seen,
            [
                "drwxr-xr-x 0/0 0 vsync",
                "-rw------- 0/0 6 vsync/key",
                "-rw-r--r-- 0/0 0 vsync/empty",
                "-rw-r--r-- 0/0 512 vsync/block",
            ]
        );
    }

    #[test]
    fn a_path_that_leaves_its_directory_is_refused() {
        for path in ["", "/etc/passwd", "../key", "a//b", "a/./b", &"x".repeat(100)] {
            assert_eq!(Archive::default().file(path, 0o600, b"").unwrap_err(), BadPath(path.to_owned()));
        }
    }
}
