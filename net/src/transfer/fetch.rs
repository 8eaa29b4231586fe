//! Getting the data of a plan over several streams, with checkpoints.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{sync::mpsc, time};
use zumastor_core::{
    LEAF, LeafIndex, SEGMENT, SegmentIndex, SnapshotGuid, Staging, StoreError,
    digest::{Hash, LeafTree, SegmentLeaves},
};

use super::{
    Patience, PullError,
    checkpoints::{Checkpoints, Leaves, SOONER, Unrecorded},
    receive::{BatchError, Receiver},
};
use crate::{
    buffers::{Buffer, Buffers},
    channel::Channel,
    frame::{self, Limits},
    host::Link,
    progress::Reporter,
    wire::{
        BatchHeader, ChangedSegment, Fetch, FetchReply, FetchWhat, MAX_BATCH, MAX_BATCH_HEADER, MAX_CONTROL,
        MAX_LEAF_SEGMENTS, MAX_NODES, Request, SegmentLeafSet, Walk, WalkLevel, WalkReply,
    },
};

/// A snapshot that is being fetched.
pub(super) struct Job<'a> {
    pub link: &'a dyn Link,
    pub patience: &'a Patience,
    pub reporter: &'a Reporter,
    /// The volume's name at the upstream.
    pub volume: &'a str,
    pub target: SnapshotGuid,
    pub staging: Arc<Box<dyn Staging>>,
    /// The time between two checkpoints.
    pub pause: Duration,
    /// Whether an earlier run has begun it.
    pub resumed: bool,
    pub refetched: AtomicU64,
    pub writers: Writers,
    pub unrecorded: Unrecorded,
    /// For what comes in.
    pub buffers: Arc<Buffers>,
}

/// Counts the threads that write to what is staged. A stream that fails leaves the threads of the others behind;
/// nothing else may touch what is staged until they have ended too.
pub(super) struct Writers(Mutex<Option<mpsc::Sender<()>>>, tokio::sync::Mutex<mpsc::Receiver<()>>);

impl Writers {
    pub fn new() -> Self {
        let (running, ended) = mpsc::channel(1);
        Self(Mutex::new(Some(running)), tokio::sync::Mutex::new(ended))
    }

    pub fn enter(&self) -> Option<mpsc::Sender<()>> {
        self.0.lock().expect("no panic while locked").clone()
    }

    /// Waits until all have ended; none may begin any more.
    pub async fn ended(&self) {
        self.0.lock().expect("no panic while locked").take();
        while self.1.lock().await.recv().await.is_some() {}
    }
}

/// How to find out what to fetch of a segment.
#[derive(Debug, Clone, Copy)]
pub(super) enum Find {
    /// The upstream knows: what changed since this base, or everything.
    Changes(Option<SnapshotGuid>),
    /// By comparing leaf hashes with what is staged.
    Hashes,
}

