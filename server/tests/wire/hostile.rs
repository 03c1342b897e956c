//! Machines that may connect, and mean harm (A07, A08, A09), and those that may not (A02).
//! Whatever they do, they are refused, and an honest machine beside them goes on.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use vsync_protocol::blob::{BlobKind, FIXED_HEADER_LEN};
use vsync_protocol::id::Cid;
use vsync_protocol::limits::{MAX_REFS, MAX_TREE_DEPTH};
use vsync_protocol::manifest::manifest_hash;
use vsync_protocol::wire::{Cids, FrameHead, RefusalCode, Reply, Request, UploadHead, encode_message};

use crate::bed::{Bed, Client, PRODUCTION, WRITER, blob, refused, root, tree};

/// An honest backup succeeds, and what it brought comes back.
async fn honest(bed: &Bed, seed: u8) {
    let client = bed.open("honest").await;
    let blobs = tree(seed, 6, 10_000);
    client.store(&blobs).await;
    let manifest = client.manifest("honest", "production", root(&blobs));
    let reply = client.commit(manifest).await;
    assert!(matches!(reply, Reply::Committed(_)), "{reply:?}");
    let cids: Vec<Cid> = blobs.iter().map(|blob| Cid::of(blob)).collect();
    let fetched = client.fetch(&cids).await.unwrap();
    assert!(blobs.iter().all(|blob| fetched[&Cid::of(blob)] == *blob));
}

async fn writer(bed: &Bed) -> Client {
    let mut client = bed.connect(WRITER).await.unwrap();
    client.hello().await;
    client.open("data").await;
    client
}

/// Sends raw bytes on an upload stream of the client's session and ends it.
async fn send_raw(client: &Client, bytes: &[u8]) {
    let mut send = client.quic.open_uni().await.unwrap();
    // The server may stop the stream at any byte.
    let _ = send.write_all(&UploadHead { session: client.session, stream: 0 }.encode()).await;
    let _ = send.write_all(bytes).await;
    let _ = send.finish();
    let _ = send.stopped().await;
}

fn frame(cid: Cid, blob: &[u8]) -> Vec<u8> {
    [&FrameHead { len: blob.len(), cid }.encode()[..], blob].concat()
}

/// A07: bytes that are no blob, sent under the very name that they have.
#[tokio::test]
async fn what_is_no_blob_is_refused_whatever_its_name() {
    let bed = Bed::new();
    let good = blob(BlobKind::Leaf, &[Cid::of(b"x")], b"good");
    let edit = |at: usize, bytes: &[u8]| {
        let mut blob = good.clone();
        blob[at..at + bytes.len()].copy_from_slice(bytes);
        blob
    };
    let cases = [
        ("nothing", vec![]),
        ("too short", good[..FIXED_HEADER_LEN + 24].to_vec()),
        ("another format", edit(0, b"VSB2")),
        ("an unknown kind", edit(4, &[9])),
        ("kind 0", edit(4, &[0])),
        ("an unknown suite", edit(5, &[3])),
        ("more references than bytes", edit(10, &1000_u32.to_le_bytes())),
        ("2^31 references", edit(10, &(1_u32 << 31).to_le_bytes())),
        ("2^32 - 1 references", edit(10, &u32::MAX.to_le_bytes())),
    ];
    for (what, bytes) in cases {
        let client = writer(&bed).await;
        let cid = Cid::of(&bytes);
        send_raw(&client, &frame(cid, &bytes)).await;
        let reply = client.flush(&[1]).await;
        assert_eq!(refused(&reply), Some(RefusalCode::Malformed), "{what}: {reply:?}");
        let client = writer(&bed).await;
        assert_eq!(client.have(&[bytes]).await, [false], "{what}");
    }
    honest(&bed, 1).await;
}

/// A08: whoever guesses another machine's chunk cannot be there first with something else.
#[tokio::test]
async fn a_name_cannot_be_taken_by_other_bytes() {
    let bed = Bed::new();
    let victim = blob(BlobKind::Chunk, &[], b"what the victim will back up");
    for garbage in [blob(BlobKind::Chunk, &[], b"garbage"), vec![], victim[..victim.len() - 1].to_vec()] {
        let client = writer(&bed).await;
        send_raw(&client, &frame(Cid::of(&victim), &garbage)).await;
        assert_eq!(refused(&client.flush(&[1]).await), Some(RefusalCode::WrongName));
    }
    let client = bed.open("data").await;
    assert_eq!(client.have(std::slice::from_ref(&victim)).await, [false]);
    client.store(std::slice::from_ref(&victim)).await;
    assert_eq!(client.fetch(&[Cid::of(&victim)]).await.unwrap()[&Cid::of(&victim)], victim);
}

