//! Taking a snapshot by reading the origin.

use std::{
    fs::{self, File},
    ops::Range,
    os::unix::fs::FileExt,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use zumastor_core::{
    LEAF, LeafIndex, NewSnapshot, SegmentIndex, SnapshotRecord, StoreError,
    digest::{Hash, LeafTree, SegmentLeaves},
    files, is_zero,
};

use super::layer::{Descriptor, forced_by_size};
use crate::bulk::BulkFile;
use crate::file::{
    head::{HeadMarker, Stamp, TICK},
    header::hides_mapped_writes,
    inner::{Inner, RecordFile},
    layout::{Described, failed, sync_together},
    lease::{Writers, writers},
    reflink::new_file,
    runs::Runs,
};

/// How often a snapshot is tried while somebody writes.
const ATTEMPTS: usize = 3;
/// How long an attempt waits for a moment without writes.
const PATIENCE: u32 = 15;

impl Inner {
    /// Copies what differs from an earlier snapshot into a new layer. Also returns the origin's stamp.
    ///
    /// # Errors
    /// [`StoreError::OriginBusy`] when the origin was written while it was read: what was copied may be a mix.
    pub(crate) fn create_layered(
        &self,
        new: NewSnapshot,
        origin: &File,
    ) -> Result<(SnapshotRecord, Option<Stamp>), StoreError> {
        let dir = self.layout.fresh("snapshot")?;
        let id = self.state().layers.allocate();
        let created = self.create_layer(&dir, id, new, origin);
        // Once the snapshot may be there, what it is made of stays: a store that lacks it could not show it any more.
        if created.is_err() && !self.faults.stopped() && !self.is_broken() {
            let _ = fs::remove_dir_all(&dir);
            let _ = fs::remove_file(self.layout.layer(id));
            let _ = fs::remove_file(self.layout.data(id));
        }
        created
    }

    fn create_layer(
        &self,
        dir: &Path,
        id: u64,
        new: NewSnapshot,
        origin: &File,
    ) -> Result<(SnapshotRecord, Option<Stamp>), StoreError> {
        let parent = self.parent_of_head()?;
        let data = BulkFile::new(new_file(&self.layout.data(id))?, &self.layout.data(id));
        for _ in 0..ATTEMPTS {
            self.check_writers()?;
            let Some(before) = self.settle(origin)? else { continue };
            self.faults.at("create: before reading")?;
            let scan = Scan {
                origin,
                origin_path: &self.origin,
                size: before.size,
                parent: parent.as_ref().map(|(_, tree)| tree),
                data: &data,
                data_path: &self.layout.data(id),
            };
            let read = scan.run(&dir.join("leaves"));
            if Stamp::of(origin, &self.origin)? != before {
                continue;
            }
            self.check_writers()?;
            let (runs, tree) = read?;
            self.faults.at("create: after reading")?;
            sync_together(&self.layout.data_dir(), &[(data.file(), &self.layout.data(id))])?;
            let tree = tree.seal()?;
            let parent = parent.as_ref().map(|(layer, _)| *layer);
            let descriptor = Descriptor { parent, data: id, size: before.size, runs };
            self.faults.at("create: before the descriptor")?;
            descriptor.replace(&self.layout.layer(id))?;
            self.faults.at("create: after the descriptor")?;
            let record = SnapshotRecord { new, size: before.size, digest: tree.digest() };
            let described = RecordFile { record: record.clone(), layer: Some(id) };
            let place = dir.join("record");
            sync_together(dir, &[(&described.write_new(&place)?, &place)])?;
            self.publish(dir, record.clone(), Some((id, descriptor)))?;
            return Ok((record, Some(before)));
        }
        Err(StoreError::OriginBusy { path: self.origin.clone() })
    }

    /// Refuses an origin that somebody may be writing to unseen: on some file systems a write through a mapping leaves
    /// the time as it was.
    fn check_writers(&self) -> Result<(), StoreError> {
        if !hides_mapped_writes(&self.origin) {
            return Ok(());
        }
        let file = File::open(&self.origin).map_err(failed("opening the origin", &self.origin))?;
        match writers(file) {
            Writers::Some => Err(StoreError::OriginBusy { path: self.origin.clone() }),
            Writers::None(_) | Writers::Unknown => Ok(()),
        }
    }

    /// The snapshot that the head probably differs least from: what it last showed, or the newest.
    fn parent_of_head(&self) -> Result<Option<(u64, LeafTree)>, StoreError> {
        let marker = HeadMarker::recall(&self.layout.head());
        let kept = {
            let state = self.state();
            let last = marker.0.last().and_then(|shown| state.snapshots.get(&shown.number));
            last.or_else(|| state.snapshots.values().next_back()).cloned()
        };
        let Some(kept) = kept else { return Ok(None) };
        let layer = kept.layer.expect("every snapshot of a layered store has a layer");
        let path = self.layout.snapshot(kept.record.number()).join("leaves");
        match LeafTree::open(&path) {
            Ok(tree) if tree.digest().is_some() => Ok(Some((layer, tree))),
            // Without the leaves it cannot be told what changed: the new snapshot stands on its own.
            _ => Ok(None),
        }
    }

    /// Waits until a write could not go unnoticed, makes what was written durable, and returns the stamp that holds
    /// until the next write. Nothing when writing does not stop.
    fn settle(&self, origin: &File) -> Result<Option<Stamp>, StoreError> {
        for _ in 0..PATIENCE {
            let before = Stamp::of(origin, &self.origin)?;
            if let Some(wait) = before.unsettled() {
                thread::sleep(wait.max(Duration::from_millis(1)).min(TICK * 2));
                continue;
            }
            // Pages that were changed through a mapping are noticed when they are changed again after this.
            origin.sync_data().map_err(failed("syncing the origin", &self.origin))?;
            if Stamp::of(origin, &self.origin)? == before {
                return Ok(Some(before));
            }
        }
        Ok(None)
    }
}

/// One reading of the origin: hashes its leaves, and writes those that differ from the parent's.
struct Scan<'a> {
    origin: &'a File,
    origin_path: &'a Path,
    size: u64,
    parent: Option<&'a LeafTree>,
    data: &'a BulkFile,
    data_path: &'a Path,
}

