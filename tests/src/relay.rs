//! A bad network in one process: a UDP relay that delays, loses, doubles and counts packets. The kernels that tests
//! run on have no `netem`.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::Rng;

/// How long a thread waits for a packet before it looks whether it should end.
const TICK: Duration = Duration::from_millis(20);

/// What happens to packets, in each direction alike.
#[derive(Clone, Copy, Debug, Default)]
pub struct Link {
    /// Every packet arrives so much later.
    pub delay: Duration,
    /// And up to so much more, by chance, which changes the order.
    pub jitter: Duration,
    /// The share of packets that are lost, from 0.0 to 1.0.
    pub loss: f64,
    /// The share of packets that arrive twice.
    pub duplicate: f64,
    /// The share of packets that arrive with a byte changed.
    pub corrupt: f64,
}

/// A relay before a server; it ends with its guard.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    front: Arc<UdpSocket>,
    server: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
    ended: AtomicBool,
    bytes: [AtomicU64; 2],
    packets: AtomicU64,
}

#[derive(Debug)]
struct State {
    link: Link,
    rng: Rng,
    /// The socket towards the server of each client.
    backs: HashMap<SocketAddr, Arc<UdpSocket>>,
    waiting: BinaryHeap<Reverse<(Instant, u64)>>,
    packets: HashMap<u64, (Arc<UdpSocket>, SocketAddr, Vec<u8>)>,
    serial: u64,
}

/// A direction, and its index in [`Shared::bytes`].
#[derive(Clone, Copy)]
enum Way {
    ToServer = 0,
    ToClient = 1,
}

impl Relay {
    /// A relay to a server, that for now does nothing but pass packets on.
    ///
    /// # Panics
    /// If the address is none or there are no sockets.
    #[must_use]
    #[track_caller]
    pub fn to(server: &str) -> Self {
        let server: SocketAddr = server.parse().expect("the address of a server");
        let front = socket([127, 0, 0, 1].into());
        let address = front.local_addr().expect("an address");
        let state = State {
            link: Link::default(),
            rng: Rng::new(1),
            backs: HashMap::new(),
            waiting: BinaryHeap::new(),
            packets: HashMap::new(),
            serial: 0,
        };
        let shared = Arc::new(Shared {
            front,
            server,
            state: Mutex::new(state),
            changed: Condvar::new(),
            ended: AtomicBool::new(false),
            bytes: [AtomicU64::new(0), AtomicU64::new(0)],
            packets: AtomicU64::new(0),
        });
        let (receiver, sender) = (shared.clone(), shared.clone());
        let threads = vec![std::thread::spawn(move || receive(&receiver)), std::thread::spawn(move || sender.send())];
        Self { address, shared, threads }
    }

    /// The address that clients use in place of the server's.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the link, from the next packet on.
    pub fn set(&self, link: Link) {
        self.shared.state().link = link;
    }

    /// Pulls the cable: nothing passes until [`Self::set`].
    pub fn cut(&self) {
        self.set(Link { loss: 1.0, ..Link::default() });
    }

    /// Lets every client come from a new port, as a router does that forgot them.
    pub fn rebind(&self) {
        self.shared.state().backs.clear();
    }

