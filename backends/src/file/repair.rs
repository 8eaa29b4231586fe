//! Putting a snapshot right where its medium has made it another.
//!
//! Bad leaves are written over where they lie: in the snapshot's image, or in the data file of the layer that holds them. A
//! byte is what it was or what it should be, whenever that is broken off. What shares blocks with an image keeps the
//! bad ones: other snapshots are repaired for themselves, and what was made from the bad content for later is thrown away.
//!
//! The head may share the bad blocks, or be a copy of them. That is only seen while it is known what the bad bytes were, so
//! their hashes are noted (`snapshots/N/repair`) before anything is written, until the head has been dealt with. It is
//! replaced in one step, as by a flip, and only if nobody has written to it.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    ops::Range,
    os::unix::fs::{FileExt, PermissionsExt},
    sync::{Arc, Mutex},
};

use serde::{Deserialize, Serialize};
use zumastor_core::{
    HeadRepair, LEAF, LeafIndex, Repair, SnapshotNumber, SnapshotReader, SnapshotRecord, StoreError,
    digest::{Hash, LeafTree, SegmentLeaves},
    files, is_zero,
};

use super::{
    Mode,
    inner::Inner,
    layered::DataFile,
    layout::{Described, failed, sync_dir},
};

/// The file `snapshots/N/repair`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct RepairNote {
    /// Whether the head is put right too.
    head: bool,
    /// The leaves that were bad, with the hash of what they held if that could be read.
    bad: Vec<(u64, Option<Hash>)>,
}

impl Described for RepairNote {
    const MAGIC: &'static [u8; 8] = b"ZUMARPR\x01";
}

/// A snapshot of a file store that is being put right.
#[derive(Debug)]
pub(super) struct FileRepair {
    inner: Arc<Inner>,
    record: SnapshotRecord,
    /// The image, in reflink mode.
    image: Option<File>,
    damaged: Vec<Range<u64>>,
    /// The data files that were written, in layered mode.
    written: Mutex<Vec<Arc<DataFile>>>,
}

impl Inner {
    pub(super) fn repair(
        self: &Arc<Self>,
        number: SnapshotNumber,
        damaged: &[Range<u64>],
        head: bool,
    ) -> Result<FileRepair, StoreError> {
        let record = self.kept(number)?.record;
        let reader = self.reader(number)?;
        let before = RepairNote::recall(&self.note_path(number)).bad;
        let known = |leaf: u64| before.iter().any(|(of, _)| *of == leaf);
        let mut bad = before.clone();
        for leaf in damaged.iter().cloned().flatten().filter(|leaf| !known(*leaf)) {
            bad.push((leaf, hash_at(leaf, record.size, |at, bytes| reader.read_stored(at, bytes))));
        }
        let _control = self.control()?;
        self.still(&record)?;
        self.faults.at("repair: before the note")?;
        if !bad.is_empty() {
            RepairNote { head, bad }.replace(&self.note_path(number))?;
        }
        self.faults.at("repair: after the note")?;
        let image = match self.header.mode {
            Mode::Layered => None,
            Mode::Reflink => {
                let path = self.layout.image(number);
                fs::set_permissions(&path, Permissions::from_mode(0o600))
                    .map_err(failed("opening", &path))?;
                let file = OpenOptions::new().read(true).write(true).open(&path);
                Some(file.map_err(failed("opening", &path))?)
            }
        };
        let damaged = damaged.to_vec();
        Ok(FileRepair { inner: self.clone(), record, image, damaged, written: Mutex::default() })
    }

    /// Deals with the heads of repairs that were broken off, when the store is opened.
    pub(super) fn settle_repairs(&self) -> Result<(), StoreError> {
        let records: Vec<_> = self.state().snapshots.values().map(|kept| kept.record.clone()).collect();
        for record in records {
            if self.note_path(record.number()).exists() {
                self.settle_repair(&record)?;
            }
        }
        Ok(())
    }

    /// Throws away what was made from the bad content, and brings the head to what the snapshot is now. What is noted is
    /// forgotten as far as that is done. To be called with the control lock held, or before anybody else has the store.
    fn settle_repair(&self, record: &SnapshotRecord) -> Result<HeadRepair, StoreError> {
        let number = record.number();
        let path = self.note_path(number);
        let Some(note) = RepairNote::load(&path).unwrap_or_default() else {
            return Ok(HeadRepair::Untouched);
        };
        if let Some(image) =
            fs::metadata(self.layout.image(number)).ok().filter(|_| self.header.mode == Mode::Reflink)
            && image.permissions().mode() & 0o222 != 0
        {
            let image = self.layout.image(number);
            fs::set_permissions(&image, Permissions::from_mode(0o400))
                .map_err(failed("protecting", &image))?;
        }
        drop(self.ready().take());
        drop(self.draft().take());
        self.forget_held()?;
        self.drop_alternate(record)?;
        self.faults.at("repair: before the head")?;
        let reader = self.reader(number)?;
        let leaves = self.stored_leaves(number)?;
        let right = |leaf: u64| {
            let found = hash_at(leaf, record.size, |at, bytes| reader.read_at(at, bytes));
            leaves.as_ref().is_some_and(|leaves| found.is_some() && expected(leaves, leaf) == found)
        };
        let (done, left): (Vec<_>, Vec<_>) = note.bad.iter().copied().partition(|(leaf, _)| right(*leaf));
        let headed = self.settle_head(record, &note, &done, leaves.as_ref())?;
        self.faults.at("repair: after the head")?;
        if left.is_empty() && !matches!(headed, HeadRepair::Left(_)) {
            fs::remove_file(&path).map_err(failed("removing", &path))?;
            sync_dir(&self.layout.snapshot(number))?;
        } else if !matches!(headed, HeadRepair::Left(_)) {
            RepairNote { head: note.head, bad: left }.replace(&path)?;
        } else if !note.head {
            // A master's: it was told, and nothing more comes of it.
            fs::remove_file(&path).map_err(failed("removing", &path))?;
        }
        Ok(headed)
    }

