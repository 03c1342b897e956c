//! How fast to send into a path.
//!
//! Cubic takes every lost packet for a full path. Over a long line that loses one packet in a thousand by chance, it
//! stays at a few hundred kilobytes a second, whatever the line's width. BBR models the path instead, and does not
//! mind; but on a local network, whose round trips take microseconds, its model is too coarse, and it sends slower than
//! it could. So both are kept informed, and the round trip decides whose window counts: nobody has to know their line.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{BbrConfig, Controller, ControllerFactory, CubicConfig};
use quinn_proto::RttEstimator;

/// From this shortest round trip on, a path is a long one.
const LONG: Duration = Duration::from_millis(5);

/// Makes [`Adaptive`] controllers.
#[derive(Debug, Default)]
pub(crate) struct AdaptiveConfig {
    near: Arc<CubicConfig>,
    far: Arc<BbrConfig>,
}

impl ControllerFactory for AdaptiveConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Adaptive {
            near: self.near.clone().build(now, current_mtu),
            far: self.far.clone().build(now, current_mtu),
            long: false,
        })
    }
}

/// Two controllers, of which the length of the path chooses one.
struct Adaptive {
    near: Box<dyn Controller>,
    far: Box<dyn Controller>,
    long: bool,
}

impl Adaptive {
    fn chosen(&self) -> &dyn Controller {
        if self.long { &*self.far } else { &*self.near }
    }

    fn both(&mut self, tell: impl Fn(&mut dyn Controller)) {
        tell(&mut *self.near);
        tell(&mut *self.far);
    }
}

impl Controller for Adaptive {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.both(|controller| controller.on_sent(now, bytes, last_packet_number));
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.long = rtt.min() >= LONG;
        self.both(|controller| controller.on_ack(now, sent, bytes, app_limited, rtt));
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_packet_num_acked: Option<u64>) {
        self.both(|controller| controller.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked));
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.both(|controller| {
            controller.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
        });
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.both(|controller| controller.on_mtu_update(new_mtu));
    }

    fn window(&self) -> u64 {
        self.chosen().window()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { near: self.near.clone_box(), far: self.far.clone_box(), long: self.long })
    }

    fn initial_window(&self) -> u64 {
        self.chosen().initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
