//! Rotations, retention, deletion, stopping and reloading, as a user does them.

use std::{collections::BTreeSet, fs, time::Duration};

use crate::common::{Node, image, master_and_replica, text, wait_for, write};
use zumastor::api::{EventKind, Part, VolumePlan, VolumeStatus};
use zumastor_core::SnapshotNumber;

const MIB: u64 = 1 << 20;

fn master(dir: &std::path::Path, rotations: &[&str]) -> Node {
    let node = Node::start(dir, "alpha");
    image(&node.path("v.img"), MIB, 1);
    node.define("v");
    node.ok(&[&["define", "master", "v"], rotations].concat());
    node
}

fn numbers(volume: &VolumeStatus) -> Vec<u64> {
    volume.snapshots.iter().map(|snapshot| snapshot.number.0).collect()
}

fn file(node: &Node) -> String {
    fs::read_to_string(node.path("etc/volumes/v.toml")).unwrap()
}

#[test]
fn rotations_are_defined_changed_and_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let mut node =
        master(dir.path(), &["-h", "24", "-d7", "-c", "night,5,30 2 * * mon-fri", "-c", "by-hand,2"]);
    assert!(file(&node).contains("hourly = 24\ndaily = 7\n"), "{}", file(&node));
    assert!(node.ok(&["define", "master", "v", "--hourly", "24"]).contains("already"));
    // Only what is named changes; a custom rotation keeps its times.
    node.ok(&["define", "master", "v", "-w", "4", "-c", "night,6"]);
    node.ok(&["define", "schedule", "v", "--daily", "0"]);
    let told = node.ok(&["status", "v"]);
    assert!(
        told.contains("schedule   24 hourly, 0 daily, 4 weekly, 2 by-hand, 6 night, next snapshot in"),
        "{told}"
    );
    assert!(file(&node).contains("keep = 6\nevery = \"30 2 * * mon-fri\""), "{}", file(&node));
    node.down();
    node.up();
    // The earliest of all: of hourly, but from two to half past.
    let schedule = node.wait_until("v", "the next tick", |v| {
        let schedule = v.schedule.as_ref().unwrap();
        schedule.next.is_some()
            && schedule.next == schedule.rotations.iter().filter_map(|rotation| rotation.next).min()
    });
    let schedule = schedule.schedule.unwrap();
    assert_eq!(schedule.rotations.len(), 5);
    assert!(schedule.rotations[0].next.is_some() && schedule.rotations[1].next.is_none());

    assert!(node.fails(2, &["define", "master", "v", "-h", "many"]).contains("write 0 to 100000"));
    assert!(node.fails(2, &["define", "schedule", "v", "-c", "daily,1"]).contains("choose another name"));
    assert!(node.fails(2, &["define", "schedule", "v"]).contains("no rotation was named"));
    let help = node.ok(&["define", "schedule", "--help"]);
    assert!(help.contains("-h, --hourly <N>") && help.contains("NAME,N[,EVERY]"), "{help}");

    node.ok(&["snapshot", "v", "hourly"]);
    assert!(node.ok(&["forget", "schedule", "v"]).contains("no schedule any more"));
    assert!(node.fails(1, &["forget", "schedule", "v"]).contains("has no schedule"));
    let volume = node.volume("v");
    assert!(volume.schedule.is_none() && numbers(&volume) == [0], "{volume:?}");
}

#[test]
fn snapshots_in_a_rotation_are_limited_and_manual_ones_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let node = master(dir.path(), &["-c", "mine,2", "-m", "1"]);
    let error = node.fails(1, &["snapshot", "v", "hourly"]);
    assert!(error.contains("no rotation \"hourly\"; it has monthly, mine"), "{error}");
    assert!(node.ok(&["snapshot", "v"]).starts_with("0  20"));
    for number in 1..=2 {
        assert!(node.ok(&["snapshot", "v", "mine"]).starts_with(&format!("{number}  ")));
    }
    node.ok(&["hold", "v", "1", "audit"]);
    node.ok(&["snapshot", "v", "mine"]);
    node.ok(&["snapshot", "v", "mine"]);
    let volume = node.volume("v");
    assert_eq!(numbers(&volume), [0, 1, 3, 4]);
    assert_eq!(
        (volume.events[0].what, volume.events[0].number),
        (EventKind::Dropped, Some(SnapshotNumber(2)))
    );
    let told = node.ok(&["status", "v"]);
    assert!(
        told.contains("snapshot 2 dropped") && told.contains("the 3rd mine snapshot; 2 are kept"),
        "{told}"
    );
    assert!(told.contains("manual") && told.contains("mine"), "{told}");

    node.ok(&["release", "v", "1", "audit"]);
    let plan: VolumePlan = serde_json::from_str(&node.ok(&["plan", "v", "--json"])).unwrap();
    assert_eq!((plan.schema, plan.zone.as_str()), (1, "UTC"));
    let fates: Vec<_> = plan.snapshots.iter().map(|s| (s.number.0, s.stays)).collect();
    assert_eq!(fates, [(4, true), (3, true), (1, false), (0, true)]);
    let told = node.ok(&["plan", "v"]);
    assert!(told.contains("delete  1 snapshot") && told.contains("goes   the 3rd mine snapshot"), "{told}");
    assert!(told.contains("monthly: keeps 1, by the calendar, next in"), "{told}");
    assert_eq!(numbers(&node.volume("v")), [0, 1, 3, 4], "a plan changes nothing");
    node.ok(&["snapshot", "v"]);
    assert_eq!(numbers(&node.volume("v")), [0, 3, 4, 5]);
}

