//! What is mounted, offered to others: in the volume itself, by Samba, by NFS.

use std::{fs, path::Path};

use crate::common::{
    mounted::{Place, generation, master, mounted_pair, refused, replicated, snapshots, wait_until, write},
    root_with,
    samba::Samba,
};
use zumastor::exit::Failure;
use zumastor_testbed::output;

/// The directories that are mounted in a volume.
fn views(at: &Path) -> Vec<String> {
    let entries = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut views: Vec<_> = entries.filter(|name| name.starts_with('@') || name == ".snapshot").collect();
    views.sort();
    views
}

#[test]
fn root_snapshots_are_seen_in_the_volume() -> Result<(), Failure> {
    if !root_with(&["mkfs.xfs", "mkfs.ext4", "mount", "losetup"]) {
        return Ok(());
    }
    let place = Place::new()?;
    let (mut node, at) = master(&place, "ext4", &["--hourly", "2", "--dotsnapshot", "--samba"])?;
    for number in 0..3 {
        write(&at, number);
        node.ok(&["snapshot", "v", "hourly"])?;
        // Also those that were mounted after it.
        assert_eq!(generation(&at.join(".snapshot/hourly.0")), number);
    }
    assert_eq!(generation(&at.join(".snapshot/hourly.1")), 1);
    let seen = |at: &Path| {
        let of_time = views(at).into_iter().filter(|name| name.starts_with("@GMT-20"));
        let mut numbers: Vec<_> = of_time.map(|name| generation(&at.join(name))).collect();
        numbers.sort();
        numbers
    };
    // Of two that were taken in one second, one has the name.
    let newest = *seen(&at).last().expect("there is one");
    assert!((1..=2).contains(&newest));
    let file = at.join(".snapshot/hourly.0/first");
    assert_eq!(fs::write(&file, "x").unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);

    // What a daemon that was killed left goes on.
    node.kill()?;
    node.up()?;
    wait_until(&node, "mounts", |volume| volume.mounts.as_ref().is_some_and(|m| m.mountpoint.is_some()));
    write(&at, 3);
    node.ok(&["snapshot", "v", "hourly"])?;
    assert_eq!([0, 1].map(|n| generation(&at.join(format!(".snapshot/hourly.{n}")))), [3, 2]);
    assert!(!at.join(".snapshot/hourly.2").exists());

    // Without mounts, the others are ignored, and said to be.
    let said = node.run(&["define", "master", "v", "-n"])?;
    assert!(said.code == 0 && said.err.contains("not mounted"), "{said:?}");
    assert_eq!(views(&at), Vec::<String>::new());
    node.ok(&["define", "master", "v", "--no-snapmount=false", "--samba=false"])?;
    assert_eq!(views(&at), [".snapshot"]);
    assert_eq!(generation(&at.join(".snapshot/hourly.0")), 3);
    node.ok(&["revert", "v", "3"])?;
    assert_eq!((generation(&at), generation(&at.join(".snapshot/hourly.0"))), (3, 3));
    assert_eq!(node.down()?, 0);
    place.nothing_is_left();
    Ok(())
}

/// A file system of somebody else, mounted on a directory.
struct Foreign<'a>(&'a Path);

impl<'a> Foreign<'a> {
    fn mount(at: &'a Path) -> Result<Self, Failure> {
        fs::create_dir_all(at).map_err(Failure::doing(at.display()))?;
        output("mount", |mount| mount.args(["-t", "tmpfs", "others"]).arg(at))?;
        fs::write(at.join("file"), "theirs").map_err(Failure::doing(at.display()))?;
        Ok(Self(at))
    }

    #[track_caller]
    fn is_there(&self) {
        assert_eq!(fs::read_to_string(self.0.join("file")).unwrap(), "theirs", "{:?}", self.0);
        fs::write(self.0.join("another"), "").unwrap();
    }

    fn unmount(self) -> Result<(), Failure> {
        output("umount", |umount| umount.arg(self.0)).map(drop)
    }
}

