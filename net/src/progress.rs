//! How far a transfer is, and what came of it.

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use zumastor_core::SnapshotNumber;

/// What a transfer is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Waiting for a connection, or for its turn.
    Connecting,
    /// Finding out what is needed.
    Planning,
    /// Data is coming in.
    Transferring,
    /// All data is here; checking and committing it.
    Verifying,
    /// Making the volume show the new snapshot.
    Flipping,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Connecting => "connecting",
            Self::Planning => "planning",
            Self::Transferring => "transferring",
            Self::Verifying => "verifying",
            Self::Flipping => "flipping",
        })
    }
}

/// How far a transfer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What it is doing.
    pub phase: Phase,
    /// The snapshot that is received.
    pub number: Option<SnapshotNumber>,
    /// Bytes of the volume that may differ, at most: what the transfer has to go through.
    pub total: u64,
    /// How many of them are done, those of earlier runs included.
    pub done: u64,
    /// How many of them an earlier, interrupted run had done: not sent again.
    pub resumed: u64,
    /// Bytes of volume data that came in during this run, after decompression.
    pub data: u64,
    /// Bytes that came in for them.
    pub wire: u64,
}

impl Default for Progress {
    fn default() -> Self {
        Self { phase: Phase::Connecting, number: None, total: 0, done: 0, resumed: 0, data: 0, wire: 0 }
    }
}

/// What came of a pull.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullSummary {
    /// The snapshot that upstream and downstream both have now; none when the upstream has none.
    pub number: Option<SnapshotNumber>,
    /// Whether it was received now; otherwise it was there already.
    pub received: bool,
    /// How many snapshots were received: more than one where each is sent, and not only the newest.
    #[serde(default)]
    pub snapshots: u64,
    /// The snapshot it was built upon.
    pub base: Option<SnapshotNumber>,
    /// Bytes of volume data that came in.
    pub data: u64,
    /// Bytes that came in for them.
    pub wire: u64,
    /// Bytes that an earlier, interrupted run had fetched.
    pub resumed: u64,
    /// Leaves that had to be fetched a second time because they did not match their hash.
    pub refetched: u64,
    /// Time it took, in milliseconds.
    pub millis: u64,
}

/// Where a transfer reports its progress; whoever is interested subscribes.
#[derive(Debug, Clone)]
pub struct Reporter(watch::Sender<Progress>);

impl Reporter {
    /// A reporter for a transfer that has not begun.
    pub fn new() -> Self {
        Self(watch::Sender::new(Progress::default()))
    }

    /// Follows the progress.
    pub fn subscribe(&self) -> watch::Receiver<Progress> {
        self.0.subscribe()
    }

    /// The progress now.
    pub fn current(&self) -> Progress {
        *self.0.borrow()
    }

    /// It is so far now.
    pub fn set(&self, progress: Progress) {
        self.0.send_replace(progress);
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut Progress)) {
        self.0.send_modify(change);
    }

    pub(crate) fn phase(&self, phase: Phase) {
        self.update(|progress| progress.phase = phase);
    }
}

impl Default for Reporter {
    fn default() -> Self {
        Self::new()
    }
}
