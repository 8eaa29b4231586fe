//! What `history` tells.

use serde::{Deserialize, Serialize};
use zumastor_core::VolumeName;

use super::{TransferRecord, VolumeEvent};

/// Version of [`History`]: raised when a field changes its meaning or goes away.
pub const HISTORY_SCHEMA: u32 = 1;

/// What is remembered of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// [`HISTORY_SCHEMA`].
    pub schema: u32,
    /// The volume.
    pub volume: VolumeName,
    /// Transfers that ended, the newest first. Errors that repeat are there once.
    pub transfers: Vec<TransferRecord>,
    /// What happened to its snapshots, the newest first.
    pub events: Vec<VolumeEvent>,
}