#[test]
fn a_schedule_takes_snapshots_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = master(dir.path(), &["-c", "often,3,1s"]);
    let beyond = |number| move |v: &VolumeStatus| numbers(v).last().is_some_and(|last| *last >= number);
    let volume = node.wait_until("v", "five snapshots", beyond(5));
    assert!(volume.snapshots.len() <= 4 && volume.snapshots.iter().all(|s| s.rotations == ["often"]));
    assert!(node.ok(&["stop", "master", "v"]).contains("is stopped"));
    assert!(node.ok(&["stop", "master", "v"]).contains("already"));
    let stopped = numbers(&node.volume("v"));
    node.down();
    // In a time zone that there is none of.
    node.zone = "Nowhere/Atall";
    node.up();
    assert!(node.ok(&["plan", "v"]).contains("with the calendar of UTC, because the time zone is not known"));
    assert!(
        fs::read_to_string(node.path("log")).unwrap().contains("the time zone of this machine is not known")
    );
    let volume = node.volume("v");
    assert_eq!((numbers(&volume), volume.stopped), (stopped.clone(), vec![Part::Master]));
    assert!(node.ok(&["status"]).contains("stopped    master"));
    assert!(node.ok(&["plan", "v"]).contains("nothing: the schedule is stopped"));
    node.ok(&["snapshot", "v"]);
    node.ok(&["start", "master", "v"]);
    node.wait_until("v", "it to go on", beyond(stopped.last().unwrap() + 2));
    assert!(node.fails(1, &["stop", "source", "v"]).contains("has no source"));
}

#[test]
fn deleting_is_all_or_nothing_and_spares_what_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = master_and_replica(dir.path(), MIB, &[], &[]);
    alpha.ok(&["replicate", "v", "beta", "--wait"]);
    for _ in 1..=3 {
        alpha.ok(&["snapshot", "v"]);
    }
    alpha.ok(&["hold", "v", "1", "audit"]);
    let error = alpha.fails(3, &["delete", "v", "2", "0"]);
    assert!(error.contains("replication with beta holds snapshot 0"), "{error}");
    let error = alpha.fails(3, &["delete", "v", "2", "1"]);
    assert!(error.contains("held as \"audit\"") && error.contains("zumastor release v 1 'audit'"), "{error}");
    assert!(alpha.fails(1, &["delete", "v", "2", "9"]).contains("no snapshot 9"));
    assert_eq!(numbers(&alpha.volume("v")), [0, 1, 2, 3]);
    assert!(alpha.ok(&["delete", "v", "2", "3", "2"]).contains("snapshots 2, 3 of volume v are deleted"));
    let volume = alpha.volume("v");
    assert_eq!(numbers(&volume), [0, 1]);
    assert!(volume.events.iter().all(|event| event.what == EventKind::Deleted && event.text == "by hand"));
    // The number of a snapshot that is gone is never given again.
    assert!(alpha.ok(&["snapshot", "v"]).starts_with("4  "));
    // What a replica shows stays, even where nobody needs it any more.
    beta.ok(&["forget", "source", "v"]);
    beta.ok(&["define", "source", "v", "alpha"]);
    let error = beta.fails(3, &["delete", "v", "0"]);
    assert!(error.contains("snapshot 0"), "{error}");
    assert!(alpha.fails(2, &["delete", "v"]).contains("SNAPSHOT"));
}

