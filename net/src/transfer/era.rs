//! What becomes of a replica's snapshots when another node has been made the master.
//!
//! Each time a node is made the master of a volume that another mastered, the *epoch* of its lineage rises. What a node has
//! belongs to the epoch it was received in, or taken in. An upstream of a later epoch goes on from a snapshot that both
//! have; what is here beyond that one belongs to a history that has ended. It is kept, under numbers of this node's own.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use zumastor_core::{Lineage, SnapshotNumber, SnapshotRecord, StoreError};

use super::downstream::{PullError, Replica};

/// The epoch of what a replica has, and what is to be remembered when a snapshot is set aside.
#[async_trait]
pub trait Epochs: std::fmt::Debug + Send + Sync {
    /// The epoch of what is here, of this lineage.
    async fn epoch(&self, lineage: Lineage) -> Result<u64, StoreError>;

    /// What is here is of this epoch now. Durable when it returns.
    async fn enter(&self, lineage: Lineage, epoch: u64) -> Result<(), StoreError>;

    /// A snapshot is about to get another number, and must not be deleted under it.
    async fn setting_aside(&self, from: SnapshotNumber, to: SnapshotNumber) -> Result<(), StoreError>;

    /// It has another number now: nothing that is remembered of the old one is true any more.
    async fn set_aside(&self, from: SnapshotNumber) -> Result<(), StoreError>;
}

/// The epoch of a replica that nobody remembers.
#[derive(Debug, Default)]
pub struct ForgetfulEpochs(AtomicU64);

#[async_trait]
impl Epochs for ForgetfulEpochs {
    async fn epoch(&self, _: Lineage) -> Result<u64, StoreError> {
        Ok(self.0.load(Ordering::SeqCst))
    }

    async fn enter(&self, _: Lineage, epoch: u64) -> Result<(), StoreError> {
        self.0.store(epoch, Ordering::SeqCst);
        Ok(())
    }

    async fn setting_aside(&self, _: SnapshotNumber, _: SnapshotNumber) -> Result<(), StoreError> {
        Ok(())
    }

    async fn set_aside(&self, _: SnapshotNumber) -> Result<(), StoreError> {
        Ok(())
    }
}

/// The lineage of what is here; none if nothing was received.
pub(super) fn lineage(here: &[SnapshotRecord]) -> Option<Lineage> {
    here.iter().rfind(|record| !record.number().is_local()).map(|record| record.new.lineage)
}

/// Follows the upstream into its epoch. If that is a later one, snapshots beyond `common`, the newest that both have, are
/// set aside; if it is an earlier one, the upstream has been superseded.
pub(super) async fn follow(
    replica: &Replica,
    here: &mut Vec<SnapshotRecord>,
    common: Option<SnapshotNumber>,
    lineage: Lineage,
    epoch: u64,
) -> Result<(), PullError> {
    if !believable(epoch) {
        return Err(PullError::Divergence(
            "the upstream was made the master at a time that is more than a day ahead of this node's clock. Nothing was \
             changed. Put the clocks of both nodes right"
                .into(),
        ));
    }
    let known = replica.epochs.epoch(lineage).await?;
    if epoch == known {
        return Ok(());
    }
    if epoch < known {
        return Err(PullError::Divergence(
            "the upstream goes on with a volume that has another master since: what is here comes from that one. Nothing \
             was changed. Define the new master, or a replica of it, as the source"
                .into(),
        ));
    }
    let beyond = here.iter().map(SnapshotRecord::number).filter(|number| !number.is_local());
    let beyond: Vec<_> = beyond.filter(|number| Some(*number) > common).collect();
    for from in beyond {
        let to = next_local(here);
        tracing::info!(snapshot = %from, %to, "the new master does not have it: kept under a number of this node's own");
        replica.epochs.setting_aside(from, to).await?;
        replica.store.set_aside(from, to).await?;
        replica.epochs.set_aside(from).await?;
        *here = replica.store.snapshots().await?;
    }
    // Only now: until then, what is left to be set aside is found again.
    Ok(replica.epochs.enter(lineage, epoch).await?)
}

/// Whether an epoch that a peer tells can be one: it is a time, and nobody's clock is days ahead. So a peer that tells
/// nonsense cannot take away the room for later ones.
pub fn believable(epoch: u64) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u128::from(epoch) <= (now + AHEAD).as_millis()
}

/// How far another node's clock may be ahead.
const AHEAD: Duration = Duration::from_secs(24 * 3600);

/// The next number of this node's own.
pub(super) fn next_local(here: &[SnapshotRecord]) -> SnapshotNumber {
    let last = here.last().map(SnapshotRecord::number).filter(|number| number.is_local());
    last.map_or(SnapshotNumber::local(0), SnapshotNumber::next)
}
