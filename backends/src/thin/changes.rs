//! What two snapshots differ in, by their mappings.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Arc, Mutex},
};

use zumastor_core::{Changes, Extent, SnapshotGuid, SnapshotNumber, StoreError};

use super::{catalogue::Kept, inner::Inner, pool::ThinId};
use crate::thin_metadata::{Difference, ThinMetadata};

/// Where one snapshot differs from another, or from zeros: in chunks, ascending.
#[derive(Debug)]
pub(crate) struct Delta {
    chunk: u64,
    runs: Vec<(Range<u64>, Difference)>,
}

impl Delta {
    pub(crate) fn new(chunk: u64, runs: Vec<(Range<u64>, Difference)>) -> Self {
        Self { chunk, runs }
    }

    /// Chunks that are mapped in the second one, and not to the same place in the first.
    pub(crate) fn right(&self) -> u64 {
        let right = self.runs.iter().filter(|(_, kind)| *kind != Difference::LeftOnly);
        right.map(|(blocks, _)| blocks.end - blocks.start).sum()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The part within a window of a snapshot of `size` bytes. A thin device may be mapped beyond its end, where it was
    /// larger once.
    pub(crate) fn within(&self, window: &Range<u64>, size: u64) -> Changes {
        let (start, end) = (window.start.min(size), window.end.min(size));
        let first = self.runs.partition_point(|(blocks, _)| blocks.end.saturating_mul(self.chunk) <= start);
        let mut changes = Changes::new();
        for (blocks, kind) in &self.runs[first..] {
            let range =
                (blocks.start * self.chunk).max(start)..blocks.end.saturating_mul(self.chunk).min(end);
            if range.start >= end {
                break;
            }
            changes.push(match kind {
                // What is not mapped here is zeros: there is no origin below.
                Difference::LeftOnly => Extent::zero(range),
                Difference::Different | Difference::RightOnly => Extent::data(range),
            });
        }
        changes
    }
}

/// Deltas that were found lately: a transfer asks for many windows of one.
#[derive(Debug, Default)]
pub(crate) struct KnownDeltas(Mutex<VecDeque<(Pair, Arc<Delta>)>>);

type Pair = (Option<SnapshotGuid>, SnapshotGuid);

/// How many are remembered.
const REMEMBERED: usize = 8;

impl KnownDeltas {
    /// Forgets all: a snapshot was repaired, and has chunks of its own now.
    pub(crate) fn forget(&self) {
        self.0.lock().expect("no panic while locked").clear();
    }

    fn get(&self, pair: &Pair) -> Option<Arc<Delta>> {
        let known = self.0.lock().expect("no panic while locked");
        known.iter().find(|(known, _)| known == pair).map(|(_, delta)| delta.clone())
    }

    fn put(&self, pair: Pair, delta: Arc<Delta>) {
        let mut known = self.0.lock().expect("no panic while locked");
        known.retain(|(known, _)| *known != pair);
        known.truncate(REMEMBERED - 1);
        known.push_front((pair, delta));
    }
}

impl Inner {
    pub(crate) fn changes(
        &self,
        base: Option<SnapshotNumber>,
        target: SnapshotNumber,
        window: Range<u64>,
    ) -> Result<Changes, StoreError> {
        let size = self.kept(target)?.record.size;
        Ok(self.delta(base, target)?.within(&window, size))
    }

    /// Where a snapshot differs from another; without one, from zeros.
    pub(crate) fn delta(
        &self,
        base: Option<SnapshotNumber>,
        target: SnapshotNumber,
    ) -> Result<Arc<Delta>, StoreError> {
        let new = self.kept(target)?;
        let old = base.map(|base| self.kept(base)).transpose()?;
        let pair = (old.as_ref().map(|old| old.record.guid()), new.record.guid());
        if let Some(delta) = self.known.get(&pair) {
            return Ok(delta);
        }
        // Snapshots do not change, so what was found stays true.
        let size = |kept: &Kept| kept.record.size;
        // What a smaller base has beyond its end does not count, though it may be mapped to what the larger one shows there.
        let end = old.as_ref().map(size).filter(|end| *end < size(&new));
        let from = end.map_or(u64::MAX, |end| end / self.pool.chunk());
        let delta = Arc::new(self.compare_until(old.map(|old| old.thin), new.thin, from)?);
        self.known.put(pair, delta.clone());
        Ok(delta)
    }

    /// Compares the mappings of two thin devices, as they are now.
    pub(crate) fn compare(&self, left: Option<ThinId>, right: ThinId) -> Result<Delta, StoreError> {
        self.compare_until(left, right, u64::MAX)
    }

