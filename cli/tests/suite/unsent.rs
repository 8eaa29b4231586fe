//! Targets that are to have each snapshot: what they have not got yet is kept until they have, or until space is short.

use std::fs;

use crate::common::{Node, introduce, master_and_replica, write};
use zumastor::api::{EventKind, VolumeStatus};

const MIB: u64 = 1 << 20;

fn numbers(volume: &VolumeStatus) -> Vec<u64> {
    volume.snapshots.iter().map(|snapshot| snapshot.number.0).collect()
}

fn take(node: &Node, rotation: &str, count: u8) {
    for number in 0..count {
        write(&node.path("v.img"), 0, &[number]);
        node.ok(&["snapshot", "v", rotation]);
    }
}

/// Alpha keeps one snapshot of rotation `x`; beta is to have each of them, has the first, and is away. Gamma only gets the newest.
fn behind(dir: &std::path::Path) -> (Node, Node, Node) {
    let (alpha, mut beta) = master_and_replica(dir, MIB, &["--all", "--rotations", "x,manual"], &[]);
    let gamma = Node::start(dir, "gamma");
    introduce(&alpha, &gamma);
    alpha.ok(&["define", "target", "v", "gamma"]);
    alpha.ok(&["define", "schedule", "v", "-c", "x,1", "-c", "y,1"]);
    alpha.ok(&["replicate", "v", "beta", "--wait"]);
    assert_eq!(beta.down(), 0);
    (alpha, beta, gamma)
}

#[test]
fn what_a_target_is_to_have_is_kept_until_it_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, mut beta, _gamma) = behind(dir.path());
    take(&alpha, "x", 4);
    take(&alpha, "y", 3);
    // Of x, which beta is to have, all; of y the newest, which is also the newest of the volume.
    assert_eq!(numbers(&alpha.volume("v")), [0, 1, 2, 3, 4, 7]);
    let plan = alpha.ok(&["plan", "v"]);
    assert!(plan.contains("delete  nothing"), "{plan}");
    let line = plan.lines().find(|line| line.trim_start().starts_with("2 ")).unwrap();
    assert!(line.contains("stays") && line.ends_with("held by beta as unsent"), "{plan}");
    let volume = alpha.volume("v");
    let hold = &volume.snapshots[2].holds[0];
    assert!(hold.why.contains("has not got it yet"), "{hold:?}");
    assert!(alpha.ok(&["status", "v"]).contains("beta (unsent)"));
    assert!(alpha.fails(3, &["delete", "v", "2"]).contains("beta is to have each snapshot"));
    assert!(alpha.run(&["delete", "v", "--all", "-n"]).err.contains("beta is to have it"));

    // It gets each of them, in order, and then the limits are what they were.
    beta.up();
    alpha.ok(&["replicate", "v", "beta", "--wait"]);
    assert_eq!(numbers(&beta.volume("v")), [0, 1, 2, 3, 4]);
    take(&alpha, "y", 1);
    assert_eq!(numbers(&alpha.volume("v")), [0, 4, 8]);

    // Who is to have only the newest keeps nothing.
    assert_eq!(beta.down(), 0);
    alpha.ok(&["define", "target", "v", "beta", "--rotations", "x"]);
    take(&alpha, "x", 3);
    assert_eq!(numbers(&alpha.volume("v")), [0, 4, 8, 11]);
    // Nor who is forgotten.
    alpha.ok(&["define", "target", "v", "beta", "--all"]);
    take(&alpha, "x", 2);
    assert_eq!(numbers(&alpha.volume("v")), [0, 4, 8, 11, 12, 13]);
    alpha.ok(&["forget", "target", "v", "beta"]);
    take(&alpha, "x", 1);
    assert_eq!(numbers(&alpha.volume("v")), [0, 8, 14]);
}

#[test]
fn what_is_dropped_for_space_before_it_is_sent_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (mut alpha, mut beta, _gamma) = behind(dir.path());
    take(&alpha, "x", 4);
    let path = alpha.path("etc/volumes/v.toml");
    let before = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{before}\n[space]\nminimum_free = \"1000T\"\n")).unwrap();
    alpha.ok(&["reload"]);
    let dropped =
        |volume: &VolumeStatus| volume.events.iter().filter(|event| event.what == EventKind::Dropped).count();
    let volume = alpha.wait_until("v", "what waits to be sent to go", |volume| {
        numbers(volume) == [0, 4] && dropped(volume) == 3
    });
    for event in volume.events.iter().filter(|event| event.what == EventKind::Dropped) {
        assert!(event.text.ends_with("beta was to have it, and misses it"), "{event:?}");
    }
    // Over a restart, too.
    alpha.kill();
    fs::write(&path, before).unwrap();
    alpha.up();
    let volume = alpha.volume("v");
    let of = |volume: &VolumeStatus, host: &str| {
        let target = volume.targets.iter().find(|target| target.host.as_str() == host).unwrap();
        target.missed.map(|missed| (missed.count, missed.newest.0))
    };
    assert_eq!((of(&volume, "beta"), of(&volume, "gamma")), (Some((3, 3)), None));
    assert!(volume.trouble.unwrap().contains("beta misses 3 snapshots up to 3"));
    let told = alpha.ok(&["status"]);
    assert!(told.contains("LATE") && told.contains("it misses 3 snapshots up to 3"), "{told}");
    // It gets what there is, and that is history.
    beta.up();
    alpha.ok(&["replicate", "v", "beta", "--wait"]);
    assert_eq!(numbers(&beta.volume("v")), [0, 4]);
    assert_eq!(of(&alpha.volume("v"), "beta"), None);
    assert!(!alpha.ok(&["status"]).contains("misses"));
}
