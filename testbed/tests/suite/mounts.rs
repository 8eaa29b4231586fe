//! Volumes and snapshots as mounted file systems: real ones, in images, each test with mounts of its own.

use std::{
    fs::{self, File},
    io::Read,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::common::{
    PROGRAM,
    mounted::{
        Place, Standing, generation, make, master, mounted_pair, read, reader, refused, replicated,
        snapshots, wait_for, wait_until, write,
    },
    root_with,
};
use zumastor::{api::EventKind, exit::Failure};
use zumastor_core::SnapshotNumber;
use zumastor_testbed::{Node, introduce, output};

fn all_of(kind: &str) -> Result<(), Failure> {
    if !root_with(&["mkfs.xfs", &format!("mkfs.{kind}"), "mount", "losetup"]) {
        return Ok(());
    }
    let place = Place::new()?;
    let (mut node, at) = master(&place, kind, &["--hourly", "3"])?;
    for number in 0..5 {
        write(&at, number);
        node.ok(&["snapshot", "v", "hourly"])?;
        let newest = snapshots(&node)?.join("hourly.0");
        assert_eq!(generation(&newest), number);
        write(&at, 100);
        assert_eq!((generation(&at), generation(&newest)), (100, number), "a snapshot changed");
    }
    // A file is in the newest snapshot only after the next one.
    let path = snapshots(&node)?;
    fs::write(at.join("file"), "new").unwrap();
    assert!(!path.join("hourly.0/file").exists());
    node.ok(&["snapshot", "v"])?;
    assert!(!path.join("hourly.0/file").exists());
    write(&at, 5);
    node.ok(&["snapshot", "v", "hourly"])?;
    assert_eq!(fs::read_to_string(path.join("hourly.0/file")).unwrap(), "new");

    // Three hourly ones and the one by hand, each with what it held.
    let expected = |node: &Node| {
        for (link, number) in [("hourly.0", 5), ("hourly.1", 4), ("hourly.2", 3)] {
            assert_eq!(generation(&path.join(link)), number, "{link}");
        }
        assert!(!path.join("hourly.3").exists());
        let volume = node.volume("v").unwrap();
        for snapshot in &volume.snapshots {
            let mounted = snapshot.mounted.as_ref().unwrap();
            assert_eq!(mounted, &path.join(mounted.file_name().unwrap()));
            assert!(mounted.file_name().unwrap().to_str().unwrap().starts_with(&snapshot.name));
        }
        let mounted =
            fs::read_dir(&path).unwrap().filter(|entry| !entry.as_ref().unwrap().path().is_symlink());
        assert_eq!((volume.snapshots.len(), mounted.count()), (4, 4));
        assert_eq!(volume.mounts.unwrap().troubles, Vec::<String>::new());
    };
    expected(&node);
    let run = node.path("run");
    assert_eq!(generation(&run.join("mount/v")), 5);
    assert_eq!(generation(&run.join("snapshot/v/hourly.0")), 5);
    let writes = fs::write(path.join("hourly.0/file"), "x").unwrap_err();
    assert_eq!(writes.kind(), std::io::ErrorKind::ReadOnlyFilesystem);

    // What a daemon that was killed left is taken over, and goes on.
    let before = place.mounts();
    node.kill()?;
    assert_eq!(generation(&path.join("hourly.0")), 5);
    node.up()?;
    wait_until(&node, "what was mounted", |volume| {
        volume.mounts.as_ref().is_some_and(|m| m.mountpoint.is_some())
    });
    expected(&node);
    let mut after = place.mounts();
    after.sort();
    let mut before = before;
    before.sort();
    assert_eq!(after, before);
    write(&at, 6);
    node.ok(&["snapshot", "v", "hourly"])?;
    assert_eq!((generation(&path.join("hourly.0")), generation(&path.join("hourly.1"))), (6, 5));

    // A stop takes everything away, a start brings it back.
    assert_eq!(node.down()?, 0);
    place.nothing_is_left();
    node.up()?;
    wait_until(&node, "mounts", |volume| volume.mounts.as_ref().is_some_and(|m| m.mountpoint.is_some()));
    assert_eq!((generation(&path.join("hourly.0")), generation(&at)), (6, 6));
    node.ok(&["define", "master", "v", "--no-snapmount"])?;
    assert!(!path.exists() && generation(&at) == 6);
    node.ok(&["define", "master", "v", "--no-snapmount=false"])?;
    assert_eq!(generation(&path.join("hourly.0")), 6);
    node.ok(&["forget", "volume", "v"])?;
    place.nothing_is_left();
    assert!(!path.exists() && fs::read_dir(&at).unwrap().next().is_none());
    Ok(())
}

#[test]
fn root_snapshots_of_ext4_are_mounted() -> Result<(), Failure> {
    all_of("ext4")
}

#[test]
fn root_snapshots_of_xfs_are_mounted() -> Result<(), Failure> {
    all_of("xfs")
}

#[test]
fn root_snapshots_of_btrfs_are_mounted() -> Result<(), Failure> {
    all_of("btrfs")
}

#[test]
fn root_what_uses_a_mount_is_named() -> Result<(), Failure> {
    if !root_with(&["mkfs.xfs", "mkfs.ext4", "mount", "losetup"]) {
        return Ok(());
    }
    let place = Place::new()?;
    let (mut node, at) = master(&place, "ext4", &["--hourly", "1"])?;
    write(&at, 0);
    node.ok(&["snapshot", "v", "hourly"])?;
    let oldest = snapshots(&node)?.join("hourly.0").canonicalize().unwrap();
    let standing = Standing::in_directory(&oldest);
    let name = format!("sleep ({})", standing.0.id());
    let err = refused(&node, &["delete", "v", "0"]);
    assert!(err.contains("snapshot 0") && err.contains(&name), "{err}");
    assert_eq!(generation(&oldest), 0);

    // Retention leaves it, says so once, and goes on.
    for number in 1..4 {
        write(&at, number);
        node.ok(&["snapshot", "v", "hourly"])?;
    }
    let volume = node.volume("v")?;
    let numbers: Vec<_> = volume.snapshots.iter().map(|snapshot| snapshot.number.0).collect();
    assert_eq!(numbers, [0, 3]);
    let kept: Vec<_> = volume.events.iter().filter(|event| event.what == EventKind::Kept).collect();
    assert!(kept.len() == 1 && kept[0].text.contains(&name), "{kept:?}");
    assert_eq!((generation(&oldest), generation(&snapshots(&node)?.join("hourly.0"))), (0, 3));

    // The volume itself: nothing that would pull it from under a program.
    let writer = Standing::in_directory(&at);
    let name = format!("sleep ({})", writer.0.id());
    for args in [&["revert", "v", "0"][..], &["forget", "volume", "v"], &["remount", "v"]] {
        let err = refused(&node, args);
        assert!(err.contains(&name), "{args:?}: {err}");
    }
    assert_eq!(generation(&at), 3);
    // The daemon may end; what is written to stays, and is taken over.
    node.down()?;
    assert_eq!(generation(&at), 3);
    assert_eq!(place.mounts(), [at.to_str().unwrap().to_owned()]);
    node.up()?;
    wait_until(&node, "the volume", |volume| volume.mounts.as_ref().is_some_and(|m| m.mountpoint.is_some()));
    drop((standing, writer));
    node.ok(&["delete", "v", "0"])?;
    node.ok(&["revert", "v", "3"])?;
    node.ok(&["forget", "volume", "v"])?;
    place.nothing_is_left();
    Ok(())
}

#[test]
fn root_a_mounted_volume_is_reverted_resized_and_mounted_elsewhere() -> Result<(), Failure> {
    if !root_with(&["mkfs.xfs", "mkfs.ext4", "mount", "losetup"]) {
        return Ok(());
    }
    let place = Place::new()?;
    let (node, at) = master(&place, "ext4", &[])?;
    for number in 0..2 {
        write(&at, number);
        node.ok(&["snapshot", "v"])?;
    }
    // What no snapshot has is kept, also what was not on the disk yet.
    write(&at, 2);
    let said = node.run(&["revert", "v", "0"])?;
    assert!(said.code == 0 && said.err.contains("kept as snapshot 2"), "{said:?}");
    assert_eq!(generation(&at), 0);
    let of = |number| {
        let volume = node.volume("v").unwrap();
        let snapshot =
            volume.snapshots.into_iter().find(|snapshot| snapshot.number == SnapshotNumber(number));
        snapshot.and_then(|snapshot| snapshot.mounted).expect("it is mounted")
    };
    assert_eq!([of(0), of(1), of(2)].map(|at| generation(&at)), [0, 1, 2]);

    // It grows below its file system, which grows then.
    let err = refused(&node, &["resize", "v", "--origin", "32M"]);
    assert!(err.contains("mounted"), "{err}");
    node.ok(&["resize", "v", "--origin", "96M"])?;
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.split(' ').nth(4) == at.to_str()).unwrap().to_owned();
    let device = line.split(" - ext4 ").nth(1).unwrap().split(' ').next().unwrap();
    let sectors = fs::read_to_string(Path::new("/sys/class/block").join(&device[5..]).join("size")).unwrap();
    assert_eq!(sectors.trim(), (96 << 11).to_string());
    assert_eq!(generation(&at), 0);

    // Elsewhere, with other options; not where something else is mounted.
    let other = node.path("other");
    fs::create_dir(&other).unwrap();
    let (other_text, taken) = (other.to_str().unwrap(), place.path().to_str().unwrap());
    let err = refused(&node, &["remount", "v", "--mountpoint", taken]);
    assert!(err.contains("mounted on"), "{err}");
    let err = refused(&node, &["remount", "v", "--mountpoint", "/nowhere/at/all"]);
    assert!(err.contains("make the directory"), "{err}");
    assert_eq!(node.run(&["remount", "v", "--mountopts", "bind"])?.code, 2);
    node.ok(&[
        "remount",
        "v",
        "-p",
        other_text,
        "-o",
        "noatime,commit=31",
        "-s",
        node.path("s").to_str().unwrap(),
    ])
    .unwrap_err();
    fs::create_dir(node.path("s")).unwrap();
    node.ok(&[
        "remount",
        "v",
        "-p",
        other_text,
        "-o",
        "noatime,commit=31",
        "-s",
        node.path("s").to_str().unwrap(),
    ])?;
    assert!(fs::read_dir(&at).unwrap().next().is_none());
    assert_eq!((generation(&other), snapshots(&node)?), (0, node.path("s")));
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.split(' ').nth(4) == Some(other_text)).unwrap().to_owned();
    assert!(line.contains("noatime") && line.contains("commit=31"), "{line}");

    // An image that others write is not mounted behind their backs.
    node.ok(&["remount", "v", "-p", ""])?;
    assert!(fs::read_dir(&other).unwrap().next().is_none());
    let qemu = File::options().write(true).open(node.path("v.img")).unwrap();
    node.ok(&["remount", "v", "-p", other_text])?;
    let volume = node.volume("v")?;
    assert!(volume.trouble.unwrap().contains("open for writing"));
    drop(qemu);
    node.ok(&["remount", "v"])?;
    assert_eq!(generation(&other), 0);
    node.ok(&["stop", "volume", "v"])?;
    place.nothing_is_left();
    Ok(())
}

