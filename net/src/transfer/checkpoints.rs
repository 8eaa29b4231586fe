//! Checkpoints of what is being received: what has arrived becomes durable beside the streams that bring it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time,
};
use zumastor_core::{SegmentIndex, Staging, StoreError, digest::SegmentLeaves};

use super::{PullError, fetch::Job};

/// Leaf hashes of what was staged, by segment.
pub(super) type Leaves = BTreeMap<SegmentIndex, SegmentLeaves>;

/// Leaf hashes of what was checked and written, and is not recorded yet. Whatever ends a stream, they are here; clones share
/// them.
#[derive(Debug, Clone, Default)]
pub(super) struct Unrecorded(Arc<Mutex<Hashes>>);

#[derive(Debug, Default)]
struct Hashes {
    /// What streams that have ended have left.
    left: Leaves,
    /// What streams had so far when they last said it; each keeps its own until its end.
    begun: Leaves,
}

impl Unrecorded {
    /// Takes out what was left of some segments, and forgets what was said of them before.
    pub fn take<'s>(&self, segments: impl IntoIterator<Item = &'s SegmentIndex>) -> Leaves {
        let Hashes { left, begun } = &mut *self.lock();
        let of = segments.into_iter().inspect(|segment| drop(begun.remove(segment)));
        of.filter_map(|segment| left.remove_entry(segment)).collect()
    }

    pub fn put(&self, leaves: Leaves) {
        self.lock().left.extend(leaves);
    }

    /// Says what a stream has so far.
    pub fn begin(&self, leaves: impl IntoIterator<Item = (SegmentIndex, SegmentLeaves)>) {
        self.lock().begun.extend(leaves);
    }

    fn take_begun(&self) -> Leaves {
        std::mem::take(&mut self.lock().begun)
    }

    /// Takes all: of streams that failed, what they had said.
    pub fn take_all(&self) -> Leaves {
        let Hashes { left, mut begun } = std::mem::take(&mut *self.lock());
        begun.extend(left);
        begun
    }

    fn lock(&self) -> MutexGuard<'_, Hashes> {
        self.0.lock().expect("no panic while locked")
    }
}

/// Checkpoints of what all streams have brought: beside them, and one in the end.
pub(super) struct Checkpoints {
    staging: Arc<Box<dyn Staging>>,
    pause: Duration,
    running: Option<mpsc::Sender<()>>,
    unrecorded: Unrecorded,
    /// Finished segments that the next one is to enter.
    finished: Mutex<Vec<SegmentIndex>>,
}

impl Checkpoints {
    pub fn new(job: &Job<'_>) -> Self {
        let (staging, running) = (Arc::clone(&job.staging), job.writers.enter());
        let (pause, unrecorded) = (job.pause, job.unrecorded.clone());
        Self { staging, pause, running, unrecorded, finished: Mutex::default() }
    }

    /// The next one is to make these segments durable, and to record them.
    pub fn add(&self, finished: impl Iterator<Item = SegmentIndex>) {
        self.finished.lock().expect("no panic while locked").extend(finished);
    }

    /// Does this work. What it adds is durable not much more than two pauses later, and all of it when this returns.
    pub async fn beside(&self, work: impl Future<Output = Result<(), PullError>>) -> Result<(), PullError> {
        beside(self.pause, work, || async { Ok(self.make().await?) }).await
    }

    async fn make(&self) -> Result<(), StoreError> {
        let finished = std::mem::take(&mut *self.finished.lock().expect("no panic while locked"));
        // What is left of a segment is newer than what was said of it before.
        let mut leaves = self.unrecorded.take(&finished);
        leaves.extend(self.unrecorded.take_begun());
        if finished.is_empty() && leaves.is_empty() {
            return Ok(());
        }
        let leaves: Vec<_> = leaves.into_iter().collect();
        let staging = Arc::clone(&self.staging);
        let running = self.running.clone();
        let checkpoint = move || {
            let _running = running;
            staging.checkpoint(&leaves, &finished)
        };
        tokio::task::spawn_blocking(checkpoint).await.expect("checkpoints do not panic")
    }
}

