//! Reading back what an earlier run has staged, before it is committed.
//!
//! Each leaf was checked before it was written, and the disk has said that it has it. What was staged before an interruption has
//! lain there since, perhaps for days and across restarts, and nothing has looked at it. So as far as it differs from the
//! base it is read and hashed once more. What comes in without an interruption is not: writing and reading everything would
//! halve what a disk can take. Whether the disk keeps what it has said to have, a scrub finds out.

use std::{
    collections::HashSet,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use zumastor_core::{
    LEAF, LeafIndex, PageBuf, SegmentIndex, Staging, StoreError,
    digest::{Hash, LeafTree, SegmentLeaves},
};

/// Reads back all that differs from the base (from zeros, without one), but for the segments that are `known`; gives the leaves
/// that are not what the tree of the staging says. Takes less memory than so many streams. Blocking.
pub(super) fn damaged(
    staging: &dyn Staging,
    base: Option<&LeafTree>,
    known: &HashSet<SegmentIndex>,
    streams: usize,
) -> Result<Vec<LeafIndex>, StoreError> {
    let size = staging.plan().record.size;
    let nodes = staging.leaves().nodes()?;
    let before = base.map(LeafTree::nodes).transpose()?.unwrap_or_default();
    let differs = |(index, node): (u64, &Hash)| {
        let segment = SegmentIndex(index);
        let old =
            before.get(index as usize).copied().unwrap_or_else(|| SegmentLeaves::zero_node(segment, size));
        (old != *node && !known.contains(&segment)).then_some(segment)
    };
    let segments: Vec<SegmentIndex> = (0..).zip(&nodes).filter_map(differs).collect();
    if segments.is_empty() {
        return Ok(Vec::new());
    }
    let (next, damaged) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || -> Result<(), StoreError> {
        let mut buffer = PageBuf::new(READ as usize);
        while let Some(segment) = segments.get(next.fetch_add(1, Ordering::Relaxed)) {
            let found = check(staging, base, *segment, &mut buffer)?;
            damaged.lock().expect("no panic while locked").extend(found);
        }
        Ok(())
    };
    // Twice the processors: half of them wait for the disk. Each has a buffer, of which a stream has many more.
    let most = segments.len().min(4 * streams).max(1);
    let threads = std::thread::available_parallelism().map_or(2, |n| 2 * n.get()).clamp(1, most);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("reading does not panic"))
    })?;
    let mut damaged = damaged.into_inner().expect("no panic while locked");
    damaged.sort_unstable();
    Ok(damaged)
}

fn check(
    staging: &dyn Staging,
    base: Option<&LeafTree>,
    segment: SegmentIndex,
    buffer: &mut [u8],
) -> Result<Vec<LeafIndex>, StoreError> {
    let size = staging.plan().record.size;
    let leaves = staging.leaves().segment(segment)?;
    let old = base.filter(|base| segment.0 < SegmentIndex::count(base.size()));
    let old = old.map(|base| Ok::<_, StoreError>((base.segment(segment)?, base.size()))).transpose()?;
    let changed = |position: usize| match &old {
        None => !leaves.is_zero(position),
        Some((old, old_size)) => {
            let leaf = LeafIndex(segment.first_leaf() + position as u64);
            position >= old.len()
                || leaf.range(size) != leaf.range(*old_size)
                || old.hash(segment, position, *old_size) != leaves.hash(segment, position, size)
        }
    };
    let mut damaged = Vec::new();
    let mut position = 0;
    while position < leaves.len() {
        if !changed(position) {
            position += 1;
            continue;
        }
        // Neighbours are read together.
        let most = (position + (READ / LEAF) as usize).min(leaves.len());
        let end = (position..most).find(|position| !changed(*position)).unwrap_or(most);
        let start = LeafIndex(segment.first_leaf() + position as u64).range(size).start;
        let stop = LeafIndex(segment.first_leaf() + end as u64 - 1).range(size).end;
        let bytes = &mut buffer[..(stop - start) as usize];
        staging.read_back(start, bytes)?;
        for (position, bytes) in (position..end).zip(bytes.chunks(LEAF as usize)) {
            if Hash::of_leaf(bytes) != leaves.hash(segment, position, size) {
                damaged.push(LeafIndex(segment.first_leaf() + position as u64));
            }
        }
        position = end;
    }
    Ok(damaged)
}

/// Bytes per read.
const READ: u64 = 1 << 20;