/// At each step of it: it is mounted where it was or where it is to be, whole, and nowhere else.
#[test]
fn root_a_remount_that_is_killed_is_done_or_not() -> Result<(), Failure> {
    if !root_with(&["mkfs.xfs", "mkfs.ext4", "mount", "losetup"]) {
        return Ok(());
    }
    if cfg!(not(debug_assertions)) {
        println!("left out: this build has no steps to be killed at");
        return Ok(());
    }
    let place = Place::new()?;
    let (mut node, at) = master(&place, "ext4", &[])?;
    write(&at, 7);
    node.ok(&["snapshot", "v"])?;
    let places = [at, node.path("other")];
    fs::create_dir(&places[1]).unwrap();
    let mounted = |node: &Node| {
        let volume = wait_until(node, "what is mounted", |volume| {
            volume
                .mounts
                .as_ref()
                .is_some_and(|mounts| mounts.mountpoint.is_some() && mounts.snappath.is_some())
        });
        let mounts = volume.mounts.unwrap();
        assert_eq!(mounts.troubles, Vec::<String>::new());
        let (there, here) = (mounts.mountpoint.unwrap(), volume.snapshots[0].mounted.clone().unwrap());
        assert_eq!((generation(&there), generation(&here)), (7, 7));
        let empty = places.iter().find(|place| **place != there).unwrap();
        assert!(fs::read_dir(empty).unwrap().next().is_none(), "{empty:?} holds something too");
        there
    };
    for steps in 1.. {
        let from = mounted(&node);
        let to = places.iter().find(|place| **place != from).unwrap();
        node.kill_at(steps)?;
        let remount = ["remount", "v", "--mountpoint", to.to_str().unwrap()];
        let ran = node.run(&remount)?;
        if !node.was_killed()? {
            assert_eq!((ran.code, mounted(&node)), (0, to.clone()), "{ran:?}");
            assert!(steps > 6, "a remount unmounts, writes a file and mounts");
            println!("{} steps", steps - 1);
            break;
        }
        node.up()?;
        let now = mounted(&node);
        assert!(ran.code != 0 || now == *to, "it was acknowledged, and is gone after step {steps}: {ran:?}");
        // It may be there already, and is mounted anew then.
        node.ok(&remount)?;
        assert_eq!(mounted(&node), *to, "after step {steps}");
    }
    assert_eq!(node.down()?, 0);
    place.nothing_is_left();
    Ok(())
}

