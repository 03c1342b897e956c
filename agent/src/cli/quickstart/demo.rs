//! The demonstration volume: a little of everything that volumes hold, and a little change.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;

/// Bytes of the file that stands for a database.
const DATABASE: u64 = 24 << 20;

/// The size of its pages.
const PAGE: u64 = 8 << 10;

/// How many small files there are.
const DOCUMENTS: u64 = 300;

/// Bytes of the file that is mostly a hole.
const SPARSE: u64 = 64 << 20;

/// The last file that [`fill`] writes: with it, the volume is complete.
const COMPLETE: &str = "README";

/// Fills `root`, unless that was done before. Whether it was.
pub(super) fn fill(root: &Path) -> io::Result<bool> {
    if root.join(COMPLETE).exists() {
        return Ok(true);
    }
    fs::create_dir_all(root.join("database"))?;
    let mut database = File::create(root.join("database/16384"))?;
    for page in 0..DATABASE / PAGE {
        database.write_all(&page_of(page, 0))?;
    }
    fs::create_dir_all(root.join("documents"))?;
    for number in 0..DOCUMENTS {
        let line = format!("Document {number} has this line, and has it more than once.\n");
        let file = root.join(format!("documents/{number:03}.txt"));
        fs::write(&file, line.repeat(10 + number as usize))?;
    }
    fs::set_permissions(root.join("documents/000.txt"), fs::Permissions::from_mode(0o600))?;
    let sparse = File::create(root.join("mostly-a-hole"))?;
    sparse.set_len(SPARSE)?;
    sparse.write_all_at(b"the only words in it", SPARSE / 2)?;
    again(symlink("database/16384", root.join("link")))?;
    again(fs::hard_link(root.join("documents/001.txt"), root.join("second-name-of-001")))?;
    fs::write(root.join(COMPLETE), "Made by `vsync quickstart`; nothing here is of use to anybody.\n")?;
    Ok(false)
}

/// Changes a few pages, a few documents. What, in words.
pub(super) fn change(root: &Path) -> io::Result<String> {
    // Other bytes each time, so that every run has something to send.
    let stamp = fs::metadata(root.join("database/16384"))?.modified()?;
    let seed = stamp.elapsed().map_or(1, |age| age.as_nanos() as u64 | 1);
    let database = OpenOptions::new().write(true).open(root.join("database/16384"))?;
    let pages = [1, 700, 2000];
    for page in pages {
        database.write_all_at(&page_of(page, seed), page * PAGE)?;
    }
    let mut document = OpenOptions::new().append(true).open(root.join("documents/007.txt"))?;
    writeln!(document, "A line that was added, {seed}.")?;
    fs::write(root.join("documents/new.txt"), format!("A document that was not there, {seed}.\n"))?;
    Ok(format!("{} pages of a database, a line in a document, a new document", pages.len()))
}

/// Half noise, half text: neither a compressor nor a deduplicator gets it for nothing.
fn page_of(page: u64, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; PAGE as usize / 2];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&page.to_le_bytes()).update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    let row = format!("row of page {page}, written at {seed}; ");
    bytes.extend(row.bytes().cycle().take(PAGE as usize / 2));
    bytes
}

/// What an interrupted run made already is no error.
fn again(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}
