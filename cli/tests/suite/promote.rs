//! Another node becomes the master, the one before stops, and comes back as a replica. Nothing is lost on the way.

use crate::common::{Node, master_and_replica, write};
use zumastor::api::{Direction, HeadStatus, Health, Role, VolumeStatus};
use zumastor_core::SnapshotNumber;

const MIB: u64 = 1 << 20;

fn shows(number: u64) -> impl Fn(&VolumeStatus) -> bool {
    move |volume| volume.head == Some(HeadStatus::Snapshot(SnapshotNumber(number)))
}

fn numbers(node: &Node) -> Vec<String> {
    node.volume("v").snapshots.iter().map(|snapshot| snapshot.number.to_string()).collect()
}

/// The snapshot that came last, upon which it was built, and how much came.
fn received(node: &Node) -> (u64, Option<u64>, u64) {
    let volume = node.volume("v");
    let transfers = volume.history.iter().filter(|transfer| transfer.direction == Direction::Received);
    let last = transfers.filter_map(|transfer| transfer.summary).next().unwrap();
    (last.number.unwrap().0, last.base.map(|base| base.0), last.data)
}

fn digest(node: &Node, number: SnapshotNumber) -> String {
    let volume = node.wait_until("v", "the digest", |v| {
        v.snapshots.iter().any(|s| s.number == number && s.digest.is_some())
    });
    let found = volume.snapshots.into_iter().find(|s| s.number == number);
    found.unwrap().digest.unwrap().to_string()
}

#[test]
fn the_whole_circle() {
    let dir = tempfile::tempdir().unwrap();
    let (mut alpha, beta) = master_and_replica(dir.path(), 8 * MIB, &["-p", "1"], &[]);
    beta.wait_until("v", "the first snapshot", shows(0));
    write(&alpha.path("v.img"), MIB, b"the last that beta gets");
    alpha.ok(&["snapshot", "v"]);
    beta.wait_until("v", "the second snapshot", shows(1));
    alpha.ok(&["hold", "v", "1", "mine"]);

    // Alpha is away, beta goes on; so does alpha, which does not know.
    alpha.down();
    let ran = beta.run(&["promote", "v"]);
    assert_eq!((ran.code, ran.out.trim()), (0, "this node is the master of volume v"), "{ran:?}");
    assert!(ran.err.contains("`zumastor define target v alpha`"), "{ran:?}");
    assert!(beta.ok(&["promote", "v"]).contains("already"));
    assert_eq!(beta.volume("v").role, Role::Master);
    write(&beta.path("v.img"), 2 * MIB, b"written on beta");
    beta.ok(&["snapshot", "v"]);
    beta.ok(&["snapshot", "v"]);
    assert_eq!(numbers(&beta), ["0", "1", "2", "3"]);

    // With the network between them down, alpha is still a master.
    let out = alpha.root.join("etc/volumes/v.toml");
    let config = std::fs::read_to_string(&out).unwrap();
    std::fs::write(&out, config.replace("period = 1\n", "")).unwrap();
    alpha.up();
    write(&alpha.path("v.img"), 3 * MIB, b"written on alpha");
    assert!(alpha.ok(&["snapshot", "v"]).starts_with("2  "));
    alpha.ok(&["hold", "v", "2", "precious"]);
    let second = digest(&alpha, SnapshotNumber(2));
    write(&alpha.path("v.img"), 4 * MIB, b"in no snapshot of alpha");
    let lost = alpha.digest("v");

    // It is told to stop, by whichever speaks first.
    let error = alpha.fails(3, &["replicate", "v", "beta", "--wait"]);
    assert!(error.contains("has another master since 20") && error.contains("says beta"), "{error}");
    let volume = alpha.volume("v");
    assert_eq!((volume.health, volume.superseded.unwrap().by.as_str()), (Health::Stopped, "beta"));
    assert!(alpha.ok(&["status"]).contains("`zumastor define source v beta` makes it a replica"));
    for refused in [&["snapshot", "v"][..], &["revert", "v", "0"], &["resize", "v", "-o", "9M"]] {
        assert!(alpha.fails(3, refused).contains("has another master"), "{refused:?}");
    }
    assert_eq!(alpha.digest("v"), lost, "nothing is touched until a person says so");

    // Alpha becomes a replica, and gets only what differs.
    beta.ok(&["define", "target", "v", "alpha"]);
    let error = alpha.fails(3, &["define", "source", "v", "beta"]);
    assert!(error.contains("is the master of volume v") && error.contains("`--yes`"), "{error}");
    let ran = alpha.run(&["define", "source", "v", "beta", "-y"]);
    assert!(ran.code == 0 && ran.err.contains("what it held is kept as snapshot L0"), "{ran:?}");
    assert!(ran.err.contains("it is sent to beta no more"), "{ran:?}");
    alpha.ok(&["replicate", "v", "beta", "--wait"]);
    assert_eq!(received(&alpha), (3, Some(1), 4096));
    assert_eq!(alpha.digest("v"), beta.digest("v"));
    assert_eq!(alpha.volume("v").health, Health::Ok);
    assert_eq!(numbers(&alpha), ["0", "1", "3", "L0", "L1"]);
    assert_eq!(digest(&alpha, SnapshotNumber::local(1)), second);
    let volume = alpha.volume("v");
    let held: Vec<_> = volume.snapshots[4].holds.iter().map(|hold| hold.name.as_str()).collect();
    assert_eq!(held, ["precious", "set-aside"]);

    // And back again: alpha is promoted, beta hears of it from alpha this time.
    alpha.ok(&["promote", "v"]);
    alpha.ok(&["define", "target", "v", "beta"]);
    let error = alpha.fails(3, &["replicate", "v", "beta", "--wait"]);
    assert!(error.contains("beta was the master of volume v until now"), "{error}");
    assert!(beta.ok(&["status"]).contains("has another master since"));
    write(&alpha.path("v.img"), 5 * MIB, b"alpha again");
    assert!(alpha.ok(&["snapshot", "v"]).starts_with("4  "));
    beta.ok(&["define", "source", "v", "alpha", "--yes"]);
    alpha.ok(&["replicate", "v", "beta", "--wait"]);
    assert_eq!(received(&beta), (4, Some(3), 4096));
    assert_eq!(alpha.digest("v"), beta.digest("v"));
    assert_eq!(numbers(&beta), ["0", "1", "2", "3", "4"]);

    // What alpha wrote in between is all there.
    for (number, content) in [("L0", &lost), ("L1", &second)] {
        alpha.ok(&["revert", "v", number]);
        assert_eq!(alpha.digest("v"), *content);
    }
}

