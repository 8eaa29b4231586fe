//! Reading back what was staged before it is committed.
//!
//! Each leaf was checked before it was written. Between that and the commit it lay on a disk, perhaps for days and across
//! restarts, and nothing has looked at it since. So everything that differs from the base is read and hashed once more:
//! it costs what changed, and a replica never shows what was not verified where it lies. Most of it is read as soon as it is
//! durable, while more is coming in; what an earlier run has staged, in the end.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
};

use zumastor_core::{
    LEAF, LeafIndex, PageBuf, SegmentIndex, Staging, StoreError,
    digest::{Hash, LeafTree, SegmentLeaves},
};

/// What was read back, and what was wrong of it. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Checked {
    base: Option<Arc<LeafTree>>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    segments: HashSet<SegmentIndex>,
    damaged: Vec<LeafIndex>,
}

impl Checked {
    /// Nothing yet, of what is built upon a base with this tree.
    pub fn new(base: Option<Arc<LeafTree>>) -> Self {
        Self { base, seen: Arc::default() }
    }

    /// Reads back segments that are complete and durable. Blocking.
    pub fn check(&self, staging: &dyn Staging, segments: &[SegmentIndex]) -> Result<(), StoreError> {
        let mut buffer = PageBuf::new(READ as usize);
        for segment in segments {
            let damaged = check(staging, self.base.as_deref(), *segment, &mut buffer)?;
            let mut seen = self.seen();
            seen.segments.insert(*segment);
            seen.damaged.extend(damaged);
        }
        Ok(())
    }

    /// Reads back what has not been; gives the leaves that are not what the tree of the staging says, among those that
    /// differ from the base, and forgets all of it. Takes less memory than so many streams. Blocking.
    pub fn rest(&self, staging: &dyn Staging, streams: usize) -> Result<Vec<LeafIndex>, StoreError> {
        let size = staging.plan().record.size;
        let nodes = staging.leaves().nodes()?;
        let before = self.base.as_deref().map(LeafTree::nodes).transpose()?.unwrap_or_default();
        let differs = |(index, node): (u64, &Hash)| {
            let segment = SegmentIndex(index);
            let old = before
                .get(index as usize)
                .copied()
                .unwrap_or_else(|| SegmentLeaves::zero_node(segment, size));
            (old != *node && !self.seen().segments.contains(&segment)).then_some(segment)
        };
        let segments: Vec<SegmentIndex> = (0..).zip(&nodes).filter_map(differs).collect();
        let next = AtomicUsize::new(0);
        let work = || -> Result<(), StoreError> {
            while let Some(segment) = segments.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.check(staging, std::slice::from_ref(segment))?;
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
        let mut seen = std::mem::take(&mut *self.seen());
        seen.damaged.sort_unstable();
        Ok(seen.damaged)
    }

    /// What was read back may have changed since.
    pub fn forget(&self) {
        *self.seen() = Seen::default();
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("no panic while locked")
    }
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
