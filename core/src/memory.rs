//! A store in memory: the strict model that the tests of replication run on.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard},
};

use async_trait::async_trait;

use crate::{
    Changes, Extent, Frozen, Geometry, HeadRepair, HeadState, LEAF, LeafIndex, NewSnapshot, PAGE, Repair,
    SegmentIndex, SnapshotNumber, SnapshotReader, SnapshotRecord, SnapshotStore, StagePlan, Staging,
    StoreError, StoreInfo, Usage,
    digest::{Digest, LeafTree, SegmentLeaves, Source, digest_of},
    is_zero,
};

/// A volume in memory. Clones share it, so a clone that outlives the others is the volume after a restart.
#[derive(Debug, Clone)]
pub struct MemoryStore(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    thawed: Condvar,
}

#[derive(Debug)]
struct Inner {
    head: Vec<u8>,
    shows: Option<SnapshotNumber>,
    snapshots: BTreeMap<SnapshotNumber, Kept>,
    staged: Option<Staged>,
    /// So many keep the head from changing.
    frozen: usize,
}

#[derive(Debug)]
struct MemoryFrozen(MemoryStore);

impl Frozen for MemoryFrozen {}

impl Drop for MemoryFrozen {
    fn drop(&mut self) {
        self.0.lock().frozen -= 1;
        self.0.0.thawed.notify_all();
    }
}

#[derive(Debug, Clone)]
struct Kept {
    record: SnapshotRecord,
    content: Arc<Content>,
    leaves: Option<Arc<LeafTree>>,
}

#[derive(Debug)]
struct Content(Vec<u8>);

/// What of a transfer survives its being broken off.
#[derive(Debug, Clone)]
struct Staged {
    plan: StagePlan,
    content: Vec<u8>,
    leaves: Arc<LeafTree>,
    finished: Vec<SegmentIndex>,
}

#[derive(Debug)]
struct MemoryStaging {
    store: MemoryStore,
    plan: StagePlan,
    content: Mutex<Vec<u8>>,
    leaves: LeafTree,
}

/// A snapshot that is being put right.
#[derive(Debug)]
struct MemoryRepair {
    store: MemoryStore,
    record: SnapshotRecord,
    damaged: Vec<Range<u64>>,
    head: bool,
    /// What was written over, and where.
    bad: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl MemoryStore {
    /// A volume of zeros.
    pub fn new(size: u64) -> Self {
        let head = vec![0; size as usize];
        let inner = Inner { head, shows: None, snapshots: BTreeMap::new(), staged: None, frozen: 0 };
        Self(Arc::new(Shared { inner: Mutex::new(inner), thawed: Condvar::new() }))
    }

    /// Writes to the head, as its user would; waits while it is frozen.
    pub fn write_head(&self, offset: u64, data: &[u8]) {
        let inner = self.lock();
        let mut inner =
            self.0.thawed.wait_while(inner, |inner| inner.frozen > 0).expect("no panic while locked");
        inner.head[offset as usize..][..data.len()].copy_from_slice(data);
        inner.shows = None;
    }

    /// Makes bytes of a snapshot others than they were, as a bad disk does.
    ///
    /// # Panics
    /// When there is no such snapshot, or it is smaller.
    pub fn damage(&self, number: SnapshotNumber, offset: u64, data: &[u8]) {
        let mut inner = self.lock();
        let kept = inner.snapshots.get_mut(&number).expect("a snapshot to damage");
        let mut content = kept.content.0.clone();
        content[offset as usize..][..data.len()].copy_from_slice(data);
        kept.content = Arc::new(Content(content));
    }

    /// Makes the leaf tree of a snapshot another, as a bad disk does.
    ///
    /// # Panics
    /// When there is no such snapshot.
    pub fn damage_leaves(&self, number: SnapshotNumber, leaves: LeafTree) {
        let mut inner = self.lock();
        inner.snapshots.get_mut(&number).expect("a snapshot to damage").leaves = Some(Arc::new(leaves));
    }

    /// The head's content.
    pub fn head_content(&self) -> Vec<u8> {
        self.lock().head.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().expect("no panic while locked")
    }
}

impl Inner {
    fn get(&self, number: SnapshotNumber) -> Result<&Kept, StoreError> {
        self.snapshots.get(&number).ok_or(StoreError::NotFound { number })
    }
}

#[async_trait]
impl SnapshotStore for MemoryStore {
    fn geometry(&self) -> Result<Geometry, StoreError> {
        Ok(Geometry { size: self.lock().head.len() as u64, chunk: PAGE })
    }

