//! Interruptions, and disks that give wrong data.

use std::{
    ops::Range,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use zumastor_core::{
    Changes, Geometry, HeadState, MemoryStore, NewSnapshot, SEGMENT, SnapshotNumber, SnapshotReader,
    SnapshotRecord, SnapshotStore, StagePlan, Staging, StoreError, StoreInfo, Usage, digest::LeafTree,
};
use zumastor_net::PullError;

use crate::harness::{Downstream, Pipes, Upstream, noise};

const MIB: u64 = 1 << 20;

/// A store whose reads of one page come back with a flipped bit, so many times.
#[derive(Debug)]
struct Rotten {
    store: MemoryStore,
    times: Arc<AtomicU32>,
}

#[derive(Debug)]
struct RottenReader {
    inner: Arc<dyn SnapshotReader>,
    times: Arc<AtomicU32>,
}

const ROTTEN: u64 = 2 * MIB + 777;

impl SnapshotReader for RottenReader {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        self.inner.read_at(offset, buf)?;
        if (offset..offset + buf.len() as u64).contains(&ROTTEN)
            && self.times.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
        {
            buf[(ROTTEN - offset) as usize] ^= 4;
        }
        Ok(())
    }
}

#[async_trait]
impl SnapshotStore for Rotten {
    fn geometry(&self) -> Result<Geometry, StoreError> {
        self.store.geometry()
    }
    fn info(&self) -> StoreInfo {
        self.store.info()
    }
    async fn create_snapshot(&self, new: NewSnapshot) -> Result<SnapshotRecord, StoreError> {
        self.store.create_snapshot(new).await
    }
    async fn delete_snapshot(&self, number: SnapshotNumber) -> Result<(), StoreError> {
        self.store.delete_snapshot(number).await
    }
    async fn set_aside(&self, from: SnapshotNumber, to: SnapshotNumber) -> Result<(), StoreError> {
        self.store.set_aside(from, to).await
    }
    async fn snapshots(&self) -> Result<Vec<SnapshotRecord>, StoreError> {
        self.store.snapshots().await
    }
    async fn changes(
        &self,
        base: Option<SnapshotNumber>,
        target: SnapshotNumber,
        window: Range<u64>,
    ) -> Result<Changes, StoreError> {
        self.store.changes(base, target, window).await
    }
    async fn open_snapshot(&self, number: SnapshotNumber) -> Result<Arc<dyn SnapshotReader>, StoreError> {
        let inner = self.store.open_snapshot(number).await?;
        Ok(Arc::new(RottenReader { inner, times: Arc::clone(&self.times) }))
    }
    async fn leaves(&self, number: SnapshotNumber) -> Result<Arc<LeafTree>, StoreError> {
        self.store.leaves(number).await
    }
    async fn stage(&self, plan: StagePlan) -> Result<Box<dyn Staging>, StoreError> {
        self.store.stage(plan).await
    }
    async fn staged(&self) -> Result<Option<StagePlan>, StoreError> {
        self.store.staged().await
    }
    async fn discard_staged(&self) -> Result<(), StoreError> {
        self.store.discard_staged().await
    }
    async fn revert(&self, number: SnapshotNumber) -> Result<(), StoreError> {
        self.store.revert(number).await
    }
    async fn show(&self, number: SnapshotNumber) -> Result<(), StoreError> {
        self.store.show(number).await
    }
    async fn head(&self) -> Result<HeadState, StoreError> {
        self.store.head().await
    }
    async fn resize(&self, size: u64) -> Result<(), StoreError> {
        self.store.resize(size).await
    }
    async fn usage(&self) -> Result<Usage, StoreError> {
        self.store.usage().await
    }
    fn device(&self, which: Option<SnapshotNumber>) -> Option<PathBuf> {
        self.store.device(which)
    }
}

async fn rotten_upstream(times: u32) -> (Arc<Upstream>, Downstream) {
    let mut upstream = Upstream::new(4 * MIB);
    upstream.store.write_head(0, b"good");
    upstream.snapshot(0).await;
    let downstream = Downstream::new();
    let mut healthy = Upstream::new(0);
    (healthy.store, healthy.serving, healthy.lineage) =
        (upstream.store.clone(), Arc::new(upstream.store.clone()), upstream.lineage);
    downstream.pull(&Pipes::to(&Arc::new(healthy))).await.unwrap();
    upstream.store.write_head(MIB, &noise(2 << 20, 1));
    upstream.snapshot(1).await;
    upstream.store.leaves(SnapshotNumber(1)).await.unwrap();
    upstream.serving =
        Arc::new(Rotten { store: upstream.store.clone(), times: Arc::new(AtomicU32::new(times)) });
    (Arc::new(upstream), downstream)
}

