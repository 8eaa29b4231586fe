//! What is done with a snapshot does not depend on how many others there are. Counted are the reads and writes of this process, so
//! this is the only test of its program.

#[path = "suite/common/mod.rs"]
mod common;

use std::{fs, os::unix::fs::FileExt, path::Path};

use common::{Mounted, Volume, numbers, take, wait};
use zumastor_backends::{FileStore, Mode};
use zumastor_core::{SnapshotNumber, SnapshotStore};

const SIZE: u64 = 1 << 20;
const MANY: u64 = 2000;

/// Calls that read or wrote so far (proc(5)).
fn calls() -> u64 {
    let io = fs::read_to_string("/proc/self/io").unwrap();
    let of = |name| io.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok()).unwrap();
    of("syscr:") + of("syscw:")
}

/// Takes a snapshot after a write into the same page as always.
fn next(volume: &Volume, store: &FileStore, number: u64) {
    volume.image().write_all_at(&number.to_le_bytes(), 8192).unwrap();
    take(store, number);
}

/// Calls for all that is usually done with a snapshot.
fn a_turn(volume: &Volume, store: &FileStore, number: u64) -> u64 {
    // What is noted once is not noted again.
    wait(store.usage()).unwrap();
    let before = calls();
    next(volume, store, number);
    let (last, new) = (SnapshotNumber(number - 1), SnapshotNumber(number));
    assert!(wait(store.leaves(new)).unwrap().digest().is_some());
    let changes = wait(store.changes(Some(last), new, 0..SIZE)).unwrap();
    assert_eq!(changes.iter().map(|extent| extent.len()).sum::<u64>(), 4096);
    assert_eq!(wait(store.snapshots()).unwrap().last().unwrap().number(), new);
    wait(store.usage()).unwrap();
    wait(store.delete_snapshot(SnapshotNumber(number / 2))).unwrap();
    calls() - before
}

#[test]
fn root_thousands_of_snapshots_cost_no_more_than_ten() {
    // In memory: nobody waits for a disk two thousand times.
    let place = Path::new("/dev/shm");
    let place = if place.is_dir() { place.to_owned() } else { std::env::temp_dir() };
    let Some(mounted) = Mounted::make_in(&place, "xfs", 320) else { return };
    let volume = Volume::new(&mounted.path(), Some(Mode::Reflink));
    common::fill(&volume, SIZE, &[(0, SIZE, 7)]);
    let store = volume.store();
    (0..10).for_each(|number| next(&volume, &store, number));
    wait(store.leaves(SnapshotNumber(9))).unwrap();
    let few = a_turn(&volume, &store, 10);
    (11..MANY).for_each(|number| next(&volume, &store, number));
    wait(store.leaves(SnapshotNumber(MANY - 1))).unwrap();
    let many = a_turn(&volume, &store, MANY);
    println!("{few} calls with ten snapshots, {many} with {MANY}");
    assert!(many <= few + 8, "{many} calls with {MANY} snapshots, {few} with ten");
    // All are there after a restart, each with its content.
    drop(store);
    let store = volume.store();
    assert_eq!(numbers(&store).len() as u64, MANY + 1 - 2);
    for number in [0, 1234, MANY] {
        assert_eq!(common::content(&store, number)[8192..8200], number.to_le_bytes(), "{number}");
    }
}
