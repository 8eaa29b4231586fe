//! Rate limits.

use std::{sync::Mutex, time::Duration};

use tokio::time::Instant;

/// A token bucket that holds a tenth of a second's worth: bursts stay short, and the mean is what was asked for.
#[derive(Debug)]
pub struct RateLimiter {
    rate: u64,
    /// When everything that was let through so far will have been paid for.
    paid: Mutex<Option<Instant>>,
}

impl RateLimiter {
    /// Lets through `rate` bytes a second; at least one.
    pub fn new(rate: u64) -> Self {
        Self { rate: rate.max(1), paid: Mutex::new(None) }
    }

    /// Waits until `bytes` may be sent.
    pub async fn acquire(&self, bytes: usize) {
        let wait = self.reserve(bytes, Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// How many bytes to send at once: small enough that a slow limit still sends something every second.
    pub fn quantum(&self) -> usize {
        usize::try_from((self.rate / 10).clamp(1024, 64 << 10)).expect("at most 64 KiB")
    }

    fn reserve(&self, bytes: usize, now: Instant) -> Duration {
        let mut paid = self.paid.lock().expect("no panic while locked");
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let start = paid.map_or(earliest, |paid| paid.max(earliest));
        let end = start + Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        *paid = Some(end);
        end.saturating_duration_since(now)
    }
}

const BURST: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_mean_rate_is_the_limit() {
        let limiter = RateLimiter::new(1_000_000);
        let start = Instant::now();
        for _ in 0..100 {
            limiter.acquire(50_000).await;
        }
        let took = start.elapsed().as_secs_f64();
        assert!((4.8..5.1).contains(&took), "5 MB at 1 MB/s took {took} s");
        // An idle second is not saved up for a burst.
        tokio::time::advance(Duration::from_secs(10)).await;
        let start = Instant::now();
        for _ in 0..20 {
            limiter.acquire(50_000).await;
        }
        assert!(start.elapsed().as_secs_f64() > 0.8);
    }
}
