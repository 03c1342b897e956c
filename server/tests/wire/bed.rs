//! A server in a scratch directory, and as little of an agent as can talk to it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use ed25519_dalek::{Signer, SigningKey};
use quinn::{ClientConfig, ConnectionError, Endpoint, TokioRuntime};
use vsync_protocol::blob::{BlobKind, ENCODED_HEAD_LEN, Suite, TAG_LEN, write_header};
use vsync_protocol::id::{Cid, MachineKey, ManifestHash, RealmId, VolumeName};
use vsync_protocol::manifest::{Body, SnapshotKind, assemble};
use vsync_protocol::plan::Policy;
use vsync_protocol::plan::retention::DEFAULT_FLOOR;
use vsync_protocol::wire::{
    Cids, FRAME_HEAD_LEN, FrameHead, RefusalCode, Reply, Request, SERVER_NAME, UploadHead, VERSION, encode_message,
    message_len,
};
use vsync_server::store::disk::Reserve;
use vsync_server::{
    Declared, Member, Members, Policies, Running, Server, ServerConfig, ServerError, StatusConfig, Upkeep,
};
use vsync_transport::Congestion;

pub(crate) const REALM: RealmId = RealmId::from_bytes([7; 16]);

pub(crate) fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

pub(crate) fn public(key: &SigningKey) -> MachineKey {
    MachineKey::from_bytes(key.verifying_key().to_bytes())
}

/// Keys of the machines "production" (reads and writes), "writer" (only writes), and of
/// the server.
pub(crate) const PRODUCTION: u8 = 1;
pub(crate) const WRITER: u8 = 2;
pub(crate) const ADMIN: u8 = 4;
pub(crate) const STRANGER: u8 = 3;
pub(crate) const SERVER: u8 = 9;

pub(crate) struct Bed {
    pub dir: tempfile::TempDir,
    pub members: Arc<Mutex<HashMap<MachineKey, Member>>>,
    pub server: Option<Running>,
    pub floor: u64,
    pub declared: Vec<Declared>,
    pub status: Option<StatusConfig>,
}

impl Bed {
    pub(crate) fn new() -> Self {
        let mut bed = Self::idle();
        bed.start().unwrap();
        bed
    }

    /// A bed whose server has not been started.
    pub(crate) fn idle() -> Self {
        let member =
            |name: &str, may_read| Member { name: name.parse().unwrap(), may_read, may_admin: name == "office" };
        let members = HashMap::from([
            (public(&key(PRODUCTION)), member("production", true)),
            (public(&key(WRITER)), member("writer", false)),
            (public(&key(ADMIN)), member("office", true)),
        ]);
        Self {
            dir: tempfile::tempdir().unwrap(),
            members: Arc::new(Mutex::new(members)),
            server: None,
            floor: DEFAULT_FLOOR,
            declared: Vec::new(),
            status: None,
        }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// Where the server's `vsync.pub` is; nobody has written it yet.
    pub(crate) fn registry(&self) -> PathBuf {
        self.dir.path().join("vsync.pub")
    }

    pub(crate) fn config(&self) -> ServerConfig {
        let members = Arc::clone(&self.members);
        let (floor, declared) = (self.floor, self.declared.clone());
        let policies: Policies = Arc::new(move |_| Policy { floor, ..Policy::default() });
        let members: Members = Arc::new(move |key| members.lock().unwrap().get(&key).cloned());
        ServerConfig {
            data: self.data(),
            realm: REALM,
            identity: key(SERVER),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            members,
            registry: self.registry(),
            reserve: Reserve { bytes: 0, percent: 0 },
            limits: vsync_server::Limits::default(),
            congestion: Congestion::Cubic,
            notify: None,
            upkeep: Upkeep { policies, ..Upkeep::default() },
            declared: Arc::new(move || Some(declared.clone())),
            status: self.status.clone(),
        }
    }

    pub(crate) fn start(&mut self) -> Result<(), ServerError> {
        self.server = Some(Server::start(self.config())?);
        Ok(())
    }

    pub(crate) async fn stop(&mut self) {
        let server = self.server.take().unwrap();
        tokio::task::spawn_blocking(move || server.stop()).await.unwrap();
    }

    /// Ends the server without letting anything finish.
    pub(crate) async fn kill(&mut self) {
        let server = self.server.take();
        tokio::task::spawn_blocking(move || drop(server)).await.unwrap();
    }

    pub(crate) async fn connect(&self, seed: u8) -> Result<Client, ConnectionError> {
        Client::connect(self.server.as_ref().unwrap().address(), seed).await
    }

    /// A connection of the machine "production" with an open session.
    pub(crate) async fn open(&self, volume: &str) -> Client {
        let mut client = self.connect(PRODUCTION).await.unwrap();
        client.hello().await;
        client.open(volume).await;
        client
    }
}

pub(crate) struct Client {
    _endpoint: Endpoint,
    pub quic: quinn::Connection,
    pub key: SigningKey,
    pub session: u32,
    pub last: Option<(u64, ManifestHash)>,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr, seed: u8) -> Result<Self, ConnectionError> {
        let key = key(seed);
        let socket = vsync_transport::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let endpoint = Endpoint::new(vsync_transport::endpoint_config(), None, socket, Arc::new(TokioRuntime)).unwrap();
        let config = client_config(&key);
        let quic = endpoint.connect_with(config, address, SERVER_NAME).unwrap().await?;
        Ok(Self { _endpoint: endpoint, quic, key, session: 0, last: None })
    }

