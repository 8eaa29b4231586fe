//! The pool of one volume: its thin devices, and its messages.

use std::{
    collections::BTreeSet,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use zumastor_core::{SnapshotNumber, StoreError, StoreInfo};

use super::{
    below::{BELOW, Devices, named_after},
    beside::Beside,
    devices::BlockDevice,
    header::{Content, Header, On},
    sizes,
    still::show,
};
use crate::{
    thin::{
        Access, Catalogue, Gone, Pool, PoolStatus, Slot, ThinId, Users,
        kernel::{Suspended, is_named_after, old_name, retire, tell, thin_line},
        mapper::{Line, Mapper, dangling, link, node, unlink},
        moment::Moment,
        users::users,
    },
    thin_metadata::ThinMetadata,
};

/// Clones after which none is made any more: the kernel keeps with each mapping in 24 bits after which of them it was made, and
/// lets a larger number spill into that of the block (`pack_block_time`, drivers/md/dm-thin-metadata.c).
const LAST_CLONE: u32 = (1 << 24) - 1024;

/// Why something fails while it is not known yet whether the header is as new as the pool.
const NOT_NOW: &str = "the pool cannot be written just now: try again";

/// A pool that belongs to one volume.
#[derive(Debug)]
pub(super) struct DmPool {
    pub volume: String,
    pub mapper: Mapper,
    /// Begins the uuid of each device.
    pub prefix: String,
    pub place: PathBuf,
    pub devices: Devices,
    pub header: Mutex<(Header, Content)>,
    /// The thin devices that there are.
    pub known: Mutex<BTreeSet<ThinId>>,
    /// The number that was given last.
    pub last: Mutex<u32>,
    /// How many clones were ever made in the pool.
    pub time: AtomicU32,
    /// One moment of the metadata is held at a time.
    pub holding: Mutex<()>,
    pub moment: Moment,
    /// Whether what the header says is as new as the pool. Never locked while the header is, nor the other way round.
    pub beside: Mutex<Beside>,
    /// Whether a program had the store open when it ended.
    pub was_open: bool,
    /// Whether the head stands still for snapshots.
    pub frozen: AtomicBool,
}

impl DmPool {
    pub(super) fn name(&self, what: &str) -> String {
        format!("{}:{what}", self.volume)
    }

    fn slot(&self, slot: Slot) -> String {
        match slot {
            Slot::Head => self.volume.clone(),
            Slot::Snapshot(number) => format!("{}({number})", self.volume),
            Slot::Staging => self.name("staging"),
            Slot::Repair => self.name("repair"),
            Slot::Scratch => self.name("scratch"),
        }
    }

    pub(super) fn header(&self) -> MutexGuard<'_, (Header, Content)> {
        self.header.lock().expect("no panic while locked")
    }

    fn thin_line(&self, id: ThinId, size: u64) -> Result<Line, StoreError> {
        thin_line(&self.mapper, &self.name("pool"), id, size)
    }

    pub(super) fn message(&self, message: &str) -> Result<(), io::Error> {
        self.mapper.message(&self.name("pool"), message)
    }

    /// The same, and makes sure that it was committed.
    pub(super) fn tell(&self, message: &str) -> io::Result<()> {
        tell(&self.mapper, &self.name("pool"), message)
    }

    pub(super) fn told(&self, message: &str) -> Result<(), StoreError> {
        self.message(message).map_err(|error| match error.raw_os_error() {
            Some(libc::EOPNOTSUPP) => StoreError::Damaged {
                path: self.place.clone(),
                what: self.trouble().unwrap_or_else(|| format!("the pool refuses {message:?}")),
            },
            _ => StoreError::io(format!("{message} in the pool of volume {}", self.volume))(error),
        })
    }

    fn allocate(&self) -> Result<ThinId, StoreError> {
        let known = self.known.lock().expect("no panic while locked");
        let mut last = self.last.lock().expect("no panic while locked");
        for _ in 0..ThinId::END {
            *last = (*last + 1) % ThinId::END;
            if !known.contains(&ThinId(*last)) {
                return Ok(ThinId(*last));
            }
        }
        Err(StoreError::NoSpace { what: "the pool has as many thin devices as it can".into() })
    }

    fn made(&self, id: ThinId) -> ThinId {
        self.known.lock().expect("no panic while locked").insert(id);
        id
    }

    /// The names of the volume's devices.
    fn ours(&self) -> Result<Vec<String>, StoreError> {
        named_after(&self.mapper, &self.volume)
    }
}

