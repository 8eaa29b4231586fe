//! How much a connection has on its way: CUBIC, which does not take each loss on a long path for congestion.
//!
//! quinn's BBR does so too, and calls itself experimental: on a path of 150 ms and 100 Mbit/s that loses nothing, connections ended
//! after one to three copies, with nothing that arrived any more.

use std::{
    any::Any,
    sync::Arc,
    time::{Duration, Instant},
};

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;

/// Makes the controllers of connections.
#[derive(Debug, Default)]
pub(super) struct Congestion;

impl ControllerFactory for Congestion {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        let cubic = Arc::new(CubicConfig::default()).build(now, mtu);
        Box::new(Patient { cubic, path: Path { mtu: mtu.into(), ..Path::default() } })
    }
}

/// CUBIC cuts what is on its way by a third for each loss, and takes seconds to come back: with one packet lost in a hundred a path
/// of 50 ms carries half a megabyte a second, whatever its rate. Here a few losses count for nothing while no queue is seen to grow.
struct Patient {
    cubic: Box<dyn Controller>,
    path: Path,
}

/// What is known of a path.
#[derive(Debug, Clone, Default)]
struct Path {
    /// Bytes of the largest packet.
    mtu: u64,
    /// Bytes that arrived and that were lost lately.
    arrived: u64,
    lost: u64,
    /// Time there and back: as it is, and at its shortest.
    smoothed: Duration,
    shortest: Duration,
}

impl Path {
    fn arrived(&mut self, bytes: u64, smoothed: Duration, shortest: Duration) {
        (self.smoothed, self.shortest) = (smoothed, shortest);
        self.arrived += bytes;
        if self.arrived >= LATELY {
            self.arrived /= 2;
            self.lost /= 2;
        }
    }

    /// Whether a loss of so many bytes is no sign of congestion: nothing waits in a queue on the way, and not much was lost.
    fn is_noise(&mut self, bytes: u64) -> bool {
        if self.shortest < LONG || self.smoothed > self.shortest + self.shortest / 4 {
            // What a full queue drops says nothing of what is lost without one.
            return false;
        }
        self.lost += bytes;
        self.lost <= self.arrived / ONE_IN + BY_CHANCE * self.mtu
    }
}

/// From this on a path is long. On shorter ones CUBIC comes back at once, and a queue is told from nothing by less than what
/// a busy processor adds.
const LONG: Duration = Duration::from_millis(5);

/// Bytes over which losses are counted, from half of it to the whole.
const LATELY: u64 = 8 << 20;

/// Where more than one byte in so many is lost, that is congestion; as in BBR version 2
/// (draft-cardwell-iccrg-bbr-congestion-control-02, BBRLossThresh).
const ONE_IN: u64 = 50;

/// Packets that may be lost beyond that, for the first ones are no measure.
const BY_CHANCE: u64 = 4;

impl Controller for Patient {
    fn on_sent(&mut self, now: Instant, bytes: u64, last: u64) {
        self.cubic.on_sent(now, bytes, last);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.path.arrived(bytes, rtt.get(), rtt.min());
        self.cubic.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.cubic.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, persistent: bool, lost: u64) {
        // A router that marks packets says so itself, and loses none.
        let told = lost == 0;
        if !self.path.is_noise(lost) || persistent || told {
            self.cubic.on_congestion_event(now, sent, persistent, lost);
        }
    }

    fn on_mtu_update(&mut self, mtu: u16) {
        self.path.mtu = mtu.into();
        self.cubic.on_mtu_update(mtu);
    }

    fn window(&self) -> u64 {
        self.cubic.window()
    }

    fn metrics(&self) -> ControllerMetrics {
        self.cubic.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { cubic: self.cubic.clone_box(), path: self.path.clone() })
    }

    fn initial_window(&self) -> u64 {
        self.cubic.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MTU: u16 = 1452;

    fn controller() -> Patient {
        let built = Arc::new(Congestion).build(Instant::now(), MTU);
        *built.into_any().downcast().expect("it is ours")
    }

    /// Packets of a path, of which every so many gets lost; the window afterwards, and before.
    fn after(lost: u64, [shortest, smoothed]: [u64; 2]) -> (u64, u64) {
        let mut controller = controller();
        let before = controller.window();
        for packet in 1..=10_000 {
            let (mtu, now) = (u64::from(MTU), Instant::now());
            controller.path.arrived(mtu, Duration::from_millis(smoothed), Duration::from_millis(shortest));
            if packet % lost == 0 {
                controller.on_congestion_event(now, now, false, mtu);
            }
        }
        (controller.window(), before)
    }

    #[test]
    fn scattered_losses_on_a_long_path_are_no_congestion() {
        for lost in [100, 1000] {
            let (window, before) = after(lost, [50, 55]);
            assert_eq!(window, before, "one lost in {lost}");
        }
    }

    #[test]
    fn many_losses_a_queue_and_a_short_path_are() {
        for (lost, times) in [(20, [50, 55]), (100, [50, 70]), (100, [1, 1])] {
            let (window, before) = after(lost, times);
            assert!(window < before, "one lost in {lost}, {times:?}: {window}");
        }
    }

    #[test]
    fn what_a_full_queue_dropped_does_not_make_later_losses_congestion() {
        let (mut controller, now) = (controller(), Instant::now());
        let times = |smoothed| [smoothed, 50].map(Duration::from_millis);
        let [queued, shortest] = times(80);
        controller.path.arrived(1 << 20, queued, shortest);
        for _ in 0..400 {
            controller.on_congestion_event(now, now, false, MTU.into());
        }
        let window = controller.window();
        let [smoothed, shortest] = times(52);
        for _ in 0..20 {
            controller.path.arrived(100 * u64::from(MTU), smoothed, shortest);
            // Sent later than what was lost before: CUBIC would take it for another one.
            let later = now + Duration::from_secs(3600);
            controller.on_congestion_event(later, later, false, MTU.into());
        }
        assert_eq!(controller.window(), window);
    }

    #[test]
    fn what_a_router_says_and_a_path_that_broke_off_are() {
        for (persistent, lost) in [(false, 0), (true, 1)] {
            let mut controller = controller();
            let before = controller.window();
            controller.path.arrived(LATELY / 2, Duration::from_millis(50), Duration::from_millis(50));
            controller.on_congestion_event(Instant::now(), Instant::now(), persistent, lost);
            assert!(controller.window() < before);
        }
    }
}
