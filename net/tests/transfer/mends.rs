//! A snapshot that a disk has damaged is put right from a peer, which is not believed.

use std::sync::Arc;

use zumastor_core::{
    HeadRepair, HeadState, LEAF, SEGMENT, SegmentIndex, SnapshotNumber, SnapshotStore,
    digest::{Hash, LeafTree, SegmentLeaves},
    scrub::{Findings, Scan, Watch},
};
use zumastor_net::{Mended, Mending, Patience, PullError, Reporter, mend};

use crate::harness::{Downstream, Pipes, Upstream, noise};

const SIZE: u64 = SEGMENT + 200_000;
const NUMBER: SnapshotNumber = SnapshotNumber(0);

/// Both have snapshot 0: some noise, and zeros.
async fn both() -> (Arc<Upstream>, Downstream) {
    let upstream = Arc::new(Upstream::new(SIZE));
    upstream.store.write_head(3 * LEAF, &noise(6 * LEAF as usize, 1));
    upstream.store.write_head(SEGMENT - 100, &noise(100_000, 2));
    upstream.snapshot(0).await;
    let downstream = Downstream::new();
    downstream.pull(&Pipes::to(&upstream)).await.unwrap();
    (upstream, downstream)
}

async fn scan(downstream: &Downstream) -> (Scan, Findings) {
    let digest = downstream.store.snapshots().await.unwrap()[0].digest.unwrap();
    let tree = downstream.store.leaves(NUMBER).await.ok();
    let reader = downstream.store.open_snapshot(NUMBER).await.unwrap();
    let scan = Scan { reader, tree, digest };
    let findings = scan.run(&Watch::default()).unwrap();
    (scan, findings)
}

async fn mend_from(downstream: &Downstream, link: Option<&Pipes>) -> Result<Mended, PullError> {
    let (scan, mut findings) = scan(downstream).await;
    let record = downstream.store.snapshots().await.unwrap().remove(0);
    let store: Arc<dyn SnapshotStore> = Arc::new(downstream.store.clone());
    let mending = Mending {
        link: link.map(|link| link as _),
        volume: "vol",
        store: &store,
        record: &record,
        head: true,
        patience: &Patience::default(),
        reporter: &Reporter::new(),
    };
    mend(&mending, &scan, &mut findings).await
}

async fn content(downstream: &Downstream) -> Vec<u8> {
    let reader = downstream.store.open_snapshot(NUMBER).await.unwrap();
    let mut content = vec![0; reader.size() as usize];
    reader.read_at(0, &mut content).unwrap();
    content
}

/// A tree as the snapshot's, with other hashes in some segments.
async fn other_tree(downstream: &Downstream, segments: &[u64], sealed: bool) -> LeafTree {
    let tree = downstream.store.leaves(NUMBER).await.unwrap().copy_anonymous(SIZE).unwrap();
    for segment in segments.iter().map(|index| SegmentIndex(*index)) {
        let mut leaves: SegmentLeaves = tree.segment(segment).unwrap();
        leaves.set(1, Some(Hash([9; 32])));
        tree.set_segment(segment, &leaves).unwrap();
    }
    if sealed { tree.seal().unwrap() } else { tree }
}

#[tokio::test]
async fn what_is_bad_is_found_to_the_leaf_and_fetched() {
    let (upstream, downstream) = both().await;
    let good = content(&downstream).await;
    let (_, findings) = scan(&downstream).await;
    assert!(findings.is_clean() && findings.bad().is_empty());
    // Noise, zeros, and the end of the volume.
    for (offset, bytes) in
        [(4 * LEAF + 7, &b"bad"[..]), (5 * LEAF, b"bad"), (20 * LEAF, b"bad"), (SIZE - 1, b"b")]
    {
        downstream.store.damage(NUMBER, offset, bytes);
    }
    let (_, findings) = scan(&downstream).await;
    let last = (SIZE - 1) / LEAF * LEAF;
    assert_eq!(findings.bad(), [4 * LEAF..6 * LEAF, 20 * LEAF..21 * LEAF, last..SIZE]);
    assert!(!findings.is_tree_damaged());

    // What should be zero needs no peer.
    let mended = mend_from(&downstream, None).await.unwrap();
    assert_eq!((mended.leaves, mended.wrong), (2, 0));
    let (_, findings) = scan(&downstream).await;
    assert_eq!(findings.bad().first(), Some(&(4 * LEAF..6 * LEAF)));
    let mended = mend_from(&downstream, Some(&Pipes::to(&upstream))).await.unwrap();
    assert!(mended.failed.is_none(), "{mended:?}");
    assert_eq!((mended.leaves, mended.wrong), (2, 0));
    assert!(content(&downstream).await == good);
    assert!(scan(&downstream).await.1.is_clean());
    assert_eq!(mended.head, HeadRepair::Untouched, "the head was another copy");
    downstream.assert_shows(&upstream, 0).await;
}

