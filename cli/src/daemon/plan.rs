//! `plan`: what would be taken, dropped and sent now. Nothing is.

use std::sync::Arc;

use jiff::tz::TimeZone;
use zumastor_core::{SnapshotNumber, SnapshotRecord, VolumeName, schedule::plan_tick};

use super::{
    Daemon, clock::zone_name, epochs::superseded_text, holds::blocking, snapshotter::takes,
    status::snapshot_name, volume::Volume,
};
use crate::{
    api::{PLAN_SCHEMA, Part, PlannedSend, Role, SnapshotFate, VolumePlan},
    exit::Failure,
};

impl Daemon {
    /// `plan`.
    pub async fn plan(self: &Arc<Self>, name: &VolumeName) -> Result<VolumePlan, Failure> {
        let volume = self.volume(name)?;
        let snapshots = volume.store().await?.snapshots().await?;
        let (at, config) = (self.now(), volume.config());
        let superseded = self.superseded(&volume).await?;
        let idle = match &superseded {
            Some(superseded) => Some(superseded_text(name, superseded)),
            None => self.idle(&volume),
        };
        let (mut take, mut rotations) = (Vec::new(), Vec::new());
        if !config.schedule.is_empty() {
            let since = self.since(&volume).await?;
            rotations = self.rotation_statuses(&volume, &snapshots, since);
            if idle.is_none() {
                take = plan_tick(&config.schedule.specs(), &snapshots, &self.clock.zone(), since, at).take;
            }
        }
        let zone = self.clock.zone();
        let fates = self.fates(&volume, &snapshots).await?;
        let fate = |(number, stays, reasons)| SnapshotFate {
            number,
            name: named(&snapshots, number, &zone),
            stays,
            reasons,
        };
        Ok(VolumePlan {
            schema: PLAN_SCHEMA,
            zone: zone_name(&zone),
            volume: name.clone(),
            at,
            take,
            rotations,
            idle,
            snapshots: fates.into_iter().map(fate).collect(),
            targets: match superseded {
                Some(_) => Vec::new(),
                None => self.planned_sends(&volume, &snapshots).await?,
            },
        })
    }

    /// Why no snapshots are taken by schedule.
    fn idle(&self, volume: &Volume) -> Option<String> {
        let why = match volume.role() {
            Role::Replica => "this is a replica: its snapshots come from its source",
            Role::Undecided => "this node is not its master",
            Role::Master if !takes(&volume.config().schedule) => "there is no schedule that takes snapshots",
            Role::Master if volume.is_stopped(&Part::Master) => "the schedule is stopped",
            Role::Master => return None,
        };
        Some(why.to_owned())
    }

    async fn planned_sends(
        &self,
        volume: &Volume,
        snapshots: &[SnapshotRecord],
    ) -> Result<Vec<PlannedSend>, Failure> {
        let mut sends = Vec::new();
        for (host, target) in volume.config().target {
            let (state, name, peer) = (self.state.clone(), volume.name.clone(), host.clone());
            let cursor = blocking(move || state.cursor(&name, &peer)).await?;
            let has = cursor.map(|cursor| cursor.common);
            let next =
                volume.with_target(&host, |target| target.and_then(|target| target.worker.status().next));
            let stopped = volume.is_stopped(&Part::Target(host.clone()));
            let lacks = |record: &&SnapshotRecord| has.is_none_or(|has| has < record.number());
            let mut lacking = snapshots.iter().filter(|record| target.rotations.takes(record)).filter(lacks);
            let first = if target.all { lacking.next() } else { lacking.next_back() };
            let sends_now = first.map(SnapshotRecord::number);
            sends.push(PlannedSend { host, has, sends: sends_now, next, stopped });
        }
        Ok(sends)
    }
}

fn named(snapshots: &[SnapshotRecord], number: SnapshotNumber, zone: &TimeZone) -> String {
    let record = snapshots.binary_search_by_key(&number, SnapshotRecord::number).ok();
    record.map_or_else(String::new, |index| snapshot_name(snapshots[index].new.created, zone))
}
