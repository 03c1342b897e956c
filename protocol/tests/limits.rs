//! A10: every limit that a decoder keeps, one below it, at it, and one above. Those that only a running server keeps are
//! tested there, over the wire.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use minicbor::Encoder;
use vsync_protocol::blob::{BlobKind, Codec, Encoded, Header, Suite, padme, write_encoded_head, write_header};
use vsync_protocol::id::{Cid, RealmId};
use vsync_protocol::limits::{
    MAX_BLOB_LEN, MAX_CIDS, MAX_EXTENTS, MAX_MANIFEST_LEN, MAX_MESSAGE_LEN, MAX_NAME_LEN, MAX_PATH_LEN, MAX_RAW_LEN,
    MAX_REFS, MAX_UPLOAD_STREAMS,
};
use vsync_protocol::manifest::{Body, Manifest, SnapshotKind, assemble};
use vsync_protocol::tree::{EntryPath, Leaf, Record};
use vsync_protocol::wire::{Cids, FrameHead, UploadHead, message_len};

/// Asserts that `takes` says yes below and at `limit`, and no above.
#[track_caller]
fn exactly(limit: usize, takes: impl Fn(usize) -> bool) {
    assert_eq!([limit - 1, limit, limit + 1].map(takes), [true, true, false], "{limit}");
}

fn length(value: usize) -> u32 {
    u32::try_from(value).unwrap()
}

#[test]
fn heads_of_messages_frames_and_streams() {
    exactly(MAX_MESSAGE_LEN, |len| message_len(length(len).to_le_bytes()) == Some(len));
    exactly(MAX_BLOB_LEN, |len| FrameHead::decode(&FrameHead { len, cid: Cid::of(b"x") }.encode()).is_some());
    // Streams are numbered from 0.
    let last = usize::try_from(MAX_UPLOAD_STREAMS).unwrap() - 1;
    exactly(last, |stream| UploadHead::decode(UploadHead { session: 1, stream: length(stream) }.encode()).is_some());
}

#[test]
fn blobs_and_what_is_in_them() {
    let blob = |refs: u32, len: usize| {
        let mut blob = Vec::new();
        write_header(&mut blob, BlobKind::Leaf, Suite::Aes256Gcm, 1, &[]);
        blob[10..14].copy_from_slice(&refs.to_le_bytes());
        blob.resize(len, 0);
        blob
    };
    exactly(MAX_BLOB_LEN, |len| Header::parse(&blob(0, len)).is_ok());
    exactly(MAX_REFS, |refs| Header::parse(&blob(length(refs), MAX_BLOB_LEN)).is_ok());
    // Compressed, so that its length is only said.
    exactly(MAX_RAW_LEN, |raw_len| {
        let mut encoded = Vec::new();
        write_encoded_head(&mut encoded, Codec::Zstd, length(raw_len), 100);
        encoded.resize(encoded.len() + 100, 7);
        encoded.resize(padme(encoded.len()), 0);
        Encoded::parse(&encoded).is_ok()
    });
}

/// A CBOR byte string.
fn bytes(len: usize) -> Vec<u8> {
    let mut encoded = Vec::new();
    Encoder::new(&mut encoded).bytes(&vec![0; len]).unwrap();
    encoded
}

#[test]
fn lists_in_messages_and_nodes() {
    exactly(MAX_CIDS, |count| minicbor::decode::<Cids>(&bytes(count * Cid::LEN)).is_ok());
    exactly(MAX_EXTENTS, |count| minicbor::decode::<Record>(&bytes(count * 8)).is_ok());
    exactly(MAX_REFS, |count| {
        let mut leaf = Vec::new();
        let mut encoder = Encoder::new(&mut leaf);
        encoder.map(2).unwrap().u8(0).unwrap().bytes(&vec![0; count * 52]).unwrap();
        encoder.u8(1).unwrap().array(0).unwrap();
        minicbor::decode::<Leaf>(&leaf).is_ok()
    });
}

#[test]
fn names_and_paths() {
    exactly(MAX_NAME_LEN, |len| EntryPath::new(vec![b'x'; len]).is_ok());
    exactly(MAX_NAME_LEN, |len| EntryPath::root().child(&vec![b'x'; len]).is_ok());
    let path = |len: usize| (0..len).map(|at| if at % 200 == 199 { b'/' } else { b'x' }).collect::<Vec<u8>>();
    exactly(MAX_PATH_LEN, |len| EntryPath::new(path(len)).is_ok());
    exactly(MAX_PATH_LEN, |len| EntryPath::new(path(len - 201)).unwrap().child(&[b'x'; 200]).is_ok());
}

#[test]
fn manifests() {
    let body = Body {
        realm: RealmId::from_bytes([1; 16]),
        volume: "data".parse().unwrap(),
        source: "host".parse().unwrap(),
        sequence: 1,
        previous: None,
        epoch: 1,
        root: Cid::of(b"x"),
        kind: SnapshotKind::Full,
        started: 0,
        witness: None,
        tags: vec![],
    };
    let body = minicbor::to_vec(&body).unwrap();
    let around = assemble(&body, &[], |_| [0; 64]).len();
    exactly(MAX_MANIFEST_LEN, |len| Manifest::parse(&assemble(&body, &vec![7; len - around], |_| [0; 64])).is_ok());
}
