//! Making what is mounted what is to be mounted.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::unix::fs::symlink,
    path::Path,
};

use rustix::mount::{MountPropagationFlags, mount_change};
use zumastor_core::{SnapshotGuid, steps};

use super::{
    Plan, Report, Shown, Snapshot,
    file_system::{self, Identity},
    freeze,
    kernel::{self, Aside},
    place,
    plan::{is_snapshot_name, snapshot_name_at},
    table::{Mount, Table},
    take::{Busy, IfBusy, take, used_by_mount},
    users::users,
    whose::{self, DOTSNAPSHOT, is_of_volume},
};
use crate::exports::{Device, clients_on};

/// Mounts what is planned, takes away what is not, and tells what came of it. When the volume shows another file system than
/// before, `gone` is told the device of the old one, as soon as nobody finds it any more.
pub fn apply(plan: &Plan, gone: &mut dyn FnMut(Device)) -> Report {
    let mut report = Report::default();
    if let Err(error) = snapshots(plan, &mut report) {
        report.troubles.push(format!("the snapshots are not mounted as they should be: {error}"));
    }
    if let Err(error) = shown(plan, &mut report, gone) {
        report.troubles.push(format!("the volume is not mounted at {}: {error}", plan.mountpoint.display()));
    }
    if report.shown.is_some()
        && let Err(error) = views(plan, &mut report)
    {
        let at = plan.mountpoint.display();
        report.troubles.push(format!("the snapshots are not seen in {at} as they should be: {error}"));
    }
    let [mount, snapshot] = &plan.aliases;
    let aliases = [
        (mount, &plan.mountpoint, report.shown.is_some()),
        (snapshot, &plan.snappath, !report.mounted.is_empty()),
    ];
    for (alias, to, wanted) in aliases {
        if let Err(error) = link(alias, to, wanted) {
            report.troubles.push(format!("{} does not lead to {}: {error}", alias.display(), to.display()));
        }
    }
    report
}

/// Lets the volume go on if a daemon that was killed had made it hold still. To be called before anything is done with it: from
/// then on, what holds still does so for a snapshot.
pub fn take_over(plan: &Plan) {
    let Ok(table) = Table::read() else { return };
    if let Some(top) = table.top(&plan.mountpoint).filter(|top| is_of_volume(plan, top)) {
        go_on(top);
    }
}

fn go_on(mount: &Mount) {
    if !mount.read_only && freeze::thaw(&mount.at).unwrap_or(false) {
        tracing::warn!(at = %mount.at.display(), "the file system still held still, and goes on now");
    }
}

/// Takes a snapshot's mounts away, so that it can be deleted; what the volume itself shows stays. Each is no longer exported
/// once `retract` returns, which is not called while an NFS client has something of it open.
pub fn release(plan: &Plan, guid: SnapshotGuid, device: &Path, retract: impl Fn(&Path)) -> Result<(), Busy> {
    let Ok(table) = Table::read() else { return Ok(()) };
    let wanted = match kernel::is_block_device(device) {
        true => Identity::of_head(device),
        false => Identity::Snapshot(guid.to_string()),
    };
    if let Some(shown) = table.stack(&plan.mountpoint).into_iter().find(|shown| Identity::of(shown) == wanted)
    {
        // Another is to be shown there, and is not yet.
        return Err(Busy { at: shown.at.clone(), users: vec!["the volume, which shows it".to_owned()] });
    }
    let mut of_it: Vec<&Mount> =
        table.0.iter().filter(|mount| mount.at != plan.mountpoint && Identity::of(mount) == wanted).collect();
    of_it.sort_by_key(|mount| mount.at.starts_with(&plan.snappath));
    for mount in of_it.iter().rev() {
        if !whose::is_in_our_place(plan, &table, mount) {
            return Err(used_by_mount(device, mount));
        }
        if let Some(inner) = table.below(&mount.at).first() {
            return Err(used_by_mount(&mount.at, inner));
        }
        let users = clients_on(&[mount.device]);
        if !users.is_empty() {
            return Err(Busy { at: mount.at.clone(), users });
        }
    }
    for mount in of_it {
        retract(&mount.at);
        if !take(mount, IfBusy::Keep)? {
            continue;
        }
        if mount.at.parent() == Some(&plan.snappath) || whose::view(plan, &table, mount).is_some() {
            let _ = fs::remove_dir(&mount.at);
        }
    }
    // What was taken from under somebody before, who has not ended yet.
    match file_system::devices_of(&guid.to_string()).first() {
        Some(device) => Err(Busy { at: device.clone(), users: users(&device_number(device)) }),
        None => Ok(()),
    }
}

