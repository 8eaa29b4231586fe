//! Two nodes replicate a volume: by command, by period, and through a kill.

mod common;

use common::{Node, image, introduce, master_and_replica, ran, wait_for, write};
use zumastor::api::{HeadStatus, Health, WorkState};
use zumastor_core::SnapshotNumber;

const MIB: u64 = 1 << 20;

#[test]
fn push_and_pull_by_command() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = master_and_replica(dir.path(), 8 * MIB, &[], &[]);
    assert!(!beta.path("v.img").exists() || beta.volume("v").head == Some(HeadStatus::Empty));

    let out = alpha.ok(&["replicate", "v", "beta", "--wait"]);
    assert!(out.starts_with("snapshot 0 replicated in full: 8.00 MiB of data"), "{out}");
    assert_eq!(beta.digest("v"), alpha.digest("v"));

    write(&alpha.path("v.img"), 3 * MIB, b"something new");
    assert!(alpha.ok(&["snapshot", "v"]).starts_with("1  20"));
    assert_ne!(beta.digest("v"), alpha.digest("v"));
    let out = beta.ok(&["replicate", "v", "alpha", "-w"]);
    assert!(out.starts_with("snapshot 1 replicated from snapshot 0: 4.00 KiB of data"), "{out}");
    assert_eq!(beta.digest("v"), alpha.digest("v"));
    assert!(beta.ok(&["replicate", "v", "alpha", "-w"]).contains("was there already"));

    let (up, down) = (alpha.volume("v"), beta.volume("v"));
    assert_eq!(down.head, Some(HeadStatus::Snapshot(SnapshotNumber(1))));
    assert_eq!(up.targets[0].lag.behind, 0);
    for status in [&up, &down] {
        let held: Vec<_> = status.snapshots.iter().map(|snapshot| snapshot.holds.len()).collect();
        assert_eq!(held, [0, 1], "{status:?}");
    }
    assert_eq!(up.snapshots[1].digest, down.snapshots[1].digest);
    assert_eq!(down.snapshots[1].digest.unwrap().to_string(), beta.digest("v"));
    assert_eq!(up.history.len() + 1, down.history.len(), "the first was pushed, the second only pulled");

    // Without --wait, the command returns at once and the work goes on.
    write(&alpha.path("v.img"), 0, b"newer still");
    alpha.ok(&["snapshot", "v"]);
    assert_eq!(alpha.volume("v").targets[0].lag.behind, 1);
    assert!(alpha.ok(&["replicate", "v", "beta"]).contains("is being sent to beta"));
    beta.wait_until("v", "snapshot 2", |v| v.head == Some(HeadStatus::Snapshot(SnapshotNumber(2))));
    assert_eq!(beta.digest("v"), alpha.digest("v"));
}

#[test]
fn a_period_on_the_source_pulls() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = master_and_replica(dir.path(), MIB, &[], &["--period", "1"]);
    let shows = |number| {
        move |v: &zumastor::api::VolumeStatus| v.head == Some(HeadStatus::Snapshot(SnapshotNumber(number)))
    };
    beta.wait_until("v", "the first snapshot", shows(0));
    write(&alpha.path("v.img"), 5000, b"x");
    alpha.ok(&["snapshot", "v"]);
    beta.wait_until("v", "the second snapshot", shows(1));
    assert_eq!(beta.digest("v"), alpha.digest("v"));
}

#[test]
fn a_period_on_the_target_pushes_along_a_chain() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, mut beta) = master_and_replica(dir.path(), MIB, &["-p", "1"], &[]);
    let gamma = Node::start(dir.path(), "gamma");
    introduce(&beta, &gamma);
    image(&gamma.path("mirror.img"), MIB, 1);
    std::fs::remove_file(gamma.path("mirror.img")).unwrap();
    gamma.define("mirror");
    gamma.ok(&["define", "source", "mirror", "beta", "--name", "v"]);
    beta.ok(&["define", "target", "v", "gamma", "--period", "1", "--name", "mirror"]);
    let shows = |number| {
        move |v: &zumastor::api::VolumeStatus| v.head == Some(HeadStatus::Snapshot(SnapshotNumber(number)))
    };
    gamma.wait_until("mirror", "the first snapshot", shows(0));

    // What is missed while a node is away is made up for when it is back.
    assert_eq!(beta.down(), 0);
    for byte in [b"1", b"2", b"3"] {
        write(&alpha.path("v.img"), 77, byte);
        alpha.ok(&["snapshot", "v"]);
    }
    let lagging = alpha.wait_until("v", "an error about beta", |v| v.targets[0].work.error.is_some());
    assert_eq!(lagging.targets[0].lag.behind, 3);
    assert_eq!(lagging.targets[0].work.state, WorkState::Waiting);
    beta.up();
    gamma.wait_until("mirror", "the fourth snapshot", shows(3));
    assert_eq!(gamma.digest("mirror"), alpha.digest("v"));
    let healthy = alpha.wait_until("v", "recovery", |v| v.targets[0].work.error.is_none());
    assert_eq!(healthy.targets[0].lag.behind, 0);
    // One transfer made up for three snapshots.
    let numbers: Vec<_> = beta.volume("v").snapshots.iter().map(|snapshot| snapshot.number.0).collect();
    assert_eq!(numbers, [0, 3]);
}