#[tokio::test]
async fn a_flipped_bit_is_fetched_again() {
    let (upstream, downstream) = rotten_upstream(1).await;
    let pulled = downstream.pull(&Pipes::to(&upstream)).await.unwrap();
    assert_eq!(pulled.refetched, 1);
    downstream.assert_shows(&upstream, 1).await;
}

#[tokio::test]
async fn a_bit_that_stays_flipped_stops_the_transfer() {
    let (upstream, downstream) = rotten_upstream(u32::MAX).await;
    let error = downstream.pull(&Pipes::to(&upstream)).await.unwrap_err();
    assert!(matches!(error, PullError::Corrupt { offset } if offset == ROTTEN / 65_536 * 65_536), "{error}");
    downstream.assert_shows(&upstream, 0).await;
    assert_eq!(downstream.store.snapshots().await.unwrap().len(), 1);
    // What was good is kept, and once the disk is mended only the rest is fetched.
    let mut mended = Upstream::new(0);
    (mended.store, mended.serving, mended.lineage) =
        (upstream.store.clone(), Arc::new(upstream.store.clone()), upstream.lineage);
    let mended = Arc::new(mended);
    downstream.pull(&Pipes::to(&mended)).await.unwrap();
    downstream.assert_shows(&mended, 1).await;
}

#[tokio::test]
async fn a_base_that_rotted_here_is_noticed_and_made_good() {
    // The downstream's own copy of a leaf is damaged; the next snapshot changes one page of that leaf.
    let upstream = Arc::new(Upstream::new(4 * MIB));
    upstream.store.write_head(0, &noise(4 << 20, 1));
    upstream.snapshot(0).await;
    let downstream = Downstream::new();
    downstream.pull(&Pipes::to(&upstream)).await.unwrap();
    upstream.store.write_head(ROTTEN / 65_536 * 65_536 + 8192, &noise(4096, 2));
    upstream.snapshot(1).await;
    let plan = StagePlan {
        record: SnapshotRecord {
            digest: upstream.store.leaves(SnapshotNumber(1)).await.unwrap().digest(),
            ..upstream.store.snapshots().await.unwrap()[1].clone()
        },
        base: Some(SnapshotNumber(0)),
    };
    let staging = downstream.store.stage(plan).await.unwrap();
    staging.write_at(ROTTEN, b"rot").unwrap();
    staging.checkpoint(&[], &[]).unwrap();
    drop(staging);
    let pulled = downstream.pull(&Pipes::to(&upstream)).await.unwrap();
    assert_eq!(pulled.refetched, 1);
    downstream.assert_shows(&upstream, 1).await;
}

#[tokio::test]
async fn what_rots_while_it_is_staged_is_noticed_before_it_is_shown() {
    let size = 20 * MIB;
    for with_base in [false, true] {
        let upstream = Arc::new(Upstream::new(size));
        let mut downstream = Downstream::new();
        downstream.replica.pause = Duration::ZERO;
        upstream.store.write_head(0, &noise(size as usize, 4));
        if with_base {
            upstream.snapshot(0).await;
            downstream.pull(&Pipes::to(&upstream)).await.unwrap();
            upstream.store.write_head(0, &noise(size as usize / 2, 5));
        }
        upstream.snapshot(1).await;
        // Broken off in the middle; then a byte of what had arrived changes where it lies.
        let budget = if with_base { 5 * MIB } else { 12 * MIB };
        downstream.pull(&Pipes::breaking_after(&upstream, budget as i64)).await.unwrap_err();
        let plan = downstream.store.staged().await.unwrap().unwrap();
        let staging = downstream.store.stage(plan).await.unwrap();
        let (old, new) = (downstream.store.head_content(), upstream.store.head_content());
        let mut staged = vec![0; size as usize];
        staging.read_at(0, &mut staged).unwrap();
        let arrived = |at: &usize| staged[*at] == new[*at] && old.get(*at).copied().unwrap_or(0) != new[*at];
        let at = (0..size as usize).step_by(65_536).find(arrived).expect("nothing had arrived");
        staging.write_at(at as u64, &[staged[at] ^ 1]).unwrap();
        staging.checkpoint(&[], &[]).unwrap();
        drop(staging);
        let pulled = downstream.pull(&Pipes::to(&upstream)).await.unwrap();
        assert!(pulled.refetched >= 1, "{pulled:?}");
        downstream.assert_shows(&upstream, 1).await;
    }
}

