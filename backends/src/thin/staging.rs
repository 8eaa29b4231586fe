//! Receiving a snapshot into a thin clone of its base.

use std::{
    cmp,
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io, iter,
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use serde::{Deserialize, Serialize};
use zumastor_core::{
    SegmentIndex, SnapshotGuid, SnapshotReader, SnapshotRecord, StagePlan, Staging, StoreError,
    digest::{Digest, LeafTree, SegmentLeaves},
};

use super::{
    catalogue::{Catalogue, Kept, Staged},
    head::{SECTOR, clear},
    inner::Inner,
    pool::{Access, Slot, ThinId},
    zero::{Zeroed, make_zero},
};
use crate::{
    bulk::BulkFile,
    described::{Described, failed},
    reading::{check_bounds, read_exact, reading},
};

/// The file `progress` among the notes. Everything that it names was durable before it was written.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Progress {
    guid: SnapshotGuid,
    finished: BTreeSet<SegmentIndex>,
}

impl Described for Progress {
    const MAGIC: &'static [u8; 8] = b"ZUMATPR\x01";
}

/// Whether all that is needed to take up what is staged is there, beside what the pool has.
pub(crate) fn notes_are_whole(inner: &Inner, catalogue: &Catalogue) -> bool {
    let Some(staged) = &catalogue.staged else { return true };
    let record = &staged.plan.record;
    let tree = LeafTree::open(&inner.leaves_path(record)).is_ok_and(|tree| tree.size() == record.size);
    tree && matches!(Progress::load(&inner.progress_path()), Ok(Some(found)) if found.guid == record.guid())
}

impl Inner {
    pub(crate) fn progress_path(&self) -> PathBuf {
        self.notes.join("progress")
    }

    pub(crate) fn stage(self: &Arc<Self>, plan: StagePlan) -> Result<ThinStaging, StoreError> {
        let number = plan.record.number();
        let fresh = self.state().staged.as_ref().is_none_or(|staged| staged.plan != plan);
        // Computing the base's tree may take long, and must not keep others from the store.
        let base = plan.base.filter(|_| fresh).map(|base| self.leaves(base)).transpose()?;
        let _control = self.control()?;
        if self.has(number) {
            return Err(StoreError::Exists { number });
        }
        let staged = self.state().staged.clone();
        match staged {
            Some(staged) if staged.plan == plan => {
                // It may be what a newer copy knows as a snapshot.
                self.check_sound()?;
                self.take_up(staged)
            }
            Some(staged) => Err(StoreError::StagingBusy { number: staged.plan.record.number() }),
            None => {
                self.admit("receiving a snapshot")?;
                let staged = self.begin_staging(plan, base.as_deref())?;
                self.take_up(staged)
            }
        }
    }

    fn begin_staging(&self, plan: StagePlan, base: Option<&LeafTree>) -> Result<Staged, StoreError> {
        let size = plan.record.size;
        let kept = plan.base.map(|base| self.kept(base)).transpose()?;
        let thin = match &kept {
            Some(base) => self.pool.clone_of(base.thin, Slot::Staging, size),
            None => self.pool.create(Slot::Staging, size),
        };
        let thin = self.made(thin)?;
        let filled = self.faults.at("stage: after cloning").and_then(|()| {
            let before = kept.as_ref().map_or(size, |base| base.record.size);
            self.fit(thin, before, size)?;
            self.note_staging(&plan, thin, base)
        });
        let staged = Staged { plan, thin };
        let saved = filled.and_then(|()| {
            let mut catalogue = self.catalogue();
            catalogue.staged = Some(staged.clone());
            self.faults.at("stage: before saving")?;
            self.replace(catalogue)?;
            self.faults.at("stage: after saving")
        });
        if let Err(error) = saved {
            if self.state().staged.is_none() && !self.faults.stopped() {
                let _ = self.pool.deactivate(Slot::Staging);
                self.unmake(thin);
            }
            return Err(error);
        }
        Ok(staged)
    }