    fn info(&self) -> StoreInfo {
        StoreInfo { kind: "memory".into(), caution: Some("gone when the process ends".into()) }
    }

    async fn create_snapshot(&self, new: NewSnapshot) -> Result<SnapshotRecord, StoreError> {
        let mut inner = self.lock();
        let number = new.number;
        if inner.snapshots.contains_key(&number) {
            return Err(StoreError::Exists { number });
        }
        let record = SnapshotRecord { new, size: inner.head.len() as u64, digest: None };
        let content = Arc::new(Content(inner.head.clone()));
        inner.snapshots.insert(number, Kept { record: record.clone(), content, leaves: None });
        inner.shows = Some(number);
        Ok(record)
    }

    async fn freeze(&self) -> Result<Option<Box<dyn Frozen>>, StoreError> {
        self.lock().frozen += 1;
        Ok(Some(Box::new(MemoryFrozen(self.clone()))))
    }

    async fn delete_snapshot(&self, number: SnapshotNumber) -> Result<(), StoreError> {
        let mut inner = self.lock();
        inner.snapshots.remove(&number).ok_or(StoreError::NotFound { number })?;
        if inner.shows == Some(number) {
            inner.shows = None;
        }
        Ok(())
    }

    async fn set_aside(&self, from: SnapshotNumber, to: SnapshotNumber) -> Result<(), StoreError> {
        let mut inner = self.lock();
        if from.is_local() || !to.is_local() {
            return Err(StoreError::Unsupported(format!("snapshot {from} cannot be set aside as {to}")));
        }
        if inner.snapshots.contains_key(&to) {
            return Err(StoreError::Exists { number: to });
        }
        let mut kept = inner.snapshots.remove(&from).ok_or(StoreError::NotFound { number: from })?;
        kept.record.new.number = to;
        inner.snapshots.insert(to, kept);
        if inner.shows == Some(from) {
            inner.shows = Some(to);
        }
        Ok(())
    }

    async fn snapshots(&self) -> Result<Vec<SnapshotRecord>, StoreError> {
        Ok(self.lock().snapshots.values().map(|kept| kept.record.clone()).collect())
    }

    async fn changes(
        &self,
        base: Option<SnapshotNumber>,
        target: SnapshotNumber,
        window: Range<u64>,
    ) -> Result<Changes, StoreError> {
        let inner = self.lock();
        let new = &inner.get(target)?.content.0;
        let old = base.map(|base| inner.get(base)).transpose()?.map_or(&[][..], |kept| &kept.content.0[..]);
        let end = window.end.min(new.len() as u64);
        let mut changes = Changes::new();
        let mut start = window.start;
        while start < end {
            let stop = (start / PAGE * PAGE + PAGE).min(end);
            let page = &new[start as usize..stop as usize];
            let before = old.get(start as usize..stop as usize);
            if before.map_or(!is_zero(page), |before| before != page) {
                changes.push(if is_zero(page) {
                    Extent::zero(start..stop)
                } else {
                    Extent::data(start..stop)
                });
            } else if before.is_none() && (start as usize) < old.len() {
                changes.push(Extent::data(start..stop));
            }
            start = stop;
        }
        Ok(changes)
    }

    async fn open_snapshot(&self, number: SnapshotNumber) -> Result<Arc<dyn SnapshotReader>, StoreError> {
        Ok(self.lock().get(number)?.content.clone())
    }

    async fn leaves(&self, number: SnapshotNumber) -> Result<Arc<LeafTree>, StoreError> {
        let kept = self.lock().get(number)?.clone();
        if let Some(leaves) = kept.leaves {
            return Ok(leaves);
        }
        let tree = LeafTree::anonymous(kept.record.size)?;
        digest_of(&*kept.content, Some(&tree))?;
        let tree = Arc::new(tree.seal()?);
        let mut inner = self.lock();
        let kept = inner.snapshots.get_mut(&number).ok_or(StoreError::NotFound { number })?;
        kept.record.digest = tree.digest();
        kept.leaves = Some(tree.clone());
        Ok(tree)
    }

