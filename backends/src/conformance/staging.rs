//! Receiving a snapshot as replication does it: only what differs, pages and leaf hashes together.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    ops::Range,
};

use zumastor_core::{
    Changes, Extent, ExtentKind, LEAF, Lineage, NewSnapshot, PAGE, SEGMENT, SegmentIndex, SnapshotNumber,
    SnapshotRecord, StagePlan, Staging, StoreError,
    digest::{Hash, SegmentLeaves},
    is_zero,
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

/// Brings what is staged within `window` from `base` to `target`; returns the leaf hashes for the next checkpoint.
pub fn deliver(
    staging: &dyn Staging,
    base: &Bytes,
    target: &Bytes,
    window: Range<u64>,
) -> Result<Vec<(SegmentIndex, SegmentLeaves)>, StoreError> {
    let size = target.0.len() as u64;
    let mut touched = BTreeSet::new();
    let mut changes = Changes::new();
    // Whole leaves: the hash speaks of all of it.
    let mut start = window.start / LEAF * LEAF;
    while start < window.end.next_multiple_of(LEAF).min(size) {
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
    let mut all = BTreeMap::new();
    for leaf in touched {
        let segment = SegmentIndex(leaf * LEAF / SEGMENT);
        let leaves = match all.entry(segment) {
            Entry::Vacant(entry) => entry.insert(staging.leaves().segment(segment)?),
            Entry::Occupied(entry) => entry.into_mut(),
        };
        let bytes = &target.0[(leaf * LEAF) as usize..((leaf + 1) * LEAF).min(size) as usize];
        let mut back = vec![0; bytes.len()];
        staging.read_back(leaf * LEAF, &mut back)?;
        assert!(back == bytes, "leaf {leaf} is not read back as it was written");
        let hash = (!is_zero(bytes)).then(|| Hash::of_leaf(bytes));
        leaves.set((leaf - segment.first_leaf()) as usize, hash);
    }
    Ok(all.into_iter().collect())
}
