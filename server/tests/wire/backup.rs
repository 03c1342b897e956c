//! Upload, commit, list, fetch.

use vsync_protocol::blob::BlobKind;
use vsync_protocol::id::Cid;
use vsync_protocol::manifest::{manifest_hash, snapshot_id};
use vsync_protocol::wire::{FrameHead, Listing, RefusalCode, Reply, Request, UploadHead};

use crate::bed::{Bed, PRODUCTION, SERVER, blob, key, public, refused, root, tree};

#[tokio::test]
async fn what_was_backed_up_is_listed_and_comes_back() {
    let bed = Bed::new();
    let mut client = bed.open("data").await;
    assert_eq!(client.last, None);
    let blobs = tree(1, 100, 70_000);
    assert_eq!(client.have(&blobs).await, [false; 103]);
    // Several streams, and the parts in no particular order.
    let parts: Vec<_> = blobs.chunks(30).map(<[_]>::to_vec).collect();
    for (stream, part) in parts.iter().enumerate().rev() {
        client.upload(stream as u32, part).await;
    }
    let frames: Vec<u64> = parts.iter().map(|part| part.len() as u64).collect();
    assert_eq!(client.flush(&frames).await, Reply::Flushed);
    assert_eq!(client.have(&blobs).await, [true; 103]);

    let manifest = client.manifest("data", "production", root(&blobs));
    let Reply::Committed(receipt) = client.commit(manifest.clone()).await else { panic!("not committed") };
    assert!(receipt.is_signed_by(public(&key(SERVER))));
    assert_eq!((receipt.manifest, receipt.log.index), (manifest_hash(&manifest), 1));
    assert_eq!(client.commit(manifest.clone()).await, Reply::Committed(receipt.clone()), "again, the same receipt");

    let listing = Listing { limit: 10, ..Listing::default() };
    let Reply::Snapshots(listed) = client.ask(&Request::Snapshots(listing)).await else { panic!("no list") };
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].id, listed[0].index, &listed[0].manifest), (snapshot_id(&manifest), 1, &manifest));

    let absent = Cid::of(b"absent");
    let mut cids: Vec<_> = blobs.iter().map(|blob| Cid::of(blob)).collect();
    cids.push(absent);
    let fetched = client.fetch(&cids).await.unwrap();
    assert_eq!(fetched[&absent], b"");
    assert!(blobs.iter().all(|blob| fetched[&Cid::of(blob)] == *blob));

    client.open("data").await;
    assert_eq!(client.last, Some((1, manifest_hash(&manifest))));
    let second = client.manifest("data", "production", root(&blobs));
    assert!(matches!(client.commit(second).await, Reply::Committed(receipt) if receipt.log.index == 2));
    let Reply::Log(entries) = client.ask(&Request::Log { from: 1 }).await else { panic!("no log") };
    assert_eq!(entries.len(), 1);
    let Reply::Status(status) = client.ask(&Request::Status).await else { panic!("no status") };
    assert_eq!((status.snapshots, status.blobs, status.read_only), (2, 103, None));
}

#[tokio::test]
async fn a_commit_names_what_is_missing() {
    let bed = Bed::new();
    let client = bed.open("data").await;
    let blobs = tree(2, 10, 1000);
    let manifest = client.manifest("data", "production", root(&blobs));
    assert_eq!(missing(client.commit(manifest.clone()).await), [root(&blobs)]);
    // All but one chunk and the second leaf.
    let (chunk, leaf) = (Cid::of(&blobs[3]), Cid::of(&blobs[11]));
    let part: Vec<_> = blobs.iter().filter(|blob| ![chunk, leaf].contains(&Cid::of(blob))).cloned().collect();
    client.store(&part).await;
    let mut expected = vec![chunk, leaf];
    expected.sort();
    assert_eq!(missing(client.commit(manifest.clone()).await), expected);
    let listing = Listing { limit: 10, ..Listing::default() };
    assert_eq!(client.ask(&Request::Snapshots(listing)).await, Reply::Snapshots(vec![]));
    client.upload(1, &[blobs[3].clone(), blobs[11].clone()]).await;
    assert_eq!(client.flush(&[part.len() as u64, 2]).await, Reply::Flushed);
    assert!(matches!(client.commit(manifest).await, Reply::Committed(_)));
}

fn missing(reply: Reply) -> Vec<Cid> {
    let Reply::Missing(cids) = reply else { panic!("{reply:?}") };
    let mut cids = cids.into_vec();
    cids.sort();
    cids
}

