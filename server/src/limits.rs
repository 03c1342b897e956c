//! What those who connect may take of a server: each address, each machine, all together.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use vsync_protocol::id::MachineKey;
use vsync_protocol::limits::MAX_BLOB_LEN;
use vsync_protocol::wire::{Refusal, RefusalCode};

use crate::refusal::refusal;

/// Bounds of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections altogether.
    pub connections: usize,
    /// Connections of one machine. One that backs up twenty volumes at once has as many.
    pub connections_each: usize,
    /// Handshakes that one network, an IPv4 /24 or an IPv6 /48, may begin in
    /// [`HANDSHAKE_WINDOW`]. Loopback may begin any number.
    pub handshakes: u32,
    /// Requests of one machine a second; beyond that each waits.
    pub requests: u32,
    /// Names of blobs that one machine asks about a second; beyond that its requests wait.
    pub names: u32,
    /// Bytes of blobs that are being received from one machine; beyond that they wait. Far more
    /// than anybody needs: half of one blob may wait for bytes that others keep from it.
    pub receiving_each: usize,
    /// The same altogether.
    pub receiving: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            connections_each: 32,
            handshakes: 16,
            requests: 2000,
            names: 2_000_000,
            receiving_each: 256 << 20,
            receiving: 2 << 30,
        }
    }
}

/// For how long handshakes count.
pub const HANDSHAKE_WINDOW: Duration = Duration::from_secs(10);

/// How long a blob waits for room.
const ROOM_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a machine may save up what it may ask.
const BURST: Duration = Duration::from_secs(1);

/// Counts handshakes by network.
#[derive(Debug, Default)]
pub(crate) struct Handshakes(Mutex<HashMap<IpAddr, (Instant, u32)>>);

impl Handshakes {
    /// Whether one more from `address` may begin.
    pub(crate) fn admit(&self, address: IpAddr, most: u32, now: Instant) -> bool {
        let Some(network) = network(address) else { return true };
        let mut begun = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = |since: Instant| now.duration_since(since) >= HANDSHAKE_WINDOW;
        // Those who got here have shown that the address is theirs, so that there are few.
        begun.retain(|_, (since, _)| !is_over(*since));
        let (_, count) = begun.entry(network).or_insert((now, 0));
        if *count >= most {
            return false;
        }
        *count += 1;
        true
    }

    /// One that has shown a key that is let in counts no more.
    pub(crate) fn settle(&self, address: IpAddr) {
        let Some(network) = network(address) else { return };
        let mut begun = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, count)) = begun.get_mut(&network) {
            *count = count.saturating_sub(1);
        }
    }
}

/// The network that `address` is counted with; none of loopback.
fn network(address: IpAddr) -> Option<IpAddr> {
    let address = address.to_canonical();
    if address.is_loopback() {
        return None;
    }
    Some(match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() & !0xff).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 80 << 80).into(),
    })
}

/// Lets so much through a second, and what was saved up in the last.
#[derive(Debug)]
struct Pace {
    /// When all that was let through is paid for.
    paid: Mutex<Instant>,
    rate: u32,
}

impl Pace {
    fn of(rate: u32) -> Self {
        Self { paid: Mutex::new(Instant::now()), rate: rate.max(1) }
    }

    /// When `amount` more may go, asked `now`.
    fn when(&self, amount: usize, now: Instant) -> Instant {
        let cost = Duration::from_nanos(1_000_000_000_u64.saturating_mul(amount as u64) / u64::from(self.rate));
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        *paid = (*paid).max(now) + cost;
        paid.checked_sub(BURST).unwrap_or(now)
    }
}

/// What one machine's connections share.
#[derive(Debug)]
pub(crate) struct Client {
    requests: Pace,
    names: Pace,
    receiving: Arc<Semaphore>,
}

impl Client {
    /// Waits until the machine may ask again, about so many blobs.
    pub(crate) async fn pace(&self, names: usize) {
        let now = Instant::now();
        let at = self.requests.when(1, now).max(self.names.when(names, now));
        if at > now {
            tokio::time::sleep_until(at).await;
        }
    }
}

/// All machines that are connected.
#[derive(Debug)]
pub(crate) struct Clients {
    limits: Limits,
    connected: Mutex<HashMap<MachineKey, Arc<Client>>>,
    receiving: Arc<Semaphore>,
}

impl Clients {
    pub(crate) fn new(limits: Limits) -> Self {
        // So that a blob of any length finds room.
        let receiving = Arc::new(Semaphore::new(limits.receiving.max(MAX_BLOB_LEN)));
        Self { limits, connected: Mutex::default(), receiving }
    }

    /// A place for one more connection of `key`; none when it has as many as it may. Dropping
    /// it makes room.
    pub(crate) fn place(&self, key: MachineKey) -> Option<Arc<Client>> {
        let mut connected = self.connected.lock().unwrap_or_else(PoisonError::into_inner);
        // Each connection holds one, and this map.
        connected.retain(|_, client| Arc::strong_count(client) > 1);
        let client = connected.entry(key).or_insert_with(|| {
            Arc::new(Client {
                requests: Pace::of(self.limits.requests),
                names: Pace::of(self.limits.names),
                receiving: Arc::new(Semaphore::new(self.limits.receiving_each.max(MAX_BLOB_LEN))),
            })
        });
        (Arc::strong_count(client) <= self.limits.connections_each).then(|| Arc::clone(client))
    }

