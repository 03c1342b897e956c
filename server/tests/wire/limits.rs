//! Bounds of the wire, just below, at and above them, and an orderly end.

use std::time::Duration;

use minicbor::Encoder;
use vsync_protocol::blob::BlobKind;
use vsync_protocol::id::Cid;
use vsync_protocol::limits::{
    MAX_BLOB_LEN, MAX_CIDS, MAX_MANIFEST_LEN, MAX_MESSAGE_LEN, MAX_RAW_LEN, MAX_TREE_DEPTH, MAX_UPLOAD_STREAMS,
};
use vsync_protocol::wire::{Cids, FrameHead, RefusalCode, Reply, Request, UploadHead, encode_message};

use crate::bed::{Bed, blob, refused, root, tree};

#[tokio::test]
async fn a_have_names_at_most_so_many_blobs() {
    let bed = Bed::new();
    let client = bed.open("data").await;
    for (count, good) in [(MAX_CIDS - 1, true), (MAX_CIDS, true), (MAX_CIDS + 1, false)] {
        // By hand, since the types do not allow too many.
        let mut message = vec![0; 4];
        let mut encoder = Encoder::new(&mut message);
        encoder.array(2).unwrap().u8(2).unwrap().array(2).unwrap();
        encoder.u32(client.session).unwrap().bytes(&vec![0; count * 32]).unwrap();
        let len = message.len() as u32 - 4;
        message[..4].copy_from_slice(&len.to_le_bytes());
        if good {
            let same =
                Request::Have { session: client.session, cids: Cids::new(vec![Cid::from_bytes([0; 32]); count]) };
            assert_eq!(message, encode_message(&same));
        }
        let reply = client.try_ask(&message).await.unwrap();
        assert_eq!(matches!(reply, Reply::Have(_)), good, "{count}");
        assert!(good || refused(&reply) == Some(RefusalCode::Malformed));
    }
}

#[tokio::test]
async fn a_message_has_at_most_so_many_bytes() {
    let bed = Bed::new();
    let client = bed.open("data").await;
    for (len, words) in
        [(MAX_MESSAGE_LEN - 1, "manifest"), (MAX_MESSAGE_LEN, "manifest"), (MAX_MESSAGE_LEN + 1, "too long")]
    {
        let commit = |manifest| Request::Commit { session: client.session, manifest };
        let envelope = encode_message(&commit(vec![0; 1 << 17])).len() - (1 << 17) - 4;
        let message = encode_message(&commit(vec![0; len - envelope]));
        assert_eq!(message.len() - 4, len);
        let Reply::Refused(refusal) = client.try_ask(&message).await.unwrap() else { panic!("accepted") };
        assert!(refusal.message.contains(words), "{len}: {}", refusal.message);
    }
}

#[tokio::test]
async fn a_blob_has_at_most_so_many_bytes() {
    let bed = Bed::new();
    let mut client = bed.open("data").await;
    let envelope = blob(BlobKind::Chunk, &[], &[]).len();
    for len in [MAX_BLOB_LEN - 1, MAX_BLOB_LEN] {
        let blob = blob(BlobKind::Chunk, &[], &vec![len as u8; len - envelope]);
        client.store(std::slice::from_ref(&blob)).await;
        assert_eq!(client.fetch(&[Cid::of(&blob)]).await.unwrap()[&Cid::of(&blob)], blob);
        client.open("data").await;
    }
    let mut send = client.quic.open_uni().await.unwrap();
    send.write_all(&UploadHead { session: client.session, stream: 0 }.encode()).await.unwrap();
    let head = FrameHead { len: MAX_BLOB_LEN + 1, cid: Cid::of(b"") };
    send.write_all(&head.encode()).await.unwrap();
    let code = send.stopped().await.unwrap();
    assert_eq!(code, Some(5u32.into()), "the number of Malformed");
}

