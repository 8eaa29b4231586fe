//! Reading a snapshot against its digest: what of it is not what it was.
//!
//! Three things say what a segment holds: the node in the leaf tree, the leaf hashes below it, and the content. Any of them
//! may be damaged. The digest, which is kept apart from all three, decides: nodes that add up to it are right, and then
//! each segment is judged by its node.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use crate::{
    LEAF, PageBuf, SegmentIndex, SnapshotReader, StoreError,
    digest::{Digest, Hash, LeafTree, SegmentLeaves},
    is_zero,
};

/// What is read against what.
#[derive(Debug, Clone)]
pub struct Scan {
    /// The snapshot's content.
    pub reader: Arc<dyn SnapshotReader>,
    /// Its leaf tree, if there is one that can be opened.
    pub tree: Option<Arc<LeafTree>>,
    /// The digest it should have.
    pub digest: Digest,
}

/// How far a scan is, and whether it is still wanted.
#[derive(Debug, Default)]
pub struct Watch {
    /// Bytes of the volume that have been looked at.
    pub done: AtomicU64,
    /// Set when nobody wants the rest.
    pub stop: AtomicBool,
}

/// What a scan found.
#[derive(Debug, Clone)]
pub struct Findings {
    size: u64,
    digest: Digest,
    /// For each segment the node that most speaks for; those of the digest once that is `known`.
    nodes: Vec<Hash>,
    known: bool,
    suspects: Vec<Suspect>,
    /// Whether the tree has to be made anew for a reason of its own.
    no_tree: bool,
}

/// A segment of which not everything agrees.
#[derive(Debug, Clone)]
struct Suspect {
    segment: SegmentIndex,
    /// The node over the leaf hashes of the tree.
    leaves: Option<Hash>,
    /// The node over the content; none if some of it cannot be read.
    content: Option<Hash>,
    /// Where the content is not what the leaf hashes say: leaf positions in the volume.
    differs: Vec<Range<u64>>,
}

impl Scan {
    /// Reads all of the snapshot, on several threads.
    ///
    /// # Errors
    /// None for what is damaged: that is what is looked for.
    pub fn run(&self, watch: &Watch) -> Result<Findings, StoreError> {
        let size = self.reader.size();
        let all: Vec<_> = (0..SegmentIndex::count(size)).map(SegmentIndex).collect();
        let looks = self.look(&all, watch)?;
        let mut findings = Findings {
            size,
            digest: self.digest,
            nodes: Vec::with_capacity(all.len()),
            known: false,
            suspects: Vec::new(),
            no_tree: self.tree.as_ref().is_none_or(|tree| tree.digest() != Some(self.digest)),
        };
        let ways: [fn(&Look) -> Option<Hash>; 4] =
            [Look::majority, |look| look.stored, |look| look.leaves, |look| look.content];
        for way in ways {
            let nodes = looks.iter().map(|look| way(look).unwrap_or(UNREADABLE)).collect();
            findings.known = Digest::from_nodes(size, nodes) == self.digest;
            if findings.known {
                findings.nodes = looks.iter().map(|look| way(look).unwrap_or(UNREADABLE)).collect();
                break;
            }
        }
        if !findings.known {
            findings.nodes = looks.iter().map(|look| look.majority().unwrap_or(UNREADABLE)).collect();
        }
        findings.take(looks);
        Ok(findings)
    }

    /// Reads again what was found to be suspect.
    pub fn again(&self, findings: &mut Findings, watch: &Watch) -> Result<(), StoreError> {
        let segments: Vec<_> = findings.suspects.iter().map(|suspect| suspect.segment).collect();
        let looks = self.look(&segments, watch)?;
        findings.suspects.clear();
        findings.no_tree = self.tree.as_ref().is_none_or(|tree| tree.digest() != Some(self.digest));
        findings.take(looks);
        Ok(())
    }

    /// The leaves of a segment whose content is not what these hashes say.
    pub fn compare(&self, segment: SegmentIndex, leaves: &[Hash]) -> Result<Vec<Range<u64>>, StoreError> {
        let mut buffer = PageBuf::new(READ as usize);
        let (content, unreadable) = self.content(segment, &mut buffer)?;
        let size = self.reader.size();
        Ok(differing(segment.leaves(size), &unreadable, |position| {
            content.hash(segment, position, size) != leaves[position]
        }))
    }

