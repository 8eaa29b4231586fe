//! Receiving a snapshot: what both modes have in common.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    ops::Range,
    path::Path,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use serde::{Deserialize, Serialize};
use zumastor_core::{
    SegmentIndex, SnapshotRecord, StagePlan, Staging, StoreError,
    digest::{Digest, LeafTree, SegmentLeaves},
};

use super::{
    body::Body,
    draft::Draft,
    inner::{Inner, RecordFile},
    layered::Descriptor,
    layout::{Described, failed, sync_together},
    reader::check_bounds,
    reflink::protect_image,
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
pub(crate) struct Progress {
    pub finished: BTreeSet<SegmentIndex>,
    /// In layered mode, the leaves that the layer has.
    pub runs: Runs,
}

impl Described for Progress {
    const MAGIC: &'static [u8; 8] = b"ZUMAPRG\x01";
}

/// What is being received, as the store knows it whether somebody is at it or not.
#[derive(Debug, Clone)]
pub(crate) struct Staged {
    pub plan: PlanFile,
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
    /// The next head, written along; none if it is not worth it, or could not be begun.
    draft: OnceLock<Option<Draft>>,
    /// Whether there is, or may be, what a checkpoint has not made durable.
    unsaved: AtomicBool,
    /// Set by a failed write or sync. What the disk has is then unknown, so nothing more is recorded as finished.
    failed: AtomicBool,
    /// Whether that was for want of space.
    full: AtomicBool,
}

impl FileStaging {
    pub(crate) fn new(
        inner: Arc<Inner>,
        plan: PlanFile,
        leaves: LeafTree,
        body: Box<dyn Body>,
        progress: Progress,
    ) -> Self {
        let finished = Mutex::new(progress.finished);
        Self {
            inner,
            generation: 0,
            plan,
            leaves,
            body,
            finished,
            draft: OnceLock::new(),
            unsaved: AtomicBool::new(true),
            failed: AtomicBool::new(false),
            full: AtomicBool::new(false),
        }
    }

    pub(crate) fn of_generation(self, generation: u64) -> Self {
        Self { generation, ..self }
    }

    pub(crate) fn plan_file(&self) -> &PlanFile {
        &self.plan
    }

    fn check_range(&self, start: u64, length: u64) -> Result<(), StoreError> {
        check_bounds(start, length, self.plan.plan.record.size)
    }

    fn noting<T>(&self, done: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(error) = &done {
            self.full.fetch_or(matches!(error, StoreError::NoSpace { .. }), Ordering::Relaxed);
            self.failed.store(true, Ordering::Relaxed);
        }
        done
    }

    fn check_current(&self) -> Result<(), StoreError> {
        if self.inner.staging_generation.load(Ordering::Acquire) == self.generation {
            return Ok(());
        }
        Err(StoreError::Unsupported("what was being received was discarded or is received by another".into()))
    }

    fn save(
        &self,
        leaves: &[(SegmentIndex, SegmentLeaves)],
        finished: &[SegmentIndex],
    ) -> Result<(), StoreError> {
        let mut all = self.finished.lock().expect("no panic while locked");
        if self.failed.load(Ordering::Relaxed) {
            let what =
                format!("receiving snapshot {}: an earlier write failed", self.plan.plan.record.number());
            return Err(match self.full.load(Ordering::Relaxed) {
                true => StoreError::NoSpace { what },
                false => StoreError::Io { what, source: io::Error::other("to be taken up again") },
            });
        }
        // Nothing came after the last one.
        if leaves.is_empty() && finished.is_empty() && !self.unsaved.load(Ordering::Relaxed) {
            return self.check_current();
        }
        self.unsaved.store(false, Ordering::Relaxed);
        let saved = self.save_all(leaves, finished, &mut all);
        if saved.is_err() {
            self.unsaved.store(true, Ordering::Relaxed);
        }
        saved
    }

    fn save_all(
        &self,
        leaves: &[(SegmentIndex, SegmentLeaves)],
        finished: &[SegmentIndex],
        all: &mut BTreeSet<SegmentIndex>,
    ) -> Result<(), StoreError> {
        // Before the sync: a leaf that is written after it is not yet durable, and must not be named.
        let runs = self.body.runs();
        self.inner.faults.at("checkpoint: before sync")?;
        // The tree vouches for data, so it comes after them.
        self.noting(self.body.sync())?;
        self.inner.faults.at("checkpoint: after sync")?;
        let path = self.inner.layout.staging().join("progress");
        let _control = self.inner.control()?;
        self.check_current()?;
        // In layers, the record says which leaves are here at all. It must not lag behind the tree: a leaf that the tree
        // vouches for and the record does not know would read as the base's.
        if !leaves.is_empty() && runs.leaves() > 0 {
            let known = Progress { finished: all.clone(), runs: runs.clone() };
            self.noting(known.replace(&path))?;
        }
        self.inner.faults.at("checkpoint: before the leaves")?;
        let enter = || -> Result<(), StoreError> {
            leaves.iter().try_for_each(|(segment, leaves)| self.leaves.set_segment(*segment, leaves))?;
            self.leaves.sync()
        };
        self.noting(enter())?;
        self.inner.faults.at("checkpoint: after the leaves")?;
        let mut progress = Progress { finished: all.clone(), runs };
        progress.finished.extend(finished);
        self.noting(progress.replace(&path))?;
        self.inner.faults.at("checkpoint: after record")?;
        *all = progress.finished;
        Ok(())
    }

    /// The next head, when all of it would have to be copied once more for the flip. It is begun before anything else is
    /// written.
    fn draft(&self) -> Option<&Draft> {
        let StagePlan { record, base } = &self.plan.plan;
        if self.plan.layer.is_none() || base.is_some() {
            return None;
        }
        let begin = || {
            let begun = self.inner.begin_draft(record, &self.body.runs());
            begun.inspect_err(|error| tracing::debug!(%error, "the next head is not drafted")).ok().flatten()
        };
        self.draft.get_or_init(begin).as_ref()
    }

    /// Does something with the draft. If that fails, the flip fills another file, or says why it cannot.
    fn drafting(&self, work: impl FnOnce(&Draft) -> Result<(), StoreError>) {
        if let Some(draft) = self.draft()
            && let Err(error) = work(draft)
        {
            draft.abandon();
            tracing::debug!(%error, "the next head was not drafted");
        }
    }

    /// Writes what is received. If there is no room, it goes before what is made for later.
    fn before_draft(&self, write: impl Fn() -> Result<(), StoreError>) -> Result<(), StoreError> {
        let draft = self.draft();
        match (write(), draft) {
            (Err(StoreError::NoSpace { .. }), Some(draft)) => {
                draft.abandon();
                write()
            }
            (written, _) => written,
        }
    }

    /// Turns what is staged into the snapshot. Everything is durable and checked.
    fn publish(&self, tree: &LeafTree, record: &SnapshotRecord) -> Result<(), StoreError> {
        let Self { inner, plan, .. } = self;
        let _control = inner.control()?;
        self.check_current()?;
        let number = record.number();
        if inner.state().has(number) {
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
        let image = match &layer {
            Some((id, descriptor)) => {
                descriptor.replace(&inner.layout.layer(*id))?;
                None
            }
            None => {
                let path = dir.join("image");
                let image = File::open(&path).map_err(failed("opening", &path))?;
                protect_image(&image, &path)?;
                Some((image, path))
            }
        };
        inner.faults.at("commit: after the descriptor")?;
        let described = RecordFile { record: record.clone(), layer: plan.layer };
        let place = dir.join("record");
        let described = described.write_new(&place)?;
        let image = image.as_ref().map(|(image, path)| (image, path.as_path()));
        let files: Vec<_> = image.into_iter().chain([(&described, place.as_path())]).collect();
        sync_together(&dir, &files)?;
        inner.publish(&dir, record.clone(), layer)?;
        inner.state().staged = None;
        inner.staging_generation.fetch_add(1, Ordering::AcqRel);
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

    fn read_back(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        self.check_range(offset, buf.len() as u64)?;
        self.check_current()?;
        self.body.read_back(offset, buf)?;
        self.drafting(|draft| draft.take(offset, buf));
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        self.check_range(offset, data.len() as u64)?;
        self.check_current()?;
        self.noting(self.before_draft(|| self.body.write_at(offset, data)))?;
        self.unsaved.store(true, Ordering::Relaxed);
        self.drafting(|draft| draft.write(offset, data));
        Ok(())
    }

    fn zero(&self, range: Range<u64>) -> Result<(), StoreError> {
        self.check_range(range.start, range.end.saturating_sub(range.start))?;
        self.check_current()?;
        self.noting(self.before_draft(|| self.body.zero(range.clone())))?;
        self.unsaved.store(true, Ordering::Relaxed);
        self.drafting(|draft| draft.zero(&range));
        Ok(())
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

    fn commit(mut self: Box<Self>, digest: Digest) -> Result<SnapshotRecord, StoreError> {
        self.save(&[], &[])?;
        let found = self.leaves.root()?;
        let record = SnapshotRecord { digest: Some(digest), ..self.plan.plan.record.clone() };
        if found != digest {
            return Err(StoreError::DigestMismatch { number: record.number(), expected: digest, found });
        }
        self.inner.faults.at("commit: before sealing")?;
        let unsealed = LeafTree::open(&self.inner.layout.staging().join("leaves"))?;
        let sealed = unsealed.seal()?;
        let draft = self.draft.take().flatten();
        let draft = draft.filter(|draft| draft.is_complete(&sealed).unwrap_or(false));
        self.publish(&sealed, &record)?;
        *self.inner.draft() = draft;
        Ok(record)
    }
}
