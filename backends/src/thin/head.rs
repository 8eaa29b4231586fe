//! The volume itself: what it holds, making it show a snapshot, and its size.

use std::{
    fs::{File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::Arc,
    thread,
    time::Duration,
};

use rustix::fs::OFlags;
use zumastor_core::{Frozen, HeadState, SnapshotNumber, StoreError};

use super::{
    catalogue::{Catalogue, Head, Kept},
    inner::Inner,
    pool::{Access, Slot, Users},
    zero::{Zeroed, make_zero},
};
use crate::described::failed;

/// How often is looked who uses the head before somebody counts as a writer.
const LOOKS: u32 = 10;
/// Pause between two looks.
const GLANCE: Duration = Duration::from_millis(20);

/// Bytes that a device consists of.
pub(crate) const SECTOR: u64 = 512;

/// A head that stands still. It goes on when this is dropped.
#[derive(Debug)]
pub(crate) struct FrozenHead(Arc<Inner>);

impl Frozen for FrozenHead {}

impl Drop for FrozenHead {
    fn drop(&mut self) {
        if self.0.faults.stopped() {
            return;
        }
        if let Err(error) = self.0.pool.thaw_head() {
            let device = self.0.pool.device(Slot::Head);
            tracing::error!(%error, "the volume stands still: `dmsetup resume {}`", device.display());
        }
    }
}

impl Inner {
    /// Keeps who writes to the head waiting; snapshots can be taken of it meanwhile.
    pub(crate) fn freeze(self: &Arc<Self>) -> Result<Option<FrozenHead>, StoreError> {
        let _control = self.control()?;
        let frozen = self.pool.freeze_head()?.then(|| FrozenHead(self.clone()));
        self.faults.at("freeze: after")?;
        Ok(frozen)
    }

    pub(crate) fn head(&self) -> Result<HeadState, StoreError> {
        // What a program wrote and the kernel has not yet written counts too.
        let path = self.pool.device(Slot::Head);
        let synced = File::open(&path).and_then(|head| head.sync_data());
        if let Err(error) = synced
            && self.check_sound().is_ok()
        {
            return Err(failed("syncing", &path)(error));
        }
        // A pool that changes nothing any more takes no flush either.
        self.head_on_disk()
    }

    fn head_on_disk(&self) -> Result<HeadState, StoreError> {
        let catalogue = self.catalogue();
        if let Some(number) = self.shown(&catalogue)? {
            return Ok(HeadState::Shows(number));
        }
        let empty = self.compare(None, catalogue.head.thin)?.is_empty();
        Ok(if empty { HeadState::Empty } else { HeadState::Written })
    }

    /// The snapshot that the head is equal to: whatever is written, or discarded, changes a mapping.
    fn shown(&self, catalogue: &Catalogue) -> Result<Option<SnapshotNumber>, StoreError> {
        let head = &catalogue.head;
        let kept = head.shows.and_then(|guid| catalogue.with_guid(guid));
        let Some(kept) = kept.filter(|kept| kept.record.size == head.size) else { return Ok(None) };
        let number = kept.record.number();
        let equal = self.kept(number).is_ok() && self.compare(Some(kept.thin), head.thin)?.is_empty();
        Ok(equal.then_some(number))
    }

    /// Whether somebody may be writing to the head. Readers that come and go while they are counted are not taken for writers.
    fn may_be_written(&self) -> Result<bool, StoreError> {
        for _ in 0..LOOKS {
            if self.pool.head_users()? != Users::Writers {
                return Ok(false);
            }
            thread::sleep(GLANCE);
        }
        Ok(true)
    }

    /// Makes sure that nothing is lost when the head is replaced.
    fn replaceable(&self, head: HeadState) -> Result<(), StoreError> {
        let path = || self.pool.device(Slot::Head);
        if self.may_be_written()? {
            return Err(StoreError::HeadBusy { path: path() });
        }
        match head {
            HeadState::Written => Err(StoreError::HeadWritten { path: path() }),
            HeadState::Empty | HeadState::Shows(_) => Ok(()),
        }
    }

    /// Makes the head show a snapshot. With `keep`, not if that would lose what somebody wrote there.
    pub(crate) fn revert(&self, number: SnapshotNumber, keep: bool) -> Result<(), StoreError> {
        let _control = self.control()?;
        let kept = self.kept(number)?;
        self.check_sound()?;
        let before = self.head()?;
        if before == HeadState::Shows(number) {
            return Ok(());
        }
        if keep {
            self.replaceable(before)?;
        }
        self.flip(&kept, &|| if keep { self.replaceable(self.head_on_disk()?) } else { Ok(()) })
    }

    /// Puts a clone of a snapshot in the place of the head. `check` may forbid it at the moment when nothing gets through to
    /// the head any more, so that what is seen then stays so. To be called with `control` held.
    pub(crate) fn flip(
        &self,
        kept: &Kept,
        check: &dyn Fn() -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut catalogue = self.catalogue();
        let old = catalogue.head.thin;
        let size = kept.record.size;
        let thin = self.made(self.pool.clone_of(kept.thin, Slot::Head, size))?;
        catalogue.head = Head { thin, size, shows: Some(kept.record.guid()), tail: None };
        let mut saved = false;
        let swapped = self.faults.at("flip: after cloning").and_then(|()| {
            self.pool.swap_head(thin, size, &mut || {
                check()?;
                self.faults.at("flip: before saving")?;
                self.replace(catalogue.clone())?;
                saved = true;
                self.faults.at("flip: after saving")
            })
        });
        if let Err(error) = swapped {
            if saved {
                // The devices are not what is recorded: opening the store anew makes them so.
                self.break_off();
            } else {
                self.unmake(thin);
            }
            return Err(error);
        }
        self.faults.at("flip: after swapping")?;
        self.bury(old);
        Ok(())
    }

    pub(crate) fn resize(&self, size: u64) -> Result<(), StoreError> {
        let _control = self.control()?;
        if size == 0 || !size.is_multiple_of(SECTOR) {
            return Err(StoreError::Unsupported(format!(
                "a volume on block devices consists of whole sectors of {SECTOR} bytes, at least one: {size} bytes are not"
            )));
        }
        self.pool.check_size(size)?;
        self.check_sound()?;
        self.clear_tail()?;
        let mut catalogue = self.catalogue();
        let before = catalogue.head.size;
        let path = self.pool.device(Slot::Head);
        if size > before && !before.is_multiple_of(SECTOR) {
            // The rest of the last sector was never part of the volume, but could be written.
            let file = OpenOptions::new().write(true).open(&path).map_err(failed("opening", &path))?;
            let zeros = vec![0; (before.next_multiple_of(SECTOR) - before) as usize];
            let written = file.write_all_at(&zeros, before).and_then(|()| file.sync_data());
            written.map_err(failed("writing", &path))?;
        }
        catalogue.head.size = size;
        catalogue.head.shows = None;
        catalogue.head.tail = (size < before).then_some(before);
        self.faults.at("resize: before saving")?;
        let thin = catalogue.head.thin;
        self.replace(catalogue)?;
        self.faults.at("resize: after saving")?;
        if let Err(error) = self.pool.activate(Slot::Head, thin, size, Access::Writable) {
            self.break_off();
            return Err(error);
        }
        self.faults.at("resize: before clearing")?;
        self.clear_tail()
    }

    pub(crate) fn resize_store(&self, data: Option<u64>, metadata: Option<u64>) -> Result<(), StoreError> {
        let _control = self.control()?;
        self.faults.at("grow: before")?;
        self.pool.grow(data, metadata, &mut || self.faults.at("grow: noted"))?;
        self.faults.at("grow: after")
    }

    /// Makes zero what lies beyond the end of a head that was made smaller. To be called with `control` held.
    pub(crate) fn clear_tail(&self) -> Result<(), StoreError> {
        let mut catalogue = self.catalogue();
        let Head { thin, size, tail: Some(tail), .. } = catalogue.head else { return Ok(()) };
        let range = size.next_multiple_of(SECTOR)..tail.next_multiple_of(SECTOR);
        let path = self.pool.activate(Slot::Scratch, thin, tail, Access::Writable)?;
        let cleared = clear(&path, range, self.pool.chunk());
        self.pool.deactivate(Slot::Scratch)?;
        cleared?;
        self.faults.at("resize: after clearing")?;
        catalogue.head.tail = None;
        self.replace(catalogue)
    }
}

/// Makes whole sectors of a device zero, durably.
pub(crate) fn clear(path: &Path, range: Range<u64>, chunk: u64) -> Result<(), StoreError> {
    let direct = OFlags::DIRECT.bits() as i32;
    let file = OpenOptions::new().read(true).write(true).custom_flags(direct).open(path);
    let device = Sectors(file.map_err(failed("opening", path))?);
    make_zero(&device, range, chunk).and_then(|()| device.0.sync_data()).map_err(failed("writing", path))
}

/// A device of which only whole sectors are read and written, past the page cache: another device may show those beside
/// them.
struct Sectors(File);

impl Zeroed for Sectors {
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }

    fn device(&self) -> &File {
        &self.0
    }
}
