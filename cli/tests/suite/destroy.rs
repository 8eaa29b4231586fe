//! Deleting data is a verb of its own, which asks.

use std::fs;

use crate::common::{Node, image, master_and_replica, text, write};
use zumastor::api::Health;

const MIB: u64 = 1 << 20;

fn numbers(node: &Node) -> Vec<u64> {
    node.volume("v").snapshots.iter().map(|snapshot| snapshot.number.0).collect()
}

#[test]
fn all_snapshots_that_nobody_holds() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = master_and_replica(dir.path(), MIB, &[], &[]);
    alpha.ok(&["replicate", "v", "beta", "--wait"]);
    for _ in 0..3 {
        alpha.ok(&["snapshot", "v"]);
    }
    alpha.ok(&["hold", "v", "2", "before the upgrade"]);
    let error = alpha.fails(3, &["delete", "v", "--all"]);
    assert!(error.contains("would delete 2 snapshots of volume v for good; 2 stay"), "{error}");
    assert!(error.contains("`--yes` does it without asking"), "{error}");
    let told = alpha.ok(&["delete", "v", "--all", "--dry-run"]);
    assert_eq!(told.trim(), "would delete 2 snapshots of volume v: 1, 3; nothing is deleted");
    assert!(alpha.ok(&["delete", "v", "3", "-n"]).contains("would delete of volume v: 3"));
    assert_eq!(numbers(&alpha), [0, 1, 2, 3]);
    let ran = alpha.run(&["delete", "v", "--all", "-y"]);
    assert_eq!(ran.out.trim(), "2 snapshots of volume v are deleted");
    assert!(ran.err.contains("snapshot 0 stays: replication with beta builds upon it"), "{ran:?}");
    assert!(ran.err.contains("snapshot 2 stays: it is held as \"before the upgrade\""), "{ran:?}");
    assert_eq!(numbers(&alpha), [0, 2]);
    // Numbers are never given again.
    assert!(alpha.ok(&["snapshot", "v"]).starts_with("4  "));
    // What a replica shows stays, also when nobody holds it.
    beta.ok(&["forget", "source", "v"]);
    beta.ok(&["define", "source", "v", "alpha"]);
    let ran = beta.run(&["delete", "v", "--all", "-y"]);
    assert!(ran.code == 0 && ran.err.contains("snapshot 0 stays: "), "{ran:?}");
    assert_eq!(numbers(&beta), [0]);
    alpha.fails(2, &["delete", "v"]);
    alpha.fails(2, &["delete", "v", "1", "--all"]);
}

#[test]
fn a_volume_is_destroyed_when_nobody_holds_any_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = master_and_replica(dir.path(), MIB, &[], &[]);
    alpha.ok(&["replicate", "v", "beta", "--wait"]);
    let digest = alpha.digest("v");
    let error = alpha.fails(3, &["destroy", "v", "--yes"]);
    assert!(
        error.contains("snapshots are held: 0 by beta (base)") && error.contains("forget target v"),
        "{error}"
    );
    alpha.ok(&["forget", "target", "v", "beta"]);
    alpha.ok(&["hold", "v", "0", "mine"]);
    assert!(alpha.fails(3, &["destroy", "v", "--yes"]).contains("0 by user (mine)"));
    alpha.ok(&["release", "v", "0", "mine"]);
    let error = alpha.fails(3, &["destroy", "v"]);
    assert!(error.contains("volume v with 1 snapshots") && error.contains("--yes"), "{error}");
    assert_eq!(numbers(&alpha), [0]);
    let ran = alpha.run(&["destroy", "v", "--yes"]);
    assert!(ran.code == 0 && ran.err.contains("v.img stays"), "{ran:?}");
    assert!(alpha.status().volumes.is_empty() && !alpha.path("v.snaps").exists());
    assert_eq!(alpha.digest("v"), digest);
    // It begins anew, with another history.
    alpha.define("v");
    assert!(numbers(&alpha).is_empty());

    // One that was forgotten is named by its paths; one that is defined is not.
    let (image, snaps) = (text(&beta.path("v.img")), text(&beta.path("v.snaps")));
    assert!(beta.fails(3, &["destroy", &image, &snaps, "-y"]).contains("belongs to volume v"));
    beta.ok(&["forget", "source", "v"]);
    beta.ok(&["forget", "volume", "v"]);
    assert!(beta.fails(3, &["destroy", &image, &snaps]).contains("--yes"));
    beta.ok(&["destroy", &image, &snaps, "--yes"]);
    assert!(!beta.path("v.snaps").exists());
    assert_eq!(beta.digest("v"), digest);
    assert!(beta.fails(3, &["destroy", &image, &snaps, "--yes"]).contains("is no snapshot store"));
    beta.fails(1, &["destroy", "v"]);
}

/// The power goes in the middle.
#[test]
fn what_is_half_destroyed_says_so_and_is_destroyed_to_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path(), "alpha");
    image(&node.path("v.img"), MIB, 1);
    node.define("v");
    node.ok(&["define", "master", "v"]);
    node.ok(&["snapshot", "v"]);
    write(&node.path("v.img"), 0, b"new");
    node.ok(&["snapshot", "v"]);
    node.kill();
    // As it is after the first durable step.
    fs::rename(node.path("v.snaps/store"), node.path("v.snaps/condemned")).unwrap();
    node.up();
    let volume =
        node.wait_until("v", "the store to be looked at", |volume| volume.health == Health::Unavailable);
    let trouble = volume.trouble.unwrap();
    assert!(
        trouble.contains("is being deleted for good") && trouble.contains("`zumastor destroy`"),
        "{trouble}"
    );
    assert!(node.fails(3, &["destroy", "v"]).contains("with all snapshots"));
    node.ok(&["destroy", "v", "-y"]);
    assert!(node.status().volumes.is_empty() && !node.path("v.snaps").exists());

    // Or after it was forgotten.
    node.define("v");
    node.ok(&["forget", "volume", "v"]);
    fs::rename(node.path("v.snaps/store"), node.path("v.snaps/condemned")).unwrap();
    let (image, snaps) = (text(&node.path("v.img")), text(&node.path("v.snaps")));
    let error = node.fails(3, &["define", "volume", "v", &image, &snaps]);
    assert!(error.contains("`zumastor destroy`"), "{error}");
    node.ok(&["destroy", &image, &snaps, "-y"]);
    node.define("v");
}