/// A replica that had more than its new master goes back to what that has, and is seen so.
#[test]
fn root_a_replica_that_goes_back_is_mounted_so() -> Result<(), Failure> {
    if !root_with(&["mkfs.xfs", "mkfs.ext4", "mount", "losetup"]) {
        return Ok(());
    }
    let place = Place::new()?;
    let (alpha, beta, at, shown) = mounted_pair(&place, "ext4", &[])?;
    let mut gamma = Node::start(Path::new(PROGRAM), place.path(), "gamma")?;
    introduce(&alpha, &gamma)?;
    introduce(&beta, &gamma)?;
    alpha.ok(&["define", "target", "v", "gamma"])?;
    gamma.define("v", gamma.root())?;
    gamma.ok(&["define", "source", "v", "alpha"])?;
    replicated(&alpha, &beta, &at, 0)?;
    gamma.ok(&["replicate", "v", "alpha", "--wait"])?;
    replicated(&alpha, &beta, &at, 1)?;
    wait_for("the newer one to be shown", || (read(&shown).ok() == Some(1)).then_some(()));
    gamma.ok(&["promote", "v"])?;
    gamma.ok(&["define", "target", "v", "beta"])?;
    // What is mounted is looked at before anything is heard of the new master.
    gamma.down()?;
    beta.ok(&["forget", "source", "v"])?;
    beta.ok(&["define", "source", "v", "gamma"])?;
    gamma.up()?;
    beta.ok(&["replicate", "v", "gamma", "--wait"])?;
    wait_for("what the new master has to be shown", || (read(&shown).ok() == Some(0)).then_some(()));
    for node in [&beta, &alpha, &gamma] {
        node.ok(&["stop", "volume", "v"])?;
    }
    place.nothing_is_left();
    Ok(())
}

