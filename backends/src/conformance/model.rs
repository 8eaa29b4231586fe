//! What a volume should hold, in memory and without any cleverness.

use std::{collections::BTreeMap, ops::Range};

use zumastor_core::{
    NewSnapshot, SnapshotNumber, SnapshotReader, StagePlan, StoreError,
    digest::{Digest, Source, digest_of},
};

use super::ops::Write;

/// A volume's content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    /// Writes what lies within the volume.
    pub fn write(&mut self, write: &Write) {
        let range = self.cut(write);
        self.0[range].fill(write.2);
    }

    /// The part of a write that lies within the volume.
    pub fn cut(&self, (at, length, _): &Write) -> Range<usize> {
        let size = self.0.len();
        (*at as usize).min(size)..((at + length) as usize).min(size)
    }

    /// The digest, computed from scratch.
    pub fn digest(&self) -> Digest {
        digest_of(self, None).expect("memory can be read")
    }
}

impl Source for Bytes {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        buf.copy_from_slice(&self.0[offset as usize..][..buf.len()]);
        Ok(())
    }

    fn data(&self, window: Range<u64>) -> Result<Vec<Range<u64>>, StoreError> {
        Ok(vec![window])
    }
}

impl PartialEq<dyn SnapshotReader> for Bytes {
    fn eq(&self, reader: &dyn SnapshotReader) -> bool {
        let mut found = vec![0xEE; self.0.len()];
        reader.size() == self.0.len() as u64 && reader.read_at(0, &mut found).is_ok() && found == self.0
    }
}

/// A snapshot as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    pub new: NewSnapshot,
    pub content: Bytes,
}

/// What is staged: the plan, the content it starts from, and the content it shall get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Staged {
    pub plan: StagePlan,
    pub base: Bytes,
    pub target: Bytes,
}

/// The volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Model {
    pub head: Bytes,
    pub snapshots: BTreeMap<SnapshotNumber, Kept>,
    pub staged: Option<Staged>,
}

impl Model {
    pub(super) fn pick(&self, index: usize) -> Option<SnapshotNumber> {
        let count = self.snapshots.len();
        (count > 0).then(|| *self.snapshots.keys().nth(index % count).expect("within the list"))
    }
}