#[tokio::test]
async fn trees_are_damaged_too() {
    let (upstream, downstream) = both().await;
    let good = content(&downstream).await;
    // Only the tree: nobody is asked.
    for sealed in [true, false] {
        downstream.store.damage_leaves(NUMBER, other_tree(&downstream, &[0], sealed).await);
        let (_, findings) = scan(&downstream).await;
        assert!(findings.is_tree_damaged() && findings.is_content_good() && findings.bad().is_empty());
        mend_from(&downstream, None).await.unwrap();
        assert!(scan(&downstream).await.1.is_clean());
    }
    // Tree and content, in different segments and in the same.
    for trees in [&[1][..], &[0], &[0, 1]] {
        downstream.store.damage_leaves(NUMBER, other_tree(&downstream, trees, true).await);
        downstream.store.damage(NUMBER, 4 * LEAF, b"bad");
        let (_, findings) = scan(&downstream).await;
        assert!(findings.is_tree_damaged() && !findings.is_content_good());
        let bad = findings.bad();
        assert!(bad.iter().any(|range| range.contains(&(4 * LEAF))), "{bad:?}");
        let mended = mend_from(&downstream, Some(&Pipes::to(&upstream))).await.unwrap();
        assert_eq!((mended.leaves, mended.wrong), (1, 0), "{trees:?}: {mended:?}");
        assert!(content(&downstream).await == good);
        // What is left of it is only the tree.
        let (_, findings) = scan(&downstream).await;
        assert!(findings.is_content_good());
        mend_from(&downstream, None).await.unwrap();
        assert!(scan(&downstream).await.1.is_clean(), "{trees:?}");
    }
}

#[tokio::test]
async fn a_lying_peer_repairs_nothing() {
    let (upstream, downstream) = both().await;
    downstream.store.damage(NUMBER, 4 * LEAF, b"bad");
    let bad = content(&downstream).await;
    // Its content is another, and its hashes say that this is right.
    upstream.store.damage(NUMBER, 4 * LEAF + 9, b"lies");
    let lies = LeafTree::anonymous(SIZE).unwrap();
    let theirs = upstream.store.open_snapshot(NUMBER).await.unwrap();
    let all = [zumastor_core::Extent::data(0..SIZE)].into_iter().collect();
    lies.update(&all, &*theirs).unwrap();
    upstream.store.damage_leaves(NUMBER, lies.seal().unwrap());
    let mended = mend_from(&downstream, Some(&Pipes::to(&upstream))).await.unwrap();
    assert_eq!((mended.leaves, mended.wrong), (0, 1), "{mended:?}");
    assert!(mended.failed.unwrap().to_string().contains("not those of the snapshot"));
    assert!(content(&downstream).await == bad, "something was written");
    // Where the hashes here are lost as well, its own are not believed.
    downstream.store.damage_leaves(NUMBER, other_tree(&downstream, &[0, 1], false).await);
    let error = mend_from(&downstream, Some(&Pipes::to(&upstream))).await;
    let text = match error {
        Ok(mended) => mended.failed.expect("it cannot have gone well").to_string(),
        Err(error) => error.to_string(),
    };
    assert!(text.contains("hashes that are not those of the snapshot"), "{text}");
    assert!(content(&downstream).await == bad, "something was written");
}

#[tokio::test]
async fn what_is_broken_off_goes_on() {
    let (upstream, downstream) = both().await;
    let good = content(&downstream).await;
    downstream.store.damage(NUMBER, 3 * LEAF, &vec![1; 6 * LEAF as usize]);
    let broken = mend_from(&downstream, Some(&Pipes::breaking_after(&upstream, 200_000))).await.unwrap();
    assert!(matches!(broken.failed, Some(PullError::Frame(_))), "{broken:?}");
    for (at, byte) in content(&downstream).await.iter().enumerate() {
        assert!(*byte == good[at] || *byte == 1, "byte {at} is neither the old one nor the right one");
    }
    assert!(mend_from(&downstream, Some(&Pipes::to(&upstream))).await.unwrap().failed.is_none());
    assert!(content(&downstream).await == good);
    assert_eq!(downstream.store.head().await.unwrap(), HeadState::Shows(NUMBER));
}
