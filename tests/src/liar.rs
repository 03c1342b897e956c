//! A server that lies: it holds the real one's key, passes on what is asked, and changes what is answered.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use ed25519_dalek::SigningKey;
use quinn::{Connection, Endpoint, RecvStream, SendStream, TokioRuntime};
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use vsync_protocol::id::{Cid, MachineKey};
use vsync_protocol::wire::{
    FRAME_HEAD_LEN, FrameHead, MESSAGE_HEAD_LEN, Reply, Request, SERVER_NAME, encode_message, message_len,
};
use vsync_transport::Congestion;

/// The longest conversation on one stream that the tests have.
const LONGEST: usize = 1 << 30;

/// What the liar makes of an honest answer.
#[derive(Debug)]
pub enum Answer {
    /// These bytes.
    Bytes(Vec<u8>),
    /// An honest reply, and frames of these lengths: what is honest is cut short, or zeros follow it.
    Lengths(Honest, Vec<usize>),
    /// These bytes, and then these others without an end.
    Endless(Vec<u8>, Vec<u8>),
    /// These bytes, and then nothing, for as long as the agent waits.
    Silence(Vec<u8>),
    /// The stream is broken off.
    Reset,
    /// The connection is.
    Close,
}

/// An honest answer: the reply, and the blobs that follow it.
#[derive(Clone, Debug)]
pub struct Honest {
    /// The reply.
    pub reply: Reply,
    /// The frames after it.
    pub blobs: Vec<(Cid, Vec<u8>)>,
}

impl Honest {
    fn read(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = bytes.split_first_chunk::<MESSAGE_HEAD_LEN>()?;
        let (message, mut rest) = rest.split_at_checked(message_len(*head)?)?;
        let mut blobs = Vec::new();
        while let Some((head, after)) = rest.split_first_chunk::<FRAME_HEAD_LEN>() {
            let head = FrameHead::decode(head)?;
            let (blob, after) = after.split_at_checked(head.len)?;
            blobs.push((head.cid, blob.to_vec()));
            rest = after;
        }
        Some(Self { reply: minicbor::decode(message).ok()?, blobs })
    }

    /// The bytes of the answer as it is now.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = encode_message(&self.reply);
        for (cid, blob) in &self.blobs {
            bytes.extend(FrameHead { len: blob.len(), cid: *cid }.encode());
            bytes.extend(blob);
        }
        bytes
    }

    /// Frame by frame: all of them at once would be more than a liar has memory, or his victim patience, for.
    async fn say_at_length(&self, send: &mut SendStream, lengths: &[usize]) -> Option<()> {
        send.write_all(&encode_message(&self.reply)).await.ok()?;
        for ((cid, blob), &len) in self.blobs.iter().zip(lengths) {
            send.write_all(&FrameHead { len, cid: *cid }.encode()).await.ok()?;
            let honest = &blob[..blob.len().min(len)];
            send.write_all(honest).await.ok()?;
            let mut left = len - honest.len();
            while left > 0 {
                let zeros = &[0; 1 << 16][..left.min(1 << 16)];
                send.write_all(zeros).await.ok()?;
                left -= zeros.len();
            }
        }
        send.finish().ok()
    }

    /// The answer as it is now, said by the liar.
    #[must_use]
    pub fn say(&self) -> Answer {
        Answer::Bytes(self.bytes())
    }
}

/// What passes between agent and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passing {
    /// A question, on its way to the server.
    Question,
    /// An answer, on its way to the agent: the server has done what was asked.
    Answer,
    /// A part of an upload, on its way to the server.
    Upload,
}

type Gate = dyn Fn(Passing) -> bool + Send + Sync;
type Lie = dyn Fn(&Request, Honest) -> Answer + Send + Sync;

/// A liar before a server; it ends with its guard.
#[derive(Debug)]
pub struct Liar {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Between {
    endpoint: Endpoint,
    server: SocketAddr,
    client: SigningKey,
    server_key: MachineKey,
    gate: Box<Gate>,
    lie: Box<Lie>,
}

impl Liar {
    /// A liar who has stolen the key `identity` of the server at `server`, and that of the machine `client`.
    ///
    /// # Panics
    /// If there are no sockets.
    #[must_use]
    pub fn before(
        server: &str,
        identity: &SigningKey,
        client: &SigningKey,
        lie: impl Fn(&Request, Honest) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::with(server, identity, client, |_| true, lie)
    }

    /// One who passes everything on as it is, and breaks the connection when `gate` says no to what would pass.
    ///
    /// # Panics
    /// If there are no sockets.
    #[must_use]
    pub fn cutting(
        server: &str,
        identity: &SigningKey,
        client: &SigningKey,
        gate: impl Fn(Passing) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self::with(server, identity, client, gate, |_, honest| honest.say())
    }

