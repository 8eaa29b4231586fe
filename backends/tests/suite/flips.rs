//! Flips: the volume shows another snapshot in one step, and nobody loses what he wrote.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    sync::{Arc, Mutex},
};

use crate::common::{Mounted, SIZE, Volume, content, expected, fill, layered, take, three, wait};
use zumastor_backends::{Faults, FileStore, FileStoreOptions, Mode};
use zumastor_core::{HeadState, SnapshotNumber, SnapshotStore, StoreError};

/// The identity of a file: with the time of its birth, because numbers are used again.
fn identity(path: &Path) -> (u64, Option<std::time::SystemTime>) {
    let metadata = fs::metadata(path).unwrap();
    (metadata.ino(), metadata.created().ok())
}

fn alternate(volume: &Volume) -> std::path::PathBuf {
    volume.dir.path().join(".disk.img.zumastor-alt")
}

/// The files that were renamed because somebody wrote to them.
fn kept_aside(volume: &Volume) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(volume.dir.path()).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.to_string_lossy().contains(".disk.img.zumastor-kept-")).collect()
}

/// The second file of a flip is brought up to date, unless somebody still has it open.
#[test]
fn a_flip_costs_what_changed_and_disturbs_nobody() {
    let volume = three(&std::env::temp_dir(), Mode::Layered);
    let store = volume.store();
    let flip = |n| wait(store.revert(SnapshotNumber(n))).unwrap();
    flip(0);
    flip(1);
    let old = identity(&alternate(&volume));
    flip(2);
    assert_eq!(identity(&volume.origin()), old, "the alternate was not used");
    assert!(fs::read(volume.origin()).unwrap() == expected(2).0);
    // Whoever opened the head before reads on what it was, however often it is flipped.
    let reader = fs::File::open(volume.origin()).unwrap();
    flip(1);
    flip(0);
    flip(1);
    let mut bytes = vec![0; SIZE as usize];
    reader.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == expected(2).0, "a reader saw the head change");
    // Any later write changes the time, however soon it comes.
    let shown = fs::metadata(volume.origin()).unwrap().modified().unwrap();
    assert!(shown.elapsed().is_ok_and(|age| age > std::time::Duration::from_millis(900)));
    // A head that was written is not kept as if it were the snapshot.
    volume.image().write_all_at(b"mine", 1000).unwrap();
    assert_eq!(wait(store.head()).unwrap(), HeadState::Written);
    for number in [2, 0, 1, 2] {
        flip(number);
        assert!(fs::read(volume.origin()).unwrap() == expected(number).0, "flip to {number}");
    }
    // Nor is an alternate that somebody wrote to, and what was written is not removed.
    assert!(kept_aside(&volume).is_empty());
    let written = OpenOptions::new().write(true).open(alternate(&volume));
    written.unwrap().write_all_at(b"mine", 400_000).unwrap();
    flip(0);
    assert!(fs::read(volume.origin()).unwrap() == expected(0).0);
    assert_eq!(fs::read(&kept_aside(&volume)[0]).unwrap()[400_000..400_004], *b"mine");
}

/// A second name that somebody gave to the volume's file holds what it held then.
#[test]
fn a_flip_leaves_links_to_the_volume_alone() {
    let volume = three(&std::env::temp_dir(), Mode::Layered);
    let store = volume.store();
    let flip = |n| wait(store.show(SnapshotNumber(n))).unwrap();
    flip(0);
    let link = volume.dir.path().join("mine");
    fs::hard_link(volume.origin(), &link).unwrap();
    for number in [1, 2, 1] {
        flip(number);
        assert!(fs::read(&link).unwrap() == expected(0).0, "a link saw the flip to {number}");
        assert!(fs::read(volume.origin()).unwrap() == expected(number).0);
    }
}

/// A power cut can leave what was written and take the time of the writing.
fn a_restart_is_no_proof(place: &Path, mode: Mode) {
    let volume = three(place, mode);
    let open = |boot: &str| {
        let options =
            FileStoreOptions { mode: Some(mode), boot: Some(boot.into()), ..FileStoreOptions::default() };
        FileStore::open_or_create(volume.origin(), volume.snapstore(), options).unwrap()
    };
    let store = open("first");
    for number in [0, 1, 2] {
        wait(store.revert(SnapshotNumber(number))).unwrap();
    }
    drop(store);
    // Nothing was written: that is found out once.
    let store = open("second");
    assert_eq!(wait(store.head()).unwrap(), HeadState::Shows(SnapshotNumber(2)));
    drop(store);
    let marked = fs::read(volume.snapstore().join("head")).unwrap();
    assert!(marked.windows(6).any(|bytes| bytes == b"second"), "would be compared each time");
    // An alternate of before the restart is not built upon.
    let was = mode == Mode::Layered && alternate(&volume).exists();
    let unnoticed = |path: &Path| {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        let time = file.metadata().unwrap().modified().unwrap();
        file.write_all_at(b"mine", 450_000).unwrap();
        file.set_times(fs::FileTimes::new().set_modified(time)).unwrap();
    };
    if was {
        unnoticed(&alternate(&volume));
        let store = open("third");
        wait(store.show(SnapshotNumber(1))).unwrap();
        assert!(fs::read(volume.origin()).unwrap() == expected(1).0);
        drop(store);
    }
    assert_eq!(was, mode == Mode::Layered);
    unnoticed(&volume.origin());
    let store = open("fourth");
    assert_eq!(wait(store.head()).unwrap(), HeadState::Written);
    let refused = wait(store.show(SnapshotNumber(0)));
    assert!(matches!(refused, Err(StoreError::HeadWritten { .. })), "{refused:?}");
    assert_eq!(fs::read(volume.origin()).unwrap()[450_000..450_004], *b"mine");
    wait(store.revert(SnapshotNumber(0))).unwrap();
    assert_eq!(wait(store.head()).unwrap(), HeadState::Shows(SnapshotNumber(0)));
}

