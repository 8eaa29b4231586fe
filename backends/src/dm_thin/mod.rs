//! Volumes on block devices: a thin pool for each, which we own.
//!
//! The origin, as it is, becomes the first part of the pool's data, and a thin device that is mapped onto it one to one is the
//! head: nothing is copied. The rest of the data is in the snapshot store, behind a header that says what the volume
//! consists of, and behind the metadata unless these have a device of their own.

mod below;
mod beside;
mod devices;
mod header;
mod make;
mod pool;
mod said;
mod sizes;
mod still;

use std::{
    collections::BTreeSet,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32},
    },
};

use zumastor_core::StoreError;

use below::{Devices, clear_others};
use beside::Beside;
use devices::BlockDevice;
pub(crate) use devices::signature;
pub(crate) use header::store_id;
use header::{Content, Header};
use pool::DmPool;
pub(crate) use still::go_on;

use crate::{
    Faults, Making, VolumeSpec, pool_events,
    thin::{ThinStore, kernel::prefix, mapper::Mapper, moment::Moment},
};

/// Opens the store that is on the devices of `spec`; makes one if `making` says how.
pub(crate) fn open(
    spec: &VolumeSpec,
    making: Option<Making>,
    faults: Faults,
) -> Result<ThinStore, StoreError> {
    let mapper = Mapper::open()?;
    pool_events::listen();
    let (mut header, content) = Header::open_alone(&spec.snapstore)?;
    let content = match (content, making) {
        (Some(content), Some(making)) if making.initialize => {
            if !content.catalogue.snapshots.is_empty() {
                return Err(StoreError::Unsupported(format!(
                    "{} holds {} snapshots, so this is no new volume and was not initialized: leave out `--initialize` to \
                     take it up",
                    spec.snapstore.display(),
                    content.catalogue.snapshots.len()
                )));
            }
            make::make(spec, making, mapper, &mut header, &faults)?
        }
        (Some(content), _) => content,
        (None, Some(making)) => make::make(spec, making, mapper, &mut header, &faults)?,
        (None, None) => {
            return Err(StoreError::Unsupported(format!(
                "there is no snapshot store on {} (any more): is it the right device?",
                spec.snapstore.display()
            )));
        }
    };
    let pool = assemble(spec, header, content, faults.clone())?;
    let notes = spec.notes.join(pool.load_id().to_string());
    ThinStore::open(Box::new(pool), notes, faults)
}

/// Brings the pool of a store that is there into use.
fn assemble(
    spec: &VolumeSpec,
    header: Header,
    content: Content,
    faults: Faults,
) -> Result<DmPool, StoreError> {
    check_devices(spec, &content)?;
    let pool = new_pool(spec, header, content, faults)?;
    clear_others(&pool.mapper, &pool.volume, &pool.prefix)?;
    pool.assemble()?;
    let said = pool.said()?;
    let trouble = pool.trouble();
    if said.is_none() {
        // Nothing of it can be used, and what is in the way of a repair goes.
        pool.dismantle()?;
        let what = trouble.unwrap_or_else(|| "the pool has failed".to_owned());
        return Err(StoreError::Damaged { path: spec.snapstore.clone(), what });
    }
    pool.settle()?;
    for why in trouble.into_iter().chain(pool.apart()) {
        tracing::error!(volume = %spec.name, "the volume can only be read: {why}");
    }
    pool.mark(true)?;
    Ok(pool)
}

fn new_pool(
    spec: &VolumeSpec,
    header: Header,
    content: Content,
    faults: Faults,
) -> Result<DmPool, StoreError> {
    let (store, was_open) = (content.catalogue.store, content.open);
    Ok(DmPool {
        volume: spec.name.to_string(),
        mapper: Mapper::open()?,
        prefix: prefix(store),
        place: spec.snapstore.clone(),
        devices: Devices {
            origin: spec.origin.clone(),
            snapstore: spec.snapstore.clone(),
            metadev: spec.metadev.clone(),
        },
        header: Mutex::new((header, content)),
        known: Mutex::new(BTreeSet::new()),
        last: Mutex::new(0),
        time: AtomicU32::new(0),
        holding: Mutex::new(()),
        moment: Moment::new(&store.simple().to_string(), faults),
        beside: Mutex::new(Beside::Unknown),
        was_open,
        frozen: AtomicBool::new(false),
    })
}

impl DmPool {
    fn load_id(&self) -> uuid::Uuid {
        self.header().1.catalogue.store
    }
}

/// Makes sure that the devices are those that the volume was made of, as far as that can be told.
fn check_devices(spec: &VolumeSpec, content: &Content) -> Result<(), StoreError> {
    let layout = &content.layout;
    let origin = BlockDevice::look(&spec.origin)?;
    let other = |what: String| {
        Err(StoreError::Unsupported(format!(
            "{what}: the snapshots on {} share their blocks with the origin that they were taken of, and with no other",
            spec.snapstore.display()
        )))
    };
    if origin.size < layout.origin {
        return other(format!(
            "{} has {} bytes, and the origin of this volume {}",
            spec.origin.display(),
            origin.size,
            layout.origin
        ));
    }
    match (origin.identity(&spec.origin), &layout.identity) {
        (Some(found), Some(expected)) if found != *expected => {
            return other(format!(
                "{} is {found}, and the origin of this volume is {expected}",
                spec.origin.display()
            ));
        }
        _ => {}
    }
    let own = layout.metadata.iter().any(|piece| piece.on == header::On::MetadataDevice);
    match (&spec.metadev, own) {
        (None, true) => Err(StoreError::Unsupported(
            "this volume was defined with a metadata device: name it with `--metadev`".to_owned(),
        )),
        (Some(metadev), false) => Err(StoreError::Unsupported(format!(
            "this volume keeps its metadata in the snapshot store, and not on {}: leave out `--metadev`",
            metadev.display()
        ))),
        _ => Ok(()),
    }
}
