//! A volume has one master. When another node is made the master, the one before learns it from the epoch, and stops.

use std::{io, sync::Arc};

use async_trait::async_trait;
use jiff::{Timestamp, tz::TimeZone};
use zumastor_core::{Lineage, NodeName, SnapshotNumber, StoreError, VolumeName};
use zumastor_net::{Epochs, believable};

use super::{
    Daemon,
    holds::blocking,
    state::{Era, State, StateError},
    volume::Volume,
};
use crate::{
    api::Superseded,
    exit::{Failure, chain},
};

impl Daemon {
    /// The lineage of a volume that has snapshots, and its epoch on this node.
    pub async fn epoch(&self, volume: &Volume) -> Result<Option<(Lineage, u64)>, Failure> {
        let Some(newest) = volume.newest().await? else { return Ok(None) };
        let lineage = newest.new.lineage;
        let epoch = match volume.config().master {
            Some(master) => master.epoch,
            None => self.era(lineage).await?.here,
        };
        Ok(Some((lineage, epoch)))
    }

    /// Who superseded this node as the master of a volume, if anybody did.
    pub async fn superseded(&self, volume: &Volume) -> Result<Option<Superseded>, Failure> {
        let Some(master) = volume.config().master else { return Ok(None) };
        let Some(newest) = volume.newest().await? else { return Ok(None) };
        let era = self.era(newest.new.lineage).await?;
        let Some((by, heard)) = era.heard.filter(|_| era.latest > master.epoch) else { return Ok(None) };
        Ok(Some(Superseded { epoch: era.latest, by, heard }))
    }

    /// Remembers that a peer has a lineage in an epoch.
    pub async fn hear(&self, volume: &VolumeName, lineage: Lineage, epoch: u64, from: &NodeName) {
        if !believable(epoch) {
            tracing::warn!(%volume, peer = %from, epoch, "an epoch more than a day in the future is not believed");
            return;
        }
        let (state, peer) = (self.state.clone(), from.clone());
        match blocking(move || state.hear_epoch(lineage, epoch, &peer)).await {
            Ok(true) => {
                tracing::warn!(%volume, peer = %from, epoch, "the volume has another master, says the peer");
            }
            Ok(false) => {}
            Err(error) => {
                tracing::error!(%volume, error = %chain(&error), "the new epoch could not be remembered");
            }
        }
    }

    /// What is known of who masters a lineage.
    pub async fn era(&self, lineage: Lineage) -> Result<Era, Failure> {
        if let Some(era) = self.state.era_in_memory(lineage) {
            return Ok(era);
        }
        let state = self.state.clone();
        Ok(blocking(move || state.era(lineage)).await?)
    }
}

/// What to say of a master that is none any more.
pub fn superseded_text(volume: &VolumeName, superseded: &Superseded) -> String {
    let Superseded { epoch, by, .. } = superseded;
    let since = i64::try_from(*epoch).ok().and_then(|epoch| Timestamp::from_millisecond(epoch).ok());
    let since = since.map_or_else(String::new, |since| {
        format!(" since {}", since.to_zoned_datetime(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S"))
    });
    format!(
        "volume {volume} has another master{since}, says {by}, so it is neither snapshotted nor sent from here: \
         `zumastor define source {volume} {by}` makes it a replica and keeps what was written here as a snapshot; \
         `zumastor promote {volume}` makes this node the master again"
    )
}

/// The epochs of one replica.
#[derive(Debug)]
pub struct ReplicaEpochs {
    state: Arc<State>,
    volume: VolumeName,
}

impl ReplicaEpochs {
    /// Those of a volume.
    pub fn new(state: Arc<State>, volume: VolumeName) -> Self {
        Self { state, volume }
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&State, &VolumeName) -> Result<T, StateError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (state, volume) = (self.state.clone(), self.volume.clone());
        let done = blocking(move || work(&state, &volume)).await;
        done.map_err(|error| StoreError::io("remembering the epoch")(io::Error::other(error)))
    }
}

#[async_trait]
impl Epochs for ReplicaEpochs {
    async fn epoch(&self, lineage: Lineage) -> Result<u64, StoreError> {
        if let Some(era) = self.state.era_in_memory(lineage) {
            return Ok(era.here);
        }
        self.with(move |state, _| Ok(state.era(lineage)?.here)).await
    }

    async fn enter(&self, lineage: Lineage, epoch: u64) -> Result<(), StoreError> {
        self.with(move |state, _| state.enter_epoch(lineage, epoch)).await
    }

    async fn setting_aside(&self, from: SnapshotNumber, to: SnapshotNumber) -> Result<(), StoreError> {
        self.with(move |state, volume| state.copy_holds(volume, from, to)).await
    }

    async fn set_aside(&self, from: SnapshotNumber) -> Result<(), StoreError> {
        self.with(move |state, volume| state.forget_number(volume, from)).await
    }
}