#[tokio::test]
async fn many_large_blobs_at_once_do_not_block_one_another() {
    let bed = Bed::new();
    let client = bed.open("data").await;
    let blobs: Vec<_> = (0..16u8).map(|tag| blob(BlobKind::Chunk, &[], &vec![tag; MAX_RAW_LEN])).collect();
    let client = &client;
    let uploads = blobs.chunks(1).enumerate().map(|(stream, part)| client.upload(stream as u32, part));
    let all = futures(uploads.collect());
    tokio::time::timeout(Duration::from_secs(60), all).await.unwrap();
    assert_eq!(client.flush(&[1; 16]).await, Reply::Flushed);
    assert_eq!(client.have(&blobs).await, [true; 16]);
}

/// Runs all of `parts` at the same time.
async fn futures(parts: Vec<impl Future<Output = ()>>) {
    let mut parts: Vec<_> = parts.into_iter().map(Box::pin).collect();
    std::future::poll_fn(|context| {
        parts.retain_mut(|part| part.as_mut().poll(context).is_pending());
        if parts.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

#[tokio::test]
async fn a_tree_has_at_most_so_many_levels() {
    let bed = Bed::new();
    let mut client = bed.open("data").await;
    for (depth, good) in [(MAX_TREE_DEPTH - 1, true), (MAX_TREE_DEPTH, true), (MAX_TREE_DEPTH + 1, false)] {
        let tag = [depth as u8];
        let mut blobs = vec![blob(BlobKind::Leaf, &[], &tag)];
        for level in 2..=depth {
            let kind = if level == depth { BlobKind::Root } else { BlobKind::Inner };
            let below = Cid::of(blobs.last().unwrap());
            blobs.push(blob(kind, &[below], &tag));
        }
        client.store(&blobs).await;
        let manifest = client.manifest("data", "production", Cid::of(blobs.last().unwrap()));
        let reply = client.commit(manifest).await;
        assert_eq!(matches!(reply, Reply::Committed(_)), good, "{depth} {reply:?}");
        client.open("data").await;
    }
}

#[tokio::test]
async fn a_node_refers_only_to_what_it_may() {
    let bed = Bed::new();
    let client = bed.open("data").await;
    let chunk = blob(BlobKind::Chunk, &[], b"chunk");
    let root = blob(BlobKind::Root, &[Cid::of(&chunk)], b"root");
    client.store(&[chunk, root.clone()]).await;
    let manifest = client.manifest("data", "production", Cid::of(&root));
    assert_eq!(refused(&client.commit(manifest).await), Some(RefusalCode::BadManifest));
}

#[tokio::test]
async fn nonsense_is_refused_and_harms_nobody() {
    let bed = Bed::new();
    let client = bed.open("data").await;
    for bytes in [&b"\x03\0\0\0abc"[..], b"\xff\xff\xff\xff", b"\x09\0\0\0short", b"", b"\x01\0"] {
        let reply = client.try_ask(bytes).await.unwrap();
        assert_eq!(refused(&reply), Some(RefusalCode::Malformed), "{bytes:?}");
    }
    for head in [
        UploadHead { session: client.session, stream: MAX_UPLOAD_STREAMS }.encode(),
        UploadHead { session: client.session + 1, stream: 0 }.encode(),
    ] {
        let mut send = client.quic.open_uni().await.unwrap();
        send.write_all(&head).await.unwrap();
        assert!(send.stopped().await.unwrap().is_some());
    }
    let too_many = Request::Flush { session: client.session, frames: vec![0; MAX_UPLOAD_STREAMS as usize + 1] };
    assert_eq!(refused(&client.ask(&too_many).await), Some(RefusalCode::Malformed));
    let good = blob(BlobKind::Chunk, &[], b"still fine");
    client.store(&[good]).await;
}

#[tokio::test]
async fn a_stopping_server_finishes_what_runs_and_refuses_the_rest() {
    let mut bed = Bed::new();
    let client = bed.open("data").await;
    let good = blob(BlobKind::Chunk, &[], b"late");
    // A flush that waits for a frame is a running request.
    let flush = client.flush(&[1]);
    let ended = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let stop = bed.stop();
        let late = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert_eq!(refused(&client.ask(&Request::Status).await), Some(RefusalCode::Draining));
            client.upload(0, std::slice::from_ref(&good)).await;
        };
        tokio::join!(stop, late);
    };
    let (flushed, ()) = tokio::join!(flush, ended);
    assert_eq!(flushed, Reply::Flushed);
    let closed = client.quic.closed().await;
    assert!(closed.to_string().contains("shutting down"), "{closed}");
    bed.start().unwrap();
    assert_eq!(bed.open("data").await.have(&[good]).await, [true]);
}

/// A10: a manifest one byte too long is refused before anything else is looked at.
#[tokio::test]
async fn a_manifest_has_at_most_so_many_bytes() {
    let bed = Bed::new();
    let mut client = bed.open("data").await;
    let blobs = tree(1, 2, 100);
    client.store(&blobs).await;
    for (len, good) in [(MAX_MANIFEST_LEN - 1, true), (MAX_MANIFEST_LEN, true), (MAX_MANIFEST_LEN + 1, false)] {
        let around = client.manifest_sealing("data", "production", root(&blobs), b"").len();
        let manifest = client.manifest_sealing("data", "production", root(&blobs), &vec![7; len - around]);
        assert_eq!(manifest.len(), len);
        let reply = client.commit(manifest).await;
        assert_eq!(matches!(reply, Reply::Committed(_)), good, "{len}: {reply:?}");
        assert!(good || refused(&reply) == Some(RefusalCode::BadManifest));
        client.open("data").await;
    }
}

/// A10: as many questions at once as a connection may ask; one more waits for its turn.
#[tokio::test]
async fn requests_beyond_the_limit_wait() {
    let bed = Bed::new();
    let client = bed.open("data").await;
    let mut streams = Vec::new();
    while let Ok(stream) = tokio::time::timeout(Duration::from_millis(500), client.quic.open_bi()).await {
        streams.push(stream.unwrap());
    }
    // QUIC has not yet told of the two that are done with, those of `Hello` and `Open`.
    let most = vsync_transport::MAX_REQUESTS as usize;
    assert!((most - 2..=most).contains(&streams.len()), "{} at once", streams.len());
    // When some are done with, the next may begin: QUIC tells the asker now and then, not each time.
    for (mut send, mut recv) in streams.drain(..streams.len() / 2) {
        send.write_all(&encode_message(&Request::Status)).await.unwrap();
        send.finish().unwrap();
        crate::bed::read_reply(&mut recv).await.unwrap();
    }
    let next = tokio::time::timeout(Duration::from_secs(5), client.quic.open_bi()).await.unwrap();
    assert!(next.is_ok());
}

/// N09: 64 machines begin the same backup at the same instant; one copy is kept, and each has its snapshot.
#[tokio::test]
async fn sixty_four_machines_at_once() {
    use crate::bed::{Client, key, public};
    let bed = Bed::new();
    for number in 100..164_u8 {
        let name = format!("machine{number}").parse().unwrap();
        let member = vsync_server::Member { name, may_read: true, may_admin: false };
        bed.members.lock().unwrap().insert(public(&key(number)), member);
    }
    let blobs = tree(5, 40, 20_000);
    let (bed, blobs) = (&bed, &blobs);
    let machine = |number: u8| async move {
        let mut client: Client = bed.connect(number).await.unwrap();
        client.hello().await;
        client.open("data").await;
        let here = client.have(blobs).await;
        let missing: Vec<_> = blobs.iter().zip(here).filter(|(_, here)| !here).map(|(blob, _)| blob.clone()).collect();
        client.store(&missing).await;
        let manifest = client.manifest("data", &format!("machine{number}"), root(blobs));
        let reply = client.commit(manifest).await;
        assert!(matches!(reply, Reply::Committed(_)), "{number}: {reply:?}");
    };
    tokio::time::timeout(Duration::from_secs(120), futures((100..164).map(machine).collect())).await.unwrap();
    let client = bed.open("data").await;
    let Reply::Status(status) = client.ask(&Request::Status).await else { panic!("no status") };
    assert_eq!((status.snapshots, status.blobs), (64, blobs.len() as u64));
    let once: u64 = blobs.iter().map(|blob| blob.len() as u64).sum();
    assert!(status.bytes < once + once / 10, "{} bytes of {once}", status.bytes);
}
