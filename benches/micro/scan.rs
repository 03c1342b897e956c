//! Reading a file again that has hardly changed: predicted cuts against a full scan, and
//! against one BLAKE3 pass, below which nothing can go that looks at all bytes.

use std::ops::Range;
use std::sync::mpsc;

use vsync::backup::predict::{Cut, Hashed, Predictor, Window};
use vsync::chunk::Profile;
use vsync::tree::{Piece, Reference};
use vsync_benches::{Amount, Harness};
use vsync_protocol::blob::Suite;
use vsync_protocol::id::Cid;
use vsync_protocol::key::ContentKey;
use vsync_protocol::tree::Child;

use crate::chunks;

const LEN: usize = 1 << 30;

/// Overwritten places, 4 KiB each.
const CHANGES: usize = 64;

/// What is hashed at once, and how many such stretches are under way.
const STRETCH: usize = 2 << 20;
const DEPTH: usize = 4;

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
    harness.run("scan/predicted, two threads", Amount::Bytes(LEN), || scan_ahead(pieces.clone(), &data));
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
    let (mut at, mut new, none) = (0, 0, Hashed::default());
    while at < data.len() {
        let end = data.len().min(at + cutter.longest(Profile::General));
        let window = Window { data: &data[at..end], offset: at as u64, last: end == data.len(), hashed: &none };
        let cut = predictor.cut(&vault, &cutter, Profile::General, &window);
        if let Cut::New(len, None) = cut {
            std::hint::black_box(vault.pid(&window.data[..len]));
        }
        new += if matches!(cut, Cut::New(..)) { cut.len() } else { 0 };
        at += cut.len();
    }
    new
}

/// The same as a backup does it: two threads hash what is expected, this one compares.
fn scan_ahead(parent: Vec<Piece>, data: &[u8]) -> usize {
    let (vault, cutter) = (chunks::vault(Suite::Aes256Gcm), chunks::cutter());
    let mut predictor = Predictor::new(parent);
    let (mut at, mut new, mut ordered, mut hashed) = (0, 0, 0, Hashed::default());
    std::thread::scope(|scope| {
        let (mut under_way, mut hands) = (std::collections::VecDeque::new(), Vec::new());
        for _ in 0..2 {
            let (orders, queue) = mpsc::sync_channel::<(Vec<(u64, usize)>, mpsc::Sender<_>)>(DEPTH);
            let vault = &vault;
            scope.spawn(move || {
                for (expected, done) in queue {
                    let pid = |(offset, len): (u64, usize)| {
                        let start = usize::try_from(offset).expect("an offset");
                        (offset, len, vault.pid(&data[start..start + len]))
                    };
                    done.send(expected.into_iter().map(pid).collect::<Vec<_>>()).expect("somebody who waits");
                }
            });
            hands.push(orders);
        }
        let mut read = 0;
        while at < data.len() {
            while ordered < data.len() && under_way.len() < DEPTH {
                let range: Range<u64> = ordered as u64..(ordered + STRETCH).min(data.len()) as u64;
                let (done, pids) = mpsc::channel();
                let expected = predictor.outlook(&cutter, Profile::General, range);
                hands[ordered / STRETCH % 2].send((expected, done)).expect("a thread that hashes");
                ordered += STRETCH;
                under_way.push_back(pids);
            }
            if let Some(pids) = under_way.pop_front() {
                hashed.advance(at as u64, pids.recv().expect("ids"));
                read += STRETCH;
            }
            while at < data.len() && (read >= data.len() || read - at >= cutter.longest(Profile::General)) {
                let end = data.len().min(at + cutter.longest(Profile::General));
                let window =
                    Window { data: &data[at..end], offset: at as u64, last: end == data.len(), hashed: &hashed };
                let cut = predictor.cut(&vault, &cutter, Profile::General, &window);
                new += if matches!(cut, Cut::New(..)) { cut.len() } else { 0 };
                at += cut.len();
            }
        }
    });
    new
}

fn pieces(data: &[u8]) -> Vec<Piece> {
    let (vault, cutter) = (chunks::vault(Suite::Aes256Gcm), chunks::cutter());
    let (mut at, mut pieces) = (0, Vec::new());
    while at < data.len() {
        let end = data.len().min(at + cutter.longest(Profile::General));
        let len = cutter.cut(Profile::General, &data[at..end]);
        let pid = vault.pid(&data[at..at + len]);
        let child = Child { ck: ContentKey::from_bytes([0; 32]), pid, raw_len: len as u32 };
        pieces.push(Piece::Chunk(Reference { cid: Cid::from_bytes([0; 32]), child }));
        at += len;
    }
    pieces
}
