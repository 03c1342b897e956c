//! Reading a file again that has hardly changed: predicted cuts against a full scan, and
//! against one BLAKE3 pass, below which nothing can go that looks at all bytes.

use vsync::backup::predict::{Cut, Predictor};
use vsync::chunk::Profile;
use vsync::tree::{Piece, Reference};
use vsync_benches::{Amount, Harness};
use vsync_protocol::blob::Suite;
use vsync_protocol::id::Cid;
use vsync_protocol::tree::Child;

use crate::chunks;

const LEN: usize = 1 << 30;

/// Overwritten places, 4 KiB each.
const CHANGES: usize = 64;

pub(crate) fn run(harness: &Harness) {
    if !harness.wants("scan") {
        return;
    }
    let mut data = crate::noise(7, LEN);
    let pieces = pieces(&data);
    for change in 0..CHANGES {
        let at = LEN / CHANGES * change + 12_345;
        data[at..at + 4096].fill(0xa5);
    }
    let middle = LEN / 2;
    data.copy_within(middle..LEN - (1 << 20), middle + (1 << 20));
    harness.run("scan/predicted", Amount::Bytes(LEN), || scan(pieces.clone(), &data));
    harness.run("scan/full", Amount::Bytes(LEN), || scan(Vec::new(), &data));
    harness.run("scan/blake3", Amount::Bytes(LEN), || {
        data.chunks(64 << 10).fold(None, |_, chunk| Some(blake3::keyed_hash(&[3; 32], chunk)))
    });
}

/// What is new in `data`, in bytes. Without a parent nothing is recognised, so its ids are
/// computed here, as a sealer would.
fn scan(parent: Vec<Piece>, data: &[u8]) -> usize {
    let (vault, cutter) = (chunks::vault(Suite::Aes256Gcm), chunks::cutter());
    let mut predictor = Predictor::new(parent);
    let (mut at, mut new) = (0, 0);
    while at < data.len() {
        let end = data.len().min(at + cutter.longest(Profile::General));
        let window = &data[at..end];
        let cut = predictor.cut(&vault, &cutter, Profile::General, window, at as u64, end == data.len());
        if let Cut::New(len, None) = cut {
            std::hint::black_box(vault.pid(&window[..len]));
        }
        new += if matches!(cut, Cut::New(..)) { cut.len() } else { 0 };
        at += cut.len();
    }
    new
}

fn pieces(data: &[u8]) -> Vec<Piece> {
    let (vault, cutter) = (chunks::vault(Suite::Aes256Gcm), chunks::cutter());
    let (mut at, mut pieces) = (0, Vec::new());
    while at < data.len() {
        let end = data.len().min(at + cutter.longest(Profile::General));
        let len = cutter.cut(Profile::General, &data[at..end]);
        let pid = vault.pid(&data[at..at + len]);
        let child = Child { ck: [0; 32], pid, raw_len: len as u32 };
        pieces.push(Piece::Chunk(Reference { cid: Cid::from_bytes([0; 32]), child }));
        at += len;
    }
    pieces
}
