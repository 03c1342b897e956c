//! Who may do what.

use vsync_protocol::blob::BlobKind;
use vsync_protocol::id::{Cid, RealmId};
use vsync_protocol::wire::{Cids, Listing, RefusalCode, Reply, Request, VERSION};

use crate::bed::{Bed, PRODUCTION, REALM, STRANGER, WRITER, blob, key, public, refused, root, tree};

fn listing() -> Listing {
    Listing { limit: 10, ..Listing::default() }
}

#[tokio::test]
async fn an_unknown_key_does_not_get_past_the_handshake() {
    let bed = Bed::new();
    // A client learns of the server's judgement of its key with its first use of the connection.
    if let Ok(client) = bed.connect(STRANGER).await {
        let hello = vsync_protocol::wire::encode_message(&Request::Hello { version: VERSION, realm: REALM });
        assert!(client.try_ask(&hello).await.is_err());
        assert!(client.quic.closed().await.to_string().contains("certificate"));
    }
    bed.connect(PRODUCTION).await.unwrap().hello().await;
}

#[tokio::test]
async fn a_machine_that_only_writes_reads_nothing() {
    let bed = Bed::new();
    let blobs = tree(1, 4, 100);
    let reader = bed.open("data").await;
    reader.store(&blobs).await;
    let manifest = reader.manifest("data", "production", root(&blobs));
    assert!(matches!(reader.commit(manifest).await, Reply::Committed(_)));

    let mut writer = bed.connect(WRITER).await.unwrap();
    writer.hello().await;
    writer.open("data").await;
    assert_eq!(writer.have(&blobs).await, [true; 7], "it may leave out what is there");
    let fetched = writer.fetch(&[root(&blobs)]).await;
    assert_eq!(refused(&fetched.unwrap_err()), Some(RefusalCode::NotAuthorised));
    let own = writer.manifest("data", "writer", root(&blobs));
    assert!(matches!(writer.commit(own.clone()).await, Reply::Committed(_)));
    let Reply::Snapshots(listed) = writer.ask(&Request::Snapshots(listing())).await else { panic!("no list") };
    assert!(listed.len() == 1 && listed[0].manifest == own);
    let others = Listing { source: Some("production".parse().unwrap()), ..listing() };
    assert_eq!(writer.ask(&Request::Snapshots(others)).await, Reply::Snapshots(vec![]));
    let Reply::Snapshots(listed) = reader.ask(&Request::Snapshots(listing())).await else { panic!("no list") };
    assert_eq!(listed.len(), 2);
}

#[tokio::test]
async fn a_removed_machine_is_out_at_its_next_request() {
    let bed = Bed::new();
    let client = bed.open("data").await;
    client.store(&[blob(BlobKind::Chunk, &[], b"x")]).await;
    bed.members.lock().unwrap().remove(&public(&key(PRODUCTION)));
    assert_eq!(refused(&client.ask(&Request::Status).await), Some(RefusalCode::NotAuthorised));
    assert_eq!(refused(&client.fetch(&[Cid::of(b"x")]).await.unwrap_err()), Some(RefusalCode::NotAuthorised));
    let closed = client.quic.closed().await;
    assert!(closed.to_string().contains("removed"), "{closed}");
}

#[tokio::test]
async fn a_connection_begins_with_a_fitting_hello() {
    let bed = Bed::new();
    let client = bed.connect(PRODUCTION).await.unwrap();
    assert_eq!(refused(&client.ask(&Request::Status).await), Some(RefusalCode::Malformed));
    let other = Request::Hello { version: VERSION, realm: RealmId::from_bytes([8; 16]) };
    assert_eq!(refused(&client.ask(&other).await), Some(RefusalCode::WrongRealm));
    let old = Request::Hello { version: 0, realm: REALM };
    assert_eq!(refused(&client.ask(&old).await), Some(RefusalCode::Version));
    let newer = Request::Hello { version: VERSION + 5, realm: REALM };
    assert!(matches!(client.ask(&newer).await, Reply::Hello { version: VERSION, .. }));
    assert!(matches!(client.ask(&Request::Status).await, Reply::Status(_)));
}

#[tokio::test]
async fn members_get_the_registry_as_it_is_now() {
    let bed = Bed::new();
    let client = bed.connect(WRITER).await.unwrap();
    assert_eq!(refused(&client.ask(&Request::Registry).await), Some(RefusalCode::Malformed));
    client.hello().await;
    assert_eq!(refused(&client.ask(&Request::Registry).await), Some(RefusalCode::Store));
    for text in ["one\n", "another\n"] {
        std::fs::write(bed.registry(), text).unwrap();
        assert_eq!(client.ask(&Request::Registry).await, Reply::Registry(text.as_bytes().to_vec()));
    }
    std::fs::write(bed.registry(), vec![b'#'; vsync_protocol::limits::MAX_MESSAGE_LEN]).unwrap();
    assert_eq!(refused(&client.ask(&Request::Registry).await), Some(RefusalCode::Store));
}

#[tokio::test]
async fn a_session_belongs_to_its_connection_and_its_volume() {
    let bed = Bed::new();
    let mut client = bed.open("data").await;
    let first = client.session;
    client.open("data").await;
    let have = |session| Request::Have { session, cids: Cids::default() };
    assert_eq!(refused(&client.ask(&have(first)).await), Some(RefusalCode::NoSession));
    assert!(matches!(client.ask(&have(client.session)).await, Reply::Have(_)));
    let other = bed.connect(PRODUCTION).await.unwrap();
    other.hello().await;
    assert_eq!(refused(&other.ask(&have(client.session)).await), Some(RefusalCode::NoSession));
}

#[tokio::test]
async fn a_panic_takes_down_one_connection_only() {
    let mut bed = Bed::idle();
    let poisoned = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut config = bed.config();
    let (members, flag) = (std::sync::Arc::clone(&config.members), std::sync::Arc::clone(&poisoned));
    config.members = std::sync::Arc::new(move |key| {
        assert!(
            key != public(&crate::bed::key(WRITER)) || !flag.load(std::sync::atomic::Ordering::Relaxed),
            "on purpose"
        );
        members(key)
    });
    bed.server = Some(vsync_server::Server::start(config).unwrap());
    let (one, other) = (bed.open("data").await, bed.connect(WRITER).await.unwrap());
    other.hello().await;
    poisoned.store(true, std::sync::atomic::Ordering::Relaxed);
    let status = vsync_protocol::wire::encode_message(&Request::Status);
    assert!(other.try_ask(&status).await.is_err());
    other.quic.closed().await;
    one.store(&[blob(BlobKind::Chunk, &[], b"unharmed")]).await;
    bed.open("data").await;
}

#[tokio::test]
async fn one_machine_has_a_bounded_number_of_connections() {
    let bed = Bed::new();
    let mut clients = Vec::new();
    for _ in 0..32 {
        let client = bed.connect(PRODUCTION).await.unwrap();
        client.hello().await;
        clients.push(client);
    }
    let one_more = bed.connect(PRODUCTION).await.unwrap();
    assert!(one_more.quic.closed().await.to_string().contains("too many"));
    clients.pop().unwrap().quic.close(0u32.into(), b"");
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    bed.connect(PRODUCTION).await.unwrap().hello().await;
}
