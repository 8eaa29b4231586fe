//! Daemons killed again and again in the middle of a full copy: it completes, little is sent twice, memory is bounded.

use std::time::{Duration, Instant};

use crate::common::{digest, last_error, pair, shows};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use zumastor::exit::Failure;
use zumastor_core::{HumanBytes, SEGMENT, parse_size};
use zumastor_testbed::{Node, image};

/// How often a daemon is killed.
const KILLS: u64 = 10;
/// Streams of a transfer: at most one segment of each is sent again after a kill.
const STREAMS: u64 = 4;
/// A transfer takes no longer than this unless it hangs.
const PATIENCE: Duration = Duration::from_secs(120);
/// No daemon needs more memory than this, whatever the size of the volume.
const MEMORY: u64 = 256 << 20;

/// What the upstream has sent over all its lives, and the most memory that a daemon had.
struct Watch {
    /// By those lives that have ended, as far as was seen.
    before: u64,
    /// By this one, when it was last asked.
    now: u64,
    asked: Instant,
    /// What may have been sent unseen, between the last answer and the end of a life.
    unseen: f64,
    memory: u64,
}

impl Watch {
    fn look(&mut self, upstream: &Node, downstream: &Node) -> Result<(), Failure> {
        self.asked = Instant::now();
        self.now = upstream.volume("v")?.targets[0].sent_data;
        self.memory = self.memory.max(upstream.peak_memory()?).max(downstream.peak_memory()?);
        Ok(())
    }

    fn upstream_died(&mut self, rate: u64) {
        self.unseen += rate as f64 * self.asked.elapsed().as_secs_f64();
        self.before += std::mem::take(&mut self.now);
    }
}

#[test]
fn ten_kills_in_a_full_copy() -> Result<(), Failure> {
    let size = std::env::var("ZUMASTOR_TEST_SIZE").map_or(Ok(512 << 20), |size| parse_size(&size));
    let size = size.map_err(Failure::doing("ZUMASTOR_TEST_SIZE"))?;
    let seed = std::env::var("ZUMASTOR_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(rand::random);
    println!("seed {seed} (ZUMASTOR_TEST_SEED={seed} repeats it)");
    let mut random = SmallRng::seed_from_u64(seed);

    let dir = tempfile::tempdir().map_err(Failure::doing("a directory"))?;
    // So slow that ten kills land in the middle.
    let rate = size / 16;
    let (mut upstream, mut downstream) =
        pair(dir.path(), |path| image(path, size, seed), &["--ratelimit", &rate.to_string()], &[])?;
    downstream.ok(&["replicate", "v", "upstream"])?;

    let start = Instant::now();
    let mut watch = Watch { before: 0, now: 0, asked: start, unseen: 0.0, memory: 0 };
    let mut kills = [0, 0];
    for kill in 0..KILLS {
        // At a random moment of a tenth of the data each.
        let at = size / KILLS * kill + random.random_range(size / KILLS / 4..size / KILLS);
        loop {
            watch.look(&upstream, &downstream)?;
            let volume = downstream.volume("v")?;
            assert!(volume.snapshots.is_empty(), "done after {kill} kills already");
            let done = volume.source.and_then(|source| source.work.progress).map_or(0, |now| now.done);
            if done >= at {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "stuck before kill {kill}: {:?}", last_error(&downstream));
            std::thread::sleep(Duration::from_millis(5));
        }
        let killed = Instant::now();
        let who = if random.random_bool(0.5) {
            upstream.kill()?;
            watch.upstream_died(rate);
            kills[0] += 1;
            upstream.up()?;
            "upstream"
        } else {
            downstream.kill()?;
            kills[1] += 1;
            downstream.up()?;
            "downstream"
        };
        // It goes on by itself; asking only spares the pause before the next attempt.
        downstream.ok(&["replicate", "v", "upstream"])?;
        while killed.elapsed() < PATIENCE {
            watch.look(&upstream, &downstream)?;
            let received = downstream.volume("v")?.source.and_then(|source| source.work.progress);
            let fresh = who == "downstream" || watch.now > 0;
            if fresh && received.is_some_and(|progress| progress.data > 0) {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        println!("{who} killed at {}; data flows again after {:.1?}", HumanBytes(at), killed.elapsed());
    }
    let begun = Instant::now();
    while !shows(&downstream.volume("v")?, 0) {
        watch.look(&upstream, &downstream)?;
        assert!(begun.elapsed() < PATIENCE, "it does not end: {:?}", last_error(&downstream));
        std::thread::sleep(Duration::from_millis(10));
    }
    watch.look(&upstream, &downstream)?;

    let sent = watch.before + watch.now + watch.unseen as u64;
    let again = sent.saturating_sub(size);
    println!(
        "{} in {:.1} s, {} kills of the upstream and {} of the downstream: {} sent again ({} per kill), {} of memory",
        HumanBytes(size),
        start.elapsed().as_secs_f64(),
        kills[0],
        kills[1],
        HumanBytes(again),
        HumanBytes(again / KILLS),
        HumanBytes(watch.memory)
    );
    assert!(again <= KILLS * STREAMS * SEGMENT, "{again} bytes were sent again");
    assert!(watch.memory < MEMORY, "{} of memory", HumanBytes(watch.memory));
    let here = digest(&upstream)?;
    assert_eq!(here, digest(&downstream)?);
    for node in [&upstream, &downstream] {
        let said = node.volume("v")?.snapshots[0].digest.map(|digest| digest.to_string());
        assert_eq!(said.as_ref(), Some(&here));
    }
    Ok(())
}
