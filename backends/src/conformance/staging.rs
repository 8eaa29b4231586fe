//! Receiving a snapshot as replication does it: only what differs, pages and leaf hashes together.

use std::{collections::BTreeSet, ops::Range};

use zumastor_core::{
    Changes, Extent, ExtentKind, LEAF, Lineage, NewSnapshot, PAGE, SEGMENT, SegmentIndex, SnapshotNumber,
    SnapshotRecord, StagePlan, Staging, StoreError, digest::Hash, is_zero,
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
    let mut changes = Changes::new();
    let mut start = window.start / PAGE * PAGE;
    while start < window.end.min(size) {
        let end = (start + PAGE).min(size);
        let new = &target.0[start as usize..end as usize];
        // What the base does not have begins as zeros.
        let same = (start..end).all(|i| base.0.get(i as usize).copied().unwrap_or(0) == target.0[i as usize]);
        if !same {
            touched.insert(start / LEAF);
            changes.push(if is_zero(new) { Extent::zero(start..end) } else { Extent::data(start..end) });
        }
        start = end;
    }
    for Extent { range, kind } in &changes {
        match kind {
            ExtentKind::Zero => staging.zero(range.clone())?,
            ExtentKind::Data => {
                staging.write_at(range.start, &target.0[range.start as usize..range.end as usize])?;
            }
        }
    }
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
