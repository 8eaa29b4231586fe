//! Opening, and what the volume consists of.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use zumastor_core::{
    Geometry, NewSnapshot, SnapshotNumber, SnapshotReader, SnapshotRecord, StoreError, Usage,
    digest::LeafTree,
};

use super::{
    catalogue::{Catalogue, Kept},
    changes::KnownDeltas,
    pool::{Access, Gone, Pool, Slot, ThinId, would_wait},
    reader::DeviceReader,
    staging,
};
use crate::{Faults, described::failed};

/// An open store.
#[derive(Debug)]
pub(crate) struct Inner {
    pub pool: Box<dyn Pool>,
    pub faults: Faults,
    /// Where the leaf trees are, and what of a transfer is not in the pool. All of it can be made again.
    pub notes: PathBuf,
    /// Held by whoever changes the volume, from beginning to end.
    control: Mutex<()>,
    /// Held while leaf trees are computed, so that two who ask do not both compute.
    pub computing: Mutex<()>,
    pub known: KnownDeltas,
    /// Counts whoever took up the staging: only the last one may go on.
    pub staging_generation: AtomicU64,
    /// What the volume consists of. Held for moments only, and never while taking `control`.
    state: Mutex<Catalogue>,
    /// Snapshots whose thin device is gone.
    damaged: BTreeMap<SnapshotNumber, String>,
    /// Thin devices that nothing needs, but that somebody has open.
    graves: Mutex<BTreeSet<ThinId>>,
    /// Set when it is unknown what a failed step left behind: opening the store anew finds out.
    broken: AtomicBool,
    closed: AtomicBool,
}

impl Inner {
    /// Opens the store, and brings its devices to what the catalogue says.
    pub(crate) fn open(pool: Box<dyn Pool>, notes: PathBuf, faults: Faults) -> Result<Self, StoreError> {
        let catalogue = pool.load()?;
        let there = pool.thins()?;
        if !there.contains(&catalogue.head.thin) {
            let what = "the thin device of the volume itself is gone from the pool; see thin_check(8)".into();
            return Err(StoreError::Damaged { path: pool.place().to_owned(), what });
        }
        let mut damaged = BTreeMap::new();
        for kept in catalogue.snapshots.iter().filter(|kept| !there.contains(&kept.thin)) {
            let number = kept.record.number();
            let what = format!("the thin device of snapshot {number} is gone from the pool");
            tracing::error!(snapshot = %number, place = %pool.place().display(), what, "a snapshot is damaged");
            damaged.insert(number, what);
        }
        fs::create_dir_all(&notes).map_err(failed("making", &notes))?;
        let unknown: BTreeSet<_> = there.difference(&catalogue.thins()).copied().collect();
        let inner = Self {
            pool,
            faults,
            notes,
            control: Mutex::new(()),
            computing: Mutex::new(()),
            known: KnownDeltas::default(),
            staging_generation: AtomicU64::new(0),
            state: Mutex::new(catalogue),
            damaged,
            graves: Mutex::default(),
            broken: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        };
        inner.begin(unknown)?;
        Ok(inner)
    }

    fn begin(&self, unknown: BTreeSet<ThinId>) -> Result<(), StoreError> {
        let catalogue = self.catalogue();
        let numbers = catalogue.snapshots.iter().map(|kept| kept.record.number());
        let whole: Vec<_> = numbers.filter(|number| !self.damaged.contains_key(number)).collect();
        let staging = catalogue.staged.as_ref().map(|_| Slot::Staging);
        let wanted: Vec<_> = [Slot::Head]
            .into_iter()
            .chain(staging)
            .chain(whole.iter().copied().map(Slot::Snapshot))
            .collect();
        self.pool.sweep(&wanted)?;
        let head = &catalogue.head;
        self.pool.activate(Slot::Head, head.thin, head.size, Access::Writable)?;
        for kept in catalogue.snapshots.iter().filter(|kept| whole.contains(&kept.record.number())) {
            self.activate_snapshot(kept)?;
        }
        self.tidy_notes(&catalogue);
        if self.check_sound().is_err() {
            // Nothing can be changed, but everything read.
            return Ok(());
        }
        if catalogue.staged.is_some() && !staging::notes_are_whole(self, &catalogue) {
            tracing::warn!("what was being received cannot be taken up again and is discarded");
            self.discard_staged()?;
        }
        unknown.into_iter().for_each(|id| self.bury(id));
        let _control = self.control()?;
        self.clear_tail()
    }

