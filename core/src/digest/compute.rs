//! Computing a digest from the content alone, on all cores.

use std::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use super::{Digest, Hash, LeafTree, SegmentLeaves};
use crate::{LEAF, PageBuf, SegmentIndex, StoreError, is_zero};

/// What a digest is computed of.
pub trait Source: Sync {
    /// Size in bytes.
    fn size(&self) -> u64;
    /// Fills `buf` from `offset` on, which never reaches beyond the end.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError>;
    /// The parts of `window` that may hold something other than zeros: ascending, disjoint.
    fn data(&self, window: Range<u64>) -> Result<Vec<Range<u64>>, StoreError>;
}

/// Computes the digest of `source` from scratch, without any stored hash: the independent check. Memory is bounded
/// whatever the size; holes are not read. With `tree`, of the same size and all zero, the leaves are kept there.
pub fn digest_of(source: &dyn Source, tree: Option<&LeafTree>) -> Result<Digest, StoreError> {
    let size = source.size();
    let count = SegmentIndex::count(size);
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64).clamp(1, count.max(1));
    let work = || -> Result<Vec<(u64, Hash)>, StoreError> {
        let mut buffer = PageBuf::new(READ as usize);
        let mut nodes = Vec::new();
        loop {
            let segment = SegmentIndex(next.fetch_add(1, Ordering::Relaxed));
            if segment.0 >= count {
                return Ok(nodes);
            }
            let leaves = segment_leaves(source, segment, &mut buffer)?;
            let node = match leaves {
                None => SegmentLeaves::zero_node(segment, size),
                Some(leaves) => {
                    if let Some(tree) = tree {
                        tree.set_segment(segment, &leaves)?;
                    }
                    leaves.node(segment, size)
                }
            };
            nodes.push((segment.0, node));
        }
    };
    let mut nodes = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut all = Vec::with_capacity(count as usize);
        for worker in workers {
            all.extend(worker.join().expect("hashing does not panic")?);
        }
        Ok::<_, StoreError>(all)
    })?;
    nodes.sort_unstable_by_key(|(index, _)| *index);
    Ok(Digest::from_nodes(size, nodes.into_iter().map(|(_, node)| node).collect()))
}

/// Bytes per read: large enough that the call costs nothing, small enough to stay in the processor's cache.
const READ: u64 = 1 << 20;

fn segment_leaves(
    source: &dyn Source,
    segment: SegmentIndex,
    buffer: &mut [u8],
) -> Result<Option<SegmentLeaves>, StoreError> {
    let size = source.size();
    let window = segment.range(size);
    let mut leaves = None;
    let mut done = window.start;
    for data in source.data(window.clone())? {
        // Whole leaves around the data, none twice.
        let mut position = (data.start / LEAF * LEAF).max(done);
        let end = data.end.next_multiple_of(LEAF).min(window.end);
        while position < end {
            let length = (end - position).min(READ);
            let read = &mut buffer[..length as usize];
            source.read_at(position, read)?;
            for (index, leaf) in read.chunks(LEAF as usize).enumerate().filter(|(_, leaf)| !is_zero(leaf)) {
                let at = (position / LEAF - segment.first_leaf()) as usize + index;
                let leaves = leaves.get_or_insert_with(|| SegmentLeaves::zeros(segment, size));
                leaves.set(at, Some(Hash::of_leaf(leaf)));
            }
            position += length;
        }
        done = done.max(end);
    }
    Ok(leaves)
}
