//! The catalog with many rows: what it can take in, and how quickly it tells what it has.

use vsync_benches::{Amount, Harness};
use vsync_protocol::blob::BlobKind;
use vsync_protocol::id::{Cid, PackId};
use vsync_server::catalog::Catalog;
use vsync_server::store::health::Health;
use vsync_server::store::pack::Record;

/// Blobs in a pack of 16 MiB: chunks of large files, and small files.
const LARGE: u64 = 256;
const SMALL: u64 = 4096;

/// Blobs recorded at once while the catalog is filled.
const FILL: u64 = 32_768;

/// Names in one question.
const BATCH: u64 = 512;
const QUESTIONS: u64 = 200;

pub(crate) fn run(harness: &Harness, rows: u64) {
    if !harness.wants("catalog") {
        return;
    }
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let catalog = Catalog::open(&directory.path().join("catalog.sqlite"), Health::default()).expect("a catalog");
    let begun = std::time::Instant::now();
    let mut next = 0;
    while next < rows {
        add(&catalog, &mut next, FILL);
    }
    let each = begun.elapsed().as_secs_f64() / rows as f64;
    println!("{:<34} {:>9.0} ns {:>11.0} /s", format!("catalog/fill to {rows} rows"), each * 1e9, 1.0 / each);

    for (name, blobs) in [("catalog/insert, large blobs", LARGE), ("catalog/insert, small blobs", SMALL)] {
        harness.run(name, Amount::Items((8 * blobs) as usize), || {
            (0..8).for_each(|_| add(&catalog, &mut next, blobs));
        });
    }
    let mut question = 0;
    for (name, first) in [("catalog/have, present", 0), ("catalog/have, absent", rows * 10)] {
        harness.run(name, Amount::Items((QUESTIONS * BATCH) as usize), || {
            for _ in 0..QUESTIONS {
                question += 1;
                let names: Vec<Cid> = (0..BATCH).map(|n| blob(first + scatter(question * BATCH + n) % rows)).collect();
                let found = catalog.have(&names).expect("an answer");
                assert_eq!(found.len(), names.len());
            }
        });
    }
    if let Some(peak) = peak_memory() {
        println!("{:<34} {:>9} MiB of memory at most", "catalog", peak >> 20);
    }
}

/// The most that this process has had in memory so far, in bytes, as the kernel notes it.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}

/// Records a pack with the next `count` blobs.
fn add(catalog: &Catalog, next: &mut u64, count: u64) {
    let records = (0..count)
        .map(|n| Record { cid: blob(*next + n), offset: n << 12, len: 1 << 12, kind: BlobKind::Chunk })
        .collect();
    let name = PackId::from_bytes(*blake3::hash(&next.to_le_bytes()).as_bytes());
    catalog.add_pack(name, count << 12, records).expect("a pack recorded");
    *next += count;
}

fn blob(number: u64) -> Cid {
    Cid::of(&number.to_le_bytes())
}

/// Some other number for each number.
const fn scatter(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16
}
