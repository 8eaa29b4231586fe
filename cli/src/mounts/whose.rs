//! Whose a mount is. Nothing is taken away that was not mounted here: an administrator may have mounted file systems of their own
//! in a volume, under whatever name.

use std::{fs, path::Path};

use super::{
    Plan, Shown,
    file_system::Identity,
    plan::snapshot_name_at,
    table::{Mount, Table},
};
use crate::exports::Device;

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
            is_device_of_volume(plan, number, &mount.source) || known.any(|known| known == of)
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

/// A mount of somebody else in the volume, below a directory, with which it would go.
pub fn foreign<'a>(plan: &Plan, table: &'a Table, directory: &Path) -> Option<&'a Mount> {
    // What `.snapshot` shows of what is mounted elsewhere, too, stays there.
    let seen = |mount: &Mount| {
        let elsewhere =
            |other: &Mount| !other.at.starts_with(&plan.mountpoint) && appears(table, other, mount);
        is_in_dotsnapshot(plan, table, mount) && table.0.iter().any(elsewhere)
    };
    table.below(directory).into_iter().find(|mount| {
        view(plan, table, mount).is_none() && !is_view_of_snapshot(plan, table, mount) && !seen(mount)
    })
}

/// Whether a mount of a snapshot is where this program mounts snapshots, or appears somewhere because of that.
pub fn is_in_our_place(plan: &Plan, table: &Table, mount: &Mount) -> bool {
    let ours = |mount: &Mount| {
        snapshot_name_at(&plan.snappath, &mount.at).is_some()
            || view(plan, table, mount).is_some()
            || is_view_of_snapshot(plan, table, mount)
    };
    ours(mount) || table.0.iter().any(|other| appears(table, other, mount) && ours(other))
}

/// Whether a mount is of one of the snapshots that `.snapshot` shows.
fn is_view_of_snapshot(plan: &Plan, table: &Table, mount: &Mount) -> bool {
    snapshot_name_at(&plan.mountpoint.join(DOTSNAPSHOT), &mount.at).is_some()
        && is_in_dotsnapshot(plan, table, mount)
        && is_of_volume(plan, mount)
}

/// Whether a mount lies in our `.snapshot`, or in what is mounted there.
fn is_in_dotsnapshot(plan: &Plan, table: &Table, mount: &Mount) -> bool {
    let dot = plan.mountpoint.join(DOTSNAPSHOT);
    mount.at != dot
        && mount.at.starts_with(&dot)
        && table.stack(&dot).into_iter().any(|mount| view(plan, table, mount).is_some())
}

/// Whether a mount is the same as another, on the same directory, where what is mounted appears by itself.
fn appears(table: &Table, other: &Mount, mount: &Mount) -> bool {
    other.id != mount.id
        && (other.device, &other.root) == (mount.device, &mount.root)
        && table.around(mount).is_some_and(|around| around.shared || around.slave)
        && table.under(mount).is_some_and(|under| table.under(other) == Some(under))
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

/// Whether a device is of a snapshot of a volume in a thin pool, or of what was one.
pub fn is_device_of_snapshot(plan: &Plan, device: Device) -> bool {
    is_name_of_snapshot(plan.volume.as_str(), &logical(plan), &mapped_name(device))
}

/// Whether a device that is mounted by the name `source` is of a volume in a thin pool.
fn is_device_of_volume(plan: &Plan, number: u64, source: &Path) -> bool {
    let (volume, logical) = (plan.volume.as_str(), logical(plan));
    let named = |name: &str| name == volume || is_name_of_snapshot(volume, &logical, name);
    let nodes = Path::new(NODES);
    // LVM has names of its own for what is also found by ours: the head, and what had that place when it was mounted.
    let mounted_by =
        source.file_name().and_then(|name| name.to_str()).filter(|_| source.parent() == Some(nodes));
    named(&mapped_name((rustix::fs::major(number), rustix::fs::minor(number))))
        || mounted_by.is_some_and(named)
        || Identity::of_head(&nodes.join(volume)) == Identity::Device(number)
}

/// Device-mapper's names of the volume where it is one of LVM's: by its configuration, and by what our node leads to, as it may have been
/// renamed.
fn logical(plan: &Plan) -> Vec<String> {
    let node = match Identity::of_head(&Path::new(NODES).join(plan.volume.as_str())) {
        Identity::Device(number) => Some(mapped_name((rustix::fs::major(number), rustix::fs::minor(number)))),
        _ => None,
    };
    node.into_iter().filter(|name| !name.is_empty()).chain(plan.logical.clone()).collect()
}

/// Device-mapper's name of a device; empty if it has none.
fn mapped_name((major, minor): Device) -> String {
    let name = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/dm/name")).unwrap_or_default();
    name.trim_end().to_owned()
}

/// Whether a name is one of a volume's snapshot: `VOLUME(NUMBER)`, whose brackets device-mapper writes as `\x28` and `\x29`, or of
/// what has no place any more, `VOLUME:old-N`; where it is one of LVM's, of a name in `logical`, that and `_zumaNUMBER` or `_zumaoldN`.
fn is_name_of_snapshot(volume: &str, logical: &[String], name: &str) -> bool {
    let of_lvm = name.rsplit_once("_zuma").is_some_and(|(of, number)| {
        let digits = number.strip_prefix('L').or_else(|| number.strip_prefix("old")).unwrap_or(number);
        !digits.is_empty()
            && digits.bytes().all(|c| c.is_ascii_digit())
            && logical.iter().any(|name| name == of)
    });
    let mark = |rest: &str| ["(", "\\x28", ":old-"].iter().any(|mark| rest.starts_with(mark));
    of_lvm || name.strip_prefix(volume).is_some_and(mark)
}

/// Where device-mapper's nodes are, and ours.
const NODES: &str = "/dev/mapper";

/// Ends the root of a mount of a directory that is not there any more: `seq_dentry` of fs/d_path.c.
const REMOVED: &str = "//deleted";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_are_known_by_the_names_of_their_devices() {
        for name in [
            "v(3)",
            "v\\x283\\x29",
            "v\\x28L0\\x29",
            "v:old-1",
            "vg-lv_zuma12",
            "vg-lv_zumaL0",
            "vg-lv_zumaold1",
        ] {
            assert!(is_name_of_snapshot("v", &["vg-lv".to_owned()], name), "{name}");
        }
        for name in [
            "",
            "v",
            "vg-home",
            "v2",
            "v-snapshots",
            "v:pool",
            "v:staging",
            "w\\x283\\x29",
            "v2\\x283\\x29",
            "vg-lv_zuma",
            "vg-lv_zumaold",
            "vg-lv_zumarecv",
            "vg-lv2_zuma12",
            "vg2-lv_zuma12",
            "vg-lv_zuma1_zuma2",
            "lv_zuma12",
        ] {
            assert!(!is_name_of_snapshot("v", &["vg-lv".to_owned()], name), "{name}");
        }
    }

    /// LVM's name of a head does not tell whose it is.
    #[test]
    fn a_head_is_known_by_the_name_that_it_was_mounted_by() {
        let plan = Plan::of_unknown(Path::new("/run/volumes"), "v").unwrap();
        let by = |source: &str| is_device_of_volume(&plan, rustix::fs::makedev(4095, 1), Path::new(source));
        for source in ["/dev/mapper/v", "/dev/mapper/v(3)"] {
            assert!(by(source), "{source}");
        }
        for source in ["/dev/mapper/v2", "/dev/mapper/vg-v", "/dev/vg/v", "/dev/v", "v"] {
            assert!(!by(source), "{source}");
        }
    }
}