/// Only what was mounted by the daemon is taken away by it, whatever the directory is called.
#[test]
fn root_what_others_mount_in_a_volume_stays() -> Result<(), Failure> {
    if !root_with(&["mkfs.xfs", "mkfs.ext4", "mount", "losetup"]) {
        return Ok(());
    }
    let place = Place::new()?;
    let (mut node, at) = master(&place, "ext4", &[])?;
    let (dot, gmt) = (at.join(".snapshot"), at.join("@GMT-2026.01.02-03.04.05"));
    let theirs = [Foreign::mount(&dot)?, Foreign::mount(&gmt)?];
    let are_there = || theirs.iter().for_each(Foreign::is_there);
    for number in 0..2 {
        write(&at, number);
        node.ok(&["snapshot", "v"])?;
    }
    are_there();
    node.ok(&["define", "master", "v", "--dotsnapshot", "--samba"])?;
    are_there();
    let mounts = node.volume("v")?.mounts.expect("it is mounted");
    assert_eq!(mounts.troubles, Vec::<String>::new());
    let said = format!("snapshots are not seen at {}, where others is mounted", dot.display());
    assert!(mounts.notes.iter().any(|note| note.contains(&said)), "{mounts:?}");
    let ours = views(&at).len() - 2;
    assert!(ours > 0, "the snapshots have no views beside the mounts of others");
    node.ok(&["define", "master", "v", "--samba=false"])?;
    are_there();
    assert_eq!(views(&at).len(), 2);

    // What would take them away with it is refused, and nothing is done.
    for args in [&["revert", "v", "0"][..], &["remount", "v"], &["forget", "volume", "v"]] {
        let err = refused(&node, args);
        assert!(err.contains("another mount (others at ") && err.contains("unmount that"), "{args:?}: {err}");
        are_there();
    }
    assert_eq!(generation(&at), 1);
    node.down()?;
    are_there();
    node.up()?;
    wait_until(&node, "the volume", |volume| volume.mounts.as_ref().is_some_and(|m| m.mountpoint.is_some()));
    are_there();
    // A snapshot that an administrator mounted is in use.
    let snapshot = snapshots(&node)?;
    let newest = node.volume("v")?.snapshots[1].mounted.clone().expect("it is mounted");
    let same_name = node.path("restore").join(newest.file_name().unwrap());
    for elsewhere in [node.path("elsewhere"), same_name] {
        fs::create_dir_all(&elsewhere).unwrap();
        output("mount", |mount| mount.arg("--bind").arg(&newest).arg(&elsewhere))?;
        let err = refused(&node, &["delete", "v", "1"]);
        assert!(err.contains(elsewhere.to_str().unwrap()), "{err}");
        assert_eq!((generation(&elsewhere), generation(&newest)), (1, 1));
        output("umount", |umount| umount.arg(&elsewhere))?;
    }

    for theirs in theirs {
        theirs.unmount()?;
    }
    node.ok(&["revert", "v", "0"])?;
    assert_eq!((generation(&at), generation(&dot.join(newest.file_name().unwrap()))), (0, 1));
    // Also when the directory of the snapshots is another one by now.
    node.ok(&["delete", "v", "--all", "--yes"])?;
    assert!(!snapshot.exists());
    node.ok(&["snapshot", "v"])?;
    let only = node.volume("v")?.snapshots[0].mounted.clone().expect("it is mounted");
    assert_eq!(generation(&dot.join(only.file_name().unwrap())), 0);
    assert_eq!(node.down()?, 0);
    place.nothing_is_left();
    Ok(())
}

