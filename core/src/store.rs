//! What keeps volumes and their snapshots: the one trait between replication and the disks.

use std::{fmt, ops::Range, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{
    Changes, NewSnapshot, SegmentIndex, SnapshotNumber, SnapshotRecord, StoreError,
    digest::{Digest, LeafTree, SegmentLeaves},
};

/// Point-in-time copies of one volume, kept by one backend.
///
/// Control calls are async; bytes move through the blocking [`SnapshotReader`] and [`Staging`]. `conformance` in
/// zumastor-backends is the contract in full: every store passes it.
#[async_trait]
pub trait SnapshotStore: fmt::Debug + Send + Sync + 'static {
    /// Size of the head, and unit of allocation.
    fn geometry(&self) -> Result<Geometry, StoreError>;

    /// How this store works, in words for `status`.
    fn info(&self) -> StoreInfo;

    /// Freezes the head's content as a snapshot. On error no snapshot exists.
    async fn create_snapshot(&self, new: NewSnapshot) -> Result<SnapshotRecord, StoreError>;

    /// Keeps who writes to the head waiting until the answer is dropped, so that snapshots of several volumes can be of
    /// one moment; [`create_snapshot`](Self::create_snapshot) works meanwhile. Nothing where a store cannot.
    async fn freeze(&self) -> Result<Option<Box<dyn Frozen>>, StoreError> {
        Ok(None)
    }

    /// Deletes a snapshot, and what no other snapshot needs of its data. Readers that are open stay valid.
    async fn delete_snapshot(&self, number: SnapshotNumber) -> Result<(), StoreError>;

    /// Gives a snapshot that a master numbered a local number, in one step; it is the same snapshot otherwise. So what is
    /// in the way of another history is kept.
    async fn set_aside(&self, from: SnapshotNumber, to: SnapshotNumber) -> Result<(), StoreError>;

    /// What is really on the store, not what we remember: in ascending order of number.
    async fn snapshots(&self) -> Result<Vec<SnapshotRecord>, StoreError>;

    /// Extents within `window` where `target` differs from `base` (without a base: from zeros). A superset of what
    /// differs; beyond the end of a smaller base, what is zero may be left out. The window is cut at the target's end.
    async fn changes(
        &self,
        base: Option<SnapshotNumber>,
        target: SnapshotNumber,
        window: Range<u64>,
    ) -> Result<Changes, StoreError>;

    /// Opens a snapshot for reading.
    async fn open_snapshot(&self, number: SnapshotNumber) -> Result<Arc<dyn SnapshotReader>, StoreError>;

    /// The sealed leaf tree of a snapshot. Computed now if it was not before, from the nearest older snapshot that
    /// has one and the changes since.
    async fn leaves(&self, number: SnapshotNumber) -> Result<Arc<LeafTree>, StoreError>;

    /// Begins to receive a snapshot, as a clone of its base; or takes up what an earlier call with the same plan left,
    /// also across a crash.
    ///
    /// # Errors
    /// [`StoreError::StagingBusy`] when something else is staged.
    async fn stage(&self, plan: StagePlan) -> Result<Box<dyn Staging>, StoreError>;

    /// What is staged, if anything: a transfer that was broken off.
    async fn staged(&self) -> Result<Option<StagePlan>, StoreError>;

    /// Forgets what is staged, if anything.
    async fn discard_staged(&self) -> Result<(), StoreError>;

    /// Makes the head show exactly the content of a snapshot, in one step: a reader that opens the head sees the old
    /// content or the new, never a mix, and a crash leaves one of the two.
    async fn revert(&self, number: SnapshotNumber) -> Result<(), StoreError>;

    /// As [`revert`](Self::revert), but never replaces what is not on the store: for a volume whose head is a replica.
    ///
    /// # Errors
    /// [`StoreError::HeadWritten`] when the head is [`HeadState::Written`], also if it became so during the call;
    /// [`StoreError::HeadBusy`] when a program has it open for writing, where that can be told.
    async fn show(&self, number: SnapshotNumber) -> Result<(), StoreError>;

    /// What the head holds, as far as this store can vouch for it.
    async fn head(&self) -> Result<HeadState, StoreError>;

    /// Begins to put right what a medium has made of a snapshot. `damaged` are all leaves that may be written, as ascending
    /// and disjoint ranges of leaf positions; none if only the leaf tree is to be made anew. With `head`, a head that shows
    /// the snapshot is put right with it: for a replica. Otherwise the head is not written to.
    ///
    /// What a store promises: each byte of the snapshot is what it was or what was written, after a crash too, and nothing
    /// else of what anybody sees becomes other than its digest says. Other snapshots may be put right as well where they
    /// have the leaf in common. What is made from the snapshot later (a clone, a flip, what is received upon it) is
    /// made from what was written, also where something was made ahead. After a crash it can be begun anew with what is
    /// damaged then.
    ///
    /// # Errors
    /// [`StoreError::Unsupported`] where the store cannot.
    async fn repair(
        &self,
        number: SnapshotNumber,
        damaged: Vec<Range<u64>>,
        head: bool,
    ) -> Result<Box<dyn Repair>, StoreError> {
        let _ = (damaged, head);
        let kind = self.info().kind;
        Err(StoreError::Unsupported(format!(
            "a snapshot store of this kind ({kind}) cannot mend snapshot {number}: delete it here, and replicate again"
        )))
    }

    /// Changes the size of the head. Snapshots keep the size they had.
    async fn resize(&self, size: u64) -> Result<(), StoreError>;

    /// Takes more of the devices that hold snapshots into use, up to so many bytes of each: for what snapshots keep, and for
    /// what says which block belongs to which, where that has a device or a place of its own. None is given back.
    ///
    /// # Errors
    /// [`StoreError::Unsupported`] where there is nothing of that kind, or less would be left than is in use.
    async fn resize_store(&self, data: Option<u64>, metadata: Option<u64>) -> Result<(), StoreError> {
        let _ = (data, metadata);
        Err(StoreError::Unsupported(
            "--snapshot and --metadata are for block devices: this volume's snapshots are in a directory, which has the size of \
             its file system"
                .to_owned(),
        ))
    }

    /// Space that the store takes and has.
    async fn usage(&self) -> Result<Usage, StoreError>;

    /// Bytes free for new data: as in [`usage`](Self::usage), for those who need only this, and need it often.
    async fn free(&self) -> Result<u64, StoreError> {
        Ok(self.usage().await?.free)
    }

    /// How full the pool is in which the volume lies together with its snapshots: where it fills, the volume itself cannot be
    /// written any more. Nothing for stores that leave the volume where it is. Cheap enough to be asked many times a second.
    async fn pool(&self) -> Result<Option<PoolRoom>, StoreError> {
        Ok(None)
    }

    /// What each snapshot takes, for those who ask in so many words: it may look at everything that the store has. Nothing
    /// where a store cannot tell.
    ///
    /// What only one snapshot uses is its own alone: neither another snapshot, nor the head, nor what is staged has it.
    /// Deleting the snapshot frees about as much, and leaves what the others have to themselves as it is or larger.
    async fn usage_by_snapshot(&self) -> Result<Option<UsageBySnapshot>, StoreError> {
        Ok(None)
    }

    /// Bounds what the store keeps in memory only because it may be asked for again, in bytes.
    fn limit_cache(&self, _bytes: u64) {}

    /// Bytes that it keeps in memory so now.
    fn cached(&self) -> u64 {
        0
    }

    /// What can be mounted: the head, or a snapshot.
    fn device(&self, which: Option<SnapshotNumber>) -> Option<PathBuf>;

    /// Removes what is there only while the program runs, such as devices; what somebody uses stays. Nothing else of the
    /// store is to be called afterwards.
    async fn close(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// A head that is kept from changing. Dropping it lets it go.
pub trait Frozen: fmt::Debug + Send + Sync {}

/// Size of a volume and unit of allocation of its store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Size of the head in bytes.
    pub size: u64,
    /// Allocation unit of the store in bytes.
    pub chunk: u64,
}

/// How a store works, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreInfo {
    /// Short name of the way snapshots are made, such as `reflink on xfs`.
    pub kind: String,
    /// What taking a snapshot costs and guarantees, in one line, where that is less than one would expect.
    pub caution: Option<String>,
}

