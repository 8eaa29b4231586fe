//! Volumes where udev runs: it hears of each step of a device's life, and the nodes are where they belong all the same.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
    sync::mpsc::{self, TryRecvError},
    thread,
};

use zumastor::exit::Failure;
use zumastor_backends::{Faults, Making, VolumeSpec, let_go_on, open_devices, open_lvm};
use zumastor_core::{Lineage, NewSnapshot, SnapshotNumber, SnapshotStore};
use zumastor_testbed::{
    lab::{self, Machine},
    output,
};

/// Where the tests write, behind what a file system has at its begin.
const PLACE: u64 = 3 << 19;

fn spec(origin: &str, snapstore: &str) -> VolumeSpec {
    VolumeSpec {
        name: "v".parse().unwrap(),
        origin: origin.into(),
        snapstore: snapstore.into(),
        metadev: None,
        chunk: None,
        notes: "/run/lab/notes".into(),
    }
}

/// A volume that udev would read and link to if it could, is given other devices, its snapshots other names, and both are taken away.
#[test]
fn lab_udev_leaves_volumes_on_devices_alone() -> Result<(), Failure> {
    lab::inside(
        &["udevadm", "blkid", "dmsetup", "mkfs.ext4"],
        |lab| {
            let machine = Machine::new("solo").udev().modules(&["dm-thin-pool"]);
            Ok(machine.disk(&lab.disk("origin", 2 << 20)?).disk(&lab.disk("snapdev", 32 << 20)?))
        },
        || {
            output("mkfs.ext4", |c| c.args(["-q", "/dev/ubda"]))?;
            let open =
                || open_devices(&spec("/dev/ubda", "/dev/ubdb"), Some(Making::default()), Faults::none());
            let store = open().map_err(Failure::doing("opening the store"))?;
            let twice = open().map(drop).unwrap_err();
            assert!(twice.to_string().contains("in use by another process"), "{twice}");
            const BELOW: [&str; 3] = ["v:data", "v:metadata", "v:pool"];
            let there = |nodes: &[&str]| nodes_are(&[&BELOW, nodes].concat());
            there(&["v"])?;
            two_snapshots(&*store)?;
            there(&["v", "v(0)", "v(1)"])?;
            flips(&*store, 0..3)?;
            there(&["v", "v(0)", "v(1)"])?;

            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(store.set_aside(SnapshotNumber(1), SnapshotNumber::local(0)))?;
            let aside = format!("v({})", SnapshotNumber::local(0));
            there(&["v", "v(0)", &aside])?;
            let reader = File::open("/dev/mapper/v(0)").map_err(Failure::doing("opening snapshot 0"))?;
            runtime.block_on(store.delete_snapshot(SnapshotNumber(0)))?;
            assert!(!fs::exists("/dev/mapper/v(0)").unwrap(), "a deleted snapshot is there");
            assert_eq!(content(&reader), 1, "an open snapshot that was deleted");
            drop(reader);
            there(&["v", &aside])?;

            // As packages do when they are installed.
            for action in ["change", "add"] {
                let trigger = ["trigger", "--settle", "--sysname-match=dm-*", "--action", action];
                output("udevadm", |c| c.args(trigger))?;
                there(&["v", &aside])?;
            }
            runtime.block_on(store.close())?;
            drop(store);
            nodes_are(&[])
        },
    )
}

/// LVM's own nodes are udev's, whatever becomes of the devices that they lead to.
#[test]
fn lab_nodes_of_logical_volumes_stay_where_udev_runs() -> Result<(), Failure> {
    lab::inside(
        &["udevadm", "lvs", "vgcreate", "dmsetup", "mkfs.ext4"],
        |lab| Ok(Machine::new("solo").udev().modules(&["dm-thin-pool"]).disk(&lab.disk("pv", 64 << 20)?)),
        || {
            for command in [
                "pvcreate -q /dev/ubda",
                "vgcreate -q vg /dev/ubda",
                "lvcreate -q --type thin-pool -L 32M --poolmetadatasize 4M -n pool vg",
                "lvcreate -q -V 4M -T vg/pool -n vol",
                "mkfs.ext4 -q /dev/vg/vol",
            ] {
                let mut words = command.split(' ');
                output(words.next().unwrap(), |c| c.args(words))?;
            }
            let open =
                |faults| open_lvm(&spec("/dev/vg/vol", "/dev/vg/pool"), Some(Making::default()), faults);
            let store = open(Faults::none()).map_err(Failure::doing("opening the store"))?;
            two_snapshots(&*store)?;
            let there = || lvms_nodes_are_there(&["vol", "vol_zuma0", "vol_zuma1"]);
            there()?;
            flips(&*store, 0..2)?;
            there()?;
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(store.close())?;
            drop(store);
            lvms_nodes_are_there(&["vol"])?;

            // Left standing still by a program that was killed.
            let killed = open(Faults::new(|_| true)).map_err(Failure::doing("opening the store"))?;
            runtime.block_on(killed.create_snapshot(snapshot(2))).expect_err("it was stopped");
            drop(killed);
            output("dmsetup", |c| c.args(["suspend", "vg-vol"]))?;
            assert_eq!(runtime.block_on(let_go_on(&spec("/dev/vg/vol", "/dev/vg/pool"), None))?, 1);
            there()
        },
    )
}

