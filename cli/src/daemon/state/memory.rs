//! What was read of the database and is asked for again and again: with each poll of each volume. Answered from here, that takes no
//! thread that may wait for a disk.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard},
};

use zumastor_core::{Lineage, NodeName, SnapshotNumber, VolumeName};

use super::{Cursor, Era, StateError};

/// What is written of a pair of volume and peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Pair {
    pub cursor: Option<Cursor>,
    pub holds: BTreeSet<(SnapshotNumber, String)>,
}

/// What was read since anything was written. One change forgets all of it: so nobody who changes a table has to know what of it is
/// kept here.
#[derive(Debug, Default)]
pub(super) struct Memory(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// Changes so far.
    changes: u64,
    pairs: HashMap<(VolumeName, NodeName), Pair>,
    eras: HashMap<Lineage, Era>,
}

impl Memory {
    /// Something was written, or may have been. To be called before anybody is told so.
    pub fn forget(&self) {
        let mut known = self.lock();
        *known = Known { changes: known.changes + 1, ..Known::default() };
    }

    /// Looks at a pair, if it is known.
    pub fn with_pair<T>(
        &self,
        volume: &VolumeName,
        peer: &NodeName,
        look: impl FnOnce(&Pair) -> T,
    ) -> Option<T> {
        self.lock().pairs.get(&(volume.clone(), peer.clone())).map(look)
    }

    /// What is known of a lineage.
    pub fn era(&self, lineage: Lineage) -> Option<Era> {
        self.lock().eras.get(&lineage).cloned()
    }

    /// Reads a pair and remembers it.
    pub fn read_pair(
        &self,
        volume: &VolumeName,
        peer: &NodeName,
        read: impl FnOnce() -> Result<Pair, StateError>,
    ) -> Result<Pair, StateError> {
        let before = self.lock().changes;
        let pair = read()?;
        self.note(before, |known| drop(known.pairs.insert((volume.clone(), peer.clone()), pair.clone())));
        Ok(pair)
    }

    /// Reads what there is of a lineage and remembers it.
    pub fn read_era(
        &self,
        lineage: Lineage,
        read: impl FnOnce() -> Result<Era, StateError>,
    ) -> Result<Era, StateError> {
        let before = self.lock().changes;
        let era = read()?;
        self.note(before, |known| drop(known.eras.insert(lineage, era.clone())));
        Ok(era)
    }

    /// Remembers what was read, unless something was written meanwhile: it may be from before that.
    fn note(&self, before: u64, note: impl FnOnce(&mut Known)) {
        let mut known = self.lock();
        if known.changes == before {
            note(&mut known);
        }
    }

    /// Held for moments only, and never while the database is read.
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().expect("no panic while locked")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_before_a_change_is_not_remembered_after_it() {
        let memory = Memory::default();
        let (volume, beta) = ("v".parse().unwrap(), "beta".parse().unwrap());
        let number = SnapshotNumber(1);
        let pair = Pair { holds: [(number, "base".to_owned())].into(), ..Pair::default() };
        let known = || memory.with_pair(&volume, &beta, Pair::clone);
        memory.read_pair(&volume, &beta, || Ok(pair.clone())).unwrap();
        assert_eq!(known().as_ref(), Some(&pair));
        memory.forget();
        assert_eq!(known(), None);
        // Changed while it is read.
        let changed = || {
            memory.forget();
            Ok(pair.clone())
        };
        assert_eq!(memory.read_pair(&volume, &beta, changed).unwrap(), pair);
        assert_eq!(known(), None);
        let lineage = Lineage::generate();
        let changed = || {
            memory.forget();
            Ok(Era::default())
        };
        memory.read_era(lineage, changed).unwrap();
        assert_eq!(memory.era(lineage), None);
        memory.read_era(lineage, || Ok(Era::default())).unwrap();
        assert_eq!(memory.era(lineage), Some(Era::default()));
    }
}