impl Job<'_> {
    /// Fetches these segments over several streams, and makes durable and records them.
    pub async fn run(
        &self,
        find: Find,
        segments: Vec<ChangedSegment>,
        streams: usize,
    ) -> Result<(), PullError> {
        let queue = Mutex::new(runs(segments, streams));
        let checkpoints = Checkpoints::new(self);
        let worker = async || -> Result<(), PullError> {
            loop {
                let next = queue.lock().expect("no panic while locked").pop_front();
                let Some(run) = next else { return Ok(()) };
                self.fetch_run(find, &run).await?;
                checkpoints.add(run.iter().map(|changed| changed.segment));
            }
        };
        let workers = (0..streams.max(1)).map(|_| worker());
        checkpoints.beside(try_join_all(workers)).await
    }

    /// Splits segments, after an interruption, into those that it found begun and those it did not.
    pub async fn begun(
        &self,
        base: Option<Arc<LeafTree>>,
        segments: Vec<ChangedSegment>,
    ) -> Result<(Vec<ChangedSegment>, Vec<ChangedSegment>), PullError> {
        let size = self.staging.plan().record.size;
        let (before, now) = self
            .with_staged(move |staging| {
                staging.leaves().mend()?;
                Ok((base.map(|base| base.nodes()).transpose()?, staging.leaves().nodes()?))
            })
            .await?;
        let (mut begun, mut untouched) = (Vec::new(), Vec::new());
        for changed in segments {
            let index = changed.segment.0 as usize;
            let old = before.as_ref().and_then(|nodes| nodes.get(index).copied());
            let same = now[index] == old.unwrap_or_else(|| SegmentLeaves::zero_node(changed.segment, size));
            if same { untouched.push(changed) } else { begun.push(changed) }
        }
        Ok((begun, untouched))
    }

    /// The segments whose node differs from what is staged: the digest walk's upper level.
    pub async fn differing_segments(&self) -> Result<Vec<ChangedSegment>, PullError> {
        let size = self.staging.plan().record.size;
        let ours = self.with_staged(|staging| staging.leaves().nodes()).await?;
        let count = SegmentIndex::count(size);
        let mut differing = Vec::new();
        for first in (0..count).step_by(MAX_NODES as usize) {
            let expected = MAX_NODES.min(count - first);
            let theirs = self.walk(WalkLevel::Nodes, SegmentIndex(first), expected, expected).await?;
            for (segment, theirs) in (first..).map(SegmentIndex).zip(theirs) {
                if ours[segment.0 as usize] != theirs {
                    let range = segment.range(size);
                    differing.push(ChangedSegment { segment, bytes: (range.end - range.start) as u32 });
                }
            }
        }
        Ok(differing)
    }

    /// Does something with what is staged that waits for the disk.
    pub async fn with_staged<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Staging) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (staging, running) = (Arc::clone(&self.staging), self.writers.enter());
        let work = move || {
            let _running = running;
            work(&**staging)
        };
        tokio::task::spawn_blocking(work).await.expect("stores do not panic")
    }

    /// Makes durable what streams that were broken off have brought, so that the next attempt need not fetch it again however
    /// soon each of them is cut. To be called when all writers have ended.
    pub async fn keep(&self) -> Result<(), StoreError> {
        let leaves: Vec<_> = self.unrecorded.take_all().into_iter().collect();
        if leaves.is_empty() {
            return Ok(());
        }
        let staging = Arc::clone(&self.staging);
        let checkpoint = move || staging.checkpoint(&leaves, &[]);
        tokio::task::spawn_blocking(checkpoint).await.expect("checkpoints do not panic")
    }

    /// Fetches a run and stages it.
    async fn fetch_run(&self, find: Find, run: &[ChangedSegment]) -> Result<(), PullError> {
        let (what, run) = match find {
            Find::Changes(base) => {
                let segments = run.iter().map(|changed| changed.segment).collect();
                (FetchWhat::Changes { base, segments }, run.to_vec())
            }
            Find::Hashes => {
                let sets = self.differing_leaves(run).await?;
                let run = self.discount(run, &sets);
                (FetchWhat::Leaves(sets), run)
            }
        };
        let mismatches = self.fetch(what, &run).await?;
        // A leaf may have been built on pages that are damaged here, or read wrongly there. Once more, in full.
        if !mismatches.is_empty() {
            tracing::warn!(
                leaves = mismatches.len(),
                "leaves did not match their hash, fetching them again in full"
            );
        }
        self.fetch_in_full(mismatches).await
    }

    /// Fetches leaves once more, whatever is staged in their place, and makes them durable.
    pub async fn refetch(&self, leaves: Vec<LeafIndex>) -> Result<(), PullError> {
        self.fetch_in_full(leaves).await?;
        let entered: Vec<_> = self.unrecorded.take_all().into_iter().collect();
        Ok(self.with_staged(move |staging| staging.checkpoint(&entered, &[])).await?)
    }

    /// Fetches these leaves entirely and stages them.
    async fn fetch_in_full(&self, mismatches: Vec<LeafIndex>) -> Result<(), PullError> {
        self.refetched.fetch_add(mismatches.len() as u64, Ordering::Relaxed);
        for sets in leaf_sets(mismatches).chunks(MAX_LEAF_SEGMENTS as usize) {
            let still = self.fetch(FetchWhat::Leaves(sets.to_vec()), &[]).await?;
            if let Some(leaf) = still.first() {
                return Err(PullError::Corrupt { offset: leaf.range(u64::MAX).start });
            }
        }
        Ok(())
    }

    /// What a comparison of hashes has shown to be here already needs no fetching: counts it as done by an earlier run,
    /// or else as nothing to do at all.
    fn discount(&self, run: &[ChangedSegment], sets: &[SegmentLeafSet]) -> Vec<ChangedSegment> {
        let mut equal = 0;
        let discounted = run.iter().map(|changed| {
            let set = sets.iter().find(|set| set.segment == changed.segment);
            let differs = set.map_or(0, |set| set.leaves.len() as u64 * LEAF).min(u64::from(changed.bytes));
            equal += u64::from(changed.bytes) - differs;
            ChangedSegment { segment: changed.segment, bytes: differs as u32 }
        });
        let discounted = discounted.collect();
        self.reporter.update(|progress| match self.resumed {
            true => (progress.done, progress.resumed) = (progress.done + equal, progress.resumed + equal),
            false => progress.total -= equal,
        });
        discounted
    }

    /// The leaves of some segments whose hash differs from what is staged: the digest walk's lower level.
    async fn differing_leaves(&self, run: &[ChangedSegment]) -> Result<Vec<SegmentLeafSet>, PullError> {
        let size = self.staging.plan().record.size;
        let mut sets = Vec::new();
        for group in run.chunk_by(|a, b| a.segment.0 + 1 == b.segment.0) {
            for part in group.chunks(MAX_LEAF_SEGMENTS as usize) {
                let (first, count) = (part[0].segment, part.len() as u64);
                let end = SegmentIndex(first.0 + count - 1).leaves(size).end;
                let theirs = self.walk(WalkLevel::Leaves, first, count, end - first.first_leaf()).await?;
                let mut theirs = theirs.into_iter();
                for segment in part.iter().map(|changed| changed.segment) {
                    let ours = self.staging.leaves().segment(segment)?.hashes(segment, size);
                    let pairs = (0u16..).zip(ours.into_iter().zip(theirs.by_ref()));
                    let leaves: Vec<u16> = pairs.filter(|(_, (a, b))| a != b).map(|(leaf, _)| leaf).collect();
                    if !leaves.is_empty() {
                        sets.push(SegmentLeafSet { segment, leaves });
                    }
                }
            }
        }
        Ok(sets)
    }

    async fn walk(
        &self,
        level: WalkLevel,
        first: SegmentIndex,
        count: u64,
        expected: u64,
    ) -> Result<Vec<Hash>, PullError> {
        walk(self.link, self.patience, self.volume, self.target, level, first, count, expected).await
    }

    /// Fetches and stages; returns the leaves that did not match their hash. `progress` are the segments to count. The hashes
    /// of the others are [`unrecorded`](Self::unrecorded) then, also of those that came before an error.
    pub async fn fetch(
        &self,
        what: FetchWhat,
        progress: &[ChangedSegment],
    ) -> Result<Vec<LeafIndex>, PullError> {
        let segments: VecDeque<SegmentIndex> = match &what {
            FetchWhat::Changes { segments, .. } => segments.iter().copied().collect(),
            FetchWhat::Leaves(sets) => sets.iter().map(|set| set.segment).collect(),
        };
        let asked = match &what {
            FetchWhat::Changes { .. } => None,
            FetchWhat::Leaves(sets) => Some(sets.clone()),
        };
        if segments.is_empty() {
            return Ok(Vec::new());
        }
        let mut counted = Counted::new(self.reporter, segments.clone(), progress);
        let request = Fetch { volume: self.volume.to_owned(), target: self.target, what };
        let mut channel = self.ask(&Request::Fetch(request)).await?;
        let (queue, orders) = mpsc::channel(QUEUE);
        let staging = Arc::clone(&self.staging);
        let (running, pause) = (self.writers.enter(), self.pause);
        let unrecorded = self.unrecorded.clone();
        let writer = tokio::task::spawn_blocking(move || {
            let _running = running;
            let leaves = unrecorded.take(&segments);
            let (leaves, mismatches) = write_batches(&**staging, &unrecorded, pause, leaves, asked, orders)?;
            unrecorded.put(leaves);
            Ok(mismatches)
        });
        let limits = Limits { header: MAX_BATCH_HEADER, payload: MAX_BATCH };
        let mut heard = time::Instant::now();
        let outcome = loop {
            let frame =
                frame::read_with_payload(&mut channel.recv, limits, self.patience.stall, &self.buffers);
            let (reply, payload) = match frame.await {
                Ok(frame) => frame,
                Err(error) => break Err(error.into()),
            };
            let order = match reply {
                FetchReply::Batch(header) => {
                    if !counted.batch(&header, payload.len()) {
                        break Err(PullError::Malformed("data that was not asked for"));
                    }
                    heard = time::Instant::now();
                    (header, payload)
                }
                FetchReply::Working if heard.elapsed() < self.patience.planning => continue,
                FetchReply::Working => break Err(PullError::Deadline("data")),
                FetchReply::End => {
                    counted.end();
                    break Ok(());
                }
                FetchReply::Refused(refusal) => break Err(PullError::Refused(refusal)),
            };
            if queue.send(order).await.is_err() {
                // The writer has failed and says why.
                break Ok(());
            }
        };
        drop(queue);
        let written = writer.await.expect("writing does not panic");
        outcome?;
        written.map_err(|error: BatchError| match error {
            BatchError::Malformed(what) => PullError::Malformed(what),
            BatchError::Store(error) => PullError::Store(error),
        })
    }

    async fn ask(&self, request: &Request) -> Result<Channel, PullError> {
        ask(self.link, request, self.patience).await
    }
}

