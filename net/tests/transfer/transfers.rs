//! What a transfer moves.

use std::sync::Arc;

use zumastor_core::{MemoryStore, NewSnapshot, SEGMENT, Selection, SnapshotNumber, SnapshotStore};
use zumastor_net::{Offer, PullError};

use crate::harness::{Downstream, Pipes, Upstream, noise};

const MIB: u64 = 1 << 20;

#[tokio::test]
async fn full_then_only_the_changed_pages() {
    let upstream = Upstream::new(130 * MIB + 5000);
    upstream.store.write_head(3 * MIB, &noise(10 << 20, 1));
    upstream.store.write_head(130 * MIB, &noise(5000, 2));
    upstream.snapshot(0).await;
    let upstream = Arc::new(upstream);
    let downstream = Downstream::new();
    let first = downstream.pull(&Pipes::to(&upstream)).await.unwrap();
    assert!(first.received && first.base.is_none());
    assert!((10 * MIB..10 * MIB + 100_000).contains(&first.data), "{first:?}");
    downstream.assert_shows(&upstream, 0).await;
    assert_eq!(upstream.holds.last(), Some((Some(0), None)));
    assert_eq!(downstream.holds.last(), Some((Some(0), None)));

    // Three pages in three segments, one zeroed page, one zeroed leaf; rewriting what is there is no change.
    upstream.store.write_head(3 * MIB, &noise(4096, 3));
    upstream.store.write_head(70 * MIB, &noise(4096, 4));
    upstream.store.write_head(130 * MIB + 4096, &[1; 904]);
    upstream.store.write_head(4 * MIB, &[0; 4096]);
    upstream.store.write_head(5 * MIB, &[0; 65536]);
    upstream.snapshot(1).await;
    let second = downstream.pull(&Pipes::to(&upstream)).await.unwrap();
    assert_eq!(second.base, Some(SnapshotNumber(0)));
    assert_eq!(second.data, 3 * 4096, "three pages were written");
    downstream.assert_shows(&upstream, 1).await;
    assert_eq!(upstream.holds.last(), Some((Some(1), None)));

    let third = downstream.pull(&Pipes::to(&upstream)).await.unwrap();
    assert!(!third.received && third.number == Some(SnapshotNumber(1)));
    assert_eq!(third.data + third.wire, 0);
}

#[tokio::test]
async fn small_changes_far_apart_are_compressed_together() {
    let upstream = Arc::new(Upstream::new(2 * SEGMENT + 65_536));
    upstream.snapshot(0).await;
    let downstream = Downstream::new();
    downstream.pull(&Pipes::to(&upstream)).await.unwrap();
    // Pages of the same lines, which by themselves have little that comes twice.
    let lines: Vec<u8> = noise(64 * 64, 1).into_iter().map(|byte| byte % 64).collect();
    let mut all = Vec::new();
    for (at, segment) in noise(3 * 64, 2).chunks(64).zip(0..) {
        let page: Vec<u8> =
            at.iter().flat_map(|line| &lines[usize::from(line % 64) * 64..][..64]).copied().collect();
        upstream.store.write_head(segment * SEGMENT + 8192, &page);
        all.extend(page);
    }
    upstream.snapshot(1).await;
    let pulled = downstream.pull(&Pipes::to(&upstream)).await.unwrap();
    assert_eq!(pulled.data, 3 * 4096);
    let together = zstd::bulk::compress(&all, 1).unwrap().len() as u64;
    assert!(pulled.wire < together + 3 * 64, "{} bytes, and {together} of data", pulled.wire);
    let theirs = upstream.store.leaves(SnapshotNumber(1)).await.unwrap().digest();
    assert_eq!(downstream.store.leaves(SnapshotNumber(1)).await.unwrap().digest(), theirs);
}

#[tokio::test]
async fn nothing_to_send_is_no_error() {
    let upstream = Arc::new(Upstream::new(MIB));
    let downstream = Downstream::new();
    assert_eq!(downstream.pull(&Pipes::to(&upstream)).await.unwrap().number, None);
    upstream.snapshot(0).await;
    downstream.pull(&Pipes::to(&upstream)).await.unwrap();
    downstream.assert_shows(&upstream, 0).await;
}

#[tokio::test]
async fn the_size_follows_the_master() {
    let upstream = Arc::new(Upstream::new(MIB + 100));
    upstream.store.write_head(0, &noise((MIB + 100) as usize, 1));
    upstream.snapshot(0).await;
    let downstream = Downstream::new();
    downstream.pull(&Pipes::to(&upstream)).await.unwrap();
    for (number, size) in [(1, 3 * MIB + 70_001), (2, 2 * MIB + 1), (3, 513), (4, 0), (5, 90_000)] {
        upstream.store.resize(size).await.unwrap();
        upstream.snapshot(number).await;
        let pulled = downstream.pull(&Pipes::to(&upstream)).await.unwrap();
        assert!(pulled.data <= 4096, "only the size changed: {pulled:?}");
        downstream.assert_shows(&upstream, number).await;
    }
}