    async fn stage(&self, plan: StagePlan) -> Result<Box<dyn Staging>, StoreError> {
        let number = plan.record.number();
        if self.lock().snapshots.contains_key(&number) {
            return Err(StoreError::Exists { number });
        }
        // What is staged already no longer needs its base, which may be deleted.
        let fresh = self.lock().staged.is_none();
        let base_leaves = match plan.base.filter(|_| fresh) {
            Some(base) => Some(self.leaves(base).await?),
            None => None,
        };
        let mut inner = self.lock();
        if inner.staged.as_ref().is_some_and(|staged| staged.plan != plan) {
            let number = inner.staged.as_ref().expect("just seen").plan.record.number();
            return Err(StoreError::StagingBusy { number });
        }
        if inner.staged.is_none() {
            let size = plan.record.size;
            let base = plan.base.map(|base| inner.get(base)).transpose()?;
            let mut content = base.map_or_else(Vec::new, |kept| kept.content.0.clone());
            content.resize(size as usize, 0);
            let leaves = match &base_leaves {
                Some(base) => {
                    let leaves = base.copy_anonymous(size)?;
                    leaves.rehash_end(base.size(), &Content(content.clone()))?;
                    leaves
                }
                None => LeafTree::anonymous(size)?,
            };
            inner.staged =
                Some(Staged { plan: plan.clone(), content, leaves: Arc::new(leaves), finished: Vec::new() });
        }
        let staged = inner.staged.as_ref().expect("just set");
        Ok(Box::new(MemoryStaging {
            store: self.clone(),
            plan,
            content: Mutex::new(staged.content.clone()),
            leaves: staged.leaves.copy_anonymous(staged.leaves.size())?,
        }))
    }

    async fn staged(&self) -> Result<Option<StagePlan>, StoreError> {
        Ok(self.lock().staged.as_ref().map(|staged| staged.plan.clone()))
    }

    async fn discard_staged(&self) -> Result<(), StoreError> {
        self.lock().staged = None;
        Ok(())
    }

    async fn revert(&self, number: SnapshotNumber) -> Result<(), StoreError> {
        let mut inner = self.lock();
        inner.head = inner.get(number)?.content.0.clone();
        inner.shows = Some(number);
        Ok(())
    }

    async fn show(&self, number: SnapshotNumber) -> Result<(), StoreError> {
        match self.head().await? {
            HeadState::Written => Err(StoreError::HeadWritten { path: "(in memory)".into() }),
            HeadState::Empty | HeadState::Shows(_) => self.revert(number).await,
        }
    }

    async fn head(&self) -> Result<HeadState, StoreError> {
        let inner = self.lock();
        Ok(match inner.shows {
            Some(number) => HeadState::Shows(number),
            None if is_zero(&inner.head) => HeadState::Empty,
            None => HeadState::Written,
        })
    }

    async fn repair(
        &self,
        number: SnapshotNumber,
        damaged: Vec<Range<u64>>,
        head: bool,
    ) -> Result<Box<dyn Repair>, StoreError> {
        let record = self.lock().get(number)?.record.clone();
        Ok(Box::new(MemoryRepair { store: self.clone(), record, damaged, head, bad: Mutex::default() }))
    }

    async fn resize(&self, size: u64) -> Result<(), StoreError> {
        let mut inner = self.lock();
        inner.head.resize(size as usize, 0);
        inner.shows = None;
        Ok(())
    }

    async fn usage(&self) -> Result<Usage, StoreError> {
        let inner = self.lock();
        let used = inner.snapshots.values().map(|kept| kept.record.size).sum();
        Ok(Usage { used, free: u64::MAX })
    }

    fn device(&self, _which: Option<SnapshotNumber>) -> Option<PathBuf> {
        None
    }
}

impl Repair for MemoryRepair {
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        let leaves = offset / LEAF..LeafIndex::count(offset + data.len() as u64);
        let named = self.damaged.iter().any(|range| range.start <= leaves.start && leaves.end <= range.end);
        assert!(named && offset.is_multiple_of(LEAF), "{leaves:?} are not among {:?}", self.damaged);
        let number = self.record.number();
        let inner = self.store.lock();
        let kept = inner.get(number).ok().filter(|kept| kept.record.guid() == self.record.guid());
        let bytes =
            kept.ok_or(StoreError::NotFound { number })?.content.0[offset as usize..][..data.len()].to_vec();
        drop(inner);
        self.bad.lock().expect("no panic while locked").push((offset, bytes));
        self.store.damage(number, offset, data);
        Ok(())
    }