#[test]
fn a_restart_is_no_proof_in_layers() {
    a_restart_is_no_proof(&std::env::temp_dir(), Mode::Layered);
}

#[test]
fn root_a_restart_is_no_proof_on_xfs() {
    let Some(mounted) = Mounted::make("xfs", 400) else { return };
    a_restart_is_no_proof(&mounted.path(), Mode::Reflink);
}

#[test]
fn root_a_restart_is_no_proof_on_btrfs() {
    let Some(mounted) = Mounted::make("btrfs", 400) else { return };
    a_restart_is_no_proof(&mounted.path(), Mode::Reflink);
}

/// Who has the volume open for writing would write to a file that is no longer the volume.
fn no_flip_under_a_writer(place: &Path, mode: Mode) {
    let volume = three(place, mode);
    let mut store = volume.store();
    wait(store.revert(SnapshotNumber(0))).unwrap();
    let writer = volume.image();
    let refused = wait(store.show(SnapshotNumber(1)));
    assert!(
        matches!(&refused, Err(StoreError::HeadBusy { path }) if path.ends_with("disk.img")),
        "{refused:?}"
    );
    assert_eq!(wait(store.head()).unwrap(), HeadState::Shows(SnapshotNumber(0)));
    drop(writer);
    wait(store.show(SnapshotNumber(1))).unwrap();
    drop(store);
    // Also one who comes while the flip is being prepared.
    let (place, late) = (volume.origin(), Mutex::new(None));
    let late = Arc::new(late);
    let opened = late.clone();
    store = volume
        .store_with(Faults::new(move |step| {
            if step == "flip: after marking" {
                *opened.lock().unwrap() = Some(OpenOptions::new().write(true).open(&place).unwrap());
            }
            false
        }))
        .unwrap();
    let refused = wait(store.show(SnapshotNumber(2)));
    assert!(matches!(refused, Err(StoreError::HeadBusy { .. })), "{refused:?}");
    late.lock().unwrap().take().unwrap().write_all_at(b"mine", 5).unwrap();
    assert_eq!(fs::read(volume.origin()).unwrap()[5..9], *b"mine");
    let refused = wait(store.show(SnapshotNumber(2)));
    assert!(matches!(refused, Err(StoreError::HeadWritten { .. })), "{refused:?}");
}

#[test]
fn a_volume_that_is_open_for_writing_is_not_flipped() {
    no_flip_under_a_writer(&std::env::temp_dir(), Mode::Layered);
}

#[test]
fn root_a_volume_that_is_open_for_writing_is_not_flipped_on_xfs() {
    let Some(mounted) = Mounted::make("xfs", 400) else { return };
    no_flip_under_a_writer(&mounted.path(), Mode::Reflink);
}

/// A replica that keeps only its newest snapshots still flips by what changed.
#[test]
fn the_alternate_outlives_its_snapshot() {
    let volume = three(&std::env::temp_dir(), Mode::Layered);
    let store = volume.store();
    let flip = |n| wait(store.revert(SnapshotNumber(n))).unwrap();
    flip(0);
    flip(1);
    let alternate = alternate(&volume);
    let old = identity(&alternate);
    wait(store.delete_snapshot(SnapshotNumber(0))).unwrap();
    assert!(fs::read(&alternate).unwrap() == expected(1).0, "the alternate was not brought forward");
    flip(2);
    assert_eq!(identity(&volume.origin()), old, "the alternate was not used");
    assert!(fs::read(volume.origin()).unwrap() == expected(2).0);
}

#[test]
fn the_next_flip_is_prepared_while_nobody_waits() {
    let volume = layered();
    fill(&volume, SIZE, &[(0, 300_000, 1)]);
    let options = || FileStoreOptions { prepare: Some(1), ..FileStoreOptions::default() };
    let open = || FileStore::open_or_create(volume.origin(), volume.snapstore(), options()).unwrap();
    let store = open();
    take(&store, 0);
    let alternate = volume.origin().with_file_name(".disk.img.zumastor-alt");
    wait(store.show(SnapshotNumber(0))).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !alternate.exists() {
        assert!(std::time::Instant::now() < deadline, "nothing was prepared");
        std::thread::yield_now();
    }
    assert!(fs::read(&alternate).unwrap() == fs::read(volume.origin()).unwrap());
    let prepared = fs::metadata(&alternate).unwrap().ino();
    fill(&volume, SIZE, &[(0, 300_000, 1), (100_000, 5000, 9)]);
    take(&store, 1);
    wait(store.show(SnapshotNumber(1))).unwrap();
    assert_eq!(fs::metadata(volume.origin()).unwrap().ino(), prepared, "the volume was copied instead");
    assert!(content(&store, 1) == fs::read(volume.origin()).unwrap());
    // What a store that was closed too soon leaves is removed.
    drop(store);
    let left = volume.origin().with_file_name(".disk.img.zumastor-next");
    fs::write(&left, "half").unwrap();
    let store = open();
    assert!(!left.exists());
    assert_eq!(wait(store.head()).unwrap(), HeadState::Shows(SnapshotNumber(1)));
}
