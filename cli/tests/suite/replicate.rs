//! `replicate` of one snapshot, later, and to targets that are not to have every snapshot.

use crate::common::{image, master_and_replica, wait_for, write};
use zumastor::api::{HeadStatus, VolumeStatus};
use zumastor_core::SnapshotNumber;

const MIB: u64 = 1 << 20;

fn shows(number: u64) -> impl Fn(&VolumeStatus) -> bool {
    move |volume| volume.head == Some(HeadStatus::Snapshot(SnapshotNumber(number)))
}

fn numbers(volume: &VolumeStatus) -> Vec<u64> {
    volume.snapshots.iter().map(|snapshot| snapshot.number.0).collect()
}

#[test]
fn one_snapshot_by_its_number_unless_a_more_recent_one_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = master_and_replica(dir.path(), MIB, &[], &[]);
    let old = alpha.digest("v");
    for number in 1..5 {
        write(&alpha.path("v.img"), number * 5000, b"new");
        alpha.ok(&["snapshot", "v"]);
    }
    // From the side that sends.
    let out = alpha.ok(&["replicate", "v", "beta", "--snapnum", "0", "--wait"]);
    assert!(out.starts_with("snapshot 0 replicated in full"), "{out}");
    assert_eq!(beta.digest("v"), old);
    // From the side that receives.
    let out = beta.ok(&["replicate", "v", "alpha", "-s2", "-w"]);
    assert!(out.starts_with("snapshot 2 replicated from snapshot 0"), "{out}");
    for node in [(&alpha, "beta"), (&beta, "alpha")] {
        let out = node.0.ok(&["replicate", "v", node.1, "-s", "1", "-w"]);
        assert_eq!(
            out.trim(),
            "snapshot 2, which is more recent than snapshot 1, is at beta already: nothing was sent"
        );
        let out = node.0.ok(&["replicate", "v", node.1, "-s", "2"]);
        assert_eq!(out.trim(), "snapshot 2 is at beta already");
    }
    let error = alpha.fails(1, &["replicate", "v", "beta", "-s", "77"]);
    assert!(
        error.contains("volume v has no snapshot 77") && error.contains("`zumastor status v`"),
        "{error}"
    );
    let error = beta.fails(1, &["replicate", "v", "alpha", "-s", "77", "--wait"]);
    assert!(error.contains("has no snapshot 77"), "{error}");
    alpha.fails(2, &["replicate", "v", "beta", "-s", "L0"]);
    alpha.fails(2, &["replicate", "v", "beta", "-s", "x"]);
    // Without a number, the newest.
    alpha.ok(&["replicate", "v", "beta", "--wait"]);
    assert_eq!(numbers(&beta.volume("v")), [0, 2, 4]);
    assert_eq!(beta.digest("v"), alpha.digest("v"));
}

#[test]
fn a_delay_is_waited_for_by_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let (mut alpha, beta) = master_and_replica(dir.path(), MIB, &[], &[]);
    let out = alpha.ok(&["replicate", "v", "beta", "--delay", "3600"]);
    assert!(out.contains("volume v will be sent to beta, beginning in 3600 s"), "{out}");
    let asked = alpha.volume("v").targets[0].work.asked.unwrap();
    assert_eq!(asked.snapshot, None);
    let told = alpha.ok(&["status", "v"]);
    assert!(told.contains("asked for: the newest snapshot, begins in 5"), "{told}");
    assert!(beta.volume("v").snapshots.is_empty());
    let error = alpha.fails(2, &["replicate", "v", "beta", "--delay", &u64::MAX.to_string()]);
    assert!(error.contains("give a shorter delay"), "{error}");
    // Neither another definition nor a crash loses it.
    alpha.ok(&["define", "target", "v", "beta", "--ratelimit", "300M"]);
    for crash in [false, true] {
        if crash {
            alpha.kill();
            alpha.up();
        }
        let told = alpha.ok(&["status", "v"]);
        assert!(told.contains("asked for: the newest snapshot, begins in 5"), "{told}");
    }
    // Another wish is not kept waiting, and one that nobody follows any more is kept.
    let mut waiting = beta.spawn(&["replicate", "v", "alpha", "-d", "2", "-s", "0", "--wait"]);
    wait_for("the wish", || beta.volume("v").source.unwrap().work.asked);
    waiting.kill().unwrap();
    waiting.wait().unwrap();
    let told = beta.ok(&["status", "v"]);
    assert!(told.contains("asked for: snapshot 0, begins in "), "{told}");
    beta.wait_until("v", "the snapshot", shows(0));
    assert_eq!(beta.volume("v").source.unwrap().work.asked, None);
    assert!(alpha.volume("v").targets[0].work.asked.is_some());
    assert!(alpha.ok(&["replicate", "v", "beta", "-d0", "-w"]).contains("snapshot 0 was there already"));
}

