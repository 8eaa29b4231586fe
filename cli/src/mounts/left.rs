//! What a daemon that was killed in the middle of a flip left with the NFS server.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::{Plan, file_system, table::Table};
use crate::exports::Device;

/// Of these devices, those with snapshots that the volume showed once, and that nobody can come upon any more there.
pub fn left_behind(plan: &Plan, devices: &BTreeSet<Device>) -> Vec<Device> {
    let Ok(table) = Table::read() else { return Vec::new() };
    let shown = table.top(&plan.mountpoint).map(|top| top.device);
    let left = |device: &Device| {
        let Some(path) = path(*device) else { return false };
        let mounted = table.0.iter().any(|mount| mount.device == *device);
        // A mount of an image has a device of its own. That of a mapped snapshot may be mounted as a snapshot, too.
        Some(*device) != shown
            && (is_mapped(plan, &path) || !mounted && file_system::is_snapshots_loop(&path))
    };
    devices.iter().copied().filter(left).collect()
}

/// Whether a device is of a snapshot of a volume in a thin pool: `VOLUME(NUMBER)`.
fn is_mapped(plan: &Plan, device: &Path) -> bool {
    let Some(name) = device.file_name() else { return false };
    let name = fs::read_to_string(Path::new("/sys/block").join(name).join("dm/name")).unwrap_or_default();
    name.strip_prefix(plan.volume.as_str()).is_some_and(|rest| rest.starts_with('('))
}

fn path((major, minor): Device) -> Option<PathBuf> {
    let link = fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    Some(Path::new("/dev").join(link.file_name()?))
}
