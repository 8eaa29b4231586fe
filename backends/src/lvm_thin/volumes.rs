//! The logical volumes of a store: what they are called, and their devices.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use zumastor_core::StoreError;

use super::{
    lvm::{Lv, joined, run, split},
    pool::LvmPool,
    tags,
};
use crate::thin::{Slot, ThinId, kernel::SECTOR, mapper::Mapped};

impl LvmPool {
    pub(super) fn volume(&self, id: ThinId) -> Result<Lv, StoreError> {
        self.state().volumes.get(&id).cloned().ok_or_else(|| {
            let what = format!("the logical volume of thin device {id} is gone");
            StoreError::Damaged { path: self.place.clone(), what }
        })
    }

    /// The device of a logical volume, if it is active, and the name that the volume has now.
    pub(super) fn device_of(&self, lv: &Lv) -> Result<Option<(String, Mapped)>, StoreError> {
        let uuid = format!("LVM-{}{}", self.group, lv.uuid);
        let there = self.mapper.find_uuid(&uuid)?;
        Ok(there.and_then(|(name, mapped)| Some((split(&name)?.1, mapped))))
    }

    /// The same, activated if it is not.
    pub(super) fn active(&self, lv: &Lv) -> Result<(String, Mapped), StoreError> {
        if let Some(there) = self.device_of(lv)? {
            return Ok(there);
        }
        let name = self.reload()?.get(&lv.uuid).map_or_else(|| lv.name.clone(), |lv| lv.name.clone());
        run("lvchange", &["-ay", "-K", &self.lvm.of(&name)])?;
        self.device_of(lv)?.ok_or_else(|| {
            let what = format!("{} has no device although LVM has activated it", self.lvm.of(&name));
            StoreError::Unsupported(what)
        })
    }

    /// Asks LVM again what there is, by uuid. Names of what we know are taken over.
    pub(super) fn reload(&self) -> Result<BTreeMap<String, Lv>, StoreError> {
        let found: BTreeMap<_, _> = self.lvm.volumes()?.into_iter().map(|lv| (lv.uuid.clone(), lv)).collect();
        if !found.values().any(|lv| lv.name == self.pool && lv.kind == "thin-pool") {
            // Where LVM does not see the devices of a group, it lists nothing, and says that all is well.
            let pool = self.lvm.of(&self.pool);
            let what = io::Error::other("LVM does not list it (any more): see `vgs` and `pvs`");
            return Err(StoreError::io(format!("looking for the pool {pool}"))(what));
        }
        for known in self.state().volumes.values_mut() {
            if let Some(lv) = found.get(&known.uuid) {
                known.clone_from(lv);
            }
        }
        Ok(found)
    }

    pub(super) fn wanted(&self, slot: Slot) -> String {
        match slot {
            Slot::Head => self.name.clone(),
            Slot::Snapshot(number) => format!("{}_zuma{number}", self.name),
            Slot::Staging => format!("{}_zumarecv", self.name),
            Slot::Repair | Slot::Scratch => self.free_name("tmp"),
        }
    }

    /// A name that none of our logical volumes has.
    pub(super) fn free_name(&self, what: &str) -> String {
        let state = self.state();
        let taken: BTreeSet<_> = state.volumes.values().map(|lv| lv.name.as_str()).collect();
        let mut free = (1u32..).map(|n| format!("{}_zuma{what}{n}", self.name));
        free.find(|name| !taken.contains(name.as_str())).expect("there is always another number")
    }

    /// What a device is called that users see, or that is ours.
    pub(super) fn node_name(&self, slot: Slot) -> String {
        match slot {
            Slot::Head => self.volume.clone(),
            Slot::Snapshot(number) => format!("{}({number})", self.volume),
            Slot::Staging => format!("{}:staging", self.volume),
            Slot::Repair => format!("{}:repair", self.volume),
            Slot::Scratch => format!("{}:scratch", self.volume),
        }
    }

