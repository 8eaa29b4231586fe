//! What stays, what goes, and the words for it.

use jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::{Lineage, NewSnapshot};

/// A snapshot with its rotations in one word each.
fn snapshot(number: SnapshotNumber, rotations: &str) -> SnapshotRecord {
    let rotations = rotations.split_whitespace().map(str::to_owned).collect();
    let new = NewSnapshot { rotations, ..NewSnapshot::manual(number, Lineage::generate()) };
    SnapshotRecord { new, size: 0, digest: None }
}

fn snapshots(rotations: &[&str]) -> Vec<SnapshotRecord> {
    (0..).map(SnapshotNumber).zip(rotations).map(|(number, names)| snapshot(number, names)).collect()
}

fn limits(all: &[(&str, u32)]) -> BTreeMap<RotationName, u32> {
    all.iter().map(|(name, limit)| (name.parse().unwrap(), *limit)).collect()
}

fn hold(number: u64, owner: &str, name: &str) -> Hold {
    let owner = match owner {
        "user" => HoldOwner::User,
        peer => HoldOwner::Peer(peer.parse().unwrap()),
    };
    Hold { number: SnapshotNumber(number), owner, name: name.into(), since: Timestamp::UNIX_EPOCH }
}

/// Each verdict as a person reads it, oldest first.
fn words(verdicts: Vec<Verdict>) -> Vec<String> {
    let word = |Verdict { number, fate }| match fate {
        Fate::Keep(reasons) => {
            let reasons: Vec<_> = reasons.iter().map(ToString::to_string).collect();
            format!("{number} stays: {}", reasons.join("; "))
        }
        Fate::Drop(reason) => format!("{number} goes: {reason}"),
    };
    verdicts.into_iter().rev().map(word).collect()
}

fn dropped(verdicts: &[Verdict]) -> Vec<u64> {
    let goes = |verdict: &&Verdict| matches!(verdict.fate, Fate::Drop(_));
    verdicts.iter().filter(goes).map(|verdict| verdict.number.0).collect()
}

#[test]
fn any_rotation_keeps_a_snapshot() {
    let all = snapshots(&["hourly daily", "hourly", "hourly", "hourly daily", "hourly", "hourly"]);
    let verdicts = plan(&all, &limits(&[("hourly", 2), ("daily", 1)]), &[]);
    assert_eq!(
        words(verdicts),
        [
            "0 goes: the 6th hourly snapshot; 2 are kept, and the 2nd daily snapshot; 1 is kept",
            "1 goes: the 5th hourly snapshot; 2 are kept",
            "2 goes: the 4th hourly snapshot; 2 are kept",
            "3 stays: the newest daily",
            "4 stays: one of the newest 2 hourly",
            "5 stays: the newest of the volume; one of the newest 2 hourly",
        ]
    );
}

#[test]
fn holds_keep_a_snapshot_and_do_not_stretch_the_limit() {
    let all = snapshots(&["hourly", "hourly", "hourly", "hourly"]);
    let holds = [hold(0, "beta", "base"), hold(0, "user", "audit"), hold(2, "beta", "transfer")];
    let verdicts = plan(&all, &limits(&[("hourly", 2)]), &holds);
    assert_eq!(
        words(verdicts),
        [
            "0 stays: held by beta as base; held by user as audit",
            "1 goes: the 3rd hourly snapshot; 2 are kept",
            "2 stays: held by beta as transfer; one of the newest 2 hourly",
            "3 stays: the newest of the volume; one of the newest 2 hourly",
        ]
    );
}

#[test]
fn what_has_no_limit_is_nobodys_to_delete() {
    let all = snapshots(&["", "fast", "Hourly", "fast hourly", "../odd", "hourly", ""]);
    let verdicts = plan(&all, &limits(&[("hourly", 1)]), &[]);
    assert_eq!(
        words(verdicts),
        [
            "0 stays: manual",
            "1 stays: fast has no limit here",
            "2 stays: Hourly has no limit here",
            "3 goes: the 2nd hourly snapshot; 1 is kept",
            "4 stays: ../odd has no limit here",
            "5 stays: the newest hourly",
            "6 stays: the newest of the volume; manual",
        ]
    );
}

#[test]
fn a_limit_of_zero_keeps_only_the_newest_of_the_volume() {
    let verdicts = plan(&snapshots(&["daily", "daily"]), &limits(&[("daily", 0)]), &[]);
    assert_eq!(
        words(verdicts),
        ["0 goes: the 2nd daily snapshot; none is kept", "1 stays: the newest of the volume"]
    );
    assert!(plan(&[], &limits(&[("daily", 0)]), &[]).is_empty());
}

#[test]
fn a_repeated_name_counts_once() {
    let all = snapshots(&["daily", "daily daily daily"]);
    assert!(dropped(&plan(&all, &limits(&[("daily", 2)]), &[])).is_empty());
}

