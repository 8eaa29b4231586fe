//! Another node is made the master: what follows it, and what becomes of what is here.

use std::sync::{Arc, atomic::Ordering};

use zumastor_core::{NewSnapshot, SnapshotNumber, SnapshotStore};
use zumastor_net::{AnnounceError, Patience, announce, wire::Announce};

use crate::harness::{Downstream, Pipes, Upstream, noise};

const MIB: u64 = 1 << 20;

async fn numbers(downstream: &Downstream) -> Vec<String> {
    let records = downstream.store.snapshots().await.unwrap();
    records.iter().map(|record| record.number().to_string()).collect()
}

/// An upstream with snapshots 0 and 1, and a downstream that has both and two more of its own under the next numbers.
async fn diverged() -> (Arc<Upstream>, Downstream) {
    let upstream = Arc::new(Upstream::new(4 * MIB));
    let downstream = Downstream::new();
    for number in 0..2 {
        upstream.store.write_head(number * MIB, &noise(MIB as usize, number));
        upstream.snapshot(number).await;
        downstream.pull(&Pipes::to(&upstream)).await.unwrap();
    }
    for number in 2..4 {
        downstream.store.write_head(2 * MIB, &noise(4096, 100 + number));
        let new = NewSnapshot::manual(SnapshotNumber(number), upstream.lineage);
        downstream.store.create_snapshot(new).await.unwrap();
    }
    (upstream, downstream)
}

#[tokio::test]
async fn what_the_new_master_does_not_have_is_kept_under_numbers_of_ones_own() {
    let (upstream, downstream) = diverged().await;
    let mine = downstream.store.snapshots().await.unwrap();
    upstream.store.write_head(3 * MIB, &noise(8192, 7));
    upstream.snapshot(2).await;
    // In the same epoch that is a contradiction that only a person can resolve.
    let error = downstream.pull(&Pipes::to(&upstream)).await.unwrap_err();
    assert!(error.is_permanent() && error.to_string().contains("snapshot 2"), "{error}");
    assert_eq!(numbers(&downstream).await, ["0", "1", "2", "3"]);

    // Nor does an epoch help that cannot be.
    upstream.epoch.store(u64::MAX, Ordering::SeqCst);
    let error = downstream.pull(&Pipes::to(&upstream)).await.unwrap_err();
    assert!(error.is_permanent() && error.to_string().contains("clocks"), "{error}");
    assert_eq!(numbers(&downstream).await, ["0", "1", "2", "3"]);

    upstream.epoch.store(5, Ordering::SeqCst);
    let pulled = downstream.pull(&Pipes::to(&upstream)).await.unwrap();
    assert_eq!((pulled.base, pulled.data), (Some(SnapshotNumber(1)), 8192));
    downstream.assert_shows(&upstream, 2).await;
    assert_eq!(numbers(&downstream).await, ["0", "1", "2", "L0", "L1"]);
    let kept = downstream.store.snapshots().await.unwrap();
    assert_eq!([kept[3].guid(), kept[4].guid()], [mine[2].guid(), mine[3].guid()]);
    assert_eq!(downstream.store.leaves(SnapshotNumber::local(1)).await.unwrap().size(), 4 * MIB);

    // Who has been superseded hears of it, and sends nothing.
    upstream.epoch.store(4, Ordering::SeqCst);
    upstream.snapshot(3).await;
    let error = downstream.pull(&Pipes::to(&upstream)).await.unwrap_err();
    assert!(error.is_permanent() && error.to_string().contains("another master"), "{error}");
    assert_eq!(upstream.heard.load(Ordering::SeqCst), 5);
    assert_eq!(numbers(&downstream).await, ["0", "1", "2", "L0", "L1"]);
}

#[tokio::test]
async fn the_new_master_has_nothing_new_yet() {
    let (upstream, downstream) = diverged().await;
    upstream.epoch.store(1, Ordering::SeqCst);
    let pulled = downstream.pull(&Pipes::to(&upstream)).await.unwrap();
    assert_eq!((pulled.number, pulled.received), (Some(SnapshotNumber(1)), false));
    downstream.assert_shows(&upstream, 1).await;
    assert_eq!(numbers(&downstream).await, ["0", "1", "L0", "L1"]);
}

#[tokio::test]
async fn without_a_common_snapshot_everything_is_set_aside_and_only_what_differs_is_sent() {
    let (upstream, downstream) = diverged().await;
    upstream.epoch.store(1, Ordering::SeqCst);
    upstream.snapshot(2).await;
    for number in 0..2 {
        upstream.store.delete_snapshot(SnapshotNumber(number)).await.unwrap();
    }
    let pulled = downstream.pull(&Pipes::to(&upstream)).await.unwrap();
    assert!(pulled.base.is_none() && pulled.data <= 65_536, "{pulled:?}");
    downstream.assert_shows(&upstream, 2).await;
    assert_eq!(numbers(&downstream).await, ["2", "L0", "L1", "L2", "L3"]);
}

#[tokio::test]
async fn an_announcement_of_a_superseded_master_is_answered_with_the_epoch() {
    let upstream = Arc::new(Upstream::new(MIB));
    upstream.epoch.store(7, Ordering::SeqCst);
    let mut news = Announce {
        volume: "vol".into(),
        upstream_volume: "vol".into(),
        number: SnapshotNumber(3),
        exactly: false,
        lineage: upstream.lineage,
        epoch: 6,
    };
    let link = Pipes::to(&upstream);
    let error = announce(&link, news.clone(), &Patience::default(), &mut |_| {}).await.unwrap_err();
    assert!(matches!(error, AnnounceError::Superseded(7)), "{error}");
    news.lineage = zumastor_core::Lineage::generate();
    let error = announce(&link, news, &Patience::default(), &mut |_| {}).await.unwrap_err();
    assert!(matches!(error, AnnounceError::Refused(_)), "{error}");
}
