//! Leaf trees of snapshots, and what two snapshots differ in.

use std::{
    fs,
    ops::Range,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use zumastor_core::{
    Changes, Extent, LEAF, SEGMENT, SegmentIndex, SnapshotNumber, SnapshotReader, SnapshotRecord, StoreError,
    digest::{LeafTree, SegmentLeaves, digest_of},
};

use super::{
    Mode,
    inner::{Inner, Kept, RecordFile},
    layout::{Described, failed, sync_dir},
    reader::ImageReader,
};

impl Inner {
    /// Where `target` differs from `base` within `window`.
    pub(crate) fn changes(
        &self,
        base: Option<SnapshotNumber>,
        target: SnapshotNumber,
        window: Range<u64>,
    ) -> Result<Changes, StoreError> {
        match self.header.mode {
            Mode::Reflink => self.changes_reflink(base, target, window),
            Mode::Layered => {
                let base = base.map(|base| self.leaves(base)).transpose()?;
                tree_changes(base.as_deref(), &*self.leaves(target)?, window)
            }
        }
    }

    /// Where `target` differs from `base`, found without looking at everything the files have, if their trees are there.
    pub(super) fn cheap_changes(
        &self,
        base: SnapshotNumber,
        target: SnapshotNumber,
    ) -> Result<Changes, StoreError> {
        match (self.stored_leaves(base)?, self.stored_leaves(target)?) {
            // What a tree says is believed if all of it adds up.
            (Some(base), Some(target))
                if base.digest() == Some(base.root()?) && target.digest() == Some(target.root()?) =>
            {
                tree_changes(Some(&base), &target, 0..target.size())
            }
            _ => self.changes(Some(base), target, 0..u64::MAX),
        }
    }

    /// The sealed tree of a snapshot, computed if it has not been.
    pub(crate) fn leaves(&self, number: SnapshotNumber) -> Result<Arc<LeafTree>, StoreError> {
        if let Some(tree) = self.stored_leaves(number)? {
            return Ok(Arc::new(tree));
        }
        let computing = self.computing.lock().expect("no panic while locked");
        if let Some(tree) = self.stored_leaves(number)? {
            return Ok(Arc::new(tree));
        }
        let kept = self.kept(number)?;
        let temporary = self.layout.fresh("leaves")?;
        let path = temporary.join("leaves");
        let placed =
            self.compute(number, &kept, &path).and_then(|tree| self.place_leaves(&kept, &path, tree));
        if !self.faults.stopped() {
            let _ = fs::remove_dir_all(&temporary);
        }
        // Others wait for the tree, and nobody for this.
        drop(computing);
        if placed.is_ok() && self.header.mode == Mode::Reflink {
            self.note_held(number);
        }
        placed.map(Arc::new)
    }

    /// Makes the tree of a snapshot anew from all of its content.
    pub(super) fn rebuild_leaves(&self, number: SnapshotNumber) -> Result<(), StoreError> {
        let _computing = self.computing.lock().expect("no panic while locked");
        let kept = self.kept(number)?;
        let temporary = self.layout.fresh("leaves")?;
        let path = temporary.join("leaves");
        let compute = || {
            let tree = LeafTree::create(&path, kept.record.size)?;
            match self.header.mode {
                Mode::Layered => digest_of(&self.chain(number)?, Some(&tree))?,
                Mode::Reflink => digest_of(&self.image(number)?, Some(&tree))?,
            };
            tree.seal()
        };
        let placed = compute().and_then(|tree| self.place_leaves(&kept, &path, tree));
        if !self.faults.stopped() {
            let _ = fs::remove_dir_all(&temporary);
        }
        placed.map(drop)
    }

    /// The tree that lies with a snapshot. One that is damaged counts as none: the content is what it is made of.
    pub(super) fn stored_leaves(&self, number: SnapshotNumber) -> Result<Option<LeafTree>, StoreError> {
        let kept = self.kept(number)?;
        let path = self.layout.snapshot(number).join("leaves");
        match LeafTree::open(&path) {
            Ok(tree) if tree.size() == kept.record.size && tree.digest().is_some() => Ok(Some(tree)),
            Ok(_) | Err(StoreError::Damaged { .. }) => {
                tracing::warn!(path = %path.display(), "leaf tree is damaged and computed anew");
                Ok(None)
            }
            Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn compute(&self, number: SnapshotNumber, kept: &Kept, path: &Path) -> Result<LeafTree, StoreError> {
        let size = kept.record.size;
        if self.header.mode == Mode::Layered {
            let chain = self.chain(number)?;
            let tree = LeafTree::create(path, size)?;
            digest_of(&chain, Some(&tree))?;
            return tree.seal();
        }
        let image = self.image(number)?;
        let older: Vec<SnapshotNumber> = self.state().snapshots.range(..number).map(|(n, _)| *n).collect();
        for base in older.into_iter().rev() {
            // A base that is deleted meanwhile is no base.
            let Ok(Some(old)) = self.stored_leaves(base) else { continue };
            let tree = old.copy(path, size)?;
            tree.rehash_end(old.size(), &image)?;
            return match self.update(&tree, base, number, &image) {
                Ok(()) => tree.seal(),
                // Deleted meanwhile, it is no base.
                Err(_) if self.kept(base).is_err() => continue,
                Err(error) => Err(error),
            };
        }
        let tree = LeafTree::create(path, size)?;
        digest_of(&image, Some(&tree))?;
        tree.seal()
    }

    /// Brings a tree that is a copy of the base's up to date, on all cores.
    fn update(
        &self,
        tree: &LeafTree,
        base: SnapshotNumber,
        number: SnapshotNumber,
        target: &ImageReader,
    ) -> Result<(), StoreError> {
        let size = SnapshotReader::size(target);
        let next = AtomicU64::new(0);
        let strides = size.div_ceil(STRIDE);
        let threads =
            std::thread::available_parallelism().map_or(1, |n| n.get() as u64).clamp(1, strides.max(1));
        let work = || -> Result<(), StoreError> {
            loop {
                let start = next.fetch_add(1, Ordering::Relaxed) * STRIDE;
                if start >= size {
                    return Ok(());
                }
                let changes = self.changes_reflink(Some(base), number, start..start + STRIDE)?;
                tree.update(&changes, target)?;
            }
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            workers.into_iter().try_for_each(|worker| worker.join().expect("hashing does not panic"))
        })
    }

    /// Puts a computed tree with its snapshot, if that is still there.
    fn place_leaves(&self, kept: &Kept, path: &Path, tree: LeafTree) -> Result<LeafTree, StoreError> {
        let number = kept.record.number();
        let found = tree.digest().expect("sealed");
        let dir = self.layout.snapshot(number);
        if let Some(expected) = kept.record.digest.filter(|expected| *expected != found) {
            let what =
                format!("snapshot {number} no longer has the content it had: digest {found}, not {expected}");
            return Err(StoreError::Damaged { path: dir, what });
        }
        let _control = self.control()?;
        if self.kept(number)?.record.guid() != kept.record.guid() {
            return Err(StoreError::NotFound { number });
        }
        let place = dir.join("leaves");
        self.faults.at("leaves: before rename")?;
        fs::rename(path, &place).map_err(failed("making", &place))?;
        self.faults.at("leaves: after rename")?;
        sync_dir(&dir)?;
        if kept.record.digest.is_none() {
            // Apart from the tree, which may be damaged: then it is this that says what was right.
            let record = SnapshotRecord { digest: Some(found), ..kept.record.clone() };
            let noted = RecordFile { record, layer: kept.layer }.replace(&dir.join("record"));
            noted.or_else(|error| self.unless_stopped(error))?;
        }
        if let Some(kept) = self.state().snapshots.get_mut(&number) {
            kept.record.digest = Some(found);
        }
        LeafTree::open(&place)
    }
}

/// Bytes of volume that one thread brings up to date at a time.
const STRIDE: u64 = 8 * SEGMENT;

/// Where two snapshots differ, by their leaf trees: exact to the leaf, and costs nothing where whole segments are equal.
pub(crate) fn tree_changes(
    base: Option<&LeafTree>,
    target: &LeafTree,
    window: Range<u64>,
) -> Result<Changes, StoreError> {
    let size = target.size();
    let window = window.start.min(size)..window.end.min(size);
    let mut changes = Changes::new();
    if window.is_empty() {
        return Ok(changes);
    }
    let old_size = base.map_or(0, LeafTree::size);
    for segment in (window.start / SEGMENT..SegmentIndex::count(window.end)).map(SegmentIndex) {
        let shared = base.filter(|_| !segment.range(old_size).is_empty());
        let node = target.node(segment)?;
        match shared {
            Some(base) if segment.range(old_size) == segment.range(size) && base.node(segment)? == node => {
                continue;
            }
            None if node == SegmentLeaves::zero_node(segment, size) => continue,
            _ => {}
        }
        let old = shared.map(|base| base.segment(segment)).transpose()?;
        let new = target.segment(segment)?;
        for position in 0..new.len() {
            let start = (segment.first_leaf() + position as u64) * LEAF;
            let end = (start + LEAF).min(size);
            let old = old.as_ref().filter(|old| position < old.len());
            let equal = match old {
                None => new.is_zero(position),
                Some(_) if (start + LEAF).min(old_size) != end => false,
                Some(old) if old.is_zero(position) || new.is_zero(position) => {
                    old.is_zero(position) == new.is_zero(position)
                }
                Some(old) => old.hash(segment, position, old_size) == new.hash(segment, position, size),
            };
            let range = start.max(window.start)..end.min(window.end);
            if !equal && !range.is_empty() {
                let zero = new.is_zero(position);
                changes.push(if zero { Extent::zero(range) } else { Extent::data(range) });
            }
        }
    }
    Ok(changes)
}