    /// Makes zero what a clone of another size has beyond the end of the smaller one. A base that others made smaller is still
    /// mapped to what it had there.
    fn fit(&self, thin: ThinId, before: u64, size: u64) -> Result<(), StoreError> {
        let (old, new) = (before.next_multiple_of(SECTOR), size.next_multiple_of(SECTOR));
        let edge = before.min(size);
        let stale = match old.cmp(&new) {
            cmp::Ordering::Less => self.mapped(thin, old..new)?,
            cmp::Ordering::Equal => Vec::new(),
            cmp::Ordering::Greater => iter::once(new..old).collect(),
        };
        if !stale.is_empty() {
            let path = self.pool.activate(Slot::Scratch, thin, before.max(size), Access::Writable)?;
            let chunk = self.pool.chunk();
            let cleared = stale.into_iter().try_for_each(|range| {
                clear(&path, range, chunk)?;
                self.faults.at("stage: while clearing")
            });
            if !self.faults.stopped() {
                self.pool.deactivate(Slot::Scratch)?;
            }
            cleared?;
        }
        if before == size || edge.is_multiple_of(SECTOR) {
            return Ok(());
        }
        let path = self.pool.activate(Slot::Scratch, thin, before.max(size), Access::Writable)?;
        let device = open(&path)?;
        let zeros = vec![0; (edge.next_multiple_of(SECTOR) - edge) as usize];
        let written = device.write_all_at(&zeros, edge).and_then(|()| device.file().sync_data());
        drop(device);
        self.pool.deactivate(Slot::Scratch)?;
        written.map_err(failed("writing", &path))
    }

    fn note_staging(
        &self,
        plan: &StagePlan,
        thin: ThinId,
        base: Option<&LeafTree>,
    ) -> Result<(), StoreError> {
        let (record, size) = (&plan.record, plan.record.size);
        let path = self.leaves_path(record);
        let leaves = match base {
            Some(base) => {
                let leaves = base.copy(&path, size)?;
                let device = self.pool.activate(Slot::Staging, thin, size, Access::Writable)?;
                let reader = Reader { device: open(&device)?, path: device, size };
                leaves.rehash_end(base.size(), &reader)?;
                leaves
            }
            None => LeafTree::create(&path, size)?,
        };
        leaves.sync()?;
        Progress { guid: record.guid(), finished: BTreeSet::new() }.replace(&self.progress_path())
    }

    fn take_up(self: &Arc<Self>, staged: Staged) -> Result<ThinStaging, StoreError> {
        let record = &staged.plan.record;
        let path = self.leaves_path(record);
        let mut leaves = LeafTree::open(&path)?;
        if leaves.digest().is_some() {
            // Sealed by a commit that did not come to its end.
            let copy = self.notes.join("leaves.new");
            leaves.copy(&copy, record.size)?.sync()?;
            fs::rename(&copy, &path).map_err(failed("making", &path))?;
            leaves = LeafTree::open(&path)?;
        }
        let progress = Progress::load(&self.progress_path())?.filter(|found| found.guid == record.guid());
        let progress = progress.ok_or_else(|| StoreError::Damaged {
            path: self.progress_path(),
            what: "it belongs to another transfer: discard what is being received".into(),
        })?;
        let path = self.pool.activate(Slot::Staging, staged.thin, record.size, Access::Writable)?;
        Ok(ThinStaging {
            inner: self.clone(),
            generation: self.staging_generation.fetch_add(1, Ordering::AcqRel) + 1,
            device: Device { device: open(&path)?, path },
            staged,
            leaves,
            finished: Mutex::new(progress.finished),
            written: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            full: AtomicBool::new(false),
        })
    }

    pub(crate) fn discard_staged(&self) -> Result<(), StoreError> {
        let _control = self.control()?;
        let mut catalogue = self.catalogue();
        let Some(staged) = catalogue.staged.take() else { return Ok(()) };
        self.faults.at("discard: before saving")?;
        self.replace(catalogue)?;
        self.staging_generation.fetch_add(1, Ordering::AcqRel);
        self.faults.at("discard: after saving")?;
        for path in [self.leaves_path(&staged.plan.record), self.progress_path()] {
            let _ = fs::remove_file(path);
        }
        if let Err(error) = self.pool.deactivate(Slot::Staging) {
            self.unless_stopped(error)?;
        }
        self.bury(staged.thin);
        Ok(())
    }
}

