//! Groups: volumes whose snapshots are taken together, at one moment and under one identity.
//!
//! Whoever takes snapshots of several volumes locks all of them, in the order of their names.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::MutexGuard;
use zumastor_core::{
    GroupName, RotationName,
    schedule::{Tick, plan_tick},
};

use super::{
    Daemon,
    snapshots::check_rotation,
    snapshotter::takes,
    status::snapshot_status,
    volume::Volume,
    window::{Member, Taken},
};
use crate::{
    api::{Part, TakenGroup, TakenSnapshot},
    exit::Failure,
};

impl Daemon {
    /// `snapshot --group`.
    pub async fn snapshot_group(
        self: &Arc<Self>,
        group: &GroupName,
        rotation: Option<&str>,
    ) -> Result<TakenGroup, Failure> {
        let volumes = self.group(group);
        if volumes.is_empty() {
            return Err(Failure::failed(format!("there is no group {group}")).remedy(format!(
                "`zumastor define master VOLUME --group {group}` makes a volume one of it; `zumastor snapshot VOLUME` takes \
                 a snapshot of one volume"
            )));
        }
        let locked = lock(&volumes).await;
        for volume in &volumes {
            self.check_master(volume, "take a snapshot of it").await?;
            if let Some(rotation) = rotation {
                check_rotation(volume, rotation)?;
            }
        }
        let rotations: Vec<_> = rotation.into_iter().map(str::to_owned).collect();
        let member = |volume: &Arc<Volume>| Member { volume: volume.clone(), rotations: rotations.clone() };
        let members: Vec<_> = volumes.iter().map(member).collect();
        let Taken { records, group: id, notes } =
            self.take_together(&members, Some(group), self.now()).await?;
        for volume in &volumes {
            self.retain(volume).await;
        }
        drop(locked);
        for (volume, record) in volumes.iter().zip(&records) {
            self.check_mounted(volume, record.number())?;
        }
        let taken = |(volume, record): (&Arc<Volume>, _)| {
            let snapshot = snapshot_status(record, &[]);
            (volume.name.clone(), TakenSnapshot { snapshot, notes: Vec::new() })
        };
        let snapshots = volumes.iter().zip(&records).map(taken).collect();
        Ok(TakenGroup { group: id.expect("a group has an identity"), snapshots, notes })
    }

    /// Takes what a volume's schedule asks for now, together with the other volumes of its group for which something is
    /// due, and tells when to look again; never, when there is nothing to wait for.
    pub async fn take_scheduled(
        self: &Arc<Self>,
        volume: &Arc<Volume>,
    ) -> Result<Option<Timestamp>, Failure> {
        let (next, taken) = loop {
            let group = volume.config().group;
            let mut volumes = group.as_ref().map(|group| self.group(group)).unwrap_or_default();
            if !volumes.iter().any(|there| Arc::ptr_eq(there, volume)) {
                // It is being forgotten, or has no group.
                volumes = vec![volume.clone()];
            }
            // First of all, so that it stays so: whoever changes a role holds it meanwhile.
            let _locked = lock(&volumes).await;
            if volume.config().group != group {
                continue;
            }
            break self.take_due(volume, &volumes, group.as_ref()).await?;
        };
        for volume in &taken {
            self.retain_to_the_end(volume).await;
        }
        Ok(next)
    }

    async fn take_due(
        &self,
        volume: &Arc<Volume>,
        volumes: &[Arc<Volume>],
        group: Option<&GroupName>,
    ) -> Result<(Option<Timestamp>, Vec<Arc<Volume>>), Failure> {
        let now = self.now();
        let Some(own) = self.due(volume, now).await? else { return Ok((None, Vec::new())) };
        if own.take.is_empty() {
            return Ok((own.next, Vec::new()));
        }
        let (mut members, mut unfinished) = (Vec::new(), Vec::new());
        for other in volumes {
            let due = match Arc::ptr_eq(other, volume) {
                true => Some(own.clone()),
                false => self.due(other, now).await.map_err(|failure| Failure {
                    error: format!("volume {} of the same group: {}", other.name, failure.error),
                    ..failure
                })?,
            };
            let Some(tick) = due.filter(|tick| !tick.take.is_empty()) else { continue };
            if tick.next == Some(now) {
                unfinished.push(other.name.clone());
            }
            let rotations = tick.take.iter().map(RotationName::to_string).collect();
            members.push(Member { volume: other.clone(), rotations });
        }
        let together = group.filter(|_| members.len() > 1);
        let taken = self.take_together(&members, together, now).await?;
        for note in taken.notes {
            tracing::warn!(volume = %volume.name, "{note}");
        }
        for member in &members {
            if !unfinished.contains(&member.volume.name) {
                self.set_since(&member.volume, now).await?;
            }
        }
        Ok((own.next, members.into_iter().map(|member| member.volume).collect()))
    }

    /// What a volume's schedule asks for; nothing where it takes no snapshots now.
    async fn due(&self, volume: &Arc<Volume>, now: Timestamp) -> Result<Option<Tick>, Failure> {
        let config = volume.config();
        let idle = volume.barred().is_some() || volume.is_stopped(&Part::Master);
        if idle || config.master.is_none() || !takes(&config.schedule) {
            return Ok(None);
        }
        // Before anything can fail: what is missed from now on is made up for.
        let since = self.since(volume).await?;
        if self.superseded(volume).await?.is_some() {
            return Ok(None);
        }
        let snapshots = volume.store().await?.snapshots().await?;
        Ok(Some(plan_tick(&config.schedule.specs(), &snapshots, &self.clock.zone(), since, now)))
    }

    /// The volumes of a group, in the order of their names.
    fn group(&self, group: &GroupName) -> Vec<Arc<Volume>> {
        let mut volumes = self.all_volumes();
        volumes.retain(|volume| volume.config().group.as_ref() == Some(group));
        volumes
    }

    /// What is good to know when the group of a volume has changed.
    pub fn group_note(&self, volume: &Volume, before: Option<&GroupName>) -> String {
        let Some(group) = volume.config().group else {
            return before.map_or_else(String::new, |before| format!("it is not of group {before} any more"));
        };
        let others: Vec<_> = self.group(&group).iter().map(|other| other.name.to_string()).collect();
        let others: Vec<_> = others.into_iter().filter(|other| *other != volume.name.as_str()).collect();
        match others.as_slice() {
            [] => format!("it is the only volume of group {group} yet"),
            others => format!(
                "its scheduled snapshots are taken together with those of {} that are due at the same time; `zumastor \
                 snapshot --group {group}` takes one of each",
                others.join(", ")
            ),
        }
    }
}

async fn lock(volumes: &[Arc<Volume>]) -> Vec<MutexGuard<'_, ()>> {
    let mut locked = Vec::with_capacity(volumes.len());
    for volume in volumes {
        locked.push(volume.snapshotting.lock().await);
    }
    locked
}
