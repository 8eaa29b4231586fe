//! What a thin pool can do, whoever owns it.

use std::{
    collections::BTreeSet,
    fmt, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use zumastor_core::{SnapshotNumber, StoreError, StoreInfo};

use super::catalogue::Catalogue;
use crate::thin_metadata::ThinMetadata;

/// The number of a thin device in its pool; 24 bits, Documentation/admin-guide/device-mapper/thin-provisioning.rst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct ThinId(pub u32);

impl ThinId {
    /// The first number that is none.
    pub(crate) const END: u32 = 1 << 24;
}

impl fmt::Display for ThinId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a device is for, and by that what it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Slot {
    /// The volume itself.
    Head,
    /// A snapshot.
    Snapshot(SnapshotNumber),
    /// What is being received.
    Staging,
    /// A snapshot while it is put right.
    Repair,
    /// For a moment's work.
    Scratch,
}

/// Whether a device may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    ReadOnly,
    Writable,
}

/// Programs that have the head open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Users {
    None,
    Readers,
    /// Some program may write at any moment, or it cannot be told.
    Writers,
}

/// What became of a device that was to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gone {
    Yes,
    /// Some program has it open: it goes when that closes it.
    Later,
}

/// Bytes taken and there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    pub used: u64,
    pub total: u64,
}

/// How a pool is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PoolStatus {
    pub data: Room,
    pub metadata: Room,
    /// Whether a moment of the metadata is held.
    pub held: bool,
    /// Why nothing can be changed, and what helps.
    pub trouble: Option<String>,
}

/// Whether something failed only because it would have had to wait for somebody else at a moment when nothing may wait: nothing
/// was changed.
pub(crate) fn would_wait(error: &StoreError) -> bool {
    matches!(error, StoreError::Io { source, .. } if source.kind() == io::ErrorKind::WouldBlock)
}

/// A thin pool, and the devices of one volume in it. All calls block.
pub(crate) trait Pool: fmt::Debug + Send + Sync + 'static {
    /// What it is called in messages.
    fn place(&self) -> &Path;

    /// How the store works, for people.
    fn info(&self) -> StoreInfo;

    /// Unit of allocation in bytes.
    fn chunk(&self) -> u64;

    /// What was saved last.
    fn load(&self) -> Result<Catalogue, StoreError>;

    /// Keeps what the volume consists of, in one durable step. Where it would have had to wait ([`would_wait`]), nothing has
    /// happened.
    fn save(&self, catalogue: &Catalogue) -> Result<(), StoreError>;

    /// Refuses a size that a volume in this pool cannot have, though it consists of whole sectors.
    fn check_size(&self, _size: u64) -> Result<(), StoreError> {
        Ok(())
    }

    /// The volume's thin devices that are there, whether the catalogue knows them or not.
    fn thins(&self) -> Result<BTreeSet<ThinId>, StoreError>;

    /// Makes a thin device of zeros.
    fn create(&self, slot: Slot, size: u64) -> Result<ThinId, StoreError>;

    /// Makes a thin device with the content of one that nobody writes.
    fn clone_of(&self, origin: ThinId, slot: Slot, size: u64) -> Result<ThinId, StoreError>;

    /// Makes a thin device with what the head holds at one moment, a mounted file system being frozen meanwhile. Whatever
    /// happens, the head goes on.
    fn clone_head(&self, head: ThinId, number: SnapshotNumber) -> Result<ThinId, StoreError>;

    /// Keeps who writes to the head waiting, a mounted file system being frozen, until [`thaw_head`](Self::thaw_head); what
    /// [`clone_head`](Self::clone_head) makes meanwhile is of this moment. False where that cannot be done.
    fn freeze_head(&self) -> Result<bool, StoreError> {
        Ok(false)
    }

    /// Lets the head go on.
    fn thaw_head(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Deletes a thin device. One that is still open stays until another call.
    fn delete(&self, id: ThinId) -> Result<Gone, StoreError>;

    /// Makes the device of a slot show a thin device in this size, and gives its path.
    fn activate(&self, slot: Slot, id: ThinId, size: u64, access: Access) -> Result<PathBuf, StoreError>;

    /// Removes the device of a slot, if there is one. One that is open loses its name, and goes when it is closed.
    fn deactivate(&self, slot: Slot) -> Result<Gone, StoreError>;

    /// Gives the device of a snapshot another number.
    fn renumber(&self, from: SnapshotNumber, to: SnapshotNumber) -> Result<(), StoreError>;

    /// Removes what devices are left from an earlier run and are not among these.
    fn sweep(&self, wanted: &[Slot]) -> Result<(), StoreError>;

    /// Puts another thin device in the place of the head in one step: while nothing gets through to the head, `commit`
    /// decides. If it fails the head goes on as it was. If it would have to wait for somebody else ([`would_wait`]) the head goes on,
    /// and it is called again later. Who has the old head open keeps that.
    fn swap_head(
        &self,
        to: ThinId,
        size: u64,
        commit: &mut dyn FnMut() -> Result<(), StoreError>,
    ) -> Result<(), StoreError>;

    /// Who has the head open.
    fn head_users(&self) -> Result<Users, StoreError>;

    /// Where the device of a slot is, if it is active.
    fn device(&self, slot: Slot) -> PathBuf;

    /// Lets `read` look at the mappings as they are at one moment. There is one such moment at a time in a pool, and it
    /// keeps space: nothing else is to be done meanwhile.
    fn read_metadata(
        &self,
        read: &mut dyn FnMut(&ThinMetadata) -> Result<(), StoreError>,
    ) -> Result<(), StoreError>;

    /// What the volume consists of where others may have changed it since, as LVM's tools do. What is gone is reported.
    fn look_again(&self, catalogue: &Catalogue) -> Result<Catalogue, StoreError> {
        Ok(catalogue.clone())
    }

    /// Whether a thin device is still the one that it was. While a moment of the metadata is held, that is so in it too.
    fn is_there(&self, _id: ThinId) -> Result<bool, StoreError> {
        Ok(true)
    }

    /// What gives a full pool more room for data, and for metadata.
    fn remedies(&self) -> (String, String);

    /// Whether others may have volumes in it as well.
    fn is_shared(&self) -> bool {
        false
    }

    /// How the pool is.
    fn status(&self) -> Result<PoolStatus, StoreError>;

    /// The same without having the kernel write what it has not written yet: for those who look often.
    fn glance(&self) -> Result<PoolStatus, StoreError> {
        self.status()
    }

    /// What is to be said while somebody else holds a moment of the metadata: what is deleted stays part of that. `held` is whether the
    /// pool says that one is held.
    fn foreign_hold(&self, held: bool) -> Option<String>;

    /// Takes so many bytes of the device with the data, and of metadata, into use. `noted` is called when that is decided, and
    /// not yet done.
    fn grow(
        &self,
        _data: Option<u64>,
        _metadata: Option<u64>,
        _noted: &mut dyn FnMut() -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        Err(StoreError::Unsupported("the pool of this volume is not ours to resize".into()))
    }

    /// Removes all devices that nobody has open.
    fn close(&self) -> Result<(), StoreError>;
}
