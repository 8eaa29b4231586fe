//! What must be remembered of schedules: since when they count, what happened to snapshots, and what is stopped.

use jiff::Timestamp;
use redb::{ReadableTable, TableDefinition, WriteTransaction};
use zumastor_core::{SnapshotNumber, VolumeName};

use super::{HOLDS, State, StateError, append, from_json};
use crate::api::{Part, VolumeEvent};

/// Volume → the moment since when its schedule counts, in milliseconds since 1970.
const SINCE: TableDefinition<&str, i64> = TableDefinition::new("schedules");
/// Volume, sequence → [`VolumeEvent`].
const EVENTS: TableDefinition<(&str, u64), &str> = TableDefinition::new("events");
/// Volume, [`Part`] as text → since when it is stopped, in milliseconds since 1970.
const STOPPED: TableDefinition<(&str, &str), i64> = TableDefinition::new("stopped");

/// Events remembered for each volume.
const EVENTS_KEPT: u64 = 1000;

impl State {
    /// The moment since when a volume's schedule counts; `now`, from now on, if none is known.
    pub fn since(&self, volume: &VolumeName, now: Timestamp) -> Result<Timestamp, StateError> {
        let known = self.read(|txn| {
            let table = txn.open_table(SINCE)?;
            Ok(table.get(volume.as_str())?.map(|value| value.value()))
        })?;
        match known.and_then(|known| Timestamp::from_millisecond(known).ok()) {
            Some(since) => Ok(since),
            None => self.set_since(volume, now).map(|()| now),
        }
    }

    /// Nothing was left to take at this moment: what was missed before is not made up for.
    pub fn set_since(&self, volume: &VolumeName, since: Timestamp) -> Result<(), StateError> {
        self.write(|txn| {
            txn.open_table(SINCE)?.insert(volume.as_str(), since.as_millisecond())?;
            Ok(())
        })
    }

    /// Runs `claim` if nobody holds this snapshot, at a moment when no hold can be added. The answer is whether it ran.
    pub fn unless_held(
        &self,
        volume: &VolumeName,
        number: SnapshotNumber,
        claim: impl FnOnce(),
    ) -> Result<bool, StateError> {
        self.write(|txn| {
            let table = txn.open_table(HOLDS)?;
            let range = (volume.as_str(), number.0, "", "")..=(volume.as_str(), number.0, "\u{10FFFF}", "");
            let free = table.range(range)?.next().is_none();
            if free {
                claim();
            }
            Ok(free)
        })
    }

    /// Remembers what happened; the oldest events go.
    pub fn note_event(&self, volume: &VolumeName, event: &VolumeEvent) -> Result<(), StateError> {
        self.write(|txn| append(&mut txn.open_table(EVENTS)?, volume, event, EVENTS_KEPT))
    }

    /// What happened to a volume's snapshots, the newest first.
    pub fn events(&self, volume: &VolumeName, most: usize) -> Result<Vec<VolumeEvent>, StateError> {
        self.read(|txn| {
            let table = txn.open_table(EVENTS)?;
            let range = table.range((volume.as_str(), 0)..=(volume.as_str(), u64::MAX))?;
            range.rev().take(most).map(|entry| from_json(entry?.1.value())).collect()
        })
    }

    /// What is stopped of a volume.
    pub fn stopped(&self, volume: &VolumeName) -> Result<Vec<Part>, StateError> {
        self.read(|txn| {
            let table = txn.open_table(STOPPED)?;
            let mut parts = Vec::new();
            for entry in table.range((volume.as_str(), "")..=(volume.as_str(), "\u{10FFFF}"))? {
                parts.extend(Part::try_from(entry?.0.value().1.to_owned()));
            }
            parts.sort();
            Ok(parts)
        })
    }

    /// Notes that a part is stopped, or that it is not.
    pub fn set_stopped(&self, volume: &VolumeName, part: &Part, stopped: bool) -> Result<(), StateError> {
        let part = part.to_string();
        self.write(|txn| {
            let mut table = txn.open_table(STOPPED)?;
            let key = (volume.as_str(), part.as_str());
            match stopped {
                true => table.insert(key, Timestamp::now().as_millisecond())?,
                false => table.remove(key)?,
            };
            Ok(())
        })
    }
}

pub(super) fn make_tables(txn: &WriteTransaction) -> Result<(), StateError> {
    txn.open_table(SINCE)?;
    txn.open_table(EVENTS)?;
    txn.open_table(STOPPED)?;
    Ok(())
}

pub(super) fn forget_volume(txn: &WriteTransaction, volume: &str) -> Result<(), StateError> {
    txn.open_table(SINCE)?.remove(volume)?;
    txn.open_table(EVENTS)?.retain(|(of, _), _| of != volume)?;
    txn.open_table(STOPPED)?.retain(|(of, _), _| of != volume)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use zumastor_core::HoldOwner;

    use super::*;
    use crate::api::EventKind;

    #[test]
    fn schedules_events_and_stops_survive_until_the_volume_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let (volume, other): (VolumeName, VolumeName) = ("v".parse().unwrap(), "v2".parse().unwrap());
        let at = |millis| Timestamp::from_millisecond(millis).unwrap();
        let state = State::open(&path).unwrap();
        assert_eq!(state.since(&volume, at(5)).unwrap(), at(5));
        let event = |number| {
            let number = Some(SnapshotNumber(number));
            VolumeEvent { at: at(1), what: EventKind::Dropped, number, text: String::new() }
        };
        let most = |txn: &WriteTransaction| {
            let mut table = txn.open_table(EVENTS)?;
            (0..EVENTS_KEPT + 2)
                .try_for_each(|number| append(&mut table, &volume, &event(number), EVENTS_KEPT))
        };
        state.write(most).unwrap();
        state.note_event(&volume, &event(EVENTS_KEPT + 2)).unwrap();
        let target = Part::Target("beta".parse().unwrap());
        for part in [&target, &Part::Master] {
            state.set_stopped(&volume, part, true).unwrap();
            state.set_stopped(&other, part, true).unwrap();
        }
        drop(state);
        let state = State::open(&path).unwrap();
        assert_eq!(state.since(&volume, at(9)).unwrap(), at(5));
        let events = state.events(&volume, usize::MAX).unwrap();
        assert_eq!(
            (events.len(), events[0].number),
            (EVENTS_KEPT as usize, Some(SnapshotNumber(EVENTS_KEPT + 2)))
        );
        assert_eq!(state.stopped(&volume).unwrap(), [Part::Master, target.clone()]);
        state.set_stopped(&volume, &target, false).unwrap();
        assert_eq!(state.stopped(&volume).unwrap(), [Part::Master]);
        state.forget_volume(&volume).unwrap();
        assert_eq!(state.since(&volume, at(9)).unwrap(), at(9));
        assert!(state.events(&volume, 9).unwrap().is_empty() && state.stopped(&volume).unwrap().is_empty());
        assert_eq!(state.stopped(&other).unwrap().len(), 2);
    }

    #[test]
    fn what_is_held_is_not_claimed() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("state.redb")).unwrap();
        let volume: VolumeName = "v".parse().unwrap();
        let claimed = |number| {
            let mut ran = false;
            let free = state.unless_held(&volume, SnapshotNumber(number), || ran = true).unwrap();
            assert_eq!(free, ran);
            free
        };
        state.hold(&volume, SnapshotNumber(1), &HoldOwner::User, "x").unwrap();
        assert!(claimed(0) && !claimed(1) && claimed(2));
    }
}
