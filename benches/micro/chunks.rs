//! A chunk's way: cut, recognised, sealed; and back.

use std::sync::Arc;

use vsync::chunk::{Cutter, PARAMETERS, Profile};
use vsync::keys::WriterKeys;
use vsync::vault::{Opener, Sealed, Sealer, Vault};
use vsync_benches::{Amount, Harness};
use vsync_protocol::blob::{BlobKind, Suite};
use vsync_protocol::id::RealmId;
use vsync_protocol::tree::Child;

const LEN: usize = 32 << 20;
const CHUNK: usize = 64 << 10;

fn gear() -> [u64; 256] {
    let bytes = crate::noise(0, 2048);
    std::array::from_fn(|n| u64::from_le_bytes(bytes[n * 8..n * 8 + 8].try_into().expect("eight bytes")))
}

pub(crate) fn vault(suite: Suite) -> Arc<Vault> {
    let keys = WriterKeys { convergence: [2; 32], gear: Box::new(gear()), plaintext: [3; 32] };
    Arc::new(Vault::new(RealmId::from_bytes([1; 16]), suite, 1, keys))
}

pub(crate) fn cutter() -> Cutter {
    Cutter::new(PARAMETERS, &gear()).expect("vsync's own parameters")
}

/// Cuts all of `data`, and says into how many chunks.
pub(crate) fn cut(cutter: &Cutter, data: &[u8]) -> usize {
    let (mut at, mut count) = (0, 0);
    while at < data.len() {
        let end = data.len().min(at + cutter.longest(Profile::General));
        at += cutter.cut(Profile::General, &data[at..end]);
        count += 1;
    }
    count
}

pub(crate) fn run(harness: &Harness) {
    let bytes = Amount::Bytes(LEN);
    let (noise, text) = (crate::noise(1, LEN), crate::text(1, LEN));
    let cutter = cutter();
    let keys = vault(Suite::Aes256Gcm);
    harness.run("cut/noise", bytes, || cut(&cutter, &noise));
    harness.run("cut/text", bytes, || cut(&cutter, &text));
    harness.run("pid", bytes, || noise.chunks(CHUNK).fold(None, |_, chunk| Some(keys.pid(chunk))));
    for (suite, name) in [(Suite::Aes256Gcm, "aes"), (Suite::ChaCha20Poly1305, "chacha")] {
        for (data, kind) in [(&noise, "noise"), (&text, "text")] {
            let vault = vault(suite);
            harness.run(&format!("seal/{name}/{kind}"), bytes, || seal(&vault, data));
            if harness.wants("open") {
                let sealed = seal(&vault, data);
                let copies =
                    || sealed.iter().map(|(sealed, child)| (sealed.blob.to_vec(), sealed.cid, *child)).collect();
                harness.run_with(&format!("open/{name}/{kind}"), bytes, copies, |blobs| open(&vault, blobs));
            }
        }
    }
}

/// Seals chunks of one size.
pub(crate) fn seal(vault: &Arc<Vault>, data: &[u8]) -> Vec<(Sealed, Child)> {
    let mut sealer = Sealer::new(vault.clone()).expect("a sealer");
    let seal = |chunk| {
        let sealed = sealer.seal(BlobKind::Chunk, &[], chunk).expect("a blob");
        let child = Child { ck: sealed.ck, pid: vault.pid(chunk), raw_len: chunk.len() as u32 };
        (sealed, child)
    };
    data.chunks(CHUNK).map(seal).collect()
}

fn open(vault: &Arc<Vault>, blobs: Vec<(Vec<u8>, vsync_protocol::id::Cid, Child)>) -> usize {
    let mut opener = Opener::new(vault.clone()).expect("an opener");
    let mut bytes = 0;
    for (blob, cid, child) in blobs {
        bytes += opener.open(BlobKind::Chunk, cid, &child, blob).expect("a chunk").len();
    }
    bytes
}