#[test]
fn a_replica_keeps_rotations_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = master_and_replica(dir.path(), MIB, &[], &[]);
    alpha.ok(&["define", "schedule", "v", "-c", "mine,1"]);
    let out = beta.run(&["define", "schedule", "v", "-c", "mine,3"]);
    assert!(out.code == 0 && out.err.contains("this is a replica"), "{out:?}");
    alpha.ok(&["replicate", "v", "beta", "--wait"]);
    for number in 1..=5_u8 {
        write(&alpha.path("v.img"), 0, &[number]);
        alpha.ok(&["snapshot", "v", "mine"]);
        beta.ok(&["replicate", "v", "alpha", "--wait"]);
    }
    // Snapshot 4 was the base of the last transfer when 5 was taken.
    assert_eq!(numbers(&alpha.volume("v")), [0, 4, 5]);
    let volume = beta.wait_until("v", "what is too old to go", |v| numbers(v) == [0, 3, 4, 5]);
    assert_eq!(volume.snapshots[3].rotations, ["mine"]);
    assert_eq!(beta.digest("v"), alpha.digest("v"));
    assert!(beta.ok(&["plan", "v"]).contains("nothing: this is a replica"));
    assert!(alpha.ok(&["plan", "v"]).contains("send    nothing to beta (it has 5)"));
    // Whatever the master does to its own: what a replica keeps is for the replica to say.
    alpha.ok(&["define", "schedule", "v", "-c", "mine,0"]);
    write(&alpha.path("v.img"), 0, b"9");
    alpha.ok(&["snapshot", "v"]);
    alpha.ok(&["replicate", "v", "beta", "--wait"]);
    alpha.ok(&["delete", "v", "--all", "--yes"]);
    alpha.ok(&["snapshot", "v"]);
    alpha.ok(&["replicate", "v", "beta", "--wait"]);
    alpha.ok(&["forget", "schedule", "v"]);
    beta.ok(&["replicate", "v", "alpha", "--wait"]);
    assert_eq!(numbers(&beta.volume("v")), [0, 3, 4, 5, 6, 7]);
}

#[test]
fn what_is_stopped_is_neither_sent_nor_received() {
    let dir = tempfile::tempdir().unwrap();
    let (mut alpha, mut beta) = master_and_replica(dir.path(), MIB, &["-p", "1"], &[]);
    beta.wait_until("v", "the first snapshot", |v| numbers(v) == [0]);
    alpha.wait_until("v", "to hear of it", |v| v.targets[0].lag.common == Some(SnapshotNumber(0)));
    beta.ok(&["stop", "source", "v"]);
    alpha.ok(&["snapshot", "v"]);
    let error = alpha.fails(1, &["replicate", "v", "beta", "--wait"]);
    assert!(
        error.contains("at beta, receiving volume v is stopped") && error.contains("start source v"),
        "{error}"
    );
    assert!(beta.fails(3, &["replicate", "v", "alpha"]).contains("start source v"));
    beta.down();
    beta.up();
    assert_eq!(beta.volume("v").stopped, [Part::Source]);
    alpha.ok(&["stop", "target", "v", "beta"]);
    beta.ok(&["start", "source", "v"]);
    let error = beta.fails(1, &["replicate", "v", "alpha", "--wait"]);
    assert!(error.contains("sending volume v to beta is stopped"), "{error}");
    assert!(alpha.fails(3, &["replicate", "v", "beta"]).contains("start target v beta"));
    let plan = alpha.ok(&["plan", "v"]);
    assert!(plan.contains("send    snapshot 1 to beta (it has 0), once that is started"), "{plan}");
    alpha.down();
    alpha.up();
    assert!(alpha.ok(&["start", "target", "v", "beta"]).contains("is started"));
    beta.wait_until("v", "the second snapshot", |v| numbers(v) == [0, 1]);
    // All of a volume.
    alpha.ok(&["stop", "volume", "v"]);
    alpha.ok(&["snapshot", "v"]);
    assert!(alpha.fails(3, &["replicate", "v", "beta"]).contains("`zumastor start volume v` first"));
    alpha.ok(&["start", "volume", "v"]);
    beta.wait_until("v", "the third snapshot", |v| numbers(v) == [0, 1, 2]);
    // What is forgotten and defined again is not stopped.
    beta.ok(&["stop", "source", "v"]);
    beta.ok(&["forget", "source", "v"]);
    beta.ok(&["define", "source", "v", "alpha"]);
    assert!(beta.volume("v").stopped.is_empty());
}

