//! Receiving a snapshot: what both modes have in common.

use std::{
    collections::BTreeSet,
    fmt::Debug,
    fs::{self, File, OpenOptions, Permissions},
    ops::Range,
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use serde::{Deserialize, Serialize};
use zumastor_core::{
    SegmentIndex, SnapshotReader, SnapshotRecord, StagePlan, Staging, StoreError,
    digest::{Digest, LeafTree},
    files,
};

use super::{
    Mode,
    inner::{Inner, RecordFile},
    layered::{Descriptor, LayerBody},
    layout::{Described, failed, sync_dir},
    reader::{check_bounds, read_exact},
    reflink::{clone, finish_image, new_file},
    runs::Runs,
};

/// The file `staging/plan`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PlanFile {
    pub plan: StagePlan,
    /// In layered mode, the layer that it becomes, whose data file it fills.
    pub layer: Option<u64>,
    /// In layered mode, the base's layer. It stays as long as this does, even if the base is deleted.
    pub parent: Option<u64>,
}

impl Described for PlanFile {
    const MAGIC: &'static [u8; 8] = b"ZUMAPLN\x01";
}

/// The file `staging/progress`. Everything that it names was durable before it was written.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Progress {
    finished: BTreeSet<SegmentIndex>,
    /// In layered mode, the leaves that the layer has.
    runs: Runs,
}

impl Described for Progress {
    const MAGIC: &'static [u8; 8] = b"ZUMAPRG\x01";
}

/// What is being received, as the store knows it whether somebody is at it or not.
#[derive(Debug, Clone)]
pub(crate) struct Staged {
    pub plan: PlanFile,
}

/// Where the bytes of a staging go. Calls for different segments may run on different threads.
pub(crate) trait Body: Debug + Send + Sync {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError>;
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), StoreError>;
    fn zero(&self, range: Range<u64>) -> Result<(), StoreError>;
    fn sync(&self) -> Result<(), StoreError>;
    /// The leaves that are here and not in the base; nothing where the file system keeps account.
    fn runs(&self) -> Runs;
}

impl Staged {
    /// Finds what an earlier run left. What cannot be used is thrown away: it was not visible to anybody.
    pub(crate) fn load(inner: &Inner) -> Result<Option<Self>, StoreError> {
        let dir = inner.layout.staging();
        if !dir.exists() {
            return Ok(None);
        }
        match Self::check(inner, &dir) {
            Ok(staged) => Ok(Some(staged)),
            Err(error) => {
                tracing::warn!(%error, "what was being received cannot be taken up again and is discarded");
                inner.layout.bury(&dir, "staging")?;
                inner.layout.empty_grave("staging");
                Ok(None)
            }
        }
    }

    fn check(inner: &Inner, dir: &Path) -> Result<Self, StoreError> {
        let damaged = |what: &str| StoreError::Damaged { path: dir.to_owned(), what: what.to_owned() };
        let plan = PlanFile::load(&dir.join("plan"))?.ok_or_else(|| damaged("the plan is missing"))?;
        let size = plan.plan.record.size;
        Progress::load(&dir.join("progress"))?.ok_or_else(|| damaged("the progress is missing"))?;
        if LeafTree::open(&dir.join("leaves"))?.size() != size {
            return Err(damaged("the leaf tree has another size"));
        }
        let body = plan.layer.map_or_else(|| dir.join("image"), |layer| inner.layout.data(layer));
        if fs::metadata(&body).map_err(failed("looking at", &body))?.len() != size {
            return Err(damaged("the data have another size"));
        }
        if plan.parent.is_some_and(|parent| !inner.layout.layer(parent).exists()) {
            return Err(damaged("the layer of the base is missing"));
        }
        Ok(Self { plan })
    }
}

