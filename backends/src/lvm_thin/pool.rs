//! A volume in a thin pool of LVM's: logical volumes are made, renamed and removed by LVM, and their devices are LVM's.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
};

use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;
use zumastor_core::{HumanBytes, SnapshotNumber, StoreError, StoreInfo};

use super::{
    claim::Claim,
    found::{removed, resized},
    lvm::{self, Lv, Lvm, dashed, joined, run},
    tags,
    volumes::length,
};
use crate::{
    thin::{
        Access, Catalogue, Gone, Pool, PoolStatus, Slot, ThinId, Users,
        kernel::{SECTOR, Suspended, is_named_after, retire, tell, thin_line, trouble},
        mapper::{Mapper, link, links, node, unlink},
        moment::Moment,
        users::users,
        would_wait,
    },
    thin_metadata::ThinMetadata,
};

/// A volume in a pool of LVM's.
#[derive(Debug)]
pub(super) struct LvmPool {
    /// The volume's name here.
    pub volume: String,
    pub mapper: Mapper,
    /// Begins the uuid of the devices that are ours and not LVM's.
    pub prefix: String,
    pub store: Uuid,
    pub lvm: Lvm,
    /// The uuid of the volume group, 32 characters.
    pub group: String,
    pub extent: u64,
    pub chunk: u64,
    /// The pool's logical volume, and that of its metadata.
    pub pool: String,
    pub metadata: String,
    /// `/dev/VG/POOL`.
    pub place: PathBuf,
    /// The logical volume of the head.
    pub name: String,
    /// What the volume consisted of when it was opened.
    pub loaded: Catalogue,
    /// Whether the head was active before, and not for the store.
    pub was_active: bool,
    pub state: Mutex<State>,
    pub moment: Moment,
    /// Held while the store is open, with the lock that bears the names.
    pub claim: Claim,
    pub lock: File,
}

/// How often a flip is tried again that would have had to wait for somebody else's lock, before that is an error.
const HURRIES: u32 = 20;

/// What there is.
#[derive(Debug, Default)]
pub(super) struct State {
    pub volumes: BTreeMap<ThinId, Lv>,
    /// All of ours that the volume group has.
    pub tags: BTreeSet<String>,
}

impl LvmPool {
    /// The logical volume of the head, as it was when the store was opened.
    pub(super) fn head(&self) -> Result<Lv, StoreError> {
        self.volume(self.loaded.head.thin)
    }

    /// The tags of ours that the volume group has.
    pub(super) fn tags(&self) -> BTreeSet<String> {
        self.state().tags.clone()
    }

    /// The logical volumes of the store, by thin device.
    pub(super) fn volumes(&self) -> BTreeMap<ThinId, Lv> {
        self.state().volumes.clone()
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while locked")
    }

    /// Makes the tags of the volume group those that are given, in one step.
    pub(super) fn set_tags(&self, new: BTreeSet<String>) -> Result<(), StoreError> {
        let mut state = self.state();
        let adds = new.difference(&state.tags).flat_map(|tag| ["--addtag", tag]);
        let removes = state.tags.difference(&new).flat_map(|tag| ["--deltag", tag]);
        let mut arguments: Vec<_> = adds.chain(removes).collect();
        if arguments.is_empty() {
            return Ok(());
        }
        arguments.push(&self.lvm.vg);
        run("vgchange", &arguments)?;
        state.tags = new;
        Ok(())
    }

    /// Removes our own devices, and nodes that are not among these.
    fn tidy(&self, wanted: &BTreeSet<String>) -> Result<(), StoreError> {
        for name in self.mapper.names()?.into_iter().filter(|name| is_named_after(name, &self.volume)) {
            let ours = self.mapper.find(&name)?.is_some_and(|there| there.uuid.starts_with(&self.prefix));
            if ours {
                self.mapper.remove(&name, false, true)?;
            }
        }
        let links = links().into_iter().filter(|name| is_named_after(name, &self.volume));
        links.filter(|name| !wanted.contains(name)).for_each(|name| {
            unlink(&name, None);
        });
        Ok(())
    }

    fn report(&self, gone: &[SnapshotNumber]) {
        for number in gone {
            removed(&self.volume, *number);
            unlink(&self.node_name(Slot::Snapshot(*number)), None);
        }
    }
}

impl Pool for LvmPool {
    fn place(&self) -> &Path {
        &self.place
    }

