//! `status --usage` and `status VOLUME SNAPSHOT`: what is looked at only when somebody asks for it.

use std::sync::Arc;

use zumastor_core::{SnapshotNumber, SnapshotUsage, VolumeName};

use super::{Daemon, snapshots::no_snapshot, status::snapshot_status, volume::Volume};
use crate::{
    api::{STATUS_SCHEMA, SnapshotReport, SnapshotStatus, SpaceOfSnapshot, VolumeStatus},
    exit::Failure,
};

impl Daemon {
    /// Adds what each snapshot takes, where the store can tell.
    pub async fn add_usage(&self, volume: &Volume, status: &mut VolumeStatus) -> Result<(), Failure> {
        let Some(usage) = volume.store().await?.usage_by_snapshot().await? else { return Ok(()) };
        status.all_snapshots = Some(usage.all);
        for snapshot in &mut status.snapshots {
            snapshot.usage = found(&usage.snapshots, snapshot.number);
        }
        Ok(())
    }

    /// One snapshot; with `usage`, also what it takes.
    pub async fn snapshot_report(
        self: &Arc<Self>,
        name: &VolumeName,
        number: SnapshotNumber,
        usage: bool,
    ) -> Result<SnapshotReport, Failure> {
        let volume = self.volume(name)?;
        let store = volume.store().await?;
        let snapshots = store.snapshots().await?;
        let record = snapshots.iter().find(|record| record.number() == number);
        let record = record.ok_or_else(|| no_snapshot(name, number))?;
        let space = match usage {
            true => store.usage_by_snapshot().await?.and_then(|usage| found(&usage.snapshots, number)),
            false => None,
        };
        let snapshot = SnapshotStatus {
            device: store.device(Some(number)),
            usage: space,
            scrub: self.last_scrub(name, record).await?,
            ..snapshot_status(record, &self.holds_and_unsent(&volume, &snapshots).await?)
        };
        Ok(SnapshotReport {
            schema: STATUS_SCHEMA,
            node: self.name.clone(),
            volume: name.clone(),
            role: volume.role(),
            snapshot,
        })
    }
}

/// What a snapshot takes; the list is in ascending order.
fn found(usages: &[SnapshotUsage], number: SnapshotNumber) -> Option<SpaceOfSnapshot> {
    let index = usages.binary_search_by_key(&number, |usage| usage.number).ok()?;
    let usage = &usages[index];
    Some(SpaceOfSnapshot { referenced: usage.referenced, exclusive: usage.exclusive, shared: usage.shared() })
}
