//! What the file store promises beyond the suite: it is opened once, knows damage when it sees it, and serves readers whatever
//! else goes on.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
    sync::{Arc, Mutex},
};

use crate::common::{
    Done, Mounted, Volume, check_contents, content, expected, fill, layered, numbers, take, three, wait,
};
use zumastor_backends::{
    Faults, FileStore, FileStoreOptions, Making, Mode, OriginMust, VolumeSpec, conformance::Bytes,
    open_volume, plain_source, reopen_volume, store_id,
};
use zumastor_core::{
    HeadState, LEAF, Lineage, NewSnapshot, SEGMENT, SnapshotNumber, SnapshotStore, StoreError,
    digest::digest_of,
};
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

fn spec(volume: &Volume) -> VolumeSpec {
    VolumeSpec {
        name: "v".parse().unwrap(),
        origin: volume.origin(),
        snapstore: volume.snapstore(),
        metadev: None,
        chunk: None,
        notes: "/nowhere".into(),
    }
}

#[test]
fn the_kind_of_a_volume_is_seen() {
    let volume = layered();
    let open = |origin: &Path, must| {
        wait(open_volume(&VolumeSpec { origin: origin.to_owned(), ..spec(&volume) }, must, Making::default()))
    };
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
    let spec = VolumeSpec { metadev: Some("/dev/null".into()), ..spec(&volume) };
    let refused = wait(open_volume(&spec, OriginMust::MayBeAbsent, Making::default())).unwrap_err();
    assert!(refused.to_string().contains("metadata device"), "{refused}");
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
    let reopen = |id| wait(reopen_volume(&spec(&volume), id));
    assert_eq!(store_id(&volume.origin(), &volume.snapstore()).unwrap(), None);
    fs::create_dir(volume.snapstore()).unwrap();
    let refused = reopen(None).unwrap_err().to_string();
    assert!(refused.contains("no snapshot store") && refused.contains("mounted"), "{refused}");
    assert_eq!(fs::read_dir(volume.snapstore()).unwrap().count(), 0);
    take(&volume.store(), 0);
    let id = store_id(&volume.origin(), &volume.snapstore()).unwrap();
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
    let opened = wait(open_volume(&spec(&volume), OriginMust::MayBeAbsent, Making::default()));
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