#[test]
fn a_target_gets_what_is_selected_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = master_and_replica(dir.path(), MIB, &[], &["-p", "1"]);
    beta.wait_until("v", "the snapshot", shows(0));
    let target = |rotations: &[&str]| {
        let ran = alpha.run(&[&["define", "target", "v", "beta", "--rotations"], rotations].concat());
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.err
    };
    let notes = target(&["daily,frequent", "-p", "600", "-u"]);
    assert!(notes.contains("volume v has no rotation daily, frequent"), "{notes}");
    write(&alpha.path("v.img"), 0, b"one");
    alpha.ok(&["snapshot", "v"]);
    // Manual snapshots are not selected, so it is not behind, whoever asks.
    assert_eq!(alpha.volume("v").targets[0].lag.behind, 0);
    let out = beta.ok(&["replicate", "v", "alpha", "--wait"]);
    assert!(out.contains("snapshot 0 was there already"), "{out}");
    let error = beta.fails(1, &["replicate", "v", "alpha", "-s", "1", "--wait"]);
    assert!(error.contains("does not send it to this node"), "{error}");
    // Who has the say at the upstream may send it all the same.
    alpha.ok(&["replicate", "v", "beta", "-s", "1", "--wait"]);
    assert_eq!(beta.digest("v"), alpha.digest("v"));
    alpha.ok(&["snapshot", "v"]);
    let notes = target(&["manual"]);
    assert!(notes.contains("no longer so: --period 600, --uncompressed"), "{notes}");
    assert!(!notes.contains("no rotation"), "{notes}");
    alpha.ok(&["replicate", "v", "beta", "--wait"]);
    assert_eq!(numbers(&beta.volume("v")), [0, 1, 2]);
    let config = std::fs::read_to_string(alpha.path("etc/volumes/v.toml")).unwrap();
    assert!(config.contains(r#"rotations = ["manual"]"#), "{config}");
    alpha.fails(2, &["define", "target", "v", "beta", "--rotations", "no/name"]);
    alpha.fails(2, &["define", "target", "v", "beta", "--rotations", ""]);
}

#[test]
fn every_snapshot_in_order_where_that_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, mut beta) = master_and_replica(dir.path(), MIB, &["--all", "-p", "1"], &[]);
    beta.wait_until("v", "the first snapshot", shows(0));
    beta.down();
    for number in 1..6 {
        image(&alpha.path("v.img"), MIB, 100 + number);
        alpha.ok(&["snapshot", "v"]);
    }
    beta.up();
    beta.wait_until("v", "the newest snapshot", shows(5));
    assert_eq!(numbers(&beta.volume("v")), [0, 1, 2, 3, 4, 5]);
    let (theirs, ours) = (alpha.volume("v"), beta.volume("v"));
    for (a, b) in theirs.snapshots.iter().zip(&ours.snapshots) {
        assert!(a.digest.is_some() && (a.digest, a.guid) == (b.digest, b.guid));
    }
    assert_eq!(beta.digest("v"), alpha.digest("v"));
    let history = &ours.history[0].summary.unwrap();
    assert_eq!((history.number, history.base), (Some(SnapshotNumber(5)), Some(SnapshotNumber(0))));
    assert_eq!((history.snapshots, history.data), (5, 5 * MIB));
}