impl Inner {
    pub(crate) fn stage(self: &Arc<Self>, plan: StagePlan) -> Result<FileStaging, StoreError> {
        let number = plan.record.number();
        let known = |state: &super::inner::State| state.staged.as_ref().is_some_and(|s| s.plan.plan == plan);
        // Computing the base's tree may take long, and must not keep others from the store.
        let fresh = !known(&self.state());
        let base = plan.base.filter(|_| fresh).map(|base| self.leaves(base)).transpose()?;
        let _control = self.control()?;
        let staged = {
            let state = self.state();
            if state.snapshots.contains_key(&number) {
                return Err(StoreError::Exists { number });
            }
            state.staged.clone()
        };
        let staging = match staged {
            Some(staged) if staged.plan.plan == plan => self.take_up(staged.plan)?,
            Some(staged) => return Err(StoreError::StagingBusy { number: staged.plan.plan.record.number() }),
            None => self.begin_staging(plan, base.as_deref())?,
        };
        let mut state = self.state();
        state.staged = Some(Staged { plan: staging.plan.clone() });
        state.staging_generation += 1;
        let generation = state.staging_generation;
        drop(state);
        Ok(FileStaging { generation, ..staging })
    }

    fn begin_staging(
        self: &Arc<Self>,
        plan: StagePlan,
        base: Option<&LeafTree>,
    ) -> Result<FileStaging, StoreError> {
        let dir = self.layout.fresh("staging")?;
        let (layer, parent) = match self.header.mode {
            Mode::Reflink => (None, None),
            Mode::Layered => {
                let parent = plan.base.map(|base| self.kept(base)).transpose()?.and_then(|kept| kept.layer);
                (Some(self.state().layers.allocate()), parent)
            }
        };
        let plan = PlanFile { plan, layer, parent };
        let begun = self.fill_staging(&dir, &plan, base);
        if begun.is_err() && !self.faults.stopped() {
            let _ = fs::remove_dir_all(&dir);
            let _ = layer.map(|layer| fs::remove_file(self.layout.data(layer)));
        }
        begun?;
        self.take_up(plan)
    }

    fn fill_staging(&self, dir: &Path, plan: &PlanFile, base: Option<&LeafTree>) -> Result<(), StoreError> {
        let size = plan.plan.record.size;
        let body: Box<dyn Body> = match plan.layer {
            Some(layer) => {
                let path = self.layout.data(layer);
                let data = new_file(&path)?;
                data.set_len(size).map_err(failed("resizing", &path))?;
                let base = plan.parent.map(|parent| self.layer_chain(parent)).transpose()?;
                Box::new(LayerBody::new(data, path, size, base, None)?)
            }
            None => {
                let path = dir.join("image");
                let file = new_file(&path)?;
                if let Some(base) = plan.plan.base {
                    clone(self.image(base)?.file(), &file, &path)?;
                }
                file.set_len(size).map_err(failed("resizing", &path))?;
                Box::new(ImageBody { file, path, size })
            }
        };
        self.faults.at("stage: after cloning")?;
        let path = dir.join("leaves");
        let leaves = match base {
            Some(base) => {
                let leaves = base.copy(&path, size)?;
                leaves.rehash_end(base.size(), &StagedReader { body: &*body, size })?;
                leaves
            }
            None => LeafTree::create(&path, size)?,
        };
        body.sync()?;
        leaves.sync()?;
        Progress { finished: BTreeSet::new(), runs: body.runs() }.write_new(&dir.join("progress"))?;
        plan.write_new(&dir.join("plan"))?;
        sync_dir(dir)?;
        sync_dir(&self.layout.data_dir())?;
        let place = self.layout.staging();
        self.faults.at("stage: before rename")?;
        fs::rename(dir, &place).map_err(failed("making", &place))?;
        self.faults.at("stage: after rename")?;
        sync_dir(self.layout.root())
    }

