//! The next head, written while a first full copy is read back: in layered mode the flip would have to read everything
//! once more.

use std::{
    fs::{self, File},
    ops::Range,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use zumastor_core::{
    LEAF, LeafIndex, SegmentIndex, SnapshotGuid, SnapshotRecord, StoreError, digest::LeafTree,
};

use super::{
    flip::new_head,
    header::directory,
    inner::{Inner, free_at},
    layout::failed,
};
use crate::bulk::BulkFile;

/// A file beside the origin that is filled with the content of a snapshot. It goes when it is dropped, unless it became
/// the head.
#[derive(Debug)]
pub(super) struct Draft {
    guid: SnapshotGuid,
    file: BulkFile,
    path: PathBuf,
    size: u64,
    /// A bit for each leaf that it has.
    present: Vec<AtomicU64>,
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

    /// Begins a draft of a snapshot; none if there is no room for it.
    pub(super) fn begin_draft(
        &self,
        record: &SnapshotRecord,
        bytes: u64,
    ) -> Result<Option<Draft>, StoreError> {
        let dir = directory(&self.origin);
        if free_at(&dir)? < bytes + RESERVE {
            return Ok(None);
        }
        // A name that no other draft ever has: whoever was stopped may still be at his.
        static BEGUN: AtomicU64 = AtomicU64::new(0);
        let path = self.beside(&format!("draft-{}", BEGUN.fetch_add(1, Ordering::Relaxed)));
        let file = new_head(&path)?;
        file.set_len(record.size).map_err(failed("resizing", &path))?;
        let words = LeafIndex::count(record.size).div_ceil(64);
        Ok(Some(Draft {
            guid: record.guid(),
            file: BulkFile::new(file, &path),
            path,
            size: record.size,
            present: (0..words).map(|_| AtomicU64::new(0)).collect(),
            abandoned: AtomicBool::new(false),
            written: AtomicU64::new(0),
        }))
    }
}

impl Draft {
    /// Takes what was read at `offset`, which is where a leaf begins. Whole leaves only, but for the last.
    pub fn take(&self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        if self.abandoned.load(Ordering::Relaxed) {
            return Ok(());
        }
        // Others have their volumes on this file system, and must not feel that this one is copied.
        let written = self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if written % LOOK < bytes.len() as u64 && free_at(&directory(&self.path))? < RESERVE {
            return Err(StoreError::NoSpace { what: "drafting the next head".into() });
        }
        self.file.write_all_at(bytes, offset).map_err(failed("writing", &self.path))?;
        for leaf in offset / LEAF..LeafIndex::count(offset + bytes.len() as u64) {
            self.present[(leaf / 64) as usize].fetch_or(1 << (leaf % 64), Ordering::Relaxed);
        }
        Ok(())
    }

    /// Gives it up, and its space back.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
        let _ = self.file.file().set_len(0);
    }

    /// What is staged changes here after all.
    pub fn forget(&self, range: &Range<u64>) {
        for leaf in range.start / LEAF..LeafIndex::count(range.end.min(self.size)) {
            self.present[(leaf / 64) as usize].fetch_and(!(1 << (leaf % 64)), Ordering::Relaxed);
        }
    }

    /// Whether it has all leaves that are not zero.
    pub fn is_complete(&self, tree: &LeafTree) -> Result<bool, StoreError> {
        if self.abandoned.load(Ordering::Relaxed) {
            return Ok(false);
        }
        for segment in (0..SegmentIndex::count(self.size)).map(SegmentIndex) {
            let leaves = tree.segment(segment)?;
            let first = segment.first_leaf();
            let has = |leaf: u64| {
                self.present[(leaf / 64) as usize].load(Ordering::Relaxed) >> (leaf % 64) & 1 == 1
            };
            // A leaf that became zero after it was taken would not be.
            if (0..leaves.len()).any(|position| leaves.is_zero(position) == has(first + position as u64)) {
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
