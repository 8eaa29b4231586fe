//! The epochs of lineages: which one what is here belongs to, and which was heard of.

use jiff::Timestamp;
use redb::{ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use zumastor_core::{HoldOwner, Lineage, NodeName, SnapshotNumber, VolumeName};

use super::{CURSORS, Cursor, HOLDS, State, StateError, from_json, of_volume};

/// Lineage → [`Era`]. Outlives a volume that is forgotten: the data may come back.
pub(super) const EPOCHS: TableDefinition<u128, &str> = TableDefinition::new("epochs");

/// What is known of who masters a lineage. An epoch is the time at which a node was made the master in place of another, in
/// milliseconds since 1970, or 0: so the later of two that did not know of each other counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Era {
    /// The epoch of what is here.
    pub here: u64,
    /// The latest there is, as far as this node has heard.
    pub latest: u64,
    /// Who told of that, and when.
    pub heard: Option<(NodeName, Timestamp)>,
    /// Whether it was received from another node since this one was made the master last: that one may master it still.
    #[serde(default)]
    pub received: bool,
}

impl State {
    /// What is known of a lineage.
    pub fn era(&self, lineage: Lineage) -> Result<Era, StateError> {
        let read = |txn: &ReadTransaction| {
            let table = txn.open_table(EPOCHS)?;
            let value = table.get(lineage.0.as_u128())?;
            Ok(value.map(|json| from_json(json.value())).transpose()?.unwrap_or_default())
        };
        self.memory.read_era(lineage, || self.read(read))
    }

    /// As [`era`](Self::era), if it is in memory. Does not block.
    pub fn era_in_memory(&self, lineage: Lineage) -> Option<Era> {
        self.memory.era(lineage)
    }

    /// What is here of a lineage is of this epoch now.
    pub fn enter_epoch(&self, lineage: Lineage, epoch: u64) -> Result<(), StateError> {
        self.change_era(lineage, |era| {
            era.here = epoch;
            if era.latest <= epoch {
                (era.latest, era.heard) = (epoch, None);
            }
        })
    }

    /// This node is the master of a lineage now, in this epoch.
    pub fn master_epoch(&self, lineage: Lineage, epoch: u64) -> Result<(), StateError> {
        self.enter_epoch(lineage, epoch)?;
        self.change_era(lineage, |era| era.received = false)
    }

    /// What is here of a lineage comes from another node.
    pub fn note_received(&self, lineage: Lineage) -> Result<(), StateError> {
        if self.era(lineage)?.received {
            return Ok(());
        }
        self.change_era(lineage, |era| era.received = true)
    }

    /// Somebody has a lineage in this epoch. False if that is no news.
    pub fn hear_epoch(&self, lineage: Lineage, epoch: u64, from: &NodeName) -> Result<bool, StateError> {
        if self.era(lineage)?.latest >= epoch {
            return Ok(false);
        }
        self.change_era(lineage, |era| {
            if era.latest < epoch {
                (era.latest, era.heard) = (epoch, Some((from.clone(), Timestamp::now())));
            }
        })?;
        Ok(true)
    }

    /// Lets people hold a snapshot also under the number that it is about to get, and holds it there as set aside.
    pub fn copy_holds(
        &self,
        volume: &VolumeName,
        from: SnapshotNumber,
        to: SnapshotNumber,
    ) -> Result<(), StateError> {
        let holds = self.holds(volume)?;
        self.hold(volume, to, &HoldOwner::User, SET_ASIDE)?;
        for hold in holds.iter().filter(|hold| hold.number == from && hold.owner == HoldOwner::User) {
            self.hold(volume, to, &HoldOwner::User, &hold.name)?;
        }
        // Already now: after a crash behind the renaming nobody would find it again. Peers say themselves what they have.
        self.write(|txn| forget_cursors(txn, volume, from))
    }

    /// Forgets the holds of a number that no snapshot has any more, and which peers have it: another one may get it.
    pub fn forget_number(&self, volume: &VolumeName, number: SnapshotNumber) -> Result<(), StateError> {
        self.write(|txn| {
            txn.open_table(HOLDS)?.retain_in(of_volume(volume), |(_, of, _, _), _| of != number.0)?;
            forget_cursors(txn, volume, number)
        })
    }

    fn change_era(&self, lineage: Lineage, change: impl FnOnce(&mut Era)) -> Result<(), StateError> {
        self.write(|txn| {
            let mut table = txn.open_table(EPOCHS)?;
            let known = table.get(lineage.0.as_u128())?.map(|json| from_json(json.value())).transpose()?;
            let mut era: Era = known.unwrap_or_default();
            change(&mut era);
            table.insert(lineage.0.as_u128(), serde_json::to_string(&era)?.as_str())?;
            Ok(())
        })
    }
}

/// Forgets which peers have a snapshot of this number.
fn forget_cursors(
    txn: &WriteTransaction,
    volume: &VolumeName,
    number: SnapshotNumber,
) -> Result<(), StateError> {
    let of = |json: &str| from_json::<Cursor>(json).map(|cursor| cursor.common);
    let kept = |name: &str, json: &str| name != volume.as_str() || of(json).ok() != Some(number);
    txn.open_table(CURSORS)?.retain(|(name, _), json| kept(name, json))?;
    Ok(())
}

/// The hold on a snapshot that a new master does not have.
const SET_ASIDE: &str = "set-aside";