    /// Opens what is staged.
    fn take_up(self: &Arc<Self>, plan: PlanFile) -> Result<FileStaging, StoreError> {
        let dir = self.layout.staging();
        let damaged = |what: &str| StoreError::Damaged { path: dir.clone(), what: what.to_owned() };
        let size = plan.plan.record.size;
        let progress =
            Progress::load(&dir.join("progress"))?.ok_or_else(|| damaged("the progress is missing"))?;
        let path = dir.join("leaves");
        let mut leaves = LeafTree::open(&path)?;
        if leaves.digest().is_some() {
            // Sealed by a commit that did not come to its end.
            let copy = dir.join("leaves.new");
            leaves.copy(&copy, size)?.sync()?;
            fs::rename(&copy, &path).map_err(failed("making", &path))?;
            sync_dir(&dir)?;
            leaves = LeafTree::open(&path)?;
        }
        let open = |path: &Path| {
            let file = OpenOptions::new().read(true).write(true).open(path);
            file.map_err(failed("opening", path))
        };
        let body: Box<dyn Body> = match plan.layer {
            Some(layer) => {
                let path = self.layout.data(layer);
                let base = plan.parent.map(|parent| self.layer_chain(parent)).transpose()?;
                Box::new(LayerBody::new(open(&path)?, path, size, base, Some(&progress.runs))?)
            }
            None => {
                let path = dir.join("image");
                fs::set_permissions(&path, Permissions::from_mode(0o600))
                    .map_err(failed("opening", &path))?;
                Box::new(ImageBody { file: open(&path)?, path, size })
            }
        };
        Ok(FileStaging {
            inner: self.clone(),
            generation: 0,
            plan,
            leaves,
            body,
            finished: Mutex::new(progress.finished),
            failed: AtomicBool::new(false),
        })
    }

    pub(crate) fn discard_staged(&self) -> Result<(), StoreError> {
        let _control = self.control()?;
        let Some(staged) = self.state().staged.clone() else { return Ok(()) };
        self.faults.at("discard: before rename")?;
        self.or_broken(self.layout.bury(&self.layout.staging(), "staging"))?;
        {
            let mut state = self.state();
            state.staged = None;
            state.staging_generation += 1;
        }
        self.faults.at("discard: after rename")?;
        self.layout.empty_grave("staging");
        if let Some(layer) = staged.plan.layer {
            self.remove_data(layer);
        }
        self.tidy_layers()
    }
}

/// A snapshot that is being received into a file store.
#[derive(Debug)]
pub(crate) struct FileStaging {
    inner: Arc<Inner>,
    /// Who took it up last may go on; whoever did earlier may not.
    generation: u64,
    plan: PlanFile,
    leaves: LeafTree,
    body: Box<dyn Body>,
    finished: Mutex<BTreeSet<SegmentIndex>>,
    /// Set by a failed write or sync. What the disk has is then unknown, so nothing more is recorded as finished.
    failed: AtomicBool,
}

impl FileStaging {
    fn check_range(&self, start: u64, length: u64) -> Result<(), StoreError> {
        check_bounds(start, length, self.plan.plan.record.size)
    }

    fn noting<T>(&self, done: Result<T, StoreError>) -> Result<T, StoreError> {
        if done.is_err() {
            self.failed.store(true, Ordering::Relaxed);
        }
        done
    }

    fn check_current(&self) -> Result<(), StoreError> {
        if self.inner.state().staging_generation == self.generation {
            return Ok(());
        }
        Err(StoreError::Unsupported("what was being received was discarded or is received by another".into()))
    }

    fn save(&self, finished: &[SegmentIndex]) -> Result<(), StoreError> {
        let mut all = self.finished.lock().expect("no panic while locked");
        if self.failed.load(Ordering::Relaxed) {
            return Err(StoreError::Unsupported(
                "an earlier write failed, so what is staged must be opened again".into(),
            ));
        }
        // Before the sync: a leaf that is written after it is not yet durable, and must not be named.
        let runs = self.body.runs();
        self.inner.faults.at("checkpoint: before sync")?;
        self.noting(self.body.sync().and_then(|()| self.leaves.sync()))?;
        self.inner.faults.at("checkpoint: after sync")?;
        let mut progress = Progress { finished: all.clone(), runs };
        progress.finished.extend(finished);
        let _control = self.inner.control()?;
        self.check_current()?;
        self.noting(progress.replace(&self.inner.layout.staging().join("progress")))?;
        self.inner.faults.at("checkpoint: after record")?;
        *all = progress.finished;
        Ok(())
    }

