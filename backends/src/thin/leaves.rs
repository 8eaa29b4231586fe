//! Leaf trees of snapshots. They lie outside the pool: what is lost of them is computed again.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use zumastor_core::{
    SEGMENT, SnapshotNumber, SnapshotReader, StoreError,
    digest::{LeafTree, digest_of},
};

use super::{
    catalogue::Kept,
    changes::Delta,
    inner::{Inner, sealed_tree},
    reader::{DeviceReader, Mapped},
};
use crate::described::{failed, sync_dir};

impl Inner {
    /// The sealed tree of a snapshot, computed if it has not been.
    pub(crate) fn leaves(&self, number: SnapshotNumber) -> Result<Arc<LeafTree>, StoreError> {
        if let Some(tree) = self.stored_leaves(&self.kept(number)?)? {
            return Ok(Arc::new(tree));
        }
        let _computing = self.computing.lock().expect("no panic while locked");
        let kept = self.kept(number)?;
        if let Some(tree) = self.stored_leaves(&kept)? {
            return Ok(Arc::new(tree));
        }
        self.made_by(&kept, |path| self.compute(&kept, path)).map(Arc::new)
    }

    /// Computes the tree of a snapshot from all of its content, whatever other trees say.
    pub(crate) fn leaves_anew(&self, number: SnapshotNumber) -> Result<LeafTree, StoreError> {
        let _computing = self.computing.lock().expect("no panic while locked");
        let kept = self.kept(number)?;
        self.made_by(&kept, |path| self.compute_all(number, path))
    }

    fn made_by(
        &self,
        kept: &Kept,
        make: impl FnOnce(&Path) -> Result<LeafTree, StoreError>,
    ) -> Result<LeafTree, StoreError> {
        let path = self.notes.join("computing");
        let placed = make(&path).and_then(|tree| self.place_leaves(kept, &path, tree));
        if placed.is_err() && !self.faults.stopped() {
            let _ = fs::remove_file(&path);
        }
        placed
    }

    fn stored_leaves(&self, kept: &Kept) -> Result<Option<LeafTree>, StoreError> {
        let tree = sealed_tree(&self.leaves_path(&kept.record), kept.record.size)?;
        // A tree that another history left has another digest.
        Ok(tree.filter(|tree| kept.record.digest.is_none_or(|digest| tree.digest() == Some(digest))))
    }

    fn compute(&self, kept: &Kept, path: &Path) -> Result<LeafTree, StoreError> {
        let number = kept.record.number();
        let size = kept.record.size;
        let reader = self.reader(number)?;
        let mut older: Vec<Kept> = self.state().snapshots.clone();
        older.retain(|other| other.record.number() < number);
        for base in older.into_iter().rev() {
            let Some(old) = self.stored_leaves(&base)? else { continue };
            let tree = old.copy(path, size)?;
            tree.rehash_end(old.size(), &reader)?;
            // A base that is deleted meanwhile is no base.
            let Ok(delta) = self.delta(Some(base.record.number()), number) else { continue };
            update(&tree, &delta, &reader)?;
            return tree.seal();
        }
        self.compute_all(number, path)
    }

    fn compute_all(&self, number: SnapshotNumber, path: &Path) -> Result<LeafTree, StoreError> {
        let reader = self.reader(number)?;
        let tree = LeafTree::create(path, SnapshotReader::size(&reader))?;
        let mapped = self.delta(None, number)?;
        digest_of(&Mapped { reader: &reader, mapped }, Some(&tree))?;
        tree.seal()
    }

    /// Puts a computed tree in its place, if the snapshot is still there.
    fn place_leaves(&self, kept: &Kept, path: &Path, tree: LeafTree) -> Result<LeafTree, StoreError> {
        let number = kept.record.number();
        let found = tree.digest().expect("sealed");
        if let Some(expected) = kept.record.digest.filter(|expected| *expected != found) {
            let what =
                format!("snapshot {number} no longer has the content it had: digest {found}, not {expected}");
            return Err(StoreError::Damaged { path: self.place().to_owned(), what });
        }
        let _control = self.control()?;
        let mut catalogue = self.catalogue();
        let there = catalogue.with_guid(kept.record.guid()).cloned();
        let mut there = there.ok_or(StoreError::NotFound { number })?;
        let place: PathBuf = self.leaves_path(&kept.record);
        self.faults.at("leaves: before rename")?;
        fs::rename(path, &place).map_err(failed("making", &place))?;
        sync_dir(&self.notes)?;
        self.faults.at("leaves: after rename")?;
        if there.record.digest.is_none() {
            there.record.digest = Some(found);
            catalogue.insert(there);
            self.replace(catalogue)?;
        }
        LeafTree::open(&place)
    }
}

/// Brings a tree that is a copy of the base's up to date, on all cores.
fn update(tree: &LeafTree, delta: &Delta, target: &DeviceReader) -> Result<(), StoreError> {
    let size = SnapshotReader::size(target);
    let next = AtomicU64::new(0);
    let strides = size.div_ceil(STRIDE);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64).clamp(1, strides.max(1));
    let work = || -> Result<(), StoreError> {
        loop {
            let start = next.fetch_add(1, Ordering::Relaxed) * STRIDE;
            if start >= size {
                return Ok(());
            }
            tree.update(&delta.within(&(start..start + STRIDE), size), target)?;
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("hashing does not panic"))
    })
}

/// Bytes of volume that one thread brings up to date at a time.
const STRIDE: u64 = 8 * SEGMENT;
