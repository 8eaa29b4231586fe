//! What snapshots that share blocks were found to differ in. Snapshots do not change, so it stays true; and it is asked for
//! three times: for the digest, for the plan of a transfer, and for each part of it.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use zumastor_core::{Changes, Extent, SnapshotGuid};

/// Answers that were given before, a bounded number of them.
#[derive(Debug)]
pub(super) struct KnownChanges {
    pairs: Mutex<VecDeque<Known>>,
    /// Bytes of memory that they may take.
    limit: AtomicU64,
}

impl Default for KnownChanges {
    fn default() -> Self {
        Self { pairs: Mutex::default(), limit: AtomicU64::new(u64::MAX) }
    }
}

/// What a snapshot differs from another in, within some windows.
#[derive(Debug)]
struct Known {
    base: SnapshotGuid,
    target: SnapshotGuid,
    /// Ascending and disjoint.
    windows: Vec<(Range<u64>, Changes)>,
}

impl Known {
    /// Bytes of memory that it takes.
    fn bytes(&self) -> u64 {
        self.windows.iter().map(|(_, changes)| cost(changes)).sum::<u64>() + size_of::<Self>() as u64
    }
}

/// Bytes of memory that an answer takes.
fn cost(changes: &Changes) -> u64 {
    (size_of::<(Range<u64>, Changes)>() + changes.iter().len() * size_of::<Extent>()) as u64
}

impl KnownChanges {
    /// Bounds the memory they take; what is beyond that is forgotten, the oldest pairs first.
    pub fn limit(&self, bytes: u64) {
        self.limit.store(bytes, Ordering::Relaxed);
        let mut all = self.pairs.lock().expect("no panic while locked");
        while all.iter().map(Known::bytes).sum::<u64>() > bytes {
            all.pop_back();
        }
    }

    /// Bytes of memory that they take.
    pub fn bytes(&self) -> u64 {
        self.pairs.lock().expect("no panic while locked").iter().map(Known::bytes).sum()
    }

    /// The changes within `window`, if all of it is known.
    pub fn find(&self, base: SnapshotGuid, target: SnapshotGuid, window: &Range<u64>) -> Option<Changes> {
        let all = self.pairs.lock().expect("no panic while locked");
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
        let mut all = self.pairs.lock().expect("no panic while locked");
        let index = match all.iter().position(|known| known.base == base && known.target == target) {
            Some(index) => index,
            None => {
                all.push_front(Known { base, target, windows: Vec::new() });
                all.truncate(PAIRS);
                0
            }
        };
        let windows = &all[index].windows;
        let extents: usize = windows.iter().map(|(_, changes)| changes.iter().len()).sum();
        let at = windows.partition_point(|(part, _)| part.end <= window.start);
        let free = windows.get(at).is_none_or(|(part, _)| part.start >= window.end);
        if !free || extents + changes.iter().len() > EXTENTS || windows.len() >= WINDOWS {
            return;
        }
        // Older pairs make room for it, as far as that helps.
        let limit = self.limit.load(Ordering::Relaxed);
        let total = |all: &VecDeque<Known>| all.iter().map(Known::bytes).sum::<u64>() + cost(changes);
        while total(&all) > limit && all.len() > index + 1 {
            all.pop_back();
        }
        if total(&all) <= limit {
            all[index].windows.insert(at, (window, changes.clone()));
        } else if all[index].windows.is_empty() {
            all.remove(index);
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
    fn memory_is_bounded() {
        let known = KnownChanges::default();
        let many: Vec<_> = (0..1000).map(|n| (n * 10, n * 10 + 1)).collect();
        let guids: Vec<_> = (0..4).map(|_| SnapshotGuid::generate()).collect();
        let has = |n: usize| known.find(guids[n], guids[n + 1], &(0..10_000)).is_some();
        known.limit(60_000);
        for pair in guids.windows(2) {
            known.add(pair[0], pair[1], 0..10_000, &changes(&many));
            assert!(known.bytes() <= 60_000, "{}", known.bytes());
        }
        assert!(!has(0) && has(1) && has(2));
        known.limit(30_000);
        assert!(!has(1) && has(2) && known.bytes() <= 30_000);
        // What is larger than all there may be, is not kept, and nothing else goes for nothing.
        known.limit(10_000);
        known.add(guids[0], guids[1], 0..10_000, &changes(&many));
        assert!(!has(0) && known.bytes() == 0);
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
