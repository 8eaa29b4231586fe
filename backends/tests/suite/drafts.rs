//! What is made before it is needed: the next head, of what comes in of a first full copy; the clone that the next
//! transfer begins with.

use std::{fs, path::PathBuf};

use crate::common::{Mounted, Volume, wait};
use zumastor_backends::{
    FileStore, Mode,
    conformance::{Bytes, deliver, plan_for},
};
use zumastor_core::{LEAF, Lineage, SegmentIndex, SnapshotNumber, SnapshotStore, Staging};

const SIZE: u64 = 10 * LEAF + 5000;

fn content() -> Bytes {
    let mut bytes = vec![0; SIZE as usize];
    for (at, byte) in bytes.iter_mut().enumerate().filter(|(at, _)| (at / LEAF as usize) % 3 != 1) {
        *byte = (at / 1000 + 1) as u8;
    }
    Bytes(bytes)
}

fn draft(volume: &Volume) -> Option<PathBuf> {
    let mut entries = fs::read_dir(volume.dir.path()).unwrap().map(|entry| entry.unwrap().path());
    entries.find(|path| path.to_string_lossy().contains("/.disk.img.zumastor-draft-"))
}

/// Stages everything.
fn staged(store: &FileStore, content: &Bytes) -> Box<dyn Staging> {
    let plan = plan_for(SnapshotNumber(3), Lineage::generate(), None, content);
    let staging = wait(store.stage(plan)).unwrap();
    let nothing = Bytes(vec![0; SIZE as usize]);
    let leaves = deliver(&*staging, &nothing, content, 0..SIZE).unwrap();
    staging.checkpoint(&leaves, &[SegmentIndex(0)]).unwrap();
    staging
}

fn volume() -> Volume {
    Volume::new(&std::env::temp_dir(), Some(Mode::Layered))
}

#[test]
fn the_draft_becomes_the_head() {
    let (volume, content) = (volume(), content());
    let store = volume.store();
    staged(&store, &content).commit(content.digest()).unwrap();
    let made = fs::read(draft(&volume).unwrap()).unwrap();
    assert!(made == content.0);
    assert!(!volume.origin().exists());
    wait(store.show(SnapshotNumber(3))).unwrap();
    assert!(draft(&volume).is_none());
    assert!(fs::read(volume.origin()).unwrap() == content.0);
}

#[test]
fn whatever_is_written_last_is_in_the_draft() {
    let (volume, content) = (volume(), content());
    let store = volume.store();
    let staging = staged(&store, &content);
    let leaf = |number: u64| &content.0[(number * LEAF) as usize..][..LEAF as usize];
    // All of a leaf, across two of them, and what was zero and becomes so again.
    staging.write_at(2 * LEAF, &vec![9; LEAF as usize]).unwrap();
    staging.write_at(2 * LEAF, leaf(2)).unwrap();
    staging.write_at(6 * LEAF - 5000, &[9; 10_000]).unwrap();
    staging.zero(6 * LEAF - 4096..6 * LEAF + 4096).unwrap();
    staging.write_at(5 * LEAF, leaf(5)).unwrap();
    staging.write_at(6 * LEAF, leaf(6)).unwrap();
    staging.write_at(4 * LEAF + 100, &[9; 9000]).unwrap();
    staging.zero(4 * LEAF..5 * LEAF).unwrap();
    staging.commit(content.digest()).unwrap();
    assert!(fs::read(draft(&volume).unwrap()).unwrap() == content.0);
    wait(store.show(SnapshotNumber(3))).unwrap();
    assert!(draft(&volume).is_none());
    assert!(fs::read(volume.origin()).unwrap() == content.0);
}

