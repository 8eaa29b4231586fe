//! Mounts of volumes on block devices, on a real device-mapper.

use std::{collections::BTreeMap, fs, path::Path};

use crate::common::{
    PROGRAM,
    mounted::{Standing, generation, refused, wait_for, write},
};
use zumastor::exit::Failure;
use zumastor_testbed::{
    Node,
    lab::{self, Machine},
    output,
};

/// More than the original had.
const SNAPSHOTS: u64 = 66;

/// An ext4 of 1 GiB that was there before, with many snapshots: each is mounted, and holds what was written before it.
#[test]
fn lab_sixty_six_snapshots_of_a_device_are_mounted() -> Result<(), Failure> {
    lab::inside(
        &["mkfs.ext4", "dmsetup", "thin_check", "blkid"],
        |lab| {
            let machine = Machine::new("solo").memory(768).modules(&["dm-thin-pool"]);
            Ok(machine.disk(&lab.disk("a", 1 << 30)?).disk(&lab.disk("b", 512 << 20)?))
        },
        || {
            let dir = tempfile::tempdir().map_err(Failure::doing("a directory"))?;
            let at = dir.path().join("at");
            fs::create_dir(&at).map_err(Failure::doing(at.display()))?;
            let old: Vec<u8> =
                (0..3_000_000u32).flat_map(|word| word.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
            output("mkfs.ext4", |mkfs| mkfs.args(["-q", "/dev/ubda"]))?;
            output("mount", |mount| mount.arg("/dev/ubda").arg(&at))?;
            fs::write(at.join("old"), &old).map_err(Failure::doing("writing"))?;
            output("umount", |umount| umount.arg(&at))?;

            let mut node = Node::start(Path::new(PROGRAM), dir.path(), "alpha")?;
            let mountpoint = at.to_str().expect("a plain path");
            node.ok(&["define", "volume", "v", "/dev/ubda", "/dev/ubdb", "-p", mountpoint, "--yes"])?;
            node.ok(&["define", "master", "v", "--hourly", "100", "--dotsnapshot"])?;
            for number in 0..SNAPSHOTS {
                write(&at, number);
                node.ok(&["snapshot", "v", "hourly"])?;
            }
            write(&at, 1000);
            let mounted = |node: &Node| -> BTreeMap<u64, std::path::PathBuf> {
                let snapshots = node.volume("v").unwrap().snapshots.into_iter();
                snapshots.filter_map(|snapshot| Some((snapshot.number.0, snapshot.mounted?))).collect()
            };
            let all_there = |node: &Node| {
                let all = mounted(node);
                assert!(all.keys().copied().eq(0..SNAPSHOTS), "{all:?}");
                for (number, at) in all {
                    assert_eq!(generation(&at), number);
                    assert!(fs::read(at.join("old")).unwrap() == old, "a file of snapshot {number} changed");
                }
                assert_eq!(generation(&at.join(".snapshot/hourly.0")), SNAPSHOTS - 1);
                assert_eq!(generation(&at), 1000);
            };
            all_there(&node);
            // What a daemon that was killed left is taken over.
            node.kill()?;
            node.up()?;
            wait_for("the mounts", || (mounted(&node).len() as u64 == SNAPSHOTS).then_some(()));
            all_there(&node);

            // What is used stays, and is named; a view of the snapshots is in nobody's way.
            let standing = Standing::in_directory(&mounted(&node)[&5]);
            let err = refused(&node, &["delete", "v", "5"]);
            assert!(err.contains(&format!("sleep ({})", standing.0.id())), "{err}");
            drop(standing);
            node.ok(&["delete", "v", "5"])?;
            let standing = Standing::in_directory(&at.join(".snapshot"));
            node.ok(&["revert", "v", "7"])?;
            drop(standing);
            assert_eq!(generation(&at), 7);
            assert_eq!(node.down()?, 0);
            assert_eq!(fs::read_dir("/dev/mapper").unwrap().count(), 1, "devices are left");
            Ok(())
        },
    )
}
