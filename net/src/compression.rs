//! Whether compressing pays: it saves bytes on the wire, and costs time that a fast wire has not to spare.

use std::{
    sync::{Mutex, MutexGuard},
    time::Instant,
};

/// Compression of what one peer is sent of one volume, by all streams together.
///
/// Where the path could carry far more than is being sent, compressing only costs time: after the first part of a
/// transfer, data are then sent as they are. As soon as the path is what limits, compressing pays again.
#[derive(Debug)]
pub struct Compression {
    level: i32,
    pace: Mutex<Pace>,
}

/// How fast data are being sent, before compression.
#[derive(Debug)]
struct Pace {
    /// Since the transfer began.
    sent: u64,
    /// Bytes a second, as measured last.
    rate: u64,
    /// What is being measured.
    bytes: u64,
    since: Instant,
}

impl Compression {
    /// With a zstd level.
    pub fn new(level: i32) -> Self {
        Self { level, pace: Mutex::new(Pace::new(Instant::now())) }
    }

    pub(crate) fn level(&self) -> i32 {
        self.level
    }

    /// A transfer begins.
    pub(crate) fn begin(&self) {
        *self.pace() = Pace::new(Instant::now());
    }

    /// Whether to compress the next `bytes`, when the path could carry `capacity` bytes a second.
    pub(crate) fn is_worthwhile(&self, bytes: usize, capacity: Option<u64>) -> bool {
        let mut pace = self.pace();
        pace.add(bytes as u64, Instant::now());
        pace.sent <= PATIENCE || capacity.is_none_or(|capacity| capacity < 2 * pace.rate)
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().expect("no panic while locked")
    }
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { sent: 0, rate: u64::MAX / 2, bytes: 0, since: now }
    }

    fn add(&mut self, bytes: u64, now: Instant) {
        self.sent += bytes;
        self.bytes += bytes;
        if self.bytes >= WINDOW {
            let seconds = now.duration_since(self.since).as_secs_f64().max(1e-6);
            *self =
                Self { sent: self.sent, rate: (self.bytes as f64 / seconds) as u64, bytes: 0, since: now };
        }
    }
}

/// So much of a transfer is compressed in any case: what it takes until QUIC has found out what the path could carry, and the
/// rate has been measured over the second half of it.
const PATIENCE: u64 = 2 * WINDOW;

/// Bytes over which the rate is measured.
const WINDOW: u64 = 8 << 20;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_window() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        for millis in 1..=16 {
            pace.add(1 << 20, start + Duration::from_millis(if millis <= 8 { millis } else { 10 * millis }));
        }
        // The second 8 MiB took from 8 to 160 ms.
        assert_eq!(pace.rate, (f64::from(8 << 20) / 0.152) as u64);
    }

    #[test]
    fn it_steps_aside_where_the_path_could_carry_much_more() {
        let compression = Compression::new(1);
        let batches = |count: usize, capacity: Option<u64>| {
            (0..count).filter(|_| compression.is_worthwhile(1 << 20, capacity)).count()
        };
        assert_eq!(batches(1000, None), 1000);
        assert_eq!(batches(1000, Some(0)), 1000);
        assert_eq!(batches(1000, Some(u64::MAX)), 0);
        compression.begin();
        assert_eq!(batches(1000, Some(u64::MAX)), 16);
        assert_eq!(batches(1000, Some(1000)), 1000);
    }
}
