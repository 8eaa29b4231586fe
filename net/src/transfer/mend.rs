//! Getting back from a peer what a medium has made of a snapshot here.
//!
//! The peer is not believed: what it gives is checked against the digest that is recorded here, from the root down. Its nodes
//! must add up to the digest, its leaf hashes to the node, and each leaf to its hash, before it is written. So a peer that
//! sends something else repairs nothing, and a peer that has the leaf, whatever else is wrong there, helps.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use zumastor_core::{
    HeadRepair, LEAF, LeafIndex, Repair, SegmentIndex, SnapshotRecord, SnapshotStore, StagePlan, Staging,
    StoreError,
    digest::{Digest, Hash, LeafTree, SegmentLeaves},
    scrub::{Findings, Scan, join},
};

use super::{
    Patience, PullError,
    checkpoints::Unrecorded,
    fetch::{BATCHES, Job, Writers, leaf_sets, walk},
};
use crate::{
    buffers::Buffers,
    host::Link,
    progress::{Phase, Reporter},
    wire::{FetchWhat, MAX_LEAF_SEGMENTS, MAX_NODES, WalkLevel},
};

/// What is to be put right, and where it comes from.
pub struct Mending<'a> {
    /// The peer; without one, what can be done is done without.
    pub link: Option<&'a dyn Link>,
    /// The volume's name there.
    pub volume: &'a str,
    /// Where the snapshot is kept.
    pub store: &'a Arc<dyn SnapshotStore>,
    /// The snapshot.
    pub record: &'a SnapshotRecord,
    /// Whether a head that shows it is put right too.
    pub head: bool,
    /// How long to wait for the peer.
    pub patience: &'a Patience,
    /// How far it is.
    pub reporter: &'a Reporter,
}

/// What came of it.
#[derive(Debug)]
pub struct Mended {
    /// Leaves that were written.
    pub leaves: u64,
    /// Leaves that came and were not what they should be. They were not written.
    pub wrong: u64,
    /// What became of the head.
    pub head: HeadRepair,
    /// Why not more was done.
    pub failed: Option<PullError>,
}

