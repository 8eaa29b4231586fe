//! What hooks did.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zumastor_core::{SnapshotNumber, config::HookKind};

/// The last run of a hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookRun {
    /// Which hook.
    pub hook: HookKind,
    /// The program.
    pub program: PathBuf,
    /// The snapshot it was for.
    pub snapshot: Option<SnapshotNumber>,
    /// When it began.
    pub at: Timestamp,
    /// How long it took; nothing while it runs.
    pub millis: Option<u64>,
    /// What went wrong.
    pub error: Option<String>,
    /// What it said last, line by line.
    pub output: Vec<String>,
}