/// Asks for hashes: as many as are expected.
#[allow(clippy::too_many_arguments)]
pub(super) async fn walk(
    link: &dyn Link,
    patience: &Patience,
    volume: &str,
    target: SnapshotGuid,
    level: WalkLevel,
    first: SegmentIndex,
    count: u64,
    expected: u64,
) -> Result<Vec<Hash>, PullError> {
    let walk = Walk { volume: volume.to_owned(), target, level, first, count };
    let mut channel = ask(link, &Request::Walk(walk), patience).await?;
    match frame::read(&mut channel.recv, MAX_CONTROL, patience.stall).await? {
        WalkReply::Hashes(hashes) if hashes.len() as u64 == expected => Ok(hashes),
        WalkReply::Hashes(_) => Err(PullError::Malformed("the wrong number of hashes")),
        WalkReply::Refused(refusal) => Err(PullError::Refused(refusal)),
    }
}

/// Opens a stream and sends a request on it.
pub(super) async fn ask(
    link: &dyn Link,
    request: &Request,
    patience: &Patience,
) -> Result<Channel, PullError> {
    let opened = time::timeout(patience.answer, link.open()).await;
    let mut channel =
        opened.map_err(|_| PullError::Deadline("opening a stream"))?.map_err(PullError::Link)?;
    frame::write(&mut channel.send, &frame::encode(request, &[]), patience.stall).await?;
    Ok(channel)
}