    /// Brings the head to what it should show where it has the bytes that were bad of `record`. It may show another snapshot:
    /// in layers, what snapshots have in common lies in one place, and is put right for all of them at once.
    fn settle_head(
        &self,
        record: &SnapshotRecord,
        note: &RepairNote,
        done: &[(u64, Option<Hash>)],
        leaves: Option<&LeafTree>,
    ) -> Result<HeadRepair, StoreError> {
        let number = record.number();
        let (Ok(origin), Some(leaves)) = (File::open(&self.origin), leaves) else {
            return Ok(HeadRepair::Untouched);
        };
        let shown = match self.shown()? {
            // A master's volume holds other things than its snapshots.
            _ if !note.head => record.clone(),
            Some(shown) => self.kept(shown.number)?.record,
            None => return Ok(HeadRepair::Untouched),
        };
        let at_head = |leaf: u64| {
            let read = |at, bytes: &mut [u8]| {
                origin.read_exact_at(bytes, at).map_err(failed("reading", &self.origin))
            };
            hash_at(leaf, record.size, read)
        };
        let other = match shown.guid() == record.guid() {
            true => None,
            false => Some(Shown::of(self, &shown)?),
        };
        let mut same = false;
        for (leaf, bad) in done {
            let found = at_head(*leaf);
            if found.is_some() && found == expected(leaves, *leaf) {
                continue;
            }
            if other.as_ref().is_some_and(|shown| !shown.shares(*leaf, record, leaves)) {
                continue;
            }
            if found != *bad {
                if !note.head || other.is_some() {
                    continue;
                }
                let (origin, offset) = (self.origin.display(), leaf * LEAF);
                return Ok(HeadRepair::Left(format!(
                    "{origin} is neither what snapshot {number} is nor what was bad of it at byte {offset}, so it was not \
                     touched: move it away, and snapshot {number} is shown again"
                )));
            }
            same = true;
        }
        if !same {
            return Ok(HeadRepair::Untouched);
        }
        if !note.head {
            let (origin, first) = (self.origin.display(), done.first().map_or(0, |(leaf, _)| leaf * LEAF));
            return Ok(HeadRepair::Left(format!(
                "{origin} holds the same bad bytes (the first at or behind byte {first}), and a master's volume is not written \
                 to: write there what belongs there, or `revert` to snapshot {number}"
            )));
        }
        if let Some(other) = &other {
            // The head is made of all that it shows: of what is bad elsewhere, it may have the only good copy.
            if !(0..LeafIndex::count(shown.size)).all(|leaf| other.reads_well(leaf)) {
                return Ok(HeadRepair::Left(format!(
                    "the volume shows snapshot {0}, and holds the bad bytes too: scrub snapshot {0}",
                    shown.number()
                )));
            }
            self.drop_alternate(&shown)?;
        }
        match self.flip(&shown, true) {
            Ok(()) => {
                // What the head was until now.
                self.drop_alternate(&shown)?;
                Ok(HeadRepair::Repaired)
            }
            Err(
                error @ (StoreError::HeadBusy { .. }
                | StoreError::HeadWritten { .. }
                | StoreError::NoSpace { .. }),
            ) => Ok(HeadRepair::Left(format!("the volume still holds the bad bytes: {error}"))),
            Err(error) => Err(error),
        }
    }

    fn note_path(&self, number: SnapshotNumber) -> std::path::PathBuf {
        self.layout.snapshot(number).join("repair")
    }

    /// Checks that a number is still the same snapshot's.
    fn still(&self, record: &SnapshotRecord) -> Result<(), StoreError> {
        let number = record.number();
        let there = self.kept(number).is_ok_and(|kept| kept.record.guid() == record.guid());
        if there { Ok(()) } else { Err(StoreError::NotFound { number }) }
    }
}

