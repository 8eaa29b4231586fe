//! Two nodes replicate a volume: by command, by period, and through a kill.

use std::fs;

use crate::common::{Node, image, introduce, master_and_replica, ran, wait_for, write};
use zumastor::api::{HeadStatus, Health, History, VolumeStatus, WorkState};
use zumastor_core::SnapshotNumber;

const MIB: u64 = 1 << 20;

#[test]
fn a_node_that_was_started_again_is_reached_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (mut alpha, mut beta) = master_and_replica(dir.path(), MIB, &[], &[]);
    alpha.ok(&["replicate", "v", "beta", "--wait"]);
    for round in 0..3 {
        // Each has a connection then to the one that was killed, and does not know it.
        alpha.kill();
        alpha.up();
        beta.ok(&["replicate", "v", "alpha", "--wait"]);
        beta.kill();
        beta.up();
        write(&alpha.path("v.img"), 0, &[round; 512]);
        alpha.ok(&["snapshot", "v"]);
        alpha.ok(&["replicate", "v", "beta", "--wait"]);
        assert_eq!(beta.digest("v"), alpha.digest("v"));
    }
}

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
    for (status, peer) in [(&up, "beta"), (&down, "alpha")] {
        let hold = &status.snapshots[1].holds[0];
        assert_eq!(hold.owner, zumastor_core::HoldOwner::Peer(peer.parse().unwrap()));
        assert_eq!((hold.name.as_str(), hold.why.as_str()), ("base", "the next transfer builds upon it"));
    }
    assert_eq!(up.snapshots[1].digest, down.snapshots[1].digest);
    assert_eq!(down.snapshots[1].digest.unwrap().to_string(), beta.digest("v"));
    // The first was pushed, the second pulled: both are in the history of both, and say the same.
    for status in [&up, &down] {
        let told: Vec<_> = status.history.iter().map(|record| record.summary.unwrap()).collect();
        let told: Vec<_> =
            told.iter().map(|of| (of.number.unwrap().0, of.base, of.snapshots, of.data)).collect();
        assert_eq!(told, [(1, Some(SnapshotNumber(0)), 1, 4096), (0, None, 1, 8 * MIB)], "{status:?}");
    }
    let told = alpha.ok(&["history", "v"]);
    assert!(told.contains("  to beta: snapshot 1 replicated from snapshot 0: 4.00 KiB of data, "), "{told}");

    // Without --wait, the command returns at once and the work goes on.
    write(&alpha.path("v.img"), 0, b"newer still");
    alpha.ok(&["snapshot", "v"]);
    assert_eq!(alpha.volume("v").targets[0].lag.behind, 1);
    assert!(alpha.ok(&["replicate", "v", "beta"]).contains("is being sent to beta"));
    beta.wait_until("v", "snapshot 2", |v| v.head == Some(HeadStatus::Snapshot(SnapshotNumber(2))));
    assert_eq!(beta.digest("v"), alpha.digest("v"));
}

#[test]
fn a_whole_volume_each_time_where_a_test_wants_it() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = master_and_replica(dir.path(), 8 * MIB, &["--test", "fullvolume"], &[]);
    alpha.ok(&["replicate", "v", "beta", "--wait"]);

    // What became zero is sent as such: what the replica had there must not stay.
    write(&alpha.path("v.img"), 2 * MIB, &vec![0; MIB as usize]);
    write(&alpha.path("v.img"), 0, b"something new");
    alpha.ok(&["snapshot", "v"]);
    let out = alpha.ok(&["replicate", "v", "beta", "--wait"]);
    assert!(out.starts_with("snapshot 1 replicated from snapshot 0: 7.00 MiB of data"), "{out}");
    assert_eq!(beta.digest("v"), alpha.digest("v"));

    // And only what changed when the test is over.
    alpha.ok(&["define", "target", "v", "beta"]);
    write(&alpha.path("v.img"), 0, b"something newer");
    alpha.ok(&["snapshot", "v"]);
    let out = alpha.ok(&["replicate", "v", "beta", "--wait"]);
    assert!(out.starts_with("snapshot 2 replicated from snapshot 1: 4.00 KiB of data"), "{out}");
    assert_eq!(beta.digest("v"), alpha.digest("v"));
}