    fn info(&self) -> StoreInfo {
        let said = self.said();
        let pool = self.lvm.of(&self.pool);
        let waits = matches!(&said, Ok(Some(said)) if said.queues).then(|| {
            format!(
                "when the pool {pool} is full, whoever writes waits for a minute before it is an error: `lvchange --errorwhenfull \
                 y {pool}` makes it one at once"
            )
        });
        StoreInfo {
            kind: format!("LVM thin pool {pool}, chunks of {}", HumanBytes(self.chunk)),
            caution: trouble(&said, &self.repair()).or(waits),
        }
    }

    fn chunk(&self) -> u64 {
        self.chunk
    }

    fn load(&self) -> Result<Catalogue, StoreError> {
        Ok(self.loaded.clone())
    }

    fn save(&self, catalogue: &Catalogue) -> Result<(), StoreError> {
        let volumes = self.volumes();
        let uuid = |thin: ThinId| volumes.get(&thin).map(|lv| lv.uuid.clone()).unwrap_or_default();
        let mut tags = tags::encode(catalogue, &self.name, &uuid);
        tags.insert(tags::open(self.store));
        self.set_tags(tags)
    }

    fn check_size(&self, size: u64) -> Result<(), StoreError> {
        if size > 0 && size.is_multiple_of(self.extent) {
            return Ok(());
        }
        Err(StoreError::Unsupported(format!(
            "volumes in the group {} consist of extents of {}: {size} bytes are not; give the volume a size that is, such as {}, \
             where it comes from (`zumastor resize VOLUME --origin SIZE`)",
            self.lvm.vg,
            HumanBytes(self.extent),
            HumanBytes(size.next_multiple_of(self.extent).max(self.extent))
        )))
    }

    fn thins(&self) -> Result<BTreeSet<ThinId>, StoreError> {
        Ok(self.state().volumes.keys().copied().collect())
    }

    fn create(&self, slot: Slot, size: u64) -> Result<ThinId, StoreError> {
        self.check_size(size)?;
        let sectors = format!("{}s", size / SECTOR);
        self.make(slot, &["-Wn", "-V", &sectors, "-T", &self.lvm.of(&self.pool)])
    }

    fn clone_of(&self, origin: ThinId, slot: Slot, size: u64) -> Result<ThinId, StoreError> {
        self.check_size(size)?;
        let (name, _) = self.active(&self.volume(origin)?)?;
        self.make(slot, &["-s", &self.lvm.of(&name)])
    }

    fn clone_head(&self, head: ThinId, number: SnapshotNumber) -> Result<ThinId, StoreError> {
        // LVM brings what is active to rest, and lets it go on.
        let (name, _) = self.active(&self.volume(head)?)?;
        self.make(Slot::Snapshot(number), &["-s", &self.lvm.of(&name)])
    }

    fn delete(&self, id: ThinId) -> Result<Gone, StoreError> {
        let Ok(lv) = self.volume(id) else { return Ok(Gone::Yes) };
        let device = self.device_of(&lv)?;
        if device.as_ref().is_some_and(|(_, there)| there.users > 0) {
            return Ok(Gone::Later);
        }
        let name = match device {
            Some((name, _)) => Some(name),
            None => self.reload()?.get(&lv.uuid).map(|lv| lv.name.clone()),
        };
        if let Some(name) = name {
            // Whatever has this name meanwhile, nothing else goes than what was meant.
            let selection = format!("lv_uuid={}", dashed(&lv.uuid));
            // While a moment of the metadata is held, nothing would become free.
            drop(self.lock_metadata().ok());
            run("lvremove", &["-y", "-S", &selection, &self.lvm.of(&name)])?;
        }
        self.state().volumes.remove(&id);
        Ok(Gone::Yes)
    }

    fn activate(&self, slot: Slot, id: ThinId, size: u64, access: Access) -> Result<PathBuf, StoreError> {
        if matches!(slot, Slot::Repair | Slot::Scratch) {
            let line = thin_line(&self.mapper, &self.tpool(), id, size)?;
            let made = self.mapper.ensure(&self.node_name(slot), &self.prefix, &[line], access)?;
            return Ok(format!("/dev/dm-{}", made.minor).into());
        }
        let lv = self.volume(id)?;
        let (has, there) = self.active(&lv)?;
        let name = self.wanted(slot);
        self.call(id, &has, &name)?;
        let read_only = access == Access::ReadOnly;
        if there.read_only != read_only {
            run("lvchange", &[if read_only { "-pr" } else { "-prw" }, &self.lvm.of(&name)])?;
        }
        let device = joined(&self.lvm.vg, &name);
        if length(&self.mapper.table(&device)?) != size {
            self.check_size(size)?;
            self.resize(&name, size)?;
        }
        if slot == Slot::Staging {
            return Ok(format!("/dev/dm-{}", there.minor).into());
        }
        let node_name = self.node_name(slot);
        link(&node_name, there.minor)?;
        Ok(node(&node_name))
    }

