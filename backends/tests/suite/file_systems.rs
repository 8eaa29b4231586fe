//! What depends on the file system: which blocks are shared, what a moment is, holes, and what happens when it is full.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::common::{Done, Mounted, Volume, wait};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use zumastor_backends::{
    Faults, FileStore, Mode,
    conformance::{Bytes, deliver, plan_for},
};
use zumastor_core::{
    Extent, ExtentKind, HeadState, LEAF, LeafIndex, Lineage, NewSnapshot, PAGE, SEGMENT, SegmentIndex,
    SnapshotNumber, SnapshotStore, StoreError,
    digest::{Hash, digest_of},
    is_zero,
};

fn take(store: &FileStore, number: u64) -> Result<(), StoreError> {
    wait(store.create_snapshot(NewSnapshot::manual(SnapshotNumber(number), Lineage::generate()))).map(drop)
}

fn exact_changes(place: &Path) {
    let volume = Volume::new(place, None);
    let size = 256 << 20;
    let image = volume.image();
    let mut random = SmallRng::seed_from_u64(1);
    let mut block = vec![0; 1 << 20];
    for at in (0..size).step_by(1 << 20) {
        random.fill(&mut block[..]);
        image.write_all_at(&block, at).unwrap();
    }
    let store = volume.store();
    assert_eq!(store.mode(), Mode::Reflink);
    let begun = Instant::now();
    take(&store, 0).unwrap();
    let mut pages = BTreeSet::new();
    for _ in 0..2000 {
        let page = random.random_range(0..size / PAGE);
        random.fill(&mut block[..PAGE as usize]);
        image.write_all_at(&block[..PAGE as usize], page * PAGE).unwrap();
        pages.insert(page);
    }
    take(&store, 1).unwrap();
    let taken = begun.elapsed();
    let begun = Instant::now();
    let changes = wait(store.changes(Some(SnapshotNumber(0)), SnapshotNumber(1), 0..size)).unwrap();
    let listed = begun.elapsed();
    let mut found = BTreeSet::new();
    for Extent { range, kind } in &changes {
        assert_eq!((*kind, range.start % PAGE, range.end % PAGE), (ExtentKind::Data, 0, 0));
        found.extend(range.start / PAGE..range.end / PAGE);
    }
    assert!(found == pages, "missing {:?}, extra {:?}", pages.difference(&found), found.difference(&pages));
    // In windows, the same.
    let mut windows = BTreeSet::new();
    for start in (0..size).step_by(SEGMENT as usize) {
        let part =
            wait(store.changes(Some(SnapshotNumber(0)), SnapshotNumber(1), start..start + SEGMENT)).unwrap();
        part.iter().for_each(|extent| windows.extend(extent.range.start / PAGE..extent.range.end / PAGE));
    }
    assert_eq!(windows, pages);
    wait(store.leaves(SnapshotNumber(0))).unwrap();
    let begun = Instant::now();
    let tree = wait(store.leaves(SnapshotNumber(1))).unwrap();
    eprintln!("snapshots {taken:?}, changes {listed:?}, leaves of the second {:?}", begun.elapsed());
    let scratch = digest_of(&zumastor_backends::plain_source(&volume.origin()).unwrap(), None).unwrap();
    assert_eq!(tree.digest(), Some(scratch));
}

#[test]
fn root_changes_are_exactly_the_pages_on_xfs() {
    let Some(mounted) = Mounted::make("xfs", 1000) else { return };
    exact_changes(&mounted.path());
}

#[test]
fn root_changes_are_exactly_the_pages_on_btrfs() {
    let Some(mounted) = Mounted::make("btrfs", 1000) else { return };
    exact_changes(&mounted.path());
}

