//! Volumes that are thin volumes of LVM: taken as they are, in a pool that is LVM's and may have others.
//!
//! The head, each snapshot, and what is being received are logical volumes with names that tell what they are, so that LVM's tools
//! can show and remove them. What belongs to the volume is kept in tags of the volume group ([`tags`]).

mod claim;
mod found;
mod lvm;
mod make;
mod pool;
mod said;
mod tags;
mod volumes;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Mutex,
};

use uuid::Uuid;
use zumastor_core::StoreError;

use claim::Claim;
use lvm::{Lv, Lvm, joined, kernels, named, run};
use pool::{LvmPool, State};
use tags::Recorded;

use crate::{
    Faults, Making, VolumeSpec, pool_events,
    thin::{
        Catalogue, ThinStore,
        kernel::{SECTOR, prefix},
        lock::{lock, lock_file},
        mapper::Mapper,
        moment::Moment,
    },
};

/// A logical volume, and the thin pool that it is in or shall be in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    vg: String,
    lv: String,
    pool: String,
}

/// The place that an origin and a snapshot store name, if the latter is a thin pool.
///
/// # Errors
/// [`StoreError::Unsupported`] if both are LVM's but do not belong together, or if there are no such volumes.
pub(crate) fn place(origin: &Path, snapstore: &Path) -> Result<Option<Place>, StoreError> {
    let Some((vg, pool)) = pool_named(snapstore)? else { return Ok(None) };
    let lv = match named(origin) {
        Some((group, lv)) if group == vg => lv,
        _ => {
            return Err(StoreError::Unsupported(format!(
                "the thin pool {} takes volumes of the group {vg}, and {} is none: name it as /dev/{vg}/NAME",
                snapstore.display(),
                origin.display()
            )));
        }
    };
    Ok(Some(Place { vg, lv, pool }))
}

/// Whether a path names a thin pool of LVM's.
pub(crate) fn is_pool(path: &Path) -> Result<bool, StoreError> {
    Ok(pool_named(path)?.is_some())
}

fn pool_named(path: &Path) -> Result<Option<(String, String)>, StoreError> {
    if let Some((name, uuid)) = kernels(path) {
        // The device that stands for a pool; it cannot be read or written.
        let pool = uuid.starts_with("LVM-") && uuid.ends_with("-pool");
        return Ok(pool.then(|| lvm::split(&name)).flatten());
    }
    let Some((vg, name)) = named(path).filter(|_| !path.exists()) else { return Ok(None) };
    let found = Lvm { vg: vg.clone() }.volumes()?.into_iter().find(|lv| lv.name == name);
    Ok(found.filter(|lv| lv.kind == "thin-pool").map(|_| (vg, name)))
}

/// The pool of a thin volume that is there, as a path; for anything else, what to do.
pub(crate) fn pool_of(origin: &Path) -> Result<PathBuf, StoreError> {
    let origin_only = |what: String| {
        StoreError::Unsupported(format!(
            "{what}: say where its snapshots shall be kept, `zumastor define volume VOLUME ORGDEV SNAPDEV`"
        ))
    };
    let Some((vg, name)) = named(origin) else {
        return Err(origin_only(format!("{} is no thin volume of LVM's", origin.display())));
    };
    let found = Lvm { vg: vg.clone() }.volumes()?.into_iter().find(|lv| lv.name == name);
    match found {
        Some(lv) if lv.kind == "thin" => Ok(Path::new("/dev").join(vg).join(lv.pool)),
        Some(lv) => Err(origin_only(format!("{vg}/{name} is no thin volume, but of type {}", lv.kind))),
        None => Err(StoreError::Unsupported(format!(
            "there is no logical volume {vg}/{name}: to receive one, name the pool too, `zumastor define volume VOLUME \
             {vg}/{name} {vg}/POOL`"
        ))),
    }
}

/// Device-mapper's name of the logical volume of a path, whether there is one or not.
pub(crate) fn device_name(path: &Path) -> Option<String> {
    named(path).map(|(vg, lv)| joined(&vg, &lv))
}

/// Whether LVM has a logical volume of this name, active or not.
pub(crate) fn is_volume(path: &Path) -> Result<bool, StoreError> {
    let Some((vg, name)) = named(path) else { return Ok(false) };
    Ok(Lvm { vg }.volumes()?.iter().any(|lv| lv.name == name))
}

/// The identity of the store of a volume, if there is one.
pub(crate) fn store_id(place: &Place) -> Result<Option<Uuid>, StoreError> {
    Ok(Seen::look(place)?.store(place).map(|(id, _)| id))
}