#[test]
fn a_period_on_the_source_pulls() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = master_and_replica(dir.path(), MIB, &[], &["--period", "1"]);
    let shows = |number| move |v: &VolumeStatus| v.head == Some(HeadStatus::Snapshot(SnapshotNumber(number)));
    beta.wait_until("v", "the first snapshot", shows(0));
    write(&alpha.path("v.img"), 5000, b"x");
    alpha.ok(&["snapshot", "v"]);
    beta.wait_until("v", "the second snapshot", shows(1));
    assert_eq!(beta.digest("v"), alpha.digest("v"));
}

#[test]
fn a_cycle_that_finds_nothing_new_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = master_and_replica(dir.path(), MIB, &[], &[]);
    let replicate = || beta.ok(&["replicate", "v", "alpha", "--wait"]);
    replicate();
    let well = |since| {
        let confirmed = alpha.wait_until("v", "beta to have it", |v| v.targets[0].lag.confirmed > since);
        confirmed.targets[0].lag.confirmed
    };
    let databases = || [&alpha, &beta].map(|node| fs::read(node.path("lib/state.redb")).unwrap());
    let heard = well(None);
    let before = databases();
    replicate();
    well(heard);
    assert!(before == databases(), "something was written to a state database");
}

#[test]
fn a_period_on_the_target_pushes_along_a_chain() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, mut beta) = master_and_replica(dir.path(), MIB, &["-p", "1"], &[]);
    let gamma = Node::start(dir.path(), "gamma");
    introduce(&beta, &gamma);
    image(&gamma.path("mirror.img"), MIB, 1);
    fs::remove_file(gamma.path("mirror.img")).unwrap();
    gamma.define("mirror");
    gamma.ok(&["define", "source", "mirror", "beta", "--name", "v"]);
    beta.ok(&["define", "target", "v", "gamma", "--period", "1", "--name", "mirror"]);
    let shows = |number| move |v: &VolumeStatus| v.head == Some(HeadStatus::Snapshot(SnapshotNumber(number)));
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
fn one_volume_spreads_to_three_nodes_and_another_comes_back_from_one() {
    let dir = tempfile::tempdir().unwrap();
    // Pushed to beta, pulled by gamma, and delta is told to.
    let (alpha, beta) = master_and_replica(dir.path(), MIB, &["-p", "1"], &[]);
    let (gamma, delta) = (Node::start(dir.path(), "gamma"), Node::start(dir.path(), "delta"));
    for (node, period) in [(&gamma, &["-p", "1"][..]), (&delta, &[])] {
        introduce(&alpha, node);
        node.define("v");
        alpha.ok(&["define", "target", "v", node.name]);
        node.ok(&[&["define", "source", "v", "alpha"], period].concat());
    }
    image(&beta.path("w.img"), MIB, 2);
    beta.define("w");
    alpha.define("w");
    beta.ok(&["define", "master", "w"]);
    alpha.ok(&["define", "source", "w", "beta"]);
    beta.ok(&["define", "target", "w", "alpha", "-p", "1"]);
    beta.ok(&["snapshot", "w"]);
    let shows = |number| move |v: &VolumeStatus| v.head == Some(HeadStatus::Snapshot(SnapshotNumber(number)));
    for round in 1..=3u64 {
        for (master, volume) in [(&alpha, "v"), (&beta, "w")] {
            write(&master.path(&format!("{volume}.img")), 4096 * round, b"changed");
            master.ok(&["snapshot", volume]);
        }
        delta.ok(&["replicate", "v", "alpha", "--wait"]);
        for (node, volume) in [(&beta, "v"), (&gamma, "v"), (&delta, "v"), (&alpha, "w")] {
            node.wait_until(volume, "the snapshot", shows(round));
            let master = if volume == "v" { &alpha } else { &beta };
            assert_eq!(node.digest(volume), master.digest(volume), "{volume} at {}", node.name);
        }
    }
    // Each of them holds what it needs, and only that.
    let held = alpha.wait_until("v", "a hold for each", |v| v.snapshots[3].holds.len() == 3);
    assert!(held.snapshots[..3].iter().all(|snapshot| snapshot.holds.is_empty()), "{held:?}");
    // One that is stopped keeps nobody else waiting.
    alpha.ok(&["stop", "target", "v", "gamma"]);
    write(&alpha.path("v.img"), 0, b"once more");
    alpha.ok(&["snapshot", "v"]);
    beta.wait_until("v", "the snapshot", shows(4));
    assert_eq!(gamma.volume("v").head, Some(HeadStatus::Snapshot(SnapshotNumber(3))));
    let lags: Vec<_> =
        alpha.volume("v").targets.iter().map(|target| (target.host.to_string(), target.lag.behind)).collect();
    assert_eq!(lags, [("beta".to_owned(), 0), ("delta".to_owned(), 1), ("gamma".to_owned(), 1)]);
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
    let shows = |number| move |v: &VolumeStatus| v.head == Some(HeadStatus::Snapshot(SnapshotNumber(number)));
    beta.wait_until("v", "the first snapshot", shows(0));
    write(&beta.path("v.img"), 100, b"mine");
    let stopped = beta.wait_until("v", "the stop", |v| v.health == Health::Stopped);
    assert!(stopped.trouble.unwrap().contains("was written to since it showed"));
    let told = beta.ok(&["status"]);
    assert!(told.contains("STOPPED") && told.contains("`zumastor replicate v alpha`"), "{told}");
    let error = beta.fails(3, &["replicate", "v", "alpha", "--wait"]);
    assert!(error.contains("was written to since it showed"), "{error}");
    // The upstream, if it asks, is told the same.
    alpha.ok(&["snapshot", "v"]);
    let error = alpha.fails(3, &["replicate", "v", "beta", "--wait"]);
    assert!(error.contains("was written to"), "{error}");

    // Moved away, and shown again, although the upstream is not there.
    assert_eq!((alpha.down(), beta.down()), (0, 0));
    fs::rename(beta.path("v.img"), beta.path("mine.img")).unwrap();
    beta.up();
    beta.wait_until("v", "the old snapshot", shows(0));
    alpha.up();
    beta.wait_until("v", "the new snapshot", shows(1));
    assert_eq!(beta.volume("v").health, Health::Ok);
}

