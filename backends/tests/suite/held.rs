//! What snapshots hold is counted once and kept in a file: whatever becomes of that file, what is told is true.

use std::{fs, path::Path, process::Command};

use crate::common::{Mounted, SIZE, Volume, fill, wait};
use zumastor_backends::{FileStore, FileStoreOptions, Mode};
use zumastor_core::{Lineage, NewSnapshot, SnapshotNumber, SnapshotStore};

const PAGE: u64 = 4096;

/// What the store says that its snapshots hold.
fn told(volume: &Volume) -> u64 {
    wait(volume.store().usage()).unwrap().used
}

/// The same, counted anew.
fn counted(volume: &Volume) -> u64 {
    // It may not be there.
    let _ = fs::remove_file(volume.snapstore().join("held"));
    told(volume)
}

/// Takes snapshot `number` after a write of as many pages and one.
fn next(volume: &Volume, store: &FileStore, number: u64) {
    fill(volume, SIZE, &[(0, (number + 1) * PAGE, number as u8 + 1)]);
    volume.image().sync_all().unwrap();
    wait(store.create_snapshot(NewSnapshot::manual(SnapshotNumber(number), Lineage::generate()))).unwrap();
}

/// Snapshots 0 to 3. Each but the last holds what was written before the next.
fn volume(place: &Path) -> Volume {
    let volume = Volume::new(place, Some(Mode::Reflink));
    // What all of them share.
    fill(&volume, SIZE, &[(50 * PAGE, 50 * PAGE, 9)]);
    let store = volume.store();
    (0..4).for_each(|number| next(&volume, &store, number));
    volume
}

fn xfs() -> Option<Mounted> {
    Mounted::make("xfs", 320)
}

#[test]
fn root_a_file_that_is_bad_is_not_believed() {
    let Some(mounted) = xfs() else { return };
    let volume = volume(&mounted.path());
    let path = volume.snapstore().join("held");
    let truth = counted(&volume);
    assert_eq!(truth, (1 + 2 + 3) * PAGE, "each but the last holds what was written before it");
    let good = fs::read(&path).unwrap();
    assert_eq!(told(&volume), truth);
    assert_eq!(fs::read(&path).unwrap(), good, "what is known is kept");
    let with = |at: usize, byte: u8| {
        let mut bad = good.clone();
        bad[at] = byte;
        bad
    };
    let bad = [
        ("another version", with(7, 1)),
        ("a later version", with(7, 0xff)),
        ("another file", with(0, b'X')),
        ("a bit of the checksum", with(20, !good[20])),
        ("a bit of a number", with(good.len() - 1, !good[good.len() - 1])),
        ("half of it", good[..good.len() / 2].to_vec()),
        ("nothing in it", Vec::new()),
        ("text", b"none of this is ours".to_vec()),
    ];
    for (what, bytes) in bad {
        fs::write(&path, bytes).unwrap();
        assert_eq!(told(&volume), truth, "{what}");
        assert_eq!(fs::read(&path).unwrap(), good, "{what}: it is made anew");
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(told(&volume), truth);
    // Where it cannot be written, it is counted each time.
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(told(&volume), truth);
}

#[test]
fn root_a_file_that_is_out_of_date_says_nothing_of_what_came_and_went() {
    let Some(mounted) = xfs() else { return };
    let volume = volume(&mounted.path());
    let path = volume.snapstore().join("held");
    let before = counted(&volume);
    let old = fs::read(&path).unwrap();
    // The daemon ends between a snapshot and the note of it.
    next(&volume, &volume.store(), 4);
    assert_eq!(fs::read(&path).unwrap(), old);
    let more = told(&volume);
    assert!(more > before, "{more}");
    assert_eq!(counted(&volume), more);
    // Neighbours are others when one goes, and another has the number of one that went.
    let store = volume.store();
    for number in [2, 4] {
        wait(store.delete_snapshot(SnapshotNumber(number))).unwrap();
    }
    next(&volume, &store, 4);
    drop(store);
    fs::write(&path, &old).unwrap();
    let now = told(&volume);
    assert_eq!(counted(&volume), now);
}

#[test]
fn root_a_copy_of_a_store_does_not_share_what_the_store_shared() {
    let Some(mounted) = xfs() else { return };
    let volume = volume(&mounted.path());
    let truth = told(&volume);
    let copy = Volume::new(&mounted.path(), Some(Mode::Reflink));
    for (from, to) in [(volume.origin(), copy.origin()), (volume.snapstore(), copy.snapstore())] {
        let copied = Command::new("cp").args(["-a", "--reflink=never"]).args([&from, &to]).status().unwrap();
        assert!(copied.success());
    }
    assert!(copy.snapstore().join("held").exists());
    let options = FileStoreOptions::default();
    let store = FileStore::open_or_create(copy.origin(), copy.snapstore(), options).unwrap();
    let used = wait(store.usage()).unwrap().used;
    drop(store);
    assert_eq!(counted(&copy), used);
    assert!(used > 2 * truth, "each image has blocks of its own: {used}, {truth}");
}
