//! What the file store promises beyond the suite: safety against misuse, damage, crashes and full disks.

mod common;

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    path::Path,
    sync::{Arc, Mutex},
};

use common::{Done, Mounted, Volume, wait};
use zumastor_backends::{
    Faults, FileStore, FileStoreOptions, Mode, OriginMust,
    conformance::{Bytes, deliver, plan_for},
    open_volume, plain_source, reopen_volume, store_id,
};
use zumastor_core::{
    HeadState, LEAF, Lineage, NewSnapshot, SEGMENT, SegmentIndex, SnapshotNumber, SnapshotStore, StoreError,
    digest::{Hash, digest_of},
};

fn layered() -> Volume {
    Volume::new(&std::env::temp_dir(), Some(Mode::Layered))
}

fn fill(volume: &Volume, size: u64, writes: &[(u64, u64, u8)]) {
    let image = volume.image();
    image.set_len(size).unwrap();
    for (at, length, value) in writes {
        image.write_all_at(&vec![*value; *length as usize], *at).unwrap();
    }
}

fn take(store: &FileStore, number: u64) {
    wait(store.create_snapshot(NewSnapshot::manual(SnapshotNumber(number), Lineage::generate()))).unwrap();
}

fn content(store: &dyn SnapshotStore, number: u64) -> Vec<u8> {
    let reader = wait(store.open_snapshot(SnapshotNumber(number))).unwrap();
    let mut bytes = vec![0; reader.size() as usize];
    reader.read_at(0, &mut bytes).unwrap();
    bytes
}

fn numbers(store: &dyn SnapshotStore) -> Vec<u64> {
    wait(store.snapshots()).unwrap().iter().map(|record| record.number().0).collect()
}

#[test]
fn a_store_is_opened_once() {
    let volume = layered();
    let store = volume.store();
    let second = volume.store_with(Faults::none());
    assert!(matches!(&second, Err(StoreError::Unsupported(why)) if why.contains("in use")), "{second:?}");
    drop(store);
    volume.store();
}

#[test]
fn a_directory_of_something_else_is_refused_and_left_alone() {
    let volume = layered();
    fs::create_dir(volume.snapstore()).unwrap();
    fs::write(volume.snapstore().join("thesis.tex"), "x").unwrap();
    let refused = volume.store_with(Faults::none());
    assert!(
        matches!(&refused, Err(StoreError::Unsupported(why)) if why.contains("thesis.tex")),
        "{refused:?}"
    );
    assert_eq!(fs::read_dir(volume.snapstore()).unwrap().count(), 1);
    let absent = FileStore::open(volume.origin(), volume.dir.path().join("no"), FileStoreOptions::default());
    assert!(matches!(absent, Err(StoreError::Unsupported(_))));
}

#[test]
fn the_kind_of_a_volume_is_seen() {
    let volume = layered();
    let open = |origin: &Path, must| wait(open_volume(origin, &volume.snapstore(), must));
    let missing = open(&volume.origin(), OriginMust::Exist).unwrap_err();
    assert!(missing.to_string().contains("does not exist"), "{missing}");
    let directory = open(volume.dir.path(), OriginMust::MayBeAbsent).unwrap_err();
    assert!(directory.to_string().contains("no regular file"), "{directory}");
    let store = open(&volume.origin(), OriginMust::MayBeAbsent).unwrap();
    assert_eq!(wait(store.head()).unwrap(), HeadState::Empty);
    assert_eq!(store.geometry().unwrap().size, 0);
    assert_eq!(store.device(None), Some(fs::canonicalize(volume.dir.path()).unwrap().join("disk.img")));
    assert!(store.info().caution.is_some_and(|caution| caution.contains("whole volume")));
    drop(store);
    let device = fs::read_dir("/dev").unwrap().map(|entry| entry.unwrap().path()).find(|path| {
        fs::metadata(path).is_ok_and(|m| std::os::unix::fs::FileTypeExt::is_block_device(&m.file_type()))
    });
    if let Some(device) = device {
        let refused = open(&device, OriginMust::Exist).unwrap_err();
        assert!(refused.to_string().contains("block device"), "{refused}");
    }
}

