//! What a peer has of a volume, and what is held for it.

use std::{collections::BTreeMap, sync::MutexGuard};

use jiff::{SignedDuration, Timestamp};
use redb::{ReadableTable, WriteTransaction};
use serde::{Deserialize, Serialize};
use zumastor_core::{HoldOwner, NodeName, SnapshotNumber, VolumeName};

use super::{
    CURSORS, HOLDS, State, StateError, from_json, links, memory::Pair, missed, now, of_volume, owner_key,
};

/// The newest snapshot that this node and a peer both have of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Its number.
    pub common: SnapshotNumber,
    /// When it was confirmed last.
    pub confirmed: Timestamp,
}

/// That a peer still has what it had is written so often, for all peers and volumes at once. Between, it is known until the
/// daemon ends; then the confirmation seems to be older than it is, by so much at most.
const CONFIRMED_EVERY: SignedDuration = SignedDuration::from_secs(60);

impl State {
    /// Replaces all holds that a peer has on a volume, and notes the newest common snapshot if it is known now. Nothing
    /// happens, and the answer is false, unless the pair is `defined`, which is asked when nothing else is written. What is
    /// known already is not written again each time.
    pub fn replace_holds(
        &self,
        volume: &VolumeName,
        peer: &NodeName,
        holds: &[(SnapshotNumber, &str)],
        common: Option<SnapshotNumber>,
        defined: impl FnOnce() -> bool,
    ) -> Result<bool, StateError> {
        let cursor = common.map(|common| Cursor { common, confirmed: Timestamp::now() });
        if let Some(cursor) = &cursor {
            let pair = self.memory.read_pair(volume, peer, || self.written(volume, peer))?;
            if pair.is_fresh(holds, cursor) {
                return Ok(self.note_confirmed(volume, peer, cursor.confirmed, defined));
            }
        }
        // Those of others are written along, so that there is one write for all.
        let confirmed = match cursor {
            Some(_) => self.confirmed().clone(),
            None => BTreeMap::new(),
        };
        let own = |(of, with): &(VolumeName, NodeName)| of == volume && with == peer;
        let done = self.write(|txn| {
            if !defined() {
                return Ok(false);
            }
            let owner = owner_key(&HoldOwner::Peer(peer.clone()));
            let mut table = txn.open_table(HOLDS)?;
            let stays = |number, name: &str| holds.iter().any(|(n, held)| n.0 == number && *held == name);
            table.retain_in(of_volume(volume), |(_, number, of, name), _| {
                of != owner || stays(number, name)
            })?;
            for (number, name) in holds {
                let key = (volume.as_str(), number.0, owner.as_str(), *name);
                if table.get(key)?.is_none() {
                    table.insert(key, now())?;
                }
            }
            if let Some(cursor) = &cursor {
                let json = serde_json::to_string(cursor)?;
                txn.open_table(CURSORS)?.insert((volume.as_str(), peer.as_str()), json.as_str())?;
                missed::got(txn, volume, peer, cursor.common)?;
                write_confirmed(txn, confirmed.iter().filter(|(pair, _)| !own(pair)))?;
            }
            Ok(true)
        });
        let mut known = self.confirmed();
        if matches!(done, Ok(true)) {
            known.retain(|pair, at| confirmed.get(pair) != Some(at));
        }
        known.retain(|pair, _| !own(pair));
        done
    }

    /// As [`replace_holds`](Self::replace_holds), if all this is known and nothing has to be written. Does not block.
    pub fn confirm(
        &self,
        volume: &VolumeName,
        peer: &NodeName,
        holds: &[(SnapshotNumber, &str)],
        common: SnapshotNumber,
        defined: impl FnOnce() -> bool,
    ) -> Option<bool> {
        let cursor = Cursor { common, confirmed: Timestamp::now() };
        let fresh = self.memory.with_pair(volume, peer, |pair| pair.is_fresh(holds, &cursor));
        fresh.filter(|fresh| *fresh).map(|_| self.note_confirmed(volume, peer, cursor.confirmed, defined))
    }

    /// Notes that what is known of a pair is still so, and tells whether the pair is defined.
    fn note_confirmed(
        &self,
        volume: &VolumeName,
        peer: &NodeName,
        at: Timestamp,
        defined: impl FnOnce() -> bool,
    ) -> bool {
        let mut confirmed = self.confirmed();
        let defined = defined();
        if defined {
            confirmed.insert((volume.clone(), peer.clone()), at);
        }
        defined
    }

