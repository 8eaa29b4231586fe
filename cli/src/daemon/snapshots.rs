//! Taking snapshots, and holding them.

use std::sync::Arc;

use jiff::Timestamp;
use zumastor_core::{
    HoldOwner, NewSnapshot, SnapshotNumber, SnapshotRecord, SnapshotStore, StoreError, VolumeName,
};

use super::{
    Daemon,
    epochs::superseded_text,
    holds::blocking,
    mounting::hold_still,
    state::StateError,
    status::snapshot_status,
    volume::Volume,
    window::{Member, Taken},
};
use crate::{
    api::{self, Outcome, Role, SnapshotStatus, TakenSnapshot},
    exit::{Failure, chain},
};

impl Daemon {
    /// `snapshot`.
    pub async fn snapshot(
        self: &Arc<Self>,
        name: &VolumeName,
        rotation: Option<&str>,
    ) -> Result<TakenSnapshot, Failure> {
        let volume = self.volume(name)?;
        let _snapshotting = volume.snapshotting.lock().await;
        self.check_master(&volume, "take a snapshot of it").await?;
        if let Some(rotation) = rotation {
            check_rotation(&volume, rotation)?;
        }
        let rotations = rotation.into_iter().map(str::to_owned).collect();
        let member = Member { volume: volume.clone(), rotations };
        let Taken { records, notes, .. } = self.take_together(&[member], None, self.now()).await?;
        self.retain(&volume).await;
        self.check_mounted(&volume, records[0].number())?;
        let mounted = volume.mounting.view().report.mounted.get(&records[0].number()).cloned();
        let snapshot = SnapshotStatus { mounted, ..snapshot_status(&records[0], &[]) };
        Ok(TakenSnapshot { snapshot, notes })
    }

    /// Says so if a snapshot that was just taken should be mounted and is not.
    pub fn check_mounted(&self, volume: &Volume, number: SnapshotNumber) -> Result<(), Failure> {
        let (name, view) = (&volume.name, volume.mounting.view());
        let Some(trouble) = view.report.failed.get(&number) else { return Ok(()) };
        let failure = format!("snapshot {number} of volume {name} was taken, and is not mounted: {trouble}");
        Err(Failure::failed(failure).remedy(format!(
            "it is tried again and again; `zumastor define master {name} --no-snapmount` if it need not be mounted"
        )))
    }

    /// Refuses, unless this node is the volume's master.
    pub async fn check_master(&self, volume: &Volume, what: &str) -> Result<(), Failure> {
        let name = &volume.name;
        match volume.role() {
            Role::Master => match self.superseded(volume).await? {
                None => Ok(()),
                Some(superseded) => Err(Failure::refused(superseded_text(name, &superseded))),
            },
            Role::Replica => Err(Failure::refused(format!(
                "volume {name} is a replica: it is always what comes from its source, so {what} on the master"
            ))),
            Role::Undecided => Err(Failure::refused(format!("this node is not the master of volume {name}"))
                .remedy(format!("`zumastor define master {name}` first"))),
        }
    }

    /// Takes a snapshot of a volume that this node masters, without its hooks: one that is to keep what would be replaced.
    /// To be called with its `snapshotting` locked.
    pub async fn take_snapshot(
        &self,
        volume: &Volume,
        rotations: Vec<String>,
        created: Timestamp,
    ) -> Result<SnapshotRecord, Failure> {
        self.make_up(volume).await?;
        self.make_room_in_pool(volume, 0).await?;
        let (store, new) = (volume.store().await?, self.number(volume).await?);
        let (number, lineage) = (new.number, new.lineage);
        let new = NewSnapshot { rotations, created, ..new };
        let still = hold_still(volume).await?;
        let created = store.create_snapshot(new).await;
        drop(still);
        let record = match created {
            Ok(record) => record,
            Err(error) => {
                let state = self.state.clone();
                blocking(move || state.return_number(lineage, number)).await?;
                return Err(error.into());
            }
        };
        self.taken(volume, store, &record);
        Ok(record)
    }

    /// Gives the next snapshot of a volume its number.
    pub async fn number(&self, volume: &Volume) -> Result<NewSnapshot, Failure> {
        let newest = volume.newest().await?;
        let least = newest.as_ref().map_or(SnapshotNumber(0), |newest| newest.number().next());
        let (state, owned) = (self.state.clone(), volume.name.clone());
        let (lineage, number) = blocking(move || {
            let lineage = match &newest {
                Some(newest) => newest.new.lineage,
                None => state.lineage(&owned)?,
            };
            Ok((lineage, state.take_number(lineage, least)?))
        })
        .await?;
        Ok(NewSnapshot::manual(number, lineage))
    }

