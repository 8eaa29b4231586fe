//! Whose a mount is. Nothing is taken away that was not mounted here: an administrator may have mounted file systems of their own
//! in a volume, under whatever name.

use std::{collections::BTreeSet, fs, path::Path};

use super::{
    Plan, Shown,
    file_system::Identity,
    plan::{is_snapshot_name, snapshot_name_at},
    table::{Mount, Table},
};

/// Where the snapshots are seen in the volume.
pub const DOTSNAPSHOT: &str = ".snapshot";

/// Whether a mount is of this volume: of its head, or of a snapshot.
pub fn is_of_volume(plan: &Plan, mount: &Mount) -> bool {
    match Identity::of(mount) {
        Identity::Snapshot(_) | Identity::Head(_) => true,
        Identity::Device(number) => {
            let of = Identity::Device(number);
            let planned = plan.shown.iter().map(|shown| match shown {
                Shown::Head(device) => Identity::of_head(device),
                Shown::Snapshot(snapshot) => Identity::of_snapshot(snapshot),
            });
            let mut known = plan.snapshots.iter().map(Identity::of_snapshot).chain(planned);
            is_device_of_volume(plan, number) || known.any(|known| known == of)
        }
        Identity::Other => false,
    }
}

/// The name of a view of snapshots in the volume, if that is what a mount is.
pub fn view<'a>(plan: &Plan, table: &Table, mount: &'a Mount) -> Option<&'a str> {
    let name = mount.at.file_name()?.to_str().filter(|_| mount.at.parent() == Some(&plan.mountpoint))?;
    let ours = match name {
        DOTSNAPSHOT => shows_snapshots(plan, table, mount),
        // Its name is a time, and it shows a snapshot.
        name => name.starts_with("@GMT-") && is_of_volume(plan, mount),
    };
    ours.then_some(name)
}

/// A mount of somebody else in the volume, which would go with it.
pub fn foreign<'a>(plan: &Plan, table: &'a Table) -> Option<&'a Mount> {
    let below = table.below(&plan.mountpoint);
    let views: Vec<_> = below.iter().filter(|mount| view(plan, table, mount).is_some()).collect();
    let (ids, places): (BTreeSet<_>, BTreeSet<_>) =
        views.into_iter().map(|view| (view.id, view.at.as_path())).unzip();
    // What is seen in a view is mounted elsewhere, too. What is mounted over a view is not the view's.
    let in_view = |mount: &Mount| {
        let around = mount.at.ancestors().skip(1);
        ids.contains(&mount.id)
            || around.take_while(|at| *at != plan.mountpoint).any(|at| places.contains(at))
    };
    below.into_iter().find(|mount| !in_view(mount))
}

/// Whether a mount of a snapshot is where this program mounts snapshots, or appears there: the directory, which may have been
/// another before, gives each its name, and so do the views of it.
pub fn is_in_our_place(mount: &Mount) -> bool {
    let name = mount.at.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    is_snapshot_name(name) || name.starts_with("@GMT-")
}

/// Whether it is of a directory that is not there any more.
pub fn is_of_removed(mount: &Mount) -> bool {
    mount.root.to_str().is_some_and(|root| root.ends_with(REMOVED))
}

/// Whether it is a second view of the directory with the snapshots, or of the one that had them before.
fn shows_snapshots(plan: &Plan, table: &Table, mount: &Mount) -> bool {
    // One that was removed meanwhile is marked so.
    let root =
        mount.root.to_str().and_then(|root| root.strip_suffix(REMOVED)).map_or(&*mount.root, Path::new);
    let holding = table.holding(&plan.snappath.join("any"));
    let there = holding.is_some_and(|holding| {
        let rest = plan.snappath.strip_prefix(&holding.at);
        mount.device == holding.device && rest.is_ok_and(|rest| holding.root.join(rest) == root)
    });
    let of_snapshot = |inner: &Mount| {
        inner.parent == mount.id
            && snapshot_name_at(&mount.at, &inner.at).is_some()
            && is_of_volume(plan, inner)
    };
    there || table.0.iter().any(of_snapshot)
}

/// Whether a device is of a volume in a thin pool.
fn is_device_of_volume(plan: &Plan, number: u64) -> bool {
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let name = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/dm/name")).unwrap_or_default();
    is_name_of_volume(plan.volume.as_str(), name.trim_end())
}

/// Whether device-mapper's name of a device is one of a volume: `VOLUME`, `VOLUME(NUMBER)`, whose brackets it writes as `\x28` and
/// `\x29`, or `VOLUME:old-N` when that has no place any more; or of a snapshot in one of LVM's pools, which ends in `_zumaNUMBER`.
fn is_name_of_volume(volume: &str, name: &str) -> bool {
    let of_lvm = name.rsplit_once("_zuma").is_some_and(|(_, number)| {
        let digits = number.strip_prefix('L').unwrap_or(number);
        !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit())
    });
    let of_volume =
        |rest: &str| rest.is_empty() || ["(", "\\x28", ":old-"].iter().any(|mark| rest.starts_with(mark));
    of_lvm || name.strip_prefix(volume).is_some_and(of_volume)
}

/// Ends the root of a mount of a directory that is not there any more: `seq_dentry` of fs/d_path.c.
const REMOVED: &str = "//deleted";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_a_volume_are_known_by_their_names() {
        for name in ["v", "v\\x283\\x29", "v\\x28L0\\x29", "v:old-1", "vg-lv_zuma12", "vg-lv_zumaL0"] {
            assert!(is_name_of_volume("v", name), "{name}");
        }
        for name in
            ["", "vg-home", "v2", "v-snapshots", "v:pool", "w\\x283\\x29", "vg-lv_zuma", "vg-lv_zumarecv"]
        {
            assert!(!is_name_of_volume("v", name), "{name}");
        }
    }
}