#[test]
fn a_killed_downstream_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    // Three segments come in side by side; the last is half as long, so it is here, and durable, well before the others.
    let (alpha, mut beta) = master_and_replica(dir.path(), 160 * MIB, &["--ratelimit", "40M"], &[]);
    let mut waiting = beta.spawn(&["replicate", "v", "alpha", "--wait"]);
    beta.wait_until("v", "a finished segment", |v| {
        v.source.as_ref().unwrap().work.progress.is_some_and(|progress| progress.done >= 120 * MIB)
    });
    beta.kill();
    let status = wait_for("the command to notice", || waiting.try_wait().unwrap());
    assert_eq!(status.code(), Some(1));

    alpha.ok(&["define", "target", "v", "beta"]);
    // No command: what was begun goes on by itself.
    beta.up();
    let done =
        beta.wait_until("v", "the snapshot", |v| v.history.first().is_some_and(|t| t.summary.is_some()));
    let summary = done.history[0].summary.unwrap();
    assert!(summary.resumed >= 32 * MIB, "{summary:?}");
    assert_eq!(summary.resumed + summary.data, 160 * MIB, "{summary:?}");
    assert_eq!(beta.digest("v"), alpha.digest("v"));
    assert_eq!(done.staged, None);
}

#[test]
fn a_killed_upstream_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let (mut alpha, beta) = master_and_replica(dir.path(), 24 * MIB, &["--ratelimit", "8M"], &[]);
    let waiting = alpha.spawn(&["replicate", "v", "beta", "--wait"]);
    beta.wait_until("v", "some data", |v| {
        v.source.as_ref().unwrap().work.progress.is_some_and(|progress| progress.data > MIB)
    });
    alpha.kill();
    assert_eq!(ran(&waiting.wait_with_output().unwrap()).code, 1);
    alpha.up();
    alpha.ok(&["define", "target", "v", "beta"]);
    // Even if the downstream has not noticed yet that the old connection is dead.
    alpha.ok(&["replicate", "v", "beta", "--wait"]);
    assert_eq!(beta.digest("v"), alpha.digest("v"));
    assert_eq!(beta.volume("v").head, Some(HeadStatus::Snapshot(SnapshotNumber(0))));
}

#[test]
fn a_replica_that_was_written_to_stops_until_a_person_decides() {
    let dir = tempfile::tempdir().unwrap();
    let (mut alpha, mut beta) = master_and_replica(dir.path(), MIB, &[], &["--period", "1"]);
    let shows = |number| {
        move |v: &zumastor::api::VolumeStatus| v.head == Some(HeadStatus::Snapshot(SnapshotNumber(number)))
    };
    beta.wait_until("v", "the first snapshot", shows(0));
    write(&beta.path("v.img"), 100, b"mine");
    let stopped = beta.wait_until("v", "the stop", |v| v.health == Health::Stopped);
    assert_eq!(stopped.source.unwrap().work.next, None);
    let error = beta.fails(3, &["replicate", "v", "alpha", "--wait"]);
    assert!(error.contains("was written to since it showed"), "{error}");
    // The upstream, if it asks, is told the same.
    alpha.ok(&["snapshot", "v"]);
    let error = alpha.fails(3, &["replicate", "v", "beta", "--wait"]);
    assert!(error.contains("was written to"), "{error}");

    // Moved away, and shown again, although the upstream is not there.
    assert_eq!((alpha.down(), beta.down()), (0, 0));
    std::fs::rename(beta.path("v.img"), beta.path("mine.img")).unwrap();
    beta.up();
    beta.wait_until("v", "the old snapshot", shows(0));
    alpha.up();
    beta.wait_until("v", "the new snapshot", shows(1));
    assert_eq!(beta.volume("v").health, Health::Ok);
}