/// What the head holds, as far as the store can vouch for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadState {
    /// There is no head yet, or one that holds no data.
    Empty,
    /// Exactly the content of this snapshot.
    Shows(SnapshotNumber),
    /// Something else, or it cannot be told: someone may have written to it.
    Written,
}

/// Space that a store takes and has, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Taken by snapshots and what is staged. Blocks shared with the head may be counted, and what only the newest
    /// snapshot still holds may be left out: finding out would mean to look through the head.
    pub used: u64,
    /// Free for new data.
    pub free: u64,
}

/// How full a pool is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolRoom {
    /// For what volume and snapshots hold.
    pub data: Fill,
    /// For what says which chunk belongs to which of them.
    pub metadata: Fill,
    /// Unit of allocation in bytes.
    pub chunk: u64,
    /// Whether others may have volumes in it as well.
    pub shared: bool,
    /// Why nothing in it can be changed, and what helps.
    pub trouble: Option<String>,
    /// Why nothing that is deleted becomes free while that lasts, and what helps.
    pub held: Option<String>,
    /// What gives it more room for data.
    pub more_data: String,
    /// What gives it more room for metadata.
    pub more_metadata: String,
}

impl PoolRoom {
    /// Bytes of metadata that writing so many bytes of data may take: where chunks are scattered, each has part of a leaf
    /// of the tree copied for it.
    pub fn metadata_for(&self, data: u64) -> u64 {
        data.div_ceil(self.chunk) * METADATA_PER_CHUNK
    }
}

