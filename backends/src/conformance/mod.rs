//! One suite that every store must pass: random histories, compared with a model after each step.
//!
//! A test implements [`Subject`] for its store and calls [`check`]. It panics with the history that went wrong, as short
//! as it could be made.

mod model;
mod ops;
mod repair;
mod runner;
mod staging;

use std::{fmt, ops::Range, path::Path, sync::Arc};

use proptest::test_runner::{Config, TestRunner};
use zumastor_core::{SnapshotNumber, SnapshotStore, StoreError};

pub use model::Bytes;
pub use ops::{Damage, Op, Receive, Way, history};
pub use staging::{deliver, plan_for};

use crate::{Faults, file};

/// A volume of the kind that is tested, and its user.
pub trait Subject: fmt::Debug {
    /// Opens the store: a new one at first, later the same one again after all that used it was dropped.
    fn open(&mut self, faults: Faults) -> Result<Arc<dyn SnapshotStore>, StoreError>;
    /// Writes to the head, as its user would.
    fn write_head(&mut self, offset: u64, data: &[u8]);
    /// Makes a part of the head zero, as a hole where there are holes.
    fn punch_head(&mut self, range: Range<u64>);
    /// Everything the head holds.
    fn read_head(&mut self) -> Vec<u8>;
    /// Makes a part of a snapshot that holds `good`, and begins where a leaf does, hold `bad`, as a bad disk does; also of
    /// the head if `head` says so, without anybody noticing that it was written. False if that was not done.
    fn damage(&mut self, number: SnapshotNumber, offset: u64, good: &[u8], bad: &[u8], head: bool) -> bool {
        let _ = (number, offset, good, bad, head);
        false
    }
    /// Makes a byte of a snapshot's leaf tree another; `at` is any number.
    fn damage_tree(&mut self, number: SnapshotNumber, at: u64) {
        let _ = (number, at);
    }
    /// What the size of the volume is a multiple of; there are volumes of no bytes only if it is 1.
    fn unit(&self) -> u64 {
        1
    }
    /// Whether what is staged survives that the store is dropped and opened again.
    fn durable(&self) -> bool {
        true
    }
}

/// Checks `cases` random histories, each on a store from `make`. A case gets its own store.
pub fn check<S: Subject>(cases: u32, make: impl Fn() -> S) {
    let mut config = Config::with_cases(cases);
    config.failure_persistence = None;
    config.max_shrink_iters = 400;
    let mut runner = TestRunner::new(config);
    let run = |history: Vec<Op>| {
        runner::run(&mut make(), &history);
        Ok(())
    };
    if let Err(failure) = runner.run(&history(), run) {
        panic!("{failure}");
    }
}

/// Deletes a store in a directory for good, stopping where it is told to.
pub fn destroy_store(origin: &Path, snapstore: &Path, faults: &Faults) -> Result<(), StoreError> {
    file::condemn(snapstore, faults)?;
    file::remove(origin, snapstore, faults)
}

/// Runs one history.
pub fn replay<S: Subject>(mut subject: S, history: &[Op]) {
    runner::run(&mut subject, history);
}
