//! What a crash leaves of the file store, at every step it takes.

use std::{
    collections::BTreeSet,
    fs::{self},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use crate::common::{
    Mounted, SIZE, Volume, check_contents, content, expected, fill, numbers, take, three, wait,
};
use zumastor_backends::{
    Faults, FileStore, Mode,
    conformance::{Bytes, deliver, plan_for},
};
use zumastor_core::{
    HeadState, LEAF, Lineage, NewSnapshot, SEGMENT, SegmentIndex, SnapshotNumber, SnapshotStore, StoreError,
    digest::Hash,
};

/// Runs `act` once for each step it passes, stopping there; `check` then looks at the store opened anew, and is told
/// whether the operation had said that it was done. Returns the steps.
fn every_step(
    prepare: &dyn Fn() -> Volume,
    act: &dyn Fn(&FileStore) -> Result<(), StoreError>,
    check: &dyn Fn(&Volume, &FileStore, &str),
) -> BTreeSet<&'static str> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let recorder = seen.clone();
    let volume = prepare();
    let note = move |step| {
        recorder.lock().unwrap().push(step);
        false
    };
    act(&volume.store_with(Faults::new(note)).unwrap()).unwrap();
    let steps = seen.lock().unwrap().clone();
    let ways =
        steps.iter().copied().enumerate().flat_map(|(stop, step)| [(stop, step, false), (stop, step, true)]);
    for (stop, step, fails) in ways {
        let volume = prepare();
        let mut passed = 0;
        let at = move |_| {
            passed += 1;
            passed == stop + 1
        };
        let store = volume.store_with(if fails { Faults::failing(at) } else { Faults::new(at) }).unwrap();
        let done = act(&store);
        let mut checked = false;
        if fails {
            // Whoever goes on with the same store may be sent to open it anew, but is not told lies.
            match wait(store.delete_snapshot(SnapshotNumber(12_345))) {
                Err(StoreError::NotFound { .. }) => {
                    check(&volume, &store, &format!("{step}, which failed"));
                    checked = true;
                    let shown = wait(store.head()).unwrap();
                    take(&store, 98);
                    if let HeadState::Shows(number) = shown {
                        wait(store.revert(number)).unwrap();
                    }
                    wait(store.delete_snapshot(SnapshotNumber(98))).unwrap();
                }
                Err(error) if error.to_string().contains("restart to open it anew") => {}
                other => panic!("after a failure of {step}: {other:?}"),
            }
        } else {
            done.expect_err("was stopped");
        }
        drop(store);
        if checked {
            // To check is to change, so it is done once.
            check_contents(&volume.store(), step);
        } else {
            check(&volume, &volume.store(), step);
        }
        // It must also be possible to go on.
        let store = volume.store();
        take(&store, 99);
        assert_eq!(
            content(&store, 99),
            fs::read(volume.origin()).unwrap(),
            "after a stop at {}",
            steps[stop]
        );
        wait(store.revert(SnapshotNumber(99))).unwrap();
        wait(store.delete_snapshot(SnapshotNumber(99))).unwrap();
        let tidy = |dir: &str| fs::read_dir(volume.snapstore().join(dir)).unwrap().count();
        assert_eq!((tidy("tmp"), tidy("trash")), (0, 0), "after a stop at {step}");
    }
    steps.into_iter().collect()
}