#[test]
fn a_push_that_stopped_goes_on_when_the_other_node_is_well_again() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = master_and_replica(dir.path(), MIB, &["--period", "1"], &[]);
    let shows = |number| move |v: &VolumeStatus| v.head == Some(HeadStatus::Snapshot(SnapshotNumber(number)));
    let stopped = |v: &VolumeStatus| v.targets[0].work.state == WorkState::Stopped;
    let well = |v: &VolumeStatus| v.health == Health::Ok && v.targets[0].lag.behind == 0;
    beta.wait_until("v", "the first snapshot", shows(0));
    for (round, snapshot) in [(0, 1), (1, 4)] {
        write(&beta.path("v.img"), 100, b"mine");
        // Long before anything comes that it would be in the way of.
        let trouble = beta.wait_until("v", "the trouble", |v| v.health == Health::Stopped).trouble.unwrap();
        assert!(trouble.contains("v.img was written to") && trouble.contains("`zumastor replicate v alpha`"));
        write(&alpha.path("v.img"), 0, b"new");
        alpha.ok(&["snapshot", "v"]);
        let volume = alpha.wait_until("v", "the stop", stopped);
        assert!(volume.targets[0].work.next.is_some());
        assert!(alpha.ok(&["status"]).contains("`zumastor replicate v beta`; without it, next in "));
        fs::rename(beta.path("v.img"), beta.path("mine.img")).unwrap();
        if round == 0 {
            // The replica asks by itself.
            beta.ok(&["replicate", "v", "alpha", "--wait"]);
            alpha.wait_until("v", "recovery", well);
        } else {
            // There is something new.
            alpha.ok(&["snapshot", "v"]);
            alpha.wait_until("v", "recovery", well);
        }
        beta.wait_until("v", "the snapshot", shows(snapshot));
        assert_eq!(beta.digest("v"), alpha.digest("v"));
        if round == 0 {
            alpha.ok(&["snapshot", "v"]);
            beta.wait_until("v", "the snapshot", shows(2));
        }
    }
}

