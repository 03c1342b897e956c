//! A long line between two hosts: packets of any protocol arrive later, now and then not at all, and not faster than
//! the line is wide. The kernels that benchmarks run on have no `netem`; TCP and QUIC must cross the same line.
//!
//!     link --delay-ms 50 --loss 0.001 --mbit 400  <tun-of-one-host >tun-of-the-other
//!
//! Standard input and output are two open TUN devices, each of which is read and written. What became of the packets is
//! printed on standard error once a second.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use vsync_tests::Rng;

/// The largest packet; TUN devices of the benchmark have an MTU of 1500.
const PACKET: usize = 9216;

#[derive(Clone, Copy, Debug, Parser)]
struct Line {
    /// Every packet arrives so much later, each way: half of the round trip.
    #[arg(long, default_value_t = 0.0)]
    delay_ms: f64,
    /// The share of packets that are lost by chance.
    #[arg(long, default_value_t = 0.0)]
    loss: f64,
    /// The share of packets that others overtake: they arrive a tenth of the delay late.
    #[arg(long, default_value_t = 0.0)]
    reorder: f64,
    /// Width of the line.
    #[arg(long, default_value_t = 400.0)]
    mbit: f64,
    /// What does not fit into a queue of so many milliseconds before the line is dropped.
    #[arg(long, default_value_t = 100.0)]
    queue_ms: f64,
    /// Chance, reproducibly.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// One direction of the line.
struct Way {
    line: Line,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>>,
    carried: u64,
    lost: u64,
    dropped: u64,
    /// When the line has sent all that it was given.
    free: Option<Instant>,
}

impl Way {
    fn new(line: Line) -> Arc<Self> {
        Arc::new(Self { line, state: Mutex::default(), changed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes packets until the device is gone.
    fn take(&self, mut from: File, mut rng: Rng) -> io::Result<()> {
        let mut buffer = vec![0; PACKET];
        loop {
            let len = from.read(&mut buffer)?;
            self.accept(&buffer[..len], Instant::now(), &mut rng);
        }
    }

    fn accept(&self, packet: &[u8], now: Instant, rng: &mut Rng) {
        let mut state = self.lock();
        if chance(rng, self.line.loss) {
            state.lost += 1;
            return;
        }
        let begin = state.free.map_or(now, |free| free.max(now));
        if begin - now > millis(self.line.queue_ms) {
            state.dropped += 1;
            return;
        }
        let sent = begin + Duration::from_secs_f64(packet.len() as f64 * 8.0 / (self.line.mbit * 1e6));
        state.free = Some(sent);
        let late = if chance(rng, self.line.reorder) { self.line.delay_ms / 10.0 } else { 0.0 };
        state.carried += 1;
        let serial = state.carried;
        state.waiting.push(Reverse((sent + millis(self.line.delay_ms + late), serial, packet.to_vec())));
        self.changed.notify_one();
    }

    /// Hands packets on when they are due.
    fn give(&self, mut to: File) -> io::Result<()> {
        loop {
            let packet = self.next();
            match to.write_all(&packet) {
                // A device that is not up yet, or whose queue is full, loses packets as a network card does.
                Err(error) if matches!(error.kind(), io::ErrorKind::Other | io::ErrorKind::WouldBlock) => {}
                outcome => outcome?,
            }
        }
    }

    fn next(&self) -> Vec<u8> {
        let mut state = self.lock();
        loop {
            let due = state.waiting.peek().map(|Reverse((due, ..))| *due);
            let wait = match due {
                None => Duration::from_secs(1),
                Some(due) => due.saturating_duration_since(Instant::now()),
            };
            if wait.is_zero()
                && let Some(Reverse((.., packet))) = state.waiting.pop()
            {
                return packet;
            }
            state = self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn chance(rng: &mut Rng, share: f64) -> bool {
    share > 0.0 && (rng.below(1 << 32) as f64) < share * (1_u64 << 32) as f64
}

fn millis(millis: f64) -> Duration {
    Duration::from_secs_f64(millis / 1e3)
}

fn main() -> io::Result<()> {
    let line = Line::parse();
    let one = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let other = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let ways = [Way::new(line), Way::new(line)];
    let mut threads = Vec::new();
    for (seed, ((from, to), way)) in (line.seed..).zip([(&one, &other), (&other, &one)].into_iter().zip(&ways)) {
        let (from, to) = (from.try_clone()?, to.try_clone()?);
        let (taking, giving) = (way.clone(), way.clone());
        threads.push(thread::spawn(move || taking.take(from, Rng::new(seed))));
        threads.push(thread::spawn(move || giving.give(to)));
    }
    // Until a device is gone, or a signal ends the program.
    while threads.iter().all(|thread| !thread.is_finished()) {
        thread::sleep(Duration::from_secs(1));
        report(&ways);
    }
    Ok(())
}

/// How many packets were carried, lost by chance and dropped for want of room so far, one way and the other.
fn report(ways: &[Arc<Way>; 2]) {
    let counts = ways.each_ref().map(|way| {
        let state = way.lock();
        format!("{} {} {}", state.carried, state.lost, state.dropped)
    });
    eprintln!("{} {}", counts[0], counts[1]);
}