#[tokio::test]
async fn bytes_under_a_wrong_name_end_the_session() {
    let bed = Bed::new();
    let mut client = bed.open("data").await;
    let good = blob(BlobKind::Chunk, &[], b"good");
    let wrong = Cid::of(b"something else");
    let mut send = client.quic.open_uni().await.unwrap();
    send.write_all(&UploadHead { session: client.session, stream: 0 }.encode()).await.unwrap();
    for (cid, blob) in [(Cid::of(&good), &good), (wrong, &blob(BlobKind::Chunk, &[], b"bad"))] {
        send.write_all(&FrameHead { len: blob.len(), cid }.encode()).await.unwrap();
        send.write_all(blob).await.unwrap();
    }
    let Reply::Refused(refusal) = client.flush(&[2]).await else { panic!("flushed") };
    assert_eq!(refusal.code, RefusalCode::WrongName);
    assert!(refusal.message.contains(&wrong.to_string()));
    let manifest = client.manifest("data", "production", wrong);
    assert_eq!(refused(&client.commit(manifest).await), Some(RefusalCode::WrongName));
    client.open("data").await;
    assert_eq!(client.have(&[good, b"bad".to_vec()]).await, [true, false], "what was right is kept");
}

#[tokio::test]
async fn a_manifest_must_be_its_sources_and_follow_the_last() {
    let bed = Bed::new();
    let mut client = bed.open("data").await;
    let blobs = tree(3, 4, 100);
    client.store(&blobs).await;
    let top = root(&blobs);
    let manifest = client.manifest("data", "production", top);
    for (manifest, code) in [
        (client.manifest("other", "production", top), RefusalCode::BadManifest),
        (client.manifest("data", "writer", top), RefusalCode::BadManifest),
        (b"VSM1 nonsense".to_vec(), RefusalCode::BadManifest),
        (client.manifest("data", "production", Cid::of(&blobs[0])), RefusalCode::BadManifest),
        (client.manifest("data", "production", Cid::of(&blobs[4])), RefusalCode::BadManifest),
        ([&manifest[..manifest.len() - 1], &[!manifest[manifest.len() - 1]]].concat(), RefusalCode::BadManifest),
    ] {
        assert_eq!(refused(&client.commit(manifest).await), Some(code));
    }
    client.last = Some((1, manifest_hash(b"x")));
    let skips = client.manifest("data", "production", top);
    assert_eq!(refused(&client.commit(skips).await), Some(RefusalCode::OutOfSequence));
    assert!(matches!(client.commit(manifest.clone()).await, Reply::Committed(_)));
    let forks = client.manifest("data", "production", top);
    assert_eq!(refused(&client.commit(forks).await), Some(RefusalCode::OutOfSequence));
    client.last = Some((1, manifest_hash(&manifest)));
    let follows = client.manifest("data", "production", top);
    assert!(matches!(client.commit(follows).await, Reply::Committed(_)));
}

#[tokio::test]
async fn what_arrived_before_a_connection_broke_is_kept() {
    let bed = Bed::new();
    let client = bed.open("data").await;
    let blobs = tree(4, 20, 10_000);
    client.upload(0, &blobs).await;
    // Counted, so that all of it has arrived, but never flushed.
    while bed.connect(PRODUCTION).await.is_err() {}
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    client.quic.close(0u32.into(), b"");
    drop(client);
    let mut have = vec![false];
    for _ in 0..50 {
        let client = bed.open("data").await;
        have = client.have(&blobs).await;
        if !have.contains(&false) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(have, [true; 23]);
}

#[tokio::test]
async fn much_data_flows_both_ways() {
    let bed = Bed::new();
    let client = bed.open("data").await;
    let blobs = tree(5, 1500, 60_000);
    let parts: Vec<_> = blobs.chunks(200).map(<[_]>::to_vec).collect();
    let uploads = parts.iter().enumerate().map(|(stream, part)| client.upload(stream as u32, part));
    for upload in uploads {
        upload.await;
    }
    let frames: Vec<u64> = parts.iter().map(|part| part.len() as u64).collect();
    assert_eq!(client.flush(&frames).await, Reply::Flushed);
    let manifest = client.manifest("data", "production", root(&blobs));
    assert!(matches!(client.commit(manifest).await, Reply::Committed(_)));
    let cids: Vec<_> = blobs.iter().map(|blob| Cid::of(blob)).collect();
    let (one, two) = tokio::join!(client.fetch(&cids[..800]), client.fetch(&cids[800..]));
    let fetched = [one.unwrap(), two.unwrap()];
    for blob in &blobs {
        assert!(fetched.iter().any(|part| part.get(&Cid::of(blob)) == Some(blob)));
    }
}
