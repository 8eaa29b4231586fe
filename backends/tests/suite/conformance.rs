//! Every store passes the same suite.

use std::{ops::Range, path::Path, sync::Arc};

use crate::common::{Mounted, Volume, skip};
use zumastor_backends::{
    Faults, Mode,
    conformance::{Damage, Op, Receive, Subject, Way, check, replay},
};
use zumastor_core::{MemoryStore, SnapshotNumber, SnapshotStore, StoreError};

#[derive(Debug)]
struct Memory(MemoryStore);

impl Subject for Memory {
    fn open(&mut self, _: Faults) -> Result<Arc<dyn SnapshotStore>, StoreError> {
        Ok(Arc::new(self.0.clone()))
    }

    fn write_head(&mut self, offset: u64, data: &[u8]) {
        self.0.write_head(offset, data);
    }

    fn punch_head(&mut self, range: Range<u64>) {
        self.0.write_head(range.start, &vec![0; (range.end - range.start) as usize]);
    }

    fn read_head(&mut self) -> Vec<u8> {
        self.0.head_content()
    }

    fn damage(&mut self, number: SnapshotNumber, offset: u64, _: &[u8], bad: &[u8], _: bool) -> bool {
        self.0.damage(number, offset, bad);
        true
    }
}

#[test]
fn memory() {
    check(64, || Memory(MemoryStore::new(0)));
}

#[test]
fn layers_on_the_disk() {
    check(48, || Volume::new(&std::env::temp_dir(), Some(Mode::Layered)));
}

#[test]
fn layers_in_memory() {
    let place = Path::new("/dev/shm");
    if !place.is_dir() {
        return skip("no /dev/shm").unwrap_or(());
    }
    check(200, || Volume::new(place, None));
}

/// What snapshots have in common in layers is put right for all of them with the first: the head that shows another is not
/// forgotten.
#[test]
fn the_head_is_put_right_with_what_another_snapshot_has_in_common() {
    let damage = Damage { pick: 1, write: (0, 1, 0), tree: None, head: true };
    let history =
        [Op::Resize(172_033), Op::Write((61_440, 8192, 1)), Op::Snapshot, Op::Snapshot, Op::Repair(damage)];
    replay(Volume::new(&std::env::temp_dir(), Some(Mode::Layered)), &history);
}

/// A history that once went wrong in the test itself, which also damaged what was being received.
#[test]
fn what_is_being_received_is_not_damaged_with_its_base() {
    let damage = Damage { pick: 0, write: (4096, 65_536, 0), tree: None, head: false };
    let receive = |base, size, way| Op::Receive(Receive { base, size, writes: Vec::new(), way });
    let history = [
        Op::Resize(65_537),
        Op::Write((0, 131_072, 1)),
        Op::Snapshot,
        Op::Crash(2, Box::new(receive(Some(0), 65_538, Way::Whole))),
        Op::Repair(damage),
        receive(None, 0, Way::WrongDigest),
    ];
    replay(Volume::new(&std::env::temp_dir(), Some(Mode::Layered)), &history);
}

#[test]
fn root_reflink_on_xfs() {
    let Some(mounted) = Mounted::make("xfs", 400) else { return };
    check(48, || Volume::new(&mounted.path(), Some(Mode::Reflink)));
}

#[test]
fn root_reflink_on_btrfs() {
    let Some(mounted) = Mounted::make("btrfs", 400) else { return };
    check(48, || Volume::new(&mounted.path(), Some(Mode::Reflink)));
}

#[test]
fn root_layers_on_xfs() {
    let Some(mounted) = Mounted::make("xfs", 400) else { return };
    check(32, || Volume::new(&mounted.path(), Some(Mode::Layered)));
}
