//! Disks make bytes others than they were: a scrub finds where, and fetches what was there from whoever has it.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use crate::common::{
    Node,
    damage::{content_files, damage, damage_snapshot},
    image, master_and_replica, ran, write,
};
use zumastor::api::{HeadStatus, Health, ScrubReport, ScrubResult};
use zumastor_core::SnapshotNumber;
use zumastor_net::Phase;

const MIB: u64 = 1 << 20;
const LEAF: u64 = 64 << 10;

fn leaves_file(node: &Node, number: u64) -> PathBuf {
    node.path("v.snaps").join(format!("snapshots/{number:010}/leaves"))
}

/// Alpha and beta with snapshot 0 of `v`, which has `size` bytes.
fn replicated(dir: &Path, size: u64) -> (Node, Node) {
    let (alpha, beta) = master_and_replica(dir, size, &[], &[]);
    alpha.ok(&["replicate", "v", "beta", "--wait"]);
    alpha.wait_until("v", "the digest", |v| v.snapshots[0].digest.is_some());
    (alpha, beta)
}

fn report(node: &Node, number: u64) -> ScrubReport {
    let volume = node.volume("v");
    let found = volume.snapshots.into_iter().find(|snapshot| snapshot.number == SnapshotNumber(number));
    found.unwrap().scrub.expect("it was scrubbed")
}

#[test]
fn what_is_bad_is_named_and_repaired_from_the_source() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = replicated(dir.path(), 8 * MIB + 100);
    assert!(beta.ok(&["scrub", "v"]).contains("8.00 MiB read, all as it was"));
    assert_eq!(report(&beta, 0).result, ScrubResult::Clean);

    damage_snapshot(&beta, 0, LEAF + 5, 1);
    damage_snapshot(&beta, 0, 17 * LEAF - 1, 2);
    damage_snapshot(&beta, 0, 8 * MIB + 99, 1);
    let found = beta.run(&["scrub", "v", "0", "--no-repair"]);
    assert_eq!(found.code, 1, "{found:?}");
    let named = "bytes 65536-131071, 1048576-1179647, 8388608-8388707";
    assert!(found.out.contains(named) && found.out.contains("NOT repaired"), "{found:?}");
    assert!(found.err.contains(named) && found.err.contains("`zumastor scrub v 0` repairs"), "{found:?}");
    let volume = beta.volume("v");
    assert_eq!(volume.health, Health::Damaged);
    assert!(volume.trouble.unwrap().contains("snapshot 0 is damaged"));
    assert!(beta.ok(&["status", "v"]).contains("DAMAGED"));
    assert_eq!(report(&beta, 0).left_ranges.len(), 3);

    let out = beta.ok(&["scrub", "v"]);
    assert!(out.contains(named) && out.contains("repaired from alpha"), "{out}");
    let told = report(&beta, 0);
    assert_eq!((told.result, told.bad, told.left), (ScrubResult::Repaired, 3 * LEAF + 100, 0));
    assert_eq!(beta.volume("v").health, Health::Ok);
    assert!(beta.ok(&["scrub", "v", "--all"]).contains("all as it was"));
    assert!(beta.ok(&["status", "v"]).contains("scrubbed   snapshot 0: 8.00 MiB read, all as it was"));
    // The volume went on to show the snapshot, and what comes next is built upon what is right.
    assert_eq!(beta.digest("v"), alpha.digest("v"));
    assert_eq!(beta.volume("v").head, Some(HeadStatus::Snapshot(SnapshotNumber(0))));
    write(&alpha.path("v.img"), 5 * MIB, b"later");
    alpha.ok(&["snapshot", "v"]);
    beta.ok(&["replicate", "v", "alpha", "--wait"]);
    assert_eq!(beta.digest("v"), alpha.digest("v"));
    assert!(beta.ok(&["scrub", "v", "--all"]).lines().all(|line| line.ends_with("all as it was")));
}