/// Takes away everything of a volume. What is read only and in use is kept by its users alone; what stays is told.
pub fn unmount_all(plan: &Plan) -> Vec<Busy> {
    let Ok(table) = Table::read() else { return Vec::new() };
    let mut busy = Vec::new();
    busy.extend(take_shown(plan, &table).err());
    // What lies on another comes first.
    for mount in table.0.iter().rev() {
        if snapshot_name_at(&plan.snappath, &mount.at).is_some() && is_of_volume(plan, mount) {
            busy.extend(take(mount, IfBusy::Detach).err());
        }
    }
    // Directories and links go with the rest.
    apply(&plan.nothing(), &mut drop);
    busy
}

/// Takes away what the volume itself shows, unless that is written to and in use.
pub fn unmount_shown(plan: &Plan) -> Result<(), Busy> {
    Table::read().map_or(Ok(()), |table| take_shown(plan, &table))
}

/// Takes away what was mounted below `volumes` for volumes that are not there any more.
pub fn sweep(volumes: &Path, known: impl Fn(&str) -> bool) {
    place::tidy();
    let Ok(table) = Table::read() else { return };
    let first = |mount: &Mount| {
        let rest = mount.at.strip_prefix(volumes).ok()?;
        Some(rest.iter().next()?.to_str()?.to_owned())
    };
    let names: BTreeSet<String> = table.below(volumes).into_iter().filter_map(first).collect();
    for name in names {
        let of_snapshots = name.strip_suffix("-snapshots");
        if known(&name) || of_snapshots.is_some_and(&known) {
            continue;
        }
        let names = [Some(name.as_str()), of_snapshots].into_iter().flatten();
        for plan in names.filter_map(|name| Plan::of_unknown(volumes, name)) {
            take_over(&plan);
            for busy in unmount_all(&plan) {
                tracing::warn!("{busy}, and belongs to no volume any more");
            }
        }
    }
}

fn snapshots(plan: &Plan, report: &mut Report) -> io::Result<()> {
    let table = Table::read()?;
    let wanted: BTreeMap<&str, &Snapshot> =
        plan.snapshots.iter().map(|snapshot| (snapshot.name.as_str(), snapshot)).collect();
    let places = table.0.iter().map(|mount| mount.at.as_path());
    for at in places.collect::<BTreeSet<_>>() {
        let Some(name) = snapshot_name_at(&plan.snappath, at) else { continue };
        let wanted = wanted.get(name);
        // What is seen there first.
        for mount in table.stack(at) {
            if let Some(snapshot) =
                wanted.filter(|wanted| Identity::of(mount) == Identity::of_snapshot(wanted))
            {
                report.mounted.insert(snapshot.number, mount.at.clone());
                break;
            }
            if !is_of_volume(plan, mount) {
                if let Some(snapshot) = wanted {
                    let (at, source) = (at.display(), mount.source.display());
                    let why = format!("{source} is mounted at {at}, where it is to be: unmount that");
                    report.troubles.push(format!("snapshot {} is not mounted: {why}", snapshot.number));
                    report.failed.insert(snapshot.number, why);
                }
                break;
            }
            if let Err(busy) = take(mount, IfBusy::Keep) {
                report.troubles.push(format!("{busy}, so it stays mounted"));
                break;
            }
        }
    }
    if !wanted.is_empty() {
        fs::create_dir_all(&plan.snappath)?;
    }
    for snapshot in &plan.snapshots {
        if report.mounted.contains_key(&snapshot.number) || report.failed.contains_key(&snapshot.number) {
            continue;
        }
        let at = plan.place(snapshot);
        match mount_snapshot(plan, snapshot, &at) {
            Ok(true) => drop(report.mounted.insert(snapshot.number, at)),
            Ok(false) => report.unknown.push(snapshot.number),
            Err(error) => {
                report.troubles.push(format!("snapshot {} is not mounted: {error}", snapshot.number));
                report.failed.insert(snapshot.number, error.to_string());
            }
        }
    }
    tidy(plan, report)
}

