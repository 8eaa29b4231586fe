//! Setting a snapshot aside under a number of this node's own. One rename does it: the number of a snapshot is the name
//! of its directory, and a record in there that still has the number that a master gave says only where it came from.

use std::fs;

use zumastor_core::{SnapshotNumber, StoreError};

use super::{
    head::HeadMarker,
    inner::Inner,
    layout::{Described, failed, sync_dir},
};

impl Inner {
    pub(crate) fn set_aside(&self, from: SnapshotNumber, to: SnapshotNumber) -> Result<(), StoreError> {
        let _control = self.control()?;
        if from.is_local() || !to.is_local() {
            return Err(StoreError::Unsupported(format!("snapshot {from} cannot be set aside as {to}")));
        }
        let mut kept = self.kept(from)?;
        if self.state().has(to) {
            return Err(StoreError::Exists { number: to });
        }
        self.mark_renumbered(from, to)?;
        self.faults.at("set aside: before rename")?;
        let (old, new) = (self.layout.snapshot(from), self.layout.snapshot(to));
        fs::rename(&old, &new).map_err(failed("renaming", &old))?;
        self.or_broken((|| {
            self.faults.at("set aside: after rename")?;
            sync_dir(&self.layout.snapshots())
        })())?;
        kept.record.new.number = to;
        let mut state = self.state();
        state.snapshots.remove(&from);
        state.snapshots.insert(to, kept);
        drop(state);
        *self.draft() = None;
        Ok(())
    }

    /// If the head shows the snapshot, says so under either number: which of them is there decides.
    fn mark_renumbered(&self, from: SnapshotNumber, to: SnapshotNumber) -> Result<(), StoreError> {
        let Some(mut shown) = self.shown()?.filter(|shown| shown.number == from) else { return Ok(()) };
        let mut candidates = vec![shown.clone()];
        shown.number = to;
        candidates.push(shown);
        HeadMarker(candidates).replace(&self.layout.head())
    }
}
