//! Groups of volumes: snapshots at one moment, all or none.

use std::{fs, path::Path};

use crate::common::{Node, image, introduce, wait_for};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use zumastor::api::VolumeStatus;

const MIB: u64 = 1 << 20;

/// A node with the volumes `a` and `b`, which are group `db`, and `c`, which is not.
fn grouped(dir: &Path) -> Node {
    let node = Node::start(dir, "alpha");
    for (seed, name) in [(1, "a"), (2, "b"), (3, "c")] {
        image(&node.path(&format!("{name}.img")), MIB, seed);
        node.define(name);
        let group: &[&str] = if name == "c" { &[] } else { &["--group", "db"] };
        node.ok(&[&["define", "master", name], group].concat());
    }
    node
}

fn numbers(volume: &VolumeStatus) -> Vec<u64> {
    volume.snapshots.iter().map(|snapshot| snapshot.number.0).collect()
}

#[test]
fn a_group_has_one_identity_that_replicas_have_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let alpha = grouped(dir.path());
    let beta = Node::start(dir.path(), "beta");
    introduce(&alpha, &beta);
    alpha.ok(&["snapshot", "a"]);
    let taken = alpha.ok(&["snapshot", "--group", "db"]);
    let told: Vec<_> = taken.lines().map(|line| line.rsplit_once("  ").unwrap().0).collect();
    assert_eq!(told, ["a  1", "b  0"]);
    let of = |node: &Node, name: &str| node.volume(name).snapshots.last().unwrap().group;
    let group = of(&alpha, "a").unwrap();
    assert!(of(&alpha, "b") == Some(group) && alpha.volume("a").snapshots[0].group.is_none());
    assert!(alpha.volume("c").snapshots.is_empty());
    for name in ["a", "b"] {
        beta.define(name);
        alpha.ok(&["define", "target", name, "beta"]);
        beta.ok(&["define", "source", name, "alpha"]);
        beta.ok(&["replicate", name, "alpha", "--wait"]);
        assert_eq!(of(&beta, name), Some(group));
        assert!(beta.ok(&["status", name]).contains(&format!("group {group}")));
    }
    assert_eq!(beta.digest("b"), alpha.digest("b"));
    // A rotation is one that all of them have.
    alpha.ok(&["define", "schedule", "a", "--custom", "mine,3"]);
    let error = alpha.fails(1, &["snapshot", "--group", "db", "mine"]);
    assert!(error.contains("volume b has no rotation \"mine\""), "{error}");
    alpha.ok(&["define", "master", "b", "--custom", "mine,3"]);
    alpha.ok(&["snapshot", "-g", "db", "mine"]);
    assert!(alpha.volume("b").snapshots[1].rotations == ["mine"] && of(&alpha, "b") != Some(group));
    // Out of the group again, and over a restart.
    assert!(alpha.ok(&["status"]).contains("group      db"));
    assert!(alpha.run(&["define", "master", "b", "--no-group"]).err.contains("not of group db any more"));
    assert!(alpha.ok(&["define", "master", "b", "--no-group"]).contains("already"));
    assert_eq!(alpha.ok(&["snapshot", "-g", "db"]).lines().count(), 1);
    assert!(alpha.fails(1, &["snapshot", "-g", "nobody"]).contains("there is no group nobody"));
    let error = alpha.fails(2, &["snapshot", "-g", "db", "a", "mine"]);
    assert!(error.contains("no volume is named"), "{error}");
    assert!(alpha.fails(2, &["snapshot"]).contains("VOLUME"));
}