/// Measured on random rewrites of a volume of 4 million chunks: some half a KiB for each chunk that was allocated.
const METADATA_PER_CHUNK: u64 = 512;

/// How full something is, in bytes, and how full it may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fill {
    /// Taken.
    pub used: u64,
    /// There.
    pub total: u64,
    /// With less free than that, snapshots go.
    pub low: u64,
    /// What is kept for the volume itself: no snapshot is taken and nothing is received into it.
    pub least: u64,
}

impl Fill {
    /// Not taken.
    pub fn free(&self) -> u64 {
        self.total.saturating_sub(self.used)
    }

    /// Whether snapshots go.
    pub fn is_low(&self) -> bool {
        self.free() < self.low
    }

    /// Whether so little is free that every snapshot goes that may, and none is taken: half of what was to be free.
    pub fn is_pressing(&self) -> bool {
        self.free() < self.least.midpoint(self.low)
    }

    /// Whether it may become low at any moment.
    pub fn is_nearly_low(&self) -> bool {
        self.free() < self.low.saturating_mul(2)
    }
}

/// What the snapshots of a store take, in bytes of the medium.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageBySnapshot {
    /// Each snapshot, in ascending order of number; one that went meanwhile may be missing.
    pub snapshots: Vec<SnapshotUsage>,
    /// What deleting all of them would free: at least the sum of what each has to itself.
    pub all: u64,
}

/// What one snapshot takes, in bytes of the medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotUsage {
    /// The snapshot.
    pub number: SnapshotNumber,
    /// Of the blocks that hold its content, whoever else uses them. What reads as zeros may take none.
    pub referenced: u64,
    /// Of those, the ones that nothing else uses: about what deleting it would free.
    pub exclusive: u64,
}

impl SnapshotUsage {
    /// Of the blocks that another snapshot, the head or what is staged uses as well.
    pub fn shared(&self) -> u64 {
        self.referenced.saturating_sub(self.exclusive)
    }
}