impl Pool for DmPool {
    fn place(&self) -> &Path {
        &self.place
    }

    fn info(&self) -> StoreInfo {
        let chunk = zumastor_core::HumanBytes(self.chunk());
        StoreInfo {
            kind: format!("thin pool of its own, chunks of {chunk}"),
            caution: self.trouble().or_else(|| self.apart()),
        }
    }

    fn chunk(&self) -> u64 {
        self.header().1.layout.chunk
    }

    fn load(&self) -> Result<Catalogue, StoreError> {
        Ok(self.header().1.catalogue.clone())
    }

    fn save(&self, catalogue: &Catalogue) -> Result<(), StoreError> {
        // A header that the pool cannot follow must not be written. Nothing has been then, and the store stays what it is.
        let refused = |why: String| {
            let what = format!("writing the header of volume {}", self.volume);
            StoreError::Io { what, source: io::Error::new(ErrorKind::WouldBlock, why) }
        };
        if self.settle().map_err(|error| refused(error.to_string()))? != Beside::Together {
            let why = self.apart().or_else(|| self.trouble());
            return Err(refused(why.unwrap_or_else(|| NOT_NOW.to_owned())));
        }
        let mut header = self.header();
        let (file, content) = &mut *header;
        let before = content.transaction;
        let new = Content { catalogue: catalogue.clone(), transaction: before + 1, ..content.clone() };
        file.write(&new)?;
        *content = new;
        drop(header);
        // The pool follows, so that a header which is older than the pool is noticed.
        self.catch_up(before, before + 1)
    }

    fn thins(&self) -> Result<BTreeSet<ThinId>, StoreError> {
        let mut found = BTreeSet::new();
        self.read_metadata(&mut |metadata| {
            found = metadata.devices()?.into_iter().map(|device| ThinId(device.device)).collect();
            self.time.store(metadata.time(), Ordering::Relaxed);
            Ok(())
        })?;
        *self.last.lock().expect("no panic while locked") = found.last().map_or(0, |id| id.0);
        self.known.lock().expect("no panic while locked").clone_from(&found);
        Ok(found)
    }

    fn create(&self, _slot: Slot, _size: u64) -> Result<ThinId, StoreError> {
        let id = self.allocate()?;
        self.told(&format!("create_thin {id}"))?;
        Ok(self.made(id))
    }

    fn clone_of(&self, origin: ThinId, _slot: Slot, _size: u64) -> Result<ThinId, StoreError> {
        let time = self.time.load(Ordering::Relaxed);
        if time >= LAST_CLONE {
            return Err(StoreError::Unsupported(format!(
                "{time} clones have been made in the pool of volume {}, and the kernel cannot tell more than that apart: \
                 replicate it to a new volume, and promote that one",
                self.volume
            )));
        }
        let id = self.allocate()?;
        self.told(&format!("create_snap {id} {origin}"))?;
        self.time.store(time + 1, Ordering::Relaxed);
        Ok(self.made(id))
    }

    fn clone_head(&self, head: ThinId, number: SnapshotNumber) -> Result<ThinId, StoreError> {
        if self.frozen.load(Ordering::Relaxed) {
            return self.clone_of(head, Slot::Snapshot(number), 0);
        }
        let suspended = Suspended::new(&self.mapper, self.slot(Slot::Head))?;
        let cloned = self.clone_of(head, Slot::Snapshot(number), 0);
        let resumed = suspended.resume();
        if let (Ok(id), Err(_)) = (&cloned, &resumed) {
            let _ = self.delete(*id);
        }
        resumed.and(cloned)
    }

    fn freeze_head(&self) -> Result<bool, StoreError> {
        let name = self.slot(Slot::Head);
        if let Err(error) = self.mapper.suspend(&name, true) {
            let _ = self.mapper.resume(&name);
            return Err(error);
        }
        self.frozen.store(true, Ordering::Relaxed);
        Ok(true)
    }