/// A snapshot that is being received into a thin device.
#[derive(Debug)]
pub(crate) struct ThinStaging {
    inner: Arc<Inner>,
    /// Who took it up last may go on; whoever did earlier may not.
    generation: u64,
    staged: Staged,
    leaves: LeafTree,
    device: Device,
    finished: Mutex<BTreeSet<SegmentIndex>>,
    /// Bytes written since it was last looked whether the pool has room.
    written: AtomicU64,
    /// Set by a failed write or sync. What the disk has is then unknown, so nothing more is recorded as finished.
    failed: AtomicBool,
    /// Whether that was for want of space.
    full: AtomicBool,
}

#[derive(Debug)]
struct Device {
    device: BulkFile,
    path: PathBuf,
}

impl Zeroed for Device {
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.device.read_exact_at(buf, offset)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.device.write_all_at(data, offset)
    }

    fn device(&self) -> &File {
        self.device.file()
    }
}

fn open(path: &Path) -> Result<BulkFile, StoreError> {
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed("opening", path))?;
    Ok(BulkFile::new(file, path))
}

#[derive(Debug)]
struct Reader {
    device: BulkFile,
    path: PathBuf,
    size: u64,
}

impl SnapshotReader for Reader {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        check_bounds(offset, buf.len() as u64, self.size)?;
        read_exact(self.device.file(), &self.path, offset, buf)
    }
}

/// Bytes after which it is looked whether the pool still has room for the head.
const LOOK: u64 = 64 << 20;

impl ThinStaging {
    fn record(&self) -> &SnapshotRecord {
        &self.staged.plan.record
    }

    fn check_range(&self, start: u64, length: u64) -> Result<(), StoreError> {
        check_bounds(start, length, self.record().size)
    }

    fn check_current(&self) -> Result<(), StoreError> {
        if self.inner.staging_generation.load(Ordering::Acquire) == self.generation {
            return Ok(());
        }
        Err(StoreError::Unsupported("what was being received was discarded or is received by another".into()))
    }

    fn noting<T>(&self, done: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(error) = &done {
            self.full.fetch_or(matches!(error, StoreError::NoSpace { .. }), Ordering::Relaxed);
            self.failed.store(true, Ordering::Relaxed);
        }
        done
    }

    /// Stops before what comes in takes the room of the head.
    fn make_sure_of_room(&self, bytes: u64) -> Result<(), StoreError> {
        if self.written.fetch_add(bytes, Ordering::Relaxed) + bytes < LOOK {
            return Ok(());
        }
        self.written.store(0, Ordering::Relaxed);
        self.inner.admit(&format!("receiving snapshot {}", self.record().number()))
    }

    fn save(
        &self,
        leaves: &[(SegmentIndex, SegmentLeaves)],
        finished: &[SegmentIndex],
    ) -> Result<(), StoreError> {
        let mut all = self.finished.lock().expect("no panic while locked");
        if self.failed.load(Ordering::Relaxed) {
            let what = format!("receiving snapshot {}: an earlier write failed", self.record().number());
            return Err(match self.full.load(Ordering::Relaxed) {
                true => StoreError::NoSpace { what },
                false => StoreError::Io { what, source: io::Error::other("to be taken up again") },
            });
        }
        let faults = &self.inner.faults;
        faults.at("checkpoint: before sync")?;
        // The tree vouches for data, so it comes after them. The kernel commits the pool's metadata with this.
        let path = &self.device.path;
        self.noting(self.device.device.file().sync_data().map_err(failed("syncing", path)))?;
        self.noting(self.inner.check_sound())?;
        faults.at("checkpoint: after sync")?;
        let _control = self.inner.control()?;
        self.check_current()?;
        faults.at("checkpoint: before the leaves")?;
        let enter = || -> Result<(), StoreError> {
            leaves.iter().try_for_each(|(segment, leaves)| self.leaves.set_segment(*segment, leaves))?;
            self.leaves.sync()
        };
        self.noting(enter())?;
        faults.at("checkpoint: after the leaves")?;
        let mut progress = Progress { guid: self.record().guid(), finished: all.clone() };
        progress.finished.extend(finished);
        self.noting(progress.replace(&self.inner.progress_path()))?;
        faults.at("checkpoint: after record")?;
        *all = progress.finished;
        Ok(())
    }
}