    /// The same up to a chunk; from there on, all that is mapped on the right may differ.
    fn compare_until(&self, left: Option<ThinId>, right: ThinId, from: u64) -> Result<Delta, StoreError> {
        let mut runs = Vec::new();
        self.pool.read_metadata(&mut |metadata| {
            left.iter().chain([&right]).try_for_each(|id| self.check_there(*id))?;
            let all = 0..u64::MAX;
            runs = match left {
                Some(left) => {
                    let diff = metadata.diff(left.0, right.0, all)?;
                    let mut runs = diff
                        .map(|run| run.map(|run| (run.begin..run.begin + run.length, run.kind)))
                        .collect::<Result<Vec<_>, _>>()?;
                    if from < u64::MAX {
                        runs = with_all_from(runs, from, mapped(metadata, right, from..u64::MAX)?);
                    }
                    runs
                }
                None => {
                    let mapped = mapped(metadata, right, all)?;
                    mapped.into_iter().map(|blocks| (blocks, Difference::RightOnly)).collect()
                }
            };
            Ok(())
        })?;
        Ok(Delta::new(self.pool.chunk(), runs))
    }

    /// What a thin device has mapped within a range: bytes, ascending.
    pub(crate) fn mapped(&self, id: ThinId, range: Range<u64>) -> Result<Vec<Range<u64>>, StoreError> {
        let chunk = self.pool.chunk();
        let mut found = Vec::new();
        self.pool.read_metadata(&mut |metadata| {
            self.check_there(id)?;
            found = mapped(metadata, id, range.start / chunk..range.end.div_ceil(chunk))?;
            Ok(())
        })?;
        let cut =
            |blocks: Range<u64>| (blocks.start * chunk).max(range.start)..(blocks.end * chunk).min(range.end);
        Ok(found.into_iter().map(cut).collect())
    }

    fn check_there(&self, id: ThinId) -> Result<(), StoreError> {
        if self.pool.is_there(id)? {
            return Ok(());
        }
        let what = format!("thin device {id} was removed by somebody else");
        Err(StoreError::Damaged { path: self.pool.place().to_owned(), what })
    }
}

/// The chunks within a window that a thin device has mapped.
fn mapped(metadata: &ThinMetadata, id: ThinId, window: Range<u64>) -> Result<Vec<Range<u64>>, StoreError> {
    let runs = metadata.mappings(id.0, window)?;
    let runs = runs.map(|run| run.map(|run| run.begin..run.begin + run.length));
    Ok(runs.collect::<Result<_, _>>()?)
}

type Run = (Range<u64>, Difference);

/// Runs that differ, and from a chunk on all that is mapped on the right, whether it differs or not.
fn with_all_from(runs: Vec<Run>, from: u64, mapped: Vec<Range<u64>>) -> Vec<Run> {
    let mut all = Vec::with_capacity(runs.len() + mapped.len());
    for (range, kind) in runs {
        let before = range.start..range.end.min(from);
        if !before.is_empty() {
            all.push((before, kind));
        }
        // What is mapped on the right is among the others.
        let behind = range.start.max(from)..range.end;
        if !behind.is_empty() && kind == Difference::LeftOnly {
            all.push((behind, kind));
        }
    }
    all.extend(mapped.into_iter().map(|range| (range, Difference::Different)));
    all.sort_unstable_by_key(|(range, _)| range.start);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_a_smaller_base_all_that_is_mapped_counts() {
        use Difference::{Different, LeftOnly, RightOnly};
        let runs = vec![(0..2, Different), (4..8, RightOnly), (9..10, LeftOnly), (12..13, Different)];
        let mapped = vec![6..9, 11..14];
        assert_eq!(
            with_all_from(runs, 6, mapped),
            [(0..2, Different), (4..6, RightOnly), (6..9, Different), (9..10, LeftOnly), (11..14, Different)]
        );
    }

    #[test]
    fn windows_are_cut_and_what_lies_beyond_the_end_is_left_out() {
        let delta = Delta::new(
            100,
            vec![
                (0..2, Difference::Different),
                (2..3, Difference::LeftOnly),
                (5..6, Difference::RightOnly),
                (9..20, Difference::LeftOnly),
            ],
        );
        let all: Vec<_> = delta.within(&(0..u64::MAX), 950).iter().cloned().collect();
        let expected =
            [Extent::data(0..200), Extent::zero(200..300), Extent::data(500..600), Extent::zero(900..950)];
        assert_eq!(all, expected);
        let some: Vec<_> = delta.within(&(150..510), 950).iter().cloned().collect();
        assert_eq!(some, [Extent::data(150..200), Extent::zero(200..300), Extent::data(500..510)]);
        assert!(delta.within(&(0..u64::MAX), 0).is_empty());
        assert!(delta.within(&(300..500), 950).is_empty());
    }
}
