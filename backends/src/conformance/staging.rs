//! Receiving a snapshot as replication does it: only what differs, pages and leaf hashes together.

use std::{collections::BTreeSet, ops::Range};

use zumastor_core::{
    LEAF, Lineage, NewSnapshot, PAGE, SEGMENT, SegmentIndex, SnapshotNumber, SnapshotRecord, StagePlan,
    Staging, StoreError, digest::Hash, is_zero,
};

use super::model::Bytes;

/// The plan to receive `content`.
pub fn plan_for(
    number: SnapshotNumber,
    lineage: Lineage,
    base: Option<SnapshotNumber>,
    content: &Bytes,
) -> StagePlan {
    let new = NewSnapshot::manual(number, lineage);
    StagePlan {
        record: SnapshotRecord { new, size: content.0.len() as u64, digest: Some(content.digest()) },
        base,
    }
}

/// Brings what is staged within `window` from `base` to `target`, and the leaf hashes with it.
pub fn deliver(
    staging: &dyn Staging,
    base: &Bytes,
    target: &Bytes,
    window: Range<u64>,
) -> Result<(), StoreError> {
    let size = target.0.len() as u64;
    let mut touched = BTreeSet::new();
    let mut start = window.start / PAGE * PAGE;
    let mut run: Option<Range<u64>> = None;
    while start < window.end.min(size) {
        let end = (start + PAGE).min(size);
        let new = &target.0[start as usize..end as usize];
        // What the base does not have begins as zeros.
        let same = (start..end).all(|i| base.0.get(i as usize).copied().unwrap_or(0) == target.0[i as usize]);
        if same {
            flush(staging, target, run.take())?;
        } else {
            touched.insert(start / LEAF);
            if is_zero(new) {
                flush(staging, target, run.take())?;
                staging.zero(start..end)?;
            } else {
                run = Some(run.map_or(start, |run| run.start)..end);
            }
        }
        start = end;
    }
    flush(staging, target, run)?;
    for leaf in touched {
        let segment = SegmentIndex(leaf * LEAF / SEGMENT);
        let mut leaves = staging.leaves().segment(segment)?;
        let bytes = &target.0[(leaf * LEAF) as usize..((leaf + 1) * LEAF).min(size) as usize];
        let hash = (!is_zero(bytes)).then(|| Hash::of_leaf(bytes));
        leaves.set((leaf - segment.first_leaf()) as usize, hash);
        staging.leaves().set_segment(segment, &leaves)?;
    }
    Ok(())
}

fn flush(staging: &dyn Staging, target: &Bytes, run: Option<Range<u64>>) -> Result<(), StoreError> {
    match run {
        Some(run) => staging.write_at(run.start, &target.0[run.start as usize..run.end as usize]),
        None => Ok(()),
    }
}