    fn deactivate(&self, slot: Slot) -> Result<Gone, StoreError> {
        let name = self.node_name(slot);
        if matches!(slot, Slot::Repair | Slot::Scratch) {
            return retire(&self.mapper, &self.volume, &name);
        }
        unlink(&name, None);
        let wanted = self.wanted(slot);
        let known =
            self.state().volumes.iter().find(|(_, lv)| lv.name == wanted).map(|(id, lv)| (*id, lv.clone()));
        let Some((id, lv)) = known else { return Ok(Gone::Yes) };
        match self.device_of(&lv)? {
            Some((name, there)) if there.users > 0 => {
                self.rename(id, &name, &self.free_name("old"))?;
                Ok(Gone::Later)
            }
            _ => Ok(Gone::Yes),
        }
    }

    fn renumber(&self, from: SnapshotNumber, to: SnapshotNumber) -> Result<(), StoreError> {
        let (from, to) = (Slot::Snapshot(from), Slot::Snapshot(to));
        unlink(&self.node_name(from), None);
        let wanted = self.wanted(from);
        let known =
            self.state().volumes.iter().find(|(_, lv)| lv.name == wanted).map(|(id, lv)| (*id, lv.clone()));
        let Some((id, lv)) = known else { return Ok(()) };
        let (name, there) = self.active(&lv)?;
        self.call(id, &name, &self.wanted(to))?;
        link(&self.node_name(to), there.minor)
    }

    fn sweep(&self, wanted: &[Slot]) -> Result<(), StoreError> {
        self.tidy(&wanted.iter().map(|slot| self.node_name(*slot)).collect())?;
        // All at once, which is sooner done than one by one.
        let mut names = Vec::new();
        for id in self.loaded.thins() {
            let lv = self.volume(id)?;
            if self.device_of(&lv)?.is_none() {
                names.push(self.lvm.of(&lv.name));
            }
        }
        if names.is_empty() {
            return Ok(());
        }
        let arguments: Vec<_> = ["-ay", "-K"].into_iter().chain(names.iter().map(String::as_str)).collect();
        run("lvchange", &arguments).map(drop)
    }

    fn swap_head(
        &self,
        to: ThinId,
        size: u64,
        commit: &mut dyn FnMut() -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let link_name = self.node_name(Slot::Head);
        let known =
            self.state().volumes.iter().find(|(_, lv)| lv.name == self.name).map(|(_, lv)| lv.clone());
        let (old, _) = self.active(&known.ok_or_else(|| {
            StoreError::Unsupported(format!("{} was renamed by somebody else", self.lvm.of(&self.name)))
        })?)?;
        let (_, new) = self.active(&self.volume(to)?)?;
        let mut tries = 1..=HURRIES;
        let suspended = loop {
            let suspended = Suspended::new(&self.mapper, joined(&self.lvm.vg, &old))?;
            // Whoever holds a lock may do so for long, and the volume must not stand still for that.
            match lvm::hurried(&mut *commit) {
                Ok(()) => break suspended,
                Err(error) if would_wait(&error) && tries.next().is_some() => suspended.resume()?,
                Err(error) => return Err(error),
            }
            drop(self.lock_metadata()?);
            self.lvm.group()?;
        };
        // From here on it is decided. Who has the old one open keeps that.
        link(&link_name, new.minor)?;
        suspended.resume()?;
        self.activate(Slot::Head, to, size, Access::Writable).map(drop)
    }

    fn head_users(&self) -> Result<Users, StoreError> {
        let known = self.state().volumes.values().find(|lv| lv.name == self.name).cloned();
        let Some(lv) = known else { return Ok(Users::Writers) };
        let Some((_, there)) = self.device_of(&lv)? else { return Ok(Users::None) };
        Ok(users(there.major(), there.minor, there.users))
    }

    fn device(&self, slot: Slot) -> PathBuf {
        node(&self.node_name(slot))
    }

