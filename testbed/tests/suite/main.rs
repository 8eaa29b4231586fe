//! Scenarios with whole nodes, in part in the kernel lab. One program of all tests: built once, and its tests run beside each other.

mod common;
mod digest;
#[cfg(feature = "device-mapper")]
mod dm_devices;
#[cfg(feature = "device-mapper")]
mod dm_mounts;
#[cfg(feature = "device-mapper")]
mod dm_thin;
mod exports;
mod full_disk;
mod kills;
mod lab;
#[cfg(feature = "device-mapper")]
mod lost_writes;
#[cfg(feature = "device-mapper")]
mod lvm_thin;
mod memory;
mod mount_kills;
mod mounts;
mod namespaces;
mod nfs;
mod nfs_roles;
#[cfg(feature = "device-mapper")]
mod pools;
#[cfg(feature = "device-mapper")]
mod power_cuts;
mod space;
mod sparse;
#[cfg(feature = "device-mapper")]
mod thin_groups;
#[cfg(feature = "device-mapper")]
mod thin_ill;
mod thin_metadata;
#[cfg(feature = "device-mapper")]
mod thin_moments;
#[cfg(feature = "device-mapper")]
mod thin_scrub;
#[cfg(feature = "device-mapper")]
mod thin_still;
#[cfg(feature = "device-mapper")]
mod udev;
#[cfg(feature = "device-mapper")]
mod write_log;