    /// What is written of a pair.
    fn written(&self, volume: &VolumeName, peer: &NodeName) -> Result<Pair, StateError> {
        let owner = HoldOwner::Peer(peer.clone());
        let holds = self.holds(volume)?.into_iter().filter(|hold| hold.owner == owner);
        let holds = holds.map(|hold| (hold.number, hold.name)).collect();
        Ok(Pair { cursor: self.written_cursor(volume, peer)?, holds })
    }

    /// What a peer is known to have of a volume.
    pub fn cursor(&self, volume: &VolumeName, peer: &NodeName) -> Result<Option<Cursor>, StateError> {
        let since = self.confirmed().get(&(volume.clone(), peer.clone())).copied();
        let written = self.written_cursor(volume, peer)?;
        Ok(written.map(|cursor| Cursor { confirmed: since.unwrap_or(cursor.confirmed), ..cursor }))
    }

    fn written_cursor(&self, volume: &VolumeName, peer: &NodeName) -> Result<Option<Cursor>, StateError> {
        self.read(|txn| {
            let table = txn.open_table(CURSORS)?;
            let value = table.get((volume.as_str(), peer.as_str()))?;
            value.map(|json| from_json(json.value())).transpose()
        })
    }

    /// Forgets what a peer has, and its holds.
    pub fn forget_pair(&self, volume: &VolumeName, peer: &NodeName) -> Result<(), StateError> {
        let owner = owner_key(&HoldOwner::Peer(peer.clone()));
        self.write(|txn| {
            txn.open_table(HOLDS)?.retain_in(of_volume(volume), |(_, _, of, _), _| of != owner)?;
            txn.open_table(CURSORS)?.remove((volume.as_str(), peer.as_str()))?;
            txn.open_table(missed::MISSED)?.remove((volume.as_str(), peer.as_str()))?;
            txn.open_table(links::LINKS)?.remove((volume.as_str(), peer.as_str()))?;
            Ok(())
        })?;
        self.confirmed().remove(&(volume.clone(), peer.clone()));
        Ok(())
    }

    /// Writes when pairs were confirmed last, as the daemon does when it ends.
    pub fn write_confirmed(&self) -> Result<(), StateError> {
        let confirmed = std::mem::take(&mut *self.confirmed());
        if confirmed.is_empty() {
            return Ok(());
        }
        self.write(|txn| write_confirmed(txn, confirmed.iter()))
    }

    /// Held for moments only, and never while the database is read or written.
    fn confirmed(&self) -> MutexGuard<'_, BTreeMap<(VolumeName, NodeName), Timestamp>> {
        self.confirmed.lock().expect("no panic while locked")
    }
}

impl Pair {
    /// Whether all this was written a short while ago.
    fn is_fresh(&self, holds: &[(SnapshotNumber, &str)], cursor: &Cursor) -> bool {
        let fresh = self.cursor.is_some_and(|written| {
            let age = cursor.confirmed.duration_since(written.confirmed);
            written.common == cursor.common && age >= SignedDuration::ZERO && age < CONFIRMED_EVERY
        });
        let held = |(number, name): &(SnapshotNumber, String)| {
            holds.iter().any(|(wanted, by)| wanted == number && by == name)
        };
        fresh && self.holds.len() == holds.len() && self.holds.iter().all(held)
    }
}

/// Writes when pairs were confirmed, of those that are known.
fn write_confirmed<'a>(
    txn: &WriteTransaction,
    confirmed: impl Iterator<Item = (&'a (VolumeName, NodeName), &'a Timestamp)>,
) -> Result<(), StateError> {
    let mut table = txn.open_table(CURSORS)?;
    for ((volume, peer), confirmed) in confirmed {
        let key = (volume.as_str(), peer.as_str());
        let written: Option<Cursor> = table.get(key)?.map(|json| from_json(json.value())).transpose()?;
        if let Some(written) = written.filter(|written| written.confirmed < *confirmed) {
            let json = serde_json::to_string(&Cursor { confirmed: *confirmed, ..written })?;
            table.insert(key, json.as_str())?;
        }
    }
    Ok(())
}