    fn look_again(&self, catalogue: &Catalogue) -> Result<Catalogue, StoreError> {
        let mut missing = BTreeSet::new();
        for id in catalogue.thins() {
            let known = self.state().volumes.get(&id).cloned();
            let active = known.map(|lv| self.device_of(&lv)).transpose()?.flatten();
            if active.is_none() {
                missing.insert(id);
            }
        }
        let mut now = catalogue.clone();
        if !missing.is_empty() {
            let there = self.reload()?;
            let is_there =
                |id: ThinId| self.state().volumes.get(&id).is_some_and(|lv| there.contains_key(&lv.uuid));
            let gone: BTreeSet<_> = missing.iter().copied().filter(|id| !is_there(*id)).collect();
            if gone.contains(&catalogue.head.thin) {
                let what = format!("{} was removed by somebody else", self.lvm.of(&self.name));
                return Err(StoreError::Damaged { path: self.place.clone(), what });
            }
            let lost: Vec<_> = now.snapshots.iter().filter(|kept| gone.contains(&kept.thin)).collect();
            let lost: Vec<_> = lost.into_iter().map(|kept| kept.record.number()).collect();
            for number in &lost {
                now.remove(*number);
            }
            self.report(&lost);
            if now.staged.as_ref().is_some_and(|staged| gone.contains(&staged.thin)) {
                now.staged = None;
            }
            self.state().volumes.retain(|id, _| !gone.contains(id));
        }
        let (name, _) = self.active(&self.volume(now.head.thin)?)?;
        resized(&mut now, length(&self.mapper.table(&joined(&self.lvm.vg, &name))?));
        Ok(now)
    }

    fn is_there(&self, id: ThinId) -> Result<bool, StoreError> {
        let Some(lv) = self.state().volumes.get(&id).cloned() else { return Ok(false) };
        Ok(self.device_of(&lv)?.is_some() || self.reload()?.contains_key(&lv.uuid))
    }

    fn read_metadata(
        &self,
        read: &mut dyn FnMut(&ThinMetadata) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let _one = self.lock_metadata()?;
        let metadata = self.metadata()?;
        let pool = self.tpool();
        let tell = |message: &str| tell(&self.mapper, &pool, message);
        self.moment.hold(&tell, (&pool, &metadata), &|| self.strange_hold(), read)
    }

    fn remedies(&self) -> (String, String) {
        let pool = self.lvm.of(&self.pool);
        (format!("`lvextend -L +SIZE {pool}`"), format!("`lvextend --poolmetadatasize +SIZE {pool}`"))
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
        let (pool, metadata) = (self.tpool(), self.metadata().ok()?);
        let tell = |message: &str| tell(&self.mapper, &pool, message);
        let held =
            || -> Result<bool, StoreError> { Ok(self.said()?.is_some_and(|said| said.held.is_some())) };
        let right = lvm::hurried(|| self.lock_metadata()).ok();
        self.moment.is_foreign(right, &tell, (&pool, &metadata), &held).then(|| self.strange_hold())
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn grow(
        &self,
        _data: Option<u64>,
        _metadata: Option<u64>,
        _noted: &mut dyn FnMut() -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let (data, metadata) = self.remedies();
        Err(StoreError::Unsupported(format!(
            "the pool {} is LVM's, and may have other volumes: {data}, {metadata}",
            self.place.display()
        )))
    }

    fn close(&self) -> Result<(), StoreError> {
        // Whoever reads the metadata comes to an end first, and lets go of them.
        let held = self.lock_metadata().is_ok_and(|_right| self.moment.is_ours(false));
        self.tidy(&BTreeSet::new())?;
        let volumes = self.volumes();
        let mut others: Vec<_> =
            volumes.into_values().filter(|lv| !self.was_active || lv.name != self.name).collect();
        others.sort_by_key(|lv| lv.name == self.name);
        self.put_down(others)?;
        let open = tags::open(self.store);
        let mut tags = self.tags();
        if !held {
            tags.remove(&open);
        }
        self.set_tags(tags)?;
        let head = self.state().volumes.values().find(|lv| lv.name == self.name).cloned();
        let is_down = head.map(|head| self.device_of(&head)).transpose()?.flatten().is_none();
        if is_down {
            self.claim.note(false)?;
        }
        self.claim.release()?;
        flock(&self.lock, FlockOperation::Unlock)
            .map_err(|error| StoreError::io(format!("unlocking {}", self.place.display()))(error.into()))
    }
}