    fn activate_snapshot(&self, kept: &Kept) -> Result<PathBuf, StoreError> {
        let slot = Slot::Snapshot(kept.record.number());
        self.pool.activate(slot, kept.thin, kept.record.size, Access::ReadOnly)
    }

    /// A copy of what the volume consists of.
    pub(crate) fn catalogue(&self) -> Catalogue {
        self.state().clone()
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, Catalogue> {
        self.state.lock().expect("no panic while locked")
    }

    /// To be held by whoever changes the volume.
    pub(crate) fn control(&self) -> Result<MutexGuard<'_, ()>, StoreError> {
        let guard = self.control.lock().expect("no panic while locked");
        self.check_open()?;
        self.look_again()?;
        Ok(guard)
    }

    /// Notices what others changed since. To be called with `control` held.
    fn look_again(&self) -> Result<(), StoreError> {
        let known = self.catalogue();
        let found = self.pool.look_again(&known)?;
        if found != known {
            if found.staged.is_none() {
                self.staging_generation.fetch_add(1, Ordering::AcqRel);
            }
            self.replace(found)?;
        }
        Ok(())
    }

    /// The snapshots that there are. Whoever changes the volume at this moment is not waited for.
    pub(crate) fn snapshots(&self) -> Result<Vec<SnapshotRecord>, StoreError> {
        if let Ok(_control) = self.control.try_lock()
            && self.check_open().is_ok()
        {
            self.look_again()?;
        }
        Ok(self.state().snapshots.iter().map(|kept| kept.record.clone()).collect())
    }

    /// Takes note of a thin device that the pool has just made. One with its number that was to be deleted is gone. One that
    /// the volume consists of was removed by others in this moment: it must not be taken for the new one.
    pub(crate) fn made(&self, id: Result<ThinId, StoreError>) -> Result<ThinId, StoreError> {
        let id = id?;
        self.graves.lock().expect("no panic while locked").remove(&id);
        if self.state().thins().contains(&id) {
            self.bury(id);
            return Err(StoreError::Unsupported(format!(
                "thin device {id} on {} was removed by somebody else at this moment: try again",
                self.pool.place().display()
            )));
        }
        Ok(id)
    }

    /// Gives back what was made for a change that failed, unless it is unknown whether it did.
    pub(crate) fn unmake(&self, id: ThinId) {
        if !self.faults.stopped() && !self.broken.load(Ordering::Relaxed) {
            self.bury(id);
        }
    }

    fn check_open(&self) -> Result<(), StoreError> {
        let place = self.pool.place().display();
        if self.closed.load(Ordering::Relaxed) {
            return Err(StoreError::Unsupported(format!("the store on {place} is closed")));
        }
        if self.broken.load(Ordering::Relaxed) {
            return Err(StoreError::Unsupported(format!(
                "the store on {place} failed while it was being changed: restart to open it anew"
            )));
        }
        Ok(())
    }

    /// Replaces what the volume consists of, in one durable step. Where it fails it is unknown whether it did.
    pub(crate) fn replace(&self, new: Catalogue) -> Result<(), StoreError> {
        self.check_sound()?;
        let saved = self.pool.save(&new);
        if saved.as_ref().is_err_and(|error| !would_wait(error)) {
            self.break_off();
        }
        saved?;
        *self.state() = new;
        Ok(())
    }

    /// Marks the store as unusable until it is opened anew.
    pub(crate) fn break_off(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }

    /// For what may fail without harm: reported in the log. A crash of a test is still a crash.
    pub(crate) fn unless_stopped(&self, error: StoreError) -> Result<(), StoreError> {
        if self.faults.stopped() {
            return Err(error);
        }
        tracing::warn!(%error, place = %self.pool.place().display(), "could not tidy up");
        Ok(())
    }