#[test]
fn a_draft_goes_with_what_it_is_made_of() {
    let (volume, content) = (volume(), content());
    let store = volume.store();
    let staging = staged(&store, &content);
    assert!(draft(&volume).is_some());
    // Whoever was stopped may still be at it: that is another draft, and he may not write to it any more.
    let plan = wait(store.staged()).unwrap().unwrap();
    let second = wait(store.stage(plan)).unwrap();
    let mut leaf = vec![0; LEAF as usize];
    assert!(staging.read_back(0, &mut leaf).is_err());
    assert!(staging.write_at(0, &leaf).is_err());
    second.read_back(0, &mut leaf).unwrap();
    drop(staging);
    assert!(draft(&volume).is_some());
    drop(second);
    assert!(draft(&volume).is_none());
    // Taken up again, but not read back again.
    let plan = wait(store.staged()).unwrap().unwrap();
    wait(store.stage(plan)).unwrap().commit(content.digest()).unwrap();
    wait(store.show(SnapshotNumber(3))).unwrap();
    assert!(fs::read(volume.origin()).unwrap() == content.0);
}

#[test]
fn a_draft_that_a_crash_left_goes_at_the_next_start() {
    let volume = volume();
    drop(volume.store());
    fs::write(volume.dir.path().join(".disk.img.zumastor-draft-0"), [1; 5000]).unwrap();
    assert!(draft(&volume).is_some());
    let _store = volume.store();
    assert_eq!(draft(&volume), None);
}

#[test]
fn what_an_earlier_run_has_staged_is_in_the_draft_when_it_was_read_back() {
    for missing in [None, Some(2)] {
        let (volume, content) = (volume(), content());
        let store = volume.store();
        drop(staged(&store, &content));
        let plan = wait(store.staged()).unwrap().unwrap();
        let staging = wait(store.stage(plan)).unwrap();
        let leaf = |number: u64| number * LEAF..((number + 1) * LEAF).min(SIZE);
        // One leaf is written anew and one in part, before the others are read back; zeros need not be.
        staging.write_at(0, &content.0[..LEAF as usize]).unwrap();
        let part = leaf(5).start as usize + 4096..leaf(5).start as usize + 8192;
        staging.write_at(part.start as u64, &content.0[part]).unwrap();
        for number in [2, 3, 5, 6, 8, 9].into_iter().filter(|number| missing != Some(*number)) {
            let mut bytes = vec![0; LEAF as usize];
            staging.read_back(leaf(number).start, &mut bytes).unwrap();
        }
        staging.commit(content.digest()).unwrap();
        assert_eq!(draft(&volume).is_some(), missing.is_none());
        wait(store.show(SnapshotNumber(3))).unwrap();
        assert!(fs::read(volume.origin()).unwrap() == content.0);
    }
}

/// The clones that wait for a transfer.
fn ready(volume: &Volume) -> Vec<PathBuf> {
    let entries = fs::read_dir(volume.snapstore().join("tmp")).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.to_string_lossy().contains("/ready-")).collect()
}

#[test]
fn root_the_next_transfer_finds_a_clone_of_its_base() {
    let Some(mounted) = Mounted::make("xfs", 300) else { return };
    let volume = Volume::new(&mounted.path(), Some(Mode::Reflink));
    let store = volume.store();
    let (lineage, mut before, mut base) = (Lineage::generate(), Bytes(vec![0; SIZE as usize]), None);
    for number in (0..4).map(SnapshotNumber) {
        let mut after = before.clone();
        after.0[number.0 as usize * LEAF as usize..][..70_000].fill(number.0 as u8 + 1);
        let staging = wait(store.stage(plan_for(number, lineage, base, &after))).unwrap();
        assert_eq!(ready(&volume), Vec::<PathBuf>::new());
        let leaves = deliver(&*staging, &before, &after, 0..SIZE).unwrap();
        staging.checkpoint(&leaves, &[SegmentIndex(0)]).unwrap();
        staging.commit(after.digest()).unwrap();
        wait(store.show(number)).unwrap();
        assert!(fs::read(volume.origin()).unwrap() == after.0);
        // The first was not cloned, so nothing is known of how long it takes.
        while number.0 > 0 && ready(&volume).is_empty() {
            std::thread::yield_now();
        }
        (before, base) = (after, Some(number));
    }
    wait(store.delete_snapshot(SnapshotNumber(3))).unwrap();
    assert_eq!(ready(&volume), Vec::<PathBuf>::new());
}