    fn with(
        server: &str,
        identity: &SigningKey,
        client: &SigningKey,
        gate: impl Fn(Passing) -> bool + Send + Sync + 'static,
        lie: impl Fn(&Request, Honest) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let config = vsync_transport::server_config(identity, |_| true, Congestion::Cubic).expect("TLS");
        let socket = vsync_transport::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a socket");
        let address = socket.local_addr().expect("an address");
        let server = server.parse().expect("the address of a server");
        let server_key = MachineKey::from_bytes(identity.verifying_key().to_bytes());
        let client = client.clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let endpoint = vsync_transport::endpoint_config();
                let endpoint = Endpoint::new(endpoint, Some(config), socket, Arc::new(TokioRuntime)).expect("QUIC");
                let between = Between {
                    endpoint: endpoint.clone(),
                    server,
                    client,
                    server_key,
                    gate: Box::new(gate),
                    lie: Box::new(lie),
                };
                tokio::select! {
                    () = Arc::new(between).listen() => {}
                    _ = stopped => endpoint.close(0_u32.into(), b""),
                }
            });
        });
        Self { address, stop: Some(stop), thread: Some(thread) }
    }

    /// The address that clients use in place of the server's.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.stop.take().map(|stop| stop.send(()));
        // A panic of the thread was printed; a second one here would hide the test's own.
        drop(self.thread.take().map(JoinHandle::join));
    }
}

impl Between {
    async fn listen(self: Arc<Self>) {
        while let Some(incoming) = self.endpoint.accept().await {
            let between = self.clone();
            tokio::spawn(async move {
                // An agent that goes away in the middle is nothing unusual here.
                if let Ok(agent) = incoming.await {
                    between.stand_between(agent).await;
                }
            });
        }
    }

    async fn stand_between(self: Arc<Self>, agent: Connection) {
        let config = vsync_transport::client_config(&self.client, self.server_key, Congestion::Cubic).expect("TLS");
        let socket = vsync_transport::bind(SocketAddr::from(([0, 0, 0, 0], 0))).expect("a socket");
        let endpoint = Endpoint::new(vsync_transport::endpoint_config(), None, socket, Arc::new(TokioRuntime));
        let endpoint = endpoint.expect("QUIC");
        let server = endpoint.connect_with(config, self.server, SERVER_NAME).expect("an address").await;
        let Ok(server) = server else { return };
        loop {
            tokio::select! {
                opened = agent.accept_bi() => {
                    let Ok((send, recv)) = opened else { break };
                    let (between, agent, server) = (self.clone(), agent.clone(), server.clone());
                    tokio::spawn(async move { between.answer(&agent, &server, send, recv).await });
                }
                opened = agent.accept_uni() => {
                    let Ok(recv) = opened else { break };
                    let (between, agent, server) = (self.clone(), agent.clone(), server.clone());
                    tokio::spawn(async move { between.pass_on(&agent, &server, recv).await });
                }
            }
        }
        server.close(0_u32.into(), b"");
    }

    /// Asks the server what the agent asks, and answers as the lie has it. `None`: somebody has gone.
    async fn answer(
        &self,
        agent: &Connection,
        server: &Connection,
        mut send: SendStream,
        mut recv: RecvStream,
    ) -> Option<()> {
        let question = recv.read_to_end(LONGEST).await.ok()?;
        let request: Request = minicbor::decode(question.get(MESSAGE_HEAD_LEN..)?).ok()?;
        self.pass(agent, Passing::Question)?;
        let (mut up, mut down) = server.open_bi().await.ok()?;
        up.write_all(&question).await.ok()?;
        up.finish().ok()?;
        let honest = Honest::read(&down.read_to_end(LONGEST).await.ok()?)?;
        self.pass(agent, Passing::Answer)?;
        match (self.lie)(&request, honest) {
            Answer::Bytes(bytes) => {
                send.write_all(&bytes).await.ok()?;
                send.finish().ok()?;
            }
            Answer::Lengths(honest, lengths) => honest.say_at_length(&mut send, &lengths).await?,
            Answer::Endless(bytes, more) => {
                send.write_all(&bytes).await.ok()?;
                loop {
                    send.write_all(&more).await.ok()?;
                }
            }
            Answer::Silence(bytes) => {
                send.write_all(&bytes).await.ok()?;
                agent.closed().await;
            }
            Answer::Reset => send.reset(1_u32.into()).ok()?,
            Answer::Close => agent.close(1_u32.into(), b"go away"),
        }
        Some(())
    }

    /// Whether it may pass; if not, the connection is at its end.
    fn pass(&self, agent: &Connection, what: Passing) -> Option<()> {
        if (self.gate)(what) {
            return Some(());
        }
        agent.close(1_u32.into(), b"cut");
        None
    }

    async fn pass_on(&self, agent: &Connection, server: &Connection, mut recv: RecvStream) -> Option<()> {
        let mut up = server.open_uni().await.ok()?;
        while let Some(chunk) = recv.read_chunk(1 << 16, true).await.ok()? {
            self.pass(agent, Passing::Upload)?;
            up.write_chunk(chunk.bytes).await.ok()?;
        }
        up.finish().ok()
    }
}