/// A file system that its owner mounts, and that does not hold still: its journal is played back, but not into the snapshot.
fn owned_by_others(kind: &str) -> Result<(), Failure> {
    if !root_with(&["mkfs.xfs", &format!("mkfs.{kind}"), "mount", "losetup"]) {
        return Ok(());
    }
    let place = Place::new()?;
    let node = Node::start(Path::new(PROGRAM), place.path(), "alpha")?;
    let (image, at) = (node.path("v.img"), node.path("owner"));
    make(kind, &image)?;
    fs::create_dir(&at).unwrap();
    output("mount", |mount| mount.args(["-o", "loop"]).arg(&image).arg(&at))?;
    node.define("v", place.path().join("alpha").as_path())?;
    node.ok(&["define", "master", "v"])?;
    write(&at, 7);
    // Into the journal, and not further.
    File::open(at.join("second")).unwrap().sync_all().unwrap();
    File::open(at.join("first")).unwrap().sync_all().unwrap();
    node.ok(&["snapshot", "v"])?;
    let digest = |node: &Node| node.volume("v").unwrap().snapshots[0].digest;
    let before = wait_for("a digest", || digest(&node));
    let volume = node.volume("v")?;
    let mounted = volume.snapshots[0].mounted.clone().expect("it is mounted");
    assert_eq!(generation(&mounted), 7);
    assert_eq!(node.digest(volume.snapshots[0].device.as_ref().expect("it is a file"))?, before.to_string());
    node.ok(&["forget", "volume", "v"])?;
    output("umount", |umount| umount.arg(&at))?;
    place.nothing_is_left();
    Ok(())
}

