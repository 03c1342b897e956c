//! What single stages of backup and restore cost.
//!
//! ```sh
//! cargo bench -p vsync-benches                                 # all
//! cargo bench -p vsync-benches -- seal open                    # those whose names contain a word
//! cargo bench -p vsync-benches -- catalog --rows=10000000
//! ```

mod catalog;
mod chunks;
mod files;
mod loopback;
mod scan;
mod trees;
mod upload;

use vsync_benches::Harness;

fn main() {
    let rows = std::env::args().find_map(|word| word.strip_prefix("--rows=").map(str::to_owned));
    let rows = rows.map_or(1_000_000, |rows| rows.parse().expect("--rows wants a number"));
    let harness = Harness::new(std::env::args().skip(1));
    chunks::run(&harness);
    scan::run(&harness);
    files::run(&harness);
    trees::run(&harness);
    loopback::run(&harness);
    upload::run(&harness);
    catalog::run(&harness, rows);
}

/// Bytes that nothing compresses, the same for the same seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut data);
    data
}

/// Lines of text that compress about fourfold, as logs and code do.
fn text(seed: u64, len: usize) -> Vec<u8> {
    let noise = noise(seed, len / 8);
    let mut text = Vec::with_capacity(len + 16);
    for pair in noise.chunks_exact(2).cycle() {
        if text.len() >= len {
            break;
        }
        text.extend_from_slice(WORDS[usize::from(pair[0]) % WORDS.len()]);
        text.push(if pair[1] < 24 { b'\n' } else { b' ' });
    }
    text.truncate(len);
    text
}

const WORDS: [&[u8]; 24] = [
    b"volume",
    b"restore",
    b"the",
    b"of",
    b"snapshot",
    b"0x7f",
    b"return",
    b"if",
    b"chunk",
    b"server",
    b"let",
    b"and",
    b"database",
    b"1024",
    b"page",
    b"a",
    b"segment",
    b"None",
    b"index",
    b"self",
    b"is",
    b"2026-11-20",
    b"=",
    b"{",
];
