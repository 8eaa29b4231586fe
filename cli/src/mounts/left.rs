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
        // What is mounted is what somebody may come upon: as a snapshot, in a place of its own.
        !mounted
            && Some(*device) != shown
            && (is_mapped(plan, &path) || file_system::is_snapshots_loop(&path))
    };
    devices.iter().copied().filter(left).collect()
}

/// Whether a device is of a snapshot of a volume in a thin pool.
fn is_mapped(plan: &Plan, device: &Path) -> bool {
    let Some(name) = device.file_name() else { return false };
    let name = fs::read_to_string(Path::new("/sys/block").join(name).join("dm/name")).unwrap_or_default();
    is_name_of_snapshot(plan.volume.as_str(), &name)
}

/// Whether device-mapper's name of a device is that of a volume's snapshot, `VOLUME(NUMBER)` with its brackets written as `\x28`
/// and `\x29`, or of what was one: `VOLUME:old-N`.
fn is_name_of_snapshot(volume: &str, name: &str) -> bool {
    let mark = |rest: &str| ["\\x28", ":old-"].iter().any(|mark| rest.starts_with(mark));
    name.strip_prefix(volume).is_some_and(mark)
}

fn path((major, minor): Device) -> Option<PathBuf> {
    let link = fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    Some(Path::new("/dev").join(link.file_name()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_are_known_by_what_the_kernel_calls_them() {
        for name in ["v\\x283\\x29\n", "v\\x28L0\\x29\n", "v:old-2\n"] {
            assert!(is_name_of_snapshot("v", name), "{name}");
        }
        for name in ["", "v\n", "v:pool\n", "v2\\x283\\x29\n", "v:staging\n"] {
            assert!(!is_name_of_snapshot("v", name), "{name}");
        }
    }
}
