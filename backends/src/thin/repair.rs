//! Putting a snapshot right where its medium has made it another.
//!
//! Bad leaves are written over in the snapshot's thin device. Where it shares chunks, the pool copies them first, so others
//! keep what they have, and are repaired for themselves. A head that showed the snapshot shows it again afterwards, unless somebody
//! wrote to it.

use std::{fs, fs::OpenOptions, ops::Range, path::PathBuf, sync::Arc};

use zumastor_core::{
    HeadRepair, HeadState, LEAF, LeafIndex, Repair, SnapshotNumber, SnapshotRecord, StoreError,
};

use super::{
    catalogue::Kept,
    inner::Inner,
    pool::{Access, Slot, ThinId, Users},
};
use crate::{bulk::BulkFile, described::failed};

/// A snapshot that is being put right.
#[derive(Debug)]
pub(crate) struct ThinRepair {
    inner: Arc<Inner>,
    record: SnapshotRecord,
    damaged: Vec<Range<u64>>,
    device: Option<(BulkFile, PathBuf)>,
    /// The snapshot as it was, if the head showed it.
    before: Option<ThinId>,
}

impl Inner {
    pub(crate) fn repair(
        self: &Arc<Self>,
        number: SnapshotNumber,
        damaged: Vec<Range<u64>>,
        head: bool,
    ) -> Result<ThinRepair, StoreError> {
        let _control = self.control()?;
        let Kept { record, thin } = self.kept(number)?;
        let mut repair = ThinRepair { inner: self.clone(), record, damaged, device: None, before: None };
        if repair.damaged.is_empty() {
            return Ok(repair);
        }
        self.check_sound()?;
        let size = repair.record.size;
        if head && self.head()? == HeadState::Shows(number) {
            repair.before = Some(self.made(self.pool.clone_of(thin, Slot::Repair, size))?);
        }
        let path = self.pool.activate(Slot::Repair, thin, size, Access::Writable)?;
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(failed("opening", &path))?;
        repair.device = Some((BulkFile::new(file, &path), path));
        self.faults.at("repair: begun")?;
        Ok(repair)
    }

    /// Makes the head show a snapshot again that was put right.
    fn repair_head(&self, record: &SnapshotRecord, before: ThinId) -> Result<HeadRepair, StoreError> {
        let _control = self.control()?;
        let kept = self.kept(record.number())?;
        let path = self.pool.device(Slot::Head);
        let flipped = self.flip(&kept, &|| {
            if self.pool.head_users()? == Users::Writers {
                return Err(StoreError::HeadBusy { path: path.clone() });
            }
            let head = self.catalogue().head.thin;
            match self.compare(Some(before), head)?.is_empty() {
                true => Ok(()),
                false => Err(StoreError::HeadWritten { path: path.clone() }),
            }
        });
        match flipped {
            Ok(()) => Ok(HeadRepair::Repaired),
            Err(error @ (StoreError::HeadBusy { .. } | StoreError::HeadWritten { .. })) => {
                Ok(HeadRepair::Left(format!("the volume still holds the bad bytes: {error}")))
            }
            Err(error) => Err(error),
        }
    }

    /// Checks that a number is still the same snapshot's.
    fn still(&self, record: &SnapshotRecord) -> Result<(), StoreError> {
        let number = record.number();
        let there = self.kept(number).is_ok_and(|kept| kept.record.guid() == record.guid());
        if there { Ok(()) } else { Err(StoreError::NotFound { number }) }
    }
}

impl Repair for ThinRepair {
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        let Self { inner, record, damaged, device, .. } = self;
        let end = offset + data.len() as u64;
        let leaves = offset / LEAF..LeafIndex::count(end);
        let named = damaged.iter().any(|range| range.start <= leaves.start && leaves.end <= range.end);
        let (true, Some((device, path))) = (named, device) else {
            let what = format!("bytes {offset}..{end} are no leaves that were found to be damaged");
            return Err(StoreError::Unsupported(what));
        };
        if !offset.is_multiple_of(LEAF) || (end != record.size && !end.is_multiple_of(LEAF)) {
            return Err(StoreError::Unsupported(format!("bytes {offset}..{end} are no whole leaves")));
        }
        let _control = inner.control()?;
        inner.still(record)?;
        inner.faults.at("repair: before a write")?;
        device.write_all_at(data, offset).map_err(failed("writing", path))?;
        inner.faults.at("repair: after a write")
    }

    fn finish(mut self: Box<Self>, tree: bool) -> Result<HeadRepair, StoreError> {
        let (inner, record) = (self.inner.clone(), self.record.clone());
        let number = record.number();
        inner.faults.at("repair: before sync")?;
        if let Some((device, path)) = self.device.take() {
            device.file().sync_data().map_err(failed("syncing", &path))?;
            drop(device);
            inner.pool.deactivate(Slot::Repair)?;
            inner.known.forget();
        }
        inner.faults.at("repair: after sync")?;
        inner.still(&record)?;
        if tree {
            let _ = fs::remove_file(inner.leaves_path(&record));
            inner.leaves_anew(number)?;
        }
        let staged = inner.state().staged.as_ref().is_some_and(|staged| staged.plan.base == Some(number));
        if staged && !self.damaged.is_empty() {
            // It began as a clone of what was bad.
            inner.discard_staged()?;
        }
        match self.before {
            Some(before) => inner.repair_head(&record, before),
            None => Ok(HeadRepair::Untouched),
        }
    }
}

impl Drop for ThinRepair {
    fn drop(&mut self) {
        if self.inner.faults.stopped() {
            return;
        }
        if self.device.take().is_some() {
            // Given up: what was written stays.
            self.inner.known.forget();
            if let Err(error) = self.inner.pool.deactivate(Slot::Repair) {
                tracing::warn!(%error, "could not tidy up after a repair");
            }
        }
        if let Some(before) = self.before.take() {
            self.inner.bury(before);
        }
    }
}