/// A07: uploads that end, or are torn off, inside a head, a name, or a blob.
#[tokio::test]
async fn half_an_upload_is_nothing() {
    let bed = Bed::new();
    for (number, cut) in (0_u8..).zip([1, 4, 20, 36, 37, 1000, 5050]) {
        for reset in [false, true] {
            let whole = blob(BlobKind::Chunk, &[], &[number * 2 + u8::from(reset); 5000]);
            let bytes = &frame(Cid::of(&whole), &whole)[..cut];
            let client = writer(&bed).await;
            if reset {
                let mut send = client.quic.open_uni().await.unwrap();
                send.write_all(&UploadHead { session: client.session, stream: 0 }.encode()).await.unwrap();
                send.write_all(bytes).await.unwrap();
                send.reset(1_u32.into()).unwrap();
            } else {
                send_raw(&client, bytes).await;
            }
            assert_eq!(client.have(std::slice::from_ref(&whole)).await, [false], "cut at {cut}");
            // The session is none the worse.
            client.upload(1, std::slice::from_ref(&whole)).await;
            assert_eq!(client.flush(&[0, 1]).await, Reply::Flushed, "cut at {cut}");
            assert_eq!(client.have(std::slice::from_ref(&whole)).await, [true]);
        }
    }
    honest(&bed, 1).await;
}

/// A07, A10: a node has at most so many children, as the server counts them.
#[tokio::test]
async fn a_node_has_at_most_so_many_children() {
    let bed = Bed::new();
    let chunk = blob(BlobKind::Chunk, &[], b"chunk");
    for (count, good) in [(MAX_REFS - 1, true), (MAX_REFS, true), (MAX_REFS + 1, false)] {
        let client = bed.open(&format!("v{count}")).await;
        let leaf = blob(BlobKind::Leaf, &vec![Cid::of(&chunk); count.min(MAX_REFS)], b"");
        let leaf = if good { leaf } else { one_child_more(leaf) };
        let top = blob(BlobKind::Root, &[Cid::of(&leaf)], b"");
        client.upload(0, &[chunk.clone(), leaf, top.clone()]).await;
        let flushed = client.flush(&[3]).await;
        if good {
            assert_eq!(flushed, Reply::Flushed);
            let manifest = client.manifest(&format!("v{count}"), "production", Cid::of(&top));
            assert!(matches!(client.commit(manifest).await, Reply::Committed(_)), "{count}");
        } else {
            assert_eq!(refused(&flushed), Some(RefusalCode::Malformed));
        }
    }
}

/// By hand, since the writer of headers does not write it.
fn one_child_more(leaf: Vec<u8>) -> Vec<u8> {
    let mut more = leaf[..FIXED_HEADER_LEN].to_vec();
    let count = u32::try_from(MAX_REFS + 1).unwrap();
    more[10..14].copy_from_slice(&count.to_le_bytes());
    more.extend_from_slice(&[0; 32]);
    more.extend_from_slice(&leaf[FIXED_HEADER_LEN..]);
    more
}

