//! What must survive a restart and is nowhere else: holds, what peers have, numbers given, the history.
//!
//! Every change is on disk when the call returns, but for the time of what is only confirmed. Values are JSON, so that a later version can add to them.

mod duties;
mod epochs;
mod links;
mod memory;
mod missed;
mod pairs;
mod schedules;
mod scrubs;
mod windows;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io,
    ops::RangeInclusive,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    sync::Mutex,
};

use jiff::Timestamp;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Serialize, de::DeserializeOwned};
use zumastor_core::{Hold, HoldOwner, Lineage, NodeName, SnapshotNumber, VolumeName, steps};

use self::memory::Memory;
pub use self::{
    duties::Duty,
    epochs::Era,
    links::Later,
    pairs::Cursor,
    windows::{Process, Window},
};
use crate::api::TransferRecord;

type HoldKey<'a> = (&'a str, u64, &'a str, &'a str);

/// Volume, snapshot, owner, name → milliseconds since 1970.
const HOLDS: TableDefinition<HoldKey<'static>, i64> = TableDefinition::new("holds");
/// Volume, peer → [`Cursor`].
const CURSORS: TableDefinition<(&str, &str), &str> = TableDefinition::new("cursors");
/// Volume, sequence → [`TransferRecord`].
const HISTORY: TableDefinition<(&str, u64), &str> = TableDefinition::new("history");
/// Volume → the lineage of its snapshots, as a UUID's 128 bits.
const LINEAGES: TableDefinition<&str, u128> = TableDefinition::new("lineages");
/// Lineage → the number that its next snapshot gets. Outlives a volume that is forgotten: the data may come back.
const NUMBERS: TableDefinition<u128, u64> = TableDefinition::new("numbers");

/// Memory for pages of the database, in bytes; all of it is far smaller than that for years.
const CACHE: usize = 4 << 20;
/// Transfers remembered for each volume.
const HISTORY_LENGTH: u64 = 1000;

