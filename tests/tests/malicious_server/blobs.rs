//! Blobs that are not what was asked for.

use vsync_protocol::id::Cid;
use vsync_protocol::limits::MAX_BLOB_LEN;
use vsync_protocol::wire::{FrameHead, Reply, Request};
use vsync_tests::{Answer, MemoryGroup};

use super::stage::{Stage, blobs, is_chunk, said};

#[test]
fn wrong_blobs_are_never_taken_for_right_ones() {
    let stage = Stage::new(1);
    type Change = fn(&mut Vec<u8>);
    let changes: [(&str, Change, &[i32]); 7] = [
        ("a bit of the first byte", |blob| blob[0] ^= 1, &[13]),
        (
            "a bit of the middle",
            |blob| {
                let at = blob.len() / 2;
                blob[at] ^= 0x10;
            },
            &[13],
        ),
        (
            "a bit of the last byte",
            |blob| {
                let at = blob.len() - 1;
                blob[at] ^= 0x80;
            },
            &[13],
        ),
        ("one byte less", |blob| blob.truncate(blob.len() - 1), &[13]),
        // Longer than it can be, or only longer than it is.
        ("one byte more", |blob| blob.push(0), &[1, 13]),
        ("nothing", Vec::clear, &[13]),
        ("zeros", |blob| blob.fill(0), &[13]),
    ];
    for chunks in [true, false] {
        for (what, change, codes) in changes {
            let output = stage.restore(what, blobs(chunks, change));
            said(what, &output, codes, "");
        }
    }
    let output = stage.restore("blobs under each other's names", |_, mut honest| {
        let wrong: Vec<Vec<u8>> = honest.blobs.iter().rev().map(|(_, blob)| blob.clone()).collect();
        let chunks = honest.blobs.iter().all(|(_, blob)| is_chunk(blob));
        if chunks {
            honest.blobs.iter_mut().zip(wrong).for_each(|((_, blob), wrong)| *blob = wrong);
        }
        honest.say()
    });
    said("blobs under each other's names", &output, &[1, 13], "");
    stage.recovers();
}

#[test]
fn frames_that_were_not_asked_for_are_refused() {
    let stage = Stage::new(2);
    let output = stage.restore("another blob", |_, mut honest| {
        for (cid, _) in &mut honest.blobs {
            *cid = Cid::of(b"something else");
        }
        honest.say()
    });
    said("another blob", &output, &[1], "was not asked for");
    let output = stage.restore("each twice", |_, mut honest| {
        honest.blobs = honest.blobs.iter().flat_map(|frame| [frame.clone(), frame.clone()]).collect();
        honest.say()
    });
    // Enough when the second one comes last: nobody reads on.
    said("each twice", &output, &[0, 1], "");
    let output = stage.restore("longer than any", |request, mut honest| match request {
        Request::Fetch { cids } => {
            honest.blobs.clear();
            let head = FrameHead { len: MAX_BLOB_LEN + 1, cid: cids.as_slice()[0] };
            Answer::Bytes([honest.bytes(), head.encode().to_vec()].concat())
        }
        _ => honest.say(),
    });
    said("longer than any", &output, &[1], "longer than any may be");
    let output = stage.restore("2^32 - 1 bytes", |request, mut honest| match request {
        Request::Fetch { cids } => {
            honest.blobs.clear();
            let head = [&u32::MAX.to_le_bytes()[..], cids.as_slice()[0].as_bytes()].concat();
            Answer::Endless([honest.bytes(), head].concat(), vec![0; 1 << 20])
        }
        _ => honest.say(),
    });
    said("2^32 - 1 bytes", &output, &[1], "longer than any may be");
    let output = stage.restore("and on and on", |_, honest| match honest.reply {
        Reply::Fetching => Answer::Endless(honest.bytes(), vec![0; 1 << 20]),
        _ => honest.say(),
    });
    said("and on and on", &output, &[0], "");
}

/// The agent would hold all that it has asked for: what is sent must be no longer than what was asked for.
#[test]
fn blobs_that_are_too_long_do_not_fill_memory() {
    let stage = Stage::new(3);
    stage.site.data.many("tiny", 20_000, 60);
    stage.honest().run(["backup", "data"]).success();
    let (vsync, _liar) = stage.victim(|_, honest| {
        let length = |blob: &[u8]| if is_chunk(blob) { MAX_BLOB_LEN } else { blob.len() };
        let lengths = honest.blobs.iter().map(|(_, blob)| length(blob)).collect();
        Answer::Lengths(honest, lengths)
    });
    let group = MemoryGroup::new("liar", 256 << 20);
    let target = vsync_tests::scratch();
    let restore = ["restore", "data", "--source", "host", "--to-path", target.path().to_str().unwrap()];
    let output = vsync.through(group.prefix()).run(restore);
    assert_eq!(group.kills(), 0, "{output}");
    said("long blobs", &output, &[1], "longer than it can be");
}