fn crash_points(place: &Path, mode: Mode) {
    let place = || three(place, mode);
    let created = every_step(
        &place,
        &|store| {
            let new = NewSnapshot::manual(SnapshotNumber(7), Lineage::generate());
            wait(store.create_snapshot(new)).map(drop)
        },
        &|_, store, step| {
            check_contents(store, step);
            let numbers = numbers(store);
            assert_eq!(numbers[..3], [0, 1, 2]);
            // There, or not: not half of it, which would pass for damaged.
            let opened = wait(store.open_snapshot(SnapshotNumber(7)));
            assert!(matches!(opened, Ok(_) | Err(StoreError::NotFound { .. })), "{step}: {opened:?}");
            assert!(numbers.len() == 3 || content(store, 7) == expected(2).0, "{step}");
        },
    );
    let deleted =
        every_step(&place, &|store| wait(store.delete_snapshot(SnapshotNumber(1))), &|_, store, step| {
            check_contents(store, step);
            assert!([&[0u64, 2][..], &[0, 1, 2]].contains(&&numbers(store)[..]), "{step}");
        });
    let deleted_first =
        every_step(&place, &|store| wait(store.delete_snapshot(SnapshotNumber(0))), &|_, store, step| {
            check_contents(store, step)
        });
    let flipped = every_step(
        &|| {
            let volume = place();
            // Two flips, so that there is an alternate.
            wait(volume.store().revert(SnapshotNumber(0))).unwrap();
            wait(volume.store().revert(SnapshotNumber(1))).unwrap();
            volume
        },
        &|store| wait(store.revert(SnapshotNumber(2))),
        &|volume, store, step| {
            check_contents(store, step);
            let head = fs::read(volume.origin()).unwrap();
            match wait(store.head()).unwrap() {
                HeadState::Shows(SnapshotNumber(n @ 1..=2)) => assert!(head == expected(n).0, "{step}"),
                other => panic!("{other:?} after a stop at {step}"),
            }
            wait(store.revert(SnapshotNumber(2))).unwrap();
            assert!(fs::read(volume.origin()).unwrap() == expected(2).0, "flip after a stop at {step}");
            wait(store.revert(SnapshotNumber(0))).unwrap();
            assert!(
                fs::read(volume.origin()).unwrap() == expected(0).0,
                "second flip after a stop at {step}"
            );
        },
    );
    let target = {
        let mut target = expected(1);
        target.write(&(200_000, 90_000, 0x55));
        target.write(&(10, 60_000, 0));
        target
    };
    let plan = plan_for(SnapshotNumber(8), Lineage::generate(), Some(SnapshotNumber(1)), &target);
    let receive = |store: &FileStore| {
        let staging = wait(store.stage(plan.clone()))?;
        // As the leaves stand when a transfer takes long: first a part of the segment, then all of it.
        let leaves = deliver(&*staging, &expected(1), &target, 0..SIZE / 2)?;
        staging.checkpoint(&leaves, &[])?;
        let leaves = deliver(&*staging, &expected(1), &target, 0..SIZE)?;
        staging.checkpoint(&leaves, &[SegmentIndex(0)])?;
        staging.commit(target.digest()).map(drop)
    };
    let received = every_step(&place, &receive, &|_, store, step| {
        check_contents(store, step);
        if numbers(store).len() == 3 {
            let staged = wait(store.staged()).unwrap();
            assert!(staged.is_none() || staged == Some(plan.clone()), "{step}");
            // I4: what is called finished is there.
            let staging = wait(store.stage(plan.clone())).unwrap();
            let mut bytes = vec![0; SIZE as usize];
            staging.read_at(0, &mut bytes).unwrap();
            // What the tree vouches for is there, whatever the step was: it will not be fetched again.
            let leaves = staging.leaves().segment(SegmentIndex(0)).unwrap();
            for (index, (leaf, wanted)) in bytes.chunks(65_536).zip(target.0.chunks(65_536)).enumerate() {
                let vouched = leaves.hash(SegmentIndex(0), index, SIZE) == Hash::of_leaf(wanted);
                assert!(
                    !vouched || leaf == wanted,
                    "leaf {index} is not what the tree says after a stop at {step}"
                );
            }
            if !staging.finished().is_empty() {
                assert!(bytes == target.0, "{step}");
                assert_eq!(staging.leaves().root().unwrap(), target.digest(), "{step}");
            }
            drop(staging);
            receive(store).unwrap();
        }
        assert!(content(store, 8) == target.0, "{step}");
        assert_eq!(wait(store.staged()).unwrap(), None);
    });
    let all: BTreeSet<_> =
        [created, deleted, deleted_first, flipped, received].into_iter().flatten().collect();
    let mut wanted = vec!["publish: after rename", "delete: after rename", "flip: after marking"];
    wanted.extend([
        "stage: before rename",
        "checkpoint: before the leaves",
        "checkpoint: after the leaves",
        "commit: before sealing",
    ]);
    if mode == Mode::Layered {
        wanted.extend(["merge: after copying", "merge: after the descriptor", "flip: after exchange"]);
        wanted.extend(["flip: before applying", "collect: before removing data"]);
    }
    for step in wanted {
        assert!(all.contains(step), "{step} was not passed: {all:?}");
    }
}

#[test]
fn a_crash_at_any_step_leaves_the_old_or_the_new_in_layers() {
    crash_points(&std::env::temp_dir(), Mode::Layered);
}

#[test]
fn root_a_crash_at_any_step_leaves_the_old_or_the_new_on_xfs() {
    let Some(mounted) = Mounted::make("xfs", 400) else { return };
    crash_points(&mounted.path(), Mode::Reflink);
}

#[test]
fn root_a_crash_at_any_step_leaves_the_old_or_the_new_on_btrfs() {
    let Some(mounted) = Mounted::make("btrfs", 400) else { return };
    crash_points(&mounted.path(), Mode::Reflink);
}

/// A commit that fails late has described its layer already: that goes when the rest of it is discarded.
#[test]
fn what_a_failed_commit_left_is_discarded() {
    let volume = three(&std::env::temp_dir(), Mode::Layered);
    let mut target = expected(1);
    target.write(&(200_000, 90_000, 0x55));
    let store = volume.store_with(Faults::failing(|step| step == "commit: after the descriptor")).unwrap();
    let plan = plan_for(SnapshotNumber(8), Lineage::generate(), Some(SnapshotNumber(1)), &target);
    let staging = wait(store.stage(plan)).unwrap();
    let leaves = deliver(&*staging, &expected(1), &target, 0..SIZE).unwrap();
    staging.checkpoint(&leaves, &[SegmentIndex(0)]).unwrap();
    staging.commit(target.digest()).unwrap_err();
    wait(store.discard_staged()).unwrap();
    assert_eq!(fs::read_dir(volume.snapstore().join("layers")).unwrap().count(), 3);
    wait(store.delete_snapshot(SnapshotNumber(1))).unwrap();
    drop(store);
    let store = volume.store();
    assert_eq!(numbers(&store), [0, 2]);
    check_contents(&store, "discarding");
}

