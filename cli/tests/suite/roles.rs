//! What changes a volume as a whole: going back, its size.

use std::fs::File;

use crate::common::{Node, image, master_and_replica, text, write};
use zumastor::api::{HeadStatus, VolumeStatus};
use zumastor_core::SnapshotNumber;

const MIB: u64 = 1 << 20;

fn shows(number: u64) -> impl Fn(&VolumeStatus) -> bool {
    move |volume| volume.head == Some(HeadStatus::Snapshot(SnapshotNumber(number)))
}

fn numbers(node: &Node) -> Vec<String> {
    node.volume("v").snapshots.iter().map(|snapshot| snapshot.number.to_string()).collect()
}

#[test]
fn a_master_goes_back_to_a_snapshot_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = master_and_replica(dir.path(), 4 * MIB, &[], &[]);
    let first = alpha.digest("v");
    write(&alpha.path("v.img"), MIB, b"second");
    alpha.ok(&["snapshot", "v"]);
    alpha.ok(&["replicate", "v", "beta", "--wait"]);
    write(&alpha.path("v.img"), 2 * MIB, b"in no snapshot yet");
    let third = alpha.digest("v");

    let ran = alpha.run(&["revert", "v", "0"]);
    assert_eq!((ran.code, ran.out.trim()), (0, "volume v holds snapshot 0 again"), "{ran:?}");
    assert!(ran.err.contains("what it held before is kept as snapshot 2"), "{ran:?}");
    assert_eq!(alpha.digest("v"), first);
    assert_eq!(numbers(&alpha), ["0", "1", "2"]);
    assert!(alpha.ok(&["revert", "v", "0"]).contains("already"));
    // What a snapshot has is not kept once more.
    assert_eq!(alpha.run(&["revert", "v", "2"]).err, "");
    assert_eq!(alpha.digest("v"), third);
    alpha.ok(&["revert", "v", "0"]);
    assert_eq!(numbers(&alpha), ["0", "1", "2"]);

    // The next replication carries only the difference.
    alpha.ok(&["snapshot", "v"]);
    let out = alpha.ok(&["replicate", "v", "beta", "--wait"]);
    assert!(out.starts_with("snapshot 3 replicated from snapshot 1: 4.00 KiB of data"), "{out}");
    assert_eq!(beta.digest("v"), first);

    // Not on a replica, not to what is not there, not under a program that writes.
    let error = beta.fails(3, &["revert", "v", "1"]);
    assert!(error.contains("volume v is a replica"), "{error}");
    assert!(alpha.fails(1, &["revert", "v", "9"]).contains("has no snapshot 9"));
    let writer = File::options().write(true).open(alpha.path("v.img")).unwrap();
    let error = alpha.fails(3, &["revert", "v", "1"]);
    assert!(error.contains("open for writing") && error.contains("stop the program"), "{error}");
    assert_eq!(alpha.digest("v"), first);
    drop(writer);
    alpha.ok(&["revert", "v", "1"]);
}

#[test]
fn a_master_killed_while_it_goes_back_holds_the_old_or_the_new() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path(), "alpha");
    image(&node.path("v.img"), 24 * MIB, 1);
    node.define("v");
    node.ok(&["define", "master", "v"]);
    node.ok(&["snapshot", "v"]);
    let old = node.digest("v");
    for delay in [0, 15, 40, 80, 120, 200] {
        image(&node.path("v.img"), 24 * MIB, 2 + delay);
        let new = node.digest("v");
        let mut command = node.spawn(&["revert", "v", "0"]);
        // A different moment each time, wherever it hits.
        std::thread::sleep(std::time::Duration::from_millis(delay));
        node.kill();
        command.wait().unwrap();
        node.up();
        let volume = node.volume("v");
        let now = node.digest("v");
        let kept = volume.snapshots.iter().any(|snapshot| {
            node.run(&["status"]).code == 0 && snapshot.digest.is_some_and(|digest| digest.to_string() == new)
        });
        assert!(now == new || (now == old && volume.snapshots.len() > 1), "neither old nor new");
        if now == old && !kept {
            // Its digest was not computed yet: look at what it holds.
            let last = volume.snapshots.last().unwrap().number.to_string();
            node.ok(&["revert", "v", &last]);
            assert_eq!(node.digest("v"), new);
        }
    }
}

