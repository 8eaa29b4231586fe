//! What is being sent ends when it may not be sent any more: at once, with the reason, and to be gone on with.

use std::{fs, path::Path};

use crate::common::{Node, image, master_and_replica, wait_for};
use zumastor::api::{HeadStatus, VolumeStatus, WorkState};
use zumastor_core::SnapshotNumber;

const MIB: u64 = 1 << 20;

/// Who begins.
#[derive(Clone, Copy)]
enum By {
    Push,
    Pull,
}

/// Two nodes in the middle of a transfer that takes long enough to be ended there.
fn sending(dir: &Path, by: By) -> (Node, Node) {
    let (alpha, beta) = master_and_replica(dir, 8 * MIB, &["--ratelimit", "1M"], &[]);
    match by {
        By::Push => alpha.ok(&["replicate", "v", "beta"]),
        By::Pull => beta.ok(&["replicate", "v", "alpha"]),
    };
    beta.wait_until("v", "some of it", |v| {
        v.source.as_ref().unwrap().work.progress.is_some_and(|progress| progress.data >= MIB)
    });
    (alpha, beta)
}

fn held(node: &Node) -> Vec<String> {
    let volume = node.volume("v");
    volume.snapshots[0].holds.iter().map(|hold| hold.name.clone()).collect()
}

/// The replica has only a part, and says why.
#[track_caller]
fn ended(beta: &Node, why: &str) {
    let work = |volume: &VolumeStatus| volume.source.as_ref().unwrap().work.clone();
    let status =
        beta.wait_until("v", "an end", |volume| work(volume).error.is_some() || !volume.snapshots.is_empty());
    assert!(status.snapshots.is_empty(), "all of it was sent");
    let error = work(&status).error.unwrap().text;
    assert!(error.contains(why), "{error}");
}

/// The rest comes when it may, and only the rest.
#[track_caller]
fn goes_on(alpha: &Node, beta: &Node) {
    wait_for("the rest", || (beta.run(&["replicate", "v", "alpha", "--wait"]).code == 0).then_some(()));
    let status = beta.volume("v");
    assert_eq!(status.head, Some(HeadStatus::Snapshot(SnapshotNumber(0))));
    assert_eq!(beta.digest("v"), alpha.digest("v"));
    let summary = status.history.iter().find_map(|record| record.summary).unwrap();
    assert!(summary.resumed > 0 && summary.data < 8 * MIB, "{summary:?}");
}

/// The sender has it in its history that the transfer came to nothing, and why.
#[track_caller]
fn told(alpha: &Node, why: &str) {
    let status = alpha.volume("v");
    assert!(status.targets.iter().all(|target| target.work.progress.is_none()), "{status:?}");
    let record = &status.history[0];
    assert_eq!((record.peer.as_str(), record.summary), ("beta", None), "{record:?}");
    assert!(record.error.as_ref().is_some_and(|error| error.contains(why)), "{record:?}");
}

/// The sender knows how far it is, whoever began.
#[test]
fn what_is_pulled_is_seen_where_it_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = sending(dir.path(), By::Pull);
    let status = alpha.wait_until("v", "a half", |v| {
        v.targets[0].work.progress.is_some_and(|progress| progress.done >= 4 * MIB)
    });
    let work = &status.targets[0].work;
    let progress = work.progress.unwrap();
    assert_eq!((work.state, progress.number), (WorkState::Transferring, Some(SnapshotNumber(0))));
    assert_eq!((progress.total, progress.done), (8 * MIB, progress.data));
    assert!(work.rate > 0 && progress.wire > 0 && progress.data < 8 * MIB, "{work:?}");
    let said = alpha.ok(&["status", "v"]);
    assert!(said.contains("nothing in common yet, snapshot 0 is on its way"), "{said}");
    assert!(said.contains("transferring snapshot 0: ") && said.contains("asked for by beta"), "{said}");
    assert!(status.history.is_empty());

    beta.wait_until("v", "all of it", |v| !v.history.is_empty());
    let status = alpha.wait_until("v", "to hear of it", |v| !v.history.is_empty());
    assert_eq!(status.targets[0].lag.common, Some(SnapshotNumber(0)));
    let work = &status.targets[0].work;
    assert_eq!((work.state, work.progress), (WorkState::Idle, None));
    let (ours, theirs) = (status.history[0].summary.unwrap(), beta.volume("v").history[0].summary.unwrap());
    assert_eq!((ours.number, ours.base, ours.snapshots), (theirs.number, theirs.base, theirs.snapshots));
    assert_eq!((ours.data, ours.received, status.history.len()), (theirs.data, true, 1));
    assert!(ours.wire >= ours.data && ours.millis > 0, "{ours:?}");
    let told = alpha.ok(&["history", "v"]);
    assert!(told.contains("  to beta: snapshot 0 replicated in full: 8.00 MiB of data, "), "{told}");
}

