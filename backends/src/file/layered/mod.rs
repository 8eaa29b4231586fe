//! Snapshots as layers of what changed: works on every file system, and reads the whole volume to find out.

mod chain;
mod create;
mod layer;
mod merge;
mod stage;

use chain::Chain;
pub(super) use chain::DataFile;
pub(super) use layer::{Descriptor, Layers};
pub(super) use stage::LayerBody;
use zumastor_core::{SnapshotNumber, StoreError};

use super::inner::Inner;

impl Inner {
    /// Opens a snapshot. The layers it reads are kept as they are until the chain is dropped.
    pub(super) fn chain(&self, number: SnapshotNumber) -> Result<Chain, StoreError> {
        self.kept(number)?;
        let pinned = {
            let mut state = self.state();
            let kept = state.snapshots.get(&number);
            let layer = kept.ok_or(StoreError::NotFound { number })?.layer;
            let layer = layer.ok_or_else(|| StoreError::Damaged {
                path: self.layout.snapshot(number).join("record"),
                what: "names no layer".into(),
            })?;
            state.layers.pin(&self.layout, layer)?
        };
        Ok(pinned.index())
    }

    /// Opens a layer as what is received is built upon it.
    pub(super) fn layer_chain(&self, layer: u64) -> Result<Chain, StoreError> {
        let pinned = self.state().layers.pin(&self.layout, layer)?;
        Ok(pinned.index())
    }
}