#[test]
fn the_size_of_a_master_changes_and_its_replica_follows() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = master_and_replica(dir.path(), 4 * MIB, &["-p", "1"], &[]);
    beta.wait_until("v", "the first snapshot", shows(0));
    let ran = alpha.run(&["resize", "v", "--origin", "6M"]);
    assert_eq!((ran.code, ran.out.trim()), (0, "volume v has 6.00 MiB now, 4.00 MiB before"), "{ran:?}");
    assert!(alpha.ok(&["resize", "-o6M", "v"]).contains("already"));
    alpha.ok(&["snapshot", "v"]);
    beta.wait_until("v", "the larger volume", |v| shows(1)(v) && v.size == Some(6 * MIB));
    // Nothing is beyond the new end.
    alpha.ok(&["resize", "v", "-o", "5M"]);
    let error = alpha.fails(3, &["resize", "v", "-o", "3M"]);
    assert!(error.contains("1.00 MiB of data beyond the new end") && error.contains("`--yes`"), "{error}");
    assert_eq!(alpha.volume("v").size, Some(5 * MIB));
    let ran = alpha.run(&["resize", "v", "-o", "3M", "--yes"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.err.contains("what it held before is kept as snapshot 2"), "{ran:?}");
    alpha.ok(&["snapshot", "v"]);
    beta.wait_until("v", "the smaller volume", |v| shows(3)(v) && v.size == Some(3 * MIB));
    assert_eq!(beta.digest("v"), alpha.digest("v"));
    let sizes: Vec<_> = alpha.volume("v").snapshots.iter().map(|snapshot| snapshot.size / MIB).collect();
    assert_eq!(sizes, [4, 6, 5, 3]);
    // What was cut off comes back.
    alpha.ok(&["revert", "v", "0"]);
    assert_eq!(alpha.volume("v").size, Some(4 * MIB));

    assert!(beta.fails(3, &["resize", "v", "-o", "9M"]).contains("volume v is a replica"));
    assert!(alpha.fails(3, &["resize", "v", "-s", "9M"]).contains("are for block devices"));
    for wrong in [&["resize", "v"][..], &["resize", "v", "-o", "x"], &["resize", "v", "-o", "0"]] {
        alpha.fails(2, wrong);
    }
}

#[test]
fn an_origin_is_zeroed_only_if_nobody_minds() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), "alpha");
    image(&node.path("v.img"), MIB, 1);
    write(&node.path("v.img"), 0x438, b"\x53\xef");
    let content = node.digest("v");
    let (origin, store) = (text(&node.path("v.img")), text(&node.path("v.snaps")));
    let error = node.fails(3, &["define", "volume", "v", &origin, &store, "--initialize"]);
    assert!(
        error.contains("holds an ext2, ext3 or ext4 file system") && error.contains("`--yes`"),
        "{error}"
    );
    assert!(node.status().volumes.is_empty() && !node.path("v.snaps").exists());
    assert_eq!(node.digest("v"), content);
    // Without it, the volume is what it was.
    node.ok(&["define", "volume", "v", &origin, &store]);
    node.ok(&["define", "master", "v"]);
    node.ok(&["snapshot", "v"]);
    assert!(node.fails(3, &["define", "volume", "v", &origin, &store, "-iy"]).contains("is defined already"));
    node.ok(&["forget", "volume", "v"]);
    let error = node.fails(3, &["define", "volume", "v", &origin, &store, "-iy"]);
    assert!(error.contains("1 snapshots") && error.contains("leave out `--initialize`"), "{error}");
    assert_eq!(node.digest("v"), content);

    let other = text(&node.path("other.snaps"));
    node.ok(&["define", "volume", "v", &origin, &other, "-z", "--yes"]);
    let bytes = std::fs::read(node.path("v.img")).unwrap();
    assert!(bytes.len() as u64 == MIB && bytes.iter().all(|byte| *byte == 0));
    node.ok(&["forget", "volume", "v"]);
    // What holds nothing is not asked about.
    node.ok(&["define", "volume", "v", &origin, &text(&node.path("third.snaps")), "--zero"]);
    let absent = text(&node.path("absent.img"));
    let error = node.fails(1, &["define", "volume", "w", &absent, &text(&node.path("w.snaps")), "-i"]);
    assert!(error.contains("absent.img"), "{error}");
}