    pub(crate) async fn ask(&self, request: &Request) -> Reply {
        self.try_ask(&encode_message(request)).await.unwrap()
    }

    pub(crate) async fn try_ask(&self, bytes: &[u8]) -> Result<Reply, Box<dyn std::error::Error>> {
        let (mut send, mut recv) = self.quic.open_bi().await?;
        send.write_all(bytes).await?;
        send.finish()?;
        read_reply(&mut recv).await
    }

    pub(crate) async fn hello(&self) {
        let reply = self.ask(&Request::Hello { version: VERSION, realm: REALM }).await;
        assert!(matches!(reply, Reply::Hello { version: VERSION, .. }), "{reply:?}");
    }

    pub(crate) async fn open(&mut self, volume: &str) {
        match self.ask(&Request::Open { volume: volume.parse().unwrap() }).await {
            Reply::Opened { session, last } => (self.session, self.last) = (session, last),
            reply => panic!("{reply:?}"),
        }
    }

    pub(crate) async fn upload(&self, stream: u32, blobs: &[Vec<u8>]) {
        self.try_upload(stream, blobs).await.unwrap();
    }

    pub(crate) async fn try_upload(&self, stream: u32, blobs: &[Vec<u8>]) -> Result<(), Box<dyn std::error::Error>> {
        let mut send = self.quic.open_uni().await?;
        send.write_all(&UploadHead { session: self.session, stream }.encode()).await?;
        for blob in blobs {
            send.write_all(&FrameHead { len: blob.len(), cid: Cid::of(blob) }.encode()).await?;
            send.write_all(blob).await?;
        }
        Ok(send.finish()?)
    }

    pub(crate) async fn flush(&self, frames: &[u64]) -> Reply {
        self.ask(&Request::Flush { session: self.session, frames: frames.to_vec() }).await
    }

    pub(crate) async fn store(&self, blobs: &[Vec<u8>]) {
        self.store_on(0, blobs).await;
    }

    /// Sends blobs on an upload stream that nothing was sent on before.
    pub(crate) async fn store_on(&self, stream: usize, blobs: &[Vec<u8>]) {
        self.upload(u32::try_from(stream).unwrap(), blobs).await;
        let mut frames = vec![0; stream + 1];
        frames[stream] = blobs.len() as u64;
        assert_eq!(self.flush(&frames).await, Reply::Flushed);
    }

    pub(crate) async fn have(&self, blobs: &[Vec<u8>]) -> Vec<bool> {
        let cids = Cids::new(blobs.iter().map(|blob| Cid::of(blob)).collect());
        match self.ask(&Request::Have { session: self.session, cids }).await {
            Reply::Have(answers) => (0..blobs.len()).map(|index| answers.get(index)).collect(),
            reply => panic!("{reply:?}"),
        }
    }