#[tokio::test]
async fn without_a_common_snapshot_only_what_differs_is_sent() {
    let content = noise(80 << 20, 5);
    let upstream = Arc::new(Upstream::new(80 * MIB));
    upstream.store.write_head(0, &content);
    upstream.snapshot(0).await;
    let downstream = Downstream::new();
    downstream.pull(&Pipes::to(&upstream)).await.unwrap();
    // The master loses the snapshot that both have, and goes on.
    upstream.store.write_head(20 * MIB, &noise(100, 6));
    upstream.store.write_head(75 * MIB, &[0; 300_000]);
    upstream.snapshot(1).await;
    upstream.store.delete_snapshot(SnapshotNumber(0)).await.unwrap();
    let pulled = downstream.pull(&Pipes::to(&upstream)).await.unwrap();
    assert_eq!(pulled.base, None);
    assert!(pulled.data <= 3 * 65_536, "one leaf was written, two were cut by zeros: {pulled:?}");
    downstream.assert_shows(&upstream, 1).await;
}

#[tokio::test]
async fn what_the_image_held_before_is_kept_and_seeds_the_first_transfer() {
    let content = noise(70 << 20, 7);
    let upstream = Arc::new(Upstream::new(70 * MIB));
    upstream.store.write_head(0, &content);
    upstream.store.write_head(66 * MIB, b"news");
    upstream.snapshot(4).await;
    let seeded = MemoryStore::new(70 * MIB);
    seeded.write_head(0, &content);
    let downstream = Downstream::with(seeded);
    let pulled = downstream.pull(&Pipes::to(&upstream)).await.unwrap();
    assert_eq!(pulled.data, 65_536, "{pulled:?}");
    downstream.assert_shows(&upstream, 4).await;
    let kept = downstream.store.open_snapshot(SnapshotNumber::local(0)).await.unwrap();
    let mut old = vec![0; content.len()];
    kept.read_at(0, &mut old).unwrap();
    assert!(old == content, "what the image held before is gone");
}

#[tokio::test]
async fn a_replica_that_was_written_is_not_overwritten() {
    let upstream = Arc::new(Upstream::new(MIB));
    upstream.store.write_head(0, b"one");
    upstream.snapshot(0).await;
    let downstream = Downstream::new();
    downstream.pull(&Pipes::to(&upstream)).await.unwrap();
    downstream.store.write_head(5, b"mine");
    upstream.store.write_head(0, b"two");
    upstream.snapshot(1).await;
    let error = downstream.pull(&Pipes::to(&upstream)).await.unwrap_err();
    assert!(matches!(&error, PullError::Divergence(_)) && error.is_permanent(), "{error}");
    assert_eq!(&downstream.store.head_content()[..9], b"one\0\0mine");
}

#[tokio::test]
async fn another_volume_of_the_same_name_stops_the_transfer() {
    let first = Arc::new(Upstream::new(MIB));
    first.snapshot(0).await;
    let downstream = Downstream::new();
    downstream.pull(&Pipes::to(&first)).await.unwrap();
    let second = Arc::new(Upstream::new(MIB));
    second.store.write_head(0, b"other");
    for number in 0..3 {
        second.snapshot(number).await;
    }
    let error = downstream.pull(&Pipes::to(&second)).await.unwrap_err();
    assert!(matches!(&error, PullError::Divergence(text) if text.contains("lineage")), "{error}");
    downstream.assert_shows(&first, 0).await;
}

