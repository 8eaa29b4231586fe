//! The stores that keep volumes and their snapshots, each behind `zumastor_core::SnapshotStore`.
//!
//! [`FileStore`] keeps a volume in an image file and its snapshots in a directory; no privileges needed.
//! [`open_volume`] sees from the paths which store is meant.

#[cfg(feature = "conformance")]
pub mod conformance;
mod destroy;
mod faults;
mod file;
mod open;
mod plain;

pub use destroy::{condemn_store, remove_store};
pub use faults::Faults;
pub use file::{FileStore, FileStoreOptions, Mode};
pub use open::{OriginMust, VolumeSpec, open_volume, reopen_volume, store_id};
pub use plain::plain_source;