/// Stages batches as they come, and says on the way what is there, so that it can be recorded.
fn write_batches(
    staging: &dyn Staging,
    unrecorded: &Unrecorded,
    pause: Duration,
    leaves: Leaves,
    asked: Option<Vec<SegmentLeafSet>>,
    mut batches: mpsc::Receiver<(BatchHeader, Buffer)>,
) -> Result<(Leaves, Vec<LeafIndex>), BatchError> {
    let mut receiver = Receiver::new(staging, leaves, asked)?;
    let mut said = Instant::now();
    while let Some((header, payload)) = batches.blocking_recv() {
        receiver.batch(&header, &payload)?;
        if said.elapsed() >= pause / SOONER {
            unrecorded.begin(receiver.news());
            said = Instant::now();
        }
    }
    Ok(receiver.finish())
}

/// Groups segments into runs that are checkpointed together: at least one for each stream, as a checkpoint costs time,
/// but never more changed bytes than a segment has, which is what an interruption may cost per stream.
fn runs(segments: Vec<ChangedSegment>, streams: usize) -> VecDeque<Vec<ChangedSegment>> {
    let total: u64 = segments.iter().map(|changed| u64::from(changed.bytes)).sum();
    let share = (total / streams.max(1) as u64).clamp(4 << 20, SEGMENT);
    let mut runs: VecDeque<Vec<ChangedSegment>> = VecDeque::new();
    let mut bytes = 0;
    for changed in segments {
        bytes += u64::from(changed.bytes);
        match runs.back_mut() {
            Some(run) if bytes <= share && run.len() < MAX_LEAF_SEGMENTS as usize => run.push(changed),
            _ => {
                bytes = u64::from(changed.bytes);
                runs.push_back(vec![changed]);
            }
        }
    }
    runs
}