#[test]
fn a_pull_that_breaks_is_told_where_it_was_sent() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = sending(dir.path(), By::Pull);
    beta.ok(&["stop", "source", "v"]);
    alpha.wait_until("v", "the end", |v| !v.history.is_empty());
    told(&alpha, "snapshot 0 was being fetched by beta: ");
    beta.ok(&["start", "source", "v"]);
    beta.ok(&["replicate", "v", "alpha", "--wait"]);
    assert_eq!(beta.digest("v"), alpha.digest("v"));
    let status = alpha.wait_until("v", "to hear of it", |v| v.history[0].summary.is_some());
    assert_eq!(status.history.len(), 2, "{:?}", status.history);
}

#[test]
fn snapshots_that_are_pulled_one_after_the_other_are_one_transfer() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = master_and_replica(dir.path(), MIB, &["--all"], &[]);
    for number in 1..4 {
        image(&alpha.path("v.img"), MIB, 100 + number);
        alpha.ok(&["snapshot", "v"]);
    }
    beta.ok(&["replicate", "v", "alpha", "--wait"]);
    let history = alpha.volume("v").history;
    let summary = history[0].summary.unwrap();
    assert_eq!((summary.number, summary.base), (Some(SnapshotNumber(3)), None));
    assert_eq!((summary.snapshots, summary.data, history.len()), (4, 4 * MIB, 1));
}

const FORGOTTEN: &str = "alpha does not send volume v to you";

#[test]
fn stopping_a_target_ends_what_is_sent_there() {
    let dir = tempfile::tempdir().unwrap();
    for by in [By::Push, By::Pull] {
        let dir = tempfile::tempdir_in(dir.path()).unwrap();
        let (alpha, beta) = sending(dir.path(), by);
        alpha.ok(&["stop", "target", "v", "beta"]);
        // Nobody deletes what will be gone on with.
        assert_eq!(held(&alpha), ["transfer"]);
        ended(&beta, "sending volume v to beta is stopped: `zumastor start target v beta` first");
        told(&alpha, "sending volume v to beta is stopped");
        alpha.ok(&["start", "target", "v", "beta"]);
        goes_on(&alpha, &beta);
    }
}

#[test]
fn stopping_a_volume_ends_what_is_sent_of_it() {
    let dir = tempfile::tempdir().unwrap();
    for by in [By::Push, By::Pull] {
        let dir = tempfile::tempdir_in(dir.path()).unwrap();
        let (alpha, beta) = sending(dir.path(), by);
        alpha.ok(&["stop", "volume", "v"]);
        ended(&beta, "volume v is stopped: `zumastor start volume v` first");
        told(&alpha, "volume v is stopped");
        alpha.ok(&["start", "volume", "v"]);
        goes_on(&alpha, &beta);
    }
}

#[test]
fn forgetting_a_target_ends_what_is_sent_there() {
    let dir = tempfile::tempdir().unwrap();
    for by in [By::Push, By::Pull] {
        let dir = tempfile::tempdir_in(dir.path()).unwrap();
        let (alpha, beta) = sending(dir.path(), by);
        alpha.ok(&["forget", "target", "v", "beta"]);
        assert!(held(&alpha).is_empty());
        ended(&beta, FORGOTTEN);
        told(&alpha, "volume v is not sent to beta any more");
        alpha.ok(&["define", "target", "v", "beta"]);
        goes_on(&alpha, &beta);
    }
}