/// Bytes per read.
const READ: u64 = 1 << 20;

impl Scan<'_> {
    /// Fills the data file and a new tree at `leaves`; returns which leaves differ.
    fn run(&self, leaves: &Path) -> Result<(Runs, LeafTree), StoreError> {
        for size in [0, self.size] {
            self.data.file().set_len(size).map_err(failed("resizing", self.data_path))?;
        }
        let tree = LeafTree::create(leaves, self.size)?;
        let count = SegmentIndex::count(self.size);
        let next = AtomicU64::new(0);
        // Twice the processors: writing waits for the disk.
        let threads =
            thread::available_parallelism().map_or(2, |n| 2 * n.get() as u64).clamp(1, count.max(1));
        let work = || -> Result<Vec<(u64, Runs)>, StoreError> {
            let mut buffer = vec![0; READ as usize];
            let mut found = Vec::new();
            loop {
                let segment = SegmentIndex(next.fetch_add(1, Ordering::Relaxed));
                if segment.0 >= count {
                    return Ok(found);
                }
                let runs = self.segment(segment, &tree, &mut buffer)?;
                if runs.leaves() > 0 {
                    found.push((segment.0, runs));
                }
            }
        };
        let mut found = thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            let mut all = Vec::new();
            for worker in workers {
                all.extend(worker.join().expect("reading does not panic")?);
            }
            Ok::<_, StoreError>(all)
        })?;
        found.sort_unstable_by_key(|(segment, _)| *segment);
        Ok((found.iter().flat_map(|(_, runs)| runs.iter()).collect(), tree))
    }

    fn segment(&self, segment: SegmentIndex, tree: &LeafTree, buffer: &mut [u8]) -> Result<Runs, StoreError> {
        let window = segment.range(self.size);
        let old = Old::of(self.parent, segment, self.size)?;
        let mut leaves: Option<SegmentLeaves> = None;
        let mut runs = Runs::default();
        let mut next = segment.first_leaf();
        let data = files::data_ranges(self.origin, window.clone());
        for part in data.map_err(failed("reading", self.origin_path))? {
            let start = (part.start / LEAF).max(next);
            old.gone(next..start, &mut runs);
            next = LeafIndex::count(part.end).max(start);
            let end = (next * LEAF).min(window.end);
            let mut position = start * LEAF;
            while position < end {
                let bytes = &mut buffer[..(end - position).min(READ) as usize];
                self.origin.read_exact_at(bytes, position).map_err(failed("reading", self.origin_path))?;
                self.compare(segment, position, bytes, &old, &mut leaves, &mut runs)?;
                position += bytes.len() as u64;
            }
        }
        old.gone(next..segment.leaves(self.size).end, &mut runs);
        if let Some(leaves) = leaves {
            tree.set_segment(segment, &leaves)?;
        }
        Ok(runs)
    }

    /// Hashes whole leaves, and writes those that differ, neighbours together. What is hashed is what is written.
    fn compare(
        &self,
        segment: SegmentIndex,
        position: u64,
        bytes: &[u8],
        old: &Old,
        leaves: &mut Option<SegmentLeaves>,
        runs: &mut Runs,
    ) -> Result<(), StoreError> {
        let mut write: Option<Range<usize>> = None;
        let flush = |range: Option<Range<usize>>| -> Result<(), StoreError> {
            let Some(range) = range else { return Ok(()) };
            let at = position + range.start as u64;
            self.data.write_all_at(&bytes[range], at).map_err(failed("writing", self.data_path))
        };
        for (index, leaf) in bytes.chunks(LEAF as usize).enumerate() {
            let number = position / LEAF + index as u64;
            let hash = (!is_zero(leaf)).then(|| Hash::of_leaf(leaf));
            if hash.is_some() {
                let leaves = leaves.get_or_insert_with(|| SegmentLeaves::zeros(segment, self.size));
                leaves.set((number - segment.first_leaf()) as usize, hash);
            }
            let differs = old.differs(number, hash);
            if differs {
                runs.push(number..number + 1);
            }
            if differs && hash.is_some() {
                let start = index * LEAF as usize;
                let end = start + leaf.len();
                write = Some(write.map_or(start, |range| range.start)..end);
            } else {
                flush(write.take())?;
            }
        }
        flush(write)
    }
}