    pub(super) fn rename(&self, id: ThinId, from: &str, to: &str) -> Result<(), StoreError> {
        run("lvrename", &[&self.lvm.vg, from, to])?;
        if let Some(lv) = self.state().volumes.get_mut(&id) {
            to.clone_into(&mut lv.name);
        }
        Ok(())
    }

    /// Gives a logical volume its name. One of ours that has it goes out of the way.
    pub(super) fn call(&self, id: ThinId, has: &str, wanted: &str) -> Result<(), StoreError> {
        if has == wanted {
            return Ok(());
        }
        let other = self.state().volumes.iter().find(|(_, lv)| lv.name == wanted).map(|(id, _)| *id);
        if let Some(other) = other {
            self.rename(other, wanted, &self.free_name("old"))?;
        }
        self.rename(id, has, wanted)
    }

    /// Makes a logical volume for a slot, and takes note of it. What is not the head is not activated at boot.
    pub(super) fn make(&self, slot: Slot, what: &[&str]) -> Result<ThinId, StoreError> {
        let name = match slot {
            // It gets its name when it takes the place of the one before.
            Slot::Head => self.free_name("tmp"),
            slot => self.wanted(slot),
        };
        let permission = if matches!(slot, Slot::Snapshot(_)) { "-pr" } else { "-prw" };
        let skip = if slot == Slot::Head { "-kn" } else { "-ky" };
        let tag = tags::of_store(self.store);
        let begin = ["-n", &name, "--addtag", &tag, permission, skip, "-K", "-ay"];
        run("lvcreate", &[&begin, what].concat())?;
        let device = joined(&self.lvm.vg, &name);
        let there = self.mapper.find(&device)?;
        let targets = self.mapper.table(&device)?;
        let uuid =
            there.as_ref().and_then(|there| there.uuid.strip_prefix("LVM-")?.strip_prefix(&*self.group));
        let id = targets.first().and_then(|(_, _, _, words)| words.split(' ').nth(1)?.parse().ok());
        let (Some(uuid), Some(id)) = (uuid, id.map(ThinId)) else {
            let what = format!("{} is no thin volume although LVM has just made it one", self.lvm.of(&name));
            return Err(StoreError::Unsupported(what));
        };
        let lv = Lv {
            name,
            uuid: uuid.to_owned(),
            kind: "thin".to_owned(),
            size: length(&targets),
            pool: self.pool.clone(),
            thin: Some(id),
            tags: vec![tag],
            metadata: String::new(),
            chunk: 0,
        };
        self.state().volumes.insert(id, lv);
        Ok(id)
    }

    pub(super) fn resize(&self, name: &str, size: u64) -> Result<(), StoreError> {
        let (size, lv) = (format!("{}s", size / SECTOR), self.lvm.of(name));
        // Newer versions look at the file system, which is not theirs to do; older ones do not know the word.
        let common = ["-f", "-y", "-L", &size, &lv];
        match run("lvresize", &[&["--fs", "ignore"][..], &common].concat()) {
            Err(error) if format!("{error:?}").contains("unrecognized option") => {
                run("lvresize", &common).map(drop)
            }
            resized => resized.map(drop),
        }
    }

    /// Deactivates logical volumes that nobody uses.
    pub(super) fn put_down(&self, volumes: Vec<Lv>) -> Result<(), StoreError> {
        let mut names = Vec::new();
        for lv in volumes {
            match self.device_of(&lv)? {
                Some((name, there)) if there.users == 0 => names.push(self.lvm.of(&name)),
                Some((name, _)) => tracing::warn!("{} is in use, so it stays active", self.lvm.of(&name)),
                None => {}
            }
        }
        if names.is_empty() {
            return Ok(());
        }
        let arguments: Vec<_> = ["-an"].into_iter().chain(names.iter().map(String::as_str)).collect();
        run("lvchange", &arguments).map(drop)
    }
}

/// Bytes of a table.
pub(super) fn length(targets: &[(u64, u64, String, String)]) -> u64 {
    targets.iter().map(|(_, sectors, ..)| sectors * SECTOR).sum()
}