    fn finish(self: Box<Self>, tree: bool) -> Result<HeadRepair, StoreError> {
        let number = self.record.number();
        let mut inner = self.store.lock();
        let inner = &mut *inner;
        let kept = inner.snapshots.get_mut(&number).ok_or(StoreError::NotFound { number })?;
        if tree {
            let fresh = LeafTree::anonymous(kept.record.size)?;
            let found = digest_of(&*kept.content, Some(&fresh))?;
            if kept.record.digest.is_some_and(|digest| digest != found) {
                let what = format!("snapshot {number} has digest {found}");
                return Err(StoreError::Damaged { path: "(in memory)".into(), what });
            }
            kept.leaves = Some(Arc::new(fresh.seal()?));
        }
        if inner.staged.as_ref().is_some_and(|staged| staged.plan.base == Some(number)) {
            inner.staged = None;
        }
        if !self.head || inner.shows != Some(number) {
            return Ok(HeadRepair::Untouched);
        }
        let bad = self.bad.into_inner().expect("no panic while locked");
        let mut repaired = HeadRepair::Untouched;
        for (offset, bytes) in bad {
            let range = offset as usize..offset as usize + bytes.len();
            if inner.head[range.clone()] == bytes[..] {
                inner.head[range.clone()].copy_from_slice(&kept.content.0[range]);
                repaired = HeadRepair::Repaired;
            }
        }
        Ok(repaired)
    }
}

impl SnapshotReader for Content {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        let range = offset..offset + buf.len() as u64;
        let bytes = self.0.get(range.start as usize..range.end as usize);
        buf.copy_from_slice(bytes.ok_or(StoreError::OutOfBounds { range, size: self.0.len() as u64 })?);
        Ok(())
    }
}

impl Source for Content {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        SnapshotReader::read_at(self, offset, buf)
    }

    fn data(&self, window: Range<u64>) -> Result<Vec<Range<u64>>, StoreError> {
        Ok(vec![window])
    }
}

impl MemoryStaging {
    fn with<T>(&self, range: Range<u64>, act: impl FnOnce(&mut [u8]) -> T) -> Result<T, StoreError> {
        let mut content = self.content.lock().expect("no panic while locked");
        let size = content.len() as u64;
        let bytes = content.get_mut(range.start as usize..range.end as usize);
        bytes.map(act).ok_or(StoreError::OutOfBounds { range, size })
    }
}

impl Staging for MemoryStaging {
    fn plan(&self) -> &StagePlan {
        &self.plan
    }

    fn finished(&self) -> Vec<SegmentIndex> {
        let inner = self.store.lock();
        inner.staged.as_ref().filter(|s| s.plan == self.plan).map_or_else(Vec::new, |s| s.finished.clone())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        self.with(offset..offset + buf.len() as u64, |bytes| buf.copy_from_slice(bytes))
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        self.with(offset..offset + data.len() as u64, |bytes| bytes.copy_from_slice(data))
    }

    fn zero(&self, range: Range<u64>) -> Result<(), StoreError> {
        self.with(range, |bytes| bytes.fill(0))
    }

    fn leaves(&self) -> &LeafTree {
        &self.leaves
    }

    fn checkpoint(
        &self,
        leaves: &[(SegmentIndex, SegmentLeaves)],
        finished: &[SegmentIndex],
    ) -> Result<(), StoreError> {
        for (segment, leaves) in leaves {
            self.leaves.set_segment(*segment, leaves)?;
        }
        let leaves = Arc::new(self.leaves.copy_anonymous(self.leaves.size())?);
        let mut inner = self.store.lock();
        let staged = inner.staged.as_mut().filter(|staged| staged.plan == self.plan);
        let staged =
            staged.ok_or_else(|| StoreError::Unsupported("what was staged has been discarded".into()))?;
        staged.content = self.content.lock().expect("no panic while locked").clone();
        staged.leaves = leaves;
        staged.finished.extend_from_slice(finished);
        Ok(())
    }

    fn commit(self: Box<Self>, digest: Digest) -> Result<SnapshotRecord, StoreError> {
        self.checkpoint(&[], &[])?;
        let Self { store, plan, content, leaves } = *self;
        let leaves = leaves.seal()?;
        let number = plan.record.number();
        let found = leaves.digest().expect("just sealed");
        if found != digest {
            return Err(StoreError::DigestMismatch { number, expected: digest, found });
        }
        let record = SnapshotRecord { digest: Some(digest), ..plan.record };
        let content = Arc::new(Content(content.into_inner().expect("no panic while locked")));
        let mut inner = store.lock();
        inner
            .snapshots
            .insert(number, Kept { record: record.clone(), content, leaves: Some(Arc::new(leaves)) });
        inner.staged = None;
        Ok(record)
    }
}