/// On btrfs with compression nothing is equal by address, and nothing may be missed.
#[test]
fn root_compressed_changes_are_not_missed() {
    let Some(mounted) = Mounted::make("btrfs", 400) else { return };
    let mut remount = std::process::Command::new("mount");
    remount.args(["-o", "remount,compress-force=zstd"]).arg(mounted.path());
    assert!(remount.status().unwrap().success());
    let volume = Volume::new(&mounted.path(), Some(Mode::Reflink));
    let image = volume.image();
    let text: Vec<u8> = (0..4 << 20).map(|i: u32| (i / 100) as u8).collect();
    image.write_all_at(&text, 0).unwrap();
    let store = volume.store();
    take(&store, 0).unwrap();
    for at in [5000, 131_072, 1_000_000] {
        image.write_all_at(b"changed", at).unwrap();
    }
    take(&store, 1).unwrap();
    let changes = wait(store.changes(Some(SnapshotNumber(0)), SnapshotNumber(1), 0..u64::MAX)).unwrap();
    for at in [5000, 131_072, 1_000_000] {
        assert!(changes.iter().any(|extent| extent.range.contains(&at)), "byte {at} is not listed");
    }
    // A part of a compressed extent put elsewhere: the address that the file system reports is that of the extent's
    // beginning, so it is the same as before.
    let (mut from, mut to) = (LEAF + (2 << 20), 2 << 20);
    rustix::fs::copy_file_range(&image, Some(&mut from), &image, Some(&mut to), LEAF as usize).unwrap();
    take(&store, 2).unwrap();
    let moved = wait(store.changes(Some(SnapshotNumber(1)), SnapshotNumber(2), 0..u64::MAX)).unwrap();
    assert!(
        moved.iter().any(|extent| extent.range.contains(&(2 << 20))),
        "what was moved is not listed: {moved:?}"
    );
    let tree = wait(store.leaves(SnapshotNumber(2))).unwrap();
    assert_eq!(tree.digest(), Some(Bytes(fs::read(volume.origin()).unwrap()).digest()));
    wait(store.leaves(SnapshotNumber(0))).unwrap();
    wait(store.revert(SnapshotNumber(1))).unwrap();
    let tree = wait(store.leaves(SnapshotNumber(1))).unwrap();
    assert_eq!(tree.digest(), Some(Bytes(fs::read(volume.origin()).unwrap()).digest()));
}

/// Images without copy-on-write are usual on btrfs, and share blocks only with their like.
#[test]
fn root_images_without_copy_on_write_are_cloned() {
    let Some(mounted) = Mounted::make("btrfs", 400) else { return };
    let volume = Volume::new(&mounted.path(), None);
    let file = volume.image();
    let mut flags = rustix::fs::ioctl_getflags(&file).unwrap();
    flags.insert(rustix::fs::IFlags::NOCOW);
    rustix::fs::ioctl_setflags(&file, flags).unwrap();
    file.write_all_at(&[7; 100_000], 0).unwrap();
    let store = volume.store();
    assert_eq!(store.mode(), Mode::Reflink);
    take(&store, 0).unwrap();
    file.write_all_at(&[8; 4096], 8192).unwrap();
    take(&store, 1).unwrap();
    let changes = wait(store.changes(Some(SnapshotNumber(0)), SnapshotNumber(1), 0..u64::MAX)).unwrap();
    assert_eq!(changes.iter().cloned().collect::<Vec<_>>(), [Extent::data(8192..12_288)]);
    wait(store.revert(SnapshotNumber(0))).unwrap();
    assert!(fs::read(volume.origin()).unwrap() == vec![7; 100_000]);
}

/// Snapshots count for what they hold and the next does not, not for the size of the volume each.
#[test]
fn root_usage_counts_what_is_not_shared() {
    let Some(mounted) = Mounted::make("xfs", 400) else { return };
    let volume = Volume::new(&mounted.path(), None);
    volume.image().write_all_at(&vec![7; 32 << 20], 0).unwrap();
    let store = volume.store();
    for number in 0..3 {
        take(&store, number).unwrap();
        volume.image().write_all_at(&vec![8; 1 << 20], number << 20).unwrap();
        let usage = wait(store.usage()).unwrap();
        assert_eq!(usage.used, number << 20, "after snapshot {number}");
        assert!(wait(store.free()).unwrap().abs_diff(usage.free) < 8 << 20);
    }
    wait(store.delete_snapshot(SnapshotNumber(1))).unwrap();
    assert_eq!(wait(store.usage()).unwrap().used, 2 << 20);
    wait(store.delete_snapshot(SnapshotNumber(0))).unwrap();
    assert_eq!(wait(store.usage()).unwrap().used, 0);
}

