//! Making the alternate ahead of the next flip, while nobody waits for it.
//!
//! In layered mode the first flip after a full copy would have no second file to bring up to date, and would copy the
//! whole volume for a handful of changes. So a large one is copied in the background once it is shown.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{Arc, Weak, atomic::Ordering},
    thread,
};

use zumastor_core::{SegmentIndex, SnapshotReader, SnapshotRecord, StoreError};

use super::{Mode, flip::new_head, head::set_past, inner::Inner, layout::failed};
use crate::bulk::BulkFile;

impl Inner {
    /// Begins to make the alternate if there is none, and if the next flip would take long without it.
    pub(super) fn prepare_alternate(self: &Arc<Self>) {
        let head = fs::metadata(&self.origin).map_or(0, |head| head.blocks() * 512);
        let free = self.free().unwrap_or(0);
        let wanted = self.header.mode == Mode::Layered
            && self.prepares.is_some_and(|least| head >= least)
            && free / 2 > head
            && !self.alternate_path().exists();
        if !wanted || self.preparing.swap(true, Ordering::AcqRel) {
            return;
        }
        let inner = Arc::downgrade(self);
        thread::spawn(move || {
            let result = prepare(&inner);
            let Some(inner) = inner.upgrade() else { return };
            inner.preparing.store(false, Ordering::Release);
            if let Err(error) = result {
                tracing::warn!(%error, "the next flip will have to copy the whole volume");
                let _ = fs::remove_file(inner.next_path());
            }
        });
    }

    /// The alternate while it is being made.
    pub(super) fn next_path(&self) -> PathBuf {
        self.beside("next")
    }

    fn begin_next(&self) -> Result<Option<Begun>, StoreError> {
        let Some(shown) = self.shown()? else { return Ok(None) };
        let record = self.kept(shown.number)?.record;
        let path = self.next_path();
        let file = new_head(&path)?;
        file.set_len(record.size).map_err(failed("resizing", &path))?;
        Ok(Some((file, record, self.reader(shown.number)?)))
    }

    /// Makes the finished copy the alternate, if that is still what is wanted.
    fn finish_next(&self, file: File, record: &SnapshotRecord) -> Result<(), StoreError> {
        let path = self.next_path();
        file.sync_data().map_err(failed("syncing", &path))?;
        let stamp = set_past(&file, &path, record)?;
        file.sync_all().map_err(failed("syncing", &path))?;
        // A flip does not take an alternate that anybody has open.
        drop(file);
        let _control = self.control()?;
        let there = self.kept(record.number()).is_ok_and(|kept| kept.record.guid() == record.guid());
        if !there || self.alternate_path().exists() {
            return fs::remove_file(&path).map_err(failed("removing", &path));
        }
        self.adopt_alternate(&path, self.showing(record, stamp))
    }
}

/// The new file, and what goes into it.
type Begun = (File, SnapshotRecord, Arc<dyn SnapshotReader>);

/// Copies what the origin shows, a segment at a time. The store may be closed in between: then it is given up.
fn prepare(inner: &Weak<Inner>) -> Result<(), StoreError> {
    let begun = inner.upgrade().map(|inner| inner.begin_next()).transpose()?.flatten();
    let Some((file, record, reader)) = begun else { return Ok(()) };
    let mut bulk = None;
    for segment in (0..SegmentIndex::count(record.size)).map(SegmentIndex) {
        let Some(inner) = inner.upgrade() else { return Ok(()) };
        let path = inner.next_path();
        if bulk.is_none() {
            bulk = Some(BulkFile::new(file.try_clone().map_err(failed("opening", &path))?, &path));
        }
        let file = bulk.as_ref().expect("just set");
        let changes = inner.changes(None, record.number(), segment.range(record.size))?;
        super::flip::write_changes(&changes, &*reader, file, &path)?;
    }
    drop(bulk);
    inner.upgrade().map_or(Ok(()), |inner| inner.finish_next(file, &record))
}