    /// Room for what a connection of `client` receives.
    pub(crate) fn receiving(&self, client: &Client) -> Receiving {
        Receiving { each: Arc::clone(&client.receiving), all: Arc::clone(&self.receiving) }
    }
}

/// Room for blobs that are being received.
#[derive(Clone, Debug)]
pub(crate) struct Receiving {
    each: Arc<Semaphore>,
    all: Arc<Semaphore>,
}

impl Receiving {
    /// Waits for room for `len` bytes, which is taken until the permits are dropped.
    pub(crate) async fn room_for(&self, len: usize) -> Result<[OwnedSemaphorePermit; 2], Refusal> {
        let full = || refusal(RefusalCode::NoSession, "too many blobs are being received; open a session again");
        let len = u32::try_from(len.min(MAX_BLOB_LEN)).unwrap_or(u32::MAX);
        let take = |room: &Arc<Semaphore>| timeout(ROOM_TIMEOUT, Arc::clone(room).acquire_many_owned(len));
        // A machine's own first: what waits for it keeps nothing from others.
        let each = take(&self.each).await.ok().and_then(Result::ok).ok_or_else(full)?;
        let all = take(&self.all).await.ok().and_then(Result::ok).ok_or_else(full)?;
        Ok([each, all])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_begins_so_many_handshakes_in_a_while() {
        let (handshakes, now) = (Handshakes::default(), Instant::now());
        let admit = |from: &str, now| handshakes.admit(address(from), 16, now);
        for number in 1..=17 {
            assert_eq!(admit(&format!("192.0.2.{number}"), now), number <= 16, "{number}");
            assert_eq!(admit(&format!("2001:db8:7:{number}::{number}"), now), number <= 16, "{number}");
            assert_eq!(admit(&format!("::ffff:198.51.100.{number}"), now), number <= 16, "{number}");
            assert!(admit("127.0.0.1", now) && admit("::1", now));
        }
        assert!(admit("192.0.3.1", now) && admit("2001:db8:8::1", now), "others");
        assert!(!admit("198.51.100.9", now), "the same in the other family");
        assert!(!admit("192.0.2.1", now + HANDSHAKE_WINDOW - Duration::from_millis(1)));
        handshakes.settle(address("192.0.2.3"));
        assert!(admit("192.0.2.1", now), "one of them was of a machine that is known");
        assert!(!admit("192.0.2.1", now));
        assert!(admit("192.0.2.1", now + HANDSHAKE_WINDOW));
    }

    #[test]
    fn what_is_beyond_the_pace_waits() {
        for (amount, waits) in [(1999, false), (2000, false), (2001, true)] {
            let (at_once, one_by_one) = (Pace::of(2000), Pace::of(2000));
            let now = Instant::now();
            assert_eq!(at_once.when(amount, now) > now, waits, "{amount} at once");
            let last = (0..amount).map(|_| one_by_one.when(1, now)).last();
            assert_eq!(last.is_some_and(|at| at > now), waits, "{amount} one by one");
        }
        // What was not asked is saved up, but not for ever.
        let pace = Pace::of(2000);
        let now = Instant::now();
        pace.when(4000, now);
        assert!(pace.when(1, now + Duration::from_millis(900)) > now + Duration::from_millis(900));
        let later = now + Duration::from_secs(1000);
        assert!(pace.when(2000, later) <= later && pace.when(1, later) > later);
    }

    #[test]
    fn a_machine_has_so_many_connections() {
        for most in [1, 2, 32] {
            let clients = Clients::new(Limits { connections_each: most, ..Limits::default() });
            let key = MachineKey::from_bytes([1; 32]);
            let mut places: Vec<_> = (0..most).map(|_| clients.place(key).unwrap()).collect();
            assert!(clients.place(key).is_none() && clients.place(MachineKey::from_bytes([2; 32])).is_some());
            places.pop();
            places.push(clients.place(key).unwrap());
            assert!(clients.place(key).is_none());
        }
    }

    #[tokio::test]
    async fn blobs_wait_for_room_and_find_it() {
        let limits = Limits { receiving_each: 0, receiving: 2 * MAX_BLOB_LEN, ..Limits::default() };
        let clients = Clients::new(limits);
        let place = |byte| clients.place(MachineKey::from_bytes([byte; 32])).unwrap();
        let (one, other) = (place(1), place(2));
        let room = clients.receiving(&one).room_for(MAX_BLOB_LEN).await.unwrap();
        let receiving = clients.receiving(&one);
        let mut waits = Box::pin(receiving.room_for(1));
        assert!(futures_pending(&mut waits).await, "a machine has room for one of the longest");
        assert!(clients.receiving(&other).room_for(MAX_BLOB_LEN).await.is_ok(), "others have theirs");
        drop(room);
        assert!(waits.await.is_ok());
    }

    async fn futures_pending(future: &mut (impl Future + Unpin)) -> bool {
        std::future::poll_fn(|context| {
            std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(context).is_pending())
        })
        .await
    }
}
