//! What a daemon that was killed in the middle of a flip left with the NFS server.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::{Plan, file_system, table::Table, whose};
use crate::exports::Device;

/// Of these devices, those with snapshots that the volume showed once, and that nobody can come upon any more there.
pub fn left_behind(plan: &Plan, devices: &BTreeSet<Device>) -> Vec<Device> {
    let Ok(table) = Table::read() else { return Vec::new() };
    let left = |device: &Device| {
        let Some(path) = path(*device) else { return false };
        // What is mounted is what somebody may come upon: as a snapshot, in a place of its own.
        let mounted = table.0.iter().any(|mount| mount.device == *device);
        !mounted && (whose::is_device_of_snapshot(plan, *device) || file_system::is_snapshots_loop(&path))
    };
    devices.iter().copied().filter(left).collect()
}

fn path((major, minor): Device) -> Option<PathBuf> {
    let link = fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    Some(Path::new("/dev").join(link.file_name()?))
}