fn mount_snapshot(plan: &Plan, snapshot: &Snapshot, at: &Path) -> io::Result<bool> {
    let Some(aside) = file_system::snapshot(snapshot, &plan.options, false)? else { return Ok(false) };
    fs::create_dir_all(at)?;
    aside.put(at)?;
    Ok(true)
}

/// Directories that nothing is mounted on go, and links lead where they should.
fn tidy(plan: &Plan, report: &Report) -> io::Result<()> {
    let entries = match fs::read_dir(&plan.snappath) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let mounted = |name: &str| report.mounted.values().any(|at| at.file_name().is_some_and(|at| at == name));
    let links: BTreeMap<&String, &String> = plan.links.iter().filter(|(_, to)| mounted(to)).collect();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if entry.file_type()?.is_symlink() {
            let to = fs::read_link(entry.path())?;
            let own = to.to_str().is_some_and(is_snapshot_name);
            if own && !links.contains_key(&name.to_owned()) {
                fs::remove_file(entry.path())?;
            }
        } else if is_snapshot_name(name) && !mounted(name) {
            // One that is still mounted stays by itself.
            let _ = fs::remove_dir(entry.path());
        }
    }
    for (name, to) in links {
        link(&plan.snappath.join(name), Path::new(to), true)?;
    }
    if report.mounted.is_empty() {
        // Only if it is empty.
        let _ = fs::remove_dir(&plan.snappath);
    }
    Ok(())
}

fn shown(plan: &Plan, report: &mut Report, gone: &mut dyn FnMut(Device)) -> io::Result<()> {
    let table = Table::read()?;
    let old = table.top(&plan.mountpoint).filter(|top| is_of_volume(plan, top));
    // Open, its device is no other file system's until `gone` was told.
    let old = old.map(|top| (top.device, File::open(&top.source)));
    let done = show(plan, table, report);
    if let Some((device, _open)) = old
        && Table::read()?.top(&plan.mountpoint).is_none_or(|top| top.device != device)
    {
        steps::pass("mount: flipped");
        gone(device);
        steps::pass("mount: let go of the old one");
    }
    done
}