#[test]
fn at_most_eight_volumes_are_received_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = (Node::start(dir.path(), "alpha"), Node::start(dir.path(), "beta"));
    introduce(&alpha, &beta);
    let names: Vec<String> = (0..9).map(|index| format!("v{index}")).collect();
    for name in &names {
        image(&alpha.path(&format!("{name}.img")), MIB, 1);
        alpha.define(name);
        alpha.ok(&["define", "master", name]);
        alpha.ok(&["snapshot", name]);
        alpha.ok(&["define", "target", name, "beta", "--ratelimit", "10K"]);
        beta.define(name);
        beta.ok(&["define", "source", name, "alpha", "--period", "3600"]);
    }
    let status = wait_for("a full house", || {
        let status = beta.status();
        let running = |v: &&VolumeStatus| {
            v.source.as_ref().is_some_and(|source| source.work.state == WorkState::Transferring)
        };
        let count = status.volumes.iter().filter(running).count();
        assert!(count <= 8);
        (count == 8).then_some(status)
    });
    let queued: Vec<_> =
        status.volumes.iter().filter_map(|v| v.source.as_ref()?.work.remark.as_ref()).collect();
    assert_eq!(queued.len(), 1, "{queued:?}");
    assert!(queued[0].starts_with("waiting for its turn"), "{queued:?}");
    let told = beta.ok(&["status"]);
    assert!(told.contains("connecting, waiting for its turn"), "{told}");
    assert!(told.contains("nothing in common yet, snapshot 0 is on its way"), "{told}");
    // Who goes makes room.
    let queued = status.volumes.iter().find(|v| v.source.as_ref().unwrap().work.remark.is_some()).unwrap();
    let running = names.iter().find(|name| name.as_str() != queued.name.as_str()).unwrap();
    beta.ok(&["forget", "source", running]);
    beta.wait_until(queued.name.as_str(), "its turn", |v| {
        v.source.as_ref().unwrap().work.state == WorkState::Transferring
    });
}

#[test]
fn what_is_being_received_is_not_called_up_to_date() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = master_and_replica(dir.path(), MIB, &[], &[]);
    beta.ok(&["replicate", "v", "alpha", "--wait"]);
    image(&alpha.path("v.img"), MIB, 2);
    alpha.ok(&["define", "target", "v", "beta", "--ratelimit", "20K"]);
    alpha.ok(&["snapshot", "v"]);
    beta.ok(&["replicate", "v", "alpha"]);
    let volume = beta.wait_until("v", "the transfer", |v| {
        v.source.as_ref().is_some_and(|source| source.work.state == WorkState::Transferring)
    });
    assert_eq!(volume.source.unwrap().lag.behind, 1);
    let told = beta.ok(&["status"]);
    assert!(told.contains("1 snapshot behind with snapshot 0"), "{told}");
    assert!(told.contains("snapshot 1 is on its way") && !told.contains("up to date"), "{told}");
    alpha.ok(&["define", "target", "v", "beta"]);
    beta.ok(&["define", "source", "v", "alpha", "--period", "3600"]);
    beta.ok(&["replicate", "v", "alpha", "--wait"]);
    assert_eq!(beta.volume("v").source.unwrap().lag.behind, 0);
}