/// Cuts the connection again and again; each run goes on where the last checkpoint was.
async fn cut_until_done(upstream: &Arc<Upstream>, downstream: &Downstream, budget: i64) -> (u64, usize) {
    let sent_before = upstream.meter.data();
    for cuts in 0.. {
        match downstream.pull(&Pipes::breaking_after(upstream, budget)).await {
            Ok(_) => return (upstream.meter.data() - sent_before, cuts),
            Err(PullError::Frame(_) | PullError::Link(_)) => assert!(cuts < 100, "no progress"),
            Err(error) => panic!("{error}"),
        }
    }
    unreachable!()
}

#[tokio::test]
async fn a_broken_full_copy_resumes_at_the_segment() {
    let size = 6 * SEGMENT + 12_345;
    let mut upstream = Upstream::new(size);
    upstream.compression = None;
    upstream.store.write_head(0, &noise(size as usize, 3));
    upstream.snapshot(0).await;
    let upstream = Arc::new(upstream);
    let downstream = Downstream::new();
    let budget = (3 * SEGMENT + SEGMENT / 2) as i64;
    let (sent, cuts) = cut_until_done(&upstream, &downstream, budget).await;
    assert!(cuts >= 1, "the connection was never cut");
    let again = sent - size;
    assert!(again <= cuts as u64 * 4 * SEGMENT, "{again} bytes were sent again after {cuts} cuts");
    downstream.assert_shows(&upstream, 0).await;
}

#[tokio::test]
async fn of_an_unfinished_segment_only_the_rest_is_fetched() {
    let size = 2 * SEGMENT;
    for changes_since_a_base in [false, true] {
        let mut upstream = Upstream::new(size);
        upstream.compression = None;
        let upstream = Arc::new(upstream);
        let mut downstream = Downstream::new();
        downstream.replica.pause = Duration::ZERO;
        let mut expected = size;
        if changes_since_a_base {
            upstream.store.write_head(0, &noise(size as usize, 1));
            upstream.snapshot(0).await;
            downstream.pull(&Pipes::to(&upstream)).await.unwrap();
            expected = 40 * MIB;
            upstream.store.write_head(30 * MIB, &noise(expected as usize, 2));
        } else {
            upstream.store.write_head(0, &noise(size as usize, 3));
        }
        upstream.snapshot(1).await;
        // Far less than a segment for each of the streams: without what is in between, this would never end.
        let (sent, cuts) = cut_until_done(&upstream, &downstream, 12 << 20).await;
        assert!(cuts > 2, "the connection was hardly cut");
        let again = sent - expected;
        assert!(again <= cuts as u64 * 16 * MIB, "{again} bytes were sent again after {cuts} cuts");
        downstream.assert_shows(&upstream, 1).await;
    }
}

#[tokio::test]
async fn a_connection_that_is_cut_sooner_than_anything_is_due_to_be_saved_still_gets_there() {
    let size = 2 * SEGMENT;
    for (with_base, with_seed) in [(false, false), (true, false), (false, true)] {
        let mut upstream = Upstream::new(size);
        upstream.compression = None;
        let upstream = Arc::new(upstream);
        let mut downstream = Downstream::new();
        if with_seed {
            let seeded = MemoryStore::new(size);
            seeded.write_head(0, &noise(SEGMENT as usize / 2, 7));
            downstream = Downstream::with(seeded);
        }
        // Neither time nor a whole segment ever brings a checkpoint.
        downstream.replica.pause = Duration::from_secs(24 * 3600);
        if with_base {
            upstream.store.write_head(0, &noise(size as usize, 1));
            upstream.snapshot(0).await;
            downstream.pull(&Pipes::to(&upstream)).await.unwrap();
        }
        upstream.store.write_head(0, &noise(size as usize, 2));
        upstream.snapshot(1).await;
        let (sent, cuts) = cut_until_done(&upstream, &downstream, 12 << 20).await;
        assert!(cuts > 2, "the connection was hardly cut");
        let again = sent - size;
        assert!(again <= cuts as u64 * 16 * MIB, "{again} bytes were sent again after {cuts} cuts");
        downstream.assert_shows(&upstream, 1).await;
    }
}

