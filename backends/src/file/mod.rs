//! Volumes in image files: the origin is a plain raw image that its owner writes directly, the snapshot store a
//! directory. No privileges and no kernel module are needed.

mod body;
mod destroy;
mod draft;
mod fiemap;
mod flip;
mod head;
mod header;
mod held;
mod inner;
mod known;
mod layered;
mod layout;
mod lease;
mod leaves;
mod prepare;
mod reader;
mod ready;
mod reflink;
mod renumber;
mod repair;
mod runs;
mod shares;
mod stage;
mod staging;
mod usage;
mod vouch;

use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
pub(crate) use destroy::{condemn, remove};
pub use header::Mode;
pub(crate) use header::store_id;
pub use lease::open_for_writing;
use zumastor_core::{
    Changes, Geometry, HeadState, NewSnapshot, Repair, SnapshotNumber, SnapshotReader, SnapshotRecord,
    SnapshotStore, StagePlan, Staging, StoreError, StoreInfo, Usage, UsageBySnapshot, digest::LeafTree,
};

use crate::Faults;
use inner::Inner;

/// How a [`FileStore`] is opened.
#[derive(Debug, Clone, Default)]
pub struct FileStoreOptions {
    /// The mode of a store that is made now; tried out when absent. A store that exists keeps the one it has.
    pub mode: Option<Mode>,
    /// In layered mode, a copy that the next flip will need is made in the background if it takes as many bytes.
    pub prepare: Option<u64>,
    /// In reflink mode, a clone that the next transfer will need is made in the background if the last one took as long.
    pub clone_ahead: Option<Duration>,
    /// Which start of the machine this is, for tests; asked from the kernel when absent.
    pub boot: Option<String>,
    /// Where to stop, for tests.
    pub faults: Faults,
}

/// A volume in an image file, with its snapshots in a directory. Clones are the same store.
#[derive(Debug, Clone)]
pub struct FileStore(Arc<Inner>);

impl FileStore {
    /// Opens the store in `snapstore` with all its snapshots, or makes one when that is an empty directory or nothing.
    /// The origin may be absent: then the head is empty until the first [`revert`](SnapshotStore::revert). Blocking.
    ///
    /// # Errors
    /// [`StoreError::Unsupported`] when `snapstore` holds something else or is open elsewhere,
    /// [`StoreError::Damaged`] naming the file when something is not as it was written.
    pub fn open_or_create(
        origin: PathBuf,
        snapstore: PathBuf,
        options: FileStoreOptions,
    ) -> Result<Self, StoreError> {
        Ok(Self(Arc::new(Inner::open(&origin, snapstore, true, options)?)))
    }

    /// As [`open_or_create`](Self::open_or_create), of a store that must be there already.
    pub fn open(origin: PathBuf, snapstore: PathBuf, options: FileStoreOptions) -> Result<Self, StoreError> {
        Ok(Self(Arc::new(Inner::open(&origin, snapstore, false, options)?)))
    }

    /// How this store makes snapshots.
    pub fn mode(&self) -> Mode {
        self.0.header.mode
    }

    /// The image file that is the head.
    pub fn origin(&self) -> &Path {
        &self.0.origin
    }

    /// The one bridge from async to blocking: everything a store does waits for a disk.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Inner>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = self.0.clone();
        match tokio::task::spawn_blocking(move || work(&inner)).await {
            Ok(done) => done,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(StoreError::Unsupported("the program is being shut down".into())),
        }
    }
}

#[async_trait]
impl SnapshotStore for FileStore {
    fn geometry(&self) -> Result<Geometry, StoreError> {
        self.0.geometry()
    }

    fn info(&self) -> StoreInfo {
        self.0.info.clone()
    }

    async fn create_snapshot(&self, new: NewSnapshot) -> Result<SnapshotRecord, StoreError> {
        self.blocking(move |inner| inner.create(new)).await
    }

    async fn delete_snapshot(&self, number: SnapshotNumber) -> Result<(), StoreError> {
        self.blocking(move |inner| inner.delete(number)).await
    }

    async fn set_aside(&self, from: SnapshotNumber, to: SnapshotNumber) -> Result<(), StoreError> {
        self.blocking(move |inner| inner.set_aside(from, to)).await
    }

    async fn snapshots(&self) -> Result<Vec<SnapshotRecord>, StoreError> {
        Ok(self.0.state().snapshots.values().map(|kept| kept.record.clone()).collect())
    }

    async fn changes(
        &self,
        base: Option<SnapshotNumber>,
        target: SnapshotNumber,
        window: Range<u64>,
    ) -> Result<Changes, StoreError> {
        self.blocking(move |inner| inner.changes(base, target, window)).await
    }

    async fn open_snapshot(&self, number: SnapshotNumber) -> Result<Arc<dyn SnapshotReader>, StoreError> {
        self.blocking(move |inner| inner.reader(number)).await
    }

    async fn leaves(&self, number: SnapshotNumber) -> Result<Arc<LeafTree>, StoreError> {
        self.blocking(move |inner| inner.leaves(number)).await
    }

    async fn stage(&self, plan: StagePlan) -> Result<Box<dyn Staging>, StoreError> {
        self.blocking(move |inner| Ok(Box::new(inner.stage(plan)?) as Box<dyn Staging>)).await
    }

    async fn staged(&self) -> Result<Option<StagePlan>, StoreError> {
        Ok(self.0.state().staged.as_ref().map(|staged| staged.plan.plan.clone()))
    }

    async fn discard_staged(&self) -> Result<(), StoreError> {
        self.blocking(|inner| inner.discard_staged()).await
    }

    async fn revert(&self, number: SnapshotNumber) -> Result<(), StoreError> {
        self.blocking(move |inner| inner.revert(number, false)).await
    }

    async fn show(&self, number: SnapshotNumber) -> Result<(), StoreError> {
        self.blocking(move |inner| {
            inner.revert(number, true)?;
            inner.prepare_alternate();
            inner.prepare_clone(number);
            Ok(())
        })
        .await
    }

    async fn head(&self) -> Result<HeadState, StoreError> {
        self.blocking(|inner| inner.head()).await
    }

    async fn repair(
        &self,
        number: SnapshotNumber,
        damaged: Vec<Range<u64>>,
        head: bool,
    ) -> Result<Box<dyn Repair>, StoreError> {
        self.blocking(move |inner| Ok(Box::new(inner.repair(number, &damaged, head)?) as Box<dyn Repair>))
            .await
    }

    async fn resize(&self, size: u64) -> Result<(), StoreError> {
        self.blocking(move |inner| inner.resize(size)).await
    }

    async fn usage(&self) -> Result<Usage, StoreError> {
        self.blocking(|inner| inner.usage()).await
    }

    async fn free(&self) -> Result<u64, StoreError> {
        self.blocking(|inner| inner.free()).await
    }

    async fn usage_by_snapshot(&self) -> Result<Option<UsageBySnapshot>, StoreError> {
        self.blocking(|inner| inner.usage_by_snapshot().map(Some)).await
    }

    fn limit_cache(&self, bytes: u64) {
        self.0.known.limit(bytes);
    }

    fn cached(&self) -> u64 {
        self.0.known.bytes()
    }

    fn device(&self, which: Option<SnapshotNumber>) -> Option<PathBuf> {
        match (which, self.mode()) {
            (None, _) => Some(self.0.origin.clone()),
            (Some(number), Mode::Reflink) => {
                let known = self.0.state().snapshots.contains_key(&number);
                known.then(|| self.0.layout.image(number))
            }
            (Some(_), Mode::Layered) => None,
        }
    }
}