impl Staging for ThinStaging {
    fn plan(&self) -> &StagePlan {
        &self.staged.plan
    }

    fn finished(&self) -> Vec<SegmentIndex> {
        self.finished.lock().expect("no panic while locked").iter().copied().collect()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        self.check_range(offset, buf.len() as u64)?;
        read_exact(self.device.device.file(), &self.device.path, offset, buf)
    }

    fn read_back(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        self.check_range(offset, buf.len() as u64)?;
        self.check_current()?;
        let Device { device, path } = &self.device;
        device.read_exact_at(buf, offset).map_err(|error| reading(error, path, offset, buf.len()))
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        self.check_range(offset, data.len() as u64)?;
        self.check_current()?;
        self.noting(self.make_sure_of_room(data.len() as u64))?;
        let written = self.device.device.write_all_at(data, offset);
        self.noting(written.map_err(failed("writing", &self.device.path)))
    }

    fn zero(&self, range: Range<u64>) -> Result<(), StoreError> {
        self.check_range(range.start, range.end.saturating_sub(range.start))?;
        self.check_current()?;
        // To the end of the last sector, so that whole chunks are.
        let end =
            if range.end == self.record().size { range.end.next_multiple_of(SECTOR) } else { range.end };
        let done = make_zero(&self.device, range.start..end, self.inner.pool.chunk());
        self.noting(done.map_err(failed("writing", &self.device.path)))
    }

    fn leaves(&self) -> &LeafTree {
        &self.leaves
    }

    fn checkpoint(
        &self,
        leaves: &[(SegmentIndex, SegmentLeaves)],
        finished: &[SegmentIndex],
    ) -> Result<(), StoreError> {
        self.save(leaves, finished)
    }

    fn commit(self: Box<Self>, digest: Digest) -> Result<SnapshotRecord, StoreError> {
        self.save(&[], &[])?;
        let found = self.leaves.root()?;
        let record = SnapshotRecord { digest: Some(digest), ..self.record().clone() };
        let number = record.number();
        if found != digest {
            return Err(StoreError::DigestMismatch { number, expected: digest, found });
        }
        let Self { inner, generation, staged, leaves, device, .. } = *self;
        inner.faults.at("commit: before sealing")?;
        leaves.seal()?;
        drop(device);
        let _control = inner.control()?;
        if inner.staging_generation.load(Ordering::Acquire) != generation {
            return Err(StoreError::Unsupported(
                "what was being received was discarded or is received by another".into(),
            ));
        }
        if inner.has(number) {
            return Err(StoreError::Exists { number });
        }
        inner.check_sound()?;
        let mut catalogue = inner.catalogue();
        catalogue.staged = None;
        catalogue.insert(Kept { record: record.clone(), thin: staged.thin });
        inner.faults.at("commit: before saving")?;
        inner.replace(catalogue)?;
        inner.staging_generation.fetch_add(1, Ordering::AcqRel);
        inner.faults.at("commit: after saving")?;
        let _ = fs::remove_file(inner.progress_path());
        let shown = inner.pool.deactivate(Slot::Staging).and_then(|_| {
            inner.pool.activate(Slot::Snapshot(number), staged.thin, record.size, Access::ReadOnly)
        });
        if let Err(error) = shown {
            inner.unless_stopped(error)?;
        }
        Ok(record)
    }
}