#[tokio::test]
async fn a_replica_that_is_ahead_stops_the_transfer() {
    let upstream = Arc::new(Upstream::new(MIB));
    upstream.snapshot(0).await;
    let downstream = Downstream::new();
    downstream.pull(&Pipes::to(&upstream)).await.unwrap();
    downstream.store.write_head(0, b"x");
    let ahead = NewSnapshot::manual(SnapshotNumber(7), upstream.lineage);
    downstream.store.create_snapshot(ahead).await.unwrap();
    upstream.store.write_head(0, b"two");
    upstream.snapshot(1).await;
    let error = downstream.pull(&Pipes::to(&upstream)).await.unwrap_err();
    assert!(matches!(&error, PullError::Divergence(text) if text.contains("snapshot 7")), "{error}");
    assert_eq!(downstream.store.snapshots().await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_crash_between_commit_and_flip_is_made_good() {
    let upstream = Arc::new(Upstream::new(MIB));
    upstream.store.write_head(0, b"one");
    upstream.snapshot(0).await;
    let downstream = Downstream::new();
    downstream.pull(&Pipes::to(&upstream)).await.unwrap();
    upstream.store.write_head(0, b"two");
    upstream.snapshot(1).await;
    downstream.pull(&Pipes::to(&upstream)).await.unwrap();
    // As the crash leaves it: committed, but the head shows the one before.
    downstream.store.revert(SnapshotNumber(0)).await.unwrap();
    zumastor_net::finish(&downstream.replica).await.unwrap();
    downstream.assert_shows(&upstream, 1).await;
}

#[tokio::test]
async fn compression_is_worth_it_or_left_alone() {
    for (compression, text, most) in
        [(Some(1), true, 200_000), (None, true, 4_300_000), (Some(1), false, 4_300_000)]
    {
        let mut upstream = Upstream::new(8 * MIB);
        upstream.compression = compression;
        let content = if text { b"all work and no play ".repeat(200_000) } else { noise(4_200_000, 8) };
        upstream.store.write_head(0, &content);
        upstream.snapshot(0).await;
        let upstream = Arc::new(upstream);
        let downstream = Downstream::new();
        let pulled = downstream.pull(&Pipes::to(&upstream)).await.unwrap();
        assert!(pulled.wire < most, "{compression:?} {text} {pulled:?}");
        assert_eq!(upstream.meter.data(), pulled.data);
        downstream.assert_shows(&upstream, 0).await;
    }
}

/// Words, as they stand in files; different for each seed.
fn text(length: usize, seed: u64) -> Vec<u8> {
    let random = noise(length, seed);
    let word =
        |byte: &u8| format!("{} ", ["lorem", "ipsum", "dolor", "sit", "amet", "sed"][usize::from(byte % 6)]);
    let mut text = random.iter().map(word).collect::<String>().into_bytes();
    text.truncate(length);
    text
}

#[tokio::test]
async fn the_wire_carries_what_the_changed_pages_compress_to() {
    const CHUNK: u64 = 64 << 10;
    let upstream = Upstream::new(256 * MIB);
    upstream.store.write_head(0, &noise(200 << 20, 1));
    upstream.snapshot(0).await;
    let upstream = Arc::new(upstream);
    let downstream = Downstream::new();
    let first = downstream.pull(&Pipes::to(&upstream)).await.unwrap();
    // One chunk in a hundred, and single pages between them.
    let mut changed = Vec::new();
    for (seed, chunk) in (2..).zip((0..4096).step_by(100)) {
        let content = if seed % 3 == 0 { noise(CHUNK as usize, seed) } else { text(CHUNK as usize, seed) };
        upstream.store.write_head(chunk * CHUNK, &content);
        changed.extend(content);
        let page = text(4096, seed + 1000);
        upstream.store.write_head((chunk + 50) * CHUNK, &page);
        changed.extend(page);
    }
    upstream.snapshot(1).await;
    let second = downstream.pull(&Pipes::to(&upstream)).await.unwrap();
    assert_eq!(second.data, changed.len() as u64);
    let compressed = zstd::bulk::compress(&changed, 1).unwrap().len() as u64;
    assert!(second.wire * 10 <= compressed * 11, "{} on the wire, {compressed} compressed", second.wire);
    let sent = upstream.meter.wire() - first.wire;
    assert!(sent * 10 <= compressed * 11, "{sent} sent, {compressed} compressed");
    downstream.assert_shows(&upstream, 1).await;
}

#[tokio::test]
async fn the_upstream_decides_which_snapshots_there_are_for_a_downstream() {
    let upstream = Arc::new(Upstream::new(MIB));
    for number in 0..4 {
        upstream.store.write_head(number * 5000, &noise(4096, number));
        upstream.snapshot(number).await;
    }
    *upstream.offer.lock().unwrap() = Offer { all: true, ..Offer::default() };
    let mut downstream = Downstream::new();
    let wanted = |number| Some(SnapshotNumber(number));
    downstream.replica.wanted = wanted(1);
    let pulled = downstream.pull(&Pipes::to(&upstream)).await.unwrap();
    assert_eq!((pulled.number, pulled.snapshots), (wanted(1), 1));
    downstream.replica.wanted = wanted(0);
    let pulled = downstream.pull(&Pipes::to(&upstream)).await.unwrap();
    assert_eq!((pulled.number, pulled.received), (wanted(1), false));
    downstream.replica.wanted = wanted(9);
    let error = downstream.pull(&Pipes::to(&upstream)).await.unwrap_err();
    assert!(error.to_string().contains("no snapshot 9") && !error.is_permanent(), "{error}");
    downstream.replica.wanted = None;
    let pulled = downstream.pull(&Pipes::to(&upstream)).await.unwrap();
    assert_eq!((pulled.number, pulled.base, pulled.snapshots), (wanted(3), wanted(1), 2));
    downstream.assert_shows(&upstream, 3).await;
    assert_eq!(downstream.store.snapshots().await.unwrap().len(), 3);
    // Nothing is selected any more: what both have stays what both have.
    let selection = Selection::new(["daily".to_owned()]).unwrap();
    *upstream.offer.lock().unwrap() = Offer { selection, ..Offer::default() };
    upstream.snapshot(4).await;
    let pulled = downstream.pull(&Pipes::to(&upstream)).await.unwrap();
    assert_eq!((pulled.number, pulled.received), (wanted(3), false));
    assert_eq!(Downstream::new().pull(&Pipes::to(&upstream)).await.unwrap().number, None);
}