/// What nobody is to use any more is taken from under whoever does, but no mount of others goes with it.
#[test]
fn root_what_others_mount_in_a_snapshot_stays() -> Result<(), Failure> {
    if !root_with(&["mkfs.xfs", "mkfs.ext4", "mount", "losetup"]) {
        return Ok(());
    }
    let place = Place::new()?;
    let (mut node, at) = master(&place, "ext4", &["--dotsnapshot"])?;
    fs::create_dir(at.join("own")).unwrap();
    write(&at, 0);
    node.ok(&["snapshot", "v"])?;
    let mounted = node.volume("v")?.snapshots[0].mounted.clone().expect("it is mounted");
    let seen = at.join(".snapshot").join(mounted.file_name().unwrap());

    // In the view alone.
    let own = seen.join("own");
    let theirs = Foreign::mount(&own)?;
    let named = format!("another mount (others at {}): unmount that", own.display());
    let err = refused(&node, &["revert", "v", "0"]);
    assert!(err.contains(&named), "{err}");
    theirs.is_there();
    node.ok(&["define", "master", "v", "--dotsnapshot=false"])?;
    let troubles = node.volume("v")?.mounts.expect("it is mounted").troubles;
    assert!(troubles.len() == 1 && troubles[0].contains(&named), "{troubles:?}");
    theirs.is_there();
    theirs.unmount()?;
    node.ok(&["define", "master", "v", "--dotsnapshot"])?;

    // In the snapshot, and seen in the view.
    let own = mounted.join("own");
    let theirs = Foreign::mount(&own)?;
    let all_there = || {
        theirs.is_there();
        assert_eq!(fs::read_to_string(seen.join("own/file")).unwrap(), "theirs");
    };
    all_there();
    node.ok(&["revert", "v", "0"])?;
    all_there();
    let err = refused(&node, &["delete", "v", "0"]);
    assert!(err.contains(&format!("others at {}", own.display())), "{err}");
    theirs.is_there();
    node.down()?;
    theirs.is_there();
    let left = [&mounted, &own].map(|at| at.to_str().unwrap().to_owned());
    assert_eq!(place.mounts(), left);
    node.up()?;
    wait_until(&node, "the volume", |volume| volume.mounts.as_ref().is_some_and(|m| m.mountpoint.is_some()));
    all_there();
    theirs.unmount()?;
    assert_eq!(node.down()?, 0);
    place.nothing_is_left();
    Ok(())
}

/// Nothing is put on a mount of others, which they could not unmount then.
#[test]
fn root_what_others_mount_where_a_snapshot_is_to_be_stays() -> Result<(), Failure> {
    if !root_with(&["mkfs.xfs", "mkfs.ext4", "mount", "losetup"]) {
        return Ok(());
    }
    let place = Place::new()?;
    let (mut node, at) = master(&place, "ext4", &[])?;
    write(&at, 0);
    node.ok(&["snapshot", "v"])?;
    let mounted = node.volume("v")?.snapshots[0].mounted.clone().expect("it is mounted");
    let unneeded = snapshots(&node)?.join("2020.01.01-00.00.00");

    // Over it.
    let theirs = Foreign::mount(&mounted)?;
    let err = refused(&node, &["delete", "v", "0"]);
    assert!(err.contains(&format!("another mount (others at {})", mounted.display())), "{err}");
    theirs.is_there();
    theirs.unmount()?;
    assert_eq!(generation(&mounted), 0);

    // In its place.
    output("umount", |umount| umount.arg(&mounted))?;
    let theirs = [Foreign::mount(&mounted)?, Foreign::mount(&unneeded)?];
    write(&at, 1);
    node.ok(&["snapshot", "v"])?;
    theirs.iter().for_each(Foreign::is_there);
    let volume = node.volume("v")?;
    let troubles = volume.mounts.expect("it is mounted").troubles;
    let said = format!("others is mounted at {}, where it is to be: unmount that", mounted.display());
    assert!(troubles.len() == 1 && troubles[0].contains(&said), "{troubles:?}");
    assert_eq!(volume.snapshots[0].mounted, None);
    assert_eq!(generation(volume.snapshots[1].mounted.as_ref().expect("it is mounted")), 1);
    for theirs in theirs {
        theirs.unmount()?;
    }
    node.ok(&["snapshot", "v"])?;
    assert_eq!(generation(&mounted), 0);
    assert_eq!(node.volume("v")?.mounts.expect("it is mounted").troubles, Vec::<String>::new());
    assert_eq!(node.down()?, 0);
    place.nothing_is_left();
    Ok(())
}