#[test]
fn files_are_read_again_all_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let node = master(dir.path(), &[]);
    assert!(node.ok(&["reload"]).contains("nothing new"));
    let path = node.path("etc/volumes/v.toml");
    let before = file(&node);
    fs::write(&path, format!("{before}\n[schedule]\nhourly = 3\n\n# mine\n[schedule.custom.x]\nkeep = 1\n"))
        .unwrap();
    let error = node.fails(3, &["define", "schedule", "v", "-d", "1"]);
    assert!(error.contains("was edited") && error.contains("`zumastor reload`"), "{error}");
    // A bad file elsewhere keeps all as it is.
    let other = node.path("etc/volumes/w.toml");
    fs::write(&other, "origin = '/o'\nsnapstore = 's'\n").unwrap();
    let error = node.fails(1, &["reload"]);
    assert!(error.contains("volumes/w.toml, line 2: snapstore: the path must be absolute"), "{error}");
    assert!(node.volume("v").schedule.is_none());
    let (origin, store) = (text(&node.path("w.img")), text(&node.path("w.snaps")));
    fs::write(&other, format!("origin = '{origin}'\nsnapstore = '{store}'\n")).unwrap();
    let ran = node.run(&["reload"]);
    assert!(ran.code == 0 && ran.err.contains("volume v is as its file says now"), "{ran:?}");
    assert!(ran.err.contains("volume w is new"), "{ran:?}");
    assert!(!ran.err.contains("no peer"), "{ran:?}");
    // Lengths of time as people write them; and nobody is waited for in silence.
    fs::write(
        &other,
        format!("origin = '{origin}'\nsnapstore = '{store}'\n[target.gamma]\nperiod = '15m'\n"),
    )
    .unwrap();
    let ran = node.run(&["reload"]);
    let stranger = "volume w is to be sent to gamma, which is no peer of this node";
    assert!(ran.code == 0 && ran.err.contains(stranger) && ran.err.contains("peer add gamma"), "{ran:?}");
    assert_eq!(node.volume("w").targets[0].config.period, Some(900));
    assert_eq!(node.volume("v").schedule.unwrap().rotations.len(), 2);
    node.ok(&["snapshot", "v", "x"]);
    node.ok(&["define", "schedule", "v", "-d", "1"]);
    assert!(file(&node).contains("# mine") && file(&node).contains("daily = 1"), "{}", file(&node));
    // By signal as well.
    fs::remove_file(&other).unwrap();
    node.hang_up();
    wait_for("w to go", || (node.status().volumes.len() == 1).then_some(()));
    // What a volume is made of does not change under way.
    fs::write(&path, file(&node).replace("v.snaps", "other.snaps")).unwrap();
    assert!(node.fails(3, &["reload"]).contains("names another origin or another snapshot store"));
    assert_eq!(numbers(&node.volume("v")), [0]);
}

/// Whatever moment the daemon dies at: what was said to be taken is there, what was said to be deleted is not, numbers
/// go up, and the limits hold.
#[test]
fn kills_leave_whole_snapshots() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = master(dir.path(), &["-c", "often,2,1s", "-c", "mine,2"]);
    let mut manual = BTreeSet::new();
    while manual.len() < 2 {
        manual.insert(first_number(&node.ok(&["snapshot", "v"])));
    }
    for round in 0..15_u64 {
        let going: Vec<u64> = manual.iter().take(2).copied().collect();
        let names: Vec<String> = going.iter().map(ToString::to_string).collect();
        let (mine, by_hand) = (node.spawn(&["snapshot", "v", "mine"]), node.spawn(&["snapshot", "v"]));
        let delete = node.spawn(&["delete", "v", &names[0], &names[1]]);
        std::thread::sleep(Duration::from_millis(5 + round * 37 % 250));
        node.kill();
        let [mine, by_hand, delete] =
            [mine, by_hand, delete].map(|command| crate::common::ran(&command.wait_with_output().unwrap()));
        node.up();
        let volume = node.wait_until("v", "the store", |v| v.trouble.is_none());
        let there = numbers(&volume);
        if delete.code == 0 {
            assert!(going.iter().all(|number| !there.contains(number)), "{going:?} {there:?}");
        }
        if by_hand.code == 0 {
            let number = first_number(&by_hand.out);
            assert!(there.contains(&number), "manual snapshot {number} is gone: {there:?}");
        }
        manual = volume.snapshots.iter().filter(|s| s.rotations.is_empty()).map(|s| s.number.0).collect();
        while manual.len() < 2 {
            manual.insert(first_number(&node.ok(&["snapshot", "v"])));
        }
        let next = first_number(&node.ok(&["snapshot", "v", "mine"]));
        let said =
            [&mine, &by_hand].into_iter().filter(|ran| ran.code == 0).map(|ran| first_number(&ran.out));
        assert!(said.chain(there).all(|number| number < next), "{next} was given twice");
        for name in ["often", "mine"] {
            let of = |v: &VolumeStatus| v.snapshots.iter().filter(|s| s.rotations == [name]).count();
            // The newest of the volume stays beside those that are kept, until the next comes.
            assert!(of(&node.volume("v")) <= 3, "{name}: {:?}", node.volume("v").snapshots);
        }
    }
    assert_eq!(node.down(), 0);
}

fn first_number(answer: &str) -> u64 {
    answer.split_whitespace().next().unwrap().parse().unwrap()
}
