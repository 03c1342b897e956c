//! QUIC alone on the loopback interface, as vsync sets it up: four streams, each side on a
//! runtime of its own, nothing done with what arrives.

use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use quinn::{Connection, Endpoint, TokioRuntime};
use tokio::runtime::{Builder, Runtime};
use vsync_benches::{Amount, Harness};
use vsync_protocol::id::MachineKey;
use vsync_protocol::wire::SERVER_NAME;
use vsync_transport::Congestion;

const LEN: usize = 256 << 20;
const STREAMS: usize = 4;
const FRAME: usize = 64 << 10;

pub(crate) fn run(harness: &Harness) {
    if !harness.wants("quic") {
        return;
    }
    let (server, client) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
    let pair = Pair::new(&server, &client);
    let frame = Bytes::from(crate::noise(5, FRAME));
    harness.run("quic", Amount::Bytes(LEN), || pair.client.block_on(send(&pair.connection, &frame)));
}

struct Pair {
    client: Runtime,
    connection: Connection,
    _endpoint: Endpoint,
}

impl Pair {
    fn new(server: &SigningKey, client: &SigningKey) -> Self {
        let config = vsync_transport::server_config(server, |_| true, Congestion::default()).expect("a configuration");
        let socket = vsync_transport::bind(([127, 0, 0, 1], 0).into()).expect("a socket");
        let address = socket.local_addr().expect("its address");
        thread::spawn(move || {
            runtime().block_on(async {
                let endpoint =
                    Endpoint::new(vsync_transport::endpoint_config(), Some(config), socket, Arc::new(TokioRuntime))
                        .expect("an endpoint");
                let connection = endpoint.accept().await.expect("a caller").await.expect("a connection");
                while let Ok((mut done, mut streams)) = connection.accept_bi().await {
                    drop(streams.read_to_end(1).await);
                    let sinks: Vec<_> = (0..STREAMS).map(|_| tokio::spawn(sink(connection.clone()))).collect();
                    for sink in sinks {
                        sink.await.expect("a stream to its end");
                    }
                    done.finish().expect("a listener");
                }
            });
        });
        let runtime_of_client = runtime();
        let (endpoint, connection) = runtime_of_client.block_on(async {
            let socket = vsync_transport::bind(([127, 0, 0, 1], 0).into()).expect("a socket");
            let endpoint = Endpoint::new(vsync_transport::endpoint_config(), None, socket, Arc::new(TokioRuntime))
                .expect("an endpoint");
            let pinned = MachineKey::from_bytes(server.verifying_key().to_bytes());
            let config =
                vsync_transport::client_config(client, pinned, Congestion::default()).expect("a configuration");
            let connecting = endpoint.connect_with(config, address, SERVER_NAME).expect("an address");
            (endpoint, connecting.await.expect("a connection"))
        });
        Self { client: runtime_of_client, connection, _endpoint: endpoint }
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

async fn sink(connection: Connection) {
    let mut stream = connection.accept_uni().await.expect("a stream");
    while let Some(chunk) = stream.read_chunk(usize::MAX, true).await.expect("bytes") {
        std::hint::black_box(chunk.bytes.len());
    }
}

async fn send(connection: &Connection, frame: &Bytes) {
    let (mut announce, mut done) = connection.open_bi().await.expect("a stream");
    announce.write_all(b"x").await.expect("a listener");
    announce.finish().expect("a listener");
    let streams: Vec<_> = (0..STREAMS)
        .map(|_| {
            let (connection, frame) = (connection.clone(), frame.clone());
            tokio::spawn(async move {
                let mut stream = connection.open_uni().await.expect("a stream");
                for _ in 0..LEN / STREAMS / FRAME {
                    stream.write_chunk(frame.clone()).await.expect("a listener");
                }
                stream.finish().expect("a listener");
            })
        })
        .collect();
    for stream in streams {
        stream.await.expect("all of it sent");
    }
    drop(done.read_to_end(1).await);
}