#[test]
fn a_failure_of_one_leaves_none() {
    let dir = tempfile::tempdir().unwrap();
    let node = grouped(dir.path());
    // The second cannot be taken when the first has been.
    fs::rename(node.path("b.img"), node.path("away.img")).unwrap();
    let error = node.fails(1, &["snapshot", "--group", "db"]);
    assert!(error.contains("volume b: ") && error.contains("no snapshot of group db was taken"), "{error}");
    assert!(node.volume("a").snapshots.is_empty());
    fs::rename(node.path("away.img"), node.path("b.img")).unwrap();
    // What a store failed to take may be there after a crash, so its number is not given again.
    let taken = node.ok(&["snapshot", "--group", "db"]);
    assert!(taken.starts_with("a  0  ") && taken.contains("\nb  1  "), "{taken}");
    // A replica cannot be of one moment with a master.
    let beta = Node::start(dir.path(), "beta");
    introduce(&node, &beta);
    node.ok(&["define", "source", "b", "beta", "--yes"]);
    let error = node.fails(3, &["snapshot", "--group", "db"]);
    assert!(error.contains("volume b is a replica"), "{error}");
    assert_eq!(numbers(&node.volume("a")), [0]);
}

#[test]
fn a_crash_in_between_leaves_none_and_nobody_got_any() {
    let dir = tempfile::tempdir().unwrap();
    let mut alpha = grouped(dir.path());
    let beta = Node::start(dir.path(), "beta");
    introduce(&alpha, &beta);
    beta.define("a");
    alpha.ok(&["define", "target", "a", "beta"]);
    beta.ok(&["define", "source", "a", "alpha"]);
    alpha.ok(&["snapshot", "--group", "db"]);
    beta.ok(&["replicate", "a", "alpha", "--wait"]);
    // Whoever opens a pipe waits for somebody to write into it.
    fs::rename(alpha.path("b.img"), alpha.path("away.img")).unwrap();
    mknodat(CWD, alpha.path("b.img"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let mut asking = alpha.spawn(&["snapshot", "--group", "db"]);
    alpha.wait_until("a", "the first of the two", |a| numbers(a) == [0, 1]);
    // What may be taken back is nobody's yet.
    assert!(alpha.fails(1, &["hold", "a", "1", "mine"]).contains("no snapshot 1"));
    for _ in 0..2 {
        beta.ok(&["replicate", "a", "alpha", "--wait"]);
        assert_eq!(numbers(&beta.volume("a")), [0]);
    }
    alpha.kill();
    asking.wait().unwrap();
    fs::remove_file(alpha.path("b.img")).unwrap();
    fs::rename(alpha.path("away.img"), alpha.path("b.img")).unwrap();
    alpha.up();
    alpha.wait_until("a", "it to be taken back", |a| numbers(a) == [0]);
    assert_eq!(numbers(&alpha.volume("b")), [0]);
    let taken = alpha.ok(&["snapshot", "--group", "db"]);
    assert_eq!(taken.lines().count(), 2);
    beta.ok(&["replicate", "a", "alpha", "--wait"]);
    wait_for("both to have the same", || (beta.digest("a") == alpha.digest("a")).then_some(()));
    let same = |node: &Node, name: &str| node.volume(name).snapshots.last().unwrap().group.unwrap();
    assert!(same(&alpha, "a") == same(&alpha, "b") && same(&beta, "a") == same(&alpha, "a"));
}

#[test]
fn a_schedule_takes_a_group_together() {
    let dir = tempfile::tempdir().unwrap();
    let node = grouped(dir.path());
    for name in ["a", "b"] {
        node.ok(&["stop", "master", name]);
        node.ok(&["define", "schedule", name, "--custom", "often,50,1s"]);
    }
    node.ok(&["start", "master", "a"]);
    node.ok(&["start", "master", "b"]);
    // Those that were due before both were started were taken of one alone.
    let of_both = |volume: &VolumeStatus| volume.snapshots.iter().filter_map(|s| s.group).collect::<Vec<_>>();
    let volume = node.wait_until("b", "snapshots", |b| of_both(b).len() >= 3);
    let other = node.volume("a");
    for group in of_both(&volume) {
        assert!(other.snapshots.iter().any(|snapshot| snapshot.group == Some(group)));
    }
}