    /// Whether a number is taken.
    pub(crate) fn has(&self, number: SnapshotNumber) -> bool {
        self.state().get(number).is_some()
    }

    pub(crate) fn kept(&self, number: SnapshotNumber) -> Result<Kept, StoreError> {
        if let Some(kept) = self.state().get(number) {
            return match self.damaged.get(&number) {
                Some(what) => {
                    Err(StoreError::Damaged { path: self.pool.place().to_owned(), what: what.clone() })
                }
                None => Ok(kept.clone()),
            };
        }
        Err(StoreError::NotFound { number })
    }

    pub(crate) fn reader(&self, number: SnapshotNumber) -> Result<DeviceReader, StoreError> {
        // A deletion must not come between the activation and the opening.
        let _control = self.control()?;
        let kept = self.kept(number)?;
        DeviceReader::open(self.activate_snapshot(&kept)?, kept.record.size)
    }

    pub(crate) fn create(&self, new: NewSnapshot) -> Result<SnapshotRecord, StoreError> {
        let _control = self.control()?;
        let number = new.number;
        if self.has(number) {
            return Err(StoreError::Exists { number });
        }
        self.admit_snapshot()?;
        self.clear_tail()?;
        self.try_graves();
        let mut catalogue = self.catalogue();
        self.faults.at("snapshot: before")?;
        let thin = self.made(self.pool.clone_head(catalogue.head.thin, number))?;
        let record = SnapshotRecord { new, size: catalogue.head.size, digest: None };
        let done = self.faults.at("snapshot: after cloning").and_then(|()| self.check_sound());
        if let Err(error) = done {
            self.unmake(thin);
            return Err(error);
        }
        let kept = Kept { record: record.clone(), thin };
        catalogue.head.shows = Some(record.guid());
        catalogue.insert(kept.clone());
        self.replace(catalogue)?;
        self.faults.at("snapshot: after saving")?;
        if let Err(error) = self.activate_snapshot(&kept) {
            // It is there; whoever reads it tries again.
            self.unless_stopped(error)?;
        }
        Ok(record)
    }

    pub(crate) fn delete(&self, number: SnapshotNumber) -> Result<(), StoreError> {
        let _control = self.control()?;
        let mut catalogue = self.catalogue();
        let kept = catalogue.remove(number).ok_or(StoreError::NotFound { number })?;
        self.faults.at("delete: before")?;
        self.replace(catalogue)?;
        self.faults.at("delete: after saving")?;
        let _ = fs::remove_file(self.leaves_path(&kept.record));
        if let Err(error) = self.pool.deactivate(Slot::Snapshot(number)) {
            self.unless_stopped(error)?;
        }
        self.faults.at("delete: before freeing")?;
        self.bury(kept.thin);
        self.try_graves();
        Ok(())
    }

    pub(crate) fn set_aside(&self, from: SnapshotNumber, to: SnapshotNumber) -> Result<(), StoreError> {
        let _control = self.control()?;
        if from.is_local() || !to.is_local() {
            return Err(StoreError::Unsupported(format!("snapshot {from} cannot be set aside as {to}")));
        }
        if self.has(to) {
            return Err(StoreError::Exists { number: to });
        }
        self.kept(from)?;
        let mut catalogue = self.catalogue();
        let shows = catalogue.head.shows;
        let mut kept = catalogue.remove(from).ok_or(StoreError::NotFound { number: from })?;
        kept.record.new.number = to;
        catalogue.insert(kept);
        catalogue.head.shows = shows;
        self.faults.at("set aside: before")?;
        self.replace(catalogue)?;
        self.faults.at("set aside: after saving")?;
        self.pool.renumber(from, to).or_else(|error| self.unless_stopped(error))
    }

