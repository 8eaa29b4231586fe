//! What a transfer costs: time, processors, memory, and bytes on the wire.

use std::{
    io,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use zumastor::exit::Failure;
use zumastor_testbed::{cpu, peak_memory, reset_peak_memory};

use super::link::Link;

/// What one side spent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Spent {
    /// Seconds of processor time.
    pub cpu: f64,
    /// Most memory resident, in bytes.
    pub peak: u64,
}

/// What one run of a contender came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Seconds on the clock.
    pub seconds: f64,
    /// What the sending side spent.
    pub sender: Spent,
    /// What the receiving side spent.
    pub receiver: Spent,
    /// Bytes on the wire, both ways, headers included.
    pub wire: u64,
}

impl Sample {
    /// Each number the median of those in `samples`.
    pub fn median(samples: &[Self]) -> Self {
        let of = |pick: fn(&Self) -> f64| {
            let mut values: Vec<f64> = samples.iter().map(pick).collect();
            values.sort_by(f64::total_cmp);
            match values.len() {
                0 => 0.0,
                n if n % 2 == 1 => values[n / 2],
                n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
            }
        };
        Self {
            seconds: of(|sample| sample.seconds),
            sender: Spent { cpu: of(|s| s.sender.cpu), peak: of(|s| s.sender.peak as f64) as u64 },
            receiver: Spent { cpu: of(|s| s.receiver.cpu), peak: of(|s| s.receiver.peak as f64) as u64 },
            wire: of(|sample| sample.wire as f64) as u64,
        }
    }
}

/// Watches two daemons while `work` runs: the sender and the receiver, which may be the same.
pub fn daemons(
    link: &Link,
    sender: u32,
    receiver: u32,
    work: impl FnOnce() -> Result<(), Failure>,
) -> Result<Sample, Failure> {
    let read = |error: io::Error| Failure::failed(format!("a daemon cannot be measured: {error}"));
    let both = [sender, receiver];
    let mut before = [0.0; 2];
    for (at, pid) in both.into_iter().enumerate() {
        reset_peak_memory(pid).map_err(read)?;
        before[at] = cpu(pid).map_err(read)?.own;
    }
    let wire = link.bytes().map_err(read)?;
    let start = Instant::now();
    work()?;
    let seconds = start.elapsed().as_secs_f64();
    let wire = link.bytes().map_err(read)? - wire;
    let spent = |at: usize| -> io::Result<Spent> {
        Ok(Spent { cpu: cpu(both[at])?.own - before[at], peak: peak_memory(both[at])? })
    };
    Ok(Sample { seconds, sender: spent(0).map_err(read)?, receiver: spent(1).map_err(read)?, wire })
}

/// How often what cannot be asked for afterwards is looked at.
pub const GLANCE: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_of_each_number() {
        let sample = |seconds, wire| Sample { seconds, wire, ..Sample::default() };
        let median = Sample::median(&[sample(3.0, 1), sample(1.0, 9), sample(2.0, 5)]);
        assert!((median.seconds - 2.0).abs() < 1e-9 && median.wire == 5);
        let median = Sample::median(&[sample(1.0, 0), sample(2.0, 0)]);
        assert!((median.seconds - 1.5).abs() < 1e-9);
    }
}
