//! What snapshots take is counted by the block, and deleting them frees it.

use std::{os::unix::fs::FileExt, path::Path};

use crate::common::{Mounted, Volume, take, wait};
use zumastor_backends::{FileStore, Mode};
use zumastor_core::{SnapshotNumber, SnapshotStore};

const MIB: u64 = 1 << 20;

/// Snapshots 0, 1 and 2 of a volume of 8 MiB: MiB 0 was written before 1, MiB 4 and 5 before 2, and MiB 6 since.
fn history(place: &Path, mode: Mode) -> (Volume, FileStore) {
    let volume = Volume::new(place, Some(mode));
    let store = volume.store();
    let image = volume.image();
    let write = |range: std::ops::Range<u64>, value: u8| {
        image
            .write_all_at(&vec![value; ((range.end - range.start) * MIB) as usize], range.start * MIB)
            .unwrap();
    };
    write(0..8, 1);
    take(&store, 0);
    write(0..1, 2);
    take(&store, 1);
    write(4..6, 3);
    take(&store, 2);
    write(6..7, 4);
    image.sync_all().unwrap();
    (volume, store)
}

/// In MiB: what each snapshot takes, what of it is its own, and what all have together.
fn usage(store: &FileStore) -> (Vec<(u64, u64, u64)>, u64) {
    let usage = wait(store.usage_by_snapshot()).unwrap().expect("this store can tell");
    let whole = |bytes: u64| {
        assert!(bytes.is_multiple_of(MIB), "{usage:?}");
        bytes / MIB
    };
    let each = usage.snapshots.iter().map(|s| (s.number.0, whole(s.referenced), whole(s.exclusive)));
    (each.collect(), whole(usage.all))
}

fn delete(store: &FileStore, number: u64) {
    wait(store.delete_snapshot(SnapshotNumber(number))).unwrap();
}

#[test]
fn root_usage_of_images_on_xfs() {
    let Some(mounted) = Mounted::make("xfs", 400) else { return };
    let (_volume, store) = history(&mounted.path(), Mode::Reflink);
    // What the head still has is nobody's own.
    assert_eq!(usage(&store), (vec![(0, 8, 1), (1, 8, 0), (2, 8, 0)], 4));
    delete(&store, 0);
    assert_eq!(usage(&store), (vec![(1, 8, 2), (2, 8, 0)], 3));
    delete(&store, 1);
    assert_eq!(usage(&store), (vec![(2, 8, 1)], 1));
    // When the head is as the snapshot, the snapshot takes nothing that is not the head's.
    wait(store.revert(SnapshotNumber(2))).unwrap();
    assert_eq!(usage(&store), (vec![(2, 8, 0)], 0));
}

#[test]
fn usage_of_layers() {
    let (_volume, store) = history(&std::env::temp_dir(), Mode::Layered);
    // The head has a copy of its own.
    assert_eq!(usage(&store), (vec![(0, 8, 1), (1, 8, 0), (2, 8, 2)], 11));
    delete(&store, 1);
    assert_eq!(usage(&store), (vec![(0, 8, 3), (2, 8, 3)], 11));
    delete(&store, 0);
    assert_eq!(usage(&store), (vec![(2, 8, 8)], 8));
}