fn snapshot(number: u64) -> NewSnapshot {
    NewSnapshot::manual(SnapshotNumber(number), Lineage(uuid::Uuid::nil()))
}

/// Snapshot 0 holds ones at the place, snapshot 1 twos.
fn two_snapshots(store: &dyn SnapshotStore) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for number in 0..2 {
        let head = OpenOptions::new().write(true).open("/dev/mapper/v");
        let head = head.map_err(Failure::doing("opening the volume"))?;
        let written = head.write_all_at(&[number as u8 + 1; 4096], PLACE).and_then(|()| head.sync_data());
        written.map_err(Failure::doing("writing to the volume"))?;
        drop(head);
        runtime.block_on(store.create_snapshot(snapshot(number)))?;
    }
    Ok(())
}

/// What was written at the place last.
fn content(device: &File) -> u8 {
    let mut byte = [0];
    device.read_exact_at(&mut byte, PLACE).expect("it can be read");
    byte[0]
}

/// Makes the volume show one snapshot and the other, each time while somebody reads it. Who looks for it finds it at each moment.
fn flips(store: &dyn SnapshotStore, rounds: std::ops::Range<u64>) -> Result<(), Failure> {
    let (going_on, ends) = mpsc::channel::<()>();
    let watch = thread::spawn(move || {
        let mut looks = [0_u64; 2];
        while ends.try_recv() == Err(TryRecvError::Empty) {
            looks[usize::from(fs::metadata("/dev/mapper/v").is_ok())] += 1;
        }
        looks
    });
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let open = || File::open("/dev/mapper/v").map_err(Failure::doing("opening the volume"));
    for round in rounds {
        let reader = open()?;
        let before = content(&reader);
        runtime.block_on(store.revert(SnapshotNumber(round % 2)))?;
        assert_eq!(u64::from(content(&open()?)), round % 2 + 1, "what the volume shows");
        assert_eq!(content(&reader), before, "what who had it open sees");
    }
    drop(going_on);
    let [missing, found] = watch.join().expect("it only looks");
    assert_eq!(missing, 0, "of {found} looks found no volume");
    assert!(found > 0, "nobody looked");
    Ok(())
}

/// There are these nodes of ours and no others, and each leads to the device of its name; before udev has come to rest, and then.
fn nodes_are(wanted: &[&str]) -> Result<(), Failure> {
    for at_rest in [false, true] {
        if at_rest {
            check_udev()?;
        }
        let nodes = fs::read_dir("/dev/mapper").map_err(Failure::doing("/dev/mapper"))?;
        let nodes = nodes.flatten().map(|entry| entry.file_name().into_string().expect("a name"));
        let mut nodes: Vec<_> = nodes.filter(|name| name != "control").collect();
        nodes.sort_unstable();
        let mut wanted = wanted.to_vec();
        wanted.sort_unstable();
        assert_eq!(nodes, wanted, "udev is at rest: {at_rest}");
        for node in nodes {
            let kernels = node.replace('(', "\\x28").replace(')', "\\x29");
            assert_eq!(device_of(&Path::new("/dev/mapper").join(&node))?, kernels, "where {node} leads");
        }
    }
    let devices = fs::read_dir("/sys/block").unwrap().flatten().map(|entry| entry.file_name());
    let devices = devices.filter(|name| name.to_string_lossy().starts_with("dm-")).count();
    assert_eq!(devices, wanted.len(), "devices without a node");
    Ok(())
}

/// The nodes that LVM and udev make lead to these logical volumes.
fn lvms_nodes_are_there(volumes: &[&str]) -> Result<(), Failure> {
    check_udev()?;
    for volume in volumes {
        for node in [format!("/dev/vg/{volume}"), format!("/dev/mapper/vg-{volume}")] {
            assert_eq!(device_of(Path::new(&node))?, format!("vg-{volume}"), "where {node} leads");
        }
    }
    Ok(())
}

/// What the kernel calls the device that a node leads to.
fn device_of(node: &Path) -> Result<String, Failure> {
    let device = fs::canonicalize(node).map_err(Failure::doing(node.display()))?;
    let name = Path::new("/sys/block").join(device.file_name().expect("a device")).join("dm/name");
    Ok(fs::read_to_string(name).map_err(Failure::doing(node.display()))?.trim().to_owned())
}

fn check_udev() -> Result<(), Failure> {
    output("sh", |c| c.args(["-c", ". \"$LAB_SESSIONS/lib.sh\"; check_udev"])).map(drop)
}