    fn thaw_head(&self) -> Result<(), StoreError> {
        self.frozen.store(false, Ordering::Relaxed);
        self.mapper.resume(&self.slot(Slot::Head))
    }

    fn delete(&self, id: ThinId) -> Result<Gone, StoreError> {
        // While a moment of the metadata is held, nothing would become free.
        let _moment = self.holding.lock().expect("no panic while locked");
        match self.message(&format!("delete {id}")) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Ok(Gone::Later),
            Err(error) if error.raw_os_error() == Some(libc::ENODATA) => {}
            Err(error) => return Err(StoreError::io(format!("deleting thin device {id}"))(error)),
        }
        self.known.lock().expect("no panic while locked").remove(&id);
        Ok(Gone::Yes)
    }

    fn activate(&self, slot: Slot, id: ThinId, size: u64, access: Access) -> Result<PathBuf, StoreError> {
        let name = self.slot(slot);
        // Whoever writes to an older copy writes into what the newer one has.
        let access = if self.apart().is_some() { Access::ReadOnly } else { access };
        let line = self.thin_line(id, size)?;
        if slot == Slot::Head {
            return show(&self.mapper, &self.volume, &self.prefix, line, access);
        }
        let made = self.mapper.ensure(&name, &self.prefix, &[line], access)?;
        if matches!(slot, Slot::Staging | Slot::Repair | Slot::Scratch) {
            return Ok(format!("/dev/dm-{}", made.minor).into());
        }
        link(&name, made.minor)?;
        Ok(node(&name))
    }

    fn deactivate(&self, slot: Slot) -> Result<Gone, StoreError> {
        retire(&self.mapper, &self.volume, &self.slot(slot))
    }

    fn renumber(&self, from: SnapshotNumber, to: SnapshotNumber) -> Result<(), StoreError> {
        let (from, to) = (self.slot(Slot::Snapshot(from)), self.slot(Slot::Snapshot(to)));
        let Some(there) = self.mapper.find(&from)? else { return Ok(()) };
        unlink(&from, Some(there.minor));
        self.mapper.rename(&from, &to)?;
        link(&to, there.minor)
    }

    fn sweep(&self, wanted: &[Slot]) -> Result<(), StoreError> {
        let wanted: BTreeSet<_> = wanted.iter().map(|slot| self.slot(*slot)).collect();
        let below = BELOW.map(|what| self.name(what));
        for name in self.ours()? {
            let ours = self.mapper.find(&name)?.is_some_and(|there| there.uuid.starts_with(&self.prefix));
            if ours && !wanted.contains(&name) && !below.contains(&name) {
                self.mapper.remove(&name, false, true)?;
            }
        }
        dangling().into_iter().filter(|name| is_named_after(name, &self.volume)).for_each(|name| {
            unlink(&name, None);
        });
        Ok(())
    }

    fn swap_head(
        &self,
        to: ThinId,
        size: u64,
        commit: &mut dyn FnMut() -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let name = self.slot(Slot::Head);
        let line = [self.thin_line(to, size)?];
        let suspended = Suspended::new(&self.mapper, name.clone())?;
        let users = self.mapper.find(&name)?.map_or(0, |there| there.users);
        if users == 0 {
            // Whoever opens it from now on waits for what he reads, and it comes from the new one.
            self.mapper.load(&name, &line, Access::Writable)?;
            if let Err(error) = commit() {
                self.mapper.unload(&name)?;
                return Err(error);
            }
            return suspended.resume();
        }
        // Who has it open goes on with what it was, on a device of its own.
        let new = self.name("new");
        let made = self.mapper.ensure(&new, &self.prefix, &line, Access::Writable)?;
        if let Err(error) = commit() {
            self.mapper.remove(&new, true, false)?;
            return Err(error);
        }
        link(&name, made.minor)?;
        let old = old_name(&self.mapper, &self.volume)?;
        suspended.resume()?;
        self.mapper.rename(&name, &old)?;
        self.mapper.rename(&new, &name)?;
        self.mapper.remove(&old, false, true).map(drop)
    }

    fn head_users(&self) -> Result<Users, StoreError> {
        let name = self.slot(Slot::Head);
        let Some(there) = self.mapper.find(&name)? else { return Ok(Users::None) };
        Ok(users(there.major(), there.minor, there.users))
    }

    fn device(&self, slot: Slot) -> PathBuf {
        node(&self.slot(slot))
    }

    fn read_metadata(
        &self,
        read: &mut dyn FnMut(&ThinMetadata) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let _one = self.holding.lock().expect("no panic while locked");
        let path = node(&self.name("metadata"));
        if let Some(what) = self.trouble() {
            // It takes no messages, and changes nothing either: what was committed last stays.
            let done = ThinMetadata::open_current(&path).map_err(StoreError::from);
            let done = done.and_then(|metadata| read(&metadata));
            return done.map_err(|_| StoreError::Damaged { path: self.place.clone(), what });
        }
        if self.settle()? == Beside::Unknown {
            // Holding one would take the note away that an earlier run left, and fail.
            let what = format!("looking at the metadata of volume {}", self.volume);
            return Err(StoreError::Io { what, source: io::Error::new(ErrorKind::WouldBlock, NOT_NOW) });
        }
        let tell = |message: &str| self.tell(message);
        self.moment.hold(&tell, (&self.name("pool"), &path), &|| self.strange_hold(), read)
    }

    fn remedies(&self) -> (String, String) {
        let resize = |what| format!("`zumastor resize {} --{what} SIZE`", self.volume);
        (resize("snapshot"), resize("metadata"))
    }

    fn status(&self) -> Result<PoolStatus, StoreError> {
        self.look(false)
    }

    fn glance(&self) -> Result<PoolStatus, StoreError> {
        self.look(true)
    }

    fn foreign_hold(&self, held: bool) -> Option<String> {
        if !held {
            self.moment.none_is_held();
            return None;
        }
        // Until then what is left of an earlier run is nobody else's.
        if self.settle().ok()? == Beside::Unknown {
            return None;
        }
        let held =
            || -> Result<bool, StoreError> { Ok(self.asked(true)?.is_some_and(|said| said.held.is_some())) };
        let right = self.holding.try_lock().ok();
        let foreign = self.moment.is_foreign(
            right,
            &|message| self.tell(message),
            (&self.name("pool"), &node(&self.name("metadata"))),
            &held,
        );
        foreign.then(|| self.strange_hold())
    }

    fn grow(
        &self,
        data: Option<u64>,
        metadata: Option<u64>,
        noted: &mut dyn FnMut() -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        if let Some(what) = self.apart() {
            return Err(StoreError::Damaged { path: self.place.clone(), what });
        }
        let size = |on| BlockDevice::look(self.devices.path(on)).map(|device| device.size);
        let sizes = (size(On::SnapshotStore)?, size(On::MetadataDevice)?);
        let mut header = self.header();
        let (file, content) = &mut *header;
        let layout = sizes::grown(&content.layout, sizes, data, metadata)?;
        if layout == content.layout {
            return Ok(());
        }
        let new = Content { layout, ..content.clone() };
        // The header first: a pool that has grown cannot be assembled from less.
        file.write(&new)?;
        *content = new;
        drop(header);
        noted()?;
        self.assemble()?;
        // The pool's own table may be the same as before: it looks for how large its devices are when it is resumed.
        let pool = self.name("pool");
        let suspended = self.mapper.suspend(&pool, false);
        self.mapper.resume(&pool).and(suspended)?;
        self.settle().map(drop)
    }

    fn close(&self) -> Result<(), StoreError> {
        // Whoever reads the metadata comes to an end first, and lets go of them.
        let _moment = self.holding.lock().expect("no panic while locked");
        let below = BELOW.map(|what| self.name(what));
        let mut all_gone = true;
        for name in self.ours()?.into_iter().filter(|name| !below.contains(name)) {
            let ours = self.mapper.find(&name)?.is_some_and(|there| there.uuid.starts_with(&self.prefix));
            if ours && self.mapper.remove(&name, true, false)? == Gone::Later {
                all_gone = false;
                tracing::warn!(
                    "{} is in use, so it stays, and the volume's devices with it",
                    node(&name).display()
                );
            }
        }
        if all_gone {
            self.dismantle()?;
        }
        // What is held still is let go by a run that can.
        self.mark(self.moment.is_ours(self.was_open))?;
        self.header().0.unlock()
    }
}
