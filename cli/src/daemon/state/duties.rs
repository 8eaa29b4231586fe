//! What this node is for each volume, or was last, as the configuration that was applied says. A file that says something else
//! by now was edited by hand.

use redb::TableDefinition;
use serde::{Deserialize, Serialize};
use zumastor_core::{VolumeName, config::VolumeConfig};

use super::{State, StateError, from_json};

/// Volume → the [`Duty`] that its file may say; two while it is being changed.
pub(super) const DUTIES: TableDefinition<&str, &str> = TableDefinition::new("duties");

/// What a node is for a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Duty {
    /// The epoch in which it is the master, if it is.
    pub master: Option<u64>,
    /// Whether it receives it.
    pub source: bool,
}

impl Duty {
    /// What a configuration says.
    pub fn of(config: &VolumeConfig) -> Self {
        Self { master: config.master.as_ref().map(|master| master.epoch), source: config.source.is_some() }
    }

    /// Whether it is neither master nor replica: what it was before then counts.
    pub fn is_none(self) -> bool {
        self.master.is_none() && !self.source
    }

    /// Whether the change to `after` is one of masters: other nodes must hear of it.
    pub fn turns_into(self, after: Self) -> bool {
        self.master.is_some() && after.source
            || self.source && after.master.is_some()
            || self.master.zip(after.master).is_some_and(|(before, after)| before != after)
    }
}

impl State {
    /// What the file of a volume may say; nothing if it was never noted.
    pub fn duties(&self, volume: &VolumeName) -> Result<Vec<Duty>, StateError> {
        self.read(|txn| {
            let table = txn.open_table(DUTIES)?;
            let value = table.get(volume.as_str())?;
            Ok(value.map(|json| from_json(json.value())).transpose()?.unwrap_or_default())
        })
    }

    /// Notes what the file of a volume may say, unless that is known.
    pub fn note_duties(&self, volume: &VolumeName, duties: &[Duty]) -> Result<(), StateError> {
        if self.duties(volume)? == duties {
            return Ok(());
        }
        self.write(|txn| {
            let json = serde_json::to_string(duties)?;
            txn.open_table(DUTIES)?.insert(volume.as_str(), json.as_str())?;
            Ok(())
        })
    }
}
