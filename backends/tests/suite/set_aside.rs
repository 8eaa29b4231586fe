//! A snapshot gets a number of this node's own, and is the same snapshot: whenever it is stopped, under one of the two.

use std::os::unix::fs::FileExt;

use crate::common::{Volume, wait};
use zumastor_backends::{Faults, FileStore, Mode};
use zumastor_core::{HeadState, LEAF, Lineage, NewSnapshot, SnapshotNumber, SnapshotStore, StoreError};

const LOCAL: fn(u64) -> SnapshotNumber = SnapshotNumber::local;

fn number(number: u64) -> SnapshotNumber {
    SnapshotNumber(number)
}

fn byte(store: &FileStore, number: SnapshotNumber) -> u8 {
    let mut byte = [0];
    wait(store.open_snapshot(number)).unwrap().read_at(LEAF, &mut byte).unwrap();
    byte[0]
}

/// Three snapshots, whose bytes are 1, 2 and 3; the head shows the last.
fn volume() -> Volume {
    let volume = Volume::new(&std::env::temp_dir(), Some(Mode::Layered));
    let store = volume.store();
    let lineage = Lineage::generate();
    for index in 0..3 {
        let image = volume.image();
        image.set_len(10 * LEAF).unwrap();
        image.write_all_at(&[index as u8 + 1], LEAF).unwrap();
        wait(store.create_snapshot(NewSnapshot::manual(number(index), lineage))).unwrap();
        wait(store.leaves(number(index))).unwrap();
    }
    wait(store.revert(number(2))).unwrap();
    volume
}

#[test]
fn it_is_the_same_snapshot_under_another_number() {
    let volume = volume();
    let store = volume.store();
    let before = wait(store.snapshots()).unwrap();
    wait(store.set_aside(number(2), LOCAL(0))).unwrap();
    wait(store.set_aside(number(1), LOCAL(1))).unwrap();
    let check = |store: &FileStore| {
        let after = wait(store.snapshots()).unwrap();
        let numbers: Vec<_> = after.iter().map(|record| record.number()).collect();
        assert_eq!(numbers, [number(0), LOCAL(0), LOCAL(1)]);
        assert_eq!((after[1].guid(), after[1].digest), (before[2].guid(), before[2].digest));
        assert_eq!((byte(store, LOCAL(0)), byte(store, LOCAL(1)), byte(store, number(0))), (3, 2, 1));
        assert_eq!(wait(store.head()).unwrap(), HeadState::Shows(LOCAL(0)));
    };
    check(&store);
    drop(store);
    let store = volume.store();
    check(&store);
    // The numbers are free for others, and the head may be replaced.
    wait(store.show(number(0))).unwrap();
    volume.image().write_all_at(&[9], LEAF).unwrap();
    wait(store.create_snapshot(NewSnapshot::manual(number(2), Lineage::generate()))).unwrap();
    assert_eq!((byte(&store, number(2)), byte(&store, LOCAL(0))), (9, 3));
    let taken = wait(store.set_aside(number(2), LOCAL(0))).unwrap_err();
    assert!(matches!(taken, StoreError::Exists { .. }), "{taken}");
    assert!(wait(store.set_aside(number(0), number(7))).is_err());
    assert!(wait(store.set_aside(LOCAL(0), LOCAL(7))).is_err());
}

#[test]
fn a_crash_leaves_it_under_one_of_the_two() {
    for (stop, local) in [("set aside: before rename", false), ("set aside: after rename", true)] {
        let volume = volume();
        let store = volume.store_with(Faults::new(move |step| step == stop)).unwrap();
        assert!(wait(store.set_aside(number(2), LOCAL(0))).is_err());
        drop(store);
        let store = volume.store();
        let there = if local { LOCAL(0) } else { number(2) };
        assert_eq!(byte(&store, there), 3);
        assert_eq!(wait(store.head()).unwrap(), HeadState::Shows(there));
        assert_eq!(wait(store.snapshots()).unwrap().len(), 3);
        if !local {
            wait(store.set_aside(number(2), LOCAL(0))).unwrap();
        }
        assert_eq!(byte(&store, LOCAL(0)), 3);
    }
}
