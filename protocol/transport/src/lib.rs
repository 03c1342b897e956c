//! How QUIC and TLS are set up: TLS 1.3 with raw Ed25519 keys on both sides, transport
//! parameters, and a UDP socket with buffers large enough not to drop bursts.
//!
//! No certificates, no resumption, no early data: a machine is its key, and whether the
//! key may connect is asked anew each time. Agent and server share this and nothing else
//! that touches the network; `vsync-protocol` stays free of sockets.

mod congestion;
mod verify;

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use quinn::congestion::{BbrConfig, CubicConfig};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, ServerConfig, TransportConfig, VarInt};
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::sign::CertifiedKey;
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use vsync_protocol::id::MachineKey;
use vsync_protocol::limits::MAX_UPLOAD_STREAMS;
use vsync_protocol::wire::{ALPN, spki};

use congestion::AdaptiveConfig;
use verify::{AdmittedKeys, PinnedServer};

/// Unacknowledged bytes of one stream. Larger windows let quinn close a lossy connection
/// for too many gaps in a stream.
pub const STREAM_WINDOW: u32 = 16 << 20;

/// Unacknowledged bytes of a connection, each way: 250 MB/s at 100 ms, and a bound on what
/// one client can make the server hold.
pub const CONNECTION_WINDOW: u32 = 24 << 20;

/// What a server grants of that to a connection before it has looked at how many there are.
pub const FIRST_WINDOW: u32 = 512 << 10;

/// Requests of one connection that may be under way.
pub const MAX_REQUESTS: u32 = 64;

/// Largest datagram that MTU discovery tries. Above it, a batch of segments outgrows what
/// one `sendmsg` may carry and quinn falls back to 1200 bytes.
pub const MAX_DATAGRAM: u16 = 6500;

/// Socket buffers asked for; Linux' default holds fewer than a hundred packets.
pub const SOCKET_BUFFER: usize = 8 << 20;

/// A connection without a sign of life for this long is dead.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// A PKCS #8 Ed25519 private key up to its 32 bytes (RFC 8410, section 7).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How fast to send into a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Congestion {
    /// As [`Cubic`](Self::Cubic) on short paths, as [`Bbr`](Self::Bbr) on long ones.
    #[default]
    Adaptive,
    /// For paths that lose packets only when they are full.
    Cubic,
    /// For paths that lose packets for other reasons, where Cubic collapses.
    Bbr,
}

/// Why TLS or the socket could not be set up.
#[derive(Debug, Error)]
pub enum TransportError {
    /// rustls refuses the set-up.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
    /// The address is not to be had.
    #[error("cannot listen on UDP {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// aws-lc-rs with AES-GCM first: four times cheaper per packet than ChaCha20 where the
/// processor has AES instructions.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..aws_lc_rs::default_provider()
    })
}

/// A machine's identity in the form that TLS presents: its raw public key.
///
/// # Errors
/// When rustls cannot load the key.
pub fn raw_key(identity: &SigningKey, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, TransportError> {
    let der = PrivatePkcs8KeyDer::from([PKCS8_PREFIX.as_slice(), identity.as_bytes()].concat()).into();
    let key = provider.key_provider.load_private_key(der).map_err(TransportError::Tls)?;
    let public = MachineKey::from_bytes(identity.verifying_key().to_bytes());
    Ok(Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki::encode(public))], key)))
}

/// The key that the other side of a connection proved to hold.
#[must_use]
pub fn peer_key(connection: &quinn::Connection) -> Option<MachineKey> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    spki::decode(chain.first()?)
}

/// What both sides set alike: windows, MTU, timeouts.
#[must_use]
pub fn transport(congestion: Congestion) -> TransportConfig {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MAX_DATAGRAM);
    let mut transport = TransportConfig::default();
    transport
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(u64::from(CONNECTION_WINDOW))
        .max_concurrent_bidi_streams(VarInt::from_u32(MAX_REQUESTS))
        .max_concurrent_uni_streams(VarInt::from_u32(MAX_UPLOAD_STREAMS))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT.as_millis() as u32))))
        .keep_alive_interval(Some(KEEP_ALIVE))
        // Reordering is not loss; what is really lost, the time threshold still finds.
        .packet_threshold(64)
        .mtu_discovery_config(Some(mtu));
    match congestion {
        Congestion::Adaptive => transport.congestion_controller_factory(Arc::new(AdaptiveConfig::default())),
        Congestion::Cubic => transport.congestion_controller_factory(Arc::new(CubicConfig::default())),
        Congestion::Bbr => transport.congestion_controller_factory(Arc::new(BbrConfig::default())),
    };
    transport
}