    /// The bytes that clients have sent so far, lost ones included, and those that the server has sent.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        let count = |way: Way| self.shared.bytes[way as usize].load(Ordering::Relaxed);
        (count(Way::ToServer), count(Way::ToClient))
    }

    /// How many packets came in, in both directions.
    #[must_use]
    pub fn packets(&self) -> u64 {
        self.shared.packets.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A panic of the thread was printed; a second one here would hide the test's own.
            drop(thread.join());
        }
        self.shared.state().backs.clear();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Counts a packet, and decides when and how often it arrives.
    fn accept(&self, way: Way, through: &Arc<UdpSocket>, to: SocketAddr, packet: &[u8]) {
        self.bytes[way as usize].fetch_add(packet.len() as u64, Ordering::Relaxed);
        self.packets.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state();
        let link = state.link;
        if state.chance(link.loss) {
            return;
        }
        let mut packet = packet.to_vec();
        if state.chance(link.corrupt) && !packet.is_empty() {
            let at = usize::try_from(state.rng.below(packet.len() as u64)).expect("an index");
            packet[at] ^= 0x55;
        }
        let copies = if state.chance(link.duplicate) { 2 } else { 1 };
        for _ in 0..copies {
            let jitter = state.fraction();
            let due = Instant::now() + link.delay + link.jitter.mul_f64(jitter);
            let serial = state.serial;
            state.serial += 1;
            state.waiting.push(Reverse((due, serial)));
            state.packets.insert(serial, (through.clone(), to, packet.clone()));
        }
        self.changed.notify_all();
    }

    /// Sends every packet when its time has come.
    fn send(&self) {
        let mut state = self.state();
        while !self.ended() {
            let now = Instant::now();
            match state.waiting.peek() {
                Some(Reverse((due, serial))) if *due <= now => {
                    let serial = *serial;
                    state.waiting.pop();
                    let (through, to, packet) = state.packets.remove(&serial).expect("a packet that waits");
                    drop(state);
                    // Whatever the network refuses is lost, as it would be further on.
                    drop(through.send_to(&packet, to));
                    state = self.state();
                }
                next => {
                    let pause = next.map_or(TICK, |Reverse((due, _))| (*due - now).min(TICK));
                    let waited = self.changed.wait_timeout(state, pause);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }
}

impl State {
    fn fraction(&mut self) -> f64 {
        f64::from(u32::try_from(self.rng.below(1 << 32)).expect("32 bits")) / f64::from(u32::MAX)
    }

    fn chance(&mut self, share: f64) -> bool {
        share > 0.0 && self.fraction() <= share
    }
}

/// A socket that holds a long burst: the only packets lost are those that the link says.
fn socket(local: IpAddr) -> Arc<UdpSocket> {
    let socket = UdpSocket::bind((local, 0)).expect("a socket");
    socket.set_read_timeout(Some(TICK)).expect("a time limit");
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 16 << 20).expect("root may have a large buffer");
    Arc::new(socket)
}

/// Takes what clients send; each client gets a socket and a thread for the answers.
fn receive(shared: &Arc<Shared>) {
    let mut buffer = vec![0; 1 << 16];
    while !shared.ended() {
        let Some((length, client)) = take(&shared.front, &mut buffer) else { continue };
        let known = shared.state().backs.get(&client).cloned();
        let back = known.unwrap_or_else(|| {
            let local = if shared.server.ip().is_loopback() { shared.server.ip() } else { [0, 0, 0, 0].into() };
            let back = socket(local);
            shared.state().backs.insert(client, back.clone());
            let (shared, answers) = (shared.clone(), back.clone());
            std::thread::spawn(move || answer(&shared, &answers, client));
            back
        });
        shared.accept(Way::ToServer, &back, shared.server, &buffer[..length]);
    }
}

/// Takes what the server sends to one client, until the client has another socket.
fn answer(shared: &Shared, back: &Arc<UdpSocket>, client: SocketAddr) {
    let mut buffer = vec![0; 1 << 16];
    let is_current = || shared.state().backs.get(&client).is_some_and(|current| Arc::ptr_eq(current, back));
    while !shared.ended() && is_current() {
        if let Some((length, _)) = take(back, &mut buffer) {
            shared.accept(Way::ToClient, &shared.front, client, &buffer[..length]);
        }
    }
}

/// The next packet, if one comes within a [`TICK`].
fn take(socket: &UdpSocket, buffer: &mut [u8]) -> Option<(usize, SocketAddr)> {
    match socket.recv_from(buffer) {
        Ok(packet) => Some(packet),
        // ConnectionRefused: an earlier packet found nobody, for instance while the server restarts.
        Err(error) => match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted | ErrorKind::ConnectionRefused => None,
            _ => panic!("the relay's socket: {error}"),
        },
    }
}