/// A volume that was defined is never begun anew, however empty its place looks.
#[test]
fn only_a_definition_makes_a_store() {
    let volume = layered();
    fill(&volume, 100_000, &[(0, 100_000, 1)]);
    let reopen = |id| wait(reopen_volume(&volume.origin(), &volume.snapstore(), id));
    assert_eq!(store_id(&volume.snapstore()).unwrap(), None);
    fs::create_dir(volume.snapstore()).unwrap();
    let refused = reopen(None).unwrap_err().to_string();
    assert!(refused.contains("no snapshot store") && refused.contains("mounted"), "{refused}");
    assert_eq!(fs::read_dir(volume.snapstore()).unwrap().count(), 0);
    take(&volume.store(), 0);
    let id = store_id(&volume.snapstore()).unwrap();
    assert!(id.is_some());
    for id in [None, id] {
        assert_eq!(numbers(&*reopen(id).unwrap()), [0]);
    }
    let refused = reopen(Some(uuid::Uuid::now_v7())).unwrap_err().to_string();
    assert!(refused.contains("not the one"), "{refused}");
}

#[test]
fn an_origin_that_cannot_be_replaced_is_refused() {
    let volume = layered();
    std::os::unix::fs::symlink("nowhere", volume.origin()).unwrap();
    let refused = volume.store_with(Faults::none()).unwrap_err().to_string();
    assert!(refused.contains("is a link"), "{refused}");
    let opened = wait(open_volume(&volume.origin(), &volume.snapstore(), OriginMust::MayBeAbsent));
    assert!(opened.unwrap_err().to_string().contains("is a link"));
    let inside = volume.snapstore().join("disk.img");
    for origin in [volume.snapstore(), inside.clone()] {
        if origin == inside {
            fs::create_dir_all(volume.snapstore()).unwrap();
        }
        let refused = FileStore::open_or_create(origin, volume.snapstore(), FileStoreOptions::default());
        assert!(refused.unwrap_err().to_string().contains("lies in the snapshot store"));
    }
}

/// Files that are shorter than they should be, and descriptions that were altered, are named and never believed.
fn damage(volume: &Volume) {
    fill(volume, 400_000, &[(0, 300_000, 7)]);
    take(&volume.store(), 0);
    let root = volume.snapstore();
    let mut checked = 0;
    for dir in ["snapshots/0000000000", "data", "layers", "."] {
        let Ok(entries) = fs::read_dir(root.join(dir)) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
            if path.ends_with("lock") {
                continue;
            }
            let good = fs::read(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            OpenOptions::new().write(true).open(&path).unwrap().set_len(good.len() as u64 / 2).unwrap();
            let read = volume.store_with(Faults::none()).and_then(|store| {
                let reader = wait(store.open_snapshot(SnapshotNumber(0)))?;
                let mut bytes = vec![0; reader.size() as usize];
                reader.read_at(0, &mut bytes)?;
                wait(store.leaves(SnapshotNumber(0)))
            });
            match read {
                Err(StoreError::Damaged { path: named, .. }) => assert_eq!(named, path),
                // These can be had again from the others, or done without.
                Ok(_) => {
                    assert!(
                        path.ends_with("leaves") || path.ends_with("head"),
                        "{} is believed",
                        path.display()
                    );
                }
                Err(error) => panic!("{}: {error}", path.display()),
            }
            let _ = fs::remove_file(&path);
            fs::write(&path, good).unwrap();
            checked += 1;
        }
    }
    assert!(checked >= 3);
    assert_eq!(content(&volume.store(), 0)[299_999..300_001], [7, 0]);
}

#[test]
fn damage_is_named_in_layers() {
    damage(&layered());
}

#[test]
fn root_damage_is_named_in_clones() {
    let Some(mounted) = Mounted::make("xfs", 400) else { return };
    damage(&Volume::new(&mounted.path(), Some(Mode::Reflink)));
}

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

const SIZE: u64 = 500_000;