    /// Turns what is staged into the snapshot. Everything is durable and checked.
    fn publish(&self, tree: &LeafTree, record: &SnapshotRecord) -> Result<(), StoreError> {
        let Self { inner, plan, .. } = self;
        let _control = inner.control()?;
        self.check_current()?;
        let number = record.number();
        if inner.state().snapshots.contains_key(&number) {
            return Err(StoreError::Exists { number });
        }
        debug_assert_eq!(tree.digest(), record.digest);
        let dir = inner.layout.staging();
        let layer = plan.layer.map(|id| {
            let descriptor =
                Descriptor { parent: plan.parent, data: id, size: record.size, runs: self.body.runs() };
            (id, descriptor)
        });
        inner.faults.at("commit: before the descriptor")?;
        match &layer {
            Some((id, descriptor)) => descriptor.replace(&inner.layout.layer(*id))?,
            None => {
                let path = dir.join("image");
                let image = File::open(&path).map_err(failed("opening", &path))?;
                finish_image(&image, &path)?;
            }
        }
        inner.faults.at("commit: after the descriptor")?;
        let file = RecordFile { record: record.clone(), layer: plan.layer };
        file.write_new(&dir.join("record"))?;
        sync_dir(&dir)?;
        inner.publish(&dir, record.clone(), layer)?;
        {
            let mut state = inner.state();
            state.staged = None;
            state.staging_generation += 1;
        }
        inner.faults.at("commit: before tidying")?;
        for name in ["plan", "progress"] {
            let _ = fs::remove_file(inner.layout.snapshot(number).join(name));
        }
        inner.tidy_layers()
    }
}

impl Staging for FileStaging {
    fn plan(&self) -> &StagePlan {
        &self.plan.plan
    }

    fn finished(&self) -> Vec<SegmentIndex> {
        self.finished.lock().expect("no panic while locked").iter().copied().collect()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        self.check_range(offset, buf.len() as u64)?;
        self.body.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        self.check_range(offset, data.len() as u64)?;
        self.noting(self.body.write_at(offset, data))
    }

    fn zero(&self, range: Range<u64>) -> Result<(), StoreError> {
        self.check_range(range.start, range.end.saturating_sub(range.start))?;
        self.noting(self.body.zero(range))
    }

    fn leaves(&self) -> &LeafTree {
        &self.leaves
    }

    fn checkpoint(&self, finished: &[SegmentIndex]) -> Result<(), StoreError> {
        self.save(finished)
    }

    fn commit(self: Box<Self>, digest: Digest) -> Result<SnapshotRecord, StoreError> {
        self.save(&[])?;
        let found = self.leaves.root()?;
        let record = SnapshotRecord { digest: Some(digest), ..self.plan.plan.record.clone() };
        if found != digest {
            return Err(StoreError::DigestMismatch { number: record.number(), expected: digest, found });
        }
        self.inner.faults.at("commit: before sealing")?;
        let unsealed = LeafTree::open(&self.inner.layout.staging().join("leaves"))?;
        let sealed = unsealed.seal()?;
        self.publish(&sealed, &record)?;
        Ok(record)
    }
}

/// An image of its own that is written in place.
#[derive(Debug)]
struct ImageBody {
    file: File,
    path: PathBuf,
    size: u64,
}

impl Body for ImageBody {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        read_exact(&self.file, &self.path, offset, buf)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        self.file.write_all_at(data, offset).map_err(failed("writing", &self.path))
    }

    fn zero(&self, range: Range<u64>) -> Result<(), StoreError> {
        // To the end of the last block, so that it is given back too.
        let end = if range.end == self.size { range.end.next_multiple_of(4096) } else { range.end };
        files::punch_hole(&self.file, range.start..end.max(range.start))
            .map_err(failed("writing", &self.path))
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.file.sync_data().map_err(failed("syncing", &self.path))
    }

    fn runs(&self) -> Runs {
        Runs::default()
    }
}

/// Reads what is staged.
#[derive(Debug)]
struct StagedReader<'a> {
    body: &'a dyn Body,
    size: u64,
}

impl SnapshotReader for StagedReader<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        check_bounds(offset, buf.len() as u64, self.size)?;
        self.body.read_at(offset, buf)
    }
}
