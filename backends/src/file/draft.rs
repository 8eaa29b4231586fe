//! The next head, written together with what is received of a first full copy: in layered mode the flip would have to read
//! everything once more.

use std::{
    fs::{self, File},
    ops::Range,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use zumastor_core::{
    LEAF, LeafIndex, SegmentIndex, SnapshotGuid, SnapshotRecord, StoreError, digest::LeafTree, files,
};

use super::{
    flip::new_head,
    header::directory,
    inner::{Inner, free_at},
    layout::failed,
    runs::Runs,
};
use crate::bulk::BulkFile;

/// A file beside the origin to which everything is written that is written to a staging. It goes when it is dropped, unless it
/// became the head.
#[derive(Debug)]
pub(super) struct Draft {
    guid: SnapshotGuid,
    file: BulkFile,
    path: PathBuf,
    size: u64,
    /// A bit for each leaf that an earlier run has staged, and that is a hole here until it is read back or written anew.
    missing: Vec<AtomicU64>,
    abandoned: AtomicBool,
    written: AtomicU64,
}

impl Inner {
    /// Removes the drafts that a run before this one left.
    pub(super) fn clear_drafts(&self) -> Result<(), StoreError> {
        let (dir, prefix) = (directory(&self.origin), self.beside("draft-"));
        let Ok(entries) = fs::read_dir(&dir) else { return Ok(()) };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            if path.as_os_str().as_encoded_bytes().starts_with(prefix.as_os_str().as_encoded_bytes()) {
                fs::remove_file(&path).map_err(failed("removing", &path))?;
            }
        }
        Ok(())
    }

    /// Begins a draft of a snapshot of which these leaves are staged already; none if there is no room for it.
    pub(super) fn begin_draft(
        &self,
        record: &SnapshotRecord,
        staged: &Runs,
    ) -> Result<Option<Draft>, StoreError> {
        let dir = directory(&self.origin);
        if free_at(&dir)? < staged.leaves() * LEAF + RESERVE {
            return Ok(None);
        }
        // A name that no other draft ever has: whoever was stopped may still be at his.
        static BEGUN: AtomicU64 = AtomicU64::new(0);
        let path = self.beside(&format!("draft-{}", BEGUN.fetch_add(1, Ordering::Relaxed)));
        let file = new_head(&path)?;
        file.set_len(record.size).map_err(failed("resizing", &path))?;
        let mut missing = vec![0; LeafIndex::count(record.size).div_ceil(64) as usize];
        staged.iter().flatten().for_each(|leaf| missing[(leaf / 64) as usize] |= 1 << (leaf % 64));
        Ok(Some(Draft {
            guid: record.guid(),
            file: BulkFile::new(file, &path),
            path,
            size: record.size,
            missing: missing.into_iter().map(AtomicU64::new).collect(),
            abandoned: AtomicBool::new(false),
            written: AtomicU64::new(0),
        }))
    }
}

impl Draft {
    /// Takes what was read back at `offset`, where a leaf begins, as far as it is missing. Whole leaves only, but for the last.
    pub fn take(&self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let range = offset..offset + bytes.len() as u64;
        for part in self.parts(&range, |leaf, _| self.is_missing(leaf)) {
            self.write(part.start, &bytes[(part.start - offset) as usize..(part.end - offset) as usize])?;
        }
        Ok(())
    }

    /// Writes what was written to the staging.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        if self.abandoned.load(Ordering::Relaxed) {
            return Ok(());
        }
        // Others have their volumes on this file system, and must not feel that this one is copied.
        let written = self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if written % LOOK < bytes.len() as u64 && free_at(&directory(&self.path))? < RESERVE {
            return Err(StoreError::NoSpace { what: "drafting the next head".into() });
        }
        let range = offset..offset + bytes.len() as u64;
        for part in self.parts(&range, |leaf, whole| whole || !self.is_missing(leaf)) {
            let bytes = &bytes[(part.start - offset) as usize..(part.end - offset) as usize];
            self.file.write_all_at(bytes, part.start).map_err(failed("writing", &self.path))?;
        }
        if self.abandoned.load(Ordering::Relaxed) {
            // Meanwhile, by another thread.
            self.abandon();
        }
        self.complete(&range);
        Ok(())
    }

    /// Makes zero what became zero in the staging.
    pub fn zero(&self, range: &Range<u64>) -> Result<(), StoreError> {
        if self.abandoned.load(Ordering::Relaxed) {
            return Ok(());
        }
        for part in self.parts(range, |leaf, whole| whole || !self.is_missing(leaf)) {
            files::punch_hole(self.file.file(), part).map_err(failed("writing", &self.path))?;
        }
        self.complete(range);
        Ok(())
    }

    /// The parts of a range whose leaves are wanted, neighbours together. `wanted` learns whether the range has all of a leaf.
    fn parts(&self, range: &Range<u64>, wanted: impl Fn(LeafIndex, bool) -> bool) -> Vec<Range<u64>> {
        let mut parts: Vec<Range<u64>> = Vec::new();
        for leaf in (range.start / LEAF..LeafIndex::count(range.end)).map(LeafIndex) {
            let all = leaf.range(self.size);
            let part = all.start.max(range.start)..all.end.min(range.end);
            if !wanted(leaf, part == all) {
                continue;
            }
            match parts.last_mut() {
                Some(last) if last.end == part.start => last.end = part.end,
                _ => parts.push(part),
            }
        }
        parts
    }

    fn is_missing(&self, leaf: LeafIndex) -> bool {
        self.missing[(leaf.0 / 64) as usize].load(Ordering::Relaxed) >> (leaf.0 % 64) & 1 == 1
    }

    /// The leaves that lie in a range entirely are here now.
    fn complete(&self, range: &Range<u64>) {
        for leaf in (range.start / LEAF..LeafIndex::count(range.end)).map(LeafIndex) {
            let all = leaf.range(self.size);
            if range.start <= all.start && all.end <= range.end {
                self.missing[(leaf.0 / 64) as usize].fetch_and(!(1 << (leaf.0 % 64)), Ordering::Relaxed);
            }
        }
    }

    /// Gives it up, and its space back.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
        let _ = self.file.file().set_len(0);
    }

    /// Whether nothing is missing, but for leaves that are zero: they are here as well.
    pub fn is_complete(&self, tree: &LeafTree) -> Result<bool, StoreError> {
        if self.abandoned.load(Ordering::Relaxed) {
            return Ok(false);
        }
        for segment in (0..SegmentIndex::count(self.size)).map(SegmentIndex) {
            let leaves = tree.segment(segment)?;
            let misses = |position: usize| {
                self.is_missing(LeafIndex(segment.first_leaf() + position as u64))
                    && !leaves.is_zero(position)
            };
            if (0..leaves.len()).any(misses) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether it is of this snapshot.
    pub fn is_of(&self, record: &SnapshotRecord) -> bool {
        self.guid == record.guid()
    }

    /// Moves it to another name, and gives the file.
    pub fn rename(self, path: &Path) -> Result<File, StoreError> {
        let file = self.file.file().try_clone().map_err(failed("opening", &self.path))?;
        fs::rename(&self.path, path).map_err(failed("renaming", &self.path))?;
        Ok(file)
    }
}

/// Free space that a draft leaves to others.
const RESERVE: u64 = 1 << 30;
/// So many bytes are written between two looks at the free space.
const LOOK: u64 = 64 << 20;

impl Drop for Draft {
    fn drop(&mut self) {
        // What was renamed is not there any more.
        let _ = fs::remove_file(&self.path);
    }
}