#[test]
fn a_master_that_was_made_by_forgetting_the_source_is_not_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let (mut alpha, beta) = master_and_replica(dir.path(), MIB, &[], &[]);
    let epoch = |node: &Node| {
        let file = std::fs::read_to_string(node.path("etc/volumes/v.toml")).unwrap();
        let line = file.lines().find_map(|line| line.strip_prefix("epoch = ").map(str::to_owned));
        line.map_or(0, |epoch| epoch.parse::<u64>().unwrap())
    };
    // The master that is defined again on what is its own is the same.
    alpha.ok(&["forget", "volume", "v"]);
    alpha.define("v");
    alpha.ok(&["define", "master", "v"]);
    assert_eq!(epoch(&alpha), 0);
    alpha.ok(&["define", "target", "v", "beta"]);
    alpha.ok(&["replicate", "v", "beta", "--wait"]);

    // Alpha is away; beta is made the master, not by `promote`.
    assert_eq!(alpha.down(), 0);
    beta.ok(&["forget", "source", "v"]);
    let ran = beta.run(&["define", "master", "v"]);
    assert!(ran.code == 0 && ran.err.contains("in place of whoever mastered it"), "{ran:?}");
    assert!(epoch(&beta) > 0);
    write(&beta.path("v.img"), 5, b"beta's");
    assert!(beta.ok(&["snapshot", "v"]).starts_with("1  "));

    // Alpha comes back and goes on with a snapshot of the same number. It hears of beta, and stops.
    alpha.up();
    write(&alpha.path("v.img"), 9, b"alpha's");
    let lost = alpha.digest("v");
    assert!(alpha.ok(&["snapshot", "v"]).starts_with("1  "));
    let error = alpha.fails(3, &["replicate", "v", "beta", "--wait"]);
    assert!(error.contains("beta was the master") || error.contains("says beta"), "{error}");
    assert_eq!(alpha.volume("v").health, Health::Stopped);
    assert!(alpha.fails(3, &["snapshot", "v"]).contains("has another master"));
    // And the way back, as after `promote`.
    alpha.ok(&["define", "source", "v", "beta", "--yes"]);
    beta.ok(&["define", "target", "v", "alpha"]);
    beta.ok(&["replicate", "v", "alpha", "--wait"]);
    assert_eq!(alpha.digest("v"), beta.digest("v"));
    assert_eq!(received(&alpha), (1, Some(0), 4096));
    assert_eq!(numbers(&alpha), ["0", "1", "L0"]);
    assert_eq!(digest(&alpha, SnapshotNumber::local(0)), lost);

    // Also when the volume itself was forgotten in between.
    alpha.ok(&["forget", "volume", "v"]);
    alpha.define("v");
    alpha.ok(&["define", "master", "v"]);
    assert!(epoch(&alpha) > epoch(&beta));
}