#[test]
fn an_interval_that_is_not_smaller_than_the_push_period_is_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = master_and_replica(dir.path(), MIB, &["--period", "600"], &[]);
    let warning = "alpha sends by itself every 10 min, so asking every";
    let ran = beta.run(&["define", "source", "v", "alpha", "--period", "600"]);
    assert!(
        ran.code == 0 && ran.err.contains(warning) && ran.err.contains("give a smaller interval"),
        "{ran:?}"
    );
    assert!(beta.ok(&["status"]).contains(warning));
    let ran = beta.run(&["define", "source", "v", "alpha", "--period", "599"]);
    assert!(ran.code == 0 && !ran.err.contains("sends by itself"), "{ran:?}");
    assert!(!beta.ok(&["status"]).contains("sends by itself"));
    // Found out later, when the source cannot be asked at once; and where it sends nothing by itself, nothing is said.
    alpha.ok(&["forget", "target", "v", "beta"]);
    let ran = beta.run(&["define", "source", "v", "alpha", "--period", "1s"]);
    assert!(ran.code == 0 && !ran.err.contains("sends by itself"), "{ran:?}");
    // Nor where it sends less often; and when it sends more often afterwards, that is noticed, and said once.
    alpha.ok(&["define", "target", "v", "beta", "--period", "6h"]);
    alpha.ok(&["snapshot", "v"]);
    let shows = |number| move |v: &VolumeStatus| v.head == Some(HeadStatus::Snapshot(SnapshotNumber(number)));
    let volume = beta.wait_until("v", "the second snapshot", shows(1));
    assert_eq!(volume.source.unwrap().caution, None);
    alpha.ok(&["define", "target", "v", "beta", "--period", "1"]);
    let volume = beta.wait_until("v", "the warning", |v| v.source.as_ref().unwrap().caution.is_some());
    // There is no smaller interval.
    assert!(
        volume
            .source
            .unwrap()
            .caution
            .unwrap()
            .ends_with("give none (`zumastor define source v alpha` without --period)")
    );
    alpha.ok(&["snapshot", "v"]);
    beta.wait_until("v", "the third snapshot", shows(2));
    let log = fs::read_to_string(beta.path("log")).unwrap();
    assert_eq!(log.matches("alpha sends by itself every 1 s").count(), 1, "{log}");
}

#[test]
fn the_upstream_is_asked_when_the_volume_is_started() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, mut beta) = master_and_replica(dir.path(), MIB, &[], &["--period", "86400"]);
    let shows = |number| move |v: &VolumeStatus| v.head == Some(HeadStatus::Snapshot(SnapshotNumber(number)));
    beta.wait_until("v", "the first snapshot", shows(0));
    // Its interval is a day: the daemon asks as it starts, and so does a volume that is started.
    beta.down();
    alpha.ok(&["snapshot", "v"]);
    beta.up();
    beta.wait_until("v", "the second snapshot", shows(1));
    beta.ok(&["stop", "volume", "v"]);
    alpha.ok(&["snapshot", "v"]);
    beta.ok(&["start", "volume", "v"]);
    beta.wait_until("v", "the third snapshot", shows(2));
}

#[test]
fn what_is_to_be_sent_uncompressed_is_and_all_else_is_compressed() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = master_and_replica(dir.path(), MIB, &["--uncompressed"], &[]);
    // Text, each time another one.
    let sent = |word: &str| {
        let text: String = (0..MIB / 16).map(|line| format!("{line:08} {word}\n")).collect();
        assert_eq!(text.len() as u64, MIB);
        write(&alpha.path("v.img"), 0, text.as_bytes());
        alpha.ok(&["snapshot", "v"]);
        alpha.ok(&["replicate", "v", "beta", "--wait"]);
        assert_eq!(beta.digest("v"), alpha.digest("v"));
        let history: History = serde_json::from_str(&alpha.ok(&["history", "v", "--json"])).unwrap();
        let summary = history.transfers[0].summary.unwrap();
        assert_eq!(summary.data, MIB, "{summary:?}");
        summary.wire
    };
    let plain = sent("zumast");
    assert!(plain >= MIB, "{plain} bytes for {MIB}");
    alpha.ok(&["define", "target", "v", "beta"]);
    let compressed = sent("ddsnap");
    assert!(compressed < MIB / 2, "{compressed} bytes for {MIB}");
}
