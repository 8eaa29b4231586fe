//! What a volume in a thin pool consists of: the truth that its pool keeps durably.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zumastor_core::{SnapshotGuid, SnapshotNumber, SnapshotRecord, StagePlan};

use super::pool::ThinId;

/// What a volume consists of. It changes in one step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Catalogue {
    /// Identity of the store.
    pub store: Uuid,
    /// The volume itself.
    pub head: Head,
    /// Its snapshots, in ascending order of number.
    pub snapshots: Vec<Kept>,
    /// What is being received.
    pub staged: Option<Staged>,
}

/// The volume itself.
///
/// Whatever thin device is named here or below, beyond its size there is nothing but zeros in it: so it may grow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    pub thin: ThinId,
    /// In bytes; the device is as large as the whole sectors around it.
    pub size: u64,
    /// The snapshot that it was equal to at some moment. Whether it still is, the mappings tell.
    pub shows: Option<SnapshotGuid>,
    /// Set while what lies between the size and here is not yet zero, after it was made smaller.
    pub tail: Option<u64>,
}

/// A snapshot, and the thin device with its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub record: SnapshotRecord,
    pub thin: ThinId,
}

/// What is being received, and the thin device it goes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Staged {
    pub plan: StagePlan,
    pub thin: ThinId,
}

impl Catalogue {
    /// That of a volume without snapshots.
    pub(crate) fn new(store: Uuid, thin: ThinId, size: u64) -> Self {
        let head = Head { thin, size, shows: None, tail: None };
        Self { store, head, snapshots: Vec::new(), staged: None }
    }

    pub(crate) fn get(&self, number: SnapshotNumber) -> Option<&Kept> {
        self.find(number).ok().map(|at| &self.snapshots[at])
    }

    /// The snapshot with this identity.
    pub(crate) fn with_guid(&self, guid: SnapshotGuid) -> Option<&Kept> {
        self.snapshots.iter().find(|kept| kept.record.guid() == guid)
    }

    pub(crate) fn insert(&mut self, kept: Kept) {
        match self.find(kept.record.number()) {
            Ok(at) => self.snapshots[at] = kept,
            Err(at) => self.snapshots.insert(at, kept),
        }
    }

    pub(crate) fn remove(&mut self, number: SnapshotNumber) -> Option<Kept> {
        let kept = self.find(number).ok().map(|at| self.snapshots.remove(at))?;
        if self.head.shows == Some(kept.record.guid()) {
            self.head.shows = None;
        }
        Some(kept)
    }

    /// All thin devices that it names.
    pub(crate) fn thins(&self) -> BTreeSet<ThinId> {
        let others = self.snapshots.iter().map(|kept| kept.thin);
        others.chain([self.head.thin]).chain(self.staged.as_ref().map(|staged| staged.thin)).collect()
    }

    fn find(&self, number: SnapshotNumber) -> Result<usize, usize> {
        self.snapshots.binary_search_by_key(&number, |kept| kept.record.number())
    }
}