fn show(plan: &Plan, table: Table, report: &mut Report) -> io::Result<()> {
    let stack = table.stack(&plan.mountpoint);
    let Some(shown) = &plan.shown else {
        if let Err(busy) = take_shown(plan, &table) {
            report.troubles.push(format!("{busy}, so it stays mounted"));
        }
        if plan.own_mountpoint {
            let _ = fs::remove_dir(&plan.mountpoint);
        }
        return Ok(());
    };
    let number = match shown {
        Shown::Head(_) => None,
        Shown::Snapshot(snapshot) => Some(snapshot.number),
    };
    let wanted = match shown {
        Shown::Head(device) => Identity::of_head(device),
        Shown::Snapshot(snapshot) => Identity::of_snapshot(snapshot),
    };
    let is = |mount: Option<&&Mount>| mount.is_some_and(|mount| Identity::of(mount) == wanted);
    if is(stack.first()) {
        report.shown = Some(number);
        return Ok(());
    }
    if let Some(top) = stack.first()
        && !is_of_volume(plan, top)
    {
        return Err(io::Error::other(format!(
            "{} is mounted there: `zumastor remount {} --mountpoint DIR` takes another directory",
            top.source.display(),
            plan.volume
        )));
    }
    if !stack.is_empty() {
        // Before anything is put beneath.
        nothing_foreign(plan, &table, &plan.mountpoint).map_err(|busy| io::Error::other(busy.to_string()))?;
    }
    // Nobody writes to what is there: in one step.
    let mut replaces = stack.first().is_some_and(|top| top.read_only);
    if replaces && is(stack.get(1)) {
        // A flip was begun, and not ended.
        take_shown(plan, &table).map_err(|busy| io::Error::other(busy.to_string()))?;
        report.shown = Some(number);
        return Ok(());
    }
    let aside = match shown {
        Shown::Head(device) => {
            let beside = replaces.then(|| file_system::head(device, &plan.options));
            match beside {
                Some(Err(error)) if !file_system::may_be_alone(device) => return Err(error),
                Some(Ok(aside)) => aside,
                _ => {
                    replaces = false;
                    take_shown(plan, &table).map_err(|busy| io::Error::other(busy.to_string()))?;
                    file_system::head(device, &plan.options)?
                }
            }
        }
        Shown::Snapshot(snapshot) => file_system::snapshot(snapshot, &plan.options, true)?,
    };
    let Some(aside) = aside else {
        return Err(io::Error::other(
            "it holds no file system that is known here: ext2, ext3, ext4, XFS or btrfs",
        ));
    };
    if replaces {
        place::put_beneath(&aside, &plan.mountpoint)?;
        take_shown(plan, &Table::read()?).map_err(|busy| io::Error::other(busy.to_string()))?;
    } else {
        take_shown(plan, &table).map_err(|busy| io::Error::other(busy.to_string()))?;
        if plan.own_mountpoint {
            fs::create_dir_all(&plan.mountpoint)?;
        }
        aside.put(&plan.mountpoint)?;
    }
    report.shown = Some(number);
    Ok(())
}

/// Lets the snapshots be seen in the volume itself.
fn views(plan: &Plan, report: &mut Report) -> io::Result<()> {
    let table = Table::read()?;
    let mounted = |name: &str| report.mounted.values().any(|at| at.file_name().is_some_and(|at| at == name));
    let wanted: BTreeMap<&String, &String> = plan.views.iter().filter(|(_, name)| mounted(name)).collect();
    let dot = plan.mountpoint.join(DOTSNAPSHOT);
    for mount in table.below(&plan.mountpoint) {
        let Some(name) = whose::view(plan, &table, mount) else { continue };
        let stays = match name {
            DOTSNAPSHOT => plan.dotsnapshot && !whose::is_of_removed(mount),
            name => wanted.contains_key(&name.to_owned()),
        };
        if !stays && table.top(&mount.at).is_some_and(|top| top.id == mount.id) {
            let taken =
                nothing_foreign(plan, &table, &mount.at).and_then(|()| take(mount, IfBusy::DetachView));
            taken.map_err(|busy| io::Error::other(busy.to_string()))?;
            let _ = fs::remove_dir(&mount.at);
        }
    }
    let table = Table::read()?;
    let others: Vec<_> = table
        .below(&plan.mountpoint)
        .into_iter()
        .filter(|mount| {
            let wanted = mount.at.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
                name == DOTSNAPSHOT && plan.dotsnapshot || wanted.contains_key(&name.to_owned())
            });
            wanted
                && mount.at.parent() == Some(&plan.mountpoint)
                && whose::view(plan, &table, mount).is_none()
        })
        .collect();
    for mount in others {
        report.notes.push(format!(
            "snapshots are not seen at {}, where {} is mounted by others",
            mount.at.display(),
            mount.source.display()
        ));
    }
    if plan.dotsnapshot && table.top(&dot).is_none() && !report.mounted.is_empty() {
        if let Some(holding) = table.holding(&plan.snappath.join("any")).filter(|holding| !holding.shared) {
            // Otherwise what is mounted from now on would not appear there.
            mount_change(&holding.at, MountPropagationFlags::SHARED)?;
        }
        if directory(&dot)? {
            Aside::bind(&plan.snappath, true)?.put(&dot)?;
            // What is taken away there stays in its own place.
            mount_change(&dot, MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
        } else {
            report.notes.push(format!(
                "there is no directory {DOTSNAPSHOT} in the volume, which cannot be written to here: make one on the master"
            ));
        }
    }
    let mut missing = 0;
    for (view, name) in wanted {
        let at = plan.mountpoint.join(view);
        if table.top(&at).is_some() {
            continue;
        }
        if directory(&at)? {
            Aside::bind(&plan.snappath.join(name), false)?.put(&at)?;
        } else {
            missing += 1;
        }
    }
    if missing > 0 {
        report.notes.push(format!(
            "{missing} snapshots are not seen as @GMT-… in the volume, which cannot be written to here; Samba finds all of them \
             in {}",
            plan.snappath.display()
        ));
    }
    Ok(())
}

