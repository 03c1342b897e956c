//! A04: a key that is shown and not held, a handshake that is played again, a session that is resumed or begun early.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Endpoint, TokioRuntime};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, SignatureScheme};
use vsync_protocol::wire::{ALPN, Listing, Reply, Request, SERVER_NAME, VERSION, encode_message};
use vsync_transport::{provider, raw_key};

use crate::bed::{Bed, Client, PRODUCTION, REALM, STRANGER, key, root, tree};

/// Somebody who takes any server for the right one.
#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// A client that shows the public half `shown`, signs with `held`, and would resume and begin early if it could.
fn eager(shown: u8, held: u8) -> ClientConfig {
    let provider = provider();
    let shown = raw_key(&key(shown), &provider).unwrap();
    let held = raw_key(&key(held), &provider).unwrap();
    let pair = CertifiedKey::new(shown.cert.clone(), Arc::clone(&held.key));
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(Arc::new(pair))));
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.enable_early_data = true;
    tls.resumption = Resumption::in_memory_sessions(8);
    ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
}

fn endpoint() -> Endpoint {
    let socket = vsync_transport::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    Endpoint::new(vsync_transport::endpoint_config(), None, socket, Arc::new(TokioRuntime)).unwrap()
}

/// Whether it gets an answer to its first question.
async fn is_let_in(bed: &Bed, config: ClientConfig) -> bool {
    let endpoint = endpoint();
    let address = bed.server.as_ref().unwrap().address();
    let Ok(quic) = endpoint.connect_with(config, address, SERVER_NAME).unwrap().await else { return false };
    let asks = async {
        let (mut send, mut recv) = quic.open_bi().await?;
        send.write_all(&encode_message(&Request::Hello { version: VERSION, realm: REALM })).await?;
        send.finish()?;
        crate::bed::read_reply(&mut recv).await
    };
    asks.await.is_ok()
}

#[tokio::test]
async fn a_key_that_is_shown_must_be_held() {
    let bed = Bed::new();
    assert!(is_let_in(&bed, eager(PRODUCTION, PRODUCTION)).await);
    for _ in 0..8 {
        assert!(!is_let_in(&bed, eager(PRODUCTION, STRANGER)).await, "without the private half");
        assert!(!is_let_in(&bed, eager(STRANGER, PRODUCTION)).await, "with another's signature");
    }
    assert!(is_let_in(&bed, eager(PRODUCTION, PRODUCTION)).await);
}

/// Nobody gets a ticket, so that a machine which was removed has none from before.
#[tokio::test]
async fn nothing_is_resumed_or_begun_early() {
    let bed = Bed::new();
    let config = eager(PRODUCTION, PRODUCTION);
    let (endpoint, address) = (endpoint(), bed.server.as_ref().unwrap().address());
    for _ in 0..8 {
        let connecting = endpoint.connect_with(config.clone(), address, SERVER_NAME).unwrap();
        let quic = match connecting.into_0rtt() {
            Ok(_) => panic!("there was a ticket to begin early with"),
            Err(connecting) => connecting.await.unwrap(),
        };
        let (mut send, mut recv) = quic.open_bi().await.unwrap();
        send.write_all(&encode_message(&Request::Hello { version: VERSION, realm: REALM })).await.unwrap();
        send.finish().unwrap();
        assert!(matches!(crate::bed::read_reply(&mut recv).await.unwrap(), Reply::Hello { .. }));
        // A ticket would come after the handshake.
        tokio::time::sleep(Duration::from_millis(50)).await;
        quic.close(0_u32.into(), b"");
    }
}

/// Passes datagrams on, and keeps those of the client.
fn recorder(server: SocketAddr, done: &Arc<AtomicBool>) -> (SocketAddr, thread::JoinHandle<Vec<Vec<u8>>>) {
    let (front, back) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let (address, done) = (front.local_addr().unwrap(), Arc::clone(done));
    for socket in [&front, &back] {
        socket.set_nonblocking(true).unwrap();
    }
    let pass = move || {
        let (mut kept, mut client, mut buffer) = (Vec::new(), None, vec![0; 1 << 16]);
        while !done.load(Ordering::Relaxed) {
            let mut idle = true;
            if let Ok((len, from)) = front.recv_from(&mut buffer) {
                client = Some(from);
                kept.push(buffer[..len].to_vec());
                back.send_to(&buffer[..len], server).unwrap();
                idle = false;
            }
            if let (Ok(len), Some(client)) = (back.recv(&mut buffer), client) {
                front.send_to(&buffer[..len], client).unwrap();
                idle = false;
            }
            if idle {
                thread::sleep(Duration::from_micros(200));
            }
        }
        kept
    };
    (address, thread::spawn(pass))
}

async fn snapshots(client: &Client) -> usize {
    match client.ask(&Request::Snapshots(Listing { limit: 10, ..Listing::default() })).await {
        Reply::Snapshots(found) => found.len(),
        reply => panic!("{reply:?}"),
    }
}

#[tokio::test]
async fn a_connection_that_is_played_again_does_nothing() {
    let bed = Bed::new();
    let server = bed.server.as_ref().unwrap().address();
    let done = Arc::new(AtomicBool::new(false));
    let (address, recording) = recorder(server, &done);
    let mut client = Client::connect(address, PRODUCTION).await.unwrap();
    client.hello().await;
    client.open("data").await;
    let blobs = tree(1, 4, 100);
    client.store(&blobs).await;
    let committed = client.commit(client.manifest("data", "production", root(&blobs))).await;
    assert!(matches!(committed, Reply::Committed(_)), "{committed:?}");
    client.quic.close(0_u32.into(), b"");
    done.store(true, Ordering::Relaxed);
    let kept = recording.join().unwrap();
    assert!(kept.len() > 8, "{} datagrams", kept.len());

    let honest = bed.open("data").await;
    let reader = bed.connect(PRODUCTION).await.unwrap();
    reader.hello().await;
    assert_eq!(snapshots(&reader).await, 1);
    for _ in 0..8 {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        for packet in &kept {
            socket.send_to(packet, server).unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(snapshots(&reader).await, 1);
    // And nobody is the worse for it.
    assert_eq!(honest.have(&blobs).await, [true; 7]);
}