/// What the daemon mounted for a volume that is not there any more goes with its next start, and nothing else.
#[test]
fn root_what_others_mount_where_a_volume_was_stays() -> Result<(), Failure> {
    if !root_with(&["mkfs.xfs", "mkfs.ext4", "mount", "losetup"]) {
        return Ok(());
    }
    let place = Place::new()?;
    let (mut node, at) = master(&place, "ext4", &["--dotsnapshot"])?;
    write(&at, 0);
    node.ok(&["snapshot", "v"])?;
    let of_snapshots = snapshots(&node)?;
    node.kill()?;
    fs::remove_file(node.path("etc/volumes/v.toml")).unwrap();
    let volumes = of_snapshots.parent().unwrap();
    let places =
        ["v", "other/in/it", "other-snapshots/2026.01.02-03.04.05", "v-snapshots/2026.01.02-03.04.05"]
            .map(|name| volumes.join(name));
    let theirs = places.iter().map(|at| Foreign::mount(at)).collect::<Result<Vec<_>, _>>()?;
    node.up()?;
    node.volume("v").unwrap_err();
    theirs.iter().for_each(Foreign::is_there);
    let below: Vec<_> = place.mounts().into_iter().filter(|at| Path::new(at).starts_with(volumes)).collect();
    assert_eq!(below, places.each_ref().map(|at| at.to_str().unwrap().to_owned()));
    for theirs in theirs {
        theirs.unmount()?;
    }
    // Its own directory is its owner's.
    output("umount", |umount| umount.arg("--recursive").arg(&at))?;
    assert_eq!(node.down()?, 0);
    place.nothing_is_left();
    Ok(())
}

/// A flip would pull a mount of others away with what a replica showed before.
#[test]
fn root_what_others_mount_in_a_replica_stays() -> Result<(), Failure> {
    if !root_with(&["mkfs.xfs", "mkfs.ext4", "mount", "losetup"]) {
        return Ok(());
    }
    let place = Place::new()?;
    let (mut alpha, mut beta, at, shown) = mounted_pair(&place, "ext4", &[])?;
    fs::create_dir(at.join("own")).unwrap();
    replicated(&alpha, &beta, &at, 0)?;
    let own = shown.join("own");
    let theirs = Foreign::mount(&own)?;
    for number in 1..3 {
        replicated(&alpha, &beta, &at, number)?;
        theirs.is_there();
        assert_eq!(generation(&shown), 0);
        let said = beta.volume("v")?.mounts.expect("it is mounted").troubles;
        assert!(said.len() == 1 && said[0].contains(&format!("others at {}", own.display())), "{said:?}");
    }
    // What is seen stays, though the replica has newer ones.
    let err = refused(&beta, &["delete", "v", "0"]);
    assert!(err.contains("the volume, which shows it"), "{err}");
    assert_eq!(generation(&shown), 0);
    theirs.unmount()?;
    replicated(&alpha, &beta, &at, 3)?;
    assert_eq!((generation(&shown), place.mounts().len()), (3, 2));
    assert_eq!((alpha.down()?, beta.down()?), (0, 0));
    place.nothing_is_left();
    Ok(())
}