    fn look(&self, segments: &[SegmentIndex], watch: &Watch) -> Result<Vec<Look>, StoreError> {
        let next = AtomicUsize::new(0);
        let found = Mutex::new(Vec::with_capacity(segments.len()));
        let work = || -> Result<(), StoreError> {
            let mut buffer = PageBuf::new(READ as usize);
            while let Some(segment) = segments.get(next.fetch_add(1, Ordering::Relaxed)) {
                if watch.stop.load(Ordering::Relaxed) {
                    return Err(StoreError::Unsupported("the scrub was stopped".into()));
                }
                let look = self.segment(*segment, &mut buffer)?;
                found.lock().expect("no panic while locked").push(look);
                let range = segment.range(self.reader.size());
                watch.done.fetch_add(range.end - range.start, Ordering::Relaxed);
            }
            Ok(())
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = threads.min(MOST_THREADS).clamp(1, segments.len().max(1));
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            workers.into_iter().try_for_each(|worker| worker.join().expect("hashing does not panic"))
        })?;
        let mut found = found.into_inner().expect("no panic while locked");
        found.sort_unstable_by_key(|look| look.segment);
        Ok(found)
    }

    fn segment(&self, segment: SegmentIndex, buffer: &mut [u8]) -> Result<Look, StoreError> {
        let size = self.reader.size();
        let tree = self.tree.as_ref().filter(|tree| tree.size() == size);
        // A tree that cannot be read says nothing.
        let stored = tree.and_then(|tree| tree.node(segment).ok());
        let leaves = tree.and_then(|tree| tree.segment(segment).ok());
        let (content, unreadable) = self.content(segment, buffer)?;
        let node = unreadable.is_empty().then(|| content.node(segment, size));
        let below = leaves.as_ref().map(|leaves| leaves.node(segment, size));
        let differs = match &leaves {
            Some(_) if node.is_some() && node == below => Vec::new(),
            Some(leaves) => differing(segment.leaves(size), &unreadable, |position| {
                leaves.hash(segment, position, size) != content.hash(segment, position, size)
            }),
            None => Vec::new(),
        };
        Ok(Look { segment, stored, leaves: below, content: node, differs })
    }

    /// The leaf hashes of what lies there, and the positions of leaves that cannot be read.
    fn content(
        &self,
        segment: SegmentIndex,
        buffer: &mut [u8],
    ) -> Result<(SegmentLeaves, Vec<usize>), StoreError> {
        let size = self.reader.size();
        let window = segment.range(size);
        let mut leaves = SegmentLeaves::zeros(segment, size);
        let mut unreadable = Vec::new();
        let mut done = window.start;
        let data = self.reader.data(window.clone()).map(Some).or_else(medium)?;
        for data in data.unwrap_or_else(|| vec![window.clone()]) {
            // Whole leaves around the data, none twice.
            let mut position = (data.start / LEAF * LEAF).max(done);
            let end = data.end.next_multiple_of(LEAF).min(window.end);
            done = done.max(end);
            while position < end {
                let read = &mut buffer[..(end - position).min(READ) as usize];
                let whole = self.reader.read_stored(position, read).map(Some).or_else(medium)?;
                for leaf in read.chunks_mut(LEAF as usize) {
                    let at = (position / LEAF - segment.first_leaf()) as usize;
                    // What cannot be read together may be, one by one, but for the bad.
                    if whole.is_some()
                        || self.reader.read_stored(position, leaf).map(Some).or_else(medium)?.is_some()
                    {
                        leaves.set(at, (!is_zero(leaf)).then(|| Hash::of_leaf(leaf)));
                    } else {
                        unreadable.push(at);
                    }
                    position += leaf.len() as u64;
                }
            }
        }
        Ok((leaves, unreadable))
    }
}

impl Findings {
    /// Whether content and tree are what they should be.
    pub fn is_clean(&self) -> bool {
        self.known && self.suspects.is_empty() && !self.no_tree
    }

    /// Whether every byte is what it should be, whatever the tree is.
    pub fn is_content_good(&self) -> bool {
        self.known && self.suspects.iter().all(|suspect| suspect.content == Some(self.node(suspect.segment)))
    }

    /// Whether the leaf tree is not what it should be.
    pub fn is_tree_damaged(&self) -> bool {
        let wrong = |suspect: &Suspect| {
            let node = Some(self.node(suspect.segment));
            suspect.leaves != node || suspect.content == node
        };
        self.no_tree || self.suspects.iter().any(wrong)
    }

    /// What is bad, in bytes of the volume: ascending and disjoint. Where it cannot be told which leaves of a segment are
    /// bad, all of it; so it may be less.
    pub fn bad(&self) -> Vec<Range<u64>> {
        let bytes = |leaves: &Range<u64>| leaves.start * LEAF..(leaves.end * LEAF).min(self.size);
        join(self.leaves_of(|suspect| self.judge(suspect)).iter().map(bytes))
    }

    /// The leaves that are known to be bad, and whose hashes are in the tree.
    pub fn bad_leaves(&self) -> Vec<Range<u64>> {
        self.leaves_of(|suspect| match self.judge(suspect) {
            Verdict::Leaves => Verdict::Leaves,
            _ => Verdict::Good,
        })
    }