/// What the parent has in a segment.
struct Old {
    segment: SegmentIndex,
    /// Nothing when all of it is zero.
    leaves: Option<SegmentLeaves>,
    size: u64,
    forced: Range<u64>,
}

impl Old {
    fn of(parent: Option<&LeafTree>, segment: SegmentIndex, size: u64) -> Result<Self, StoreError> {
        let old_size = parent.map_or(size, LeafTree::size);
        let leaves = match parent {
            Some(tree) if !segment.range(old_size).is_empty() => {
                let zero = tree.node(segment)? == SegmentLeaves::zero_node(segment, old_size);
                (!zero).then(|| tree.segment(segment)).transpose()?
            }
            _ => None,
        };
        let forced = if parent.is_some() { forced_by_size(old_size, size) } else { 0..0 };
        Ok(Self { segment, leaves, size: old_size, forced })
    }

    /// The leaf's hash there; nothing for zeros.
    fn hash(&self, leaf: u64) -> Option<Hash> {
        let position = (leaf - self.segment.first_leaf()) as usize;
        let leaves =
            self.leaves.as_ref().filter(|leaves| position < leaves.len() && !leaves.is_zero(position))?;
        Some(leaves.hash(self.segment, position, self.size))
    }

    fn differs(&self, leaf: u64, hash: Option<Hash>) -> bool {
        self.forced.contains(&leaf) || self.hash(leaf) != hash
    }

    /// Adds those of a run of leaves, all zero now, that differ.
    fn gone(&self, run: Range<u64>, runs: &mut Runs) {
        if self.leaves.is_none() {
            runs.push(run.start.max(self.forced.start)..run.end.min(self.forced.end));
            return;
        }
        run.filter(|leaf| self.differs(*leaf, None)).for_each(|leaf| runs.push(leaf..leaf + 1));
    }
}
