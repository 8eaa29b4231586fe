//! What a peer has of a volume, and what is held for it.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use redb::ReadableTable;
use serde::{Deserialize, Serialize};
use zumastor_core::{HoldOwner, NodeName, SnapshotNumber, VolumeName};

use super::{CURSORS, HOLDS, State, StateError, from_json, links, missed, now, of_volume, owner_key};

/// The newest snapshot that this node and a peer both have of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Its number.
    pub common: SnapshotNumber,
    /// When it was confirmed last.
    pub confirmed: Timestamp,
}

/// That a peer still has what it had is written so often. Between, it is known until the daemon ends; then the confirmation
/// seems to be older than it is, by so much at most.
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
        let pair = || (volume.clone(), peer.clone());
        if let Some(cursor) = &cursor
            && self.is_written(volume, peer, holds, cursor)?
        {
            let mut confirmed = self.confirmed.lock().expect("no panic while locked");
            let defined = defined();
            if defined {
                confirmed.insert(pair(), cursor.confirmed);
            }
            return Ok(defined);
        }
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
            }
            Ok(true)
        });
        self.confirmed.lock().expect("no panic while locked").remove(&pair());
        done
    }

    /// Whether all this was written a short while ago.
    fn is_written(
        &self,
        volume: &VolumeName,
        peer: &NodeName,
        holds: &[(SnapshotNumber, &str)],
        cursor: &Cursor,
    ) -> Result<bool, StateError> {
        let owner = HoldOwner::Peer(peer.clone());
        let there: BTreeSet<_> = self
            .holds(volume)?
            .into_iter()
            .filter(|h| h.owner == owner)
            .map(|h| (h.number, h.name))
            .collect();
        let wanted = holds.iter().map(|(number, name)| (*number, (*name).to_owned())).collect();
        let noted = self.written_cursor(volume, peer)?;
        let fresh = noted.is_some_and(|noted| {
            let age = cursor.confirmed.duration_since(noted.confirmed);
            noted.common == cursor.common && age >= SignedDuration::ZERO && age < CONFIRMED_EVERY
        });
        Ok(fresh && there == wanted)
    }

    /// What a peer is known to have of a volume.
    pub fn cursor(&self, volume: &VolumeName, peer: &NodeName) -> Result<Option<Cursor>, StateError> {
        let confirmed = self.confirmed.lock().expect("no panic while locked");
        let since = confirmed.get(&(volume.clone(), peer.clone())).copied();
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
        self.confirmed.lock().expect("no panic while locked").remove(&(volume.clone(), peer.clone()));
        Ok(())
    }

    /// Writes when pairs were confirmed last, as the daemon does when it ends.
    pub fn write_confirmed(&self) -> Result<(), StateError> {
        let confirmed = std::mem::take(&mut *self.confirmed.lock().expect("no panic while locked"));
        if confirmed.is_empty() {
            return Ok(());
        }
        self.write(|txn| {
            let mut table = txn.open_table(CURSORS)?;
            for ((volume, peer), confirmed) in confirmed {
                let key = (volume.as_str(), peer.as_str());
                let written: Option<Cursor> =
                    table.get(key)?.map(|json| from_json(json.value())).transpose()?;
                if let Some(written) = written {
                    let json = serde_json::to_string(&Cursor { confirmed, ..written })?;
                    table.insert(key, json.as_str())?;
                }
            }
            Ok(())
        })
    }
}
