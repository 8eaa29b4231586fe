//! The stores that keep volumes and their snapshots, each behind `zumastor_core::SnapshotStore`.
//!
//! [`FileStore`] keeps a volume in an image file and its snapshots in a directory; no privileges needed.
//! [`thin_metadata`] reads what a dm-thin pool knows of its volumes.
//! [`open_volume`] sees from the paths which store is meant.

#[cfg(feature = "conformance")]
pub mod conformance;
mod destroy;
mod faults;
mod file;
mod open;
mod plain;
pub mod thin_metadata;

pub use destroy::{condemn_store, remove_store};
pub use faults::Faults;
pub use file::{FileStore, FileStoreOptions, Mode, open_for_writing};
pub use open::{OriginMust, VolumeSpec, open_volume, reopen_volume, store_id};
pub use plain::plain_source;