#[tokio::test]
async fn a_broken_digest_walk_resumes() {
    let size = 5 * SEGMENT;
    let upstream = Arc::new(Upstream::new(size));
    upstream.store.write_head(0, &noise(size as usize, 3));
    upstream.snapshot(0).await;
    let seeded = MemoryStore::new(size);
    for segment in 0..5 {
        // Half of each segment is there already.
        let start = (segment * SEGMENT) as usize;
        seeded
            .write_head(start as u64, &upstream.store.head_content()[start..start + (SEGMENT / 2) as usize]);
    }
    let mut downstream = Downstream::with(seeded);
    // The halves of four segments arrive side by side, and more of them than are let through: what of them is kept must not
    // depend on how fast they come.
    downstream.replica.pause = Duration::ZERO;
    let (sent, cuts) = cut_until_done(&upstream, &downstream, (3 * SEGMENT / 2) as i64).await;
    assert!(cuts >= 1, "the connection was never cut");
    assert!(sent <= size / 2 + cuts as u64 * 4 * SEGMENT, "{sent}");
    downstream.assert_shows(&upstream, 0).await;
}

#[tokio::test]
async fn what_was_begun_is_finished_before_something_newer() {
    let size = 3 * SEGMENT;
    let upstream = Arc::new(Upstream::new(size));
    upstream.store.write_head(0, &noise(size as usize, 9));
    upstream.snapshot(0).await;
    let downstream = Downstream::new();
    downstream.pull(&Pipes::breaking_after(&upstream, (SEGMENT * 2) as i64)).await.unwrap_err();
    assert_eq!(upstream.holds.last(), Some((None, Some(0))), "what is being sent is held");
    upstream.store.write_head(0, b"newer");
    upstream.snapshot(1).await;
    let finished = downstream.pull(&Pipes::to(&upstream)).await.unwrap();
    assert_eq!(finished.number, Some(SnapshotNumber(0)));
    let newer = downstream.pull(&Pipes::to(&upstream)).await.unwrap();
    assert_eq!((newer.number, newer.data), (Some(SnapshotNumber(1)), 4096));
    downstream.assert_shows(&upstream, 1).await;
}

#[tokio::test]
async fn what_is_written_during_the_transfer_is_not_overwritten() {
    let size = 3 * SEGMENT;
    let upstream = Arc::new(Upstream::new(size));
    upstream.store.write_head(0, &noise(size as usize, 9));
    upstream.snapshot(0).await;
    let downstream = Downstream::with(MemoryStore::new(MIB));
    downstream.pull(&Pipes::breaking_after(&upstream, (SEGMENT * 2) as i64)).await.unwrap_err();
    downstream.store.write_head(0, b"mine");
    let error = downstream.pull(&Pipes::to(&upstream)).await.unwrap_err();
    assert!(matches!(&error, PullError::Divergence(_)), "{error}");
    assert_eq!(&downstream.store.head_content()[..4], b"mine");
    // The snapshot itself is complete, held, and waits for a person to decide.
    assert_eq!(downstream.store.snapshots().await.unwrap().len(), 1);
    assert_eq!(downstream.holds.last(), Some((Some(0), None)));
}

#[tokio::test]
async fn what_was_begun_but_is_gone_is_given_up() {
    let size = 3 * SEGMENT;
    let upstream = Arc::new(Upstream::new(size));
    upstream.store.write_head(0, &noise(size as usize, 9));
    upstream.snapshot(0).await;
    let downstream = Downstream::new();
    downstream.pull(&Pipes::breaking_after(&upstream, (SEGMENT * 2) as i64)).await.unwrap_err();
    upstream.store.delete_snapshot(SnapshotNumber(0)).await.unwrap();
    upstream.snapshot(1).await;
    assert_eq!(downstream.pull(&Pipes::to(&upstream)).await.unwrap().number, Some(SnapshotNumber(1)));
    downstream.assert_shows(&upstream, 1).await;
}