/// Puts a snapshot right as far as that is possible with this peer. `findings` are those of `scan`; they learn what the
/// peer can prove. What is left is found by scanning again.
pub async fn mend(mending: &Mending<'_>, scan: &Scan, findings: &mut Findings) -> Result<Mended, PullError> {
    let Mending { store, record, link, .. } = mending;
    let mut failed = None;
    if !findings.knows_nodes()
        && let Some(link) = link
    {
        learn_nodes(mending, *link, findings).await?;
    }
    let mut damaged = if findings.knows_nodes() { findings.bad_leaves() } else { Vec::new() };
    let mut hashes_there = Vec::new();
    if let Some(link) = link.filter(|_| findings.knows_nodes()) {
        for group in groups(&findings.unknown()) {
            match their_leaves(mending, link, findings, &group).await {
                Ok(leaves) => {
                    for (segment, leaves) in group.iter().zip(leaves) {
                        let (scan, segment) = (scan.clone(), *segment);
                        damaged.extend(blocking(move || scan.compare(segment, &leaves)).await?);
                        hashes_there.push(segment);
                    }
                }
                Err(error) => failed = Some(error),
            }
        }
    }
    damaged.sort_unstable_by_key(|range| range.start);
    let damaged = join(damaged);
    if damaged.is_empty() && !findings.is_content_good() {
        return Ok(Mended { leaves: 0, wrong: 0, head: HeadRepair::Untouched, failed });
    }
    let bytes: u64 = damaged.iter().map(|range| (range.end - range.start) * LEAF).sum();
    mending.reporter.update(|progress| {
        (progress.total, progress.done, progress.number) = (bytes, 0, Some(record.number()));
    });
    mending.reporter.phase(Phase::Transferring);
    let repair = Arc::new(store.repair(record.number(), damaged.clone(), mending.head).await?);
    let sink = Arc::new(Filling::new(record, Arc::clone(&repair))?);
    for part in parts(&damaged) {
        let expected = expected(mending, scan, findings, &hashes_there, &part).await?;
        match fill(mending, &sink, expected).await {
            Ok(()) => {}
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    let (leaves, wrong) = (sink.written.load(Ordering::Relaxed), sink.wrong.load(Ordering::Relaxed));
    drop(sink);
    let repair = Arc::into_inner(repair).expect("whoever wrote has ended");
    let all = leaves == damaged.iter().map(|range| range.end - range.start).sum::<u64>();
    let tree =
        findings.is_tree_damaged() && all && findings.unknown().iter().all(|s| hashes_there.contains(s));
    mending.reporter.phase(Phase::Verifying);
    let head = blocking(move || repair.finish(tree)).await?;
    if wrong > 0 && failed.is_none() {
        failed = Some(PullError::Malformed(
            "data that are not those of the snapshot: nothing of them was written",
        ));
    }
    Ok(Mended { leaves, wrong, head, failed })
}

/// Gets the nodes that the digest is the root of.
async fn learn_nodes(
    mending: &Mending<'_>,
    link: &dyn Link,
    findings: &mut Findings,
) -> Result<(), PullError> {
    let count = SegmentIndex::count(mending.record.size);
    let mut nodes = Vec::new();
    for first in (0..count).step_by(MAX_NODES as usize) {
        let expected = MAX_NODES.min(count - first);
        nodes.extend(hashes(mending, link, WalkLevel::Nodes, SegmentIndex(first), expected, expected).await?);
    }
    if findings.learn_nodes(nodes) {
        return Ok(());
    }
    Err(PullError::Malformed("hashes that are not those of the snapshot's digest"))
}

/// The leaf hashes of neighbouring segments, checked against their nodes.
async fn their_leaves(
    mending: &Mending<'_>,
    link: &dyn Link,
    findings: &Findings,
    group: &[SegmentIndex],
) -> Result<Vec<Vec<Hash>>, PullError> {
    let (first, count, size) = (group[0], group.len() as u64, mending.record.size);
    let end = group[group.len() - 1].leaves(size).end;
    let all = hashes(mending, link, WalkLevel::Leaves, first, count, end - first.first_leaf()).await?;
    let mut rest = &all[..];
    let mut leaves = Vec::with_capacity(group.len());
    for segment in group {
        let range = segment.leaves(size);
        let (own, others) = rest.split_at((range.end - range.start) as usize);
        if Hash::of_node(own) != findings.node(*segment) {
            return Err(PullError::Malformed("leaf hashes that are not those of the snapshot"));
        }
        leaves.push(own.to_vec());
        rest = others;
    }
    Ok(leaves)
}

async fn hashes(
    mending: &Mending<'_>,
    link: &dyn Link,
    level: WalkLevel,
    first: SegmentIndex,
    count: u64,
    expected: u64,
) -> Result<Vec<Hash>, PullError> {
    let Mending { volume, record, patience, .. } = mending;
    walk(link, patience, volume, record.guid(), level, first, count, expected).await
}

/// The hashes that leaves must have, from the tree here or, where that is damaged, from the peer.
async fn expected(
    mending: &Mending<'_>,
    scan: &Scan,
    findings: &Findings,
    hashes_there: &[SegmentIndex],
    part: &[LeafIndex],
) -> Result<BTreeMap<LeafIndex, Hash>, PullError> {
    let size = mending.record.size;
    let mut expected = BTreeMap::new();
    for of_segment in part.chunk_by(|a, b| a.segment() == b.segment()) {
        let segment = of_segment[0].segment();
        let hashes = match (&scan.tree, mending.link) {
            (_, Some(link)) if hashes_there.contains(&segment) => {
                their_leaves(mending, link, findings, &[segment]).await?.swap_remove(0)
            }
            (Some(tree), _) => tree.segment(segment)?.hashes(segment, size),
            (None, _) => continue,
        };
        for leaf in of_segment {
            expected.insert(*leaf, hashes[(leaf.0 - segment.first_leaf()) as usize]);
        }
    }
    Ok(expected)
}

/// Writes these leaves: zeros at once, others as they come.
async fn fill(
    mending: &Mending<'_>,
    sink: &Arc<Filling>,
    expected: BTreeMap<LeafIndex, Hash>,
) -> Result<(), PullError> {
    let size = mending.record.size;
    let zero = |leaf: &LeafIndex| {
        let range = leaf.range(size);
        Hash::of_zero_leaf(range.end - range.start)
    };
    let (zeros, rest): (Vec<_>, Vec<_>) =
        expected.iter().map(|(leaf, hash)| (*leaf, *hash)).partition(|(leaf, hash)| *hash == zero(leaf));
    *sink.expected.lock().expect("no panic while locked") = expected;
    let own = Arc::clone(sink);
    blocking(move || zeros.iter().try_for_each(|(leaf, _)| own.pieces(leaf.range(size), None))).await?;
    let Some(link) = mending.link.filter(|_| !rest.is_empty()) else { return Ok(()) };
    let job = Job {
        link,
        patience: mending.patience,
        reporter: mending.reporter,
        volume: mending.volume,
        target: mending.record.guid(),
        staging: Arc::new(Box::new(Sink(Arc::clone(sink))) as Box<dyn Staging>),
        pause: Duration::MAX,
        resumed: false,
        refetched: AtomicU64::new(0),
        writers: Writers::new(),
        unrecorded: Unrecorded::default(),
        buffers: Buffers::new(BATCHES),
    };
    let sets = leaf_sets(rest.iter().map(|(leaf, _)| *leaf).collect());
    let fetched = job.fetch(FetchWhat::Leaves(sets), &[]).await;
    job.writers.ended().await;
    let mismatches = fetched?;
    sink.wrong.fetch_add(mismatches.len() as u64, Ordering::Relaxed);
    mending.reporter.update(|progress| progress.done += rest.len() as u64 * LEAF);
    Ok(())
}

/// Neighbouring segments, as many as one request may ask for.
fn groups(segments: &[SegmentIndex]) -> Vec<Vec<SegmentIndex>> {
    let neighbours = segments.chunk_by(|a, b| a.0 + 1 == b.0);
    neighbours.flat_map(|run| run.chunks(MAX_LEAF_SEGMENTS as usize)).map(<[SegmentIndex]>::to_vec).collect()
}

/// Leaves that are asked for together.
fn parts(damaged: &[Range<u64>]) -> impl Iterator<Item = Vec<LeafIndex>> {
    let mut leaves = damaged.iter().cloned().flatten().map(LeafIndex).peekable();
    std::iter::from_fn(move || {
        let (mut part, mut segments, mut last) = (Vec::new(), 0, None);
        while let Some(leaf) = leaves.peek() {
            segments += u64::from(last != Some(leaf.segment()));
            if segments > MAX_LEAF_SEGMENTS || part.len() == PART {
                break;
            }
            last = Some(leaf.segment());
            part.push(leaves.next().expect("just seen"));
        }
        (!part.is_empty()).then_some(part)
    })
}

/// Most leaves that are asked for together: 64 MiB.
const PART: usize = 1024;

/// Takes what comes as if it were staged.
#[derive(Debug)]
struct Sink(Arc<Filling>);

/// Writes the leaves that are what they should be.
#[derive(Debug)]
struct Filling {
    plan: StagePlan,
    leaves: LeafTree,
    repair: Arc<Box<dyn Repair>>,
    expected: Mutex<BTreeMap<LeafIndex, Hash>>,
    /// A leaf that comes in pieces, and how many of its bytes have come.
    partial: Mutex<(Option<LeafIndex>, Vec<u8>, usize)>,
    written: AtomicU64,
    wrong: AtomicU64,
}

impl Filling {
    fn new(record: &SnapshotRecord, repair: Arc<Box<dyn Repair>>) -> Result<Self, StoreError> {
        Ok(Self {
            plan: StagePlan { record: record.clone(), base: None },
            leaves: LeafTree::anonymous(record.size)?,
            repair,
            expected: Mutex::default(),
            partial: Mutex::default(),
            written: AtomicU64::new(0),
            wrong: AtomicU64::new(0),
        })
    }

    /// Writes a whole leaf, if it is the one.
    fn leaf(&self, leaf: LeafIndex, bytes: &[u8]) -> Result<(), StoreError> {
        let expected = self.expected.lock().expect("no panic while locked").get(&leaf).copied();
        if expected != Some(Hash::of_leaf(bytes)) {
            self.wrong.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        self.repair.write(leaf.0 * LEAF, bytes)?;
        self.written.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn piece(&self, range: Range<u64>, bytes: Option<&[u8]>) -> Result<(), StoreError> {
        let leaf = LeafIndex::containing(range.start);
        let whole = leaf.range(self.plan.record.size);
        let mut partial = self.partial.lock().expect("no panic while locked");
        let (current, content, come) = &mut *partial;
        if *current != Some(leaf) {
            (*current, *come) = (Some(leaf), 0);
            content.clear();
            content.resize((whole.end - whole.start) as usize, 0);
        }
        let at = (range.start - whole.start) as usize..(range.end - whole.start) as usize;
        *come += at.len();
        match bytes {
            Some(bytes) => content[at].copy_from_slice(bytes),
            None => content[at].fill(0),
        }
        if *come < content.len() {
            return Ok(());
        }
        *current = None;
        self.leaf(leaf, content)
    }

    fn pieces(&self, range: Range<u64>, bytes: Option<&[u8]>) -> Result<(), StoreError> {
        let mut start = range.start;
        while start < range.end {
            let end = LeafIndex::containing(start).range(self.plan.record.size).end.min(range.end);
            let at = (start - range.start) as usize..(end - range.start) as usize;
            self.piece(start..end, bytes.map(|bytes| &bytes[at]))?;
            start = end;
        }
        Ok(())
    }
}

impl Staging for Sink {
    fn plan(&self) -> &StagePlan {
        &self.0.plan
    }

    fn finished(&self) -> Vec<SegmentIndex> {
        Vec::new()
    }

    fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), StoreError> {
        Err(StoreError::Unsupported("a part of a leaf was sent where all of it was asked for".into()))
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        self.0.pieces(offset..offset + data.len() as u64, Some(data))
    }

    fn zero(&self, range: Range<u64>) -> Result<(), StoreError> {
        self.0.pieces(range, None)
    }

    fn leaves(&self) -> &LeafTree {
        &self.0.leaves
    }

    fn checkpoint(&self, _: &[(SegmentIndex, SegmentLeaves)], _: &[SegmentIndex]) -> Result<(), StoreError> {
        Ok(())
    }

    fn commit(self: Box<Self>, _: Digest) -> Result<SnapshotRecord, StoreError> {
        Err(StoreError::Unsupported("a snapshot that is there is not committed again".into()))
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.expect("stores do not panic")
}