#[test]
fn what_cannot_be_promoted_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = master_and_replica(dir.path(), MIB, &[], &[]);
    assert!(alpha.ok(&["promote", "v"]).contains("already"));
    let error = beta.fails(1, &["promote", "v"]);
    assert!(error.contains("nothing has been received yet"), "{error}");
    assert_eq!(beta.volume("v").role, Role::Replica);
    alpha.ok(&["replicate", "v", "beta", "--wait"]);
    alpha.define("w");
    assert!(alpha.fails(3, &["promote", "w"]).contains("`zumastor define master w`"));
    // `define master` on a replica is the same.
    beta.ok(&["define", "master", "v"]);
    assert_eq!(beta.volume("v").role, Role::Master);
    let error = alpha.fails(3, &["replicate", "v", "beta", "--wait"]);
    assert!(error.contains("says beta"), "{error}");
    // Alpha insists.
    alpha.ok(&["promote", "v"]);
    alpha.ok(&["snapshot", "v"]);
    let error = alpha.fails(3, &["replicate", "v", "beta", "--wait"]);
    assert!(error.contains("beta was the master"), "{error}");
    assert!(beta.fails(3, &["snapshot", "v"]).contains("has another master"));
}

#[test]
fn a_node_killed_while_its_role_changes_has_the_old_one_or_the_new() {
    let dir = tempfile::tempdir().unwrap();
    let (mut alpha, mut beta) = master_and_replica(dir.path(), 8 * MIB, &[], &[]);
    alpha.ok(&["replicate", "v", "beta", "--wait"]);
    alpha.ok(&["define", "target", "v", "beta", "-p", "3600"]);
    for delay in [0, 4, 8, 16, 32] {
        write(&beta.path("v.img"), delay, b"on beta");
        let content = beta.digest("v");
        let mut command = beta.spawn(&["promote", "v"]);
        // A different moment each time, wherever it hits.
        std::thread::sleep(std::time::Duration::from_millis(delay));
        beta.kill();
        command.wait().unwrap();
        beta.up();
        let volume = beta.volume("v");
        assert_eq!((volume.role == Role::Master), volume.source.is_none());
        assert_eq!(beta.digest("v"), content);
        beta.ok(&["promote", "v"]);
        assert!(beta.volume("v").superseded.is_none());

        let mut command = beta.spawn(&["define", "source", "v", "alpha", "--yes"]);
        std::thread::sleep(std::time::Duration::from_millis(60 + delay));
        beta.kill();
        command.wait().unwrap();
        beta.up();
        let volume = beta.volume("v");
        assert_eq!((volume.role == Role::Master), volume.source.is_none());
        beta.ok(&["define", "source", "v", "alpha", "--yes"]);
        // What was written is in the head, or in a snapshot of its own.
        let kept = beta.volume("v").snapshots.into_iter().filter(|s| s.number.is_local());
        let kept: Vec<_> = kept.map(|snapshot| snapshot.number).collect();
        assert!(beta.digest("v") == content || kept.iter().any(|n| digest_of_local(&beta, *n) == content));
    }
    alpha.kill();
    alpha.up();
}

/// The digest of a snapshot that nobody has computed yet.
fn digest_of_local(node: &Node, number: SnapshotNumber) -> String {
    node.ok(&["promote", "v"]);
    node.ok(&["revert", "v", &number.to_string()]);
    let digest = node.digest("v");
    node.ok(&["define", "source", "v", "alpha", "--yes"]);
    digest
}
