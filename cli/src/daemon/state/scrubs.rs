//! What scrubs found.

use std::collections::HashSet;

use redb::TableDefinition;
use zumastor_core::{SnapshotGuid, VolumeName};

use super::{State, StateError, from_json};
use crate::api::ScrubReport;

/// Volume, identity of the snapshot → [`ScrubReport`].
pub(super) const SCRUBS: TableDefinition<(&str, u128), &str> = TableDefinition::new("scrubs");

impl State {
    /// Remembers what a scrub found; what is remembered of snapshots that are not among `there` is forgotten.
    pub fn note_scrub(
        &self,
        volume: &VolumeName,
        guid: SnapshotGuid,
        report: &ScrubReport,
        there: &[SnapshotGuid],
    ) -> Result<(), StateError> {
        self.write(|txn| {
            let mut table = txn.open_table(SCRUBS)?;
            let there: HashSet<u128> = there.iter().map(|guid| guid.0.as_u128()).collect();
            table.retain(|(of, guid), _| of != volume.as_str() || there.contains(&guid))?;
            let json = serde_json::to_string(report)?;
            table.insert((volume.as_str(), guid.0.as_u128()), json.as_str())?;
            Ok(())
        })
    }

    /// What the last scrub of each snapshot found.
    pub fn scrubs(&self, volume: &VolumeName) -> Result<Vec<(SnapshotGuid, ScrubReport)>, StateError> {
        self.read(|txn| {
            let table = txn.open_table(SCRUBS)?;
            let mut all = Vec::new();
            for entry in table.range((volume.as_str(), 0)..=(volume.as_str(), u128::MAX))? {
                let (key, json) = entry?;
                let guid = SnapshotGuid(uuid::Uuid::from_u128(key.value().1));
                all.push((guid, from_json(json.value())?));
            }
            Ok(all)
        })
    }
}