/// Whether there is such a directory, made if that can be done.
fn directory(at: &Path) -> io::Result<bool> {
    match fs::create_dir(at) {
        Ok(()) => Ok(true),
        Err(_) if fs::symlink_metadata(at).is_ok_and(|there| there.is_dir()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(false),
        Err(error) => Err(error),
    }
}

/// Takes the mount away that is seen at the mountpoint, if it is ours, with what we mounted in it. With a mount of somebody else
/// in it, all stays.
fn take_shown(plan: &Plan, table: &Table) -> Result<(), Busy> {
    let Some(top) = table.top(&plan.mountpoint).filter(|top| is_of_volume(plan, top)) else { return Ok(()) };
    nothing_foreign(plan, table, &plan.mountpoint)?;
    for mount in table.below(&plan.mountpoint) {
        let view = whose::view(plan, table, mount).is_some();
        let at = mount.at.clone();
        take(mount, if view { IfBusy::DetachView } else { IfBusy::Detach })?;
        if view {
            // The directory was made for this.
            let _ = fs::remove_dir(at);
        }
    }
    take(top, IfBusy::Detach).map(drop)
}

/// Whether a directory of the volume is in use by a mount in it that is not ours.
fn nothing_foreign(plan: &Plan, table: &Table, directory: &Path) -> Result<(), Busy> {
    let foreign = whose::foreign(plan, table, directory);
    foreign.map_or(Ok(()), |mount| Err(used_by_mount(directory, mount)))
}

/// The number that files on a device have it under.
fn device_number(device: &Path) -> Vec<(u32, u32)> {
    use std::os::unix::fs::MetadataExt;
    let number = fs::metadata(device).map(|metadata| metadata.rdev());
    number.map(|number| (rustix::fs::major(number), rustix::fs::minor(number))).into_iter().collect()
}

/// Makes a link lead somewhere, or go.
fn link(link: &Path, to: &Path, wanted: bool) -> io::Result<()> {
    let is = fs::read_link(link).ok();
    if !wanted {
        return if is.as_deref() == Some(to) { fs::remove_file(link) } else { Ok(()) };
    }
    if is.as_deref() == Some(to) {
        return Ok(());
    }
    if let Some(directory) = link.parent() {
        fs::create_dir_all(directory)?;
    }
    // In one step, also where it led elsewhere.
    let mut new = link.as_os_str().to_owned();
    new.push(".new");
    let _ = fs::remove_file(&new);
    symlink(to, &new)?;
    fs::rename(&new, link)
}