#[test]
fn root_a_journal_is_played_back_beside_the_snapshot_on_ext4() -> Result<(), Failure> {
    owned_by_others("ext4")
}

#[test]
fn root_a_journal_is_played_back_beside_the_snapshot_on_xfs() -> Result<(), Failure> {
    owned_by_others("xfs")
}

fn flips(kind: &str, count: u64) -> Result<(), Failure> {
    if !root_with(&["mkfs.xfs", &format!("mkfs.{kind}"), "mount", "losetup"]) {
        return Ok(());
    }
    let place = Place::new()?;
    let (alpha, mut beta, at, shown) = mounted_pair(&place, kind, &["--mount-snap"])?;
    let replicate = |beta: &Node, number: u64| -> Result<(), Failure> {
        replicated(&alpha, beta, &at, number)?;
        assert_eq!(generation(&shown), number, "the replica shows another generation than it has");
        Ok(())
    };
    replicate(&beta, 0)?;
    let stop = Arc::new(AtomicBool::new(false));
    let reading = reader(shown.clone(), stop.clone());
    // Open files of what was seen go on.
    let mut open = File::open(shown.join("first")).unwrap();
    let standing = Standing::in_directory(&shown);
    for number in 1..=count {
        replicate(&beta, number)?;
    }
    stop.store(true, Ordering::Relaxed);
    let seen = reading.join().unwrap();
    assert!(seen.is_sorted() && seen.first() == Some(&0) && seen.len() > 1, "{seen:?}");
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert!(text.len() == 40_000 && text.lines().all(|line| line == "0"));
    // What is still read there stays, and says who reads it.
    let err = refused(&beta, &["delete", "v", "0"]);
    // Files of a btrfs do not tell which device they are on.
    assert!(err.contains(&format!("sleep ({})", standing.0.id())) || kind == "btrfs", "{err}");
    drop((open, standing));
    beta.ok(&["delete", "v", "0"])?;

    // The daemon is killed, and another snapshot comes.
    beta.kill()?;
    assert_eq!(generation(&shown), count);
    beta.up()?;
    replicate(&beta, count + 1)?;
    // Each is mounted on its own, too.
    let volume = beta.volume("v")?;
    let mounted: Vec<_> = volume.snapshots.iter().map(|snapshot| snapshot.mounted.clone().unwrap()).collect();
    assert_eq!(
        mounted.iter().map(|at| generation(at)).collect::<Vec<_>>(),
        (1..=count + 1).collect::<Vec<_>>()
    );

    // As the master, it shows what is written.
    beta.ok(&["promote", "v"])?;
    write(&shown, 1000);
    assert_eq!(generation(&shown), 1000);
    beta.ok(&["snapshot", "v"])?;
    for node in [alpha, beta] {
        let mut node = node;
        assert_eq!(node.down()?, 0);
    }
    place.nothing_is_left();
    Ok(())
}

#[test]
fn root_twenty_flips_of_ext4_below_a_reader() -> Result<(), Failure> {
    flips("ext4", 20)
}

#[test]
fn root_flips_of_xfs_below_a_reader() -> Result<(), Failure> {
    flips("xfs", 4)
}

#[test]
fn root_flips_of_btrfs_below_a_reader() -> Result<(), Failure> {
    flips("btrfs", 4)
}