impl Repair for FileRepair {
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        let Self { inner, record, .. } = self;
        let end = offset + data.len() as u64;
        let leaves = offset / LEAF..LeafIndex::count(end);
        let named = self.damaged.iter().any(|range| range.start <= leaves.start && leaves.end <= range.end);
        if !named || !offset.is_multiple_of(LEAF) || (end != record.size && !end.is_multiple_of(LEAF)) {
            let what = format!("bytes {offset}..{end} are no leaves that were found to be damaged");
            return Err(StoreError::Unsupported(what));
        }
        let _control = inner.control()?;
        inner.still(record)?;
        inner.faults.at("repair: before a write")?;
        if let Some(image) = &self.image {
            let path = inner.layout.image(record.number());
            put(image, offset, data).map_err(failed("writing", &path))?;
        } else {
            // Merging moves leaves from file to file.
            let places = inner.chain(record.number())?.places(offset..end);
            let covered: u64 = places.iter().map(|(range, _)| range.end - range.start).sum();
            if covered != end - offset && !is_zero(data) {
                let path = inner.layout.snapshot(record.number());
                let what = format!("no layer holds bytes {offset}..{end} of it");
                return Err(StoreError::Damaged { path, what });
            }
            for (range, file) in places {
                let part = &data[(range.start - offset) as usize..(range.end - offset) as usize];
                put(&file.file, range.start, part).map_err(failed("writing", &file.path))?;
                let mut written = self.written.lock().expect("no panic while locked");
                if !written.iter().any(|there| Arc::ptr_eq(there, &file)) {
                    written.push(file);
                }
            }
        }
        inner.faults.at("repair: after a write")
    }

    fn finish(self: Box<Self>, tree: bool) -> Result<HeadRepair, StoreError> {
        let Self { inner, record, image, written, damaged } = *self;
        let number = record.number();
        inner.faults.at("repair: before sync")?;
        if let Some(image) = &image {
            let path = inner.layout.image(number);
            image.sync_all().map_err(failed("syncing", &path))?;
            fs::set_permissions(&path, Permissions::from_mode(0o400)).map_err(failed("protecting", &path))?;
        }
        for file in written.into_inner().expect("no panic while locked") {
            file.file.sync_all().map_err(failed("syncing", &file.path))?;
        }
        inner.faults.at("repair: after sync")?;
        if tree {
            inner.rebuild_leaves(number)?;
        }
        if !damaged.is_empty() && inner.header.mode == Mode::Reflink {
            // It began as a clone of what was bad.
            let staged =
                inner.state().staged.as_ref().is_some_and(|staged| staged.plan.plan.base == Some(number));
            if staged {
                inner.discard_staged()?;
            }
        }
        let _control = inner.control()?;
        inner.still(&record)?;
        let head = inner.settle_repair(&record)?;
        // The head may have waited for this one because of another.
        inner.settle_repairs()?;
        Ok(head)
    }
}

/// Another snapshot, which the head shows.
struct Shown {
    record: SnapshotRecord,
    reader: Arc<dyn SnapshotReader>,
    leaves: Option<LeafTree>,
}

impl Shown {
    fn of(inner: &Inner, record: &SnapshotRecord) -> Result<Self, StoreError> {
        let number = record.number();
        Ok(Self {
            record: record.clone(),
            reader: inner.reader(number)?,
            leaves: inner.stored_leaves(number)?,
        })
    }

    /// Whether the two should have a leaf in common, and this one has it as it should be.
    fn shares(&self, leaf: u64, other: &SnapshotRecord, leaves: &LeafTree) -> bool {
        let range = |record: &SnapshotRecord| LeafIndex(leaf).range(record.size);
        let meant = || self.leaves.as_ref().and_then(|own| expected(own, leaf));
        range(&self.record) == range(other) && meant() == expected(leaves, leaf) && self.reads_well(leaf)
    }

    /// Whether a leaf is as it should be.
    fn reads_well(&self, leaf: u64) -> bool {
        let found = hash_at(leaf, self.record.size, |at, bytes| self.reader.read_at(at, bytes));
        found.is_some() && self.leaves.as_ref().is_some_and(|leaves| expected(leaves, leaf) == found)
    }
}

/// Writes a leaf, or a hole if it is zero.
fn put(file: &File, offset: u64, data: &[u8]) -> std::io::Result<()> {
    if !is_zero(data) {
        return file.write_all_at(data, offset);
    }
    files::punch_hole(file, offset..offset + data.len() as u64)
}

/// The hash of a leaf, if it can be read.
fn hash_at(leaf: u64, size: u64, read: impl Fn(u64, &mut [u8]) -> Result<(), StoreError>) -> Option<Hash> {
    let range = LeafIndex(leaf).range(size);
    let mut bytes = vec![0; (range.end - range.start) as usize];
    read(range.start, &mut bytes).ok().map(|()| Hash::of_leaf(&bytes))
}

/// The hash that a tree has of a leaf.
fn expected(tree: &LeafTree, leaf: u64) -> Option<Hash> {
    let segment = LeafIndex(leaf).segment();
    let leaves: SegmentLeaves = tree.segment(segment).ok()?;
    let position = (leaf - segment.first_leaf()) as usize;
    (position < leaves.len()).then(|| leaves.hash(segment, position, tree.size()))
}