/// Does this work, with something else beside it every `pause`, and once in the end. Returns at once when either fails.
async fn beside<E, F: Future<Output = Result<(), E>>>(
    pause: Duration,
    work: impl Future<Output = Result<(), E>>,
    now_and_then: impl Fn() -> F,
) -> Result<(), E> {
    let (working, mut over) = oneshot::channel::<()>();
    let work = async {
        let done = work.await;
        drop(working);
        done
    };
    let aside = async {
        // Without a pause there would be nothing but this.
        let (mut next, pause) = (pause / SOONER, pause.max(Duration::from_millis(1)));
        while time::timeout(next.max(Duration::from_millis(1)), &mut over).await.is_err() {
            now_and_then().await?;
            next = pause.min(next * 2);
        }
        now_and_then().await
    };
    tokio::try_join!(work, aside).map(drop)
}

/// The time between two checkpoints: one costs some 20 ms on a disk that is busy with what is staged, and what it would have made
/// durable is what a crash costs.
pub(super) const PAUSE: Duration = Duration::from_millis(250);

/// How much sooner the first one comes, so that a fast link is worth something at once: the next pauses are twice as long each.
pub(super) const SOONER: u32 = 5;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use zumastor_core::{
        Lineage, MemoryStore, NewSnapshot, SEGMENT, SnapshotNumber, SnapshotStore, StagePlan, digest::Hash,
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn checkpoints_are_made_beside_the_work_and_once_in_the_end() {
        let made = AtomicU64::new(0);
        let make = || async {
            made.fetch_add(1, Ordering::Relaxed);
            Ok::<(), &str>(())
        };
        let count = || made.swap(0, Ordering::Relaxed);
        assert_eq!((beside(PAUSE, async { Ok(()) }, make).await, count()), (Ok(()), 1));
        // After 50, 150, 350, 600 and 850 ms.
        let work = async {
            time::sleep(PAUSE * 7 / 2).await;
            assert_eq!(made.load(Ordering::Relaxed), 5);
            Ok(())
        };
        assert_eq!((beside(PAUSE, work, make).await, count()), (Ok(()), 6));
        // What fails is not waited for.
        let fails = async {
            time::sleep(PAUSE / 3).await;
            Err("the link broke")
        };
        assert_eq!((beside(PAUSE, fails, make).await, count()), (Err("the link broke"), 1));
        let failing = || async { Err("the disk is full") };
        assert_eq!(beside(PAUSE, std::future::pending(), failing).await, Err("the disk is full"));
    }

    /// What a stream has so far is recorded before it ends, and nothing older is recorded over what it has left.
    #[tokio::test]
    async fn checkpoints_record_what_is_begun_and_never_over_what_is_newer() {
        let store = MemoryStore::new(2 * SEGMENT);
        let new = NewSnapshot::manual(SnapshotNumber(0), Lineage(uuid::Uuid::nil()));
        let plan = StagePlan { record: store.create_snapshot(new).await.unwrap(), base: None };
        let staging = Arc::new(MemoryStore::new(2 * SEGMENT).stage(plan).await.unwrap());
        let checkpoints = Checkpoints {
            staging: Arc::clone(&staging),
            pause: PAUSE,
            running: None,
            unrecorded: Unrecorded::default(),
            finished: Mutex::default(),
        };
        let with = |segment: SegmentIndex, leaves: usize| {
            let mut with = SegmentLeaves::zeros(segment, 2 * SEGMENT);
            (0..leaves).for_each(|leaf| with.set(leaf, Some(Hash::of_leaf(b"data"))));
            [(segment, with)]
        };
        let recorded = |segment: SegmentIndex| {
            let leaves = staging.leaves().segment(segment).unwrap();
            (0..1024).filter(|leaf| !leaves.is_zero(*leaf)).count()
        };
        let [one, other] = [0, 1].map(SegmentIndex);
        checkpoints.unrecorded.begin(with(one, 10));
        checkpoints.unrecorded.begin(with(other, 20));
        checkpoints.make().await.unwrap();
        assert_eq!((recorded(one), recorded(other), staging.finished()), (10, 20, vec![]));
        checkpoints.unrecorded.begin(with(one, 30));
        checkpoints.unrecorded.begin(with(other, 40));
        checkpoints.unrecorded.put(with(one, 50).into());
        checkpoints.add([one].into_iter());
        checkpoints.make().await.unwrap();
        assert_eq!((recorded(one), recorded(other), staging.finished()), (50, 40, vec![one]));
        checkpoints.make().await.unwrap();
        assert_eq!((recorded(one), recorded(other), staging.finished()), (50, 40, vec![one]));
    }
}