#[test]
fn a_master_is_repaired_from_a_target() {
    let dir = tempfile::tempdir().unwrap();
    let (mut alpha, mut beta) = replicated(dir.path(), 2 * MIB);
    damage_snapshot(&alpha, 0, 5 * LEAF, 10);
    // Who has it is away.
    beta.down();
    let found = alpha.run(&["scrub", "v"]);
    assert_eq!(found.code, 1, "{found:?}");
    assert!(
        found.err.contains("snapshot 0 of volume v is damaged: 64.0 KiB at bytes 327680-393215"),
        "{found:?}"
    );
    assert!(
        found.err.contains("beta: ") && found.err.contains("`zumastor scrub v 0` repairs it"),
        "{found:?}"
    );
    assert!(report(&alpha, 0).troubles[0].starts_with("beta: "));
    // What was found is known after a restart too.
    alpha.down();
    alpha.up();
    assert_eq!(alpha.volume("v").health, Health::Damaged);
    beta.up();
    assert!(alpha.ok(&["scrub", "v"]).contains("repaired from beta"));
    assert!(alpha.ok(&["scrub", "v"]).contains("all as it was"));
    // Nobody but the source, and the targets, may ask for that.
    alpha.ok(&["forget", "target", "v", "beta"]);
    damage_snapshot(&beta, 0, 5 * LEAF, 10);
    let found = beta.run(&["scrub", "v"]);
    assert!(found.code == 1 && found.err.contains("alpha does not send volume v to you"), "{found:?}");
}

#[test]
fn leaf_trees_are_damaged_too() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, mut beta) = replicated(dir.path(), 2 * MIB);
    // In its header, in a leaf's hash, cut short: it is made anew from the content.
    let trees: [fn(&Path); 3] = [
        |path| damage(path, 20, 1),
        |path| damage(path, 8192 + 32 * 3, 1),
        |path| File::options().write(true).open(path).unwrap().set_len(5000).unwrap(),
    ];
    for tree in trees {
        beta.down();
        tree(&leaves_file(&beta, 0));
        beta.up();
        beta.ok(&["scrub", "v"]);
        assert_eq!(report(&beta, 0).left, 0);
        assert!(beta.ok(&["scrub", "v"]).contains("all as it was"));
    }
    // With the content: hashes come from the peer, checked against the digest.
    for tree in trees {
        damage_snapshot(&beta, 0, 3 * LEAF, 1);
        tree(&leaves_file(&beta, 0));
        let out = beta.ok(&["scrub", "v"]);
        assert!(out.contains("repaired from alpha"), "{out}");
        assert!(beta.ok(&["scrub", "v"]).contains("all as it was"));
    }
    assert_eq!(beta.volume("v").snapshots[0].digest, alpha.volume("v").snapshots[0].digest);
}

#[test]
fn a_peer_that_has_it_wrong_repairs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = replicated(dir.path(), 2 * MIB);
    damage_snapshot(&alpha, 0, 5 * LEAF, 3);
    damage_snapshot(&beta, 0, 5 * LEAF + 100, 3);
    damage_snapshot(&beta, 0, 9 * LEAF, 3);
    let files = content_files(&beta, 0);
    let bad = |file: &PathBuf| fs::read(file).unwrap()[5 * LEAF as usize..6 * LEAF as usize].to_vec();
    let before: Vec<_> = files.iter().map(bad).collect();
    let found = beta.run(&["scrub", "v"]);
    assert_eq!(found.code, 1, "{found:?}");
    assert!(found.out.contains("64.0 KiB of it not repaired"), "{found:?}");
    assert!(found.err.contains("64.0 KiB at bytes 327680-393215"), "{found:?}");
    assert!(
        found.err.contains("alpha: the upstream sent data that are not those of the snapshot"),
        "{found:?}"
    );
    assert!(files.iter().map(bad).collect::<Vec<_>>() == before, "something was written");
}

