//! Volumes in thin pools: what does not depend on whose pool it is.
//!
//! A snapshot is a thin device that nobody writes, the head another one, and what is being received a third. Which ones
//! belong to the volume says the [`Catalogue`](catalogue::Catalogue), which the pool keeps and replaces in one step: a
//! thin device that it does not name is what an operation left that did not come to its end, and is deleted.

mod catalogue;
mod changes;
mod command;
mod head;
mod inner;
pub(crate) mod kernel;
mod leaves;
pub(crate) mod lock;
pub(crate) mod mapper;
pub(crate) mod moment;
mod pool;
pub(crate) mod programs;
mod reader;
mod repair;
mod room;
mod staging;
mod usage;
pub(crate) mod users;
mod zero;

use std::{ops::Range, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use zumastor_core::{
    Changes, Frozen, Geometry, HeadState, NewSnapshot, PoolRoom, Repair, SnapshotNumber, SnapshotReader,
    SnapshotRecord, SnapshotStore, StagePlan, Staging, StoreError, StoreInfo, Usage, UsageBySnapshot,
    digest::LeafTree,
};

pub(crate) use catalogue::{Catalogue, Head, Kept, Staged};
use inner::Inner;
pub(crate) use pool::{Access, Gone, Pool, PoolStatus, Room, Slot, ThinId, Users, would_wait};
pub(crate) use room::data_fill;

use crate::Faults;

/// A volume in a thin pool. Clones are the same store.
#[derive(Debug, Clone)]
pub(crate) struct ThinStore(Arc<Inner>);

impl ThinStore {
    /// Opens the store that `pool` keeps. Leaf trees lie in `notes`. Blocking.
    pub(crate) fn open(pool: Box<dyn Pool>, notes: PathBuf, faults: Faults) -> Result<Self, StoreError> {
        Ok(Self(Arc::new(Inner::open(pool, notes, faults)?)))
    }

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
impl SnapshotStore for ThinStore {
    fn geometry(&self) -> Result<Geometry, StoreError> {
        Ok(self.0.geometry())
    }

    fn info(&self) -> StoreInfo {
        self.0.pool.info()
    }

    async fn create_snapshot(&self, new: NewSnapshot) -> Result<SnapshotRecord, StoreError> {
        self.blocking(move |inner| inner.create(new)).await
    }

    async fn freeze(&self) -> Result<Option<Box<dyn Frozen>>, StoreError> {
        self.blocking(|inner| Ok(inner.freeze()?.map(|frozen| Box::new(frozen) as Box<dyn Frozen>))).await
    }

    async fn delete_snapshot(&self, number: SnapshotNumber) -> Result<(), StoreError> {
        self.blocking(move |inner| inner.delete(number)).await
    }

    async fn set_aside(&self, from: SnapshotNumber, to: SnapshotNumber) -> Result<(), StoreError> {
        self.blocking(move |inner| inner.set_aside(from, to)).await
    }

    async fn snapshots(&self) -> Result<Vec<SnapshotRecord>, StoreError> {
        self.blocking(|inner| inner.snapshots()).await
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
        self.blocking(move |inner| inner.reader(number).map(inner::shared)).await
    }

    async fn leaves(&self, number: SnapshotNumber) -> Result<Arc<LeafTree>, StoreError> {
        self.blocking(move |inner| inner.leaves(number)).await
    }

    async fn stage(&self, plan: StagePlan) -> Result<Box<dyn Staging>, StoreError> {
        self.blocking(move |inner| Ok(Box::new(inner.stage(plan)?) as Box<dyn Staging>)).await
    }

    async fn staged(&self) -> Result<Option<StagePlan>, StoreError> {
        Ok(self.0.state().staged.as_ref().map(|staged| staged.plan.clone()))
    }

    async fn discard_staged(&self) -> Result<(), StoreError> {
        self.blocking(move |inner| inner.discard_staged()).await
    }

    async fn revert(&self, number: SnapshotNumber) -> Result<(), StoreError> {
        self.blocking(move |inner| inner.revert(number, false)).await
    }

    async fn show(&self, number: SnapshotNumber) -> Result<(), StoreError> {
        self.blocking(move |inner| inner.revert(number, true)).await
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
        self.blocking(move |inner| Ok(Box::new(inner.repair(number, damaged, head)?) as Box<dyn Repair>))
            .await
    }

    async fn resize(&self, size: u64) -> Result<(), StoreError> {
        self.blocking(move |inner| inner.resize(size)).await
    }

    async fn resize_store(&self, data: Option<u64>, metadata: Option<u64>) -> Result<(), StoreError> {
        self.blocking(move |inner| inner.resize_store(data, metadata)).await
    }

    async fn usage(&self) -> Result<Usage, StoreError> {
        self.blocking(|inner| inner.usage()).await
    }

    async fn usage_by_snapshot(&self) -> Result<Option<UsageBySnapshot>, StoreError> {
        self.blocking(|inner| inner.usage_by_snapshot().map(Some)).await
    }

    async fn free(&self) -> Result<u64, StoreError> {
        self.blocking(|inner| inner.free()).await
    }

    async fn pool(&self) -> Result<Option<PoolRoom>, StoreError> {
        self.blocking(|inner| inner.room().map(Some)).await
    }

    fn device(&self, which: Option<SnapshotNumber>) -> Option<PathBuf> {
        self.0.device(which)
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.blocking(|inner| inner.close()).await
    }
}