/// A volume on a full disk is within reach, also after a restart.
fn opened_when_full(mounted: &Mounted) {
    let volume = Volume::new(&mounted.path(), None);
    volume.image().write_all_at(&vec![7; 1 << 20], 0).unwrap();
    take(&volume.store(), 0).unwrap();
    let place = mounted.path();
    let ballast = fill_up(&place, 0);
    // To the last byte, and the last entry of a directory.
    let file = fs::File::options().write(true).open(&ballast).unwrap();
    for block in [1 << 20, 4096, 1] {
        let mut at = file.metadata().unwrap().len();
        while file.write_all_at(&vec![1; block], at).is_ok() && file.sync_data().is_ok() {
            at += block as u64;
        }
    }
    for turn in 0..4000 {
        if fs::write(place.join(format!("crumb-{turn}")), [1; 4096]).is_err() {
            break;
        }
    }
    let store = volume.store();
    let reader = wait(store.open_snapshot(SnapshotNumber(0))).unwrap();
    let mut bytes = vec![0; 1 << 20];
    reader.read_at(0, &mut bytes).unwrap();
    assert!(bytes == vec![7; 1 << 20]);
}

#[test]
fn root_a_volume_on_a_full_disk_is_opened_on_xfs() {
    let Some(mounted) = Mounted::make("xfs", 400) else { return };
    opened_when_full(&mounted);
}

#[test]
fn root_a_volume_on_a_full_disk_is_opened_on_ext4() {
    let Some(mounted) = Mounted::make("ext4", 60) else { return };
    opened_when_full(&mounted);
}

const FAR: u64 = 48 << 20;

/// Runs `work` while somebody counts up at two places, first at one, then at the other.
fn while_counting(volume: &Volume, pause: Duration, work: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    let image = volume.image();
    image.set_len(FAR + PAGE).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            for count in 1u64.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                image.write_all_at(&count.to_le_bytes(), 0).unwrap();
                image.write_all_at(&count.to_le_bytes(), FAR).unwrap();
                if !pause.is_zero() {
                    thread::sleep(pause);
                }
            }
        });
        let _done = Done(&stop);
        work();
    });
}