/// Reads one snapshot. Blocking.
pub trait SnapshotReader: fmt::Debug + Send + Sync {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// Fills `buf` from `offset` on.
    ///
    /// # Errors
    /// [`StoreError::OutOfBounds`] when that reaches beyond the end, [`StoreError::Io`] when the medium fails.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError>;

    /// As [`read_at`](Self::read_at), but what lies on the medium and not what memory has of it, where the store can tell
    /// the two apart: to find out whether it is still right.
    fn read_stored(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        self.read_at(offset, buf)
    }

    /// The parts of `window` that may hold something other than zeros, by what the medium says and not by the leaf tree:
    /// ascending and disjoint. All of it, where that is not known.
    fn data(&self, window: Range<u64>) -> Result<Vec<Range<u64>>, StoreError> {
        Ok(vec![window])
    }
}

/// A snapshot that is being put right. Blocking. Dropping it leaves what was written.
pub trait Repair: fmt::Debug + Send + Sync {
    /// Writes whole leaves, of those that were named as damaged, from `offset` on. The caller has verified them against the
    /// snapshot's digest.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when the snapshot was deleted meanwhile.
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), StoreError>;

    /// Makes what was written durable, makes the leaf tree anew from the content if `tree` says so, and puts the head right
    /// if that is wanted.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when the content is still not what the digest names, so that no tree can be made of it.
    fn finish(self: Box<Self>, tree: bool) -> Result<HeadRepair, StoreError>;
}

/// What became of the head when a snapshot was put right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeadRepair {
    /// It had none of the bad bytes, or is somebody else's.
    Untouched,
    /// It had them, and has the right ones now.
    Repaired,
    /// It has them still, for this reason.
    Left(String),
}

/// The snapshot that is to be received, and what it is built upon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagePlan {
    /// The snapshot as its upstream describes it, with its digest if that is known.
    pub record: SnapshotRecord,
    /// The snapshot here that it starts as a clone of; nothing means zeros.
    pub base: Option<SnapshotNumber>,
}

/// A snapshot that is being received. Blocking; calls for different segments may run on different threads.
///
/// Nothing of it is visible until [`commit`](Self::commit), whatever happens. Dropping it keeps what was
/// checkpointed: [`SnapshotStore::stage`] with the same plan takes it up again.
pub trait Staging: fmt::Debug + Send + Sync {
    /// What is being received.
    fn plan(&self) -> &StagePlan;

    /// Segments that an earlier run finished and checkpointed.
    fn finished(&self) -> Vec<SegmentIndex>;

    /// Reads what is staged: the base's content where nothing was written.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError>;

    /// As [`read_at`](Self::read_at), of whole leaves, for the last look before [`commit`](Self::commit) at what an earlier run
    /// has staged: from the disk where it can be, and a store may have a use for bytes that are in memory already.
    fn read_back(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        self.read_at(offset, buf)
    }

    /// Writes. Any range within the volume, though whole pages are best.
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), StoreError>;

    /// Makes a range zero, giving back the space of whole chunks.
    fn zero(&self, range: Range<u64>) -> Result<(), StoreError>;

    /// The tree of leaf hashes, which starts as the base's. It says of no leaf what is not durable: hashes enter it by
    /// [`checkpoint`](Self::checkpoint).
    fn leaves(&self) -> &LeafTree;

    /// Makes everything written so far durable, then enters these leaf hashes into the tree, then records these segments
    /// as finished.
    fn checkpoint(
        &self,
        leaves: &[(SegmentIndex, SegmentLeaves)],
        finished: &[SegmentIndex],
    ) -> Result<(), StoreError>;

    /// Makes everything durable, checks the root of the leaf tree against `digest`, and turns what is staged into a
    /// snapshot in one step. When this returns, a power cut cannot take the snapshot back.
    ///
    /// # Errors
    /// [`StoreError::DigestMismatch`]; the content stays staged.
    fn commit(self: Box<Self>, digest: Digest) -> Result<SnapshotRecord, StoreError>;
}