/// Opens the store of a volume; makes one if `making` says how.
pub(crate) fn open(
    place: &Place,
    spec: &VolumeSpec,
    making: Option<Making>,
    faults: Faults,
) -> Result<ThinStore, StoreError> {
    let mapper = Mapper::open()?;
    pool_events::listen();
    let (file, path) = lock_file(&format!("{}.lock", joined(&place.vg, &place.lv)))?;
    lock(&file, &path)?;
    let mut seen = Seen::look(place)?;
    let mut activated = false;
    let (store, recorded) = match (seen.store(place), making) {
        (_, Some(Making { initialize: true, .. })) => {
            return Err(StoreError::Unsupported(format!(
                "a thin volume of LVM's is taken as it is: leave out `--initialize`; for one of zeros, `lvcreate -V SIZE -T {}/{} -n \
                 NAME`",
                place.vg, place.pool
            )));
        }
        (Some(found), _) => found,
        (None, Some(_)) => {
            let (store, recorded, for_it) = make::make(place, spec, &seen, &mapper, &faults)?;
            seen = Seen::look(place)?;
            activated = for_it;
            (store, recorded)
        }
        (None, None) => {
            return Err(StoreError::Unsupported(format!(
                "the volume group {} knows of no volume {} of ours (any more): was it renamed?",
                place.vg, place.lv
            )));
        }
    };
    let claim = Claim::take(store, spec.name.as_str(), &format!("{}/{}", place.vg, place.lv))?;
    if activated {
        claim.note(true)?;
    }
    let pool = assemble(place, spec, seen, (store, &recorded), mapper, (claim, file), faults.clone())?;
    ThinStore::open(Box::new(pool), spec.notes.join(store.to_string()), faults)
}

/// Lets the logical volumes of a volume go on that a program which was killed left standing still. Tells how many.
///
/// # Errors
/// [`StoreError::Unsupported`] if another program has the store open, which sees to that itself; what the kernel refuses.
pub(crate) fn go_on(place: &Place) -> Result<usize, StoreError> {
    let mapper = Mapper::open()?;
    let (file, path) = lock_file(&format!("{}.lock", joined(&place.vg, &place.lv)))?;
    lock(&file, &path)?;
    let seen = Seen::look(place)?;
    let Some((store, recorded)) = seen.store(place) else { return Ok(0) };
    let tag = tags::of_store(store);
    let head = recorded.head().map(|(uuid, _)| uuid);
    let ours = seen.pooled.values().filter(|lv| lv.tags.contains(&tag) || Some(lv.uuid.as_str()) == head);
    resume_all(&mapper, &seen.group.uuid, ours)
}

/// Lets those of these go on that a daemon which was killed in the middle of a flip left standing still. Tells how many.
fn resume_all<'a>(
    mapper: &Mapper,
    group: &str,
    volumes: impl IntoIterator<Item = &'a Lv>,
) -> Result<usize, StoreError> {
    let mut gone_on = 0;
    for lv in volumes {
        let there = mapper.find_uuid(&format!("LVM-{group}{}", lv.uuid))?;
        if let Some((name, _)) = there.filter(|(_, there)| there.suspended) {
            mapper.resume(&name)?;
            gone_on += 1;
        }
    }
    Ok(gone_on)
}

/// What LVM knows of a volume group.
struct Seen {
    group: lvm::Group,
    /// All of its volumes, and those of the pool by uuid.
    volumes: Vec<Lv>,
    pooled: BTreeMap<String, Lv>,
    pool: Lv,
    stores: BTreeMap<Uuid, Recorded>,
}

impl Seen {
    fn look(place: &Place) -> Result<Self, StoreError> {
        let lvm = Lvm { vg: place.vg.clone() };
        let group = lvm.group()?.ok_or_else(|| {
            StoreError::Unsupported(format!("there is no volume group {} (any more): see `vgs`", place.vg))
        })?;
        let volumes = lvm.volumes()?;
        let pool = volumes.iter().find(|lv| lv.name == place.pool && lv.kind == "thin-pool").cloned();
        let pool = pool.ok_or_else(|| {
            StoreError::Unsupported(format!("{}/{} is no thin pool: see `lvs`", place.vg, place.pool))
        })?;
        let pooled = volumes.iter().filter(|lv| lv.pool == place.pool && lv.thin.is_some());
        let pooled = pooled.map(|lv| (lv.uuid.clone(), lv.clone())).collect();
        let stores = tags::stores(&group.tags);
        Ok(Self { group, volumes, pooled, pool, stores })
    }

    fn volume(&self, name: &str) -> Option<&Lv> {
        self.volumes.iter().find(|lv| lv.name == name)
    }