    /// The segments of which it is not known which leaves are bad, because their hashes are lost too.
    pub fn unknown(&self) -> Vec<SegmentIndex> {
        let unknown = self.suspects.iter().filter(|suspect| self.judge(suspect) == Verdict::Unknown);
        unknown.map(|suspect| suspect.segment).collect()
    }

    /// Whether the nodes are known: what the digest is the root of.
    pub fn knows_nodes(&self) -> bool {
        self.known
    }

    /// The node of a segment; right if [`knows_nodes`](Self::knows_nodes).
    pub fn node(&self, segment: SegmentIndex) -> Hash {
        self.nodes[segment.0 as usize]
    }

    /// Takes nodes that somebody gave. False if the digest is not their root; then they are not believed.
    pub fn learn_nodes(&mut self, nodes: Vec<Hash>) -> bool {
        if nodes.len() != self.nodes.len() || Digest::from_nodes(self.size, nodes.clone()) != self.digest {
            return false;
        }
        for (index, (before, node)) in (0..).zip(self.nodes.iter().zip(&nodes)) {
            let segment = SegmentIndex(index);
            if before != node && !self.suspects.iter().any(|suspect| suspect.segment == segment) {
                // Tree and content agree, and both are wrong.
                self.suspects.push(Suspect { segment, leaves: None, content: None, differs: Vec::new() });
            }
        }
        self.suspects.sort_unstable_by_key(|suspect| suspect.segment);
        (self.nodes, self.known) = (nodes, true);
        true
    }

    fn take(&mut self, looks: Vec<Look>) {
        for look in looks {
            let node = Some(self.node(look.segment));
            if [look.stored, look.leaves, look.content].iter().any(|found| *found != node) {
                let Look { segment, leaves, content, differs, .. } = look;
                self.suspects.push(Suspect { segment, leaves, content, differs });
            }
        }
    }

    fn judge(&self, suspect: &Suspect) -> Verdict {
        let node = Some(self.node(suspect.segment));
        match self.known {
            true if suspect.content == node => Verdict::Good,
            true if suspect.leaves == node => Verdict::Leaves,
            true => Verdict::Unknown,
            // The best that can be said.
            false if !suspect.differs.is_empty() => Verdict::Leaves,
            false if suspect.content.is_some() && suspect.content == suspect.leaves => Verdict::Good,
            false => Verdict::Unknown,
        }
    }

    fn leaves_of(&self, verdict: impl Fn(&Suspect) -> Verdict) -> Vec<Range<u64>> {
        join(self.suspects.iter().flat_map(|suspect| match verdict(suspect) {
            Verdict::Good => Vec::new(),
            Verdict::Leaves => suspect.differs.clone(),
            Verdict::Unknown => vec![suspect.segment.leaves(self.size)],
        }))
    }
}

/// What is to be thought of a suspect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Only the tree is damaged.
    Good,
    /// The leaves that differ are bad.
    Leaves,
    /// Some are, and their hashes are not known.
    Unknown,
}

/// What was seen of a segment.
struct Look {
    segment: SegmentIndex,
    stored: Option<Hash>,
    leaves: Option<Hash>,
    content: Option<Hash>,
    differs: Vec<Range<u64>>,
}

impl Look {
    /// What two of the three say, or else the tree.
    fn majority(&self) -> Option<Hash> {
        let Self { stored, leaves, content, .. } = self;
        if leaves.is_some() && leaves == content { *leaves } else { stored.or(*leaves).or(*content) }
    }
}

/// Ranges that touch become one.
pub fn join(ranges: impl IntoIterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// The leaves of a segment that cannot be read or are not as they should be, as positions in the volume.
fn differing(leaves: Range<u64>, unreadable: &[usize], differs: impl Fn(usize) -> bool) -> Vec<Range<u64>> {
    let bad = |leaf: &u64| {
        let position = (leaf - leaves.start) as usize;
        unreadable.binary_search(&position).is_ok() || differs(position)
    };
    join(leaves.clone().filter(bad).map(|leaf| leaf..leaf + 1))
}

/// What a medium does is a finding, and no error of the scan.
fn medium<T>(error: StoreError) -> Result<Option<T>, StoreError> {
    match error {
        StoreError::Io { .. } | StoreError::Damaged { .. } => Ok(None),
        other => Err(other),
    }
}

/// In place of a node that is not known: the hash of nothing that there is.
const UNREADABLE: Hash = Hash([0xff; 32]);
/// Bytes per read.
const READ: u64 = 1 << 20;
/// Threads that read at a time: somebody else may want the disk.
const MOST_THREADS: usize = 4;
