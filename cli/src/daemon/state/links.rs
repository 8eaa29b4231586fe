//! Since when a volume is replicated with a peer, and what was asked for that is to be done later.

use jiff::Timestamp;
use redb::{ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};
use zumastor_core::{NodeName, SnapshotNumber, VolumeName};

use super::{State, StateError, from_json};

/// Volume, peer → [`Link`].
pub(super) const LINKS: TableDefinition<(&str, &str), &str> = TableDefinition::new("links");

/// A volume and a peer that it is sent to or comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Since when.
    pub since: Timestamp,
    /// What was asked for and is not done.
    pub later: Option<Later>,
}

/// A replication that is to begin later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Later {
    /// When.
    pub at: Timestamp,
    /// To which snapshot, if not to the newest.
    pub exactly: Option<SnapshotNumber>,
}

impl State {
    /// What is known of a volume and a peer; nothing if they never met.
    pub fn link(&self, volume: &VolumeName, peer: &NodeName) -> Result<Option<Link>, StateError> {
        self.read(|txn| {
            let table = txn.open_table(LINKS)?;
            let value = table.get((volume.as_str(), peer.as_str()))?;
            value.map(|json| from_json(json.value())).transpose()
        })
    }

    /// The same; if they never met, they do now.
    pub fn met(&self, volume: &VolumeName, peer: &NodeName, now: Timestamp) -> Result<Link, StateError> {
        if let Some(link) = self.link(volume, peer)? {
            return Ok(link);
        }
        self.change_link(volume, peer, now, |_| {})
    }

    /// Notes what was asked for later, in the place of what was asked for before.
    pub fn ask_later(
        &self,
        volume: &VolumeName,
        peer: &NodeName,
        now: Timestamp,
        later: Later,
    ) -> Result<(), StateError> {
        self.change_link(volume, peer, now, |link| link.later = Some(later)).map(drop)
    }

    /// What was asked for later is done, unless something else was asked for since. Nothing happens if they are no pair any more.
    pub fn asked_is_done(
        &self,
        volume: &VolumeName,
        peer: &NodeName,
        later: Later,
    ) -> Result<(), StateError> {
        match self.link(volume, peer)? {
            Some(link) if link.later == Some(later) => {
                self.change_link(volume, peer, link.since, |link| link.later = None).map(drop)
            }
            _ => Ok(()),
        }
    }

    fn change_link(
        &self,
        volume: &VolumeName,
        peer: &NodeName,
        since: Timestamp,
        change: impl FnOnce(&mut Link),
    ) -> Result<Link, StateError> {
        self.write(|txn| {
            let mut table = txn.open_table(LINKS)?;
            let key = (volume.as_str(), peer.as_str());
            let there = table.get(key)?.map(|json| from_json(json.value())).transpose()?;
            let mut link = there.unwrap_or(Link { since, later: None });
            change(&mut link);
            table.insert(key, serde_json::to_string(&link)?.as_str())?;
            Ok(link)
        })
    }
}