/// Snapshots 0, 1 and 2, each another fifth of the volume; the head shows 2.
fn three(place: &Path, mode: Mode) -> Volume {
    let volume = Volume::new(place, Some(mode));
    let store = volume.store();
    for number in 0..3 {
        fill(&volume, SIZE, &[(number * 100_000, 100_000, number as u8 + 1), (70_000 * number, 10, 9)]);
        take(&store, number);
        wait(store.leaves(SnapshotNumber(number))).unwrap();
    }
    volume
}

fn expected(number: u64) -> Bytes {
    let mut bytes = Bytes(vec![0; SIZE as usize]);
    for n in 0..=number {
        bytes.write(&(n * 100_000, 100_000, n as u8 + 1));
        bytes.write(&(70_000 * n, 10, 9));
    }
    bytes
}

fn check_contents(store: &FileStore, step: &str) {
    for record in wait(store.snapshots()).unwrap() {
        let number = record.number();
        if number.0 < 3 {
            let good = expected(number.0);
            assert!(content(store, number.0) == good.0, "snapshot {number} after a stop at {step}");
            assert_eq!(
                wait(store.leaves(number)).unwrap().digest(),
                Some(good.digest()),
                "{number} at {step}"
            );
        }
    }
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

/// One snapshot that cannot be read keeps nobody from the others, and nothing that it may need is given back.
#[test]
fn a_damaged_snapshot_does_not_take_the_others_along() {
    for file in ["snapshots/0000000001/record", "layers/0000000002"] {
        let volume = three(&std::env::temp_dir(), Mode::Layered);
        let path = volume.snapstore().join(file);
        let good = fs::read(&path).unwrap();
        fs::write(&path, &good[..good.len() / 2]).unwrap();
        let store = volume.store();
        let bad = if file.starts_with("layers") { 2 } else { 1 };
        assert_eq!(numbers(&store), [0, 3 - bad]);
        check_contents(&store, "damage");
        let read = wait(store.open_snapshot(SnapshotNumber(bad))).unwrap_err();
        assert!(matches!(&read, StoreError::Damaged { path: named, .. } if *named == path), "{read}");
        let taken =
            wait(store.create_snapshot(NewSnapshot::manual(SnapshotNumber(bad), Lineage::generate())));
        assert!(matches!(taken, Err(StoreError::Exists { .. })), "{taken:?}");
        wait(store.delete_snapshot(SnapshotNumber(0))).unwrap();
        take(&store, 3);
        assert!(content(&store, 3) == expected(2).0);
        drop(store);
        fs::write(&path, &good).unwrap();
        let store = volume.store();
        assert_eq!(numbers(&store), [1, 2, 3]);
        check_contents(&store, "what was damaged was restored");
    }
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

/// A chain of layers does not grow with the snapshots that were, only with those that are.
#[test]
fn many_snapshots_in_layers() {
    let place = Path::new("/dev/shm");
    let volume = Volume::new(if place.is_dir() { place } else { Path::new("/tmp") }, Some(Mode::Layered));
    let store = volume.store();
    let leaves = 40;
    let mut contents = Vec::new();
    let mut head = vec![0; (leaves * LEAF) as usize];
    for number in 0..300u64 {
        let at = number * 7 % leaves * LEAF;
        fill(&volume, leaves * LEAF, &[(at, 4096, number as u8 | 1)]);
        head[at as usize..][..4096].fill(number as u8 | 1);
        contents.push(head.clone());
        take(&store, number);
        if number >= 20 && number % 10 != 0 {
            wait(store.delete_snapshot(SnapshotNumber(number - 20))).unwrap();
        }
        let kept = numbers(&store).len();
        let layers = fs::read_dir(volume.snapstore().join("layers")).unwrap().count();
        let data = fs::read_dir(volume.snapstore().join("data")).unwrap().count();
        assert_eq!((layers, data), (kept, kept));
    }
    for number in numbers(&store) {
        assert!(content(&store, number) == contents[number as usize], "snapshot {number}");
    }
    for number in numbers(&store).into_iter().rev() {
        wait(store.delete_snapshot(SnapshotNumber(number))).unwrap();
    }
    assert_eq!(fs::read_dir(volume.snapstore().join("data")).unwrap().count(), 0);
}

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

/// A leaf that became zero stays zero, whichever of two layers is merged into the other.
#[test]
fn zeros_survive_merges() {
    for zeros in [1, 7] {
        let volume = layered();
        let size = 8 * LEAF;
        fill(&volume, size, &[(0, size, 1)]);
        let store = volume.store();
        take(&store, 0);
        fill(&volume, size, &[(0, zeros * LEAF, 0), (7 * LEAF, 10, 2)]);
        take(&store, 1);
        fill(&volume, size, &[(0, 10, 3)]);
        take(&store, 2);
        let before = [content(&store, 1), content(&store, 2)];
        wait(store.delete_snapshot(SnapshotNumber(0))).unwrap();
        assert!(before == [content(&store, 1), content(&store, 2)]);
        wait(store.delete_snapshot(SnapshotNumber(1))).unwrap();
        assert!(before[1] == content(&store, 2));
        assert_eq!(fs::read_dir(volume.snapstore().join("data")).unwrap().count(), 1);
    }
}

/// Readers, snapshots and deletions at once: whoever opened a snapshot reads that snapshot, whatever is merged.
#[test]
fn readers_are_not_disturbed_by_merges() {
    let place = Path::new("/dev/shm");
    let volume = Volume::new(if place.is_dir() { place } else { Path::new("/tmp") }, Some(Mode::Layered));
    let leaves = 24;
    fill(&volume, leaves * LEAF, &[(0, leaves * LEAF, 1)]);
    let store = volume.store();
    let known = Mutex::new(std::collections::BTreeMap::<u64, Arc<Vec<u8>>>::new());
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..3usize {
            let (known, store, stop) = (&known, &store, &stop);
            scope.spawn(move || {
                let mut open = std::collections::VecDeque::new();
                for turn in thread.. {
                    if stop.load(std::sync::atomic::Ordering::Relaxed) {
                        return;
                    }
                    let picked = {
                        let known = known.lock().unwrap();
                        known.iter().nth(turn * 7 % known.len().max(1)).map(|(n, bytes)| (*n, bytes.clone()))
                    };
                    let Some((number, bytes)) = picked else { continue };
                    match wait(store.open_snapshot(SnapshotNumber(number))) {
                        Ok(reader) => open.push_back((number, reader, bytes)),
                        Err(StoreError::NotFound { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                    for (number, reader, bytes) in &open {
                        let mut found = vec![0; bytes.len()];
                        reader.read_at(0, &mut found).unwrap();
                        assert!(found == **bytes, "snapshot {number}");
                    }
                    if open.len() > 6 {
                        open.pop_front();
                    }
                }
            });
        }
        let _done = Done(&stop);
        let mut head = fs::read(volume.origin()).unwrap();
        for number in 0..150u64 {
            for write in 0..3 {
                let at = (number * 11 + write * 5) % leaves * LEAF + number;
                volume.image().write_all_at(&[number as u8; 500], at).unwrap();
                head[at as usize..][..500].fill(number as u8);
            }
            take(&store, number);
            known.lock().unwrap().insert(number, Arc::new(head.clone()));
            if number > 8 {
                let gone = *known.lock().unwrap().keys().nth(number as usize * 5 % 8).unwrap();
                known.lock().unwrap().remove(&gone);
                wait(store.delete_snapshot(SnapshotNumber(gone))).unwrap();
            }
        }
    });
    for (number, bytes) in known.lock().unwrap().iter() {
        assert!(content(&store, *number) == **bytes);
    }
    // What had to wait for a reader is done with the next change.
    take(&store, 1000);
    wait(store.delete_snapshot(SnapshotNumber(1000))).unwrap();
    let layers = fs::read_dir(volume.snapstore().join("layers")).unwrap().count();
    assert_eq!(layers, numbers(&store).len());
}

#[test]
fn plain_files_have_the_digest_of_their_content() {
    let volume = layered();
    fill(&volume, 3 * SEGMENT / 2 + 5, &[(70_000, 100_000, 3), (SEGMENT, 9, 1)]);
    let bytes = Bytes(fs::read(volume.origin()).unwrap());
    assert_eq!(digest_of(&plain_source(&volume.origin()).unwrap(), None).unwrap(), bytes.digest());
    assert!(plain_source(volume.dir.path()).is_err());
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