/// A07, A09: each node names the one below it many times, so that there are 500 to the
/// power of 14 ways through the tree. The server goes each way once.
#[tokio::test]
async fn a_tree_that_folds_into_itself_is_walked_once() {
    let bed = Bed::new();
    let mut client = bed.open("data").await;
    let mut blobs = vec![blob(BlobKind::Chunk, &[], b"only"), blob(BlobKind::Leaf, &[], b"")];
    blobs[1] = blob(BlobKind::Leaf, &vec![Cid::of(&blobs[0]); 500], b"");
    for level in 2..MAX_TREE_DEPTH {
        let kind = if level + 1 == MAX_TREE_DEPTH { BlobKind::Root } else { BlobKind::Inner };
        let below = Cid::of(blobs.last().unwrap());
        blobs.push(blob(kind, &vec![below; 500], b""));
    }
    client.store(&blobs).await;
    let manifest = client.manifest("data", "production", root(&blobs));
    let reply = tokio::time::timeout(Duration::from_secs(60), client.commit(manifest.clone())).await.unwrap();
    assert!(matches!(reply, Reply::Committed(_)), "{reply:?}");
    // The same with a hole at the bottom: each absent name is told once.
    let absent = Cid::of(b"absent");
    let mut blobs = vec![blob(BlobKind::Leaf, &vec![absent; 500], b"")];
    for level in 1..MAX_TREE_DEPTH {
        let kind = if level + 1 == MAX_TREE_DEPTH { BlobKind::Root } else { BlobKind::Inner };
        let below = Cid::of(blobs.last().unwrap());
        blobs.push(blob(kind, &vec![below; 500], b""));
    }
    client.last = Some((1, manifest_hash(&manifest)));
    client.store_on(1, &blobs).await;
    let manifest = client.manifest("data", "production", root(&blobs));
    let reply = tokio::time::timeout(Duration::from_secs(60), client.commit(manifest)).await.unwrap();
    assert_eq!(reply, Reply::Missing(Cids::new(vec![absent])));
    honest(&bed, 1).await;
}

/// A07: manifests that are somebody else's, old, ahead, or signed by another.
#[tokio::test]
async fn a_machine_speaks_only_for_itself_and_in_order() {
    let bed = Bed::new();
    let mut victim = bed.open("data").await;
    let blobs = tree(3, 4, 1000);
    victim.store(&blobs).await;
    let first = victim.manifest("data", "production", root(&blobs));
    assert!(matches!(victim.commit(first.clone()).await, Reply::Committed(_)));
    victim.open("data").await;
    let second = victim.manifest("data", "production", root(&blobs));

    let mut thief = writer(&bed).await;
    thief.last = Some((1, manifest_hash(&first)));
    let forged = thief.manifest("data", "production", root(&blobs));
    for (what, manifest) in [("its last", first.clone()), ("its next", second.clone()), ("a forged one", forged)] {
        assert_eq!(refused(&thief.commit(manifest).await), Some(RefusalCode::BadManifest), "{what}");
    }
    let own = |last| {
        let client = &thief;
        let mut body =
            vsync_protocol::manifest::Manifest::parse(&client.manifest("data", "writer", root(&blobs))).unwrap().body;
        body.sequence = last;
        client.sign(&body)
    };
    for sequence in [0, 2, 3, u64::MAX - 1, u64::MAX] {
        assert_eq!(refused(&thief.commit(own(sequence)).await), Some(RefusalCode::OutOfSequence), "{sequence}");
    }
    // None of it was in the victim's way, and repeating the old changes nothing.
    assert!(matches!(victim.commit(second.clone()).await, Reply::Committed(receipt) if receipt.log.index == 2));
    assert!(matches!(victim.commit(first).await, Reply::Committed(receipt) if receipt.log.index == 1));
    victim.open("data").await;
    assert_eq!(victim.last, Some((2, manifest_hash(&second))));
}

