//! Sealed blobs over QUIC on the loopback interface, into the real server's packs, until
//! all of it is durable. Both sides run in this process.

use std::sync::Arc;

use ed25519_dalek::SigningKey;
use vsync::budget::Budget;
use vsync::remote::{Identity, Offer, Remote, ServerAddress};
use vsync::vault::Sealed;
use vsync_benches::{Amount, Harness};
use vsync_protocol::blob::Suite;
use vsync_protocol::id::{MachineKey, RealmId};
use vsync_server::store::disk::Reserve;
use vsync_server::{Congestion, Member, Running, Server, ServerConfig, Upkeep};

use crate::chunks;

const LEN: usize = 512 << 20;
const REALM: RealmId = RealmId::from_bytes([1; 16]);

/// What a backup keeps in flight, too.
const BUDGET: usize = 64 << 20;

struct Pair {
    remote: Remote,
    _server: Running,
    _store: tempfile::TempDir,
}

pub(crate) fn run(harness: &Harness) {
    if !harness.wants("upload") {
        return;
    }
    let data = crate::noise(9, LEN);
    let blobs: Vec<Sealed> =
        chunks::seal(&chunks::vault(Suite::Aes256Gcm), &data).into_iter().map(|(sealed, _)| sealed).collect();
    drop(data);
    harness.run_with("upload", Amount::Bytes(LEN), pair, |pair| {
        upload(&pair, &blobs);
        pair
    });
}

fn upload(pair: &Pair, blobs: &[Sealed]) {
    let upload = pair.remote.upload("data".parse().expect("a name")).expect("a session");
    let (sender, budget) = (upload.sender(), Budget::new(BUDGET));
    for sealed in blobs {
        let permit = budget.take(sealed.blob.len());
        let offer = Offer { cid: sealed.cid, blob: sealed.blob.clone(), permit };
        assert!(sender.offer(offer).is_ok(), "the upload ended");
    }
    drop(sender);
    let (_, stats) = upload.finish().expect("all of it durable");
    assert_eq!(stats.blobs, blobs.len() as u64);
}

fn pair() -> Pair {
    let (server, client) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
    let store = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let known = key(&client);
    let member = Member { name: "client".parse().expect("a name"), may_read: true, may_admin: false };
    let config = ServerConfig {
        data: store.path().join("data"),
        realm: REALM,
        identity: server.clone(),
        listen: ([127, 0, 0, 1], 0).into(),
        members: Arc::new(move |key| (key == known).then(|| member.clone())),
        registry: store.path().join("vsync.pub"),
        upkeep: Upkeep::default(),
        declared: Arc::new(|| Some(Vec::new())),
        status: None,
        reserve: Reserve::default(),
        congestion: Congestion::default(),
        notify: None,
        limits: vsync_server::Limits::default(),
    };
    let running = Server::start(config).expect("a server");
    let address = ServerAddress {
        name: "server".parse().expect("a name"),
        address: running.address().to_string(),
        key: key(&server),
    };
    let remote = Remote::connect(address, Identity { key: client, realm: REALM }).expect("a connection");
    Pair { remote, _server: running, _store: store }
}

fn key(key: &SigningKey) -> MachineKey {
    MachineKey::from_bytes(key.verifying_key().to_bytes())
}
