//! N02: messages and uploads in which a bit, a byte or the end is not what it was. Nothing of them is kept, whatever
//! they have become.

use std::time::Duration;

use vsync_protocol::id::Cid;
use vsync_protocol::wire::{Cids, FrameHead, Listing, Reply, Request, UploadHead, VERSION, encode_message};

use crate::bed::{Bed, Client, REALM, root, tree};

/// How many messages, and a fiftieth as many uploads.
const COUNT: u32 = 5000;

struct Dice(blake3::OutputReader);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        usize::try_from(u64::from_le_bytes(bytes) % sides as u64).unwrap()
    }

    /// Another message than it was.
    fn mutate(&mut self, bytes: &[u8]) -> Vec<u8> {
        let (mut changed, at) = (bytes.to_vec(), self.roll(bytes.len()));
        match self.roll(5) {
            0 => changed.truncate(at),
            1 => changed.insert(at, u8::try_from(self.roll(256)).unwrap()),
            2 => drop(changed.remove(at)),
            3 => changed[at] ^= 1 << self.roll(8),
            _ => changed[at] = changed[at].wrapping_add(1 + u8::try_from(self.roll(255)).unwrap()),
        }
        changed
    }
}

async fn listed(bed: &Bed) -> usize {
    let client = bed.open("other").await;
    match client.ask(&Request::Snapshots(Listing { limit: 100, ..Listing::default() })).await {
        Reply::Snapshots(found) => found.len(),
        reply => panic!("{reply:?}"),
    }
}

#[tokio::test]
async fn what_was_changed_on_its_way_is_not_acknowledged() {
    let bed = Bed::new();
    let blobs = tree(1, 4, 1000);
    let cids: Vec<Cid> = blobs.iter().map(|blob| Cid::of(blob)).collect();
    let mut dice = Dice(blake3::Hasher::new().update(b"mutated 1").finalize_xof());
    let mut client = bed.open("data").await;
    client.store(&blobs).await;
    let mut reconnected = 0;
    for number in 0..COUNT {
        if client.quic.close_reason().is_some() {
            client = bed.open("data").await;
            reconnected += 1;
        }
        let manifest = client.manifest("data", "production", root(&blobs));
        let messages = [
            Request::Hello { version: VERSION, realm: REALM },
            Request::Open { volume: "data".parse().unwrap() },
            Request::Have { session: client.session, cids: Cids::new(cids.clone()) },
            Request::Fetch { cids: Cids::new(cids.clone()) },
            Request::Commit { session: client.session, manifest },
        ];
        // A commit in every second.
        let message = if number % 2 == 0 { &messages[4] } else { &messages[dice.roll(4)] };
        let changed = dice.mutate(&encode_message(message));
        let asked = tokio::time::timeout(Duration::from_secs(10), client.try_ask(&changed)).await;
        let reply = asked.expect("an answer, or none, but no silence");
        assert!(!matches!(reply, Ok(Reply::Committed(_))), "{number}: {changed:02x?}");
    }
    assert_eq!(listed(&bed).await, 0);
    println!("{COUNT} messages, {reconnected} connections closed");

    // The same of blobs: nothing is here afterwards that its name does not fit.
    let fresh = tree(2, 4, 1000);
    let cids: Vec<Cid> = fresh.iter().map(|blob| Cid::of(blob)).collect();
    for _ in 0..COUNT / 50 {
        if client.quic.close_reason().is_some() {
            client = bed.open("data").await;
        }
        client.open("data").await;
        let which = dice.roll(fresh.len());
        let frame = [&FrameHead { len: fresh[which].len(), cid: cids[which] }.encode()[..], &fresh[which]].concat();
        send(&client, &dice.mutate(&frame)).await;
    }
    let client = bed.open("data").await;
    assert_eq!(client.have(&fresh).await, [false; 7]);
    client.store(&fresh).await;
    let committed = client.commit(client.manifest("data", "production", root(&fresh))).await;
    assert!(matches!(committed, Reply::Committed(_)), "{committed:?}");
    let fetched = client.fetch(&cids).await.unwrap();
    assert!(fresh.iter().all(|blob| fetched[&Cid::of(blob)] == *blob));
}

async fn send(client: &Client, bytes: &[u8]) {
    let mut stream = client.quic.open_uni().await.unwrap();
    // The server may stop it at any byte, or close the connection.
    let _ = stream.write_all(&UploadHead { session: client.session, stream: 0 }.encode()).await;
    let _ = stream.write_all(bytes).await;
    let _ = stream.finish();
    let _ = tokio::time::timeout(Duration::from_secs(10), stream.stopped()).await;
}
