//! The catalog with many rows: what it can take in, and how quickly it tells what it has.

use vsync_benches::{Amount, Harness};
use vsync_protocol::blob::BlobKind;
use vsync_protocol::id::{Cid, PackId};
use vsync_server::catalog::Catalog;
use vsync_server::store::pack::Record;
use vsync_server::store::steps::Steps;

/// Blobs of 64 KiB in a pack of 16 MiB.
const PER_PACK: u64 = 256;

/// Names in one question.
const BATCH: u64 = 512;
const QUESTIONS: u64 = 200;

pub(crate) fn run(harness: &Harness, rows: u64) {
    if !harness.wants("catalog") {
        return;
    }
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let catalog = Catalog::open(&directory.path().join("catalog.sqlite"), Steps::default()).expect("a catalog");
    let begun = std::time::Instant::now();
    let full = rows / PER_PACK;
    (0..full).for_each(|pack| add(&catalog, pack));
    let each = begun.elapsed().as_secs_f64() / rows as f64;
    println!("{:<34} {:>9.0} ns {:>11.0} /s", format!("catalog/fill to {rows} rows"), each * 1e9, 1.0 / each);

    let mut next = full;
    harness.run("catalog/insert", Amount::Items((16 * PER_PACK) as usize), || {
        (next..next + 16).for_each(|pack| add(&catalog, pack));
        next += 16;
    });
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
}

fn add(catalog: &Catalog, pack: u64) {
    let records = (0..PER_PACK)
        .map(|n| Record { cid: blob(pack * PER_PACK + n), offset: n << 16, len: 1 << 16, kind: BlobKind::Chunk })
        .collect();
    let name = PackId::from_bytes(*blake3::hash(&pack.to_le_bytes()).as_bytes());
    catalog.add_pack(name, PER_PACK << 16, records).expect("a pack recorded");
}

fn blob(number: u64) -> Cid {
    Cid::of(&number.to_le_bytes())
}

/// Some other number for each number.
const fn scatter(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16
}