#[test]
fn a_killed_repair_leaves_nothing_worse_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, mut beta) = replicated(dir.path(), 8 * MIB);
    alpha.ok(&["define", "target", "v", "beta", "--ratelimit", "1M"]);
    let files = content_files(&beta, 0);
    let good: Vec<_> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    damage_snapshot(&beta, 0, 0, 8 * MIB as usize);
    let waiting = beta.spawn(&["scrub", "v"]);
    beta.wait_until("v", "some data", |v| {
        v.scrub.is_some_and(|progress| progress.phase == Phase::Transferring && progress.data > MIB)
    });
    assert!(beta.fails(1, &["scrub", "v"]).contains("being scrubbed already"));
    assert!(beta.ok(&["status"]).contains("scrub      transferring snapshot 0"));
    beta.kill();
    assert_eq!(ran(&waiting.wait_with_output().unwrap()).code, 1);
    for (file, good) in files.iter().zip(&good) {
        let found = fs::read(file).unwrap();
        assert!(found.iter().zip(good).all(|(found, good)| found == good || *found == good ^ 0xff));
    }
    alpha.ok(&["define", "target", "v", "beta"]);
    beta.up();
    let out = beta.ok(&["scrub", "v"]);
    assert!(out.contains("repaired from alpha"), "{out}");
    assert!(beta.ok(&["scrub", "v"]).contains("all as it was"));
    assert_eq!(beta.digest("v"), alpha.digest("v"));
}

#[test]
fn a_volume_with_the_same_bad_bytes_is_put_right_and_a_written_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, beta) = replicated(dir.path(), 2 * MIB);
    let both = |at: u64| {
        damage_snapshot(&beta, 0, at, 50);
        damage(&beta.path("v.img"), at, 50);
    };
    both(5 * LEAF);
    assert_ne!(beta.digest("v"), alpha.digest("v"));
    beta.ok(&["scrub", "v"]);
    assert_eq!(beta.digest("v"), alpha.digest("v"));
    assert_eq!(beta.volume("v").head, Some(HeadStatus::Snapshot(SnapshotNumber(0))));
    // A program has it open for writing: it is put right the next time.
    both(6 * LEAF);
    let open = File::options().write(true).open(beta.path("v.img")).unwrap();
    let ran = beta.run(&["scrub", "v"]);
    assert!(ran.code == 0 && ran.err.contains("still holds the bad bytes"), "{ran:?}");
    drop(open);
    beta.ok(&["scrub", "v"]);
    assert_eq!(beta.digest("v"), alpha.digest("v"));
    assert!(report(&beta, 0).head.is_none());
    // Written by somebody: his.
    both(7 * LEAF);
    write(&beta.path("v.img"), MIB, b"mine");
    let mine = beta.digest("v");
    beta.ok(&["scrub", "v"]);
    assert_eq!(beta.digest("v"), mine);
    // A master's volume is never written to.
    damage_snapshot(&alpha, 0, 5 * LEAF, 50);
    damage(&alpha.path("v.img"), 5 * LEAF, 50);
    let live = alpha.digest("v");
    let ran = alpha.run(&["scrub", "v"]);
    assert!(ran.out.contains("repaired from beta"), "{ran:?}");
    assert!(ran.err.contains("v.img holds the same bad bytes") && ran.err.contains("byte 327680"), "{ran:?}");
    assert_eq!(alpha.digest("v"), live);
}

#[test]
fn what_cannot_be_scrubbed_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let alpha = Node::start(dir.path(), "alpha");
    image(&alpha.path("v.img"), MIB, 1);
    alpha.define("v");
    alpha.ok(&["define", "master", "v"]);
    assert!(alpha.fails(1, &["scrub", "v"]).contains("has no snapshot yet"));
    alpha.ok(&["snapshot", "v"]);
    assert!(alpha.fails(1, &["scrub", "v", "7"]).contains("no snapshot 7"));
    assert!(alpha.fails(1, &["scrub", "w"]).contains("there is no volume w"));
    alpha.fails(2, &["scrub", "v", "0", "--all"]);
    alpha.fails(2, &["scrub"]);
    assert!(alpha.ok(&["scrub", "v", "--background"]).contains("being read against the digest"));
    alpha.wait_until("v", "the scrub", |v| v.snapshots[0].scrub.is_some());
    // Nobody else has it.
    damage_snapshot(&alpha, 0, 100, 1);
    let error = alpha.run(&["scrub", "v"]);
    assert!(error.code == 1 && error.err.contains("from a node that has the same snapshot"), "{error:?}");
    // What is gone is not damage any more.
    alpha.ok(&["snapshot", "v"]);
    alpha.ok(&["delete", "v", "0"]);
    assert_eq!(alpha.volume("v").health, Health::Ok);
}