    /// What follows when a snapshot has been taken.
    pub fn taken(&self, volume: &Volume, store: Arc<dyn SnapshotStore>, record: &SnapshotRecord) {
        let (name, number) = (&volume.name, record.number());
        let rotations = record.new.rotations.join(" ");
        tracing::info!(volume = %name, %number, rotations, "snapshot taken");
        volume.rearm_targets();
        // The digest is wanted as soon as it is sent; until then there is time.
        let volume = volume.name.clone();
        tokio::spawn(async move {
            match store.leaves(number).await {
                // It may be gone by now.
                Ok(_) | Err(StoreError::NotFound { .. }) => {}
                Err(error) => {
                    tracing::warn!(%volume, %number, error = %chain(&error), "the digest could not be computed");
                }
            }
        });
    }

    /// `hold`.
    pub async fn hold(
        &self,
        volume: &VolumeName,
        number: SnapshotNumber,
        name: &str,
    ) -> Result<Outcome, Failure> {
        api::check_hold_name(name).map_err(Failure::usage)?;
        // A volume that is being forgotten gets no more holds.
        let _editing = self.editing.lock().await;
        let found = self.volume(volume)?;
        let snapshots = found.store().await?.snapshots().await?;
        if !snapshots.iter().any(|record| record.number() == number) {
            return Err(no_snapshot(volume, number));
        }
        let (state, owned, hold) = (self.state.clone(), volume.clone(), name.to_owned());
        let new = blocking(move || state.hold(&owned, number, &HoldOwner::User, &hold)).await?;
        // Nor may one be held that may be taken back.
        let unsettled = found.unsettled().is_some_and(|unsettled| number >= unsettled);
        // Whoever claimed it before deletes it, or has done so; whoever comes later sees the hold.
        let doomed = found.doomed.lock().expect("no panic while locked").contains(&number);
        let there = found.store().await?.snapshots().await?.iter().any(|record| record.number() == number);
        if doomed || unsettled || !there {
            let (state, owned, hold) = (self.state.clone(), volume.clone(), name.to_owned());
            blocking(move || state.release(&owned, number, &HoldOwner::User, &hold)).await?;
            return Err(no_snapshot(volume, number));
        }
        let held = format!("snapshot {number} of volume {volume} is held as {name:?}");
        Ok(if new { Outcome::changed(held) } else { Outcome::already(format!("{held} already")) })
    }

    /// `release`.
    pub async fn release(
        &self,
        volume: &VolumeName,
        number: SnapshotNumber,
        name: &str,
    ) -> Result<Outcome, Failure> {
        self.volume(volume)?;
        let (state, owned, hold) = (self.state.clone(), volume.clone(), name.to_owned());
        let (released, holds) = blocking(move || {
            Ok((state.release(&owned, number, &HoldOwner::User, &hold)?, state.holds(&owned)?))
        })
        .await?;
        if released {
            return Ok(Outcome::changed(format!(
                "snapshot {number} of volume {volume} is not held as {name:?} any more"
            )));
        }
        let peer = holds.iter().find_map(|hold| match &hold.owner {
            HoldOwner::Peer(peer)
                if hold.number == number && (hold.name == name || peer.as_str() == name) =>
            {
                Some(peer)
            }
            _ => None,
        });
        Err(match peer {
            Some(peer) => Failure::refused(format!(
                "replication with {peer} holds snapshot {number} of volume {volume}: the next transfer builds upon it"
            ))
            .remedy(format!(
                "it moves on by itself when a newer one has been replicated; forgetting {peer} for this volume lifts it"
            )),
            None => Failure::failed(format!("snapshot {number} of volume {volume} is not held as {name:?}"))
                .remedy(format!("`zumastor status {volume}` lists the holds")),
        })
    }
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        Self::failed(chain(&error))
    }
}

/// That a volume has no such snapshot.
pub fn no_snapshot(volume: &VolumeName, number: SnapshotNumber) -> Failure {
    Failure::failed(format!("volume {volume} has no snapshot {number}"))
        .remedy(format!("`zumastor status {volume}` lists them"))
}

/// Refuses a rotation that the volume does not have, or that keeps nothing.
pub fn check_rotation(volume: &Volume, rotation: &str) -> Result<(), Failure> {
    let name = &volume.name;
    let specs = volume.config().schedule.specs();
    if let Some(spec) = specs.iter().find(|spec| spec.name.as_str() == rotation) {
        if spec.keep > 0 {
            return Ok(());
        }
        return Err(Failure::failed(format!("rotation {rotation} of volume {name} keeps no snapshots"))
            .remedy(format!("give it a limit with `zumastor define schedule {name}` first")));
    }
    let known: Vec<_> = specs.iter().map(|spec| spec.name.as_str()).collect();
    let known = match known.is_empty() {
        true => "it has none".to_owned(),
        false => format!("it has {}", known.join(", ")),
    };
    Err(Failure::failed(format!("volume {name} has no rotation {rotation:?}; {known}"))
        .remedy(format!("`zumastor define schedule {name}` adds rotations")))
}
