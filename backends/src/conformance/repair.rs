//! Looking for damage, and putting it right as a scrub does.

use std::ops::Range;

use zumastor_core::{
    HeadRepair, LEAF, LeafIndex, SnapshotNumber, SnapshotStore, StoreError,
    scrub::{Findings, Scan, Watch, join},
};

use super::model::Bytes;

/// Reads a snapshot against its digest.
pub(super) async fn scan(store: &dyn SnapshotStore, number: SnapshotNumber) -> Result<Findings, StoreError> {
    let tree = match store.leaves(number).await {
        Ok(tree) => Some(tree),
        Err(StoreError::Damaged { .. }) => None,
        Err(error) => return Err(error),
    };
    let record = store.snapshots().await?.into_iter().find(|record| record.number() == number);
    let digest = record.expect("a snapshot that is there").digest.expect("its leaves were asked for");
    Scan { reader: store.open_snapshot(number).await?, tree, digest }.run(&Watch::default())
}

/// Puts a snapshot right, if anything is wrong with it.
pub(super) async fn mend(
    store: &dyn SnapshotStore,
    number: SnapshotNumber,
    content: &Bytes,
) -> Result<HeadRepair, StoreError> {
    let findings = scan(store, number).await?;
    let leaves = |bytes: Range<u64>| bytes.start / LEAF..LeafIndex::count(bytes.end);
    let damaged = join(findings.bad().into_iter().map(leaves));
    let repair = store.repair(number, damaged.clone(), true).await?;
    // Another leaf than those is nobody's to write.
    let count = LeafIndex::count(content.0.len() as u64);
    let (size, good) = (content.0.len() as u64, &content.0);
    for leaf in damaged.into_iter().flatten() {
        assert!(leaf < count);
        let range = LeafIndex(leaf).range(size);
        repair.write(range.start, &good[range.start as usize..range.end as usize])?;
    }
    let head = repair.finish(findings.is_tree_damaged())?;
    let after = scan(store, number).await?;
    assert!(after.is_clean(), "snapshot {number} is not mended: {after:?}, before {findings:?}");
    Ok(head)
}