/// What this process has of a kind that is counted in `/proc/self/status`.
fn status(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// A09: thousands of questions, sessions and streams, asked and dropped, leave an honest
/// machine its place and this process its threads.
#[tokio::test]
async fn floods_of_requests_drown_nobody() {
    let bed = Bed::new();
    honest(&bed, 1).await;
    let threads = status("Threads:");
    let client = writer(&bed).await;
    let have = encode_message(&Request::Have { session: client.session, cids: Cids::new(vec![Cid::of(b"x"); 1024]) });
    let open = encode_message(&Request::Open { volume: "data".parse().unwrap() });
    // Asked by thousands, answers not read.
    for message in [&have, &open] {
        for _ in 0..2000 {
            let opened = tokio::time::timeout(Duration::from_secs(20), client.quic.open_bi()).await.unwrap();
            let (mut send, recv) = opened.unwrap();
            send.write_all(message).await.unwrap();
            send.finish().unwrap();
            drop(recv);
        }
    }
    honest(&bed, 2).await;
    // Upload streams that are opened and dropped without a byte, or with a session that is not.
    for number in 0..500_u32 {
        let mut send = tokio::time::timeout(Duration::from_secs(20), client.quic.open_uni()).await.unwrap().unwrap();
        if number % 2 == 0 {
            let _ = send.write_all(&UploadHead { session: number, stream: number % 16 }.encode()).await;
        }
        drop(send);
    }
    honest(&bed, 3).await;
    client.quic.close(0_u32.into(), b"");
    let begun = Instant::now();
    while status("Threads:") > threads + 64 {
        assert!(begun.elapsed() < Duration::from_secs(60), "{} threads", status("Threads:"));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A09: connections that are made and say nothing.
#[tokio::test]
async fn silent_connections_leave_room_for_others() {
    let bed = Bed::new();
    let mut silent = Vec::new();
    for _ in 0..32 {
        silent.push(bed.connect(WRITER).await.unwrap());
    }
    assert!(bed.connect(WRITER).await.unwrap().quic.closed().await.to_string().contains("too many"));
    honest(&bed, 1).await;
    drop(silent);
}

/// A02: datagrams of every shape, thousands of them, from somebody who has no key.
#[tokio::test]
async fn noise_on_the_port_is_not_even_noticed() {
    let bed = Bed::new();
    honest(&bed, 1).await;
    let address = bed.server.as_ref().unwrap().address();
    let before = status("VmRSS:");
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut random = blake3::Hasher::new().update(b"noise 1").finalize_xof();
    for number in 0..20_000_u32 {
        let mut length = [0; 2];
        random.fill(&mut length);
        // Long enough for an Initial in most cases.
        let mut packet = vec![0; usize::from(u16::from_le_bytes(length)) % 1500 + 1];
        random.fill(&mut packet);
        if number % 2 == 0 && packet.len() > 32 {
            // A long header of QUIC 1: Initial, 0-RTT, Handshake, Retry in turn, with ids of 8 bytes.
            packet[0] = 0xc0 | u8::try_from(number / 2 % 4).unwrap() << 4;
            packet[1..5].copy_from_slice(&1_u32.to_be_bytes());
            packet[5] = 8;
            packet[14] = 8;
            packet[23] = 0;
        }
        let _ = socket.send_to(&packet, address);
        if number % 500 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    honest(&bed, 2).await;
    let grown = status("VmRSS:").saturating_sub(before);
    assert!(grown < 64 << 10, "{grown} KiB more");
}

/// A09, N11: a request that comes byte by byte is given up in time, and a reader that never
/// reads is let go of; both hold up nobody.
#[tokio::test]
async fn slow_peers_are_given_up() {
    let bed = Bed::new();
    honest(&bed, 1).await;
    let slow = writer(&bed).await;
    let message = encode_message(&Request::Have { session: slow.session, cids: Cids::new(vec![Cid::of(b"x"); 1000]) });
    let trickle = async {
        let (mut send, mut recv) = slow.quic.open_bi().await.unwrap();
        let mut given_up = std::pin::pin!(crate::bed::read_reply(&mut recv));
        for byte in message.chunks(1) {
            send.write_all(byte).await.unwrap();
            if let Ok(reply) = tokio::time::timeout(Duration::from_millis(50), &mut given_up).await {
                return reply.unwrap();
            }
        }
        panic!("the whole request was taken");
    };
    let reader = bed.open("large").await;
    let blobs = tree(9, 40, 1 << 20);
    reader.store(&blobs).await;
    let cids: Vec<Cid> = blobs.iter().map(|blob| Cid::of(blob)).collect();
    // Forty megabytes asked for many times, of which nothing is read.
    let mut unread = Vec::new();
    for _ in 0..20 {
        let (mut send, recv) = reader.quic.open_bi().await.unwrap();
        send.write_all(&encode_message(&Request::Fetch { cids: Cids::new(cids.clone()) })).await.unwrap();
        send.finish().unwrap();
        unread.push(recv);
    }
    let others = async {
        for seed in 2..6 {
            honest(&bed, seed).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let (reply, ()) = tokio::join!(trickle, others);
    assert_eq!(refused(&reply), Some(RefusalCode::Malformed));
    // The one that never read may still read it all.
    assert_eq!(unread.len(), 20);
    drop(unread);
    assert!(reader.fetch(&cids[..1]).await.is_ok());
    let _ = bed.connect(PRODUCTION).await.unwrap();
}