    /// Gives a thin device back that nothing needs, now or when whoever has it open closes it. What is left after a crash
    /// is found when the store is opened.
    pub(crate) fn bury(&self, id: ThinId) {
        let deleted = self.pool.delete(id);
        if !matches!(deleted, Ok(Gone::Yes)) {
            if let Err(error) = deleted {
                tracing::warn!(%error, thin = %id, "a thin device could not be deleted; it is tried again");
            }
            self.graves.lock().expect("no panic while locked").insert(id);
        }
    }

    fn try_graves(&self) {
        let graves = std::mem::take(&mut *self.graves.lock().expect("no panic while locked"));
        graves.into_iter().for_each(|id| self.bury(id));
    }

    pub(crate) fn geometry(&self) -> Geometry {
        Geometry { size: self.state().head.size, chunk: self.pool.chunk() }
    }

    pub(crate) fn usage(&self) -> Result<Usage, StoreError> {
        let head = self.state().head.thin;
        let mut mapped = 0;
        self.pool.read_metadata(&mut |metadata| {
            let devices = metadata.devices()?;
            let head = devices.iter().find(|device| device.device == head.0);
            mapped = head.map_or(0, |head| head.mapped_blocks);
            Ok(())
        })?;
        let used = self.pool.status()?.data.used.saturating_sub(mapped * self.pool.chunk());
        Ok(Usage { used, free: self.free()? })
    }

    /// Makes sure that the pool did not fail: it answers that all went well even where it could not commit.
    pub(crate) fn check_sound(&self) -> Result<(), StoreError> {
        self.sound(self.pool.status()?.trouble.as_ref())
    }

    pub(crate) fn sound(&self, trouble: Option<&String>) -> Result<(), StoreError> {
        trouble.map_or(Ok(()), |trouble| {
            Err(StoreError::Damaged { path: self.pool.place().to_owned(), what: trouble.clone() })
        })
    }

    /// The sealed or unsealed leaf tree of a snapshot.
    pub(crate) fn leaves_path(&self, record: &SnapshotRecord) -> PathBuf {
        self.notes.join(format!("{}.leaves", record.guid()))
    }

    /// Removes notes about what is not there any more.
    fn tidy_notes(&self, catalogue: &Catalogue) {
        let known = catalogue.snapshots.iter().map(|kept| self.leaves_path(&kept.record));
        let staged = catalogue.staged.iter().map(|staged| self.leaves_path(&staged.plan.record));
        let known: BTreeSet<_> = known.chain(staged).chain([self.progress_path()]).collect();
        let Ok(entries) = fs::read_dir(&self.notes) else { return };
        for path in entries.flatten().map(|entry| entry.path()).filter(|path| !known.contains(path)) {
            let _ = fs::remove_file(path);
        }
    }

    pub(crate) fn device(&self, which: Option<SnapshotNumber>) -> Option<PathBuf> {
        match which {
            None => Some(self.pool.device(Slot::Head)),
            Some(number) => self.has(number).then(|| self.pool.device(Slot::Snapshot(number))),
        }
    }

    pub(crate) fn place(&self) -> &Path {
        self.pool.place()
    }

    /// Removes the devices. Nothing works afterwards.
    pub(crate) fn close(&self) -> Result<(), StoreError> {
        let _control = self.control.lock().expect("no panic while locked");
        if self.closed.swap(true, Ordering::Relaxed) || self.faults.stopped() {
            return Ok(());
        }
        self.try_graves();
        self.pool.close()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(%error, place = %self.place().display(), "could not remove all devices");
        }
    }
}

/// A reader for those who only read.
pub(crate) fn shared(reader: DeviceReader) -> Arc<dyn SnapshotReader> {
    Arc::new(reader)
}

/// The tree at `path`, if it is whole, sealed, and of this size. One that is damaged counts as none: the content is what it is
/// made of.
pub(crate) fn sealed_tree(path: &Path, size: u64) -> Result<Option<LeafTree>, StoreError> {
    match LeafTree::open(path) {
        Ok(tree) if tree.size() == size && tree.digest().is_some() => Ok(Some(tree)),
        Ok(_) | Err(StoreError::Damaged { .. }) => Ok(None),
        Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