#[test]
fn root_samba_shows_previous_versions() -> Result<(), Failure> {
    if !root_with(&["mkfs.xfs", "mkfs.ext4", "mount", "losetup", "smbd", "smbclient"]) {
        return Ok(());
    }
    let place = Place::new()?;
    let (mut node, at) = master(&place, "ext4", &["--samba"])?;
    write(&at, 0);
    node.ok(&["snapshot", "v"])?;
    let include = node.path("run/samba.conf");
    let samba = Samba::start(&place.path().join("alpha"), &format!("include = {}", include.display()));
    write(&at, 1);
    let versions = samba.client("allinfo first")?;
    let name = node.volume("v")?.snapshots[0].name.clone();
    let version = format!("@GMT-{name}");
    assert!(versions.contains(&version), "{versions}");
    let content = samba.client(&format!("get \"{version}\\first\" -"))?;
    assert!(content.starts_with("0\n0\n"), "{}", &content[..40.min(content.len())]);
    assert!(samba.client("get first -")?.starts_with("1\n"));
    drop(samba);
    node.ok(&["define", "master", "v", "--samba=false"])?;
    assert!(!fs::read_to_string(&include).unwrap().contains("[v]"));
    node.ok(&["define", "master", "v", "--samba"])?;
    assert!(fs::read_to_string(&include).unwrap().contains("[v]"));
    assert_eq!(node.down()?, 0);
    assert!(!fs::read_to_string(&include).unwrap().contains("[v]"));
    place.nothing_is_left();
    Ok(())
}

/// What is exported of a volume, each with its identity.
fn exported() -> Vec<(String, String)> {
    let table = fs::read_to_string("/var/lib/nfs/etab").unwrap_or_default();
    let line = |line: &str| {
        let (path, rest) = line.split_once('\t')?;
        let fsid = rest.split("fsid=").nth(1)?.split([',', ')']).next()?;
        Some((path.to_owned(), fsid.to_owned()))
    };
    let mut exported: Vec<_> = table.lines().filter_map(line).collect();
    exported.sort();
    exported
}

/// The table of exports, without a server: what a server would go by.
#[test]
fn root_exports_keep_their_identity() -> Result<(), Failure> {
    if !root_with(&["mkfs.xfs", "mkfs.ext4", "mount", "losetup", "exportfs"]) {
        return Ok(());
    }
    let place = Place::new()?;
    output("mount", |mount| mount.args(["-t", "tmpfs", "tmpfs", "/var/lib/nfs"]))?;
    for file in ["etab", "rmtab"] {
        fs::write(Path::new("/var/lib/nfs").join(file), "").unwrap();
    }
    let (mut alpha, mut beta, at, shown) =
        mounted_pair(&place, "ext4", &["--mount-snap", "--export=127.0.0.1"])?;
    replicated(&alpha, &beta, &at, 0)?;
    let before = exported();
    assert_eq!(before.len(), 2, "{before:?}");
    for number in 1..=FLIPS {
        replicated(&alpha, &beta, &at, number)?;
        assert_eq!(generation(&shown), number);
    }
    let of = |exported: &[(String, String)]| {
        exported.iter().find(|(at, _)| Path::new(at) == shown).map(|(_, fsid)| fsid.clone())
    };
    // The volume is what it was, each snapshot is itself, and all are different.
    let all = exported();
    assert!(of(&all).is_some() && of(&all) == of(&before), "{all:?}");
    let volume = beta.volume("v")?;
    for snapshot in &volume.snapshots {
        let at = snapshot.mounted.as_ref().expect("it is mounted").display().to_string();
        assert!(all.contains(&(at, snapshot.guid.to_string())), "{all:?}");
    }
    assert_eq!(
        (all.len(), volume.mounts.map(|mounts| mounts.exported)),
        (2 + FLIPS as usize, Some(all.len()))
    );

    beta.kill()?;
    beta.up()?;
    wait_until(&beta, "exports", |volume| volume.mounts.as_ref().is_some_and(|m| m.exported == all.len()));
    assert_eq!(exported(), all);
    beta.ok(&["delete", "v", "0"])?;
    assert_eq!(exported().len(), all.len() - 1);
    assert_eq!(beta.run(&["define", "source", "v", "alpha", "--export=a b"])?.code, 2);
    assert_eq!(beta.down()?, 0);
    assert_eq!(exported(), []);
    assert_eq!(alpha.down()?, 0);
    place.nothing_is_left();
    Ok(())
}

/// Flips that the exports live through.
const FLIPS: u64 = 3;
