//! What targets miss that were to have each snapshot.

use jiff::Timestamp;
use redb::{ReadableTable, TableDefinition, WriteTransaction};
use zumastor_core::{NodeName, SnapshotNumber, VolumeName};

use super::{State, StateError, from_json};
use crate::api::Missed;

/// Volume, peer → [`Missed`].
pub(super) const MISSED: TableDefinition<(&str, &str), &str> = TableDefinition::new("missed");

impl State {
    /// Remembers that a snapshot goes which a peer was to have.
    pub fn note_missed(
        &self,
        volume: &VolumeName,
        peer: &NodeName,
        number: SnapshotNumber,
        at: Timestamp,
    ) -> Result<(), StateError> {
        self.write(|txn| {
            let mut table = txn.open_table(MISSED)?;
            let key = (volume.as_str(), peer.as_str());
            let before: Option<Missed> = table.get(key)?.map(|json| from_json(json.value())).transpose()?;
            if before.is_some_and(|before| before.newest == number) {
                // It was about to go when the daemon ended.
                return Ok(());
            }
            let before = before.unwrap_or(Missed { count: 0, newest: number, since: at });
            let now = Missed { count: before.count + 1, newest: before.newest.max(number), ..before };
            table.insert(key, serde_json::to_string(&now)?.as_str())?;
            Ok(())
        })
    }

    /// What a peer misses.
    pub fn missed(&self, volume: &VolumeName, peer: &NodeName) -> Result<Option<Missed>, StateError> {
        self.read(|txn| {
            let table = txn.open_table(MISSED)?;
            let value = table.get((volume.as_str(), peer.as_str()))?;
            value.map(|json| from_json(json.value())).transpose()
        })
    }
}

/// A peer has got a snapshot: what it misses beyond that is remembered, the rest is history.
pub(super) fn got(
    txn: &WriteTransaction,
    volume: &VolumeName,
    peer: &NodeName,
    common: SnapshotNumber,
) -> Result<(), StateError> {
    let mut table = txn.open_table(MISSED)?;
    let key = (volume.as_str(), peer.as_str());
    let missed: Option<Missed> = table.get(key)?.map(|json| from_json(json.value())).transpose()?;
    if missed.is_some_and(|missed| missed.newest <= common) {
        table.remove(key)?;
    }
    Ok(())
}
