//! Changing who masters a volume: `promote`, and the way back that begins with `define source` on the former master.

use std::sync::Arc;

use jiff::Timestamp;
use zumastor_core::{
    HeadState, Lineage, NewSnapshot, SnapshotNumber, SnapshotRecord, StoreError, VolumeName,
    config::{MasterConfig, VolumeConfig},
};

use super::{
    Daemon,
    holds::blocking,
    puller::Pull,
    revert::SETTLING,
    volume::{Volume, exists},
};
use crate::{
    api::{Outcome, Part, Role},
    exit::{Failure, chain},
};

/// What the configuration says of this node as the master, or would if it became it: what is exported stays so.
pub(super) fn master_before(config: &VolumeConfig) -> MasterConfig {
    let exported = || config.source.as_ref().map(|source| source.export.clone()).unwrap_or_default();
    config.master.clone().unwrap_or_else(|| MasterConfig { export: exported(), ..MasterConfig::default() })
}

impl Daemon {
    /// `promote`.
    pub async fn promote(self: &Arc<Self>, name: &VolumeName) -> Result<Outcome, Failure> {
        let _editing = self.editing.lock().await;
        let volume = self.volume(name)?;
        match volume.role() {
            Role::Master if self.superseded(&volume).await?.is_none() => {
                Ok(Outcome::already(format!("this node is the master of volume {name} already")))
            }
            Role::Undecided => {
                Err(Failure::refused(format!("volume {name} is neither master nor replica on this node"))
                    .remedy(format!("`zumastor define master {name}` makes it the master")))
            }
            Role::Master | Role::Replica => self.take_over(&volume, volume.config()).await,
        }
    }

    /// Makes this node the master of a volume that another one masters, with what else `config` says. To be called with
    /// `editing` held. The one write of
    /// the configuration decides: before it nothing has happened, after it all has.
    pub async fn take_over(
        self: &Arc<Self>,
        volume: &Arc<Volume>,
        config: VolumeConfig,
    ) -> Result<Outcome, Failure> {
        let (name, before) = (&volume.name, volume.config());
        if !exists(before.origin.clone()).await {
            let origin = before.origin.display();
            return Err(Failure::failed(format!("{origin} does not exist: nothing has been received yet"))
                .remedy("wait for the first snapshot"));
        }
        // What the schedule would have taken before is not made up for.
        self.settle(volume).await?;
        // Nothing may arrive meanwhile.
        volume.set_puller(|| None).await;
        let taken = self.enter_new_epoch(volume, config).await;
        if let Err(failure) = taken {
            // Once it is written, it has happened.
            if volume.config().source.is_some()
                && let Some(source) = &before.source
            {
                Pull::start(self, volume, source).await;
            }
            return Err(failure);
        }
        self.unstop(volume, &Part::Source).await?;
        volume.rearm_targets();
        let outcome = Outcome::changed(format!("this node is the master of volume {name}"));
        let outcome = self.mounted(outcome, volume).await;
        let Some(source) = before.source else {
            return Ok(match before.master {
                Some(_) => outcome,
                None => outcome.note(
                    "it came from another node: this one is the master in place of whoever mastered it, who stops as soon as \
                     they hear of this",
                ),
            });
        };
        let host = &source.host;
        let remote = source.name.as_deref().unwrap_or(name.as_str());
        Ok(outcome.note(format!("it comes from {host} no more")).note(format!(
            "{host} stops as soon as it hears of this. To make it the replica: here `zumastor define target {name} \
             {host}`, there `zumastor define source {remote} {}`",
            self.name
        )))
    }

    async fn enter_new_epoch(&self, volume: &Arc<Volume>, mut config: VolumeConfig) -> Result<(), Failure> {
        let (name, store) = (&volume.name, volume.store().await?);
        let lineage = match volume.newest().await? {
            Some(newest) => {
                if volume.config().master.is_none() {
                    show_newest(volume, newest.number()).await?;
                }
                newest.new.lineage
            }
            None => self.own_lineage(name).await?,
        };
        let era = self.era(lineage).await?;
        let before = master_before(&config);
        let now = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0);
        let epoch = now.max(era.here.max(era.latest).max(before.epoch) + 1);
        config.master = Some(MasterConfig { epoch, ..before });
        config.source = None;
        self.write_volume(name, &config).await?;
        volume.set_config(config);
        tracing::info!(volume = %name, epoch, "this node is the master now");
        // The configuration has said it: what follows only tidies up.
        let state = self.state.clone();
        blocking(move || state.master_epoch(lineage, epoch)).await?;
        if let Err(error) = store.discard_staged().await {
            tracing::warn!(volume = %name, error = %chain(&error), "what was being received is still there");
        }
        Ok(())
    }

    /// Prepares a volume that this node masters for being received: keeps what the head holds and no snapshot has, as a
    /// snapshot of this node's own, and remembers which epoch all of it is of. To be called with `editing` and `snapshotting` held.
    pub async fn keep_mastered(
        &self,
        volume: &Arc<Volume>,
        epoch: u64,
    ) -> Result<Option<SnapshotNumber>, Failure> {
        let (name, store) = (&volume.name, volume.store().await?);
        let lineage = match volume.newest().await? {
            Some(newest) => newest.new.lineage,
            None => self.own_lineage(name).await?,
        };
        let mut kept = None;
        if store.head().await? == HeadState::Written {
            tokio::time::sleep(SETTLING).await;
            let last = store.snapshots().await?.last().map(SnapshotRecord::number);
            let number =
                last.filter(|last| last.is_local()).map_or(SnapshotNumber::local(0), SnapshotNumber::next);
            store.create_snapshot(NewSnapshot::manual(number, lineage)).await?;
            if store.head().await? != HeadState::Shows(number) {
                return Err(Failure::refused(format!(
                    "a program is writing to volume {name}; what it held a moment ago is snapshot {number}"
                ))
                .remedy("stop the program that uses the volume, then repeat the command"));
            }
            kept = Some(number);
        }
        let state = self.state.clone();
        blocking(move || state.enter_epoch(lineage, epoch)).await?;
        Ok(kept)
    }

    async fn own_lineage(&self, name: &VolumeName) -> Result<Lineage, Failure> {
        let (state, name) = (self.state.clone(), name.clone());
        Ok(blocking(move || state.lineage(&name)).await?)
    }
}

/// Makes a replica show its newest snapshot, if that could not be done before. What somebody wrote to it stays.
async fn show_newest(volume: &Volume, newest: SnapshotNumber) -> Result<(), Failure> {
    let store = volume.store().await?;
    match store.head().await? {
        HeadState::Shows(number) if number == newest => return Ok(()),
        HeadState::Written => return Ok(()),
        HeadState::Shows(_) | HeadState::Empty => {}
    }
    match store.show(newest).await {
        Err(StoreError::HeadBusy { path }) => Err(Failure::refused(format!(
            "{} is open for writing by another program, so the volume does not show its newest snapshot, {newest}",
            path.display()
        ))
        .remedy("stop the program, then repeat the command")),
        shown => Ok(shown?),
    }
}