    pub(crate) async fn fetch(&self, cids: &[Cid]) -> Result<HashMap<Cid, Vec<u8>>, Reply> {
        let (mut send, mut recv) = self.quic.open_bi().await.unwrap();
        let request = Request::Fetch { cids: Cids::new(cids.to_vec()) };
        send.write_all(&encode_message(&request)).await.unwrap();
        send.finish().unwrap();
        match read_reply(&mut recv).await.unwrap() {
            Reply::Fetching => {}
            reply => return Err(reply),
        }
        let mut blobs = HashMap::new();
        for _ in cids {
            let mut head = [0; FRAME_HEAD_LEN];
            recv.read_exact(&mut head).await.unwrap();
            let head = FrameHead::decode(&head).unwrap();
            let mut blob = vec![0; head.len];
            recv.read_exact(&mut blob).await.unwrap();
            blobs.insert(head.cid, blob);
        }
        assert!(recv.read_to_end(0).await.is_ok(), "nothing follows the last frame");
        Ok(blobs)
    }

    /// A manifest that follows the last snapshot known to this client.
    pub(crate) fn manifest(&self, volume: &str, source: &str, root: Cid) -> Vec<u8> {
        self.manifest_sealing(volume, source, root, b"sealed")
    }

    /// The same with another sealed part.
    pub(crate) fn manifest_sealing(&self, volume: &str, source: &str, root: Cid, sealed: &[u8]) -> Vec<u8> {
        let body = Body {
            realm: REALM,
            volume: volume.parse::<VolumeName>().unwrap(),
            source: source.parse().unwrap(),
            sequence: self.last.map_or(1, |(number, _)| number + 1),
            previous: self.last.map(|(_, hash)| hash),
            epoch: 1,
            root,
            kind: SnapshotKind::Full,
            started: 0,
            witness: None,
            tags: Vec::new(),
        };
        self.sign_with(&body, sealed)
    }

    pub(crate) fn sign(&self, body: &Body) -> Vec<u8> {
        self.sign_with(body, b"sealed")
    }

    fn sign_with(&self, body: &Body, sealed: &[u8]) -> Vec<u8> {
        let body = minicbor::to_vec(body).unwrap();
        assemble(&body, sealed, |message| self.key.sign(message).to_bytes())
    }

    pub(crate) async fn commit(&self, manifest: Vec<u8>) -> Reply {
        self.ask(&Request::Commit { session: self.session, manifest }).await
    }
}

pub(crate) async fn read_reply(recv: &mut quinn::RecvStream) -> Result<Reply, Box<dyn std::error::Error>> {
    let mut head = [0; 4];
    recv.read_exact(&mut head).await?;
    let mut bytes = vec![0; message_len(head).unwrap()];
    recv.read_exact(&mut bytes).await?;
    Ok(minicbor::decode(&bytes)?)
}

pub(crate) fn refused(reply: &Reply) -> Option<RefusalCode> {
    match reply {
        Reply::Refused(refusal) => Some(refusal.code),
        _ => None,
    }
}

/// A blob as the server sees one: a header, and bytes that only an agent could open.
pub(crate) fn blob(kind: BlobKind, refs: &[Cid], content: &[u8]) -> Vec<u8> {
    let mut blob = Vec::new();
    write_header(&mut blob, kind, Suite::ChaCha20Poly1305, 1, refs);
    blob.extend_from_slice(content);
    blob.extend_from_slice(&[0; ENCODED_HEAD_LEN + TAG_LEN]);
    blob
}

/// Blobs of a tree with `chunks` chunks of `len` bytes below two leaves; the root is last.
pub(crate) fn tree(seed: u8, chunks: usize, len: usize) -> Vec<Vec<u8>> {
    let content = |index: usize| {
        let mut content = vec![seed; len];
        blake3::Hasher::new().update(&[seed]).update(&index.to_le_bytes()).finalize_xof().fill(&mut content);
        content
    };
    let mut blobs: Vec<_> = (0..chunks).map(|index| blob(BlobKind::Chunk, &[], &content(index))).collect();
    let cids: Vec<_> = blobs.iter().map(|blob| Cid::of(blob)).collect();
    let (left, right) = cids.split_at(chunks / 2);
    let leaves = [left, right].map(|part| blob(BlobKind::Leaf, part, &[seed]));
    let root = blob(BlobKind::Root, &leaves.each_ref().map(|leaf| Cid::of(leaf)), &[seed]);
    blobs.extend(leaves);
    blobs.push(root);
    blobs
}

pub(crate) fn root(tree: &[Vec<u8>]) -> Cid {
    Cid::of(tree.last().unwrap())
}

fn client_config(key: &SigningKey) -> ClientConfig {
    vsync_transport::client_config(key, public(&self::key(SERVER)), Congestion::Cubic).unwrap()
}