#[test]
fn what_is_sent_to_nobody_any_more_can_be_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = sending(dir.path(), By::Pull);
    assert!(alpha.fails(3, &["delete", "v", "0"]).contains("replication with beta"), "it is being sent");
    alpha.ok(&["forget", "target", "v", "beta"]);
    alpha.ok(&["delete", "v", "0"]);
    ended(&beta, FORGOTTEN);
    // The next that is sent has nothing to do with what was begun.
    alpha.ok(&["snapshot", "v"]);
    alpha.ok(&["define", "target", "v", "beta"]);
    wait_for("it", || (beta.run(&["replicate", "v", "alpha", "--wait"]).code == 0).then_some(()));
    assert_eq!(beta.volume("v").head, Some(HeadStatus::Snapshot(SnapshotNumber(1))));
    assert_eq!(beta.digest("v"), alpha.digest("v"));
}

#[test]
fn forgetting_a_volume_ends_what_is_sent_of_it() {
    let dir = tempfile::tempdir().unwrap();
    for by in [By::Push, By::Pull] {
        let dir = tempfile::tempdir_in(dir.path()).unwrap();
        let (alpha, beta) = sending(dir.path(), by);
        alpha.ok(&["forget", "volume", "v"]);
        ended(&beta, FORGOTTEN);
        alpha.define("v");
        alpha.ok(&["define", "master", "v"]);
        assert!(held(&alpha).is_empty());
        alpha.ok(&["define", "target", "v", "beta"]);
        goes_on(&alpha, &beta);
    }
}

#[test]
fn destroying_a_volume_that_was_being_sent() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = sending(dir.path(), By::Push);
    assert!(alpha.fails(3, &["destroy", "v", "--yes"]).contains("0 by beta (transfer)"), "it is being sent");
    alpha.ok(&["forget", "target", "v", "beta"]);
    alpha.ok(&["destroy", "v", "--yes"]);
    assert!(!alpha.path("v.snaps").exists());
    ended(&beta, FORGOTTEN);
}

#[test]
fn reading_files_again_that_say_less_ends_what_they_do_not_say() {
    let dir = tempfile::tempdir().unwrap();
    for by in [By::Push, By::Pull] {
        let dir = tempfile::tempdir_in(dir.path()).unwrap();
        let (alpha, beta) = sending(dir.path(), by);
        let file = alpha.path("etc/volumes/v.toml");
        let before = fs::read_to_string(&file).unwrap();
        let (without, _) = before.split_once("[target.beta]").unwrap();
        fs::write(&file, without).unwrap();
        alpha.ok(&["reload"]);
        assert!(held(&alpha).is_empty());
        ended(&beta, FORGOTTEN);
        fs::write(&file, before).unwrap();
        alpha.ok(&["reload"]);
        goes_on(&alpha, &beta);
    }
    // The whole file.
    let (alpha, beta) = sending(dir.path(), By::Pull);
    let file = alpha.path("etc/volumes/v.toml");
    let before = fs::read_to_string(&file).unwrap();
    fs::remove_file(&file).unwrap();
    alpha.ok(&["reload"]);
    ended(&beta, FORGOTTEN);
    fs::write(&file, before).unwrap();
    alpha.ok(&["reload"]);
    goes_on(&alpha, &beta);
}

#[test]
fn defining_a_target_otherwise_ends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = sending(dir.path(), By::Pull);
    alpha.ok(&["define", "target", "v", "beta", "--uncompressed"]);
    let status = beta.wait_until("v", "an end", |v| !v.history.is_empty());
    assert!(status.history[0].summary.is_some(), "{:?}", status.history);
    assert_eq!(beta.digest("v"), alpha.digest("v"));
}