/// What an endpoint needs to receive datagrams of [`MAX_DATAGRAM`].
#[must_use]
pub fn endpoint_config() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    // 6500 lies within what quinn accepts, 1200 to 65527.
    let accepted = config.max_udp_payload_size(MAX_DATAGRAM).is_ok();
    debug_assert!(accepted);
    config
}

/// The server's side: presents `identity`, lets in the keys that `admit` takes.
///
/// # Errors
/// When rustls refuses the identity.
pub fn server_config(
    identity: &SigningKey,
    admit: impl Fn(MachineKey) -> bool + Send + Sync + 'static,
    congestion: Congestion,
) -> Result<ServerConfig, TransportError> {
    let provider = provider();
    let resolver = AlwaysResolvesServerRawPublicKeys::new(raw_key(identity, &provider)?);
    let verifier = AdmittedKeys::new(admit, provider.signature_verification_algorithms);
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TransportError::Tls)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(resolver));
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.max_early_data_size = 0;
    tls.send_tls13_tickets = 0;
    tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    let crypto = QuicServerConfig::try_from(tls)
        .map_err(|error| TransportError::Tls(rustls::Error::General(error.to_string())))?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    let mut transport = transport(congestion);
    transport.receive_window(VarInt::from_u32(FIRST_WINDOW));
    config
        .transport_config(Arc::new(transport))
        // Strangers get little memory before they have shown a key.
        .max_incoming(128)
        .incoming_buffer_size(64 << 10)
        .incoming_buffer_size_total(8 << 20);
    Ok(config)
}

/// The agent's side: presents `identity`, talks to the one server that holds `server`.
///
/// # Errors
/// When rustls refuses the identity.
pub fn client_config(
    identity: &SigningKey,
    server: MachineKey,
    congestion: Congestion,
) -> Result<ClientConfig, TransportError> {
    let provider = provider();
    let resolver = AlwaysResolvesClientRawPublicKeys::new(raw_key(identity, &provider)?);
    let verifier = PinnedServer::new(server, provider.signature_verification_algorithms);
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TransportError::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(resolver));
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.enable_early_data = false;
    tls.resumption = rustls::client::Resumption::disabled();
    let crypto = QuicClientConfig::try_from(tls)
        .map_err(|error| TransportError::Tls(rustls::Error::General(error.to_string())))?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport(congestion)));
    Ok(config)
}

/// A UDP socket on `address` with large buffers; for `[::]`, of both address families.
///
/// # Errors
/// When the address is taken or not this machine's.
pub fn bind(address: SocketAddr) -> Result<UdpSocket, TransportError> {
    let open = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.bind(&address.into())?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    let socket = open().map_err(|source| TransportError::Bind { address, source })?;
    enlarge_buffers(&socket);
    Ok(socket.into())
}

/// Asks for [`SOCKET_BUFFER`], with privilege if there is any, since the kernel silently
/// gives less than asked for, which costs packets under load.
fn enlarge_buffers(socket: &Socket) {
    use rustix::net::sockopt::{set_socket_recv_buffer_size_force, set_socket_send_buffer_size_force};
    // Each is followed by reading back what was got, so its own word does not matter.
    let _ = set_socket_recv_buffer_size_force(socket, SOCKET_BUFFER)
        .or_else(|_| socket.set_recv_buffer_size(SOCKET_BUFFER).map_err(|_| rustix::io::Errno::NOBUFS));
    let _ = set_socket_send_buffer_size_force(socket, SOCKET_BUFFER)
        .or_else(|_| socket.set_send_buffer_size(SOCKET_BUFFER).map_err(|_| rustix::io::Errno::NOBUFS));
    for (name, got) in [("rmem", socket.recv_buffer_size()), ("wmem", socket.send_buffer_size())] {
        let got = got.unwrap_or(0);
        // Linux reports twice what it grants.
        if got / 2 < SOCKET_BUFFER {
            let got = got / 2;
            tracing::warn!(
                "a UDP buffer of {got} bytes is small, and loses packets under load; as root: sysctl -w net.core.{name}_max={SOCKET_BUFFER}"
            );
        }
    }
}