/// A commit makes durable what no checkpoint has: what came after the last one, or before the store was opened.
#[test]
fn a_commit_syncs_what_is_not_synced_and_nothing_twice() {
    let ways =
        [("nothing", 1), ("a write", 2), ("a zero", 2), ("opened again", 2), ("a checkpoint that failed", 3)];
    for ((after, expected), number) in ways.into_iter().zip(0..) {
        let volume = Volume::new(&std::env::temp_dir(), Some(Mode::Layered));
        let (synced, fails) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let faults = {
            let (synced, fails) = (Arc::clone(&synced), Arc::clone(&fails));
            Faults::failing(move |step| {
                synced.fetch_add(usize::from(step == "checkpoint: before sync"), Ordering::Relaxed);
                step == "checkpoint: after sync" && fails.swap(false, Ordering::Relaxed)
            })
        };
        let store = volume.store_with(faults).unwrap();
        let target = Bytes(vec![7; LEAF as usize]);
        let plan = plan_for(SnapshotNumber(number), Lineage::generate(), None, &target);
        let mut staging = wait(store.stage(plan.clone())).unwrap();
        let leaves = deliver(&*staging, &Bytes(vec![0; LEAF as usize]), &target, 0..LEAF).unwrap();
        staging.checkpoint(&leaves, &[SegmentIndex(0)]).unwrap();
        match after {
            "a write" => staging.write_at(0, &[7]).unwrap(),
            "a zero" => staging.zero(0..0).unwrap(),
            "opened again" => {
                drop(staging);
                staging = wait(store.stage(plan)).unwrap();
            }
            "a checkpoint that failed" => {
                fails.store(true, Ordering::Relaxed);
                staging.checkpoint(&leaves, &[SegmentIndex(0)]).unwrap_err();
            }
            _ => {}
        }
        staging.commit(target.digest()).unwrap();
        assert_eq!(synced.load(Ordering::Relaxed), expected, "{after}");
    }
}

/// More than one segment: finished segments survive, the others are written again.
fn segments(place: &Path, mode: Mode) {
    let volume = Volume::new(place, Some(mode));
    let size = 2 * SEGMENT + 12_345;
    fill(&volume, size, &[(SEGMENT - 5000, 10_000, 1), (2 * SEGMENT + 12_000, 345, 2)]);
    let store = volume.store();
    take(&store, 0);
    let base = Bytes(fs::read(volume.origin()).unwrap());
    let mut target = base.clone();
    for write in
        [(10, 100_000, 5), (SEGMENT + 70_000, 50_000, 6), (SEGMENT - 5000, 4000, 0), (2 * SEGMENT, 9000, 7)]
    {
        target.write(&write);
    }
    let plan = plan_for(SnapshotNumber(1), Lineage::generate(), Some(SnapshotNumber(0)), &target);
    let staging = wait(store.stage(plan.clone())).unwrap();
    std::thread::scope(|scope| {
        for segment in [0, 2].map(SegmentIndex) {
            let (staging, base, target) = (&*staging, &base, &target);
            scope.spawn(move || {
                let leaves = deliver(staging, base, target, segment.range(size)).unwrap();
                staging.checkpoint(&leaves, &[segment]).unwrap();
            });
        }
    });
    let half = SEGMENT..SEGMENT + 80_000;
    deliver(&*staging, &base, &target, half).unwrap();
    // Somebody else takes it up: who had it may not go on.
    let second = wait(store.stage(plan.clone())).unwrap();
    assert!(staging.write_at(0, &[0xAA]).is_err());
    assert!(staging.zero(0..LEAF).is_err());
    assert!(staging.checkpoint(&[], &[SegmentIndex(1)]).is_err());
    drop((staging, second, store));
    let store = volume.store();
    let staging = wait(store.stage(plan)).unwrap();
    assert_eq!(staging.finished(), [SegmentIndex(0), SegmentIndex(2)]);
    let leaves = deliver(&*staging, &base, &target, SegmentIndex(1).range(size)).unwrap();
    staging.checkpoint(&leaves, &[SegmentIndex(1)]).unwrap();
    staging.commit(target.digest()).unwrap();
    assert!(content(&store, 1) == target.0);
    wait(store.delete_snapshot(SnapshotNumber(0))).unwrap();
    assert!(content(&store, 1) == target.0);
    let tree = wait(store.leaves(SnapshotNumber(1))).unwrap();
    assert_eq!((tree.digest(), tree.root().unwrap()), (Some(target.digest()), target.digest()));
}

#[test]
fn finished_segments_survive_in_layers() {
    segments(&std::env::temp_dir(), Mode::Layered);
}

#[test]
fn root_finished_segments_survive_in_clones() {
    let Some(mounted) = Mounted::make("xfs", 600) else { return };
    segments(&mounted.path(), Mode::Reflink);
}