#[test]
fn age_is_a_matter_of_numbers() {
    // The clock was set back before the second, and the list is in no order.
    let mut all = snapshots(&["daily", "daily", "daily"]);
    all[0].new.created = Timestamp::MAX;
    all[2].new.created = Timestamp::UNIX_EPOCH;
    all.swap(0, 1);
    let verdicts = plan(&all, &limits(&[("daily", 2)]), &[]);
    assert_eq!(dropped(&verdicts), [0]);
    assert_eq!(verdicts.iter().map(|verdict| verdict.number.0).collect::<Vec<_>>(), [2, 1, 0]);
}

#[test]
fn a_local_snapshot_is_not_the_newest_of_a_replica() {
    let local = |rotation| snapshot(SnapshotNumber::local(0), rotation);
    for all in ["", "daily"].map(|rotation| [snapshot(SnapshotNumber(8), "daily"), local(rotation)]) {
        assert_eq!(
            words(plan(&all, &limits(&[("daily", 0)]), &[])),
            ["L0 stays: this node's own: no other node has it", "8 stays: the newest of the volume"]
        );
    }
}

#[test]
fn ordinals_are_those_of_english() {
    let ordinal = |place| {
        let past = PastLimit { name: RotationName::Hourly, place, limit: 24 }.to_string();
        past.split(' ').nth(1).unwrap().to_owned()
    };
    let all: Vec<_> = [1, 2, 3, 4, 11, 12, 13, 21, 22, 25, 111, 121].into_iter().map(ordinal).collect();
    assert_eq!(all.join(" "), "1st 2nd 3rd 4th 11th 12th 13th 21st 22nd 25th 111th 121st");
}

#[test]
fn space_comes_from_the_oldest_of_rotations_first() {
    let all = snapshots(&["", "hourly", "daily", "", "hourly", "hourly"]);
    let holds = [hold(2, "beta", "base")];
    let order = |needed, manual_too| dropped(&space(&all, &holds, needed, |_| 10, manual_too));
    assert_eq!(order(0, true), []);
    assert_eq!(order(10, true), [1]);
    assert_eq!(order(11, true), [1, 4]);
    assert_eq!(order(1000, false), [1, 4]);
    assert_eq!(order(1000, true), [1, 4, 0, 3]);
    let local = [snapshot(SnapshotNumber::local(0), ""), snapshot(SnapshotNumber(1), "")];
    assert_eq!(dropped(&space(&local, &[], 1, |_| 0, true)), []);
    let verdict = space(&all, &[], 1, |number| number.0 << 20, false).remove(0);
    assert_eq!(words(vec![verdict]), ["1 goes: the oldest that may go for space; frees 1.00 MiB"]);
    assert!(space(&[], &[], 1, |_| 1, true).is_empty());
    assert_eq!(space(&all, &[], u64::MAX, |_| u64::MAX, true).len(), 1);
}

#[test]
fn a_hundred_thousand_snapshots_are_no_work() {
    let all: Vec<_> =
        (0..100_000).map(|number| snapshot(SnapshotNumber(number), "hourly daily fast")).collect();
    let holds: Vec<_> = (0..10_000).map(|number| hold(number * 7, "beta", "base")).collect();
    let verdicts = plan(&all, &limits(&[("hourly", 50_000), ("daily", 7)]), &holds);
    let unheld = (0..50_000).filter(|number| number % 7 != 0 || *number >= 70_000).count();
    assert_eq!(dropped(&verdicts).len(), unheld);
}

proptest! {
    /// Against the rule as it is told: look at each snapshot by itself, and count the newer ones of each rotation.
    #[test]
    fn verdicts_follow_the_rule(
        sets in prop::collection::vec(prop::collection::btree_set("[a-d]", 0..4), 0..40),
        all_limits in prop::collection::btree_map("[a-c]", 0u32..6, 0..4),
        held in prop::collection::btree_set(0u64..40, 0..5),
    ) {
        let rotations: Vec<_> =
            sets.iter().map(|set| set.iter().cloned().collect::<Vec<_>>().join(" ")).collect();
        let all = snapshots(&rotations.iter().map(String::as_str).collect::<Vec<_>>());
        let limits = limits(&all_limits.iter().map(|(name, limit)| (name.as_str(), *limit)).collect::<Vec<_>>());
        let holds: Vec<_> = held.iter().map(|number| hold(*number, "user", "x")).collect();
        let verdicts = plan(&all, &limits, &holds);
        prop_assert_eq!(verdicts.len(), all.len());
        for verdict in verdicts {
            let number = verdict.number.0 as usize;
            let newer = |name: &str| sets[number + 1..].iter().filter(|set| set.contains(name)).count();
            let kept = |name: &String| all_limits.get(name).is_some_and(|limit| newer(name) < *limit as usize);
            let stays = number + 1 == sets.len()
                || held.contains(&verdict.number.0)
                || sets[number].iter().any(kept)
                || sets[number].iter().all(|name| !all_limits.contains_key(name));
            prop_assert_eq!(matches!(verdict.fate, Fate::Keep(_)), stays, "snapshot {}", number);
            match verdict.fate {
                Fate::Keep(reasons) => prop_assert!(!reasons.is_empty()),
                Fate::Drop(reason) => prop_assert!(!reason.to_string().is_empty()),
            }
        }
    }
}
