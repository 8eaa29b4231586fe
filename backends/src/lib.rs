//! The stores that keep volumes and their snapshots, each behind `zumastor_core::SnapshotStore`.
//!
//! [`FileStore`] keeps a volume in an image file and its snapshots in a directory; no privileges needed.
//! With the feature `device-mapper`, a volume may be on block devices, in a thin pool of its own, or a thin volume of LVM's.
//! [`thin_metadata`] reads what a dm-thin pool knows of its volumes.
//! [`open_volume`] sees from the paths which store is meant.

mod bulk;
#[cfg(feature = "conformance")]
pub mod conformance;
mod described;
mod destroy;
mod direct;
#[cfg(feature = "device-mapper")]
mod dm_thin;
mod faults;
mod file;
#[cfg(feature = "device-mapper")]
mod lvm_thin;
mod open;
mod plain;
mod pool_events;
mod reading;
#[cfg(feature = "device-mapper")]
mod thin;
pub mod thin_metadata;

pub use destroy::{condemn_store, remove_store};
pub use faults::Faults;
pub use file::{FileStore, FileStoreOptions, Mode, open_for_writing};
pub use open::{
    Making, OriginMust, VolumeSpec, is_pool, let_go_on, logical_name, open_volume, origin_exists, pool_of,
    reopen_volume, signature, store_id,
};
#[cfg(feature = "device-mapper")]
pub use open::{open_devices, open_lvm};
pub use plain::plain_source;
pub use pool_events::pool_events;