/// The database could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It failed. After an error in writing, nothing of that change is there.
    #[error("the state database: {0}")]
    Database(#[from] redb::Error),
    /// Its file could not be made its owner's alone.
    #[error("the state database: {0}")]
    File(#[from] io::Error),
    /// A value is not what this program writes.
    #[error("the state database holds a value that makes no sense: {0}")]
    Value(#[from] serde_json::Error),
}

/// The database. Calls block for as long as a disk takes to sync.
#[derive(Debug)]
pub struct State {
    database: Database,
    memory: Memory,
    /// When what is known of a pair was confirmed since that was written.
    confirmed: Mutex<BTreeMap<(VolumeName, NodeName), Timestamp>>,
}

impl State {
    /// Opens the database, or makes it.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        // redb would let everybody read what it makes.
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        let database = Database::builder().set_cache_size(CACHE).create(path)?;
        let state = Self { database, memory: Memory::default(), confirmed: Mutex::default() };
        state.write(|txn| {
            txn.open_table(HOLDS)?;
            txn.open_table(CURSORS)?;
            txn.open_table(HISTORY)?;
            txn.open_table(LINEAGES)?;
            txn.open_table(NUMBERS)?;
            txn.open_table(duties::DUTIES)?;
            txn.open_table(links::LINKS)?;
            txn.open_table(missed::MISSED)?;
            txn.open_table(epochs::EPOCHS)?;
            txn.open_table(scrubs::SCRUBS)?;
            txn.open_table(windows::WINDOWS)?;
            schedules::make_tables(txn)
        })?;
        Ok(state)
    }

    /// The holds on a volume's snapshots, in ascending order of number.
    pub fn holds(&self, volume: &VolumeName) -> Result<Vec<Hold>, StateError> {
        self.read(|txn| {
            let table = txn.open_table(HOLDS)?;
            let mut holds = Vec::new();
            for entry in table.range((volume.as_str(), 0, "", "")..)? {
                let (key, since) = entry?;
                let (of, number, owner, name) = key.value();
                if of != volume.as_str() {
                    break;
                }
                let (Some(owner), Ok(since)) =
                    (parse_owner(owner), Timestamp::from_millisecond(since.value()))
                else {
                    continue;
                };
                holds.push(Hold { number: SnapshotNumber(number), owner, name: name.to_owned(), since });
            }
            Ok(holds)
        })
    }

    /// Adds a hold. False if it is there already.
    pub fn hold(
        &self,
        volume: &VolumeName,
        number: SnapshotNumber,
        owner: &HoldOwner,
        name: &str,
    ) -> Result<bool, StateError> {
        self.write(|txn| {
            let mut table = txn.open_table(HOLDS)?;
            let owner = owner_key(owner);
            let key = (volume.as_str(), number.0, owner.as_str(), name);
            let there = table.get(key)?.is_some();
            if !there {
                table.insert(key, now())?;
            }
            Ok(!there)
        })
    }

    /// Lifts a hold. False if there is none.
    pub fn release(
        &self,
        volume: &VolumeName,
        number: SnapshotNumber,
        owner: &HoldOwner,
        name: &str,
    ) -> Result<bool, StateError> {
        self.write(|txn| {
            let owner = owner_key(owner);
            Ok(txn.open_table(HOLDS)?.remove((volume.as_str(), number.0, owner.as_str(), name))?.is_some())
        })
    }

    /// Forgets everything about a volume but the numbers that its snapshots had.
    pub fn forget_volume(&self, volume: &VolumeName) -> Result<(), StateError> {
        self.confirmed.lock().expect("no panic while locked").retain(|(of, _), _| of != volume);
        self.write(|txn| {
            let volume = volume.as_str();
            txn.open_table(HOLDS)?.retain(|(of, ..), _| of != volume)?;
            txn.open_table(CURSORS)?.retain(|(of, _), _| of != volume)?;
            txn.open_table(HISTORY)?.retain(|(of, _), _| of != volume)?;
            txn.open_table(LINEAGES)?.remove(volume)?;
            txn.open_table(duties::DUTIES)?.remove(volume)?;
            txn.open_table(missed::MISSED)?.retain(|(of, _), _| of != volume)?;
            txn.open_table(links::LINKS)?.retain(|(of, _), _| of != volume)?;
            txn.open_table(scrubs::SCRUBS)?.retain(|(of, _), _| of != volume)?;
            schedules::forget_volume(txn, volume)
        })
    }

    /// Remembers a transfer; the oldest go.
    pub fn record(&self, volume: &VolumeName, transfer: &TransferRecord) -> Result<(), StateError> {
        self.write(|txn| append(&mut txn.open_table(HISTORY)?, volume, transfer, HISTORY_LENGTH))
    }

    /// The transfers of a volume that are remembered, the newest first.
    pub fn history(&self, volume: &VolumeName, most: usize) -> Result<Vec<TransferRecord>, StateError> {
        self.read(|txn| {
            let table = txn.open_table(HISTORY)?;
            let range = table.range((volume.as_str(), 0)..=(volume.as_str(), u64::MAX))?;
            range.rev().take(most).map(|entry| from_json(entry?.1.value())).collect()
        })
    }

    /// The lineage of a volume that has no snapshot to tell it; made now if there is none.
    pub fn lineage(&self, volume: &VolumeName) -> Result<Lineage, StateError> {
        self.write(|txn| {
            let mut table = txn.open_table(LINEAGES)?;
            let known = table.get(volume.as_str())?.map(|value| value.value());
            if let Some(known) = known {
                return Ok(Lineage(uuid::Uuid::from_u128(known)));
            }
            let lineage = Lineage::generate();
            table.insert(volume.as_str(), lineage.0.as_u128())?;
            Ok(lineage)
        })
    }

    /// Takes the next number of a lineage: greater than every number taken or noted before, and at least `least`.
    pub fn take_number(&self, lineage: Lineage, least: SnapshotNumber) -> Result<SnapshotNumber, StateError> {
        self.write(|txn| {
            let mut table = txn.open_table(NUMBERS)?;
            let next = table.get(lineage.0.as_u128())?.map_or(0, |value| value.value()).max(least.0);
            table.insert(lineage.0.as_u128(), next + 1)?;
            Ok(SnapshotNumber(next))
        })
    }

    /// Gives back the number that was taken last: no snapshot came to have it.
    pub fn return_number(&self, lineage: Lineage, number: SnapshotNumber) -> Result<(), StateError> {
        self.write(|txn| {
            let mut table = txn.open_table(NUMBERS)?;
            let last = table.get(lineage.0.as_u128())?.is_some_and(|next| next.value() == number.0 + 1);
            if last {
                table.insert(lineage.0.as_u128(), number.0)?;
            }
            Ok(())
        })
    }

    /// Notes a number that a snapshot of this lineage has, so that it is never given to another.
    pub fn note_number(&self, lineage: Lineage, number: SnapshotNumber) -> Result<(), StateError> {
        let known = self.read(|txn| {
            let table = txn.open_table(NUMBERS)?;
            Ok(table.get(lineage.0.as_u128())?.map_or(0, |value| value.value()))
        })?;
        if number.is_local() || known > number.0 {
            return Ok(());
        }
        self.write(|txn| {
            txn.open_table(NUMBERS)?.insert(lineage.0.as_u128(), number.0 + 1)?;
            Ok(())
        })
    }

    fn read<T>(
        &self,
        work: impl FnOnce(&redb::ReadTransaction) -> Result<T, StateError>,
    ) -> Result<T, StateError> {
        let txn = self.database.begin_read()?;
        work(&txn)
    }

    fn write<T>(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<T, StateError>,
    ) -> Result<T, StateError> {
        let done = self.commit(work);
        // Also after an error, of which it is not known what came of it.
        self.memory.forget();
        done
    }

    fn commit<T>(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<T, StateError>,
    ) -> Result<T, StateError> {
        let mut txn = self.database.begin_write()?;
        txn.set_durability(Durability::Immediate)?;
        let result = work(&txn)?;
        steps::pass("state: before commit");
        txn.commit()?;
        steps::pass("state: after commit");
        Ok(result)
    }
}

/// redb has an error type for each kind of call; they are one here.
macro_rules! from_redb {
    ($($error:ty),*) => {
        $(impl From<$error> for StateError {
            fn from(error: $error) -> Self {
                Self::Database(error.into())
            }
        })*
    };
}
from_redb!(
    redb::DatabaseError,
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError,
    redb::SetDurabilityError
);

/// Adds an entry behind a volume's last one, and drops the oldest beyond `most`.
fn append<T: Serialize>(
    table: &mut redb::Table<'_, (&'static str, u64), &'static str>,
    volume: &VolumeName,
    entry: &T,
    most: u64,
) -> Result<(), StateError> {
    let volume = volume.as_str();
    let last = table.range((volume, 0)..=(volume, u64::MAX))?.next_back().transpose()?;
    let next = last.map_or(0, |(key, _)| key.value().1 + 1);
    if let Some(old) = (next + 1).checked_sub(most).filter(|old| *old > 0) {
        table.retain_in((volume, 0)..(volume, old), |_, _| false)?;
    }
    table.insert((volume, next), serde_json::to_string(entry)?.as_str())?;
    Ok(())
}

fn from_json<T: DeserializeOwned>(json: &str) -> Result<T, StateError> {
    Ok(serde_json::from_str(json)?)
}

fn now() -> i64 {
    Timestamp::now().as_millisecond()
}

/// The keys of a volume's holds. Every owner's key sorts before the last character there is.
fn of_volume(volume: &VolumeName) -> RangeInclusive<HoldKey<'_>> {
    (volume.as_str(), 0, "", "")..=(volume.as_str(), u64::MAX, "\u{10FFFF}", "")
}

fn owner_key(owner: &HoldOwner) -> String {
    match owner {
        HoldOwner::User => "user".to_owned(),
        HoldOwner::Peer(name) => format!("peer:{name}"),
    }
}

fn parse_owner(key: &str) -> Option<HoldOwner> {
    match key.strip_prefix("peer:") {
        Some(name) => name.parse().ok().map(HoldOwner::Peer),
        None => (key == "user").then_some(HoldOwner::User),
    }
}