pub(super) fn leaf_sets(mut leaves: Vec<LeafIndex>) -> Vec<SegmentLeafSet> {
    leaves.sort_unstable();
    leaves.dedup();
    let mut sets: BTreeMap<SegmentIndex, Vec<u16>> = BTreeMap::new();
    for leaf in leaves {
        let segment = leaf.segment();
        sets.entry(segment).or_default().push((leaf.0 - segment.first_leaf()) as u16);
    }
    sets.into_iter().map(|(segment, leaves)| SegmentLeafSet { segment, leaves }).collect()
}

/// Adds what comes in to the progress: never more of a segment than was announced for it.
struct Counted<'a> {
    reporter: &'a Reporter,
    /// The segments that were asked for and are not done.
    asked: VecDeque<SegmentIndex>,
    /// What is left of those that count.
    left: BTreeMap<SegmentIndex, u64>,
}

impl<'a> Counted<'a> {
    fn new(reporter: &'a Reporter, asked: VecDeque<SegmentIndex>, count: &[ChangedSegment]) -> Self {
        let left = count.iter().map(|changed| (changed.segment, u64::from(changed.bytes))).collect();
        Self { reporter, asked, left }
    }

    /// Counts a batch. Tells whether it is of what was asked for, and of nothing that is done.
    fn batch(&mut self, header: &BatchHeader, payload: usize) -> bool {
        let (mut all, mut counts, mut wire) = (0, 0, payload as u64 + 16);
        for part in &header.parts {
            // What comes before it was sent before it.
            while self.asked.front().is_some_and(|next| *next < part.segment) {
                self.done();
            }
            if self.asked.front() != Some(&part.segment) {
                return false;
            }
            let data = part.data_bytes();
            if let Some(left) = self.left.get_mut(&part.segment) {
                let counted = data.min(*left);
                *left -= counted;
                counts += counted;
            }
            all += data;
            wire += 40 * part.entries.len() as u64;
        }
        self.reporter.update(|progress| {
            progress.done += counts;
            progress.data += all;
            progress.wire += wire;
        });
        true
    }

    /// The next segment is done.
    fn done(&mut self) {
        let rest = self.asked.pop_front().and_then(|segment| self.left.remove(&segment)).unwrap_or(0);
        self.reporter.update(|progress| progress.done += rest);
    }

    /// All are done.
    fn end(&mut self) {
        while !self.asked.is_empty() {
            self.done();
        }
    }
}

/// Waits for all, or for the first error; the others are dropped then.
async fn try_join_all<F, E>(futures: impl Iterator<Item = F>) -> Result<(), E>
where
    F: Future<Output = Result<(), E>>,
{
    let mut running: Vec<_> = futures.map(Box::pin).collect();
    std::future::poll_fn(move |context| {
        let mut failed = None;
        running.retain_mut(|future| match future.as_mut().poll(context) {
            std::task::Poll::Pending => true,
            std::task::Poll::Ready(Ok(())) => false,
            std::task::Poll::Ready(Err(error)) => {
                failed.get_or_insert(error);
                false
            }
        });
        match failed {
            Some(error) => std::task::Poll::Ready(Err(error)),
            None if running.is_empty() => std::task::Poll::Ready(Ok(())),
            None => std::task::Poll::Pending,
        }
    })
    .await
}

/// Batches between the connection and the writer.
const QUEUE: usize = 1;
/// Batches that a stream has in memory: one that comes in, those that wait, and one that is written.
pub(super) const BATCHES: usize = 1 + QUEUE + 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_never_carry_more_than_a_segment() {
        let segments = |bytes: &[u32]| {
            let changed = |(i, b): (u64, &u32)| ChangedSegment { segment: SegmentIndex(i), bytes: *b };
            (0..).zip(bytes).map(changed).collect::<Vec<_>>()
        };
        let full = vec![64 << 20; 10];
        assert!(runs(segments(&full), 4).iter().all(|run| run.len() == 1));
        let small = vec![400 << 10; 1000];
        let grouped = runs(segments(&small), 4);
        assert_eq!(grouped.iter().map(Vec::len).sum::<usize>(), 1000);
        assert!(grouped.iter().all(|run| run.iter().map(|c| u64::from(c.bytes)).sum::<u64>() <= SEGMENT));
        assert!(grouped.len() >= 4, "all streams have work: {}", grouped.len());
        assert_eq!(runs(segments(&[100, 100, 100]), 4).len(), 1);
    }
}