    /// The store whose head a place is: by the volume that is there, or, where another was about to take its place, by name.
    fn store(&self, place: &Place) -> Option<(Uuid, Recorded)> {
        let lv = self.volume(&place.lv);
        let is = |recorded: &Recorded| {
            recorded.head().is_some_and(|(uuid, _)| lv.is_some_and(|lv| lv.uuid == uuid))
        };
        let was = |id: &Uuid, recorded: &Recorded| {
            let free = lv.is_none_or(|lv| lv.tags.contains(&tags::of_store(*id)));
            free && recorded
                .head()
                .is_some_and(|(uuid, name)| name == place.lv && self.pooled.contains_key(uuid))
        };
        let found = self.stores.iter().find(|(_, recorded)| is(recorded));
        let found = found.or_else(|| self.stores.iter().find(|(id, recorded)| was(id, recorded)));
        found.map(|(id, recorded)| (*id, recorded.clone()))
    }

    /// Whether a program has a volume of the pool open, or had when it ended.
    fn is_open(&self) -> bool {
        let pooled =
            |recorded: &Recorded| recorded.head().is_some_and(|(uuid, _)| self.pooled.contains_key(uuid));
        self.stores.values().any(|recorded| recorded.open && pooled(recorded))
    }
}

/// Brings the volume of a store that is there into use.
fn assemble(
    place: &Place,
    spec: &VolumeSpec,
    seen: Seen,
    (store, recorded): (Uuid, &Recorded),
    mapper: Mapper,
    (claim, file): (Claim, std::fs::File),
    faults: Faults,
) -> Result<LvmPool, StoreError> {
    let was_open = seen.is_open();
    let Seen { group, pooled, pool, .. } = seen;
    let damaged = |what: &str| StoreError::Damaged { path: spec.origin.clone(), what: what.to_owned() };
    if recorded.damaged {
        return Err(damaged(
            "its tags in the volume group are damaged, or of a newer version of this program: `vgs -o vg_tags`",
        ));
    }
    let loaded = found::load(store, recorded, &pooled, spec.name.as_str(), &place.lv);
    let (loaded, volumes) = loaded.ok_or_else(|| damaged("its logical volume was removed"))?;
    let ours = group.tags.iter().filter(|tag| tags::store(tag) == Some(store));
    let state = State { volumes, tags: ours.cloned().collect() };
    let mut pool = LvmPool {
        volume: spec.name.to_string(),
        mapper,
        prefix: prefix(store),
        store,
        lvm: Lvm { vg: place.vg.clone() },
        moment: Moment::new(&format!("{}{}", group.uuid, pool.uuid), faults),
        group: group.uuid,
        extent: group.extent,
        chunk: pool.chunk,
        pool: pool.name,
        metadata: pool.metadata,
        place: Path::new("/dev").join(&place.vg).join(&place.pool),
        name: place.lv.clone(),
        loaded,
        was_active: false,
        state: Mutex::new(state),
        claim,
        lock: file,
    };
    pool.begin(was_open)?;
    Ok(pool)
}

impl LvmPool {
    /// Activates the head, and sees to it that the pool is one that can be used.
    fn begin(&mut self, was_open: bool) -> Result<(), StoreError> {
        let head = self.head()?;
        let device = self.device_of(&head)?;
        self.was_active = device.is_some() && !self.claim.has_activated();
        let volumes = self.volumes();
        resume_all(&self.mapper, &self.group, volumes.values())?;
        if device.is_none() {
            self.claim.note(true)?;
            run("lvchange", &["-ay", "-K", &self.lvm.of(&head.name)])?;
        }
        let tag = tags::of_store(self.store);
        if !head.tags.contains(&tag) {
            run("lvchange", &["--addtag", &tag, &self.lvm.of(&head.name)])?;
        }
        let table = self.mapper.table(&self.tpool())?;
        if table.iter().any(|(.., words)| words.contains("skip_block_zeroing")) {
            return Err(StoreError::Unsupported(format!(
                "the pool {} leaves old data of others in new chunks, and so in snapshots and replicas: `lvchange -Zy {0}` first",
                self.lvm.of(&self.pool)
            )));
        }
        self.release_stale(was_open)?;
        let mut tags: BTreeSet<_> = self.tags();
        tags.insert(tags::open(self.store));
        self.set_tags(tags)
    }
}

/// What a volume of no size yet has in bytes: whole extents.
fn smallest(extent: u64) -> u64 {
    (1u64 << 20).next_multiple_of(extent.max(SECTOR))
}

/// A catalogue of a volume as it is.
fn fresh(store: Uuid, lv: &Lv) -> Option<Catalogue> {
    Some(Catalogue::new(store, lv.thin?, lv.size))
}
