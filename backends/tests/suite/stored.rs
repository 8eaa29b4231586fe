//! What is read of a snapshot as it is stored comes from the disk.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::common::{Mounted, Volume, take, wait};
use zumastor_backends::Mode;
use zumastor_core::{LEAF, SnapshotNumber, SnapshotStore};

const MIB: u64 = 1 << 20;
/// The last leaf is not whole, and neither is its last page.
const SIZE: u64 = 16 * MIB + 3 * 512;

/// A page that is like no other.
fn page(number: u64) -> Vec<u8> {
    let line = format!("page {number:10} of this volume|");
    line.bytes().cycle().take(4096).collect()
}

/// Writes other bytes in the place of `old` wherever `disk` has it. What is mounted from it is not asked.
fn change_below(disk: &Path, old: &[u8], new: &[u8]) -> usize {
    let all = fs::read(disk).unwrap();
    let found = (0..all.len() - old.len()).step_by(512).filter(|at| all[*at..].starts_with(old));
    let file = fs::File::options().write(true).open(disk).unwrap();
    found.map(|at| file.write_all_at(new, at as u64).unwrap()).count()
}

/// A volume with a snapshot on a disk of its own, all of it in the page cache, where bits have changed on the disk since.
fn what_changed_below_is_read(kind: &str, mode: Mode) {
    let Some(mounted) = Mounted::make(kind, 512) else { return };
    let volume = Volume::new(&mounted.path(), Some(mode));
    let image = volume.image();
    let content: Vec<u8> = (0..).flat_map(page).take(SIZE as usize).collect();
    image.write_all_at(&content, 0).unwrap();
    image.sync_all().unwrap();
    let store = volume.store();
    take(&store, 0);
    wait(store.leaves(SnapshotNumber(0))).unwrap();
    rustix::fs::syncfs(&image).unwrap();
    let reader = wait(store.open_snapshot(SnapshotNumber(0))).unwrap();
    let mut bytes = vec![0; SIZE as usize];
    // What is read at a time does not stay in memory when it is much.
    let through_memory = |bytes: &mut [u8]| {
        for (at, some) in (0..).step_by(4096).zip(bytes.chunks_mut(4096)) {
            reader.read_at(at, some).unwrap();
        }
    };
    through_memory(&mut bytes);
    assert!(bytes == content);

    // The second lies in two of the pieces that nobody aligned.
    let changed = [0, 24, 300, 3 * 256 + 17];
    let disk: PathBuf = mounted.disk();
    for number in changed {
        assert!(change_below(&disk, &page(number), &page(1 << 32 | number)) > 0, "{kind}: page {number}");
    }
    through_memory(&mut bytes);
    assert!(bytes == content, "{kind}: this test is to find out what is read past the page cache");
    let mut stored = content;
    for number in changed {
        stored[number as usize * 4096..][..4096].copy_from_slice(&page(1 << 32 | number));
    }
    // What nobody aligned; then as a scrub reads: leaf by leaf, and much.
    for piece in [100_003, LEAF as usize, MIB as usize] {
        for (at, expected) in (0..).step_by(piece).zip(stored.chunks(piece)) {
            let read = &mut bytes[..expected.len()];
            reader.read_stored(at, read).unwrap();
            assert!(read == expected, "{kind}: {piece} bytes from byte {at} on");
        }
    }
    // One that was cut short says so, whichever way it is read.
    let path = &volume.content_files(SnapshotNumber(0))[0];
    fs::File::options()
        .write(true)
        .open(path)
        .map_or_else(|_| panic!("{}", path.display()), |file| file.set_len(SIZE - 512).unwrap());
    let error = reader.read_stored(SIZE - 1024, &mut [0; 1024]).unwrap_err();
    assert!(error.to_string().contains("cut short"), "{kind}: {error}");
}

#[test]
fn root_a_clone_is_read_from_the_disk() {
    what_changed_below_is_read("xfs", Mode::Reflink);
}

#[test]
fn root_layers_are_read_from_the_disk() {
    what_changed_below_is_read("ext4", Mode::Layered);
}

/// Where there is no disk, or none can be read past the page cache.
#[test]
fn root_what_is_in_memory_is_read_as_well() {
    let Some(mounted) = Mounted::make("tmpfs", 64) else { return };
    let volume = Volume::new(&mounted.path(), Some(Mode::Layered));
    let content: Vec<u8> = (0..).flat_map(page).take(SIZE as usize).collect();
    volume.image().write_all_at(&content, 0).unwrap();
    let store = volume.store();
    take(&store, 0);
    let reader = wait(store.open_snapshot(SnapshotNumber(0))).unwrap();
    let mut bytes = vec![0; SIZE as usize];
    reader.read_stored(0, &mut bytes).unwrap();
    assert!(bytes == content);
}
