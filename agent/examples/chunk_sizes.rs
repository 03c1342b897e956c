//! What different chunk sizes cost: reads versions of a directory, oldest first, and prints for each way of cutting
//! its files how many bytes a backup of each version would send, and how much of that is bookkeeping.
//!
//!     cargo run --release -p vsync --example chunk_sizes -- DIR DIR…
//!
//! Used for `docs/decisions/0002-chunk-sizes.md`. It cuts and compresses as a backup does, and sends nothing.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Instant;
use std::{env, fs, io};

use vsync::chunk::{Cutter, PARAMETERS, Profile, is_zero};
use vsync_protocol::blob::{ENCODED_HEAD_LEN, FIXED_HEADER_LEN, TAG_LEN, padme};
use vsync_protocol::manifest::ChunkerParameters;
use vsync_protocol::tree::node::CHILD_LEN;

/// What a leaf holds for each chunk: its name, how to open it, and its extent.
const PER_CHUNK: usize = 32 + CHILD_LEN + 8;

/// Chunks of a leaf, about. One that is new makes the whole leaf new, and keys do not compress.
const LEAF: usize = 700;

fn main() -> io::Result<()> {
    let versions: Vec<PathBuf> = env::args_os().skip(1).map(PathBuf::from).collect();
    println!(
        "{:<12} {:>8} {:>10} {:>10} {:>10} {:>10}",
        "cut", "version", "chunks", "new MiB", "sent MiB", "of it tree"
    );
    for fixed in [8 << 10, 16 << 10, 32 << 10, 64 << 10] {
        let parameters = ChunkerParameters { fixed, ..PARAMETERS };
        measure(&format!("fixed {}K", fixed >> 10), parameters, Profile::Database, &versions)?;
    }
    for average in [16 << 10, 32 << 10, 64 << 10, 128 << 10] {
        let parameters = ChunkerParameters { min: average / 4, average, max: average * 4, ..PARAMETERS };
        measure(&format!("CDC {}K", average >> 10), parameters, Profile::General, &versions)?;
    }
    Ok(())
}

fn measure(name: &str, parameters: ChunkerParameters, profile: Profile, versions: &[PathBuf]) -> io::Result<()> {
    let mut gear = [0; 256];
    for (byte, entry) in gear.iter_mut().enumerate() {
        let hash = blake3::hash(&[byte as u8]);
        *entry = hash.as_bytes().first_chunk().map_or(0, |first| u64::from_le_bytes(*first));
    }
    let cutter = Cutter::new(parameters, &gear).ok_or(io::ErrorKind::InvalidInput)?;
    let mut known = HashSet::new();
    let mut compressor = zstd::bulk::Compressor::new(1)?;
    for (number, version) in versions.iter().enumerate() {
        let begun = Instant::now();
        let (mut chunks, mut new, mut sent) = (0_usize, 0_usize, 0_usize);
        let mut leaves = HashSet::new();
        for file in files(version)? {
            let data = fs::read(file)?;
            let mut at = 0;
            while at < data.len() {
                let window = &data[at..data.len().min(at + cutter.longest(profile))];
                let chunk = &window[..cutter.cut(profile, window)];
                at += chunk.len();
                if is_zero(chunk) {
                    continue;
                }
                chunks += 1;
                if known.insert(blake3::hash(chunk)) {
                    let payload = compressor.compress(chunk)?.len().min(chunk.len());
                    new += chunk.len();
                    sent += FIXED_HEADER_LEN + padme(ENCODED_HEAD_LEN + payload) + TAG_LEN;
                    leaves.insert(chunks / LEAF);
                }
            }
        }
        let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
        let tree = leaves.len() * LEAF.min(chunks) * PER_CHUNK;
        let (new, all, seconds) = (mib(new), mib(sent + tree), begun.elapsed().as_secs_f64());
        let tree = mib(tree);
        println!("{name:<12} {number:>8} {chunks:>10} {new:>10.2} {all:>10.2} {tree:>10.2}   {seconds:.1} s");
    }
    Ok(())
}

/// All regular files below a directory, sorted.
fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            found.extend(files(&entry.path())?);
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}
