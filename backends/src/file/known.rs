//! What snapshots that share blocks were found to differ in. Snapshots do not change, so it stays true; and it is asked for
//! three times: for the digest, for the plan of a transfer, and for each part of it.

use std::{collections::VecDeque, ops::Range, sync::Mutex};

use zumastor_core::{Changes, SnapshotGuid};

/// Answers that were given before, a bounded number of them.
#[derive(Debug, Default)]
pub(super) struct KnownChanges(Mutex<VecDeque<Known>>);

/// What a snapshot differs from another in, within some windows.
#[derive(Debug)]
struct Known {
    base: SnapshotGuid,
    target: SnapshotGuid,
    /// Ascending and disjoint.
    windows: Vec<(Range<u64>, Changes)>,
}

impl KnownChanges {
    /// The changes within `window`, if all of it is known.
    pub fn find(&self, base: SnapshotGuid, target: SnapshotGuid, window: &Range<u64>) -> Option<Changes> {
        let all = self.0.lock().expect("no panic while locked");
        let known = all.iter().find(|known| known.base == base && known.target == target)?;
        let mut changes = Changes::new();
        let mut position = window.start;
        let first = known.windows.partition_point(|(part, _)| part.end <= position);
        for (part, found) in &known.windows[first..] {
            if position >= window.end || part.start > position {
                break;
            }
            found.within(&(position..window.end)).for_each(|extent| changes.push(extent));
            position = part.end;
        }
        (position >= window.end).then_some(changes)
    }

    /// Remembers an answer; the oldest pair is forgotten for a new one.
    pub fn add(&self, base: SnapshotGuid, target: SnapshotGuid, window: Range<u64>, changes: &Changes) {
        let mut all = self.0.lock().expect("no panic while locked");
        let index = match all.iter().position(|known| known.base == base && known.target == target) {
            Some(index) => index,
            None => {
                all.push_front(Known { base, target, windows: Vec::new() });
                all.truncate(PAIRS);
                0
            }
        };
        let windows = &mut all[index].windows;
        let extents: usize = windows.iter().map(|(_, changes)| changes.iter().len()).sum();
        let at = windows.partition_point(|(part, _)| part.end <= window.start);
        let free = windows.get(at).is_none_or(|(part, _)| part.start >= window.end);
        if free && extents + changes.iter().len() <= EXTENTS && windows.len() < WINDOWS {
            windows.insert(at, (window, changes.clone()));
        }
    }
}

/// Pairs of snapshots that are remembered.
const PAIRS: usize = 4;
/// Extents that are remembered of a pair: 3 MiB of memory.
const EXTENTS: usize = 1 << 17;
/// Windows that are remembered of a pair.
const WINDOWS: usize = 1 << 15;

#[cfg(test)]
mod tests {
    use zumastor_core::Extent;

    use super::*;

    fn changes(ranges: &[(u64, u64)]) -> Changes {
        ranges.iter().map(|(start, end)| Extent::data(*start..*end)).collect()
    }

    #[test]
    fn only_what_is_known_in_full_is_told() {
        let known = KnownChanges::default();
        let (base, target) = (SnapshotGuid::generate(), SnapshotGuid::generate());
        known.add(base, target, 100..200, &changes(&[(110, 120), (190, 200)]));
        known.add(base, target, 0..100, &changes(&[(90, 100)]));
        known.add(base, target, 300..400, &changes(&[]));
        let find = |window: Range<u64>| known.find(base, target, &window);
        assert_eq!(find(0..200), Some(changes(&[(90, 100), (110, 120), (190, 200)])));
        assert_eq!(find(95..195), Some(changes(&[(95, 100), (110, 120), (190, 195)])));
        assert_eq!(find(320..380), Some(changes(&[])));
        assert_eq!(find(150..201), None);
        assert_eq!(find(250..350), None);
        assert_eq!(known.find(target, base, &(0..1)), None);
        // What overlaps what is known is left out.
        known.add(base, target, 50..250, &changes(&[(60, 70)]));
        assert_eq!(find(0..100), Some(changes(&[(90, 100)])));
    }

    #[test]
    fn the_oldest_pair_goes() {
        let known = KnownChanges::default();
        let guids: Vec<_> = (0..6).map(|_| SnapshotGuid::generate()).collect();
        for pair in guids.windows(2) {
            known.add(pair[0], pair[1], 0..10, &changes(&[]));
        }
        assert_eq!(known.find(guids[0], guids[1], &(0..10)), None);
        assert!(known.find(guids[4], guids[5], &(0..10)).is_some());
    }
}