fn check_moment(store: &FileStore, number: u64) -> u64 {
    let reader = wait(store.open_snapshot(SnapshotNumber(number))).unwrap();
    let read = |at| {
        let mut bytes = [0; 8];
        reader.read_at(at, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    };
    let (first, second) = (read(0), read(FAR));
    assert!(first >= second && first - second <= 1, "a mix of moments: {first} and {second}");
    first
}

fn one_moment(place: &Path) {
    let volume = Volume::new(place, None);
    volume.image().set_len(FAR + PAGE).unwrap();
    let store = volume.store();
    let mut counts = BTreeSet::new();
    while_counting(&volume, Duration::ZERO, || {
        for number in 0..60 {
            take(&store, number).unwrap();
            let taken = check_moment(&store, number);
            counts.insert(taken);
            let mut now = [0; 8];
            volume.image().read_exact_at(&mut now, 0).unwrap();
            // Nobody can vouch for a head that was written.
            if u64::from_le_bytes(now) > taken {
                assert_eq!(wait(store.head()).unwrap(), HeadState::Written);
            }
        }
    });
    assert!(counts.len() > 20, "the writer hardly wrote: {counts:?}");
}

#[test]
fn root_a_snapshot_is_of_one_moment_on_xfs() {
    let Some(mounted) = Mounted::make("xfs", 1000) else { return };
    one_moment(&mounted.path());
}

#[test]
fn root_a_snapshot_is_of_one_moment_on_btrfs() {
    let Some(mounted) = Mounted::make("btrfs", 1000) else { return };
    one_moment(&mounted.path());
}

/// A copy is refused while somebody writes. With pauses it may succeed, and then it is no mix.
#[test]
fn layers_are_never_of_two_moments() {
    let volume = Volume::new(&std::env::temp_dir(), Some(Mode::Layered));
    volume.image().set_len(FAR + PAGE).unwrap();
    volume.image().write_all_at(&vec![7; 40 << 20], 1 << 20).unwrap();
    let store = volume.store();
    while_counting(&volume, Duration::ZERO, || {
        let refused = take(&store, 0);
        assert!(matches!(refused, Err(StoreError::OriginBusy { .. })), "{refused:?}");
    });
    assert!(wait(store.snapshots()).unwrap().is_empty());
    for pause in [30, 60, 120] {
        while_counting(&volume, Duration::from_millis(pause), || {
            if take(&store, pause).is_ok() {
                check_moment(&store, pause);
            }
        });
    }
    take(&store, 1).unwrap();
    check_moment(&store, 1);
}

/// A write in the middle of the copying is noticed: the snapshot is of after it, or there is none.
#[test]
fn a_write_during_the_copying_is_noticed() {
    for writes in [1, 2, 3, 9] {
        let volume = Volume::new(&std::env::temp_dir(), Some(Mode::Layered));
        let image = volume.image();
        image.set_len(1 << 20).unwrap();
        let mut turn = 0;
        let store = volume.store_with(Faults::new(move |step| {
            if step == "create: before reading" && turn < writes {
                turn += 1;
                image.write_all_at(&[turn; 8192], 70_000).unwrap();
            }
            false
        }));
        let store = store.unwrap();
        let taken = take(&store, 0);
        if writes < 3 {
            taken.unwrap();
            let reader = wait(store.open_snapshot(SnapshotNumber(0))).unwrap();
            let mut bytes = vec![0; 1 << 20];
            reader.read_at(0, &mut bytes).unwrap();
            assert!(bytes == fs::read(volume.origin()).unwrap());
            assert_eq!(wait(store.head()).unwrap(), HeadState::Shows(SnapshotNumber(0)));
        } else {
            assert!(matches!(taken, Err(StoreError::OriginBusy { .. })), "{taken:?}");
            assert!(wait(store.snapshots()).unwrap().is_empty());
            assert_eq!(fs::read_dir(volume.snapstore().join("data")).unwrap().count(), 0);
        }
    }
}

/// In memory, a write through a mapping leaves the time of the file as it is: so nobody may be able to write.
#[test]
fn root_a_copy_in_memory_is_refused_while_someone_could_write() {
    let Some(mounted) = Mounted::make("tmpfs", 40) else { return };
    let volume = Volume::new(&mounted.path(), None);
    let image = volume.image();
    image.write_all_at(&[7; 100_000], 0).unwrap();
    let store = volume.store();
    let refused = take(&store, 0);
    assert!(matches!(refused, Err(StoreError::OriginBusy { .. })), "{refused:?}");
    drop(image);
    take(&store, 0).unwrap();
    drop(store);
    // Also when the writer comes while the copy is made.
    let (origin, mut writer) = (volume.origin(), None);
    let store = volume.store_with(Faults::new(move |step| {
        if step == "create: before reading" {
            writer = Some(fs::File::options().write(true).open(&origin).unwrap());
        }
        writer.is_none() && step == "never"
    }));
    let refused = take(&store.unwrap(), 1);
    assert!(matches!(refused, Err(StoreError::OriginBusy { .. })), "{refused:?}");
}

/// A copy that cannot fit is not begun.
#[test]
fn root_a_flip_that_cannot_fit_leaves_the_disk_alone() {
    let Some(mounted) = Mounted::make("tmpfs", 90) else { return };
    let place = mounted.path();
    let volume = Volume::new(&place, Some(Mode::Layered));
    volume.image().write_all_at(&vec![7; 24 << 20], 0).unwrap();
    let store = volume.store();
    take(&store, 0).unwrap();
    let ballast = fill_up(&place, 12 << 20);
    let refused = wait(store.show(SnapshotNumber(0))).unwrap_err();
    assert!(
        matches!(&refused, StoreError::NoSpace { what } if what.contains(&(24u64 << 20).to_string())),
        "{refused}"
    );
    assert!(wait(store.free()).unwrap() >= 10 << 20);
    fs::remove_file(ballast).unwrap();
    wait(store.show(SnapshotNumber(0))).unwrap();
    assert_eq!(wait(store.head()).unwrap(), HeadState::Shows(SnapshotNumber(0)));
}

fn disk_use(path: &Path) -> u64 {
    let metadata = fs::symlink_metadata(path).unwrap();
    let below =
        |dir: &Path| fs::read_dir(dir).unwrap().map(|entry| disk_use(&entry.unwrap().path())).sum::<u64>();
    metadata.blocks() * 512 + if metadata.is_dir() { below(path) } else { 0 }
}

/// A terabyte of almost nothing costs almost nothing.
fn sparse_terabyte(place: &Path, mode: Mode) {
    let begun = Instant::now();
    let (upstream, downstream) = (Volume::new(place, Some(mode)), Volume::new(place, Some(mode)));
    let size = 1 << 40;
    let image = upstream.image();
    image.set_len(size).unwrap();
    for at in [0, 300 << 30, size - (1 << 20)] {
        image.write_all_at(&vec![7; 1 << 20], at).unwrap();
    }
    let (source, replica) = (upstream.store(), downstream.store());
    for number in 0..3u64 {
        image.write_all_at(b"change", (200 << 30) + number * 12_288).unwrap();
        take(&source, number).unwrap();
        let (snapshot, base) = (SnapshotNumber(number), number.checked_sub(1).map(SnapshotNumber));
        let tree = wait(source.leaves(snapshot)).unwrap();
        let record = wait(source.snapshots()).unwrap().pop().unwrap();
        let plan = zumastor_core::StagePlan { record, base };
        let changes = wait(source.changes(base, snapshot, 0..size)).unwrap();
        assert!(changes.bytes() < 8 << 20, "{} bytes", changes.bytes());
        let reader = wait(source.open_snapshot(snapshot)).unwrap();
        let staging = wait(replica.stage(plan)).unwrap();
        let mut segments = BTreeSet::new();
        for extent in &changes {
            assert_eq!(extent.kind, ExtentKind::Data);
            let mut bytes = vec![0; extent.len() as usize];
            reader.read_at(extent.range.start, &mut bytes).unwrap();
            staging.write_at(extent.range.start, &bytes).unwrap();
            segments.extend(extent.range.start / SEGMENT..=(extent.range.end - 1) / SEGMENT);
        }
        let segments: Vec<_> = segments.into_iter().map(SegmentIndex).collect();
        for segment in &segments {
            staging.leaves().set_segment(*segment, &tree.segment(*segment).unwrap()).unwrap();
        }
        staging.checkpoint(&[], &segments).unwrap();
        staging.commit(tree.digest().unwrap()).unwrap();
        wait(replica.revert(snapshot)).unwrap();
        assert_eq!(wait(replica.head()).unwrap(), HeadState::Shows(snapshot));
        let scratch =
            digest_of(&zumastor_backends::plain_source(&downstream.origin()).unwrap(), None).unwrap();
        assert_eq!(Some(scratch), tree.digest());
    }
    let used = disk_use(upstream.dir.path()) + disk_use(downstream.dir.path());
    eprintln!("a sparse terabyte, three times: {:?}, {used} bytes on disk", begun.elapsed());
    assert!(used < 100 << 20, "{used} bytes");
    assert!(begun.elapsed() < Duration::from_secs(60));
}

#[test]
fn a_sparse_terabyte_in_layers() {
    sparse_terabyte(&std::env::temp_dir(), Mode::Layered);
}

#[test]
fn root_a_sparse_terabyte_on_xfs() {
    let Some(mounted) = Mounted::make("xfs", 1000) else { return };
    sparse_terabyte(&mounted.path(), Mode::Reflink);
}

#[test]
fn root_a_sparse_terabyte_on_btrfs() {
    let Some(mounted) = Mounted::make("btrfs", 1000) else { return };
    sparse_terabyte(&mounted.path(), Mode::Reflink);
}

/// A full disk stops a transfer and harms nothing; with space it goes on where it was.
fn full(mounted: &Mounted) {
    let place = mounted.path();
    let volume = Volume::new(&place, None);
    let size = 24 << 20;
    let mut random = SmallRng::seed_from_u64(2);
    let mut base = Bytes(vec![0; size]);
    random.fill(&mut base.0[..4 << 20]);
    fs::write(volume.origin(), &base.0[..]).unwrap();
    let store = volume.store();
    take(&store, 0).unwrap();
    let digest = wait(store.leaves(SnapshotNumber(0))).unwrap().digest();
    let mut target = base.clone();
    random.fill(&mut target.0[2 << 20..]);
    let plan = plan_for(SnapshotNumber(1), Lineage::generate(), Some(SnapshotNumber(0)), &target);
    let staging = wait(store.stage(plan.clone())).unwrap();
    let ballast = fill_up(&place, 6 << 20);
    let failed = deliver(&*staging, &base, &target, 0..size as u64)
        .and_then(|leaves| staging.checkpoint(&leaves, &[SegmentIndex(0)]));
    assert!(matches!(failed, Err(StoreError::NoSpace { .. })), "{failed:?}");
    assert!(
        staging.checkpoint(&[], &[SegmentIndex(0)]).is_err(),
        "recorded as finished after a failed write"
    );
    drop(staging);
    let check = |store: &FileStore| {
        let reader = wait(store.open_snapshot(SnapshotNumber(0))).unwrap();
        let mut bytes = vec![0; size];
        reader.read_at(0, &mut bytes).unwrap();
        assert!(bytes == base.0);
        assert_eq!(wait(store.leaves(SnapshotNumber(0))).unwrap().root().ok(), digest);
    };
    check(&store);
    let new = take(&store, 5);
    assert!(new.is_ok() || matches!(new, Err(StoreError::NoSpace { .. })), "{new:?}");
    drop(store);
    fs::remove_file(ballast).unwrap();
    let store = volume.store();
    check(&store);
    let staging = wait(store.stage(plan)).unwrap();
    assert_eq!(staging.finished(), []);
    let leaves = deliver(&*staging, &base, &target, 0..size as u64).unwrap();
    staging.checkpoint(&leaves, &[SegmentIndex(0)]).unwrap();
    staging.commit(target.digest()).unwrap();
    check(&store);
    let reader = wait(store.open_snapshot(SnapshotNumber(1))).unwrap();
    let mut bytes = vec![0; size];
    reader.read_at(0, &mut bytes).unwrap();
    assert!(bytes == target.0);
}

/// Fills the file system until only about `free` bytes are left.
fn fill_up(place: &Path, free: u64) -> PathBuf {
    let path = place.join("ballast");
    let file = fs::File::create(&path).unwrap();
    let block = vec![0x5A; 1 << 20];
    let mut at = 0;
    loop {
        let stat = rustix::fs::statvfs(place).unwrap();
        if stat.f_bavail * stat.f_frsize < free + (1 << 20) || file.write_all_at(&block, at).is_err() {
            break;
        }
        at += 1 << 20;
        if at % (32 << 20) == 0 {
            file.sync_all().unwrap();
        }
    }
    file.sync_all().unwrap();
    path
}

#[test]
fn root_a_full_disk_harms_nothing_in_layers() {
    let Some(mounted) = Mounted::make("tmpfs", 90) else { return };
    full(&mounted);
}

#[test]
fn root_a_full_disk_harms_nothing_on_ext4() {
    let Some(mounted) = Mounted::make("ext4", 120) else { return };
    full(&mounted);
}

#[test]
fn root_a_full_disk_harms_nothing_on_xfs() {
    let Some(mounted) = Mounted::make("xfs", 400) else { return };
    full(&mounted);
}

/// Where origin and snapshots lie on two file systems of which one could do better, the person is told.
#[test]
fn root_two_file_systems_are_pointed_out() {
    let Some(mounted) = Mounted::make("xfs", 400) else { return };
    let elsewhere = tempfile::tempdir().unwrap();
    let origin = elsewhere.path().join("disk.img");
    fs::write(&origin, vec![1; 100_000]).unwrap();
    let store = FileStore::open_or_create(origin, mounted.path().join("store"), Default::default()).unwrap();
    assert_eq!(store.mode(), Mode::Layered);
    assert!(store.info().caution.unwrap().contains("different file systems"));
    take(&store, 0).unwrap();
    wait(store.revert(SnapshotNumber(0))).unwrap();
}

/// How fast a snapshot in layers reads. Not a promise, but a collapse would show.
#[test]
fn layers_are_taken_at_the_speed_of_hashing() {
    let place = Path::new("/dev/shm");
    let volume = Volume::new(if place.is_dir() { place } else { Path::new("/tmp") }, Some(Mode::Layered));
    let size = 512 << 20;
    let image = volume.image();
    let mut block = vec![0; 1 << 20];
    for at in (0..size).step_by(1 << 20) {
        block.iter_mut().enumerate().for_each(|(i, byte)| *byte = (i as u64 + at / 7) as u8);
        image.write_all_at(&block, at).unwrap();
    }
    // In memory, whoever has the volume open for writing might write unseen.
    drop(image);
    let store = volume.store();
    take(&store, 0).unwrap();
    volume.image().write_all_at(b"x", 100 << 20).unwrap();
    let begun = Instant::now();
    take(&store, 1).unwrap();
    let taken = begun.elapsed();
    eprintln!("512 MiB read, hashed and compared in {taken:?}");
    let leaves = wait(store.leaves(SnapshotNumber(1))).unwrap();
    let mut leaf = vec![0; LEAF as usize];
    volume.image().read_exact_at(&mut leaf, 100 << 20).unwrap();
    assert!(!is_zero(&leaf));
    let index = LeafIndex::containing(100 << 20);
    let segment = leaves.segment(index.segment()).unwrap();
    let position = (index.0 - index.segment().first_leaf()) as usize;
    assert_eq!(segment.hash(index.segment(), position, size), Hash::of_leaf(&leaf));
    let kept = disk_use(&volume.snapstore().join("data/0000000001"));
    assert!(kept <= 2 * LEAF, "{kept} bytes kept for one changed leaf");
    assert!(taken < Duration::from_secs(20), "{taken:?}");
}
