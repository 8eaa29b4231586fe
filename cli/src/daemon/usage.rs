//! `status --usage` and `status VOLUME SNAPSHOT`: what is looked at only when somebody asks for it.

use std::sync::Arc;

use zumastor_core::{SnapshotNumber, SnapshotUsage, VolumeName, config::VolumeConfig};

use super::{Daemon, snapshots::no_snapshot, status::snapshot_status, volume::Volume};
use crate::{
    api::{MetadataPlan, STATUS_SCHEMA, SnapshotReport, SnapshotStatus, SpaceOfSnapshot, VolumeStatus},
    exit::Failure,
};

impl Daemon {
    /// Adds what each snapshot takes, where the store can tell.
    pub async fn add_usage(&self, volume: &Volume, status: &mut VolumeStatus) -> Result<(), Failure> {
        let store = volume.store().await?;
        if let (Some(pool), Some(size)) = (&mut status.pool, status.size) {
            let chunks = size.div_ceil(store.geometry()?.chunk);
            let used = pool.metadata.used.saturating_sub((pool.metadata.total / 10).min(KERNELS_OWN));
            pool.plan = Some(metadata_plan(used, chunks, &status.snapshots, &volume.config()));
        }
        let Some(usage) = store.usage_by_snapshot().await? else { return Ok(()) };
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

/// Bytes of metadata for each chunk that is mapped: an entry of a leaf has 16, and leaves are three quarters full.
const MAPPING: u64 = 22;
/// The kernel counts a tenth of the metadata, and at most this, as used: it keeps them for itself (`__set_metadata_reserve`,
/// drivers/md/dm-thin-metadata.c).
const KERNELS_OWN: u64 = 16 << 20;
/// Bytes that a snapshot takes at least: its own way from the root to a leaf, of blocks of 4 KiB.
const SNAPSHOT: u64 = 8192;

/// Whether the metadata suffice for the snapshots that the rotations keep.
fn metadata_plan(
    used: u64,
    chunks: u64,
    snapshots: &[SnapshotStatus],
    config: &VolumeConfig,
) -> MetadataPlan {
    let volume = chunks * MAPPING;
    let there = snapshots.len() as u64;
    let each = used.saturating_sub(volume).checked_div(there).unwrap_or(0).max(SNAPSHOT);
    let limits = config.schedule.limits();
    // What no rotation drops stays, beside what they keep.
    let limited = |name: &String| limits.keys().any(|limit| limit.as_str() == name);
    let beside = snapshots.iter().filter(|snapshot| !snapshot.rotations.iter().any(limited));
    let planned = limits.values().map(|keep| u64::from(*keep)).sum::<u64>() + beside.count() as u64;
    MetadataPlan {
        chunks,
        volume,
        snapshots: there,
        each,
        planned,
        needed: volume + planned * each,
        worst: volume + planned * each.max(volume),
    }
}

/// What a snapshot takes; the list is in ascending order.
fn found(usages: &[SnapshotUsage], number: SnapshotNumber) -> Option<SpaceOfSnapshot> {
    let index = usages.binary_search_by_key(&number, |usage| usage.number).ok()?;
    let usage = &usages[index];
    Some(SpaceOfSnapshot { referenced: usage.referenced, exclusive: usage.exclusive, shared: usage.shared() })
}

#[cfg(test)]
mod tests {
    use zumastor_core::{Lineage, NewSnapshot, SnapshotRecord};

    use super::*;

    #[test]
    fn metadata_are_planned_by_what_snapshots_took_so_far() {
        let mut config = VolumeConfig::new("/v", "/s");
        let snapshot = |number, rotations: &[&str]| {
            let rotations = rotations.iter().map(ToString::to_string).collect();
            let manual = NewSnapshot::manual(SnapshotNumber(number), Lineage::generate());
            let record = SnapshotRecord { new: NewSnapshot { rotations, ..manual }, size: 1, digest: None };
            snapshot_status(&record, &[])
        };
        // Nothing is known yet: the least.
        let none = metadata_plan(100_000, 1000, &[], &config);
        assert_eq!((none.volume, none.each, none.planned, none.needed), (22_000, SNAPSHOT, 0, 22_000));
        config.schedule = toml::from_str("hourly = 24\ndaily = 7").unwrap();
        let there = [snapshot(0, &[]), snapshot(1, &["hourly"]), snapshot(2, &["hourly", "daily"])];
        let plan = metadata_plan(22_000 + 90_000, 1000, &there, &config);
        // A manual one stays beside those of rotations.
        assert_eq!((plan.snapshots, plan.each, plan.planned), (3, 30_000, 32));
        assert_eq!((plan.needed, plan.worst), (22_000 + 32 * 30_000, 22_000 + 32 * 30_000));
        let plan = metadata_plan(22_000, 1000, &there, &config);
        assert_eq!((plan.each, plan.worst), (SNAPSHOT, 22_000 + 32 * 22_000));
    }
}
